"""Our connections and streams in the shapes py-libp2p knows: IMuxedConn, INetConn, IMuxedStream.

py-libp2p's hosts negotiate the protocol of a stream themselves, on raw bytes; ours come negotiated. So a shim plays the
other side of that negotiation: what the host proposes is opened on the real network, and what a peer has opened is
proposed to the host.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from libp2p.abc import IMuxedConn, IMuxedStream, INetConn, INetStream
from libp2p.connection_types import ConnectionType
from libp2p.network.stream.net_stream import NetStream
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamEOF,
    MuxedStreamError,
    MuxedStreamReset,
)
from multiaddr import Multiaddr

from ipfsreg.errors import MalformedData, NetworkError, ProtocolUnsupported, StreamReset
from ipfsreg.ipld.varint import decode_varint, encode_varint
from ipfsreg.p2p.addresses import TcpAddr, parse_dialable
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

MULTISTREAM = "/multistream/1.0.0"
MAX_PROPOSAL_BYTES = 1024
"""The host on this side of the door is ours, but its mistakes are bounded like everybody's."""
READ_BYTES = 65536


def _line(text: str) -> bytes:
    """One multistream-select message."""
    raw = text.encode() + b"\n"
    return encode_varint(len(raw)) + raw


@contextmanager
def _in_libp2p_terms() -> Iterator[None]:
    try:
        yield
    except StreamReset as error:
        raise MuxedStreamReset(str(error)) from error
    except NetworkError as error:
        raise MuxedStreamError(str(error)) from error


class Connection(IMuxedConn, INetConn):
    """The connection to one peer, as long as `is_closed` is false."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self._streams: list[INetStream] = []
        self.peer_id = ID(peer.raw)
        self.muxed_conn = self
        self.event_started = trio.Event()
        self.event_started.set()
        self.on_close: Any = None

    @property
    def is_initiator(self) -> bool:
        # Only the yamux implementation it stands in for would care: it numbers streams by it.
        return True

    @property
    def is_established(self) -> bool:
        return not self.is_closed

    @property
    def is_closed(self) -> bool:
        return self._peer not in self._network.peers()

    async def start(self) -> None:
        """It runs already."""

    async def close(self) -> None:
        await self._network.disconnect(self._peer, "closed by a py-libp2p protocol")

    async def open_stream(self) -> IMuxedStream:
        if self.is_closed:
            raise MuxedConnUnavailable(f"{self._peer} is not connected")
        return OutboundStream(self, self._network, self._peer)

    async def accept_stream(self) -> IMuxedStream:
        # Streams of peers come through the door's accept loop, which knows what is offered.
        raise MuxedConnUnavailable("inbound streams are handed to the stream handler")

    async def new_stream(self) -> INetStream:
        return self.keep(NetStream(await self.open_stream(), None, None))

    def keep(self, stream: INetStream) -> INetStream:
        """List *stream* among those of this connection until it is closed."""
        self._streams = [one for one in self._streams if not getattr(one, "is_closed", False)]
        self._streams.append(stream)
        return stream

    def get_streams(self) -> tuple[INetStream, ...]:
        return tuple(one for one in self._streams if not getattr(one, "is_closed", False))

    def get_transport_addresses(self) -> list[Multiaddr]:
        return [Multiaddr(addr) for addr in self._network.addrs_of(self._peer)[:1]]

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT

    def get_remote_address(self) -> tuple[str, int] | None:
        """Where the peer is, as far as an IP address of it is known."""
        for addr in self._network.addrs_of(self._peer):
            parsed = parse_dialable(addr)
            if isinstance(parsed, TcpAddr) and parsed.is_ip:
                return parsed.host, parsed.port
        return None


class _MuxedStream(IMuxedStream):
    """What both directions have in common: once negotiated, bytes pass through."""

    def __init__(self, conn: Connection, stream: Stream | None, unread: bytes) -> None:
        self.muxed_conn = conn
        self._conn = conn
        self._stream = stream
        self._unread = bytearray(unread)
        """The multistream messages the host has still to read."""
        self._deadline_s: int | None = None
        self._closed = False

    @property
    def is_closed(self) -> bool:
        """Whether we have closed or reset it."""
        return self._closed

    async def read(self, n: int | None = None) -> bytes:
        if self._unread:
            count = len(self._unread) if n is None or n < 0 else n
            taken = bytes(self._unread[:count])
            del self._unread[:count]
            await trio.lowlevel.checkpoint()
            return taken
        if self._stream is None:
            raise MuxedStreamError("read before a protocol was agreed on")
        with _in_libp2p_terms(), self._within_deadline():
            piece = await self._stream.receive_some(READ_BYTES if n is None or n < 0 else n)
        if not piece:
            raise MuxedStreamEOF("the peer has ended its side")
        return piece

    async def write(self, data: bytes) -> None:
        with _in_libp2p_terms(), self._within_deadline():
            rest = await self._negotiate(data)
            if rest and self._stream is not None:
                await self._stream.send_all(rest)

    @abstractmethod
    async def _negotiate(self, data: bytes) -> bytes:
        """Take the part of *data* that is negotiation; return what is for the peer."""

    def _within_deadline(self) -> trio.CancelScope | Any:
        return _deadline(self._deadline_s)

    async def close(self) -> None:
        self._closed = True
        if self._stream is not None:
            await self._stream.aclose()

    async def close_write(self) -> None:
        """End our side only; NetStream asks for this one where it is there."""
        if self._stream is not None:
            with _in_libp2p_terms():
                await self._stream.send_eof()

    async def reset(self) -> None:
        self._closed = True
        if self._stream is not None:
            await self._stream.reset()

    def set_deadline(self, ttl: int) -> None:
        if ttl < 0:
            raise ValueError(f"a deadline of {ttl} s")
        self._deadline_s = ttl

    def get_remote_address(self) -> tuple[str, int] | None:
        return self._conn.get_remote_address()

    async def __aenter__(self) -> IMuxedStream:
        return self


@contextmanager
def _deadline(seconds: int | None) -> Iterator[None]:
    if seconds is None:
        yield
        return
    try:
        with trio.fail_after(seconds):
            yield
    except trio.TooSlowError as error:
        raise MuxedStreamError(f"not done within {seconds} s") from error


class OutboundStream(_MuxedStream):
    """A stream the host opens: opened for real as soon as it proposes a protocol the peer speaks."""

    def __init__(self, conn: Connection, network: Network, peer: PeerId) -> None:
        super().__init__(conn, None, b"")
        self._network = network
        self._peer = peer
        self._proposals = bytearray()

    async def _negotiate(self, data: bytes) -> bytes:
        if self._stream is not None:
            return data
        self._proposals += data
        while self._stream is None and (proposal := self._take_proposal()) is not None:
            self._unread += _line(await self._answer(proposal))
        if self._stream is None:
            return b""
        rest = bytes(self._proposals)
        self._proposals.clear()
        return rest

    def _take_proposal(self) -> str | None:
        """The next whole message, or None. Raises MuxedStreamError for what is none."""
        if not self._proposals or (len(self._proposals) == 1 and self._proposals[0] >= 0x80):
            return None
        try:
            length, start = decode_varint(self._proposals)
        except MalformedData as error:
            raise MuxedStreamError(f"not multistream-select: {error}") from error
        if not 0 < length <= MAX_PROPOSAL_BYTES:
            raise MuxedStreamError(f"a proposal of {length} bytes")
        if len(self._proposals) < start + length:
            return None
        text = bytes(self._proposals[start : start + length])
        del self._proposals[: start + length]
        return text.decode("utf-8", "replace").removesuffix("\n")

    async def _answer(self, proposal: str) -> str:
        if proposal == MULTISTREAM:
            return MULTISTREAM
        try:
            self._stream = await self._network.open_stream(self._peer, [proposal])
        except ProtocolUnsupported:
            return "na"
        return proposal


class InboundStream(_MuxedStream):
    """A stream a peer opened, on a protocol the host is known to offer: its proposal is played to the host."""

    def __init__(self, conn: Connection, stream: Stream) -> None:
        proposal = _line(MULTISTREAM) + _line(stream.protocol)
        super().__init__(conn, stream, proposal)
        self._expected = proposal
        """What the host answers, word for word, if it takes the protocol. The peer has had that answer from us."""

    async def _negotiate(self, data: bytes) -> bytes:
        answer = data[: len(self._expected)]
        if not self._expected.startswith(answer):
            await self.reset()
            raise MuxedStreamReset("the host does not speak what is offered in its name")
        self._expected = self._expected[len(answer) :]
        return data[len(answer) :]

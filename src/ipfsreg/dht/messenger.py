"""Asking peers: one stream to each, kept while it is of use.

Requests to one peer go one after the other on its stream; an answer belongs to the last request. A stream on which a
request was abandoned is reset, because its answer would be taken for the next one's.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from ipfsreg.dht.keys import Contact
from ipfsreg.dht.messages import MAX_ANSWER_BYTES, Message, MessageType, decode_message, encode_message
from ipfsreg.errors import MalformedData, NetworkError, PeerMisbehaved, PeerUnreachable
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

T = TypeVar("T")

IDLE_S = 30.0
"""A stream without a request for this long is closed: half of what go-libp2p and we ourselves grant."""
MAX_LINES = 256
"""Streams kept open; beyond it those used least lately are closed."""
BATCH_BYTES = 32 * 1024
"""Announcements joined into one send."""
ADDR_TTL_S = 1800.0
"""How long the network remembers addresses that were heard on the way."""


class _Line:
    """What is open to one peer."""

    def __init__(self) -> None:
        self.lock = trio.Lock()
        self.stream: Stream | None = None
        self.reader: MessageReader | None = None
        self.used_at = 0.0
        self.users = 0
        self.announced = 0
        """Announcements sent since the last answer. Nothing is due for them, yet py-libp2p sends them back."""

    async def hang_up(self) -> None:
        stream, self.stream = self.stream, None
        if stream is not None:
            await stream.reset()


class Messenger:
    """Our side of every conversation we begin."""

    def __init__(self, network: Network, protocols: Sequence[str], *, query_s: float) -> None:
        self._network = network
        self._protocols = protocols
        self._query_s = query_s
        self._lines: dict[PeerId, _Line] = {}

    async def ask(self, contact: Contact, request: Message) -> Message:
        """Send *request* and return the answer.

        Raises:
            PeerUnreachable: none came within the time for a query.
            NetworkError: the peer cannot be reached, or answers nonsense.

        Cancelled: the peer's stream is reset.
        """
        return await self._converse(contact, lambda line: self._ask_on(line, request), self._query_s)

    async def announce(self, contact: Contact, requests: Sequence[bytes]) -> None:
        """Send *requests*, encoded, to which no answer is due. Raises and is cancelled as `ask`.

        On return they are handed to the connection; that the peer keeps them nobody can know.
        """
        # Reading slowly is a peer's right: each batch may take as long as a query.
        batches = 1 + sum(len(request) for request in requests) // BATCH_BYTES
        await self._converse(contact, lambda line: self._announce_on(line, requests), self._query_s * batches)

    async def _converse(self, contact: Contact, talk: Callable[[_Line], Awaitable[T]], deadline_s: float) -> T:
        line = self._lines.setdefault(contact.peer, _Line())
        line.users += 1
        try:
            with trio.fail_after(deadline_s):
                async with line.lock:
                    return await self._retrying(contact, line, talk)
        except trio.TooSlowError:
            raise PeerUnreachable(f"{contact.peer} did not answer within {deadline_s:g} s") from None
        finally:
            line.users -= 1
            line.used_at = trio.current_time()
            if line.stream is None and not line.users and self._lines.get(contact.peer) is line:
                del self._lines[contact.peer]

    async def _retrying(self, contact: Contact, line: _Line, talk: Callable[[_Line], Awaitable[T]]) -> T:
        """Talk on the stream there is, and if that has died meanwhile on a new one."""
        try:
            if line.stream is not None:
                try:
                    return await talk(line)
                except PeerMisbehaved:
                    raise
                except NetworkError as error:
                    logger.debug("DHT stream to %s is opened anew: %s", contact.peer, error)
                    await line.hang_up()
            info = contact.dialable()
            if info.addrs:
                self._network.add_addrs(info, ttl_s=ADDR_TTL_S)
            line.stream = await self._network.open_stream(contact.peer, self._protocols)
            line.reader = MessageReader(line.stream, MAX_ANSWER_BYTES)
            line.announced = 0
            return await talk(line)
        except BaseException:  # cancellation too: whatever was to come on this stream would answer the next request
            await line.hang_up()
            raise

    async def _ask_on(self, line: _Line, request: Message) -> Message:
        assert line.stream is not None
        assert line.reader is not None
        await send_message(line.stream, encode_message(request))
        while True:
            data = await line.reader.read()
            if data is None:
                raise PeerUnreachable(f"{line.stream.peer} ended the stream instead of answering")
            try:
                answer = decode_message(data)
            except MalformedData as error:
                raise PeerMisbehaved(f"{line.stream.peer} answered nonsense: {error}") from None
            if answer.type is MessageType.ADD_PROVIDER and line.announced:
                line.announced -= 1
                continue
            if answer.type is not request.type:
                raise PeerMisbehaved(f"{line.stream.peer} answered {answer.type.name} to {request.type.name}")
            return answer

    async def _announce_on(self, line: _Line, requests: Sequence[bytes]) -> None:
        assert line.stream is not None
        batch = bytearray()
        for request in requests:
            batch += encode_varint(len(request)) + request
            if len(batch) >= BATCH_BYTES:
                await line.stream.send_all(bytes(batch))
                batch.clear()
        if batch:
            await line.stream.send_all(bytes(batch))
        line.announced += len(requests)

    async def keep_tidy(self) -> None:
        """Close streams that are not used any more, until cancelled; then all."""
        try:
            while True:
                await trio.sleep(IDLE_S / 4)
                idle = [(line.used_at, peer) for peer, line in self._lines.items() if not line.users]
                excess = len(self._lines) - MAX_LINES
                for number, (used_at, peer) in enumerate(sorted(idle)):
                    if number < excess or used_at < trio.current_time() - IDLE_S:
                        await self._close(peer)
        finally:
            with trio.CancelScope(shield=True):
                for peer in list(self._lines):
                    await self._close(peer)

    async def _close(self, peer: PeerId) -> None:
        line = self._lines.get(peer)
        if line is not None and not line.users:
            del self._lines[peer]
            if line.stream is not None:
                await line.stream.aclose()

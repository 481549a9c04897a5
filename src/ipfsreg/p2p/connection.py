"""One fused connection: TCP (or any trio stream), PSK, Noise and Yamux, without layers between them.

connection = await secure(stream, identity=identity, psk=None, dialer=True, expected=peer)
nursery.start_soon(connection.run)
async with ...: stream = await connection.open_stream(["/echo/1.0.0"], lazy=True)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from ipfsreg.errors import NetworkError
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Stream
from ipfsreg.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one peer may take of us on one connection."""

    max_inbound_streams: int = 1024
    """Streams the peer may have open; further ones are reset."""
    max_outbound_streams: int = 4096
    """Streams we may have open; `open_stream` raises LimitReached beyond."""
    max_stream_window_bytes: int = 16 * 1024 * 1024
    """How far the receive window of one stream may grow; it begins at 256 KiB."""
    max_window_growth_bytes: int = 64 * 1024 * 1024
    """What all windows of the connection together may have grown beyond their first 256 KiB."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """Received and not yet read; a stream that would pass it is reset."""
    negotiation_timeout_s: float = 30.0
    """Seconds a peer has to agree on the protocol of a stream."""


class MemoryBudget:
    """Bytes received and not yet read, over all connections that share this budget."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0


async def secure(
    stream: trio.abc.Stream,
    *,
    identity: Identity,
    psk: bytes | None,
    dialer: bool,
    expected: PeerId | None = None,
    remote_addr: str = "",
    limits: ConnectionLimits | None = None,
    budget: MemoryBudget | None = None,
) -> Connection:
    """Make *stream* a connection to a peer that has proved who it is.

    Takes no longer than the peer does: the caller sets the deadline. Whatever is raised, *stream* is closed.

    Args:
        psk: the swarm's 32-byte key, or None on a public swarm.
        dialer: whether we opened the stream; both ends must not say the same.
        expected: whom we dialled, if we know.

    Raises:
        SwarmKeyMismatch: the peer has another PSK, or one of us has none.
        WrongPeer: somebody else answered than *expected*.
        ProtocolUnsupported: the peer speaks no Noise, or no Yamux.
        PeerMisbehaved: it broke a protocol, or did not prove its identity.
        ConnectionLost: it hung up.
    """
    raise NotImplementedError


class Connection:
    """A secured, multiplexed connection to one peer. All methods may be called from many tasks at once."""

    peer: PeerId
    public_key: bytes
    """The peer's, as libp2p's protobuf."""
    remote_addr: str
    dialer: bool
    """Whether we opened it."""
    closed: trio.Event
    """Set once the connection is over; `reason` says why from then on."""
    reason: NetworkError | None
    bytes_in: int
    """Bytes read from the wire."""
    bytes_out: int
    last_received: float
    """trio time at which the peer last sent anything."""
    rtt_s: float | None
    """Smoothed round trip time in seconds, once it is known."""

    async def run(self) -> NetworkError:
        """Carry the connection until it ends; return why. To be run once, in the owner's nursery.

        Contains every error of this peer. Cancelling it ends the connection.
        """
        raise NotImplementedError

    @property
    def inbound_streams(self) -> int:
        """Streams open that the peer opened."""
        raise NotImplementedError

    @property
    def outbound_streams(self) -> int:
        """Streams open that we opened."""
        raise NotImplementedError

    async def open_stream(self, protocols: Sequence[str], *, lazy: bool = False) -> Stream:
        """Open a stream on the first of *protocols* the peer speaks.

        *lazy*: take the first for granted, without a round trip; the proposal travels with the first bytes sent.
        Where the peer refuses it after all, the stream raises ProtocolUnsupported.

        Raises:
            ProtocolUnsupported: the peer speaks none of them.
            LimitReached: too many streams are open.
            ConnectionLost, StreamReset, PeerMisbehaved.
        """
        raise NotImplementedError

    async def accept_stream(self, offered: Callable[[str], bool] | Collection[str]) -> Stream:
        """Return the next stream on which the peer chose a protocol that is in *offered*.

        *offered* is asked at negotiation, and holds until the next call of accept_stream replaces it. Negotiation goes
        on for all streams side by side, also between calls.

        Raises:
            ConnectionLost: the connection is over.
        """
        raise NotImplementedError

    async def ping(self) -> float:
        """Return the round trip time in seconds. Waits for the answer as long as the caller lets it.

        Raises:
            ConnectionLost.
        """
        raise NotImplementedError

    async def aclose(self, reason: str) -> None:
        """Say goodbye and close. Waits at most a second; every stream raises ConnectionLost from now on. Idempotent."""
        raise NotImplementedError

"""What the network promises to everything above it.

Upper packages import this module and never an implementation: `host.py` keeps the promises on real libp2p,
`testing/network.py` in memory; both pass `testing/network_checks.py`.

News comes up by `async for`: inbound streams through `accept`, comings and goings through `events`. Nothing hands
a callback down.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from ipfsreg.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class PeerInfo:
    """A peer and the addresses it may be found at."""

    peer: PeerId
    addrs: tuple[str, ...] = ()
    """Multiaddrs as text, without the trailing `/p2p/…`."""


class Stream(Protocol):
    """One negotiated, bidirectional byte stream to a peer.

    One task may send while another receives; two tasks must not do the same at once. Cancelling any call leaves
    the connection and the peer's other streams sound; a stream whose send was cancelled has sent a prefix of the
    data and should be reset.
    """

    @property
    def peer(self) -> PeerId:
        """Who is at the other end, proved by the handshake."""

    @property
    def protocol(self) -> str:
        """The protocol both sides agreed on."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*, waiting for the peer's window where it is full.

        The buffer is the caller's again when this returns.

        Raises:
            StreamReset, ConnectionLost: the peer will not get it.
            ProtocolUnsupported: a lazily negotiated stream learns here, or on receiving, that it was refused.
        """

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """Return 1 to *max_bytes* bytes, or b"" once the peer has ended its side.

        Raises:
            StreamReset, ConnectionLost, ProtocolUnsupported.
        """

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """Like receive_some, but into *buffer* (not empty): return how many bytes, 0 at the end.

        This is the path for bulk data: bytes are copied once, from the decrypted frame to where they belong.
        """

    async def send_eof(self) -> None:
        """End our side; receiving goes on. Idempotent."""

    async def aclose(self) -> None:
        """End our side if that is still open, and stop receiving. Never raises, never waits for the peer."""

    async def reset(self) -> None:
        """Abort both directions at once. Idempotent, never raises, never waits for the peer."""


class PeerChange(Enum):
    """What happened to a peer."""

    CONNECTED = "connected"
    IDENTIFIED = "identified"
    """Its protocols and addresses are known now (identify has answered, or pushed a change)."""
    DISCONNECTED = "disconnected"


@dataclass(frozen=True, slots=True)
class PeerEvent:
    """One peer came, became known, or went."""

    peer: PeerId
    change: PeerChange


class Network(Protocol):
    """Our place in the swarm. Safe to use from many tasks at once."""

    @property
    def peer_id(self) -> PeerId:
        """Ourselves."""

    def sign(self, data: bytes) -> bytes:
        """Sign *data* with the key behind our peer ID (libp2p's signature for the key's type)."""

    @property
    def public_key(self) -> bytes:
        """Our public key in libp2p's protobuf form, as peers check signatures against it."""

    def listen_addrs(self) -> list[str]:
        """The addresses others can dial us at, as text, without `/p2p/…`."""

    def peers(self) -> list[PeerId]:
        """Everybody we have a live connection to."""

    def protocols_of(self, peer: PeerId) -> frozenset[str] | None:
        """What *peer* says it speaks; None while identify has not answered."""

    def addrs_of(self, peer: PeerId) -> list[str]:
        """Addresses known for *peer*, best first: confirmed by a dial before those it claims itself."""

    def add_addrs(self, info: PeerInfo, *, ttl_s: float = 3600.0) -> None:
        """Remember where a peer may be found. Bounded per peer and in all; our own ID is ignored."""

    async def connect(self, info: PeerInfo, *, insist: bool = True) -> None:
        """Return once connected to the peer, at once if we are already.

        *insist*: dial even where every address has failed a moment ago.

        Raises:
            PeerUnreachable: no address worked; the text names each with its failure.
            LimitReached: too many dials or connections.
        """

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        """Close the connection to *peer*, if there is one."""

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        """Open a stream, dialling if need be, on the first of *protocols* that the peer speaks.

        Where the peer is known to speak it, negotiation travels with the first bytes sent and costs no round trip.

        Raises:
            PeerUnreachable, ProtocolUnsupported, ConnectionLost, LimitReached.
        """

    def accept(
        self, protocols: Sequence[str], *, max_waiting: int = 256
    ) -> AbstractAsyncContextManager[AsyncIterator[Stream]]:
        """While the block lasts, offer *protocols*; iterate over the streams peers open on them.

        At most *max_waiting* streams wait to be taken; further ones are reset. Leaving the block withdraws the
        offer and resets those that still wait.
        """

    def events(self) -> AbstractAsyncContextManager[AsyncIterator[PeerEvent]]:
        """While the block lasts, iterate over what happens to peers.

        Begins with CONNECTED (and IDENTIFIED) for everybody who is there already. Nothing is lost however slow the
        reader: what waits is folded to the last state of each peer, so memory is bounded by the number of peers.
        """

    def protect(self, peer: PeerId, reason: str) -> None:
        """Keep the connection to *peer* when connections are trimmed, until `unprotect` with the same reason."""

    def unprotect(self, peer: PeerId, reason: str) -> None:
        """Take one reason away."""

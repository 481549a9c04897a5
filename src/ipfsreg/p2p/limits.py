"""Who may come in, and who has to go when it gets full. Pure: the swarm asks and acts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address

from ipfsreg.peer_id import PeerId


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much of us the swarm may take."""

    low_connections: int = 320
    """What trimming goes down to."""
    high_connections: int = 400
    """Above this, connections that nobody protects are trimmed."""
    max_connections: int = 480
    """Above this, new ones are refused, however young the others are."""
    grace_s: float = 20.0
    """A connection younger than this is not trimmed: it has not had the time to become useful."""
    silent_sockets: int = 128
    """Inbound sockets that have not sent a byte; beyond it the oldest is closed."""
    handshakes: int = 64
    """Inbound handshakes in flight; beyond it new ones wait at the door."""
    per_ip: int = 64
    """Inbound connections, handshakes included, from one IPv4 address or IPv6 /64; loopback is exempt."""
    handshake_s: float = 10.0
    """Seconds an inbound peer has from connecting to its first byte, and from there to a finished handshake."""
    dials: int = 64
    """Outbound attempts in flight."""
    waiting_dials: int = 1024
    """Peers being dialled or waiting for it."""


def network_of(host: str) -> str | None:
    """What one subscriber has: an IPv4 address, an IPv6 /64. None for loopback, which is not limited."""
    address = ip_address(host)
    if address.is_loopback:
        return None
    if isinstance(address, IPv6Address):
        return str(IPv6Address(int(address) >> 64 << 64)) + "/64"
    return str(address)


class Gate:
    """Counts inbound connections by where they come from."""

    def __init__(self, per_ip: int) -> None:
        self._per_ip = per_ip
        self._inside: Counter[str] = Counter()

    def enter(self, host: str) -> bool:
        """Let one in from *host*, or not. Who was let in must `leave`."""
        network = network_of(host)
        if network is None:
            return True
        if self._inside[network] >= self._per_ip:
            return False
        self._inside[network] += 1
        return True

    def leave(self, host: str) -> None:
        """One that was let in is gone."""
        network = network_of(host)
        if network is None:
            return
        self._inside[network] -= 1
        if not self._inside[network]:
            del self._inside[network]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A connected peer, as trimming sees it."""

    peer: PeerId
    protected: bool
    connected_at: float
    streams: int
    dialed: bool
    """We sought it out, so somebody here wanted it."""


def choose_trimmed(candidates: Iterable[Candidate], limits: Limits, *, now: float) -> list[PeerId]:
    """Whom to part with so that `low_connections` remain: nobody unless there are more than `high_connections`.

    Idle before busy, those that came before those we sought, young before old (old ones have proved themselves).
    """
    everybody = list(candidates)
    if len(everybody) <= limits.high_connections:
        return []
    ripe = [one for one in everybody if not one.protected and now - one.connected_at >= limits.grace_s]
    ripe.sort(key=lambda one: (one.streams > 0, one.dialed, -one.connected_at))
    return [one.peer for one in ripe[: len(everybody) - limits.low_connections]]


@dataclass(frozen=True, slots=True)
class Facts:
    """What decides which of two connections to one peer is used."""

    dialed: bool
    """We dialled it."""
    since: float


SIMULTANEOUS_S = 45.0
"""Longer than any dial takes: connections that crossed began within this of each other, as both sides see it."""


def newer_is_better(old: Facts, new: Facts, *, ours: PeerId, theirs: PeerId) -> bool:
    """Which of two live connections to one peer to use; both sides come to the same answer.

    Who dials anew has lost the old one, so the newer wins; but where the two dials crossed, each side sees them arrive
    in its own order, and the one that the smaller peer ID dialled is taken.
    """
    if old.dialed == new.dialed or new.since - old.since > SIMULTANEOUS_S:
        return True
    return new.dialed == (ours < theirs)

"""What the router wants done, or known. It does nothing itself."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.messages import Message, Rpc


class Urgency(IntEnum):
    """What is sent first, and what gives way when a peer's queue is full."""

    CONTROL = 0
    """Keeps both sides' view of the mesh the same: never dropped."""
    OWN = 1
    """Carries a message of ours: never dropped."""
    FORWARD = 2
    """Carries somebody else's message: dropped, and told about later."""
    GOSSIP = 3
    """A hint: dropped."""


@dataclass(frozen=True, slots=True)
class Send:
    """Say *rpc* to each of *peers*."""

    peers: tuple[PeerId, ...]
    rpc: Rpc
    urgency: Urgency
    from_author: bool = False
    """Forwards what its author itself told us: most likely he told *peers* too, and it may wait for that to show."""


@dataclass(frozen=True, slots=True)
class Deliver:
    """A new valid message in a topic of ours."""

    message: Message
    received_from: PeerId


@dataclass(frozen=True, slots=True)
class Joined:
    """*peer* is in a topic of ours."""

    peer: PeerId
    topic: str


@dataclass(frozen=True, slots=True)
class MeshChanged:
    """*peer* entered or left our mesh for *topic*."""

    peer: PeerId
    topic: str
    entered: bool


@dataclass(frozen=True, slots=True)
class Recommended:
    """A PRUNE recommended a peer we are not connected to; *record* is its signed peer record or empty, unchecked."""

    peer: PeerId
    record: bytes


Event = Send | Deliver | Joined | MeshChanged | Recommended

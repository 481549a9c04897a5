"""The numbers of gossipsub, and its dialects."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from ipfsreg.pubsub.scoring import ScoreSettings


class Dialect(IntEnum):
    """What a peer's stream was negotiated to."""

    FLOODSUB = 0
    V1_0 = 10
    V1_1 = 11
    V1_2 = 12


DIALECTS: dict[str, Dialect] = {
    "/meshsub/1.2.0": Dialect.V1_2,
    "/meshsub/1.1.0": Dialect.V1_1,
    "/meshsub/1.0.0": Dialect.V1_0,
    "/floodsub/1.0.0": Dialect.FLOODSUB,
}
"""By protocol id, the best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterSettings:
    """Gossipsub's parameters; the defaults are the specification's where it names any."""

    d: int = 6
    """Peers we want in a mesh."""
    d_low: int = 4
    d_high: int = 12
    d_score: int = 4
    """Of these, kept for their score when a mesh is cut back to d."""
    d_lazy: int = 6
    """Peers outside the mesh that hear IHAVE, at least."""
    gossip_factor: float = 0.25
    """And at least this share of them."""
    heartbeat_s: float = 1.0
    history_windows: int = 5
    """Heartbeats for which messages can be given."""
    gossip_windows: int = 3
    """Heartbeats for which they are told about."""
    history_bytes: int = 32 * 1024 * 1024
    seen_ttl_s: float = 120.0
    max_seen: int = 131_072
    prune_backoff_s: float = 60.0
    leave_backoff_s: float = 10.0
    max_backoff_s: float = 3600.0
    """What a peer may impose on us: the field on the wire goes up to 2**64 - 1 seconds."""
    graft_flood_s: float = 10.0
    """A GRAFT this soon after the PRUNE counts twice."""
    max_ihave_rpcs: int = 10
    """IHAVE-carrying RPCs of one peer looked at per heartbeat."""
    max_ihave_ids: int = 5000
    """Ids asked of one peer per heartbeat, and told to one peer per topic and heartbeat."""
    max_asked_twice: int = 2
    """Peers asked for the same id in one heartbeat."""
    promise_s: float = 3.0
    """Within this, one of the ids asked for must have come, from anyone."""
    max_retransmissions: int = 3
    max_idontwant_ids: int = 1000
    """IDONTWANT ids of one peer remembered per heartbeat."""
    idontwant_bytes: int = 1024
    """Messages from this size on are announced with IDONTWANT before they are forwarded."""
    exchanged_peers: int = 16
    """Peers recommended in a PRUNE, and looked at in one."""
    opportunistic_heartbeats: int = 60
    opportunistic_peers: int = 2
    score: ScoreSettings = field(default_factory=ScoreSettings)

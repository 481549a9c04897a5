"""What we think of peers: gossipsub v1.1's peer score, as far as it can be fair in a registry's topic.

    score = min(minutes in our mesh, …) + min(first deliveries, …) - invalid messages² - misbehaviour²

Left out on purpose: mesh delivery deficits (P3, P3b) punish silence, and a registry's topic is silent most of the time;
IP colocation (P6) would punish racks behind one NAT and belongs to the connection limits; there is no
application score (P5). Counters are kept per peer and not per topic: a node has one or two topics.

Spec: gossipsub v1.1 "Peer Scoring".
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from ipfsreg.peer_id import PeerId

MAX_REMEMBERED = 4096
"""Peers that left with a bad score and are still remembered."""

MAX_COUNTER = 100.0
"""Where the bad counters stop: far below every threshold, and about ten half-lives from pardon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreSettings:
    """Weights and thresholds. What is negative is quadratic, so that a slip costs little and a habit everything."""

    mesh_weight_per_min: float = 0.5
    mesh_cap: float = 5.0
    first_delivery_weight: float = 0.1
    first_delivery_cap: float = 10.0
    invalid_weight: float = -10.0
    behaviour_weight: float = -10.0
    behaviour_tolerated: float = 6.0
    """Broken promises and early GRAFTs that happen to the honest under load."""
    half_life_s: float = 90.0
    """How long until a counter is worth half."""
    remember_s: float = 3600.0
    """How long a bad score outlives the connection."""

    gossip_threshold: float = -10.0
    """Below: no gossip with the peer, in either direction."""
    publish_threshold: float = -50.0
    """Below: it does not get our own messages either."""
    graylist_threshold: float = -80.0
    """Below: nothing it says is looked at, subscriptions excepted."""
    exchange_threshold: float = 0.0
    """Below: peers it recommends are not dialled."""
    opportunistic_threshold: float = 1.0
    """A mesh whose median is below gets better peers grafted."""


@dataclass(slots=True)
class _Record:
    mesh_since: dict[str, float] = field(default_factory=dict)
    first_deliveries: float = 0.0
    invalid: float = 0.0
    misbehaviour: float = 0.0
    left_at: float | None = None


class PeerScores:
    """The scores of all peers connected, and of the bad ones that left lately."""

    def __init__(self, settings: ScoreSettings) -> None:
        self._settings = settings
        self._records: dict[PeerId, _Record] = {}
        self._left: OrderedDict[PeerId, None] = OrderedDict()
        self._decayed_at: float | None = None

    def add(self, peer: PeerId) -> None:
        """*peer* is connected; what is remembered of it holds again."""
        self._records.setdefault(peer, _Record()).left_at = None
        self._left.pop(peer, None)

    def remove(self, peer: PeerId, *, now: float) -> None:
        """*peer* is gone. A good score is forgotten, a bad one stays for a while: reconnecting must not wash it off."""
        record = self._records.get(peer)
        if record is None:
            return
        record.mesh_since.clear()
        record.first_deliveries = 0.0
        if self.score(peer, now=now) >= 0 and not record.invalid and record.misbehaviour < 1:
            del self._records[peer]
            return
        record.left_at = now
        self._left[peer] = None
        if len(self._left) > MAX_REMEMBERED:
            del self._records[self._left.popitem(last=False)[0]]

    def entered_mesh(self, peer: PeerId, topic: str, *, now: float) -> None:
        """It is in our mesh for *topic* from now on."""
        if record := self._records.get(peer):
            record.mesh_since[topic] = now

    def left_mesh(self, peer: PeerId, topic: str) -> None:
        """It no longer is."""
        if record := self._records.get(peer):
            record.mesh_since.pop(topic, None)

    def delivered_first(self, peer: PeerId) -> None:
        """It was the first to bring us a valid message."""
        if record := self._records.get(peer):
            record.first_deliveries += 1

    def delivered_invalid(self, peer: PeerId, count: int = 1) -> None:
        """It brought us messages it should not have passed on."""
        if record := self._records.get(peer):
            record.invalid = min(record.invalid + count, MAX_COUNTER)

    def misbehaved(self, peer: PeerId, amount: float = 1.0) -> None:
        """It broke the protocol in a way that may happen, but not often."""
        if record := self._records.get(peer):
            record.misbehaviour = min(record.misbehaviour + amount, MAX_COUNTER)

    def decay(self, *, now: float) -> None:
        """Let time pass. Call about once a second."""
        settings = self._settings
        elapsed = 0.0 if self._decayed_at is None else max(0.0, now - self._decayed_at)
        self._decayed_at = now
        factor = 0.5 ** (elapsed / settings.half_life_s)
        for record in self._records.values():
            record.first_deliveries *= factor
            # Below a hundredth it would only keep the record from being forgotten.
            record.invalid = record.invalid * factor if record.invalid > 0.01 else 0.0
            record.misbehaviour = record.misbehaviour * factor if record.misbehaviour > 0.01 else 0.0
        while self._left:
            peer = next(iter(self._left))
            left_at = self._records[peer].left_at
            assert left_at is not None
            if now - left_at < settings.remember_s:
                break
            del self._left[peer], self._records[peer]

    def is_below(self, peer: PeerId, threshold: float, *, now: float) -> bool:
        """Whether the score of *peer* is below *threshold*, which is not positive."""
        record = self._records.get(peer)
        # Nearly everybody has no faults, and this is asked for every message.
        if record is None or (not record.invalid and record.misbehaviour <= self._settings.behaviour_tolerated):
            return False
        return self.score(peer, now=now) < threshold

    def score(self, peer: PeerId, *, now: float) -> float:
        """What we think of *peer*; 0.0 for strangers."""
        record = self._records.get(peer)
        if record is None:
            return 0.0
        settings = self._settings
        minutes = sum(now - since for since in record.mesh_since.values()) / 60
        excess = max(0.0, record.misbehaviour - settings.behaviour_tolerated)
        return (
            min(minutes * settings.mesh_weight_per_min, settings.mesh_cap)
            + min(record.first_deliveries * settings.first_delivery_weight, settings.first_delivery_cap)
            + record.invalid**2 * settings.invalid_weight
            + excess**2 * settings.behaviour_weight
        )

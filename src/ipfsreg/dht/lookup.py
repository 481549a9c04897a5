"""One iterative lookup: whom to ask next for the peers closest to a position. Pure.

A sliding window: up to alpha queries are under way, always to the closest peers heard of and not asked yet; an answer
opens the next at once, there are no rounds. A query that takes longer than one's patience is *slow*: it neither holds
a place in the window nor, once k others have answered, the end. The lookup is over when the k closest peers that have
not failed have all answered.

Whoever answers can name peers that do not exist, by the thousand, each closer than the last. So the number of queries
is bounded; and where the swarm is open to anybody, one IP network can take only a few of the k places.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum, auto

from ipfsreg.dht.keys import Contact, networks_of
from ipfsreg.peer_id import PeerId

MAX_HEARD = 1000
"""Candidates remembered; beyond it the farthest that was not asked makes way."""


class _State(Enum):
    HEARD = auto()
    WAITING = auto()
    ANSWERED = auto()
    FAILED = auto()


@dataclass(slots=True, eq=False)
class _Candidate:
    contact: Contact
    distance: int
    hops: int
    networks: frozenset[str]
    state: _State = _State.HEARD
    asked_at: float = 0.0


class Lookup:
    """The search for the k peers closest to *position*. Times are in seconds of any one clock."""

    def __init__(
        self,
        position: int,
        seeds: Iterable[Contact],
        *,
        ours: PeerId,
        k: int = 20,
        alpha: int = 10,
        patience_s: float = 2.0,
        max_queries: int = 200,
        per_network: int | None = None,
    ) -> None:
        self._position = position
        self._ours = ours
        self._k = k
        self._alpha = alpha
        self._patience_s = patience_s
        self._max_queries = max_queries
        self._per_network = per_network
        self._known: dict[PeerId, _Candidate] = {}
        self._by_distance: list[tuple[int, PeerId]] = []
        self._queries = 0
        for contact in seeds:
            self._hear(contact, hops=1)

    @property
    def queries(self) -> int:
        """Peers asked so far."""
        return self._queries

    def hops_of(self, peer: PeerId) -> int:
        """How many queries in a row it took to ask *peer*: 1 for those we knew at the start."""
        return self._known[peer].hops

    # -------------------------------------------------------------------- events

    def begin_queries(self, *, now: float) -> list[Contact]:
        """Whom to ask now: each counts as asked from here on, until `receive` or `fail` is told of it."""
        asked = []
        window = self._alpha - sum(1 for each in self._pending() if not self._is_slow(each, now))
        for candidate in self._front(now):
            if window <= 0 or self._queries >= self._max_queries:
                break
            if candidate.state is _State.HEARD:
                candidate.state = _State.WAITING
                candidate.asked_at = now
                self._queries += 1
                window -= 1
                asked.append(candidate.contact)
        return asked

    def receive(self, peer: PeerId, closer: Iterable[Contact]) -> None:
        """*peer* has answered, and named *closer*."""
        candidate = self._known[peer]
        candidate.state = _State.ANSWERED
        for contact in closer:
            self._hear(contact, hops=candidate.hops + 1)

    def fail(self, peer: PeerId) -> None:
        """*peer* cannot be reached, did not answer in time, or answered nonsense."""
        self._known[peer].state = _State.FAILED

    # ----------------------------------------------------------------- questions

    def is_finished(self, *, now: float) -> bool:
        """Whether there is nobody left to ask or to wait for."""
        answered = 0
        for candidate in self._front(now):
            if candidate.state is _State.WAITING or (
                candidate.state is _State.HEARD and self._queries < self._max_queries
            ):
                return False
            answered += candidate.state is _State.ANSWERED
        # With fewer than k answers a slow peer may be the only one that knows.
        return answered >= self._k or not any(self._pending())

    def next_deadline(self, *, now: float) -> float | None:
        """When the next query becomes slow, which may let another begin."""
        due = [each.asked_at + self._patience_s for each in self._pending() if not self._is_slow(each, now)]
        return min(due, default=None)

    def closest(self) -> list[Contact]:
        """The peers that answered, at most k, the closest first."""
        return [each.contact for each in self._choose(lambda candidate: candidate.state is _State.ANSWERED)]

    # ------------------------------------------------------------------- inside

    def _hear(self, contact: Contact, *, hops: int) -> None:
        if contact.peer == self._ours or contact.peer in self._known:
            return
        candidate = _Candidate(contact, contact.position ^ self._position, hops, frozenset())
        if self._per_network is not None:
            candidate.networks = networks_of(contact)
        if len(self._known) >= MAX_HEARD:
            farthest = self._known[self._by_distance[-1][1]]
            if farthest.state is not _State.HEARD or farthest.distance < candidate.distance:
                return
            self._by_distance.pop()
            del self._known[farthest.contact.peer]
        self._known[contact.peer] = candidate
        insort(self._by_distance, (candidate.distance, contact.peer))

    def _pending(self) -> Iterator[_Candidate]:
        return (each for each in self._known.values() if each.state is _State.WAITING)

    def _is_slow(self, candidate: _Candidate, now: float) -> bool:
        return candidate.state is _State.WAITING and now - candidate.asked_at >= self._patience_s

    def _front(self, now: float) -> list[_Candidate]:
        """The k closest that may still turn out to be the k closest."""
        return self._choose(lambda each: each.state is not _State.FAILED and not self._is_slow(each, now))

    def _choose(self, fits: Callable[[_Candidate], bool]) -> list[_Candidate]:
        chosen: list[_Candidate] = []
        networks: Counter[str] = Counter()
        for _, peer in self._by_distance:
            candidate = self._known[peer]
            if not fits(candidate):
                continue
            if self._per_network is not None:
                if any(networks[each] >= self._per_network for each in candidate.networks):
                    continue
                networks.update(candidate.networks)
            chosen.append(candidate)
            if len(chosen) == self._k:
                break
        return chosen

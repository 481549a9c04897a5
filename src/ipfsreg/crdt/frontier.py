"""The frontier of a walk: which nodes are to be fetched, from whom first, and when to try again. PURE.

The frontier knows nothing of the DAG: nodes are put in when somebody announces them or a node that came links to
them, and leave when their block is here. Any number of walks share it, so common ancestors are fetched once. What it
holds can be read again from the tables at any time; a restart loses only whom to ask first.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ipfsreg.peer_id import PeerId

if TYPE_CHECKING:
    from random import Random

MAX_NODES = 16_384
"""Nodes held in memory; more remain in the tables until there is room."""

MAX_IN_FLIGHT = 1024
"""Nodes being fetched at one time. Most are a few hundred bytes."""

MAX_PER_REQUEST = 256
"""Nodes in one request, so that a slow one holds up few others."""

MAX_FIRST = 4
"""Peers remembered for each node as those to ask first."""

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 300.0


@dataclass(frozen=True, slots=True)
class Request:
    """Nodes to fetch together."""

    nodes: tuple[bytes, ...]
    """Multihashes."""
    first: tuple[PeerId, ...]
    """Peers believed to have them."""


@dataclass(slots=True)
class _Wanted:
    first: dict[PeerId, None] = field(default_factory=dict)
    due_at: float | None = 0.0
    """None while it is being fetched."""
    tried_at: float = float("-inf")
    tries: int = 0

    def ask(self, peers: Iterable[PeerId]) -> None:
        for peer in peers:
            # The newest announcement is the best hint: it goes to the front of the line.
            self.first.pop(peer, None)
            self.first = {peer: None, **self.first}
        while len(self.first) > MAX_FIRST:
            self.first.popitem()


class Frontier:
    """The nodes still to be fetched."""

    def __init__(self, rng: Random, *, max_nodes: int = MAX_NODES) -> None:
        self._rng = rng
        self.max_nodes = max_nodes
        self._wanted: dict[bytes, _Wanted] = {}
        self._in_flight = 0
        self.overflowed = False
        """Nodes were turned away; `refill` once there is room."""

    def __len__(self) -> int:
        return len(self._wanted)

    def __contains__(self, multihash: bytes) -> bool:
        return multihash in self._wanted

    @property
    def is_full(self) -> bool:
        """Whether the next one is turned away."""
        return len(self._wanted) >= self.max_nodes

    @property
    def has_room(self) -> bool:
        """Whether what was turned away may come in."""
        return len(self._wanted) < self.max_nodes // 2

    def want(self, multihash: bytes, first: Iterable[PeerId], *, now: float) -> None:
        """Fetch a node, asking the peers *first*. For one that is wanted already: a hint, and a reason to try soon."""
        wanted = self._wanted.get(multihash)
        if wanted is None:
            if self.is_full:
                self.overflowed = True
                return
            wanted = self._wanted[multihash] = _Wanted(due_at=now)
        wanted.ask(first)
        self._hurry(wanted, now)

    def hint(self, peers: Iterable[PeerId], *, now: float) -> None:
        """*peers* seem to have what is missing, or are new: try everything soon that waits."""
        peers = tuple(peers)
        for wanted in self._wanted.values():
            wanted.ask(peers)
            self._hurry(wanted, now)

    def _hurry(self, wanted: _Wanted, now: float) -> None:
        if wanted.due_at is not None:
            # Not more often than once a second, however often it is announced.
            wanted.due_at = min(wanted.due_at, max(now, wanted.tried_at + FIRST_RETRY_S))

    def arrived(self, multihash: bytes) -> None:
        """The block is here; nothing if it was not wanted."""
        wanted = self._wanted.pop(multihash, None)
        if wanted is not None and wanted.due_at is None:
            self._in_flight -= 1

    def failed(self, nodes: Iterable[bytes], *, now: float) -> None:
        """Those of *nodes* that are still wanted did not come. They are tried again, less and less often."""
        for multihash in nodes:
            wanted = self._wanted.get(multihash)
            if wanted is None or wanted.due_at is not None:
                continue
            self._in_flight -= 1
            delay = min(LAST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(wanted.tries, 16))
            wanted.tries += 1
            wanted.tried_at = now
            wanted.due_at = now + delay * self._rng.uniform(0.8, 1.0)

    def take(self, *, now: float) -> list[Request]:
        """What to fetch now, together where the same peers are asked first. Each must end in arrived or failed."""
        together: dict[tuple[PeerId, ...], list[bytes]] = {}
        # What never failed goes first, and what did gets half of the places: announced nodes that nobody has must not
        # hold up those that are there.
        for again, places in ((False, MAX_IN_FLIGHT), (True, MAX_IN_FLIGHT // 2)):
            for multihash, wanted in self._wanted.items():
                if self._in_flight >= places:
                    break
                if wanted.due_at is not None and wanted.due_at <= now and (wanted.tries > 0) == again:
                    wanted.due_at = None
                    self._in_flight += 1
                    together.setdefault(tuple(wanted.first), []).append(multihash)
        return [
            Request(tuple(nodes[start : start + MAX_PER_REQUEST]), first)
            for first, nodes in together.items()
            for start in range(0, len(nodes), MAX_PER_REQUEST)
        ]

    def next_deadline(self) -> float | None:
        """When `take` next has something, as far as is known now; None while all is in flight or nothing wanted."""
        return min(
            (
                wanted.due_at
                for wanted in self._wanted.values()
                if wanted.due_at is not None
                and self._in_flight < (MAX_IN_FLIGHT // 2 if wanted.tries else MAX_IN_FLIGHT)
            ),
            default=None,
        )

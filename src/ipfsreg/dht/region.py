"""Everybody in one part of the keyspace: what lets a thousand neighbouring roots share two or three lookups. Pure.

A lookup gives the k peers closest to one position. If the farthest of them shares n leading bits with it, then all
peers that share more than n bits are among them: that subtree is known whole. Its sibling, which differs in that very
bit, is searched next, unless it turns out to be known already; then the tree of n bits is known whole, and holds at
least k peers. For every position in it the k closest peers are among these, and no further lookup is needed.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from ipfsreg.dht.keys import MAX_FOUND_BITS, Contact, common_bits, sibling
from ipfsreg.peer_id import PeerId

MAX_SEARCHES = 24
"""Lookups for one region. Three are usual; somebody may have crowded one corner of it with identities."""


class Region:
    """The smallest subtree around *position* that holds k peers, as lookups make it known."""

    def __init__(self, position: int, *, k: int) -> None:
        self._position = position
        self._k = k
        self._bits: int | None = None
        self._peers: dict[PeerId, Contact] = {}
        self._unknown: list[tuple[int, int]] = [(position, 0)]
        """Subtrees to be searched, the next one last; without those in which no key would be found."""
        self._searches = 0

    def next_search(self) -> tuple[int, int] | None:
        """A subtree to look into: a position, and how many of its bits name it. None once all is known."""
        if not self._unknown or self._searches >= MAX_SEARCHES:
            return None
        return self._unknown[-1]

    def receive(self, position: int, closest: Sequence[Contact]) -> None:
        """What a lookup for *position*, in the subtree `next_search` named, found.

        At most k peers, the closest first; none if it failed.
        """
        self._searches += 1
        _, bits = self._unknown.pop()
        self._peers.update((contact.peer, contact) for contact in closest)
        # Fewer than k: these are all the peers there are.
        reach = common_bits(position, closest[-1].position) if len(closest) >= self._k else 0
        if self._bits is None:
            bits = self._bits = reach
        if len(closest) < self._k or reach < bits:
            return
        # Those that share more than `reach` bits are known; what is left of this subtree are the siblings between.
        for depth in range(bits, min(reach + 1, MAX_FOUND_BITS)):
            self._unknown.append((sibling(position, depth), depth + 1))

    @property
    def prefix(self) -> int:
        """A position in the region."""
        return self._position

    @property
    def bits(self) -> int:
        """How many leading bits all positions of the region share."""
        return self._bits or 0

    def __len__(self) -> int:
        return len(self._peers)

    def closest(self, position: int) -> list[Contact]:
        """The k peers closest to *position*, which lies in the region."""
        return heapq.nsmallest(self._k, self._peers.values(), key=lambda contact: contact.position ^ position)

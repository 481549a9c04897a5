"""What one peer wants of us, bounded: a peer may ask for millions of blocks, and we remember a thousand.

A want is *ready* where we have the block, and *waiting* where we lack it: bitswap remembers those, and the block (or
HAVE) is sent unasked when it arrives. Ready wants beyond the bound are not taken; of waiting ones the oldest is
forgotten, since a peer that asks everybody for everything must not keep itself from what we do have.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from ipfsreg.bitswap.messages import Entry
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

MAX_WANTS = 1024
"""Ready and waiting wants (each) of one peer. As many as boxo keeps."""

MAX_PRESENCES = 4096
"""HAVE and DONT_HAVE that wait to be told to one peer; it cannot ask for more of them in one breath."""

INSTEAD_OF_HAVE_BYTES = 1024
"""Blocks up to here answer a WANT_HAVE themselves: they cost what two messages would."""

LARGE_BYTES = 32 * 1024
"""Blocks from here on queue for upload slots; smaller ones overtake them."""

_CHOICE = 64
"""How many wants of equal priority are compared when the next one is chosen."""


@dataclass(frozen=True, slots=True)
class Want:
    """One want of a peer."""

    entry: Entry
    size: int
    """Bytes of the block; 0 while we lack it."""


class Ready:
    """Wants that can be met, by priority."""

    def __init__(self) -> None:
        self._wants: dict[Cid, Want] = {}
        self._levels: dict[int, dict[Cid, Want]] = {}
        self._priorities: list[int] = []

    def __len__(self) -> int:
        return len(self._wants)

    def __contains__(self, cid: Cid) -> bool:
        return cid in self._wants

    def add(self, want: Want) -> None:
        """Add a want that is not here yet."""
        cid, priority = want.entry.cid, want.entry.priority
        self._wants[cid] = want
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = {}
            insort(self._priorities, priority)
        level[cid] = want

    def discard(self, cid: Cid) -> None:
        want = self._wants.pop(cid, None)
        if want is None:
            return
        priority = want.entry.priority
        level = self._levels[priority]
        del level[cid]
        if not level:
            del self._levels[priority]
            self._priorities.remove(priority)

    def best(self, rank: Callable[[Cid], int]) -> Want | None:
        """Of the most urgent wants the one of lowest *rank*, the oldest first among equals."""
        if not self._priorities:
            return None
        level = self._levels[self._priorities[-1]]
        return min(islice(level.values(), _CHOICE), key=lambda want: rank(want.entry.cid))

    def in_order(self) -> Iterator[Want]:
        """The most urgent first. Not to be changed meanwhile."""
        for priority in reversed(self._priorities):
            yield from self._levels[priority].values()

    def clear(self) -> None:
        self._wants.clear()
        self._levels.clear()
        self._priorities.clear()


class Ledger:
    """What one peer wants of us, and what it has to be told."""

    def __init__(self, peer: PeerId, waiting_for: dict[bytes, dict[PeerId, None]]) -> None:
        """*waiting_for*, shared by all ledgers: who waits for a multihash. Kept up to date here."""
        self.peer = peer
        self.small = Ready()
        self.large = Ready()
        self.haves: dict[Cid, None] = {}
        self.dont_haves: dict[Cid, None] = {}
        self.under_way: dict[Cid, bool] = {}
        """What is being sent, and whether it is still wanted."""
        self.refused = 0
        """Wants not taken because there were too many."""
        self._waiting: dict[bytes, Entry] = {}
        self._waiting_for = waiting_for

    @property
    def waiting(self) -> int:
        """How many wants are remembered for blocks we lack."""
        return len(self._waiting)

    @property
    def has_presences(self) -> bool:
        return bool(self.haves or self.dont_haves)

    def receive_want(self, entry: Entry, size: int | None) -> None:
        """Take one want; *size* is the block's, or None where we lack it. A later want replaces an earlier one."""
        cid = entry.cid
        if cid in self.under_way:
            self.under_way[cid] = True
            return
        self._drop(cid)
        if size is None:
            self._wait_for(entry)
            if entry.send_dont_have:
                self._tell(self.dont_haves, cid)
        else:
            self._answer(entry, size)

    def _answer(self, entry: Entry, size: int) -> None:
        if entry.want_have and size > INSTEAD_OF_HAVE_BYTES:
            self._tell(self.haves, entry.cid)
        elif len(self.small) + len(self.large) >= MAX_WANTS:
            self.refused += 1
        else:
            (self.large if size >= LARGE_BYTES else self.small).add(Want(entry, size))

    def _tell(self, presences: dict[Cid, None], cid: Cid) -> None:
        if len(presences) < MAX_PRESENCES:
            presences[cid] = None

    def _wait_for(self, entry: Entry) -> None:
        if len(self._waiting) >= MAX_WANTS:
            self._forget_waiting(next(iter(self._waiting)))
        self._waiting[entry.cid.multihash] = entry
        self._waiting_for.setdefault(entry.cid.multihash, {})[self.peer] = None

    def _forget_waiting(self, multihash: bytes) -> Entry | None:
        entry = self._waiting.pop(multihash, None)
        if entry is not None:
            peers = self._waiting_for[multihash]
            peers.pop(self.peer, None)
            if not peers:
                del self._waiting_for[multihash]
        return entry

    def _drop(self, cid: Cid) -> None:
        self.small.discard(cid)
        self.large.discard(cid)
        self.haves.pop(cid, None)
        self.dont_haves.pop(cid, None)
        waiting = self._waiting.get(cid.multihash)
        if waiting is not None and waiting.cid == cid:
            self._forget_waiting(cid.multihash)

    def cancel(self, cid: Cid) -> None:
        """The peer no longer wants it; what is being sent already goes on where it has begun."""
        self._drop(cid)
        if cid in self.under_way:
            self.under_way[cid] = False

    def clear(self) -> None:
        """The peer wants nothing of what it asked before."""
        self.small.clear()
        self.large.clear()
        self.haves.clear()
        self.dont_haves.clear()
        for cid in self.under_way:
            self.under_way[cid] = False
        for multihash in list(self._waiting):
            self._forget_waiting(multihash)

    def receive_arrival(self, multihash: bytes, size: int) -> None:
        """A block this peer may wait for is here now."""
        entry = self._forget_waiting(multihash)
        if entry is not None:
            self.dont_haves.pop(entry.cid, None)
            self._answer(entry, size)

    def begin(self, want: Want) -> None:
        """*want* is being sent."""
        self.small.discard(want.entry.cid)
        self.large.discard(want.entry.cid)
        self.under_way[want.entry.cid] = True

    def finish(self, want: Want, *, missing: bool) -> None:
        """*want* was sent, or turned out to be *missing* from the store."""
        still_wanted = self.under_way.pop(want.entry.cid, False)
        if missing and still_wanted:
            self.receive_want(want.entry, None)

    def take_presences(self, limit: int) -> tuple[list[Cid], list[Cid]]:
        """Up to *limit* of HAVE, then DONT_HAVE, that are told now."""
        haves = list(islice(self.haves, limit))
        dont_haves = list(islice(self.dont_haves, limit - len(haves)))
        for cid in haves:
            del self.haves[cid]
        for cid in dont_haves:
            del self.dont_haves[cid]
        return haves, dont_haves

"""One wanted set: what is missing, in which order it is asked for, and of whom.

The order. What a reader waits for comes first, in the reader's order. The rest is taken out of a window that moves
along the caller's order: inside it, what the fewest peers are known to have comes first, and among equals every node
draws its own lots, unless it has been alone for a while. So peers that pull the same blob at the same time soon have
different blocks to give each other.
In such company a reader's haste counts less: all readers wait for the same block, and if all asked the one holder for
it, it would send nothing but this block. It is asked first of those who got it meanwhile, and of the holder by the one
whose lot it is (docs/decisions/0026).

The peers. A peer is *full* as long as nothing says otherwise: it said HAVE, it was named by the caller, it is a
provider. It is asked for any block. Once it said DONT_HAVE it is *partial*, as is a peer that wants what we want: it is
told what we want, says HAVE for each block it has or gets, and is asked only for those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice

from ipfsreg.bitswap.source import Source
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.peer_id import PeerId

WINDOW_BLOCKS = 128
"""How far ahead of the first missing block the order is spread."""

FETCH_WINDOW_BLOCKS = 1024
"""The same for sessions that do not spread."""

MAX_ASKS = 512
"""Blocks asked of one peer at a time, however small."""

UNMEASURED_ASKS = 16
"""Blocks asked of one peer while the session does not know how large its blocks are."""

ALONE_AFTER_BLOCKS = 16
"""Who got so many and met nobody who fetches the same asks in order from then on. Lots leave some early block to the
very end; then all behind it is hashed when everything is here, a quarter of the time of a fast pull."""

INNER_BYTES = 16 * 1024
"""Inner nodes are smaller: one of 174 links, as everybody builds them, has 9 KiB."""

SETTLED_S = 1.0
"""In company a block is asked of a peer for so long, and as long as it would take another, before that other is."""

LOTS = 2**64
"""How many different lots there are."""


def draw(block: int, salt: int) -> int:
    """The lot that a peer draws for a block, below LOTS: the same for whoever computes it."""
    return ((block ^ salt) * 0x9E3779B97F4A7C15) % LOTS


def salt_of(peer: PeerId) -> int:
    """What makes a peer's lots its own."""
    return int.from_bytes(peer.raw[-8:], "big")


class Goal:
    """One block somebody here wants, for all sessions that want it."""

    __slots__ = ("asked", "cid", "draw", "have", "lacks", "lot", "priority", "rank", "rank_in", "sessions", "told")

    def __init__(self, cid: Cid, lot: float) -> None:
        self.cid = cid
        self.lot = lot
        """Drawn once: decides between blocks that are equal otherwise."""
        self.draw = int.from_bytes(cid.multihash[-8:], "big")
        self.rank = 0
        self.rank_in: object = None
        """The company in which we have that rank."""
        self.sessions: dict[Session, None] = {}
        self.asked: Source | None = None
        self.have: set[Source] = set()
        """Who said HAVE."""
        self.lacks: set[Source] = set()
        """Who said DONT_HAVE, since the last search."""
        self.told: dict[Source, None] = {}
        """On whose list it stands or will stand."""
        self.priority = 1


@dataclass(slots=True)
class SessionStats:
    """What came in for one session."""

    blocks: int = 0
    bytes: int = 0
    duplicate_blocks: int = 0
    """Blocks that came once more, from another peer."""
    duplicate_bytes: int = 0
    by_peer: dict[PeerId, int] = field(default_factory=dict)
    """Bytes of blocks each peer was the first to give."""


class Session:
    """One wanted set with its peers. Only decides; `Asking` carries out."""

    def __init__(
        self, number: int, own_salt: int, root: Cid | None, *, spread: bool, block_bytes: int, now: float
    ) -> None:
        """*spread*: many peers may pull the same set now; else blocks are asked in order. *block_bytes*: a guess."""
        self.number = number
        self.root = root
        self.spread = spread
        self.stats = SessionStats()
        self.hints: set[PeerId] = set()
        """Peers believed to have everything, connected or not."""
        self.hopes: tuple[PeerId, ...] = ()
        """Those of them that are dialled, once, when nobody else is found."""
        self.sources: dict[Source, bool] = {}
        """Peers that may have something, and whether they are full."""
        self.missing: dict[Cid, Goal] = {}
        self.unasked: dict[Cid, Goal] = {}
        self.asked: dict[Cid, Goal] = {}
        self.urgent: dict[Cid, Goal] = {}
        self.held = 0
        """Bytes delivered and not yet taken by the reader."""
        self.starving_since: float | None = None
        self.searches = 0
        self.next_search: float | None = None
        self.opened_at = now
        self._backlog: deque[Cid] = deque()
        self._block_bytes = block_bytes
        self._measured = False
        self._own_salt = own_salt
        self._full: set[Source] = set()
        self._company: list[int] = []
        self._company_mark = object()

    # ---------------------------------------------------------- the company

    def join(self, source: Source, *, full: bool) -> None:
        """*source* takes part, or is known better now."""
        self.sources[source] = full
        self._count_company()

    def leave(self, source: Source) -> bool:
        """*source* is gone; return whether it took part."""
        known = self.sources.pop(source, None) is not None
        self._count_company()
        return known

    def _count_company(self) -> None:
        self._company = [salt_of(source.peer) for source, full in self.sources.items() if not full]
        self._full = {source for source, full in self.sources.items() if full}
        self._company_mark = object()

    @property
    def in_company(self) -> bool:
        """Whether others fetch the same now."""
        return self.spread and bool(self._company)

    def copies(self, goal: Goal) -> int:
        """How many of the partial peers are known to have *goal*."""
        return len(goal.have) - len(goal.have & self._full) if self._full else len(goal.have)

    def rank(self, goal: Goal) -> int:
        """How many of our company come before us in getting *goal* from a peer that has everything.

        Everybody draws for everybody, from names alone (rendezvous hashing), so all come to the same answer without
        a word: whoever has rank 0 asks first, and the others can have the block from it.
        """
        if goal.rank_in is not self._company_mark:
            mine = draw(goal.draw, self._own_salt)
            goal.rank = sum(draw(goal.draw, salt) < mine for salt in self._company)
            goal.rank_in = self._company_mark
        return goal.rank

    # ----------------------------------------------------------- the wanted

    def add(self, goals: Iterable[Goal]) -> list[Goal]:
        """Want *goals* too, behind what is wanted already; return those that moved into the window."""
        for goal in goals:
            if goal.cid not in self.missing:
                self.missing[goal.cid] = goal
                goal.sessions[self] = None
                self._backlog.append(goal.cid)
        return self.refill()

    def refill(self) -> list[Goal]:
        """Move the window along; return what came into it."""
        limit = WINDOW_BLOCKS if self.spread else FETCH_WINDOW_BLOCKS
        entered = []
        while self._backlog and len(self.unasked) + len(self.asked) < limit:
            goal = self.missing.get(self._backlog.popleft())
            if goal is not None and self._enter(goal):
                entered.append(goal)
        return entered

    def _enter(self, goal: Goal) -> bool:
        if goal.cid in self.unasked or goal.cid in self.asked:
            return False
        (self.unasked if goal.asked is None else self.asked)[goal.cid] = goal
        return True

    def urge(self, cids: Iterable[Cid]) -> list[Goal]:
        """A reader waits for *cids*, in this order, and for nothing else; return what came into the window."""
        self.urgent.clear()
        entered = []
        for cid in cids:
            goal = self.missing.get(cid)
            if goal is not None:
                self.urgent[cid] = goal
                if self._enter(goal):
                    entered.append(goal)
        return entered

    def drop(self, cid: Cid) -> None:
        """*cid* is here, or no longer wanted."""
        self.missing.pop(cid, None)
        self.unasked.pop(cid, None)
        self.asked.pop(cid, None)
        self.urgent.pop(cid, None)

    def note_asked(self, goal: Goal) -> None:
        """*goal* was asked of somebody, by us or by another session."""
        if self.unasked.pop(goal.cid, None) is not None:
            self.asked[goal.cid] = goal

    def note_released(self, goal: Goal) -> None:
        """*goal* is asked of nobody any more."""
        if self.asked.pop(goal.cid, None) is not None:
            self.unasked[goal.cid] = goal

    def window(self) -> Iterator[Goal]:
        """What is missing in the window."""
        yield from self.unasked.values()
        yield from self.asked.values()

    @property
    def under_way(self) -> int:
        """Bytes asked for, as estimated."""
        return len(self.asked) * self._block_bytes

    @property
    def last_byte_at(self) -> float:
        """When the last byte came from a peer that owes us a block; else when the session began."""
        owing = {goal.asked for goal in self.asked.values() if goal.asked is not None}
        return max((source.last_byte_at for source in owing), default=self.opened_at)

    # ---------------------------------------------------------- block sizes

    @property
    def block_bytes(self) -> int:
        """How large a block of this session probably is."""
        return self._block_bytes

    def deliver(self, block: Block, giver: Source | None) -> None:
        """*block* is here; *giver* is None where it came from our own store."""
        size = len(block.data)
        self.drop(block.cid)
        self.held += size
        self.starving_since = self.next_search = None
        self.searches = 0
        if giver is not None:
            if not self._is_inner(block):
                self._measure_block(size)
            self.stats.blocks += 1
            self.stats.bytes += size
            self.stats.by_peer[giver.peer] = self.stats.by_peer.get(giver.peer, 0) + size

    def _is_inner(self, block: Block) -> bool:
        """Whether *block* only links to others: its few kilobytes say nothing of the size of the leaves."""
        return self.root is not None and block.cid.codec == DAG_PB and len(block.data) < INNER_BYTES

    def _measure_block(self, size: int) -> None:
        if self._measured:
            self._block_bytes += (size - self._block_bytes) // 8
        else:
            self._block_bytes, self._measured = size, True
        self._block_bytes = max(self._block_bytes, 256)

    @property
    def max_asks(self) -> int:
        """How many blocks one peer may be asked for."""
        return MAX_ASKS if self._measured else UNMEASURED_ASKS

    @property
    def is_guessing_too_much(self) -> bool:
        """Whether enough is asked for while the size of blocks is only guessed."""
        return not self._measured and len(self.asked) >= 2 * UNMEASURED_ASKS

    # ---------------------------------------------------------- whom to ask

    @property
    def is_urgent(self) -> bool:
        """Whether a reader waits for something that is not asked for yet."""
        return any(cid in self.unasked for cid in self.urgent)

    def may_have(self, source: Source, goal: Goal) -> bool:
        """Whether asking *source* for *goal* makes sense."""
        if source in goal.have:
            return True
        return self.sources.get(source, False) and source not in goal.lacks

    def pick(self, source: Source, now: float) -> Goal | None:
        """The block to ask of *source* next; of a stalled one, only what nobody else might have."""
        if source.stalled:
            return (
                None
                if source.asks
                else next(
                    (goal for goal in self.orphans(8) if goal.asked is None and self.may_have(source, goal)), None
                )
            )
        full = self.sources.get(source, False)
        for cid, goal in self.urgent.items():
            if cid not in self.unasked or (full and self.in_company and self.rank(goal)):
                continue
            if self.may_have(source, goal) and self._is_quick(source, goal, now):
                return goal
        if not self.spread or (not self._company and self.stats.blocks >= ALONE_AFTER_BLOCKS):
            return next((goal for goal in self.unasked.values() if self.may_have(source, goal)), None)
        best: Goal | None = None
        best_key = (0, 0, 0.0)
        for goal in self.unasked.values():
            if source in goal.have or (full and source not in goal.lacks):
                key = (self.copies(goal) if goal.have else 0, self.rank(goal) if self._company else 0, goal.lot)
                if best is None or key < best_key:
                    best, best_key = goal, key
        return best

    def _is_quick(self, source: Source, goal: Goal, now: float) -> bool:
        """Whether no other peer would have the urgent *goal* here in half the time."""
        size = self._block_bytes
        mine = source.eta(size, now)
        return all(
            other is source or other.stalled or not self.may_have(other, goal) or 2 * other.eta(size, now) >= mine
            for other in self.sources
        )

    def pick_late(self, source: Source, now: float) -> Goal | None:
        """A block asked of another peer that *source*, which has nothing to do, would have here much sooner."""
        mine = source.eta(self._block_bytes, now)
        best: Goal | None = None
        latest = 0.0
        for goal in self.asked.values():
            other = goal.asked
            if other is None or other is source or not self.may_have(source, goal):
                continue
            if self.in_company and now - other.asks[goal.cid].at < SETTLED_S + mine:
                # Idle peers come and go; each move may cross the block that is already on its way.
                continue
            remaining = other.remaining(goal.cid, now)
            # What is at the head of the other's queue is probably on its way already: a second copy of it is waste.
            needed = (
                4 * mine + 0.5 if other.is_sending(goal.cid) else (1.3 if goal.cid in self.urgent else 2.0) * mine + 0.2
            )
            if remaining > needed and remaining > latest:
                best, latest = goal, remaining
        return best

    # ---------------------------------------------------------- searching

    def orphans(self, limit: int) -> list[Goal]:
        """Blocks nobody can be asked for: whoever might have them lacks them or is stalled. The urgent ones first."""
        sources = [source for source in self.sources if not source.stalled]
        found: dict[Cid, Goal] = {}
        for goal in islice(chain(self.urgent.values(), self.window()), 4 * limit):
            if len(found) == limit:
                break
            hopeful = goal.asked is not None and not goal.asked.stalled
            if not hopeful and not any(self.may_have(source, goal) for source in sources):
                found[goal.cid] = goal
        return list(found.values())

"""The books of the asking side: what is wanted for which sessions, of whom it is asked, and what every peer was told.

Only keeps them consistent; what to ask of whom is decided in `asking`, whom to ask at all in `recruiting`.
"""

from __future__ import annotations

from collections.abc import Callable

from ipfsreg.bitswap.counters import Counters
from ipfsreg.bitswap.session import Goal, Session, SessionStats
from ipfsreg.bitswap.source import Kind, Source
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.peer_id import PeerId

_REMEMBERED = 8192
"""Blocks that were wanted not long ago: more of them coming is waste, not malice."""


class Wanted:
    """All sessions, their goals, and the peers those may come from."""

    def __init__(self, draw: Callable[[], float]) -> None:
        """*draw* gives random numbers in [0, 1)."""
        self.sources: dict[PeerId, Source] = {}
        self.sessions: dict[int, Session] = {}
        """The one whose turn it is to ask comes first."""
        self.goals: dict[Cid, Goal] = {}
        self.roots: dict[Cid, dict[Session, None]] = {}
        """What is asked about only to learn who takes part."""
        self.news: dict[PeerId, None] = {}
        """Peers that have to be told something."""
        self.held = 0
        """Bytes delivered and not yet taken by readers."""
        self.counters = Counters()
        self._draw = draw
        self._recent: dict[Cid, tuple[SessionStats, ...]] = {}

    # --------------------------------------------------------------- telling

    def tell(self, source: Source, cid: Cid, kind: Kind, priority: int = 1) -> None:
        """Say this to *source* in its next message."""
        source.tell(cid, kind, priority)
        self.news[source.peer] = None

    def advertise(self, source: Source, goal: Goal) -> None:
        """Let *source* know that we want *goal*: it says HAVE when it has it, or gets it."""
        if source not in goal.told and source not in goal.have and source.list_room > 0:
            goal.told[source] = None
            self.tell(source, goal.cid, Kind.WANT_HAVE)

    # ----------------------------------------------------------------- goals

    def goal(self, session: Session, cid: Cid) -> Goal:
        """What is known of the wanted block *cid*."""
        goal = self.goals.get(cid)
        if goal is None:
            goal = self.goals[cid] = Goal(cid, self._draw())
            if session.root == cid:
                goal.told.update((source, None) for source in self.sources.values() if source.knows(cid))
        return goal

    def ask(self, goal: Goal, source: Source, size: int, now: float) -> None:
        """Ask *source* for *goal*, about *size* bytes."""
        goal.asked = source
        goal.told[source] = None
        for session in goal.sessions:
            session.note_asked(goal)
        source.ask(goal.cid, size, goal.priority, now)
        self.news[source.peer] = None

    def release(self, goal: Goal) -> None:
        """*goal* is asked of nobody now: its peer answered or is gone."""
        goal.asked = None
        for session in goal.sessions:
            session.note_released(goal)

    def withdraw(self, goal: Goal, now: float) -> None:
        """Cancel *goal* with the peer it is asked of."""
        source = goal.asked
        if source is not None:
            source.settle(goal.cid, now)
            goal.told.pop(source, None)
            self.tell(source, goal.cid, Kind.CANCEL)
            self.release(goal)

    def finish(self, goal: Goal, giver: Source | None, now: float) -> Source | None:
        """*goal* is here, from *giver*, or no longer wanted; return the peer that owes us one block less."""
        del self.goals[goal.cid]
        freed, goal.asked = goal.asked, None
        if freed is not None:
            freed.settle(goal.cid, now)
        for source in goal.told:
            if source is not giver and source.knows(goal.cid) and goal.cid not in self.roots:
                self.tell(source, goal.cid, Kind.CANCEL)
        for session in goal.sessions:
            session.drop(goal.cid)
        return freed

    def forget_root(self, session: Session) -> None:
        """*session* no longer cares who has its root."""
        if session.root is None:
            return
        others = self.roots[session.root]
        del others[session]
        if not others:
            del self.roots[session.root]
            if session.root not in self.goals:
                for source in self.sources.values():
                    if source.knows(session.root):
                        self.tell(source, session.root, Kind.CANCEL)

    def wanted_as(self, multihash: bytes) -> list[Cid]:
        """The CIDs under which the block *multihash* is wanted."""
        if not self.goals:
            return []
        names = [Cid(1, RAW, multihash), Cid(1, DAG_PB, multihash), Cid(0, DAG_PB, multihash)]
        return [cid for cid in names if cid in self.goals]

    # ------------------------------------------------------------ bookkeeping

    def deliver(self, session: Session, block: Block, giver: Source | None) -> None:
        """*session* gets *block*; *giver* is None where it came from our own store."""
        session.deliver(block, giver)
        self.held += len(block.data)

    def remember(self, cid: Cid, stats: tuple[SessionStats, ...]) -> None:
        """*cid* was wanted until now, for sessions that count their duplicates in *stats*."""
        self._recent.pop(cid, None)
        self._recent[cid] = stats
        if len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def count_duplicate(self, block: Block) -> bool:
        """Count *block* where it came once more; False if it was not wanted lately."""
        self.counters.receive_again(len(block.data))
        known = self._recent.get(block.cid)
        for stats in known or ():
            stats.duplicate_blocks += 1
            stats.duplicate_bytes += len(block.data)
        return known is not None

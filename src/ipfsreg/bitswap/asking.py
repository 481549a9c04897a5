"""The asking side of the exchange: which block is asked of which peer, and what is believed when it answers.

Every block is asked of one peer at a time, whatever number of sessions want it. The question moves when that peer says
DONT_HAVE, goes, falls silent, or turns out so slow that an idle one would be done much sooner; it is cancelled where it
was. So nothing waits for the slowest peer, and hardly anything comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ipfsreg.bitswap.session import Goal, Session, SessionStats, salt_of
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.bitswap.source import Kind, Source
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.peer_id import PeerId

MAX_SOURCES = 64
"""Peers one session asks; more would cost more in questions than they bring."""

MAX_OFFENCES = 3
"""Blocks nobody asked for, after which a peer is thrown out. Lost cancels cannot be the reason: those are known."""

MAX_BROKEN_PROMISES = 8
"""Blocks a peer said it has and did not send, with none that it did send between them."""

PROMISE_S = 20.0
"""And so many seconds without one. A peer whose link is crowded may be late, but not for ever."""

SHUNNED_S = 300.0
_MAX_SHUNNED = 1024

_PROBED = 32
"""Blocks of which everybody is asked HAVE when nobody is known to have them."""

_REMEMBERED = 8192
"""Blocks that were wanted not long ago: more of them coming is waste, not malice."""


@dataclass(frozen=True, slots=True)
class Received:
    """A block that was wanted; verified."""

    sessions: tuple[int, ...]
    block: Block
    peer: PeerId


@dataclass(frozen=True, slots=True)
class Misbehaved:
    """*peer* broke the protocol or lied; it should lose its connection."""

    peer: PeerId
    reason: str


@dataclass(frozen=True, slots=True)
class FindProviders:
    """Nobody we know has *cid*: look further, and report who is found with `add_provider`."""

    session: int
    cid: Cid


AskEvent = Received | Misbehaved | FindProviders


class Asking:
    """All we want, and of whom it is asked."""

    def __init__(self, own: PeerId, draw: Callable[[], float], settings: BitswapSettings) -> None:
        """*draw* gives random numbers in [0, 1)."""
        self._own_salt = salt_of(own)
        self._draw = draw
        self._settings = settings
        self._sources: dict[PeerId, Source] = {}
        self._sessions: dict[int, Session] = {}
        self._goals: dict[Cid, Goal] = {}
        self._roots: dict[Cid, dict[Session, None]] = {}
        """What is asked about only to learn who takes part."""
        self._recent: dict[Cid, tuple[SessionStats, ...]] = {}
        self._shunned: dict[PeerId, float] = {}
        self._next_number = 0
        self._held = 0
        self._crowded: dict[Session, None] = {}
        """Sessions that could ask for more but for the total."""
        self.news: dict[PeerId, None] = {}
        """Peers that have to be told something."""
        self.events: list[AskEvent] = []

    # ---------------------------------------------------------------- peers

    def connected(self, peer: PeerId, now: float) -> None:
        """*peer* is there and speaks bitswap."""
        if peer in self._sources:
            return
        source = self._sources[peer] = Source(peer)
        if self._is_shunned(peer, now):
            return
        for session in list(self._sessions.values()):
            if peer in session.hints:
                self._join(session, source, full=True, now=now)
            elif session.spread or session.starving_since is not None:
                self._probe(session, source)

    def lost(self, peer: PeerId, now: float) -> None:
        """*peer* is gone; what was asked of it is asked of others."""
        source = self._sources.pop(peer, None)
        self.news.pop(peer, None)
        if source is None:
            return
        touched: dict[Session, None] = {}
        for cid in list(source.asks):
            goal = self._goals.get(cid)
            source.settle(cid, now)
            if goal is not None and goal.asked is source:
                self._release(goal, now)
        for goal in self._goals.values():
            goal.have.discard(source)
            goal.lacks.discard(source)
            goal.told.discard(source)
        for session in self._sessions.values():
            if session.leave(source):
                touched[session] = None
        for session in touched:
            self._fill_session(session, now)

    def tell_again(self, peer: PeerId) -> None:
        """The stream to *peer* broke: what was said on it may be lost."""
        source = self._sources.get(peer)
        if source is not None and (source.listed or source.has_news):
            source.tell_all_again()
            self.news[peer] = None

    def source(self, peer: PeerId) -> Source | None:
        """What is known of *peer* as a source."""
        return self._sources.get(peer)

    def _is_shunned(self, peer: PeerId, now: float) -> bool:
        until = self._shunned.get(peer)
        if until is not None and until <= now:
            del self._shunned[peer]
        return peer in self._shunned

    def _misbehaved(self, source: Source, reason: str, now: float) -> None:
        while len(self._shunned) >= _MAX_SHUNNED:
            del self._shunned[next(iter(self._shunned))]
        self._shunned[source.peer] = now + SHUNNED_S
        self.events.append(Misbehaved(source.peer, reason))
        self.lost(source.peer, now)

    # ------------------------------------------------------------- sessions

    def open_session(
        self, root: Cid | None, first: Iterable[PeerId], *, spread: bool, block_bytes: int, now: float
    ) -> Session:
        """A new wanted set. *root* names the whole of which it is part: who has it, or wants it, takes part."""
        session = Session(self._next_number, self._own_salt, root, spread=spread, block_bytes=block_bytes, now=now)
        self._next_number += 1
        self._sessions[session.number] = session
        if root is not None:
            self._roots.setdefault(root, {})[session] = None
        for peer in first:
            self.add_provider(session, peer, now)
        if spread:
            for source in list(self._sources.values()):
                if source not in session.sources and not self._is_shunned(source.peer, now):
                    self._probe(session, source)
        return session

    def close_session(self, session: Session, now: float) -> None:
        """Nothing of *session* is wanted any more."""
        self.forget(session, list(session.missing), now)
        del self._sessions[session.number]
        self._crowded.pop(session, None)
        self._held -= session.held
        session.held = 0
        if session.root is not None:
            others = self._roots[session.root]
            del others[session]
            if not others:
                del self._roots[session.root]
                if session.root not in self._goals:
                    for source in self._sources.values():
                        if source.knows(session.root):
                            self._tell(source, session.root, Kind.CANCEL)
        self._fill_crowded(now)

    def add_provider(self, session: Session, peer: PeerId, now: float) -> None:
        """*peer* is said to have what *session* wants, connected or not."""
        session.hints.add(peer)
        source = self._sources.get(peer)
        if source is not None and not self._is_shunned(peer, now):
            self._join(session, source, full=True, now=now)

    def want(self, session: Session, cids: Iterable[Cid], now: float) -> None:
        """Want *cids* too, in this order."""
        goals = []
        for cid in cids:
            goal = self._goals.get(cid)
            if goal is None:
                goal = self._goals[cid] = Goal(cid, self._draw())
                if session.root == cid:
                    goal.told.update(source for source in self._sources.values() if source.knows(cid))
            goals.append(goal)
        self._entered(session, session.add(goals))
        self._fill_session(session, now)
        self._consider_search(session, now)

    def urge(self, session: Session, cids: Sequence[Cid], now: float) -> None:
        """A reader waits for *cids*, in this order, and no longer for others."""
        self._entered(session, session.urge(cids))
        for place, goal in enumerate(session.urgent.values()):
            priority = 2**31 - 1 - place
            if goal.priority < priority:
                goal.priority = priority
                if goal.asked is not None:
                    self._tell(goal.asked, goal.cid, Kind.WANT_BLOCK, priority)
        self._fill_session(session, now)

    def forget(self, session: Session, cids: Iterable[Cid], now: float) -> None:
        """*session* does not want *cids* any more."""
        for cid in cids:
            goal = session.missing.get(cid)
            session.drop(cid)
            if goal is None:
                continue
            goal.sessions.pop(session, None)
            if not goal.sessions:
                self._remember(cid, ())
                self._finish(goal, None, now)
        if session.number in self._sessions:
            self._entered(session, session.refill())
            self._fill_session(session, now)

    def consumed(self, session: Session, size: int, now: float) -> None:
        """The reader of *session* took *size* bytes."""
        if session.number not in self._sessions:
            return
        session.held -= size
        self._held -= size
        self._fill_session(session, now)
        self._fill_crowded(now)

    def _entered(self, session: Session, goals: Iterable[Goal]) -> None:
        """Tell the partial peers of *session* what came into its window."""
        partial = [source for source, full in session.sources.items() if not full]
        if partial:
            for goal in goals:
                for source in partial:
                    self._advertise(source, goal)

    def _advertise(self, source: Source, goal: Goal) -> None:
        if source not in goal.told and source not in goal.have and source.list_room > 0:
            goal.told.add(source)
            self._tell(source, goal.cid, Kind.WANT_HAVE)

    def _tell(self, source: Source, cid: Cid, kind: Kind, priority: int = 1) -> None:
        source.tell(cid, kind, priority)
        self.news[source.peer] = None

    # ---------------------------------------------------------- who is there

    def _probe(self, session: Session, source: Source, *, again: bool = False) -> None:
        """Ask *source* whether it has what *session* looks for."""
        if session.root is not None and (again or not source.knows(session.root)) and source.list_room > 0:
            goal = self._goals.get(session.root)
            if goal is None or goal.asked is not source:
                self._tell(source, session.root, Kind.WANT_HAVE)
                if goal is not None:
                    goal.told.add(source)
        if session.starving_since is None:
            return
        for goal in session.orphans(_PROBED):
            if (again or source not in goal.told) and source.list_room > 0 and source not in goal.have:
                goal.told.add(source)
                self._tell(source, goal.cid, Kind.WANT_HAVE)

    def _join(self, session: Session, source: Source, *, full: bool, now: float) -> None:
        """*source* takes part in *session*."""
        known = session.sources.get(source)
        if known is None and len(session.sources) >= MAX_SOURCES:
            return
        full = full and not any(source in goal.lacks for goal in session.window())
        if known is None or (full and not known):
            session.join(source, full=full)
            if not full:
                for goal in session.window():
                    self._advertise(source, goal)
        self._fill(source, now)

    def receive_interest(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* wants *cids*: if we want them too, each of us will soon have what the other lacks."""
        source = self._sources.get(peer)
        if source is None or self._is_shunned(peer, now):
            return
        for cid in cids:
            goal = self._goals.get(cid)
            for session in (*(goal.sessions if goal else ()), *self._roots.get(cid, ())):
                if session.spread and source not in session.sources:
                    self._join(session, source, full=False, now=now)

    # -------------------------------------------------------------- answers

    def receive_have(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* has *cids*."""
        source = self._sources.get(peer)
        if source is None:
            return
        for cid in cids:
            source.receive_answer(cid, now)
            if cid not in source.asks:
                source.struck(cid)
            for session in list(self._roots.get(cid, ())):
                self._join(session, source, full=True, now=now)
            goal = self._goals.get(cid)
            if goal is not None:
                goal.have.add(source)
                goal.lacks.discard(source)
                goal.told.discard(source)
                for session in list(goal.sessions):
                    if source not in session.sources:
                        self._join(session, source, full=True, now=now)
                    if goal.asked is not source:
                        self._prefer_rarer(session, goal, now)
        self._fill(source, now)

    def _prefer_rarer(self, session: Session, goal: Goal, now: float) -> None:
        """One more peer has *goal*: if it is asked of one that has everything, ask that one for what only it has."""
        source = goal.asked
        if source is None or source.stalled or not session.sources.get(source) or source.is_sending(goal.cid):
            return
        if any(not session.copies(other) and session.may_have(source, other) for other in session.unasked.values()):
            self._withdraw(goal, now)
            self._fill(source, now)

    def receive_dont_have(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* lacks *cids*; it remembers that we want them."""
        source = self._sources.get(peer)
        if source is None:
            return
        touched: dict[Session, None] = {}
        for cid in cids:
            source.receive_answer(cid, now)
            goal = self._goals.get(cid)
            if goal is None:
                continue
            goal.have.discard(source)
            goal.lacks.add(source)
            for session in goal.sessions:
                touched[session] = None
                if session.sources.get(source):
                    session.join(source, full=False)
                    for other in session.window():
                        self._advertise(source, other)
            if goal.asked is source:
                source.settle(cid, now)
                self._release(goal, now)
                # It would send the block unasked when it gets it, by when another may have sent it.
                self._tell(source, cid, Kind.WANT_HAVE)
        for session in touched:
            self._fill_session(session, now)
            self._consider_search(session, now)

    def receive_block(self, peer: PeerId, block: Block, now: float) -> None:
        """*peer* sent *block*; its hash was checked."""
        source = self._sources.get(peer)
        if source is None:
            if self._is_shunned(peer, now):
                return
            source = self._sources[peer] = Source(peer)
        cid = block.cid
        source.struck(cid)
        asked = source.settle(cid, now) is not None
        goal = self._goals.get(cid)
        if goal is None:
            self._receive_unwanted(source, block, now)
        else:
            source.deliver()
            sessions = tuple(goal.sessions)
            self._remember(cid, tuple(session.stats for session in sessions))
            self._finish(goal, source, now)
            for session in sessions:
                self._deliver(session, source, block)
            self.events.append(Received(tuple(session.number for session in sessions), block, peer))
            for session in sessions:
                if source not in session.sources:
                    self._join(session, source, full=True, now=now)
                self._entered(session, session.refill())
                self._fill_session(session, now) if not asked else None
        self._fill(source, now)

    def receive_local(self, block: Block, now: float) -> tuple[int, ...]:
        """*block* came from elsewhere (our own store); return the sessions that wanted it."""
        goal = self._goals.get(block.cid)
        if goal is None:
            return ()
        sessions = tuple(goal.sessions)
        self._remember(block.cid, ())
        self._finish(goal, None, now)
        for session in sessions:
            session.drop(block.cid)
            session.held += len(block.data)
            self._held += len(block.data)
            self._entered(session, session.refill())
            self._fill_session(session, now)
        return tuple(session.number for session in sessions)

    def wanted_as(self, multihash: bytes) -> list[Cid]:
        """The CIDs under which the block *multihash* is wanted."""
        if not self._goals:
            return []
        names = [Cid(1, RAW, multihash), Cid(1, DAG_PB, multihash), Cid(0, DAG_PB, multihash)]
        return [cid for cid in names if cid in self._goals]

    def _deliver(self, session: Session, source: Source, block: Block) -> None:
        size = len(block.data)
        session.drop(block.cid)
        session.measure_block(size)
        session.held += size
        self._held += size
        stats = session.stats
        stats.blocks += 1
        stats.bytes += size
        stats.by_peer[source.peer] = stats.by_peer.get(source.peer, 0) + size
        session.starving_since = session.next_search = None
        session.searches = 0

    def _receive_unwanted(self, source: Source, block: Block, now: float) -> None:
        cid = block.cid
        if cid in self._roots:
            # A small block comes instead of HAVE.
            for session in list(self._roots[cid]):
                self._join(session, source, full=True, now=now)
            return
        known = self._recent.get(cid)
        if known is None:
            self.receive_offence(source.peer, "sent blocks that nobody asked for", now)
            return
        for stats in known:
            stats.duplicate_blocks += 1
            stats.duplicate_bytes += len(block.data)

    def receive_offence(self, peer: PeerId, what: str, now: float) -> None:
        """*peer* did what no honest peer does: wrong bytes look like blocks that nobody asked for."""
        source = self._sources.get(peer)
        if source is None:
            return
        source.offences += 1
        if source.offences >= MAX_OFFENCES:
            self._misbehaved(source, what, now)

    def _remember(self, cid: Cid, stats: tuple[SessionStats, ...]) -> None:
        self._recent.pop(cid, None)
        self._recent[cid] = stats
        if len(self._recent) > _REMEMBERED:
            del self._recent[next(iter(self._recent))]

    def _finish(self, goal: Goal, giver: Source | None, now: float) -> None:
        """*goal* is here or no longer wanted: take it off all lists."""
        del self._goals[goal.cid]
        freed = goal.asked
        if freed is not None:
            freed.settle(goal.cid, now)
            goal.asked = None
        for source in goal.told:
            if source is not giver and source.knows(goal.cid) and goal.cid not in self._roots:
                self._tell(source, goal.cid, Kind.CANCEL)
        for session in goal.sessions:
            session.drop(goal.cid)
        if freed is not None and freed is not giver:
            self._fill(freed, now)

    def _release(self, goal: Goal, now: float) -> None:
        """*goal* is asked of nobody now."""
        goal.asked = None
        for session in goal.sessions:
            session.note_released(goal)

    # --------------------------------------------------------------- asking

    def _fill_session(self, session: Session, now: float) -> None:
        if not session.unasked:
            return
        for source in sorted(session.sources, key=lambda source: -(source.rate or 0.0)):
            self._fill(source, now)
            if not session.unasked:
                return

    def _fill_crowded(self, now: float) -> None:
        if self._crowded and self._held < self._settings.total_bytes:
            crowded, self._crowded = self._crowded, {}
            for session in crowded:
                self._fill_session(session, now)

    def _fill(self, source: Source, now: float) -> None:
        """Ask *source* for as much as it should have outstanding, in turns for each session it takes part in."""
        if source.peer not in self._sources:
            return
        sessions = [session for session in self._sessions.values() if session.unasked and source in session.sources]
        while sessions:
            sessions = [session for session in sessions if self._ask_one(session, source, now)]

    def _ask_one(self, session: Session, source: Source, now: float) -> bool:
        if source.due >= self._window(source) or len(source.asks) >= session.max_asks() or source.list_room <= 0:
            return False
        if not self._has_room(session):
            return False
        goal = session.pick(source, now)
        if goal is None:
            return False
        self._ask(goal, source, session.block_bytes, now)
        return True

    def _window(self, source: Source) -> int:
        return min(source.window(self._settings.outstanding_bytes), 4 * self._settings.outstanding_bytes)

    def _has_room(self, session: Session) -> bool:
        used = session.held + session.under_way
        if used == 0:
            return True
        if used + session.block_bytes > self._settings.session_bytes:
            return False
        total = self._held + sum(source.outstanding for source in self._sources.values() if source.asks)
        if total + session.block_bytes > self._settings.total_bytes:
            self._crowded[session] = None
            return False
        return True

    def _ask(self, goal: Goal, source: Source, size: int, now: float) -> None:
        goal.asked = source
        goal.told.add(source)
        for session in goal.sessions:
            session.note_asked(goal)
        source.ask(goal.cid, size, goal.priority, now)
        self.news[source.peer] = None

    def _take_from(self, goal: Goal, now: float) -> None:
        """Withdraw *goal* from the peer it is asked of, which is late."""
        source = goal.asked
        if source is not None and source in goal.have:
            source.break_promise(now)
            goal.have.discard(source)
        self._withdraw(goal, now)

    def _withdraw(self, goal: Goal, now: float) -> None:
        """Ask nobody for *goal* now."""
        source = goal.asked
        if source is None:
            return
        source.settle(goal.cid, now)
        goal.told.discard(source)
        self._tell(source, goal.cid, Kind.CANCEL)
        self._release(goal, now)

    # ----------------------------------------------------------------- time

    def tick(self, now: float) -> None:
        """Notice what did not happen."""
        for source in list(self._sources.values()):
            if source.check_stall(now):
                self._move_from_stalled(source, now)
            elif source.check_recovery(now) or source.partial:
                self._fill(source, now)
        for session in list(self._sessions.values()):
            if session.asked:
                self._hurry(session, now)
            self._consider_search(session, now)
        for source in list(self._sources.values()):
            if source.broken_promises >= MAX_BROKEN_PROMISES and source.promises_broken_for(now) > PROMISE_S:
                self._misbehaved(source, "says it has blocks and does not send them", now)

    def _move_from_stalled(self, source: Source, now: float) -> None:
        """Ask others for what *source* owes; what nobody else may have stays asked of it."""
        sessions: dict[Session, None] = {}
        for cid in list(source.asks):
            goal = self._goals.get(cid)
            if goal is None or goal.asked is not source:
                source.settle(cid, now)
                continue
            if any(
                other is not source and not other.stalled and session.may_have(other, goal)
                for session in goal.sessions
                for other in session.sources
            ):
                self._take_from(goal, now)
            elif source in goal.have:
                source.break_promise(now)
            sessions.update(goal.sessions)
        for session in sessions:
            self._fill_session(session, now)

    def _hurry(self, session: Session, now: float) -> None:
        """Let peers that would be done sooner take over what is late elsewhere."""
        for source in list(session.sources):
            while not source.stalled and source.due < self._window(source):
                goal = session.pick_late(source, now)
                if goal is None:
                    break
                self._take_from(goal, now)
                self._ask(goal, source, session.block_bytes, now)

    def _consider_search(self, session: Session, now: float) -> None:
        """Look for peers while something can be asked of nobody."""
        if not session.orphans(1):
            session.starving_since = session.next_search = None
            session.searches = 0
            return
        if session.starving_since is None:
            session.starving_since = now
            session.next_search = now + self._settings.patience_s
            for source in list(self._sources.values()):
                if not self._is_shunned(source.peer, now):
                    self._probe(session, source)
        if session.next_search is not None and now >= session.next_search:
            self._search(session, now)

    def _search(self, session: Session, now: float) -> None:
        session.searches += 1
        session.next_search = now + min(
            self._settings.search_again_s, self._settings.patience_s * 2 ** min(session.searches, 16)
        )
        wanted = next(iter(session.urgent or session.unasked or session.asked), None)
        if wanted is not None:
            self.events.append(FindProviders(session.number, session.root if session.root is not None else wanted))
        # Whoever lacked it may have it now, and may have forgotten that we asked.
        for goal in session.window():
            goal.lacks.clear()
        for source in list(self._sources.values()):
            if self._is_shunned(source.peer, now):
                continue
            self._probe(session, source, again=True)
            if source.peer in session.hints and source in session.sources:
                session.join(source, full=True)
        self._fill_session(session, now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is due."""
        if any(session.asked for session in self._sessions.values()):
            return now + 0.1
        return min((session.next_search for session in self._sessions.values() if session.next_search), default=None)

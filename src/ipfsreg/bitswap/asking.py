"""The asking side of the exchange: which block is asked of which peer, and what is believed when it answers.

Every block is asked of one peer at a time, whatever number of sessions want it. The question moves when that peer says
DONT_HAVE, goes, falls silent, or turns out so slow that an idle one would be done much sooner; it is cancelled where it
was. So nothing waits for the slowest peer, and hardly anything comes twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from ipfsreg.bitswap.counters import Counters
from ipfsreg.bitswap.messages import MAX_PRIORITY, Entry
from ipfsreg.bitswap.recruiting import MAX_OFFENCES, FindProviders, Misbehaved, Recruiting, TryPeers
from ipfsreg.bitswap.session import LOTS, Goal, Session, draw, salt_of
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.bitswap.source import Kind, Source
from ipfsreg.bitswap.wanted import Wanted
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

TICK_S = 0.1
"""How often late peers are looked for while anything is asked."""

_LEAST_URGENT = MAX_PRIORITY // 2
"""Priorities below are of what no reader waits for."""


@dataclass(frozen=True, slots=True)
class Received:
    """A block that was wanted; verified."""

    sessions: tuple[int, ...]
    block: Block
    peer: PeerId


AskEvent = Received | Misbehaved | TryPeers | FindProviders


class Asking:
    """All we want, and of whom it is asked."""

    def __init__(self, own: PeerId, draw: Callable[[], float], settings: BitswapSettings) -> None:
        """*draw* gives random numbers in [0, 1)."""
        self._own_salt = salt_of(own)
        self._settings = settings
        self._wanted = Wanted(draw)
        self._recruiting = Recruiting(self._wanted, settings)
        self._next_number = 0
        self._crowded: dict[Session, None] = {}
        """Sessions that could ask for more but for the total."""
        self._last_giver: Source | None = None
        self.events: list[AskEvent] = []

    @property
    def counters(self) -> Counters:
        """What all sessions moved."""
        return self._wanted.counters

    @property
    def wants(self) -> int:
        """Blocks that are wanted of peers now."""
        return len(self._wanted.goals)

    @property
    def news(self) -> dict[PeerId, None]:
        """Peers that have to be told something; the caller takes it away."""
        return self._wanted.news

    # ---------------------------------------------------------------- peers

    def connected(self, peer: PeerId, now: float) -> None:
        """*peer* is there and speaks bitswap."""
        if peer not in self._wanted.sources:
            source = self._wanted.sources[peer] = Source(peer)
            self._recruiting.welcome(source, now)
            self._fill(source, now)

    def lost(self, peer: PeerId, now: float) -> None:
        """*peer* is gone; what was asked of it is asked of others."""
        source = self._wanted.sources.pop(peer, None)
        self.news.pop(peer, None)
        if source is None:
            return
        for goal in self._wanted.goals.values():
            goal.have.discard(source)
            goal.lacks.discard(source)
            goal.told.pop(source, None)
            if goal.asked is source:
                self._wanted.release(goal)
        for session in [session for session in self._wanted.sessions.values() if session.leave(source)]:
            self._fill_session(session, now)
            self._consider_search(session, now)

    def tell_again(self, peer: PeerId) -> None:
        """The stream to *peer* broke: what was said on it may be lost."""
        source = self._wanted.sources.get(peer)
        if source is not None and (source.listed or source.has_news):
            source.tell_all_again()
            self.news[peer] = None

    def take_news(self, peer: PeerId, now: float) -> tuple[list[Entry], bool]:
        """What *peer* is told now of our wants, and whether that is all of them."""
        source = self._wanted.sources.get(peer)
        return source.take_news(now) if source is not None and source.has_news else ([], False)

    def owes(self, peer: PeerId) -> bool:
        """Whether anything is asked of *peer*."""
        source = self._wanted.sources.get(peer)
        return source is not None and bool(source.asks)

    # ------------------------------------------------------------- sessions

    def open_session(
        self,
        root: Cid | None,
        first: Iterable[PeerId],
        *,
        dialled_late: Sequence[PeerId] = (),
        spread: bool,
        block_bytes: int,
        now: float,
    ) -> Session:
        """A new wanted set. *root* names the whole of which it is part: who has it, or wants it, takes part.

        *first* are said to have all of it; those of them that are *dialled_late* are when nobody else is found.
        """
        session = Session(self._next_number, self._own_salt, root, spread=spread, block_bytes=block_bytes, now=now)
        self._next_number += 1
        self._wanted.sessions[session.number] = session
        if root is not None:
            self._wanted.roots.setdefault(root, {})[session] = None
        session.hopes = tuple(peer for peer in dialled_late if peer not in self._wanted.sources)
        for peer in first:
            self.add_provider(session, peer, now)
        self._recruiting.announce(session, now)
        return session

    def close_session(self, session: Session, now: float) -> None:
        """Nothing of *session* is wanted any more."""
        self.forget(session, list(session.missing), now)
        del self._wanted.sessions[session.number]
        self._crowded.pop(session, None)
        self._wanted.held -= session.held
        session.held = 0
        self._wanted.forget_root(session)
        self._fill_crowded(now)

    def add_provider(self, session: Session, peer: PeerId, now: float) -> None:
        """*peer* is said to have what *session* wants, connected or not."""
        session.hints.add(peer)
        source = self._wanted.sources.get(peer)
        if source is not None:
            self._join(session, source, now)

    def want(self, session: Session, cids: Iterable[Cid], others: Mapping[PeerId, Sequence[Cid]], now: float) -> None:
        """Want *cids* too, in this order. *others* want some of them as well: they said so before we did."""
        self._entered(session, session.add([self._wanted.goal(session, cid) for cid in cids]))
        for peer, shared in others.items():
            self.receive_interest(peer, shared, now)
        self._guess(session, now)
        self._fill_session(session, now)
        self._consider_search(session, now)

    def _guess(self, session: Session, now: float) -> None:
        """A root of which nothing is known is asked of whoever gave us something last, at once and not after a HAVE.

        It gave us the manifest that names the root, or the record of it. A wrong guess costs a DONT_HAVE, a right one
        saves a round trip before the first byte.
        """
        source = self._last_giver
        if source is None or session.root not in session.unasked or session.sources:
            return
        if self._wanted.sources.get(source.peer) is source and not source.stalled:
            self._recruiting.join(session, source, full=True, now=now)

    def urge(self, session: Session, cids: Sequence[Cid], now: float) -> None:
        """A reader waits for *cids*, in this order, and no longer for others."""
        self._entered(session, session.urge(cids))
        if not session.in_company:
            # Where all readers are in a hurry none of them is: the giver's order would be no better than theirs.
            self._prioritise(session)
        self._fill_session(session, now)

    def _prioritise(self, session: Session) -> None:
        for place, goal in enumerate(session.urgent.values()):
            priority = MAX_PRIORITY - place
            if goal.priority < priority:
                # Said once, when it becomes urgent, and only where the peer has something less urgent to send before:
                # a question said again crosses the block on its way, and the block comes twice.
                is_news, goal.priority = goal.priority < _LEAST_URGENT, priority
                if goal.asked is not None and is_news and self._is_held_up(goal, goal.asked):
                    self._wanted.tell(goal.asked, goal.cid, Kind.WANT_BLOCK, priority)

    def _is_held_up(self, goal: Goal, source: Source) -> bool:
        """Whether *source* was asked for what no reader waits for before it was asked for *goal*."""
        ahead = takewhile(lambda cid: cid != goal.cid, source.asks)
        return any(self._wanted.goals[cid].priority < _LEAST_URGENT for cid in ahead)

    def forget(self, session: Session, cids: Iterable[Cid], now: float) -> None:
        """*session* does not want *cids* any more."""
        freed: dict[Source, None] = {}
        for cid in cids:
            goal = session.missing.get(cid)
            session.drop(cid)
            if goal is None:
                continue
            goal.sessions.pop(session, None)
            if not goal.sessions:
                self._wanted.remember(cid, ())
                source = self._wanted.finish(goal, None, now)
                if source is not None:
                    freed[source] = None
        self._entered(session, session.refill())
        for source in freed:
            self._fill(source, now)
        self._fill_session(session, now)

    def consumed(self, session: Session, size: int, now: float) -> None:
        """The reader of *session* took *size* bytes."""
        if session.number in self._wanted.sessions:
            session.held -= size
            self._wanted.held -= size
            self._fill_session(session, now)
            self._fill_crowded(now)

    def wanted_as(self, multihash: bytes) -> list[Cid]:
        """The CIDs under which the block *multihash* is wanted."""
        return self._wanted.wanted_as(multihash)

    def _entered(self, session: Session, goals: Iterable[Goal]) -> None:
        """Tell the partial peers of *session* what came into its window."""
        partial = [source for source, full in session.sources.items() if not full]
        if partial:
            for goal in goals:
                for source in partial:
                    self._wanted.advertise(source, goal)

    # -------------------------------------------------------------- answers

    def receive_interest(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* wants *cids*."""
        source = self._wanted.sources.get(peer)
        if source is not None:
            self._recruiting.notice_interest(source, cids, now)

    def receive_have(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* has *cids*."""
        source = self._wanted.sources.get(peer)
        if source is None or self._recruiting.is_shunned(peer, now):
            return
        for cid in cids:
            source.receive_answer(cid, now)
            if cid not in source.asks:
                source.struck(cid)
            for session in self._wanted.roots.get(cid, ()):
                if source not in session.sources:
                    # Of one that fetches too it says only that it has begun.
                    self._recruiting.join(session, source, full=True, now=now)
            goal = self._wanted.goals.get(cid)
            if goal is not None:
                self._note_have(goal, source, now)
        self._fill(source, now)

    def _note_have(self, goal: Goal, source: Source, now: float) -> None:
        goal.have.add(source)
        goal.lacks.discard(source)
        if goal.asked is not source:
            goal.told.pop(source, None)
        for session in goal.sessions:
            if source not in session.sources:
                self._recruiting.join(session, source, full=True, now=now)
            if goal.asked is not source:
                self._prefer_rarer(session, goal, now)
                self._relieve(session, goal, source, now)

    def _prefer_rarer(self, session: Session, goal: Goal, now: float) -> None:
        """One more peer has *goal*: if it is asked of one that has everything, ask that one for what only it has."""
        source = goal.asked
        if source is None or source.stalled or not session.sources.get(source) or source.is_sending(goal.cid):
            return
        if any(not session.copies(other) and session.may_have(source, other) for other in session.unasked.values()):
            self._wanted.withdraw(goal, now)
            self._fill(source, now)

    def _relieve(self, session: Session, goal: Goal, source: Source, now: float) -> None:
        """*source*, which fetches too, has *goal*: ask it instead of one that has everything, which all others ask.

        The more have it the fewer turn to the latest of them, so each of them is asked by an equal share.
        """
        holder = goal.asked
        if holder is None or not session.sources.get(holder) or session.sources.get(source) or source.stalled:
            return
        if holder.is_sending(goal.cid) or not self._has_time(source):
            return
        if draw(goal.draw, salt_of(source.peer) ^ self._own_salt) * len(goal.have) < LOTS:
            self._wanted.withdraw(goal, now)
            self._wanted.ask(goal, source, session.block_bytes, now)
            self._fill(holder, now)

    def receive_dont_have(self, peer: PeerId, cids: Iterable[Cid], now: float) -> None:
        """*peer* lacks *cids*; it remembers that we want them."""
        source = self._wanted.sources.get(peer)
        if source is None:
            return
        touched: dict[Session, None] = {}
        for cid in cids:
            source.receive_answer(cid, now)
            goal = self._wanted.goals.get(cid)
            if goal is None:
                continue
            goal.have.discard(source)
            goal.lacks.add(source)
            for session in goal.sessions:
                touched[session] = None
                if session.sources.get(source):
                    session.join(source, full=False)
                    self._recruiting.advertise_window(session, source)
            if goal.asked is source:
                source.settle(cid, now)
                self._wanted.release(goal)
                # It would send the block unasked when it gets it, by when another may have sent it.
                self._wanted.tell(source, cid, Kind.WANT_HAVE)
        for session in touched:
            self._fill_session(session, now)
            self._consider_search(session, now)

    def receive_bytes(self, peer: PeerId, count: int, now: float) -> None:
        """*count* bytes of blocks came from *peer*, whole or not."""
        source = self._wanted.sources.get(peer)
        if source is not None:
            source.receive_bytes(count, now)

    def receive_break(self, peer: PeerId) -> None:
        """What came of a block from *peer* is lost."""
        source = self._wanted.sources.get(peer)
        if source is not None:
            source.end_block()

    def receive_block(self, peer: PeerId, block: Block, now: float) -> None:
        """*peer* sent *block*; its hash was checked."""
        source = self._wanted.sources.get(peer)
        if source is None or self._recruiting.is_shunned(peer, now):
            return
        source.struck(block.cid)
        source.settle(block.cid, now)
        source.end_block()
        goal = self._wanted.goals.get(block.cid)
        if goal is None:
            self._receive_unwanted(source, block, now)
        else:
            source.deliver()
            self._last_giver = source
            self._wanted.counters.receive(len(block.data))
            sessions = tuple(goal.sessions)
            self._wanted.remember(block.cid, tuple(session.stats for session in sessions))
            freed = self._wanted.finish(goal, source, now)
            for session in sessions:
                self._wanted.deliver(session, block, source)
                self._recruiting.join(session, source, full=True, now=now)
                self._entered(session, session.refill())
            self.events.append(Received(tuple(session.number for session in sessions), block, peer))
            if freed is not None and freed is not source:
                self._fill(freed, now)
        self._fill(source, now)

    def receive_local(self, block: Block, now: float) -> tuple[int, ...]:
        """*block* came from elsewhere (our own store); return the sessions that wanted it."""
        goal = self._wanted.goals.get(block.cid)
        if goal is None:
            return ()
        sessions = tuple(goal.sessions)
        self._wanted.remember(block.cid, ())
        freed = self._wanted.finish(goal, None, now)
        for session in sessions:
            self._wanted.deliver(session, block, None)
            self._entered(session, session.refill())
        if freed is not None:
            self._fill(freed, now)
        return tuple(session.number for session in sessions)

    def _receive_unwanted(self, source: Source, block: Block, now: float) -> None:
        if block.cid in self._wanted.roots:
            # A small block comes instead of HAVE.
            for session in self._wanted.roots[block.cid]:
                self._recruiting.join(session, source, full=True, now=now)
        elif not self._wanted.count_duplicate(block):
            self.receive_offence(source.peer, "sent blocks that nobody asked for", now)

    def receive_offence(self, peer: PeerId, what: str, now: float) -> None:
        """*peer* did what no honest peer does: wrong bytes look like blocks that nobody asked for."""
        source = self._wanted.sources.get(peer)
        if source is not None:
            source.offences += 1
            if source.offences >= MAX_OFFENCES:
                self._throw_out(source, what, now)

    def _throw_out(self, source: Source, reason: str, now: float) -> None:
        self._recruiting.shun(source.peer, now)
        self.events.append(Misbehaved(source.peer, reason))
        self.lost(source.peer, now)

    # --------------------------------------------------------------- asking

    def _join(self, session: Session, source: Source, now: float) -> None:
        self._recruiting.join(session, source, full=True, now=now)
        self._fill(source, now)

    def _fill_session(self, session: Session, now: float) -> None:
        for source in sorted(session.sources, key=lambda source: -(source.rate or 0.0)):
            if not session.unasked:
                return
            self._fill(source, now)

    def _fill_crowded(self, now: float) -> None:
        if self._crowded and self._wanted.held < self._settings.total_bytes:
            crowded, self._crowded = self._crowded, {}
            for session in crowded:
                self._fill_session(session, now)

    def _fill(self, source: Source, now: float) -> None:
        """Ask *source* for as much as it should have outstanding, in turns for each session it takes part in."""
        if source.peer not in self._wanted.sources or not self._has_time(source):
            return
        asking = [one for one in self._wanted.sessions.values() if one.unasked and source in one.sources]
        asking.sort(key=lambda session: not session.is_urgent)
        while asking:
            asking = [session for session in asking if self._has_time(source) and self._ask_one(session, source, now)]

    def _has_time(self, source: Source) -> bool:
        return source.due < self._window(source) and source.list_room > 0

    def _window(self, source: Source) -> int:
        return min(source.window(self._settings.outstanding_bytes), 4 * self._settings.outstanding_bytes)

    def _ask_one(self, session: Session, source: Source, now: float) -> bool:
        if len(source.asks) >= session.max_asks or not self._has_room(session):
            return False
        goal = session.pick(source, now)
        if goal is None:
            return False
        self._wanted.ask(goal, source, session.block_bytes, now)
        sessions = self._wanted.sessions
        sessions[session.number] = sessions.pop(session.number)
        return True

    def _has_room(self, session: Session) -> bool:
        """Whether *session* may have one more block under way."""
        used = session.held + session.under_way
        if used == 0:
            return True
        if used + session.block_bytes > self._settings.session_bytes or session.is_guessing_too_much:
            return False
        total = self._wanted.held + sum(source.outstanding for source in self._wanted.sources.values())
        if total + session.block_bytes > self._settings.total_bytes:
            self._crowded[session] = None
            return False
        return True

    # ----------------------------------------------------------------- time

    def tick(self, now: float) -> None:
        """Notice what did not happen."""
        for source in list(self._wanted.sources.values()):
            if source.check_stall(now):
                self._move_from_stalled(source, now)
            elif source.check_recovery(now) or source.partial:
                self._fill(source, now)
        for session in list(self._wanted.sessions.values()):
            if session.asked:
                self._hurry(session, now)
            if session.unasked:
                # Whom _hurry relieved has time again, and nothing else may ever remind it.
                self._fill_session(session, now)
            self._consider_search(session, now)
        for source in list(self._wanted.sources.values()):
            if self._recruiting.judge(source, now):
                self._throw_out(source, "says it has blocks and does not send them", now)

    def _move_from_stalled(self, source: Source, now: float) -> None:
        """Ask others for what *source* owes; what nobody else may have stays asked of it."""
        sessions: dict[Session, None] = {}
        for cid in list(source.asks):
            goal = self._wanted.goals[cid]
            if any(
                other is not source and not other.stalled and session.may_have(other, goal)
                for session in goal.sessions
                for other in session.sources
            ):
                self._take_from_late(goal, now)
            elif source in goal.have:
                source.break_promise(now)
            sessions.update(goal.sessions)
        for session in sessions:
            self._fill_session(session, now)

    def _take_from_late(self, goal: Goal, now: float) -> None:
        """The peer *goal* is asked of is late: ask it no longer."""
        source = goal.asked
        if source is not None and source in goal.have:
            source.break_promise(now)
            goal.have.discard(source)
        self._wanted.withdraw(goal, now)

    def _hurry(self, session: Session, now: float) -> None:
        """Let peers that would be done sooner take over what is late elsewhere."""
        for source in list(session.sources):
            while not source.stalled and self._has_time(source):
                goal = session.pick_late(source, now)
                if goal is None:
                    break
                self._take_from_late(goal, now)
                self._wanted.ask(goal, source, session.block_bytes, now)

    def _consider_search(self, session: Session, now: float) -> None:
        sought = self._recruiting.consider_search(session, now)
        if sought is not None:
            self.events.append(sought)
            self._fill_session(session, now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is due."""
        sessions = self._wanted.sessions.values()
        if any(session.asked for session in sessions):
            return now + TICK_S
        due = [session.next_search for session in sessions if session.next_search is not None]
        if any(session.missing for session in sessions):
            due += [source.retry_at for source in self._wanted.sources.values() if source.stalled]
        return min(due, default=None)

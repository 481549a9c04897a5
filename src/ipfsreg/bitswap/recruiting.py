"""Who takes part: which peers a session asks, and where it looks for more.

A session's peers are those the caller names, those that say HAVE to its root or its blocks, and those that want the
same: they will soon have what we lack. Everybody connected is asked about the root of a session that spreads, and
about blocks nobody is known to have. When nobody near shows up, those are dialled that had it once; when these do not
either, content routing is asked.

Also who is kept out: a peer that lied.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipfsreg.bitswap.session import Session
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.bitswap.source import Kind, Source
from ipfsreg.bitswap.wanted import Wanted
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

MAX_SOURCES = 64
"""Peers one session asks; more would cost more in questions than they bring."""

MAX_OFFENCES = 3
"""Blocks nobody asked for, after which a peer is thrown out. Lost cancels cannot be the reason: those are known."""

MAX_BROKEN_PROMISES = 8
"""Blocks a peer said it has and did not send, with none that it did send between them."""

PROMISE_S = 20.0
"""And so many seconds without one. A peer whose link is crowded may be late, but not for ever."""

NEAR_S = 0.1
"""What connected peers may take to say that they have it before others are dialled: else a thousand nodes that pull the
same image would all dial the one that pushed it."""

SHUNNED_S = 300.0
_MAX_SHUNNED = 1024

_PROBED = 32
"""Blocks of which everybody is asked HAVE when nobody is known to have them."""


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


@dataclass(frozen=True, slots=True)
class TryPeers:
    """Nobody we are connected to has it, but *peers* may, who had it once: dial them."""

    peers: tuple[PeerId, ...]


class Recruiting:
    """Finds peers for sessions, and keeps liars out."""

    def __init__(self, wanted: Wanted, settings: BitswapSettings) -> None:
        self._wanted = wanted
        self._settings = settings
        self._shunned: dict[PeerId, float] = {}

    # --------------------------------------------------------------- coming in

    def welcome(self, source: Source, now: float) -> None:
        """*source* has just connected."""
        for session in self._wanted.sessions.values():
            if source.peer in session.hints:
                self.join(session, source, full=True, now=now)
            elif session.spread or session.starving_since is not None:
                self._probe(session, source, now)

    def announce(self, session: Session, now: float) -> None:
        """*session* has begun: find out who has it, or fetches it too."""
        if session.spread:
            for source in self._wanted.sources.values():
                if source not in session.sources:
                    self._probe(session, source, now)

    def join(self, session: Session, source: Source, *, full: bool, now: float) -> None:
        """*source* takes part in *session*; *full*: it is believed to have everything."""
        known = session.sources.get(source)
        if known:
            return
        if self.is_shunned(source.peer, now) or (known is None and len(session.sources) >= MAX_SOURCES):
            return
        full = full and not any(source in goal.lacks for goal in session.window())
        if known is None or full:
            session.join(source, full=full)
            if not full:
                self.advertise_window(session, source)

    def advertise_window(self, session: Session, source: Source) -> None:
        """Tell *source* all that *session* wants soon."""
        for goal in session.window():
            self._wanted.advertise(source, goal)

    def notice_interest(self, source: Source, cids: Iterable[Cid], now: float) -> None:
        """*source* wants *cids*: if we want them too, each of us will soon have what the other lacks."""
        goals, roots = self._wanted.goals, self._wanted.roots
        for cid in cids:
            goal = goals.get(cid)
            for session in (*(goal.sessions if goal else ()), *roots.get(cid, ())):
                if not session.spread:
                    continue
                if source not in session.sources:
                    self.join(session, source, full=False, now=now)
                elif session.sources[source]:
                    # It said HAVE to the root, which it had got a moment before.
                    session.join(source, full=False)
                    self.advertise_window(session, source)

    # ----------------------------------------------------------------- looking

    def _probe(self, session: Session, source: Source, now: float, *, again: bool = False) -> None:
        """Ask *source* whether it has what *session* looks for."""
        if self.is_shunned(source.peer, now):
            return
        wanted = self._wanted
        root = session.root
        if root is not None and (again or not source.knows(root)) and source.list_room > 0:
            goal = wanted.goals.get(root)
            if goal is None or goal.asked is not source:
                wanted.tell(source, root, Kind.WANT_HAVE)
                if goal is not None:
                    goal.told[source] = None
        if session.starving_since is None:
            return
        for goal in session.orphans(_PROBED):
            if (again or source not in goal.told) and source.list_room > 0 and source not in goal.have:
                goal.told[source] = None
                wanted.tell(source, goal.cid, Kind.WANT_HAVE)

    def consider_search(self, session: Session, now: float) -> TryPeers | FindProviders | None:
        """Look for peers while something can be asked of nobody; return who is to be dialled, or what content routing
        is to be asked."""
        if not session.orphans(1):
            session.starving_since = session.next_search = None
            session.searches = 0
            return None
        if session.starving_since is None:
            session.starving_since = now
            session.next_search = now + (
                min(NEAR_S, self._settings.patience_s) if session.hopes else self._settings.patience_s
            )
            for source in self._wanted.sources.values():
                self._probe(session, source, now)
        if session.next_search is None or now < session.next_search:
            return None
        if session.hopes:
            hopes, session.hopes = session.hopes, ()
            session.next_search = max(now, session.starving_since + self._settings.patience_s)
            return TryPeers(hopes)
        return self._search(session, now)

    def _search(self, session: Session, now: float) -> FindProviders | None:
        session.searches += 1
        pause = self._settings.patience_s * 2 ** min(session.searches, 16)
        session.next_search = now + min(self._settings.search_again_s, pause)
        # Whoever lacked it may have it now, and may have forgotten that we asked.
        for goal in session.window():
            goal.lacks.clear()
        for source in self._wanted.sources.values():
            self._probe(session, source, now, again=True)
            if source.peer in session.hints and source in session.sources:
                session.join(source, full=True)
        sought = session.root or next(iter(session.urgent or session.missing), None)
        return FindProviders(session.number, sought) if sought is not None else None

    # ---------------------------------------------------------------- liars

    def is_shunned(self, peer: PeerId, now: float) -> bool:
        """Whether *peer* was thrown out not long ago."""
        until = self._shunned.get(peer)
        if until is not None and until <= now:
            del self._shunned[peer]
        return peer in self._shunned

    def judge(self, source: Source, now: float) -> bool:
        """Whether *source* has broken too many promises."""
        return source.broken_promises >= MAX_BROKEN_PROMISES and source.promises_broken_for(now) > PROMISE_S

    def shun(self, peer: PeerId, now: float) -> None:
        """Take nothing of *peer* for a while."""
        while len(self._shunned) >= _MAX_SHUNNED:
            del self._shunned[next(iter(self._shunned))]
        self._shunned[peer] = now + SHUNNED_S

"""What waits to be written: announced tips, fetched nodes, writes of ours. Many tasks bring it, one writer takes it.

Whatever has gathered while the disk was busy goes into the next transaction together: that is the group commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import trio

from ipfsreg.crdt.claims import Claim
from ipfsreg.crdt.interface import Change
from ipfsreg.crdt.state import MAX_WANTED_TIPS, Arrival, VoidNode, Work
from ipfsreg.errors import StoreError

MAX_ARRIVALS = 256
MAX_COMMITS = 256
"""In one transaction, so that it stays short."""

MAX_WAITING_BYTES = 4 * 1024 * 1024
"""Fetched blocks that wait for the disk; whoever brings more waits."""


@dataclass(eq=False, slots=True)
class Commit:
    """A write of ours on its way to the disk."""

    changes: Sequence[Change]
    done: trio.Event = field(default_factory=trio.Event)
    error: StoreError | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """One transaction's worth."""

    work: Work
    commits: tuple[Commit, ...]

    def finish(self, error: StoreError | None = None) -> None:
        """Tell those who wait for their commits that they are durable, or why not."""
        for commit in self.commits:
            commit.error = error
            commit.done.set()
        for claim in self.work.claims:
            if error is not None and claim.loading is not None:
                claim.loading.failed = str(error)
            claim.done.set()


def _bytes_of(arrival: Arrival) -> int:
    return 0 if isinstance(arrival, VoidNode) else len(arrival.block.data)


class Intake:
    """The queue before the writer."""

    def __init__(self) -> None:
        self._tips: dict[bytes, None] = {}
        self._arrivals: dict[bytes, Arrival] = {}
        self._writing: dict[bytes, Arrival] = {}
        self._waiting_bytes = 0
        self._commits: list[Commit] = []
        self._claims: list[Claim] = []
        self._join_heads = False
        self._expire_tips = False
        self._again = True
        self._closed = False
        self._wake = trio.Event()
        self._room = trio.Event()

    def holds(self, multihash: bytes) -> bool:
        """Whether the node is on its way to the tables."""
        return multihash in self._arrivals or multihash in self._writing

    def add_tip(self, multihash: bytes) -> bool:
        """Remember an announced node. False: too many wait, it must be announced again."""
        if len(self._tips) >= MAX_WANTED_TIPS:
            return False
        self._tips[multihash] = None
        self._wake.set()
        return True

    @property
    def is_closed(self) -> bool:
        """Whether no more commits are taken."""
        return self._closed

    @property
    def is_empty(self) -> bool:
        """Whether every node that came is in the tables."""
        return not self._arrivals and not self._writing

    @property
    def has_tips(self) -> bool:
        """Whether announced nodes wait that no transaction has taken yet."""
        return bool(self._tips)

    async def add_arrival(self, arrival: Arrival) -> None:
        """Bring a fetched node; waits while the disk is behind."""
        while self._waiting_bytes > MAX_WAITING_BYTES:
            await self._room.wait()
        if not self.holds(arrival.multihash):
            self._arrivals[arrival.multihash] = arrival
            self._waiting_bytes += _bytes_of(arrival)
            self._wake.set()

    async def add_claim(self, claim: Claim) -> None:
        """Bring a step of a checkpoint. When it is durable, or never will be, `Claim.done` is set."""
        await trio.lowlevel.checkpoint()
        self._claims.append(claim)
        self._wake.set()

    def drop_claims(self) -> None:
        """Ask for the checkpoint that is here to be dropped."""
        self._claims.append(Claim(None))
        self._wake.set()

    async def commit(self, changes: Sequence[Change]) -> None:
        """Return when *changes* are durable.

        Raises:
            StoreError, StoreFull: nothing was written.

        Cancelled: all or nothing.
        """
        if self._closed:
            raise StoreError("the replica is closing")
        commit = Commit(changes)
        self._commits.append(commit)
        self._wake.set()
        await commit.done.wait()
        if commit.error is not None:
            raise commit.error

    def join_heads(self) -> None:
        """Ask for a node that joins all heads."""
        self._join_heads = True
        self._wake.set()

    def expire_tips(self) -> None:
        """Ask for tips to be given up that nobody announced since this was asked for last."""
        self._expire_tips = True
        self._wake.set()

    def again(self) -> None:
        """Ask for a transaction without work of its own: nodes are left to be closed."""
        self._again = True
        self._wake.set()

    def close(self) -> None:
        """Take no more commits; `take` returns None once all that waits is taken."""
        self._closed = True
        self._wake.set()

    async def take(self) -> Batch | None:
        """The next transaction's work, as soon as there is any; None after `close`. Ends with `taken_in`."""
        while not (
            self._tips
            or self._arrivals
            or self._commits
            or self._claims
            or self._join_heads
            or self._expire_tips
            or self._again
        ):
            if self._closed:
                return None
            self._wake = trio.Event()
            await self._wake.wait()
        tips, self._tips = list(self._tips), {}
        self._writing = dict(islice(self._arrivals.items(), MAX_ARRIVALS))
        for multihash in self._writing:
            del self._arrivals[multihash]
        commits, self._commits = self._commits[:MAX_COMMITS], self._commits[MAX_COMMITS:]
        claims, self._claims = self._claims[:1], self._claims[1:]
        work = Work(
            tips,
            list(self._writing.values()),
            [commit.changes for commit in commits],
            self._join_heads,
            expire_tips=self._expire_tips,
            claims=claims,
        )
        self._join_heads = self._expire_tips = self._again = False
        return Batch(work, tuple(commits))

    def taken_in(self, arrivals: Iterable[Arrival]) -> None:
        """The transaction with *arrivals* is over."""
        self._writing = {}
        self._waiting_bytes -= sum(map(_bytes_of, arrivals))
        self._room.set()
        self._room = trio.Event()

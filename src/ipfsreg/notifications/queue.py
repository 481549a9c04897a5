"""What was not delivered yet, of every endpoint: pushes, mounts and deletions on disk, pulls in memory.

    notifications   number, endpoint, event: rows of the embedded database, taken away when they were delivered

Pulls are many and nobody acts on a single one, so they cost no disk; what is told of them is what a restart leaves.
Both are bounded: beyond `max_queued` the oldest goes, and is counted.
"""

from __future__ import annotations

import itertools
import sqlite3
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import trio

from ipfsreg.database import Database

_STEPS = (
    """
    CREATE TABLE notifications (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        endpoint TEXT NOT NULL,
        event BLOB NOT NULL
    );
    CREATE INDEX notifications_by_endpoint ON notifications (endpoint, number)
    """,
)


@dataclass(frozen=True, slots=True)
class Batch:
    """Some of what waits, the oldest first. Deliver it and say `delivered`."""

    events: tuple[bytes, ...]
    numbers: tuple[int, ...]
    """Of those on disk."""
    pulls: int
    """How many are not."""


@dataclass(slots=True)
class Waiting:
    """One endpoint's queue."""

    max_queued: int
    pulls: deque[bytes] = field(default_factory=deque)
    on_disk: int = 0
    counted: int = 0
    """Which write to the database the number on disk is from."""
    dropped: int = 0
    """Events that found no room, and will not be told."""
    wake: trio.Event = field(default_factory=trio.Event)

    def __len__(self) -> int:
        return self.on_disk + len(self.pulls)


class Queue:
    """The queues of all endpoints."""

    def __init__(self, database: Database, waiting: dict[str, Waiting]) -> None:
        self._database = database
        self._writes = itertools.count(1)
        """Drawn from inside transactions: their order, in which what they found need not come back."""
        self.waiting: Mapping[str, Waiting] = waiting

    @classmethod
    async def open(cls, database: Database, rooms: Mapping[str, int]) -> Queue:
        """The queues of endpoints, by name, each with room for so many. What waits for others is forgotten.

        Raises:
            StoreError.
        """
        await database.prepare("notifications", _STEPS)
        rows = database.read("SELECT endpoint, count(*) FROM notifications GROUP BY endpoint").fetchall()
        waiting = {name: Waiting(room) for name, room in rooms.items()}
        gone = [(endpoint,) for endpoint, _ in rows if endpoint not in waiting]
        for endpoint, count in rows:
            if endpoint in waiting:
                waiting[endpoint].on_disk = count
        if gone:
            await database.write(
                lambda db: db.executemany("DELETE FROM notifications WHERE endpoint = ?", gone) and None
            )
        return cls(database, waiting)

    async def put(self, events: Sequence[tuple[str, bytes]]) -> None:
        """Keep *events*, each for an endpoint, in this order; on return they survive a power cut.

        Raises:
            StoreError: none was kept.
        """

        endpoints = {endpoint for endpoint, _ in events}

        def work(db: sqlite3.Connection) -> tuple[int, dict[str, tuple[int, int]]]:
            db.executemany("INSERT INTO notifications (endpoint, event) VALUES (?, ?)", events)
            return next(self._writes), {endpoint: self._make_room(db, endpoint) for endpoint in endpoints}

        number, found = await self._database.write(work)
        for endpoint, (dropped, left) in found.items():
            self._count(endpoint, number, left)
            self.waiting[endpoint].dropped += dropped
            self.waiting[endpoint].wake.set()

    def _count(self, endpoint: str, number: int, left: int) -> None:
        """Write *number* left so many on disk; a later one may have said so already."""
        waiting = self.waiting[endpoint]
        if number > waiting.counted:
            waiting.counted, waiting.on_disk = number, left

    def _make_room(self, db: sqlite3.Connection, endpoint: str) -> tuple[int, int]:
        """Take away what is too much, the oldest; return how many, and how many are left. In the writer thread."""
        count = _count_rows(db, endpoint)
        excess = max(0, count - self.waiting[endpoint].max_queued)
        if excess:
            db.execute(
                "DELETE FROM notifications WHERE number IN"
                " (SELECT number FROM notifications WHERE endpoint = ? ORDER BY number LIMIT ?)",
                (endpoint, excess),
            )
        return excess, count - excess

    def put_pull(self, endpoint: str, event: bytes) -> None:
        """Keep *event* until it is delivered or the node stops."""
        waiting = self.waiting[endpoint]
        if len(waiting.pulls) >= waiting.max_queued:
            waiting.pulls.popleft()
            waiting.dropped += 1
        waiting.pulls.append(event)
        waiting.wake.set()

    async def take(self, endpoint: str, limit: int) -> Batch:
        """Wait until something is there; up to *limit* events, the durable ones first. Raises StoreError."""
        waiting = self.waiting[endpoint]
        while True:
            waiting.wake = trio.Event()
            rows = self._database.read(
                "SELECT number, event FROM notifications WHERE endpoint = ? ORDER BY number LIMIT ?", (endpoint, limit)
            ).fetchall()
            if rows or waiting.pulls:
                break
            await waiting.wake.wait()
        pulls = [waiting.pulls[i] for i in range(min(limit - len(rows), len(waiting.pulls)))]
        return Batch(
            tuple(bytes(event) for _, event in rows) + tuple(pulls), tuple(number for number, _ in rows), len(pulls)
        )

    async def delivered(self, endpoint: str, batch: Batch) -> None:
        """Forget *batch*. Raises StoreError: then it is delivered again."""
        waiting = self.waiting[endpoint]
        for event in batch.events[len(batch.numbers) :]:
            # Where it is not the oldest any more, too many came and it was dropped meanwhile.
            if waiting.pulls and waiting.pulls[0] is event:
                waiting.pulls.popleft()
        if batch.numbers:
            rows = [(number,) for number in batch.numbers]

            def work(db: sqlite3.Connection) -> tuple[int, int]:
                db.executemany("DELETE FROM notifications WHERE number = ?", rows)
                return next(self._writes), _count_rows(db, endpoint)

            self._count(endpoint, *await self._database.write(work))


def _count_rows(db: sqlite3.Connection, endpoint: str) -> int:
    count: int = db.execute("SELECT count(*) FROM notifications WHERE endpoint = ?", (endpoint,)).fetchone()[0]
    return count

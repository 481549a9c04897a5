"""What we announce, and when: kept on disk, so that a restarted node goes on where it was.

The keyspace is a clock face: a hand goes round it once in the interval, and a root is announced when the hand passes
its position. So the work is spread evenly whatever was added when, and neighbours in the keyspace, whose announcements
go to the same peers, come up together. What was just added is announced at once; and where one is announced, its
neighbours that would be due soon are announced with it.

On disk: `dht_roots(position, key, due)`: the sha2-256 of the multihash, the multihash, seconds since 1970.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ipfsreg.database import Database
from ipfsreg.dht.keys import KEY_BITS, position_of

EARLY = 1 / 16
"""Of the interval: how long before its time a root may be announced together with a neighbour."""
SKIP = 1 / 8
"""Of the interval: the hand's next pass is left out when it comes this soon after an announcement."""
LONGEST = 1 + SKIP
"""Of the interval: no more lies between two announcements of one root."""

ROWS_AT_ONCE = 5000

_STEPS = [
    """
    CREATE TABLE dht_roots (position BLOB PRIMARY KEY, key BLOB NOT NULL, due REAL NOT NULL) WITHOUT ROWID;
    CREATE INDEX dht_roots_due ON dht_roots (due);
    """
]


def next_due(position: int, *, now: float, interval_s: float) -> float:
    """When a root announced *now* is to be announced again: the hand's next pass that is not too soon."""
    earliest = now + SKIP * interval_s
    pass_at = position / (1 << KEY_BITS) * interval_s
    return earliest + (pass_at - earliest) % interval_s


@dataclass(frozen=True, slots=True)
class Root:
    """Something we announce."""

    position: int
    key: bytes
    """The multihash."""


class ProvidedRoots:
    """The roots of one node. `prepare` comes first."""

    def __init__(self, database: Database, *, interval_s: float, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._interval_s = interval_s
        self._clock = clock

    async def prepare(self) -> None:
        """Make the table. Raises StoreError."""
        await self._database.prepare("dht.roots", _STEPS)
        latest = self._clock() + LONGEST * self._interval_s
        # Set under a clock that stood wrong, or under a longer interval.
        await self._database.write(
            lambda db: db.execute("UPDATE dht_roots SET due = ? WHERE due > ?", (self._clock(), latest)).rowcount
        )

    def has(self, key: bytes) -> bool:
        """Whether we announce the multihash *key*. Raises StoreError."""
        place = position_of(key).to_bytes(32, "big")
        return self._database.read("SELECT 1 FROM dht_roots WHERE position = ?", (place,)).fetchone() is not None

    def __len__(self) -> int:
        (count,) = self._database.read("SELECT COUNT(*) FROM dht_roots").fetchone()
        return int(count)

    async def add(self, keys: Iterable[bytes]) -> None:
        """Announce *keys* from now on; those that are announced already keep their time. Raises StoreError."""
        now = self._clock()
        rows = [(position_of(key).to_bytes(32, "big"), key, now) for key in keys]
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            await self._many("INSERT OR IGNORE INTO dht_roots VALUES (?, ?, ?)", part)

    async def remove(self, keys: Iterable[bytes]) -> None:
        """Announce *keys* no more. Raises StoreError."""
        await self._many(
            "DELETE FROM dht_roots WHERE position = ?", [(position_of(key).to_bytes(32, "big"),) for key in keys]
        )

    async def _many(self, sql: str, rows: Sequence[tuple[object, ...]]) -> None:
        def write(db: sqlite3.Connection) -> None:
            db.executemany(sql, rows)

        if rows:
            await self._database.write(write)

    def first_due(self) -> tuple[Root, float] | None:
        """The root to announce next, and when. Raises StoreError."""
        row = self._database.read("SELECT position, key, due FROM dht_roots ORDER BY due LIMIT 1").fetchone()
        return (Root(int.from_bytes(row[0], "big"), row[1]), row[2]) if row else None

    def due_within(self, prefix: int, bits: int) -> list[Root]:
        """Roots whose position begins with the first *bits* bits of *prefix* and that are due now or soon.

        At most ROWS_AT_ONCE: the rest of a large region is due still. Raises StoreError.
        """
        free = KEY_BITS - bits
        low = prefix >> free << free
        high = low + (1 << free) - 1
        rows = self._database.read(
            "SELECT position, key FROM dht_roots WHERE position BETWEEN ? AND ? AND due <= ? LIMIT ?",
            (
                low.to_bytes(32, "big"),
                high.to_bytes(32, "big"),
                self._clock() + EARLY * self._interval_s,
                ROWS_AT_ONCE,
            ),
        )
        return [Root(int.from_bytes(position, "big"), key) for position, key in rows]

    async def announced(self, roots: Sequence[Root]) -> None:
        """*roots* were announced now. Raises StoreError."""
        now = self._clock()
        await self._many(
            "UPDATE dht_roots SET due = ? WHERE position = ?",
            [
                (next_due(root.position, now=now, interval_s=self._interval_s), root.position.to_bytes(32, "big"))
                for root in roots
            ],
        )

    async def postpone(self, roots: Sequence[Root], delay_s: float) -> None:
        """Announcing *roots* failed; they are due again in *delay_s* seconds. Raises StoreError."""
        due = self._clock() + delay_s
        await self._many(
            "UPDATE dht_roots SET due = ? WHERE position = ?",
            [(due, root.position.to_bytes(32, "big")) for root in roots],
        )

    def now(self) -> float:
        """Seconds since 1970, on the clock the times are kept by."""
        return self._clock()

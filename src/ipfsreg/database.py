"""The embedded database of one node: SQLite in WAL mode, one writer, group commit, readers inline.

Why SQLite and why this shape: docs/decisions/0004-embedded-database.md.

Writes are functions from a connection to a result. All that are waiting when the disk becomes free run in one
transaction, each in its own savepoint, and one fsync makes them durable together; a function that raises undoes only
its own part. Reads go through `Database.read` on the trio thread: a point lookup costs microseconds, a thread switch
fifty, and WAL readers never wait for the writer.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import outcome
import trio

from ipfsreg.errors import StoreDamaged, StoreError, StoreFull
from ipfsreg.metrics import Histogram

T = TypeVar("T")

logger = logging.getLogger(__name__)

MAX_GROUP = 512
"""Writes in one transaction at the most, so that the first of them does not wait for a whole flood."""

MAX_WAL_BYTES = 64 * 1024 * 1024
"""What the write-ahead log is cut back to after a transaction that needed more."""

COMMIT_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
"""Bounds of the time for one transaction, its fsync included."""

_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE", "SQLITE_IOERR_SHMSIZE"}
_DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")


class Rows(Iterator[tuple[Any, ...]]):
    """The rows of one SELECT, all of them fetched already.

    Not a cursor: an unfinished cursor would hold the snapshot it began with, and every other read of this process
    would silently go on seeing that until it is exhausted.
    """

    def __init__(self, rows: list[tuple[Any, ...]]) -> None:
        self._rows = iter(rows)

    def __next__(self) -> tuple[Any, ...]:
        return next(self._rows)

    def fetchone(self) -> Any:
        """The next row, a tuple, or None behind the last."""
        return next(self._rows, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        """All rows that were not taken yet."""
        return list(self._rows)


@dataclass(slots=True, eq=False)
class _Write(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Value[T] | outcome.Error | None = None


class Snapshot:
    """What was committed when it was taken, read aside from the trio thread. Built only by `Database.snapshot`."""

    def __init__(self, db: sqlite3.Connection, database: Database) -> None:
        self._db = db
        self._database = database

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run *work*, which only reads, in a thread. Not to be cancelled in the middle: keep it short.

        Raises:
            StoreDamaged, StoreError.
        """
        try:
            result: T = await self._database._in_thread(lambda: work(self._db))
        except sqlite3.Error as error:
            raise self._database._named(error) from error
        return result


class Database:
    """One SQLite file. Built only by `open_database`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.damage: StoreDamaged | None = None
        """What was found wrong with the file. From then on nothing is written to it; what can be read still is."""
        self._writer = _connect(path)
        try:
            self._reader = _connect(path)
        except sqlite3.Error:
            self._writer.close()
            raise
        self._reader.execute("PRAGMA query_only = 1")
        self._aside: sqlite3.Connection | None = None
        self._aside_thread = trio.CapacityLimiter(1)
        self.commit_seconds = Histogram(COMMIT_SECONDS)
        self.writes = 0
        """Writes that were asked for and ran."""
        self.failed_commits = 0
        """Transactions that were lost, to a full disk for example."""
        self._generation = 0
        self._waiting: list[_Write[Any]] = []
        self._wake = trio.Event()
        self._closing = False

    @property
    def generation(self) -> int | None:
        """Another number after every transaction: what was read under one is still so while it stands.

        None while a transaction is being committed: readers may see what was before it, or what is after.
        """
        generation = self._generation
        return None if generation % 2 else generation

    def read(self, sql: str, parameters: Sequence[object] = ()) -> Rows:
        """Run one SELECT on what is committed. For point lookups and bounded scans: it runs on the trio thread.

        Raises:
            StoreDamaged, StoreError.
        """
        try:
            return Rows(self._reader.execute(sql, parameters).fetchall())
        except sqlite3.Error as error:
            raise self._named(error) from error

    async def count(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Run one SELECT beside everything else: a worker thread on a connection of its own, one at a time.

        For what walks over many rows and gives few. Raises StoreDamaged, StoreError.
        """

        def run() -> list[tuple[Any, ...]]:
            if self._aside is None:
                self._aside = _connect(self._path)
                self._aside.execute("PRAGMA query_only = 1")
            return self._aside.execute(sql, parameters).fetchall()

        try:
            return await trio.to_thread.run_sync(run, limiter=self._aside_thread)
        except sqlite3.Error as error:
            raise self._named(error) from error

    @property
    def waiting_writes(self) -> int:
        """Writes the disk has not come to yet."""
        return len(self._waiting)

    @property
    def log_bytes(self) -> int:
        """What the write-ahead log takes on the disk: more and more while a snapshot is held and others write."""
        try:
            return self._path.with_name(f"{self._path.name}-wal").stat().st_size
        except OSError:
            return 0

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Snapshot]:
        """For long reads: one state of the database while the block lasts. The log grows as long as others write.

        Raises:
            StoreDamaged, StoreError.
        """

        def begin() -> sqlite3.Connection:
            db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA query_only = 1")
            db.execute("BEGIN")
            return db

        try:
            db: sqlite3.Connection = await self._in_thread(begin)
        except sqlite3.Error as error:
            raise self._named(error) from error
        try:
            yield Snapshot(db, self)
        finally:
            db.close()

    async def compact(self) -> None:
        """Give the room of what was deleted back to the file system: rewrites the file. Nobody may write meanwhile.

        Raises:
            StoreFull: no room for the copy; nothing is lost.
            StoreDamaged, StoreError.
        """

        def rewrite() -> None:
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

        try:
            await self._in_thread(rewrite)
        except sqlite3.Error as error:
            raise self._named(error) from error

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await trio.to_thread.run_sync(work)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run *work* in the writer thread inside a transaction; on return its effect survives a power cut.

        *work* must not commit. What it raises comes out here, after its changes were undone. Writes run in the order
        in which they were asked for.

        Raises:
            StoreFull: no room on the disk; nothing was written. Others in the same transaction may fail with it.
            StoreDamaged, StoreError: nothing was written. A database once found damaged takes no more writes: they
                could spread the damage, and what they say could not be relied on.

        Cancelled: all or nothing. *work* does not run if the writer had not come to it, and may still be running if
        it had.
        """
        if self._closing:
            raise StoreError("the database is closing")
        if self.damage is not None:
            raise StoreDamaged(f"{self._path} is damaged and not written to; stop the node and run `ipfsreg repair`")
        write = _Write(work)
        self._waiting.append(write)
        self._wake.set()
        try:
            await write.done.wait()
        except trio.Cancelled:
            if write in self._waiting:
                self._waiting.remove(write)
            raise
        assert write.result is not None
        result: T = write.result.unwrap()
        return result

    async def prepare(self, part: str, steps: Sequence[str]) -> None:
        """Bring the tables of *part* up to date: run those of *steps* (SQL scripts) that have not run yet.

        Steps are appended over time and never changed.

        Raises:
            StoreError: the file was written by a newer version that has more steps.
        """

        try:
            row = self.read("SELECT steps FROM parts WHERE part = ?", (part,)).fetchone()
        except StoreError:
            row = None  # No such table yet; if it is worse, the write says so.
        if row is not None and row[0] == len(steps):
            return  # A full disk must not keep a node from starting: it can still serve.

        def migrate(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS parts (part TEXT PRIMARY KEY, steps INTEGER NOT NULL)")
            row = db.execute("SELECT steps FROM parts WHERE part = ?", (part,)).fetchone()
            done = row[0] if row else 0
            if done > len(steps):
                raise StoreError(f"the datastore was written by a newer ipfsreg ({part} step {done})")
            for step in steps[done:]:
                for statement in _statements(step):
                    db.execute(statement)
            db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (part, len(steps)))

        await self.write(migrate)

    async def _write_all(self) -> None:
        """Serve writes until closing, and those that are waiting then. Not to be cancelled."""
        # Its own thread slot: forty slow file reads elsewhere must not keep the disk from committing.
        thread = trio.CapacityLimiter(1)
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wake = trio.Event()
                await self._wake.wait()
                continue
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            began = time.perf_counter()
            results = await trio.to_thread.run_sync(self._run_group, group, limiter=thread)
            self.commit_seconds.observe(time.perf_counter() - began)
            self.writes += len(group)
            for write, result in zip(group, results, strict=True):
                write.result = result
                write.done.set()

    def _run_group(self, group: list[_Write[Any]]) -> list[outcome.Value[Any] | outcome.Error]:
        db = self._writer
        try:
            db.execute("BEGIN IMMEDIATE")
            results = [self._run_one(db, write.work) for write in group]
            self._generation += 1
            try:
                db.execute("COMMIT")
            finally:
                self._generation += 1
        except sqlite3.Error as error:
            # Nothing of the group remains, and whoever thinks it succeeded must learn that.
            self.failed_commits += 1
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [outcome.Error(self._named(error)) for _ in group]
        return results

    def _run_one(
        self, db: sqlite3.Connection, work: Callable[[sqlite3.Connection], T]
    ) -> outcome.Value[T] | outcome.Error:
        """Run *work* in a savepoint. Raises sqlite3.Error only if the whole transaction is lost."""
        db.execute("SAVEPOINT one")
        result: outcome.Value[T] | outcome.Error = outcome.capture(work, db)
        if isinstance(result, outcome.Error):
            error = result.error
            if isinstance(error, sqlite3.Error):
                # On some errors, a full disk first of all, SQLite itself rolls back everything, savepoints too.
                if not db.in_transaction:
                    raise error
                result = outcome.Error(self._named(error))
            db.execute("ROLLBACK TO one")
        db.execute("RELEASE one")
        return result

    def _named(self, error: sqlite3.Error) -> StoreError:
        """*error* as one of ours. Damage is remembered, and said loudly once."""
        named = _named(error, self._path)
        if isinstance(named, StoreDamaged) and self.damage is None:
            self.damage = named
            logger.critical("%s", named)
        return named

    def _close(self) -> None:
        if self._aside is not None:
            self._aside.close()
        self._reader.close()
        self._writer.close()


def _statements(script: str) -> Iterator[str]:
    """The statements of *script*; a semicolon inside a string or a trigger ends none."""
    statement = ""
    for piece in script.split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            if statement.strip(" \n\t;"):
                yield statement
            statement = ""
    if statement.strip(" \n\t;"):
        yield statement


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    try:
        (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise sqlite3.OperationalError(f"no write-ahead log on this file system, only {mode!r}")
        # FULL: the WAL is fsynced at every commit, which is what "acknowledged means durable" asks for.
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA busy_timeout = 10000")
        db.execute("PRAGMA cache_size = -8192")
        db.execute("PRAGMA temp_store = MEMORY")
        db.execute(f"PRAGMA journal_size_limit = {MAX_WAL_BYTES}")
    except sqlite3.Error:
        db.close()
        raise
    return db


def _named(error: sqlite3.Error, path: Path) -> StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name in _FULL:
        return StoreFull("no room left for the database")
    if name.startswith(_DAMAGED):
        return StoreDamaged(
            f"{path} is damaged ({error}); nothing more is written to it. Stop the node and run `ipfsreg repair`: that "
            'puts the file aside and keeps what can be trusted; see "A damaged database" in docs/operations.md'
        )
    return StoreError(f"database: {error} ({name})" if name else f"database: {error}")


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Open or create the database at *path* for as long as the block lasts; waiting writes are finished first.

    Also when the block is cancelled: what it writes while it ends, shielded, is still written.

    Raises:
        StoreDamaged: the file is not a database.
        StoreFull, StoreError: it cannot be opened.
    """
    try:
        database = Database(path)
    except sqlite3.Error as error:
        named = _named(error, path)
        raise named if isinstance(named, StoreDamaged) else type(named)(f"{path}: {named}") from error
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_shielded, database._write_all)
            try:
                yield database
            finally:
                database._closing = True
                database._wake.set()
    finally:
        database._close()


async def _shielded(run: Callable[[], Awaitable[None]]) -> None:
    with trio.CancelScope(shield=True):
        await run()

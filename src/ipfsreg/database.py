"""The embedded database of one node: SQLite in WAL mode, one writer, group commit, readers inline.

Why SQLite and why this shape: docs/decisions/0004-embedded-database.md.

Writes are functions from a connection to a result. All that are waiting when the disk becomes free run in one
transaction, each in its own savepoint, and one fsync makes them durable together; a function that raises undoes only
its own part. Reads go through `Database.read` on the trio thread: a point lookup costs microseconds, a thread switch
fifty, and WAL readers never wait for the writer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import outcome
import trio

from ipfsreg.errors import StoreDamaged, StoreError, StoreFull

T = TypeVar("T")

MAX_GROUP = 512
"""Writes in one transaction at the most, so that the first of them does not wait for a whole flood."""

_FULL = {"SQLITE_FULL", "SQLITE_IOERR_WRITE"}
_DAMAGED = {"SQLITE_CORRUPT", "SQLITE_NOTADB"}


@dataclass(slots=True, eq=False)
class _Write(Generic[T]):
    work: Callable[[sqlite3.Connection], T]
    done: trio.Event = field(default_factory=trio.Event)
    result: outcome.Value[T] | outcome.Error | None = None


class Database:
    """One SQLite file. Built only by `open_database`."""

    def __init__(self, path: Path) -> None:
        self._writer = _connect(path)
        self._reader = _connect(path)
        self._reader.execute("PRAGMA query_only = 1")
        self._waiting: list[_Write[Any]] = []
        self._wake = trio.Event()
        self._closing = False

    def read(self, sql: str, parameters: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one SELECT on what is committed. For point lookups and bounded scans: it runs on the trio thread."""
        return self._reader.execute(sql, parameters)

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run *work* in the writer thread inside a transaction; on return its effect survives a power cut.

        *work* must not commit. What it raises comes out here, after its changes were undone.

        Raises:
            StoreFull: no room on the disk; nothing was written.

        Cancelled: all or nothing; *work* may still run.
        """
        if self._closing:
            raise StoreError("the database is closing")
        write = _Write(work)
        self._waiting.append(write)
        self._wake.set()
        await write.done.wait()
        assert write.result is not None
        result: T = write.result.unwrap()
        return result

    async def prepare(self, part: str, steps: Sequence[str]) -> None:
        """Bring the tables of *part* up to date: run those of *steps* (SQL scripts) that have not run yet.

        Steps are appended over time and never changed.

        Raises:
            StoreError: the file was written by a newer version that has more steps.
        """

        def migrate(db: sqlite3.Connection) -> None:
            db.execute("CREATE TABLE IF NOT EXISTS parts (part TEXT PRIMARY KEY, steps INTEGER NOT NULL)")
            row = db.execute("SELECT steps FROM parts WHERE part = ?", (part,)).fetchone()
            done = row[0] if row else 0
            if done > len(steps):
                raise StoreError(f"the datastore was written by a newer ipfsreg ({part} step {done})")
            for step in steps[done:]:
                for statement in filter(str.strip, step.split(";")):
                    db.execute(statement)
            db.execute("INSERT OR REPLACE INTO parts VALUES (?, ?)", (part, len(steps)))

        await self.write(migrate)

    async def _write_all(self) -> None:
        while not (self._closing and not self._waiting):
            if not self._waiting:
                await self._wake.wait()
            self._wake = trio.Event()
            group, self._waiting = self._waiting[:MAX_GROUP], self._waiting[MAX_GROUP:]
            if not group:
                continue
            with trio.CancelScope(shield=True):
                results = await trio.to_thread.run_sync(self._run_group, group)
            for write, result in zip(group, results, strict=True):
                write.result = result
                write.done.set()

    def _run_group(self, group: list[_Write[Any]]) -> list[outcome.Value[Any] | outcome.Error]:
        db = self._writer
        results: list[outcome.Value[Any] | outcome.Error] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for write in group:
                db.execute("SAVEPOINT one")
                result = outcome.capture(write.work, db)
                if isinstance(result, outcome.Error):
                    if isinstance(result.error, sqlite3.Error):
                        result = outcome.Error(_named(result.error))
                    db.execute("ROLLBACK TO one")
                db.execute("RELEASE one")
                results.append(result)
            db.execute("COMMIT")
        except sqlite3.Error as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            return [outcome.Error(_named(error)) for _ in group]
        return results

    def _close(self) -> None:
        self._reader.close()
        self._writer.close()


def _connect(path: Path) -> sqlite3.Connection:
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, cached_statements=256)
    db.execute("PRAGMA journal_mode = WAL")
    # FULL: the WAL is fsynced at every commit, which is what "acknowledged means durable" asks for.
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA busy_timeout = 10000")
    db.execute("PRAGMA cache_size = -8192")
    db.execute("PRAGMA temp_store = MEMORY")
    return db


def _named(error: sqlite3.Error) -> StoreError:
    name = getattr(error, "sqlite_errorname", "")
    if name in _FULL:
        return StoreFull("no room left for the database")
    if name in _DAMAGED:
        return StoreDamaged(f"the database is damaged: {error}")
    return StoreError(f"database: {error} ({name})")


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Open or create the database at *path* for as long as the block lasts; waiting writes are finished first.

    Raises:
        StoreDamaged: the file is not a database.
    """
    try:
        database = Database(path)
    except sqlite3.Error as error:
        raise _named(error) from error
    async with trio.open_nursery() as nursery:
        nursery.start_soon(database._write_all)
        try:
            yield database
        finally:
            database._closing = True
            database._wake.set()
    database._close()

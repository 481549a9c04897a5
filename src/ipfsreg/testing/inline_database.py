"""A `Database` that writes on the spot instead of in a thread, so that a test's clock may jump and a crash be placed.

With `autojump_clock` trio takes a thread's work for idleness and lets time fly; here nothing ever waits for a thread.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import trio

from ipfsreg.database import Database, _Write
from ipfsreg.errors import StoreError

T = TypeVar("T")


class Crash(BaseException):
    """The power is gone. Not an Exception: nothing may catch it on the way out."""


class InlineDatabase(Database):
    """Runs each write in the calling task, durable against nothing."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._writer.execute("PRAGMA synchronous = OFF")
        self.writes = 0
        """Transactions so far."""
        self.crash_at: int | None = None
        """The transaction before which everything stops."""
        self.fail_with: StoreError | None = None
        """What writes raise, as long as it is set."""

    async def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        await trio.lowlevel.checkpoint()
        if self.writes == self.crash_at:
            raise Crash
        if self.fail_with is not None:
            raise self.fail_with
        self.writes += 1
        write = _Write(work)
        (result,) = self._run_group([write])
        value: T = result.unwrap()
        return value

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        await trio.lowlevel.checkpoint()
        return work()


@asynccontextmanager
async def open_inline_database(path: Path) -> AsyncIterator[InlineDatabase]:
    """As `open_database`."""
    database = InlineDatabase(path)
    try:
        yield database
    finally:
        database._close()

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.database import MAX_GROUP, Database, open_database
from ipfsreg.errors import StoreDamaged, StoreError, StoreFull

TABLE = ("CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL UNIQUE)",)


def note(text: str) -> Callable[[sqlite3.Connection], int]:
    def insert(db: sqlite3.Connection) -> int:
        row = db.execute("INSERT INTO notes (text) VALUES (?)", (text,)).lastrowid
        assert row is not None
        return row

    return insert


def notes(db: Database) -> list[str]:
    return [text for (text,) in db.read("SELECT text FROM notes ORDER BY id")]


class Gate:
    """A write that holds the writer thread until it is opened, and notes what SQL the transactions run."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._token = trio.lowlevel.current_trio_token()
        self._open = threading.Event()

    def __call__(self, db: sqlite3.Connection) -> None:
        self._token.run_sync_soon(self.entered.set)
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def test_what_was_written_is_read_and_outlives_closing(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        assert await db.write(note("one")) == 1
        assert notes(db) == ["one"]
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        assert notes(db) == ["one"]


async def test_a_write_that_raises_undoes_itself_and_nothing_else(tmp_path: Path) -> None:
    def half(db: sqlite3.Connection) -> None:
        note("half")(db)
        raise KeyError("in the middle")

    failures: list[BaseException] = []

    async def expect_failure(db: Database, work: Callable[[sqlite3.Connection], Any]) -> None:
        try:
            await db.write(work)
        except (KeyError, StoreError) as error:
            failures.append(error)

    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, gate)
            await gate.entered.wait()
            nursery.start_soon(db.write, note("one"))
            nursery.start_soon(expect_failure, db, half)
            await wait_all_tasks_blocked()
            nursery.start_soon(db.write, note("two"))
            await wait_all_tasks_blocked()
            nursery.start_soon(expect_failure, db, note("two"))
            await wait_all_tasks_blocked()
            gate.open()
        assert set(notes(db)) == {"one", "two"}
        assert {type(failure) for failure in failures} == {KeyError, StoreError}


async def test_all_waiting_writes_share_one_commit(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        commits: list[str] = []
        db._writer.set_trace_callback(lambda sql: commits.append(sql) if sql == "COMMIT" else None)
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, gate)
            await gate.entered.wait()
            for number in range(MAX_GROUP + 1):
                nursery.start_soon(db.write, note(str(number)))
            await wait_all_tasks_blocked()
            gate.open()
        assert len(commits) == 3, "the gate alone, a full group, and the one that was too many"
        assert len(notes(db)) == MAX_GROUP + 1


async def test_writes_run_in_the_order_of_asking(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, gate)
            await gate.entered.wait()
            for number in range(20):
                nursery.start_soon(db.write, note(str(number)))
                await wait_all_tasks_blocked()
            gate.open()
        assert notes(db) == [str(number) for number in range(20)]


async def test_a_cancelled_write_that_waits_never_runs(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, gate)
            await gate.entered.wait()
            with trio.CancelScope() as scope:
                scope.cancel()
                await db.write(note("cancelled"))
            assert scope.cancelled_caught
            gate.open()
        await db.write(note("after"))
        assert notes(db) == ["after"]


async def test_a_write_cancelled_while_it_runs_is_whole(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        gate = Gate()

        def slow(connection: sqlite3.Connection) -> None:
            note("first half")(connection)
            gate(connection)
            note("second half")(connection)

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(db.write, slow)
                await gate.entered.wait()
                scope.cancel()
        gate.open()
        await db.write(note("after"))
        assert notes(db) == ["first half", "second half", "after"]


async def test_closing_finishes_the_writes_that_wait(tmp_path: Path) -> None:
    async with trio.open_nursery() as outer:
        async with open_database(tmp_path / "db") as db:
            await db.prepare("notes", TABLE)
            gate = Gate()
            outer.start_soon(db.write, gate)
            await gate.entered.wait()
            outer.start_soon(db.write, note("late"))
            await wait_all_tasks_blocked()
            gate.open()
        with pytest.raises(StoreError, match="closing"):
            await db.write(note("too late"))
    async with open_database(tmp_path / "db") as db:
        assert notes(db) == ["late"]


async def test_cleanup_of_a_cancelled_block_can_still_write(tmp_path: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_database(tmp_path / "db") as db:
            await db.prepare("notes", TABLE)
            try:
                scope.cancel()
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    await db.write(note("goodbye"))
    async with open_database(tmp_path / "db") as db:
        assert notes(db) == ["goodbye"]


async def test_an_unfinished_read_does_not_freeze_what_others_see(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        for text in "abc":
            await db.write(note(text))
        rows = db.read("SELECT text FROM notes ORDER BY id")
        assert next(rows) == ("a",)
        await db.write(note("d"))
        assert notes(db) == ["a", "b", "c", "d"]
        assert rows.fetchone() == ("b",)
        assert rows.fetchall() == [("c",)]
        assert rows.fetchone() is None


async def test_reads_cannot_write(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        with pytest.raises(StoreError):
            db.read("INSERT INTO notes (text) VALUES ('sneaked in')")
        assert notes(db) == []


async def test_prepare_runs_each_step_once_and_refuses_a_newer_file(tmp_path: Path) -> None:
    more = (*TABLE, "ALTER TABLE notes ADD COLUMN mood TEXT DEFAULT 'a;b'; CREATE INDEX moods ON notes (mood)")
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        await db.write(note("one"))
        await db.prepare("notes", more)
        await db.prepare("notes", more)
        assert db.read("SELECT text, mood FROM notes").fetchall() == [("one", "a;b")]
        with pytest.raises(StoreError, match="newer"):
            await db.prepare("notes", TABLE)


async def test_a_failed_step_leaves_the_tables_as_they_were(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        with pytest.raises(StoreError):
            await db.prepare("notes", (*TABLE, "CREATE TABLE other (x); CREATE TABEL typo (x)"))
        assert db.read("SELECT name FROM sqlite_master WHERE name IN ('notes', 'other')").fetchall() == []
        await db.prepare("notes", TABLE)


async def test_a_trigger_is_one_statement(tmp_path: Path) -> None:
    trigger = """
        CREATE TRIGGER shout AFTER INSERT ON notes BEGIN
            UPDATE notes SET text = upper(new.text) WHERE id = new.id;
        END
    """
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", (*TABLE, trigger))
        await db.write(note("hush"))
        assert notes(db) == ["HUSH"]


async def test_what_is_no_database_is_called_damaged(tmp_path: Path) -> None:
    (tmp_path / "db").write_bytes(b"this is a letter to my aunt, not a database at all. " * 100)
    with pytest.raises(StoreDamaged):
        async with open_database(tmp_path / "db"):
            pass


async def test_a_damaged_page_is_called_damaged(tmp_path: Path) -> None:
    path = tmp_path / "db"
    async with open_database(path) as db:
        await db.prepare("notes", TABLE)
        for number in range(99):
            await db.write(note(f"{number:0900}"))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))
    async with open_database(path) as db:
        with pytest.raises(StoreDamaged):
            db.read("SELECT * FROM notes").fetchall()


async def test_a_damaged_database_is_written_to_no_more_and_still_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "db"
    async with open_database(path) as db:
        await db.prepare("notes", TABLE)
        await db.prepare("more", ["CREATE TABLE more (id INTEGER PRIMARY KEY)", "INSERT INTO more VALUES (7)"])
        for number in range(99):
            await db.write(note(f"{number:0900}"))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size - size // 2))
    async with open_database(path) as db:
        with pytest.raises(StoreDamaged, match=f"{path} is damaged .*ipfsreg repair"):
            db.read("SELECT * FROM notes").fetchall()
        assert db.read("SELECT id FROM more").fetchall() == [(7,)]
        with pytest.raises(StoreDamaged, match="not written to"):
            await db.write(note("after"))
        with pytest.raises(StoreDamaged):
            await db.count("SELECT * FROM notes")
        assert str(path) in str(db.damage)
    assert [record.levelname for record in caplog.records] == ["CRITICAL"], "said once"


async def test_a_directory_that_is_missing_is_a_store_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="open"):
        async with open_database(tmp_path / "nowhere" / "db"):
            pass


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """No file may grow beyond *size* bytes in this process: what the kernel answers then is no ENOSPC, but SQLite
    takes the same path through its code."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


async def test_a_full_disk_is_named_and_leaves_the_database_usable(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        await db.write(note("before"))
        with files_limited_to(1 << 20), pytest.raises(StoreFull):
            await db.write(note("x" * (4 << 20)))
        assert notes(db) == ["before"]
        await db.write(note("after"))
        assert notes(db) == ["before", "after"]


async def test_when_the_database_may_not_grow_every_write_of_the_group_learns_it(tmp_path: Path) -> None:
    outcomes: dict[str, BaseException | None] = {}

    async def attempt(db: Database, text: str) -> None:
        try:
            await db.write(note(text))
        except StoreError as error:
            outcomes[text[:5]] = error
        else:
            outcomes[text[:5]] = None

    async with open_database(tmp_path / "db") as db:
        await db.prepare("notes", TABLE)
        (pages,) = db._writer.execute("PRAGMA page_count").fetchone()
        db._writer.execute(f"PRAGMA max_page_count = {pages + 10}")
        gate = Gate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(db.write, gate)
            await gate.entered.wait()
            for text in ("small", "large" * 100_000, "later"):
                nursery.start_soon(attempt, db, text)
                await wait_all_tasks_blocked()
            gate.open()
        written = set(notes(db))
        for text, error in outcomes.items():
            assert (text in written) == (error is None)
        assert isinstance(outcomes["large"], StoreFull)
        await db.write(note("again"))
        assert "again" in notes(db)


ACKNOWLEDGE = """
import sys, trio
from pathlib import Path
from ipfsreg.database import open_database

async def main():
    async with open_database(Path(sys.argv[1])) as db:
        await db.prepare("n", ["CREATE TABLE n (n INTEGER PRIMARY KEY)"])
        async def one(number):
            await db.write(lambda c: c.execute("INSERT INTO n VALUES (?)", (number,)))
            print(number, flush=True)
        for start in range(0, 1_000_000, 10):
            async with trio.open_nursery() as nursery:
                for number in range(start, start + 10):
                    nursery.start_soon(one, number)

trio.run(main)
"""


async def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    child = await trio.lowlevel.open_process(
        [sys.executable, "-c", ACKNOWLEDGE, str(tmp_path / "db")], stdout=subprocess.PIPE
    )
    seen = b""
    assert child.stdout is not None
    with trio.fail_after(60):
        while seen.count(b"\n") < 200:
            seen += await child.stdout.receive_some()
        os.kill(child.pid, signal.SIGKILL)
        async for chunk in child.stdout:
            seen += chunk
        await child.wait()
    acknowledged = {int(line) for line in seen.split(b"\n")[:-1]}
    async with open_database(tmp_path / "db") as db:
        assert acknowledged <= {number for (number,) in db.read("SELECT n FROM n")}


async def test_what_was_read_under_a_generation_is_what_stands_there_while_it_does(tmp_path: Path) -> None:
    def put(number: int) -> Callable[[sqlite3.Connection], None]:
        def work(db: sqlite3.Connection) -> None:
            db.execute("UPDATE t SET n = ?", (number,))

        return work

    async with open_database(tmp_path / "db") as database:
        await database.prepare("t", ["CREATE TABLE t (n INTEGER); INSERT INTO t VALUES (0)"])
        seen: dict[int, int] = {}
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                for number in range(1, 60):
                    await database.write(put(number))
                nursery.cancel_scope.cancel()

            nursery.start_soon(write)
            while True:
                generation = database.generation
                number = database.read("SELECT n FROM t").fetchone()[0]
                if generation is not None and database.generation == generation:
                    assert seen.setdefault(generation, number) == number
                await trio.lowlevel.checkpoint()
        assert len(seen) > 10

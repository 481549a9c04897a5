"""Stories that are cut off before each durable step, by a real `kill -9`, and looked at afterwards.

    async def story(directory: Path, acknowledge: Callable[[str], None]) -> None: ...
    async def check(directory: Path, acknowledged: Sequence[str]) -> None: ...

    def test_it_survives(tmp_path):
        assert every_crash(story, check, tmp_path) > 10

The story runs in a process of its own, again and again from an empty directory: the first time that process is killed
just before its first durable step, then before its second, until a run gets through to the end. A durable step is
an fsync, a rename, an unlink or a commit of SQLite. After every run the check sees the directory and what had been
acknowledged until then, in another new process; it raises AssertionError if a promise was broken.

With `power_cut` the kernel's memory is lost too: files are emptied unless they were fsynced, renames undone unless
their directory was. (SQLite's own files are left alone: what it fsyncs happens inside it.)
"""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import trio

Story = Callable[[Path, Callable[[str], None]], Awaitable[None]]
Check = Callable[[Path, Sequence[str]], Awaitable[None]]


def every_crash(story: Story, check: Check, directory: Path, *, power_cut: bool = False) -> int:
    """Crash *story* before each of its durable steps; return how many there were.

    Both are functions of a module that can be loaded from its file. *directory* is used for the runs.

    Raises:
        AssertionError: a check failed, or the story itself; with what it said.
    """
    command = [sys.executable, "-m", __name__, inspect.getfile(story), story.__name__, check.__name__, str(directory)]
    result = subprocess.run([*command, "power cut"] if power_cut else command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout)


class _Steps:
    """Counts durable steps in this process, notes those that were taken, and kills it before the fatal one."""

    def __init__(self, fatal: int, journal: int) -> None:
        self._fatal = fatal
        self._journal = journal
        self._count = 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self._count += 1
            if self._count == self._fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    def _note(self, *words: object) -> None:
        os.write(self._journal, "\0".join(map(str, words)).encode() + b"\n")

    def install(self) -> None:
        """Stand before the functions that make things durable."""
        real_fsync, real_rename, real_unlink = os.fsync, os.rename, os.unlink
        steps = self

        def fsync(file: int) -> None:
            steps()
            real_fsync(file)
            steps._note("synced", os.fstat(file).st_ino)

        def rename(source: Any, target: Any) -> None:
            steps()
            real_rename(source, target)
            steps._note("renamed", source, target, os.stat(os.path.dirname(target)).st_ino)

        def unlink(path: Any) -> None:
            steps()
            real_unlink(path)

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
                if sql == "COMMIT":
                    steps()
                return super().execute(sql, *args)

        real_connect = sqlite3.connect

        def connect(*args: Any, **options: Any) -> sqlite3.Connection:
            connection: sqlite3.Connection = real_connect(*args, factory=Connection, **options)
            return connection

        for module, name, function in (
            (os, "fsync", fsync),
            (os, "fdatasync", fsync),
            (os, "rename", rename),
            (os, "replace", rename),
            (os, "unlink", unlink),
            (sqlite3, "connect", connect),
        ):
            setattr(module, name, function)


def _in_child(run: Callable[[], None]) -> int:
    """Run *run* in a forked process; return its wait status. This process has one thread, so forking is safe."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:  # the child of a fork must end here, whatever happened
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    return os.waitpid(pid, 0)[1]


def _run_story(story: Story, fatal: int, place: Path, said: Path, journal: Path) -> bool:
    """Whether the story was cut off. Raises AssertionError: it failed by itself."""

    def run() -> None:
        acknowledged = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        _Steps(fatal, os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)).install()

        def acknowledge(line: str) -> None:
            os.write(acknowledged, line.encode() + b"\n")

        trio.run(story, place, acknowledge)

    status = _in_child(run)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return True
    assert status == 0, f"the story failed by itself at step {fatal}"
    return False


def _cut_power(place: Path, journal: Path) -> None:
    """Take away from the directory what need not have reached the disk."""
    entries = [line.split("\0") for line in journal.read_text().splitlines()] if journal.exists() else []
    for number, words in reversed(list(enumerate(entries))):
        if words[0] == "renamed":
            _, source, target, parent = words
            was_synced = ["synced", parent] in entries[number + 1 :]
            if not was_synced and os.path.exists(target):
                os.rename(target, source)
    synced = {words[1] for words in entries if words[0] == "synced"}
    for path in place.rglob("*"):
        if path.is_file() and not _is_database(path) and str(path.stat().st_ino) not in synced:
            os.truncate(path, 0)


def _is_database(path: Path) -> bool:
    with path.open("rb") as file:
        return path.name.endswith(("-wal", "-shm")) or file.read(15) == b"SQLite format 3"


def _main(file: str, story_name: str, check_name: str, directory: str, *options: str) -> None:
    spec = importlib.util.spec_from_file_location("crashing_story", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["crashing_story"] = module
    spec.loader.exec_module(module)
    story: Story = getattr(module, story_name)
    check: Check = getattr(module, check_name)
    for step in itertools.count(1):
        run = Path(directory) / f"crash-{step}"
        place, said, journal = run / "place", run / "said", run / "journal"
        place.mkdir(parents=True)
        crashed = _run_story(story, step, place, said, journal)
        if crashed and options:
            _cut_power(place, journal)
        acknowledged = said.read_text().splitlines() if said.exists() else []
        status = _in_child(lambda place=place, acknowledged=acknowledged: trio.run(check, place, acknowledged))  # type: ignore[misc]
        assert status == 0, f"a promise was broken by a crash before step {step}; acknowledged was {acknowledged}"
        shutil.rmtree(run)
        if not crashed:
            print(step - 1)
            return


if __name__ == "__main__":
    _main(*sys.argv[1:])

"""A peer of another implementation in a process of its own, driven by JSON lines (see the programs in tests/interop/).

    async with open_peer_process("kubo", [program, …]) as process:
        await process.call("dial", addr=…)
        event = await process.wait_event("message", topic="names")

The process is killed with the block; a test that fails shows what the peer wrote to stderr.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

REPOSITORY = Path(__file__).resolve().parents[3]
INSTALLED = REPOSITORY / ".cache" / "interop"
PROGRAMS = REPOSITORY / "tests" / "interop"

START_S = 60.0
CALL_S = 60.0
KEPT_BYTES = 16 * 1024
"""Of what it wrote to stderr."""


class PeerFailed(AssertionError):
    """The peer answered with an error, did not answer in time, or ended."""


class PeerProcess:
    """A running peer: calls go down, events come up. Built only by `open_peer_process`."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.events: list[dict[str, Any]] = []
        """Everything it told without being asked, in order."""
        self.stderr = bytearray()
        self._process = process
        self._answers: dict[int, dict[str, Any]] = {}
        self._called = 0
        self._ended = False
        self._news = trio.Event()

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    async def call(self, command: str, *, timeout_s: float = CALL_S, **arguments: Any) -> Any:
        """Let it do *command* and return the result. Many tasks may call at once.

        Raises:
            PeerFailed: an error is its answer, or there was none within *timeout_s* seconds.
        """
        self._called += 1
        number = self._called
        line = json.dumps({"id": number, "do": command, **arguments}) + "\n"
        assert self._process.stdin is not None
        # A whole line even when cancelled: half a line would spoil the next one.
        with trio.CancelScope(shield=True):
            await self._process.stdin.send_all(line.encode())
        await self._wait(lambda: number in self._answers, command, timeout_s)
        answer = self._answers.pop(number)
        if "error" in answer:
            raise PeerFailed(f"{self.name}: {command}: {answer['error']}")
        return answer["result"]

    async def wait_event(self, event: str, *, timeout_s: float = CALL_S, **expected: Any) -> dict[str, Any]:
        """Return the first event of this kind with these values, also one that is past. Raises PeerFailed."""

        def found() -> dict[str, Any] | None:
            for one in self.events:
                if one["event"] == event and all(one.get(key) == value for key, value in expected.items()):
                    return one
            return None

        await self._wait(lambda: found() is not None, f"{event} {expected}", timeout_s)
        first = found()
        assert first is not None
        return first

    async def _wait(self, condition: Any, what: str, timeout_s: float) -> None:
        with trio.move_on_after(timeout_s):
            while not condition():
                if self._ended:
                    raise PeerFailed(f"{self.name} ended before {what}")
                self._news = self._news if not self._news.is_set() else trio.Event()
                await self._news.wait()
            return
        raise PeerFailed(f"{self.name}: nothing of {what} within {timeout_s:.0f} s")

    async def _read_answers(self) -> None:
        assert self._process.stdout is not None
        rest = bytearray()
        async for data in self._process.stdout:
            rest += data
            *lines, rest = rest.split(b"\n")
            for line in lines:
                message = json.loads(line)
                if "id" in message:
                    self._answers[message["id"]] = message
                else:
                    self.events.append(message)
            self._news.set()
        self._ended = True
        self._news.set()

    async def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        async for data in self._process.stderr:
            self.stderr += data
            del self.stderr[:-KEPT_BYTES]


def check_installed(name: str, *paths: Path) -> None:
    """Raise PeerFailed unless what *name* needs is there. Never a skip: a peer nobody tried is a test that failed."""
    for path in paths:
        if not path.exists():
            raise PeerFailed(f"{name} is not installed ({path} is missing): scripts/setup --dev does that")


@asynccontextmanager
async def open_peer_process(
    name: str, command: Sequence[str], environment: Mapping[str, str] | None = None
) -> AsyncIterator[PeerProcess]:
    """Start *command*, with *environment* besides ours, and wait until it is ready. Raises PeerFailed."""
    check_installed(name, Path(command[0]))
    async with trio.open_nursery() as nursery:
        run = partial(
            trio.run_process,
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
            env=os.environ | (environment or {}),
            # It keeps nothing that must be closed in order: it dies at once.
            deliver_cancel=_kill,
        )
        process: trio.Process = await nursery.start(run)
        peer = PeerProcess(name, process)
        nursery.start_soon(peer._read_answers)
        nursery.start_soon(peer._read_stderr)
        try:
            await peer.wait_event("ready", timeout_s=START_S)
            yield peer
        except BaseException as error:  # raised again, with what the peer said
            error.add_note(f"---- the last of {name}'s stderr\n{peer.stderr.decode(errors='replace')}")
            raise
        nursery.cancel_scope.cancel()


async def _kill(process: trio.Process) -> None:
    process.kill()

"""Where connections wait for their next request: all of a server's in one epoll, with one task for them.

Each on its own would cost two calls of the kernel and a turn of the scheduler for every request, which is more than a
remembered answer costs in all. Here one turn looks at all that have something to say: who asks what was answered before
has the answer at once, and stays; of all others their own task is woken, with the bytes it waited for.

A connection stays in the epoll while its task is at work, for most say nothing meanwhile. One that does, a push for
example, is taken out at the first byte and comes in again when it waits again.
"""

from __future__ import annotations

import select
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import outcome
import trio

_AT_ONCE = 64
"""Connections attended to before other tasks have their turn: a millisecond at the most, of answers that are ready."""


class Guest(Protocol):
    """A connection, as the lobby sees it."""

    waiting: trio.lowlevel.Task | None
    """The task that waits here for it. The lobby's."""

    def fileno(self) -> int: ...

    def attend(self, now: float) -> bytes | None:
        """Read what has come and answer it, if that can be done at once.

        Returns:
            None: nothing more to do; else what its task shall go on with.

        Raises: whatever its task shall see.
        """


class Lobby:
    """Built only by `open_lobby`."""

    def __init__(self, epoll: select.epoll) -> None:
        self._epoll = epoll
        self._guests: dict[int, Guest] = {}

    async def wait(self, guest: Guest) -> bytes:
        """Wait until there is something for the task of *guest* to do. Raises what `Guest.attend` raises."""
        descriptor = guest.fileno()
        if descriptor not in self._guests:
            self._epoll.register(descriptor, select.EPOLLIN)
            self._guests[descriptor] = guest
        guest.waiting = trio.lowlevel.current_task()

        def leave(_: object) -> trio.lowlevel.Abort:
            guest.waiting = None
            return trio.lowlevel.Abort.SUCCEEDED

        data: bytes = await trio.lowlevel.wait_task_rescheduled(leave)
        return data

    def forget(self, guest: Guest) -> None:
        """*guest* is about to close its descriptor."""
        self._show_out(guest.fileno())

    async def run(self) -> None:
        """Attend to whoever has something to say, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            self.look()

    def look(self, at_once: int = _AT_ONCE) -> None:
        """Attend to up to *at_once* of those who have something to say."""
        now = trio.current_time()
        for descriptor, _ in self._epoll.poll(0, at_once):
            self._attend(self._guests[descriptor], now)

    def _attend(self, guest: Guest, now: float) -> None:
        task = guest.waiting
        if task is None:
            self._show_out(guest.fileno())
            return
        result: outcome.Value[bytes] | outcome.Error
        try:
            data = guest.attend(now)
            if data is None:
                return
            result = outcome.Value(data)
        except Exception as error:  # Whatever it was, it is the matter of that one connection, whose task tells of it.
            result = outcome.Error(error)
        guest.waiting = None
        trio.lowlevel.reschedule(task, result)

    def _show_out(self, descriptor: int) -> None:
        if self._guests.pop(descriptor, None) is not None:
            self._epoll.unregister(descriptor)


@contextmanager
def open_lobby() -> Iterator[Lobby]:
    """A lobby for as long as the block lasts; it has to be `run`."""
    with select.epoll() as epoll:
        try:
            yield Lobby(epoll)
        finally:
            trio.lowlevel.notify_closing(epoll.fileno())

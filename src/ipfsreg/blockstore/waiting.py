"""Tasks that wait: for a range of a blob that is arriving, or for their turn with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import trio

from ipfsreg.errors import IpfsregError

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True, eq=False)
class _Waiter:
    start: int
    end: int
    woken: trio.Event = field(default_factory=trio.Event)
    failure: IpfsregError | None = None


class RangeWaiters:
    """Who waits for which bytes. One wake-up for each reader, when all of its range is here."""

    def __init__(self, has_range: Callable[[int, int], bool]) -> None:
        self._has_range = has_range
        self._waiting: list[_Waiter] = []
        self.failure: IpfsregError | None = None
        """Why nothing more will come. May be set back to None: it is tried again."""

    async def wait(self, start: int, end: int) -> None:
        """Return when [start, end) is here; raise the failure if it will not come."""
        await trio.lowlevel.checkpoint()
        if self._has_range(start, end):
            return
        failure = self.failure
        if failure is None:
            waiter = _Waiter(start, end)
            self._waiting.append(waiter)
            try:
                await waiter.woken.wait()
            finally:
                if waiter in self._waiting:
                    self._waiting.remove(waiter)
            failure = waiter.failure
        if failure is not None:
            # A new object for each reader: one exception raised in many tasks would collect all their tracebacks.
            raise type(failure)(*failure.args)

    def arrived(self, start: int, end: int) -> None:
        """Bytes of [start, end) have come."""
        for waiter in self._waiting[:]:
            if waiter.start < end and start < waiter.end and self._has_range(waiter.start, waiter.end):
                self._waiting.remove(waiter)
                waiter.woken.set()

    def fail(self, failure: IpfsregError) -> None:
        """Nothing more will come: whoever waits, now or later, gets *failure*."""
        self.failure = failure
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            waiter.failure = failure
            waiter.woken.set()


class Turns(Generic[K]):
    """One lock for each key that somebody holds or waits for."""

    def __init__(self) -> None:
        self._locks: dict[K, tuple[trio.Lock, int]] = {}

    @asynccontextmanager
    async def alone(self, key: K) -> AsyncIterator[None]:
        """Hold *key* while the block lasts."""
        lock, users = self._locks.get(key) or (trio.Lock(), 0)
        self._locks[key] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(key)
            if users > 1:
                self._locks[key] = (lock, users - 1)

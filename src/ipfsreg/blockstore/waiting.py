"""Readers that wait for a range of a blob that is arriving."""

from __future__ import annotations

from collections.abc import Callable

import trio

from ipfsreg.errors import IpfsregError


class RangeWaiters:
    """Who waits for which bytes. One wake-up for each reader, when all of its range is here."""

    def __init__(self, has_range: Callable[[int, int], bool]) -> None:
        self._has_range = has_range
        self._waiting: dict[trio.Event, tuple[int, int]] = {}
        self.failure: IpfsregError | None = None
        """Why nothing more will come."""

    async def wait(self, start: int, end: int) -> None:
        """Return when [start, end) is here; raise `failure` if it will not come."""
        await trio.lowlevel.checkpoint()
        if self._has_range(start, end):
            return
        if self.failure is None:
            event = trio.Event()
            self._waiting[event] = (start, end)
            try:
                await event.wait()
            finally:
                self._waiting.pop(event, None)
            if self._has_range(start, end):
                return
        assert self.failure is not None
        # A new object for each reader: one exception raised in many tasks would collect all their tracebacks.
        raise type(self.failure)(*self.failure.args)

    def arrived(self, start: int, end: int) -> None:
        """Bytes of [start, end) have come."""
        woken = [
            event
            for event, (first, last) in self._waiting.items()
            if first < end and start < last and self._has_range(first, last)
        ]
        for event in woken:
            del self._waiting[event]
            event.set()

    def fail(self, failure: IpfsregError) -> None:
        """Nothing more will come: whoever waits, now or later, gets *failure*."""
        self.failure = failure
        for event in self._waiting:
            event.set()
        self._waiting.clear()

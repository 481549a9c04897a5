"""How many bytes may be held for a purpose at a time."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Allowance:
    """Bytes that may be held at a time; who asks for more waits, first come first served."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold *size* bytes while the block lasts. More than the limit is granted when nothing else is held.

        Where there is room it is no checkpoint: in a turn of the scheduler a fast peer sends a quarter of a megabyte,
        which is copied once more where nobody waits for it.
        """
        turn = (size, trio.Event())
        self._waiting.append(turn)
        self._grant()
        try:
            if not turn[1].is_set():
                await turn[1].wait()
            yield
        finally:
            if turn[1].is_set():
                self._held -= size
            else:
                self._waiting.remove(turn)
            self._grant()

    def _grant(self) -> None:
        while self._waiting and (not self._held or self._held + self._waiting[0][0] <= self._limit):
            size, granted = self._waiting.popleft()
            self._held += size
            granted.set()

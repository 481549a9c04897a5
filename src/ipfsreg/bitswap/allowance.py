"""How many bytes may be held for a purpose at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio


class Allowance:
    """Bytes that may be held at a time; who asks for more waits, in order."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held = 0
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def held(self) -> int:
        """Bytes held now."""
        return self._held

    @asynccontextmanager
    async def hold(self, size: int) -> AsyncIterator[None]:
        """Hold *size* bytes while the block lasts. More than the limit is granted when nothing else is held."""
        while self._held and (self._held + size > self._limit):
            await self._waiting.park()
        self._held += size
        try:
            yield
        finally:
            self._held -= size
            self._waiting.unpark_all()

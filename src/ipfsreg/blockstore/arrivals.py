"""News of blocks that became available, for many readers, each at its own pace."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import contextmanager

import trio


class ArrivalReader(AsyncIterator[frozenset[bytes]]):
    """Iterates over sets of multihashes, for ever. One task at a time."""

    def __init__(self) -> None:
        self._waiting: set[bytes] = set()
        self._wake = trio.Event()

    def push(self, multihashes: Iterable[bytes]) -> None:
        """Add to what the reader gets next."""
        self._waiting.update(multihashes)
        if self._waiting:
            self._wake.set()

    async def __anext__(self) -> frozenset[bytes]:
        await trio.lowlevel.checkpoint_if_cancelled()
        if not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        taken, self._waiting = frozenset(self._waiting), set()
        return taken


class ArrivalFeed:
    """All the readers."""

    def __init__(self) -> None:
        self._readers: list[ArrivalReader] = []

    def publish(self, multihashes: Iterable[bytes]) -> None:
        """Tell every reader."""
        if self._readers:
            arrived = frozenset(multihashes)
            for reader in self._readers:
                reader.push(arrived)

    @contextmanager
    def reader(self) -> Iterator[ArrivalReader]:
        """A reader of what is published while the block lasts."""
        reader = ArrivalReader()
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

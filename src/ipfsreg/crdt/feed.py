"""News of changed keys for many readers, each at its own pace.

A reader that is slow costs one entry per changed key, not one per change: what it has not taken is folded.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from ipfsreg.crdt.interface import KeyChanged

if TYPE_CHECKING:
    from collections.abc import Iterator


class ChangeReader(AsyncIterator[KeyChanged]):
    """Iterates over the changes below some prefixes, for ever. One task at a time."""

    def __init__(self, prefixes: Iterable[str]) -> None:
        self._prefixes = tuple(prefixes)
        self._waiting: dict[str, KeyChanged] = {}
        self._wake = trio.Event()

    def push(self, change: KeyChanged) -> None:
        """Take in one change. What returns to the value the reader last saw is no news any more."""
        if not change.key.startswith(self._prefixes):
            return
        before = self._waiting.pop(change.key, None)
        folded = change if before is None else KeyChanged(change.key, before.old, change.new)
        if folded.old != folded.new:
            self._waiting[change.key] = folded
            self._wake.set()

    async def __anext__(self) -> KeyChanged:
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        return self._waiting.pop(next(iter(self._waiting)))


class ChangeFeed:
    """All the readers."""

    def __init__(self) -> None:
        self._readers: list[ChangeReader] = []

    def publish(self, changes: Iterable[KeyChanged]) -> None:
        """Tell every reader, in the order given."""
        for change in changes:
            for reader in self._readers:
                reader.push(change)

    @contextmanager
    def reader(self, prefixes: Iterable[str]) -> Iterator[ChangeReader]:
        """A reader of what is published while the block lasts."""
        reader = ChangeReader(prefixes)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

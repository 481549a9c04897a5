"""`MemoryNames`: the `Names` promises in a dictionary, for tests and as the reference.

Give several replicas the same history with `receive`: it applies changes as if a peer had made them.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from ipfsreg.crdt.feed import ChangeFeed
from ipfsreg.crdt.interface import Change, Delete, KeyChanged, Put
from ipfsreg.crdt.keys import check_changes
from ipfsreg.ipld.cid import DAG_PB, Cid


class MemoryNames:
    """Keeps `Names` as long as the process lives."""

    def __init__(self) -> None:
        self._values: dict[str, bytes] = {}
        self._keys: list[str] = []
        self._head: Cid | None = None
        self._heads_had: set[Cid] = set()
        self._changed = trio.Event()
        self._feed = ChangeFeed()

    def get(self, key: str) -> bytes | None:
        return self._values.get(key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> list[tuple[str, bytes]]:
        # Python compares strings by code point, which is the byte order of their UTF-8.
        start = max(bisect_left(self._keys, prefix), bisect_right(self._keys, after) if after else 0)
        found: list[tuple[str, bytes]] = []
        for key in self._keys[start:]:
            if not key.startswith(prefix) or (limit is not None and len(found) >= limit):
                break
            found.append((key, self._values[key]))
        return found

    async def commit(self, changes: Sequence[Change]) -> tuple[Cid, ...]:
        check_changes(changes)
        await trio.lowlevel.checkpoint()
        self.receive(changes)
        return self.heads()

    def receive(self, changes: Sequence[Change]) -> None:
        """Apply *changes* at once, as if they had come from a peer."""
        applied = [self._apply(change) for change in changes if isinstance(change, Put) or change.key in self._values]
        if applied:
            before = bytes(self._head) if self._head else b""
            self._head = Cid.of(DAG_PB, before + repr(applied).encode())
            self._heads_had.add(self._head)
            self._changed.set()
            self._changed = trio.Event()
        self._feed.publish(change for change in applied if change.old != change.new)

    def _apply(self, change: Change) -> KeyChanged:
        old = self._values.get(change.key)
        if isinstance(change, Delete):
            del self._values[change.key]
            self._keys.remove(change.key)
            return KeyChanged(change.key, old, None)
        if old is None:
            insort(self._keys, change.key)
        self._values[change.key] = change.value
        return KeyChanged(change.key, old, change.value)

    def heads(self) -> tuple[Cid, ...]:
        return (self._head,) if self._head else ()

    async def wait_merged(self, heads: Sequence[Cid]) -> None:
        await trio.lowlevel.checkpoint()
        while not self._heads_had.issuperset(heads):
            await self._changed.wait()

    @asynccontextmanager
    async def changes(self, prefixes: Iterable[str] = ("/",)) -> AsyncIterator[AsyncIterator[KeyChanged]]:
        with self._feed.reader(prefixes) as reader:
            yield reader

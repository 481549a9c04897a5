"""`MemoryNames`: the `Names` promises in a dictionary, for tests and as the reference.

Give several replicas the same history with `receive`: it applies changes as if a peer had made them.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left, bisect_right, insort
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager

import trio

from ipfsreg.crdt.feed import ChangeFeed
from ipfsreg.crdt.interface import Change, Delete, KeyChanged, Put
from ipfsreg.crdt.keys import check_changes
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.peer_id import PeerId


class MemoryNames:
    """Keeps `Names` as long as the process lives."""

    def __init__(self, author: PeerId | None = None) -> None:
        """*author*: of all that stands here."""
        self.author = author
        """Who signs, as far as readers can tell."""
        self._values: dict[str, bytes] = {}
        self._keys: list[str] = []
        self._versions: dict[str, list[tuple[bytes, bytes]]] = {}
        """Version and value of each write that a key rests on, the latest last."""
        self._head: Cid | None = None
        self._heads_had: set[Cid] = set()
        self._changed = trio.Event()
        self._feed = ChangeFeed()
        self.generation: int | None = 0

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

    def versions(self, key: str) -> frozenset[bytes]:
        return frozenset(version for version, _ in self._versions.get(key, ()))

    def authors(self, key: str) -> tuple[PeerId, ...]:
        return (self.author,) if self.author is not None and key in self._values else ()

    def ends_in(self, mark: str, ending: str, db: sqlite3.Connection | None = None) -> bool:
        return any(key.endswith(mark + ending) for key in list(self._keys))

    def ending_in(self, mark: str, ending: str, limit: int) -> list[str]:
        return [key for key in self._keys if key.endswith(mark + ending)][:limit]

    async def commit(self, changes: Sequence[Change]) -> tuple[Cid, ...]:
        check_changes(changes)
        await trio.lowlevel.checkpoint()
        self.receive(changes)
        return self.heads()

    def receive(self, changes: Sequence[Change]) -> None:
        """Apply *changes* at once, as if they had come from a peer."""
        self.generation = (self.generation or 0) + 1
        changes = [change for change in changes if isinstance(change, Put) or self._removed(change)]
        applied: list[KeyChanged] = []
        if changes:
            before = bytes(self._head) if self._head else b""
            self._head = Cid.of(DAG_PB, before + repr(changes).encode())
            self._heads_had.add(self._head)
            applied = [self._apply(change, self._head.multihash) for change in changes]
            self._changed.set()
            self._changed = trio.Event()
        self._feed.publish(change for change in applied if change.old != change.new)

    def _removed(self, change: Delete) -> frozenset[bytes]:
        there = self.versions(change.key)
        return there if change.versions is None else there & change.versions

    def _apply(self, change: Change, version: bytes) -> KeyChanged:
        old = self._values.get(change.key)
        if isinstance(change, Put):
            self._versions.setdefault(change.key, []).append((version, change.value))
        else:
            removed = self._removed(change)
            self._versions[change.key] = [one for one in self._versions[change.key] if one[0] not in removed]
        left = self._versions[change.key]
        if not left:
            del self._versions[change.key], self._values[change.key]
            self._keys.remove(change.key)
            return KeyChanged(change.key, old, None)
        if old is None:
            insort(self._keys, change.key)
        self._values[change.key] = left[-1][1]
        return KeyChanged(change.key, old, left[-1][1])

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

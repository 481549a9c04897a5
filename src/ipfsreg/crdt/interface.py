"""What the replicated name store promises to the registry."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class Put:
    """Set *key* (a go-datastore path in normal form) to *value* (never empty)."""

    key: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove *key*: every version of it this replica has seen, or only some."""

    key: str
    versions: frozenset[bytes] | None = None
    """As `Names.versions` told them. What was written since stays, also what a peer writes meanwhile; None: all."""


Change = Put | Delete


@dataclass(frozen=True, slots=True)
class KeyChanged:
    """A key's visible value changed, by our write or a peer's; None is absence. Sent after it is durable."""

    key: str
    old: bytes | None
    new: bytes | None


class Names(Protocol):
    """A replicated map from paths to bytes. Safe from many tasks at once."""

    @property
    def generation(self) -> int | None:
        """Another number whenever any name may have changed: what was read under one is still so while it stands.

        None while names are about to change: nothing can be said of what is read now.
        """

    def get(self, key: str) -> bytes | None:
        """The current value. Answers from the local replica, without waiting."""

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> list[tuple[str, bytes]]:
        """Up to *limit* entries whose key begins with *prefix*, in byte order of the keys, those > *after*."""

    def versions(self, key: str) -> frozenset[bytes]:
        """The writes that *key* rests on, each by the multihash of its node; a write of the same value adds another.

        Empty where there is no such key. Only a deletion that knows all of them makes the key go.
        """

    def authors(self, key: str) -> tuple[PeerId, ...]:
        """Who signed the latest of the writes that *key* rests on, the latest first, each once.

        Empty where there is no such key, and where nobody signed them: those of an epoch's first nodes, and those that
        a checkpoint speaks of while their nodes are on their way.
        """

    def ends_in(self, mark: str, ending: str, db: sqlite3.Connection | None = None) -> bool:
        """Whether there is a key that ends with *mark* and then *ending*, by an index.

        *mark* is one of those the store of names was opened with. *db*: what the transaction in it sees, as part of
        work given to `write` of the same `Database`; None: what is committed.
        """

    def ending_in(self, mark: str, ending: str, limit: int) -> list[str]:
        """Up to *limit* of the keys that `ends_in` asks for."""

    async def commit(self, changes: Sequence[Change]) -> tuple[Cid, ...]:
        """Apply *changes* as one delta, durably; return the heads that contain it. Gossip follows behind.

        At most one change per key. Concurrent commits may travel in one delta.
        """

    def heads(self) -> tuple[Cid, ...]:
        """The closed heads of the DAG, by CID."""

    async def wait_merged(self, heads: Sequence[Cid]) -> None:
        """Return once all that lies at or below *heads* counts here, at once if it does. May wait for ever.

        Nothing is fetched for it: heads become known by gossip alone, so a stranger's CIDs cost nothing.
        """

    def changes(self, prefixes: Iterable[str] = ("/",)) -> AbstractAsyncContextManager[AsyncIterator[KeyChanged]]:
        """While the block lasts, iterate over changes below *prefixes*.

        What a slow reader has not taken is folded per key (first old, last new).
        """

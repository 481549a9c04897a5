"""The tables of elements, tombstones and current values: the merge, one node at a time.

    crdt_elements    every value a counting node set, by key, priority and node
    crdt_tombstones  what was removed, and which node removed it
    crdt_names       the winner of each key: what `get` and `scan` answer from
    crdt_early       keys touched by nodes that count before all below them is known; gone once the node is closed

Rows name nodes by their number in crdt_nodes. A tombstone may come before the element it removes, so it may give a
number to a node nobody has seen. Everything here runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

from ipfsreg.crdt.delta import Delta, Tombstone, block_id, multihash_of_id
from ipfsreg.crdt.interface import KeyChanged
from ipfsreg.crdt.keys import end_of_prefix
from ipfsreg.crdt.merge import values_by_key
from ipfsreg.crdt.writers import EVERYBODY, Writers
from ipfsreg.database import Database
from ipfsreg.peer_id import PeerId

SCHEMA = """
CREATE TABLE crdt_elements (
    key TEXT NOT NULL, priority INTEGER NOT NULL, node INTEGER NOT NULL, value BLOB NOT NULL,
    PRIMARY KEY (key, priority, node)
) WITHOUT ROWID;
CREATE TABLE crdt_tombstones (
    key TEXT NOT NULL, node INTEGER NOT NULL, by INTEGER NOT NULL,
    PRIMARY KEY (key, node, by)
) WITHOUT ROWID;
CREATE TABLE crdt_names (
    key TEXT PRIMARY KEY, priority INTEGER NOT NULL, value BLOB NOT NULL
) WITHOUT ROWID;
CREATE TABLE crdt_early (
    node INTEGER NOT NULL, key TEXT NOT NULL,
    PRIMARY KEY (node, key)
) WITHOUT ROWID
"""

WITHHOLDING = """
ALTER TABLE crdt_elements ADD COLUMN withheld INTEGER NOT NULL DEFAULT 0;
ALTER TABLE crdt_tombstones ADD COLUMN withheld INTEGER NOT NULL DEFAULT 0;
CREATE INDEX crdt_withheld ON crdt_elements (key) WHERE withheld = 1
"""
"""Elements and tombstones that the rules on writers keep from counting (writers.py)."""

_UNBURIED = "NOT EXISTS (SELECT 1 FROM crdt_tombstones AS t WHERE t.key = e.key AND t.node = e.node AND t.withheld = 0)"

_LIVE_IDS = (
    "SELECT multihash FROM crdt_elements AS e JOIN crdt_nodes ON number = e.node"  # noqa: S608 (constants)
    f" WHERE e.key = ? AND {_UNBURIED} ORDER BY e.withheld DESC, e.priority, e.value"
)

_EARLY_IDS = (
    "SELECT multihash FROM crdt_elements AS e JOIN crdt_early AS y ON y.node = e.node AND y.key = e.key"  # noqa: S608
    f" JOIN crdt_nodes ON number = e.node WHERE e.key = ? AND {_UNBURIED} ORDER BY e.priority, e.value"
)

# The primary key delivers elements by priority; only equal priorities are sorted by value.
_WINNER = (
    "SELECT e.priority, e.value FROM crdt_elements AS e"  # noqa: S608 (constants)
    f" WHERE e.key = ? AND e.withheld = 0 AND {_UNBURIED} ORDER BY e.priority DESC, e.value DESC LIMIT 1"
)


class Entries:
    """The entries within one transaction; collects which visible values it changed."""

    def __init__(self, db: sqlite3.Connection, number_of: Callable[[bytes], int], writers: Writers = EVERYBODY) -> None:
        self._db = db
        self._number_of = number_of
        self._writers = writers
        self._before: dict[str, bytes | None] = {}
        self._any_early: bool | None = None
        self.keys_added = 0
        """How many more keys are present than before; negative for fewer."""
        self.withheld: list[tuple[str, int]] = []
        """Keys that the rules did not let change, each with the number of the node that tried."""

    def merge(self, node: int, delta: Delta, author: PeerId | None, *, early: bool) -> None:
        """Let node number *node* by *author* count. *early*: it may still turn out that it must not."""
        removed_from = self._bury(node, delta.tombstones, author)
        values = values_by_key(delta)
        for key, value in values.items():
            # Where the rules let an author count below some heads only, those heads are not closed yet: else this
            # node, which is below them, had been here before. They are looked at again when they are.
            withheld = not self._writers.allow(key, author)
            self._db.execute(
                "INSERT OR IGNORE INTO crdt_elements VALUES (?, ?, ?, ?, ?)",
                (key, delta.priority, node, value, withheld),
            )
            if withheld:
                self.withheld.append((key, node))
            elif key not in removed_from:
                self._challenge(key, delta.priority, node, value)
        for key in removed_from:
            self._recompute(key)
        if early:
            touched = removed_from | values.keys()
            self._db.executemany("INSERT OR IGNORE INTO crdt_early VALUES (?, ?)", [(node, key) for key in touched])

    def confirm(self, node: int) -> None:
        """What was merged early counts for good."""
        self._db.execute("DELETE FROM crdt_early WHERE node = ?", (node,))

    def withdraw(self, node: int, priority: int) -> None:
        """Take back what was merged early, as if it had never been here."""
        keys = [key for (key,) in self._db.execute("SELECT key FROM crdt_early WHERE node = ?", (node,))]
        for key in keys:
            self._db.execute(
                "DELETE FROM crdt_elements WHERE key = ? AND priority = ? AND node = ?", (key, priority, node)
            )
            self._db.execute("DELETE FROM crdt_tombstones WHERE key = ? AND by = ?", (key, node))
            self._recompute(key)
        self.confirm(node)

    def tombstones_for(self, key: str) -> list[Tombstone]:
        """What removes every version of *key* that is live here, those that are withheld too; the winner comes last."""
        rows = self._db.execute(_LIVE_IDS, (key,))
        return [Tombstone(key, block_id(multihash)) for (multihash,) in rows]

    def early_tombstones_for(self, key: str) -> list[Tombstone]:
        """What removes the versions of *key* that count before all below them is known."""
        if self._any_early is None:
            self._any_early = self._db.execute("SELECT 1 FROM crdt_early LIMIT 1").fetchone() is not None
        if not self._any_early:
            return []
        rows = self._db.execute(_EARLY_IDS, (key,))
        return [Tombstone(key, block_id(multihash)) for (multihash,) in rows]

    def changes(self) -> list[KeyChanged]:
        """The keys whose visible value is another one than when the transaction began."""
        changed = []
        for key, old in self._before.items():
            row = self._current(key)
            new = row[1] if row else None
            if new != old:
                changed.append(KeyChanged(key, old, new))
        return changed

    def reconsider(self, counts: Callable[[str, bytes | None, int], bool]) -> None:
        """Judge everything anew: *counts* tells of a key, an author and the number of a node. Reads all rows."""
        touched: set[str] = set()
        for table, node in (("crdt_elements", "node"), ("crdt_tombstones", "by")):
            identity = "key, priority, node" if table == "crdt_elements" else "key, node, by"
            columns = ", ".join(f"{table}.{column}" for column in identity.split(", "))
            rows = self._db.execute(
                f"SELECT {columns}, withheld, author, number FROM {table} JOIN crdt_nodes ON number = {table}.{node}"  # noqa: S608 (constants)
            )
            changed = []
            for *row, withheld, author, number in rows:
                if counts(row[0], author, number) == bool(withheld):
                    changed.append((not withheld, *row))
            where = " AND ".join(f"{column} = ?" for column in identity.split(", "))
            self._db.executemany(f"UPDATE {table} SET withheld = ? WHERE {where}", changed)  # noqa: S608 (constants)
            touched.update(key for _, key, *_ in changed)
        for key in touched:
            self._recompute(key)

    def _bury(self, by: int, tombstones: tuple[Tombstone, ...], author: PeerId | None) -> set[str]:
        keys = set()
        for tombstone in tombstones:
            removed = self._number_of(multihash_of_id(tombstone.id))
            withheld = not self._writers.allow(tombstone.key, author)
            self._db.execute(
                "INSERT OR IGNORE INTO crdt_tombstones VALUES (?, ?, ?, ?)", (tombstone.key, removed, by, withheld)
            )
            if withheld:
                self.withheld.append((tombstone.key, by))
            keys.add(tombstone.key)
        return keys

    def _challenge(self, key: str, priority: int, node: int, value: bytes) -> None:
        """Make a new element the winner if it beats the present one; the usual case costs two lookups."""
        current = self._current(key)
        if current is not None and (priority, value) <= current:
            return
        buried = self._db.execute(
            "SELECT 1 FROM crdt_tombstones WHERE key = ? AND node = ? AND withheld = 0 LIMIT 1", (key, node)
        )
        if buried.fetchone() is None:
            self._show(key, current, (priority, value))

    def _recompute(self, key: str) -> None:
        winner = self._db.execute(_WINNER, (key,)).fetchone()
        self._show(key, self._current(key), winner)

    def _current(self, key: str) -> tuple[int, bytes] | None:
        row: tuple[int, bytes] | None = self._db.execute(
            "SELECT priority, value FROM crdt_names WHERE key = ?", (key,)
        ).fetchone()
        return row

    def _show(self, key: str, old: tuple[int, bytes] | None, new: tuple[int, bytes] | None) -> None:
        if old == new:
            return
        self._before.setdefault(key, old[1] if old else None)
        self.keys_added += (new is not None) - (old is not None)
        if new is None:
            self._db.execute("DELETE FROM crdt_names WHERE key = ?", (key,))
        else:
            self._db.execute("INSERT OR REPLACE INTO crdt_names VALUES (?, ?, ?)", (key, *new))


def read_name(database: Database, key: str) -> bytes | None:
    """The current value of *key*."""
    row = database.read("SELECT value FROM crdt_names WHERE key = ?", (key,)).fetchone()
    return None if row is None else row[0]


def scan_names(database: Database, prefix: str, after: str, limit: int | None) -> list[tuple[str, bytes]]:
    """Up to *limit* current entries below *prefix*, in byte order, those behind *after*."""
    # SQLite compares text as the bytes of its UTF-8, so this is one range of the primary key. It must have one lower
    # bound: of two, SQLite seeks to one and reads everything up to the other.
    where, parameters = (["key > ?"], [after]) if after >= prefix else (["key >= ?"], [prefix])
    end = end_of_prefix(prefix)
    if end is not None:
        where.append("key < ?")
        parameters.append(end)
    rows = database.read(
        f"SELECT key, value FROM crdt_names WHERE {' AND '.join(where)} ORDER BY key LIMIT ?",  # noqa: S608 (constants)
        (*parameters, -1 if limit is None else limit),
    )
    return rows.fetchall()

"""The tables of elements, tombstones and current values: the merge, one node at a time.

    crdt_elements    every value a counting node set, by key, priority and node
    crdt_tombstones  what was removed, and which node removed it
    crdt_names       the winner of each key: what `get` and `scan` answer from
    crdt_early       keys touched by nodes that count before all below them is known; gone once the node is closed

Rows name nodes by their number in crdt_nodes. A tombstone may come before the element it removes, so it may give a
number to a node nobody has seen. Everything here runs inside the transaction of the connection it is given.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

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
"""Elements and tombstones that do not count; the bits below say why."""

WITHHELD, VEILED, CLAIMED = 1, 2, 4
"""The rules on writers keep it from counting (writers.py); a checkpoint speaks instead; it is here because of a
checkpoint alone, and counts (claims.py)."""

MAX_AUTHORS = 16
"""Writes of one key of which it is told who signed them."""

_UNBURIED = "NOT EXISTS (SELECT 1 FROM crdt_tombstones AS t WHERE t.key = e.key AND t.node = e.node AND t.withheld = 0)"

# A veiled tombstone removes what it names as well; only a withheld one does not.
_LIVE_IDS = (
    "SELECT multihash FROM crdt_elements AS e CROSS JOIN crdt_nodes ON number = e.node"
    " WHERE e.key = ? AND NOT EXISTS"
    " (SELECT 1 FROM crdt_tombstones AS t WHERE t.key = e.key AND t.node = e.node AND t.withheld & 1 = 0)"
    " ORDER BY e.withheld & 3 DESC, e.priority, e.value"
)

_AUTHORS = (
    "SELECT author FROM crdt_elements AS e CROSS JOIN crdt_nodes ON number = e.node"  # noqa: S608 (constants)
    f" WHERE e.key = ? AND e.withheld IN (0, 4) AND {_UNBURIED} ORDER BY e.priority DESC LIMIT {MAX_AUTHORS}"
)

_EARLY_IDS = (
    "SELECT multihash FROM crdt_elements AS e CROSS JOIN crdt_nodes ON number = e.node"  # noqa: S608 (constants)
    " WHERE e.key = ? AND e.withheld & 2 = 0 AND"
    " (e.withheld >= 4 OR EXISTS (SELECT 1 FROM crdt_early AS y WHERE y.node = e.node AND y.key = e.key))"
    f" AND {_UNBURIED} ORDER BY e.priority, e.value"
)

# The primary key delivers elements by priority; only equal priorities are sorted by value.
_WINNER = (
    "SELECT e.priority, e.value FROM crdt_elements AS e"  # noqa: S608 (constants)
    f" WHERE e.key = ? AND e.withheld IN (0, 4) AND {_UNBURIED} ORDER BY e.priority DESC, e.value DESC LIMIT 1"
)


_MARK = re.compile(r"/[a-z_]+/", re.ASCII)

_ENDING_CHARS = 24
"""Of an ending that are indexed: of a digest its algorithm and 68 bits, for a third of the room."""


@dataclass(frozen=True, slots=True)
class Veil:
    """What a checkpoint says instead of a node that is being merged."""

    keys: Callable[[str], bool]
    """For which keys it speaks."""
    covers: Callable[[int], bool]
    """Of which nodes."""


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
        self.any_claims = False
        """Whether elements may be here because of a checkpoint alone."""
        self.contradicted: set[str] = set()
        """Keys of which a checkpoint claimed what the node itself does not say."""

    def merge(self, node: int, delta: Delta, author: PeerId | None, *, early: bool, veil: Veil | None = None) -> None:
        """Let node number *node* by *author* count. *early*: it may still turn out that it must not."""
        removed_from = self._bury(node, delta.tombstones, author, veil)
        values = values_by_key(delta)
        for key, value in values.items():
            # Where the rules let an author count below some heads only, those heads are not closed yet: else this
            # node, which is below them, had been here before. They are looked at again when they are.
            withheld = not self._writers.allow(key, author)
            if self.any_claims and self._confirm_claim(key, delta.priority, node, value, withheld=withheld):
                continue
            veiled = veil is not None and veil.keys(key)
            self._db.execute(
                "INSERT OR IGNORE INTO crdt_elements VALUES (?, ?, ?, ?, ?)",
                (key, delta.priority, node, value, withheld * WITHHELD | veiled * VEILED),
            )
            if withheld:
                self.withheld.append((key, node))
            elif not veiled and key not in removed_from:
                self._challenge(key, delta.priority, node, value)
        for key in removed_from:
            self._recompute(key)
        if early:
            touched = removed_from | values.keys()
            touched.update(tombstone.key for tombstone in delta.tombstones)
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
            self._any_early = (
                self.any_claims or self._db.execute("SELECT 1 FROM crdt_early LIMIT 1").fetchone() is not None
            )
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
                " WHERE withheld < 4"
            )
            changed = []
            for *row, withheld, author, number in rows:
                if counts(row[0], author, number) == bool(withheld & WITHHELD):
                    changed.append((withheld ^ WITHHELD, *row))
            where = " AND ".join(f"{column} = ?" for column in identity.split(", "))
            self._db.executemany(f"UPDATE {table} SET withheld = ? WHERE {where}", changed)  # noqa: S608 (constants)
            touched.update(key for _, key, *_ in changed)
        for key in touched:
            self._recompute(key)

    # --------------------------------------------------------- checkpoints

    def claim(self, elements: Sequence[tuple[str, int, int, bytes, bool]]) -> None:
        """Let elements count that a checkpoint claims: key, priority, number of the node, value, withheld.

        Ascending by key. About 10 us each. What a node here has said itself stays as it said it.
        """
        if not elements:
            return
        inserted = self._db.executemany(
            "INSERT OR IGNORE INTO crdt_elements VALUES (?, ?, ?, ?, ?)",
            [
                (key, priority, node, value, CLAIMED | withheld * WITHHELD)
                for key, priority, node, value, withheld in elements
            ],
        )
        best: dict[str, tuple[int, bytes]] = {}
        for key, priority, _, value, withheld in elements:
            if not withheld and (priority, value) > best.get(key, (0, b"")):
                best[key] = priority, value
        # Where a row was there before, what is claimed in its place does not count: only the rows can tell the winner.
        is_plain = inserted.rowcount == len(elements)
        if not is_plain or self._db.execute("SELECT 1 FROM crdt_tombstones LIMIT 1").fetchone() is not None:
            for key in best:
                self._recompute(key)
            return
        present = {
            key: (priority, value)
            for key, priority, value in self._db.execute(
                "SELECT key, priority, value FROM crdt_names WHERE key BETWEEN ? AND ?",
                (elements[0][0], elements[-1][0]),
            )
        }
        winning = []
        for key, new in best.items():
            old = present.get(key)
            if old is None or new > old:
                self._before.setdefault(key, old[1] if old else None)
                self.keys_added += old is None
                winning.append((key, *new))
        self._db.executemany("INSERT OR REPLACE INTO crdt_names VALUES (?, ?, ?)", winning)

    def unveil(self, low: str, high: str | None) -> set[str]:
        """For the keys above *low*, up to *high*: let what nodes said count, and nothing that was only claimed.

        Returns:
            The keys for which that makes a difference.
        """
        where = "key > ?" if high is None else "key > ? AND key <= ?"
        bounds = (low,) if high is None else (low, high)
        touched: set[str] = set()
        for table in ("crdt_elements", "crdt_tombstones"):
            rows = self._db.execute(f"SELECT DISTINCT key FROM {table} WHERE {where} AND withheld >= 2", bounds)  # noqa: S608 (constants)
            touched.update(key for (key,) in rows)
        if not touched:
            return touched
        rows = self._db.execute(
            f"DELETE FROM crdt_elements WHERE {where} AND withheld >= 4 RETURNING key",  # noqa: S608 (constants)
            bounds,
        )
        wrong = {key for (key,) in rows}
        for table in ("crdt_elements", "crdt_tombstones"):
            self._db.execute(
                f"UPDATE {table} SET withheld = withheld & 1 WHERE {where} AND withheld >= 2",  # noqa: S608 (constants)
                bounds,
            )
        wrong.update(key for key in touched if self._recompute(key))
        return wrong

    def _confirm_claim(self, key: str, priority: int, node: int, value: bytes, *, withheld: bool) -> bool:
        """Whether a checkpoint claims what a node says: then the node says it from now on.

        A claim that something counts stands against rules for now: they may have a limit (`Writers.limits`) that
        can be judged only when its heads are closed. They are heeded when the checkpoint settles.
        """
        place = (key, priority, node)
        row = self._db.execute(
            "SELECT value, withheld FROM crdt_elements WHERE key = ? AND priority = ? AND node = ?", place
        ).fetchone()
        if row is None or row[1] < CLAIMED:
            return False
        if row[0] == value and withheld >= (row[1] & WITHHELD):
            self._db.execute(
                "UPDATE crdt_elements SET withheld = withheld & 3 WHERE key = ? AND priority = ? AND node = ?", place
            )
            return True
        self._db.execute("DELETE FROM crdt_elements WHERE key = ? AND priority = ? AND node = ?", place)
        self._recompute(key)
        self.contradicted.add(key)
        return False

    # ------------------------------------------------------------- winners

    def _bury(self, by: int, tombstones: tuple[Tombstone, ...], author: PeerId | None, veil: Veil | None) -> set[str]:
        keys = set()
        for tombstone in tombstones:
            removed = self._number_of(multihash_of_id(tombstone.id))
            withheld = not self._writers.allow(tombstone.key, author)
            # A checkpoint says nothing of nodes it does not cover: what removes those counts.
            veiled = veil is not None and veil.keys(tombstone.key) and veil.covers(removed)
            self._db.execute(
                "INSERT OR IGNORE INTO crdt_tombstones VALUES (?, ?, ?, ?)",
                (tombstone.key, removed, by, withheld * WITHHELD | veiled * VEILED),
            )
            if withheld:
                self.withheld.append((tombstone.key, by))
            if not veiled:
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

    def _recompute(self, key: str) -> bool:
        """Show the winner of *key*; return whether its value is another than before."""
        winner: tuple[int, bytes] | None = self._db.execute(_WINNER, (key,)).fetchone()
        current = self._current(key)
        self._show(key, current, winner)
        return (None if current is None else current[1]) != (None if winner is None else winner[1])

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


def read_versions(database: Database, key: str) -> frozenset[bytes]:
    """The multihashes of the nodes whose values of *key* are live here, those that are withheld too."""
    return frozenset(multihash for (multihash,) in database.read(_LIVE_IDS, (key,)))


def read_authors(database: Database, key: str) -> tuple[PeerId, ...]:
    """Who signed the latest of the counting writes of *key*, the latest first."""
    signed = dict.fromkeys(author for (author,) in database.read(_AUTHORS, (key,)) if author is not None)
    return tuple(map(PeerId, signed))


def index_endings(db: sqlite3.Connection, marks: Iterable[str]) -> None:
    """Let `ends_in` answer for each of *marks*. The first time it reads all names, a second or two for a million."""
    for mark in marks:
        name = f"crdt_names_{_checked(mark).encode().hex()}"
        db.execute(f"CREATE INDEX IF NOT EXISTS {name} ON crdt_names ({_ending(mark)}) WHERE instr(key, '{mark}') > 0")


def ends_in(mark: str, ending: str, read: Callable[[str, tuple[str]], Iterator[tuple[object, ...]]]) -> bool:
    """Whether a key ends with *mark* and *ending*; *read* executes SQL."""
    return next(read(f"SELECT 1 {_having(mark)} LIMIT 1", (ending,)), None) is not None


def ending_in(database: Database, mark: str, ending: str, limit: int) -> list[str]:
    """Up to *limit* keys that end with *mark* and *ending*."""
    return [key for (key,) in database.read(f"SELECT key {_having(mark)} LIMIT {limit:d}", (ending,))]


def _having(mark: str) -> str:
    return (
        f"FROM crdt_names WHERE instr(key, '{_checked(mark)}') > 0 AND {_ending(mark)} ="
        f" substr(?1, 1, {_ENDING_CHARS}) AND substr(key, instr(key, '{mark}') + {len(mark)}) = ?1"
    )


def _ending(mark: str) -> str:
    """The SQL for what is indexed. It has to be the same, letter for letter, in the index and in the question."""
    return f"substr(key, instr(key, '{mark}') + {len(mark)}, {_ENDING_CHARS})"


def _checked(mark: str) -> str:
    if not _MARK.fullmatch(mark):
        raise ValueError(f"{mark!r} cannot stand in SQL")
    return mark


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

"""The tables of the DAG, and the one way anything enters them.

A node is
    NAMED   only a tombstone has spoken of it
    WANTED  announced, or linked to by a node that is here; its block is not here
    STORED  its block is here, but not all blocks below it are
    CLOSED  it and all below it are here
    VOID    its block is no node, so nothing can be below it; stands for itself, is never a head

go-ds-crdt knows only "processed", and loses what lies below a processed node when a walk is interrupted. Here every
node waits for its children (crdt_waits) and is closed when the last of them is, in whichever transaction that happens,
so a walk may stop anywhere and go on from what the tables say is WANTED. No pass over the DAG is ever needed.

The heads are the closed nodes that no closed node links to; only they are built upon and announced.

A node counts (its delta is merged) at the latest when it is closed, for only then is its priority known to be right.
It counts already when STORED if its priority is near the height of what is closed: a replica that joins reads fresh
values while history is still coming. What then turns out to be wrong is taken back. A node that breaks a rule has a
fault; it is closed like any other and never counts.

One transaction brings blocks, merge and heads together to the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from ipfsreg.crdt import claims, entries
from ipfsreg.crdt.claims import Claim, Claims
from ipfsreg.crdt.delta import (
    MAX_NODE_LINKS,
    MAX_PRIORITY,
    Delta,
    Element,
    Head,
    Node,
    Tombstone,
    build_node,
    multihash_of_id,
)
from ipfsreg.crdt.entries import Entries
from ipfsreg.crdt.interface import Change, KeyChanged, Put
from ipfsreg.crdt.merge import PRIORITY_SLACK, height_of, priority_fault
from ipfsreg.crdt.signing import Signer
from ipfsreg.crdt.writers import EVERYBODY, Writers
from ipfsreg.database import Database
from ipfsreg.ipld.block import Block
from ipfsreg.peer_id import PeerId

NAMED, WANTED, STORED, CLOSED, VOID = range(5)

SCHEMA = (
    """
CREATE TABLE crdt_nodes (
    number INTEGER PRIMARY KEY,
    multihash BLOB NOT NULL UNIQUE,
    state INTEGER NOT NULL,
    priority INTEGER NOT NULL DEFAULT 0,
    height INTEGER NOT NULL DEFAULT 0,
    waiting INTEGER NOT NULL DEFAULT 0,
    merged INTEGER NOT NULL DEFAULT 0,
    dag TEXT NOT NULL DEFAULT '',
    fault TEXT
);
CREATE INDEX crdt_wanted ON crdt_nodes (number) WHERE state = 1;
CREATE INDEX crdt_closable ON crdt_nodes (number) WHERE state = 2 AND waiting = 0;
CREATE INDEX crdt_faults ON crdt_nodes (number) WHERE fault IS NOT NULL;
CREATE INDEX crdt_heights ON crdt_nodes (height) WHERE state = 3 AND dag = '';
CREATE TABLE crdt_links (
    parent INTEGER NOT NULL, child INTEGER NOT NULL, PRIMARY KEY (parent, child)
) WITHOUT ROWID;
CREATE TABLE crdt_waits (
    child INTEGER NOT NULL, parent INTEGER NOT NULL, PRIMARY KEY (child, parent)
) WITHOUT ROWID;
CREATE TABLE crdt_held (node INTEGER PRIMARY KEY, delta BLOB NOT NULL);
CREATE TABLE crdt_heads (node INTEGER PRIMARY KEY);
CREATE TABLE crdt_tips (node INTEGER PRIMARY KEY);
CREATE TABLE crdt_counts (name TEXT PRIMARY KEY, count INTEGER NOT NULL);
INSERT INTO crdt_counts VALUES ('names', 0)
"""
    + ";"
    + entries.SCHEMA,
    "ALTER TABLE crdt_nodes ADD COLUMN author BLOB; CREATE TABLE crdt_rules (fingerprint TEXT NOT NULL);"
    + entries.WITHHOLDING,
    claims.SCHEMA,
    "CREATE TABLE crdt_epoch (number INTEGER NOT NULL, sealed INTEGER NOT NULL, seed BLOB)",
    "ALTER TABLE crdt_tips ADD COLUMN announced INTEGER NOT NULL DEFAULT 1",
)
"""For `Database.prepare`."""

MAX_CLOSED_AT_ONCE = 1000
"""Nodes closed in one transaction (tens of milliseconds); the rest of a long chain follows in the next ones."""

MAX_WANTED_TIPS = 4096
"""Announced nodes not closed yet that are remembered; further ones must be announced again."""

DELTA_BYTES = 512 * 1024
"""A delta takes no further change once it has this size; a single larger change still fits a block."""

SKIP_EVERY = 64
"""Nodes of ours at a height divisible by this also link far back, so that a newcomer descends on several ways."""


class NodeBlocks(Protocol):
    """Where the blocks of nodes are kept, so that peers can fetch them: a block store in the same database."""

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        """Store *blocks* in the transaction that *db* is in."""


@dataclass(frozen=True, slots=True)
class VoidNode:
    """A block that was asked for as a node and is none."""

    multihash: bytes
    reason: str


Arrival = Node | VoidNode


@dataclass(frozen=True, slots=True)
class Work:
    """What goes into one transaction, in this order."""

    tips: Sequence[bytes] = ()
    """Announced nodes."""
    arrivals: Sequence[Arrival] = ()
    """Fetched nodes."""
    commits: Sequence[Sequence[Change]] = ()
    """Writes of ours, each to stand in one delta."""
    join_heads: bool = False
    """Write a node that only joins all heads."""
    expire_tips: bool = False
    """Give up the announced nodes that nobody has announced since the last time this was asked for."""
    claims: Sequence[Claim] = ()
    """Steps of a checkpoint that is being taken."""
    starting: bool = False
    """The rules on writers may be others than those the tables were written under."""


@dataclass(slots=True)
class Outcome:
    """What a transaction did."""

    changes: list[KeyChanged] = field(default_factory=list)
    heads: list[Head] = field(default_factory=list)
    height: int = 0
    written: list[Node] = field(default_factory=list)
    """Nodes of ours, the newest last."""
    stored: list[Block] = field(default_factory=list)
    """Blocks that are here now and were not before."""
    faults: list[tuple[bytes, str]] = field(default_factory=list)
    """Nodes that were quarantined, each with the rule it breaks."""
    withheld: list[tuple[bytes, str]] = field(default_factory=list)
    """Nodes that wanted to change what their authors may not, each with one such key."""
    forgotten: list[bytes] = field(default_factory=list)
    """Nodes that are not waited for any more."""
    checkpoint_changed: bool = False
    """The checkpoint is in another state than before."""
    tips_left: int = 0
    closing_left: bool = False
    """More nodes could be closed, or names settled: call again, also without work."""


def apply(
    blocks: NodeBlocks,
    work: Work,
    db: sqlite3.Connection,
    *,
    writers: Writers = EVERYBODY,
    signer: Signer | None = None,
) -> Outcome:
    """Do *work* in the transaction of *db*. Runs in the writer thread. *signer* signs what we write."""
    transaction = _Transaction(db, blocks, writers, signer)
    if work.starting:
        transaction.heed_rules()
    if work.expire_tips:
        transaction.expire_tips()
    for tip in work.tips:
        transaction.want(tip)
    for claim in work.claims:
        transaction.claim(claim)
    for arrival in work.arrivals:
        transaction.receive(arrival)
    transaction.close_closable()
    for changes in group(work.commits):
        transaction.write(changes)
    if work.join_heads:
        transaction.join_heads()
    return transaction.finish()


def group(commits: Sequence[Sequence[Change]]) -> list[list[Change]]:
    """Put *commits* together into as few deltas as may be: no key twice in one, and none that outgrows a block."""
    groups: list[list[Change]] = []
    keys: set[str] = set()
    size = 0
    for commit in commits:
        cost = sum(_cost(change) for change in commit)
        if not groups or size + cost > DELTA_BYTES or any(change.key in keys for change in commit):
            groups.append([])
            keys, size = set(), 0
        groups[-1] += commit
        keys.update(change.key for change in commit)
        size += cost
    return groups


def _cost(change: Change) -> int:
    """Bytes in a delta, a little more than it really takes; a deletion as if it met one version."""
    return len(change.key.encode()) + (len(change.value) + 16 if isinstance(change, Put) else 72)


class _Transaction:
    def __init__(self, db: sqlite3.Connection, blocks: NodeBlocks, writers: Writers, signer: Signer | None) -> None:
        self._db = db
        self._blocks = blocks
        self._writers = writers
        self._signer = signer
        self._entries = Entries(db, self._number_of, writers)
        self._claims = Claims(db, self._entries, writers)
        self._outcome = Outcome()
        self._closed = 0
        self._progressed = False
        self._cut_closed = False

    def heed_rules(self) -> None:
        """Judge everything anew if the rules have changed. Takes seconds for a million names, and only then.

        A checkpoint was judged by the old rules, and one that was not taken in wholly is good for nothing.
        """
        if self._claims.state == claims.LOADING:
            self._claims.drop()
        fingerprint = self._writers.fingerprint()
        known = self._db.execute("SELECT fingerprint FROM crdt_rules").fetchone() or (EVERYBODY.fingerprint(),)
        if known[0] != fingerprint:
            self._claims.drop()
            self._reconsider()
            self._db.execute("DELETE FROM crdt_rules")
            self._db.execute("INSERT INTO crdt_rules VALUES (?)", (fingerprint,))

    def _reconsider(self) -> None:
        below: dict[frozenset[bytes], set[int]] = {}
        authors: dict[bytes, PeerId] = {}

        def counts(key: str, raw: bytes | None, number: int) -> bool:
            author = raw and (authors.get(raw) or authors.setdefault(raw, PeerId(raw)))
            for heads in self._writers.limits(key, author or None):
                if heads not in below:
                    below[heads] = self._at_or_below(heads)
                if number not in below[heads]:
                    return False
            return True

        self._entries.reconsider(counts)

    def _at_or_below(self, heads: frozenset[bytes]) -> set[int]:
        """The numbers of those of *heads* that are closed, and of all nodes below them."""
        marks = ", ".join("?" * len(heads))
        query = (
            "WITH RECURSIVE below (node) AS ("  # noqa: S608 (question marks)
            f" SELECT number FROM crdt_nodes WHERE state = 3 AND multihash IN ({marks})"
            " UNION SELECT child FROM crdt_links JOIN below ON parent = node) SELECT node FROM below"
        )
        rows = self._db.execute(query, tuple(heads))
        return {number for (number,) in rows}

    def want(self, multihash: bytes) -> None:
        """Remember an announced node until it is closed."""
        known = self._db.execute(
            "UPDATE crdt_tips SET announced = 1 WHERE node = (SELECT number FROM crdt_nodes WHERE multihash = ?)",
            (multihash,),
        )
        if known.rowcount or self._count("crdt_tips") >= MAX_WANTED_TIPS:
            return
        number, state = self._row(multihash, WANTED)
        if state in (CLOSED, VOID):
            return
        self._set_wanted(number, state)
        self._db.execute("INSERT INTO crdt_tips VALUES (?, 1)", (number,))

    def expire_tips(self) -> None:
        """Give up the tips that were not announced since the last call, and all that only they lead to.

        Whoever has a head says it every minute or so. What nobody says for a whole period is gone with who wrote it,
        or was never there; if it comes back, it is announced, and the walk begins anew. Reads all nodes: a third of a
        second for a million.
        """
        self._db.execute("DELETE FROM crdt_tips WHERE announced = 0")
        self._db.execute("UPDATE crdt_tips SET announced = 0")
        # What is closed is never waited for; what is not, some tip leads to, or one did.
        rows = self._db.execute(
            "WITH RECURSIVE led (node) AS (SELECT node FROM crdt_tips UNION"
            " SELECT child FROM led JOIN crdt_links ON parent = led.node JOIN crdt_nodes ON number = child"
            " WHERE state IN (1, 2))"
            " SELECT number, multihash, state, priority, merged FROM crdt_nodes"
            " WHERE state IN (1, 2) AND number NOT IN (SELECT node FROM led)"
        ).fetchall()
        for number, multihash, state, priority, merged in rows:
            if merged:
                self._entries.withdraw(number, priority)
            if state == STORED:
                for sql in (
                    "DELETE FROM crdt_links WHERE parent = ?",
                    "DELETE FROM crdt_waits WHERE parent = ?",
                    "DELETE FROM crdt_held WHERE node = ?",
                ):
                    self._db.execute(sql, (number,))
            self._db.execute(
                "UPDATE crdt_nodes SET state = 0, priority = 0, waiting = 0, merged = 0, dag = '', author = NULL,"
                " fault = NULL WHERE number = ?",
                (number,),
            )
            self._outcome.forgotten.append(multihash)

    def claim(self, claim: Claim) -> None:
        """Do one step of a checkpoint."""
        for head in self._claims.take(claim):
            self.want(head)

    def receive(self, arrival: Arrival) -> None:
        """Take in a node that was fetched, or one of ours. Again is harmless."""
        number, state = self._row(arrival.multihash, WANTED)
        if state > WANTED:
            return
        if isinstance(arrival, VoidNode):
            self._set_fault(number, arrival.multihash, arrival.reason)
            self._db.execute("UPDATE crdt_nodes SET state = ? WHERE number = ?", (VOID, number))
            self._release(number)
            self._progressed = True
            return
        self._outcome.stored.append(arrival.block)
        waiting = self._link(number, arrival.links)
        delta = arrival.delta
        priority = delta.priority if delta.priority <= MAX_PRIORITY else 0
        self._db.execute(
            "UPDATE crdt_nodes SET state = ?, priority = ?, waiting = ?, dag = ?, author = ? WHERE number = ?",
            (STORED, priority, waiting, delta.dag_name, arrival.author and arrival.author.raw, number),
        )
        if arrival.fault:
            self._set_fault(number, arrival.multihash, arrival.fault)
        elif waiting and priority <= self._height() + PRIORITY_SLACK:
            self._entries.merge(number, delta, arrival.author, early=True, veil=self._claims.veil_of(number))
            self._db.execute("UPDATE crdt_nodes SET merged = 1 WHERE number = ?", (number,))
        elif waiting:
            self._db.execute("INSERT INTO crdt_held VALUES (?, ?)", (number, delta.encode()))
        if not waiting:
            self._close(number, delta)

    def close_closable(self) -> None:
        """Close what can be closed, bottom-up, as far as one transaction goes."""
        while self._closed < MAX_CLOSED_AT_ONCE:
            rows = self._db.execute(
                "SELECT number FROM crdt_nodes WHERE state = 2 AND waiting = 0 LIMIT ?",
                (MAX_CLOSED_AT_ONCE - self._closed,),
            ).fetchall()
            if not rows:
                return
            for (number,) in rows:
                self._close(number)
        self._outcome.closing_left = True

    def write(self, changes: Sequence[Change]) -> None:
        """Write one delta of ours on top of all heads; nothing if *changes* only remove what is not there."""
        elements = tuple(Element(change.key, change.value) for change in changes if isinstance(change, Put))
        tombstones = [
            tombstone
            for change in changes
            if not isinstance(change, Put)
            for tombstone in self._entries.tombstones_for(change.key)
            if change.versions is None or multihash_of_id(tombstone.id) in change.versions
        ]
        # What counts early was seen, and is not below the heads that this write builds on: where it is removed by name,
        # a deletion of what we write now does not bring it back.
        tombstones += [
            tombstone
            for change in changes
            if isinstance(change, Put)
            for tombstone in self._entries.early_tombstones_for(change.key)
        ]
        room = max(DELTA_BYTES - sum(_cost(change) for change in changes if isinstance(change, Put)), DELTA_BYTES // 4)
        # A key with thousands of live versions needs more tombstones than one block holds. Its winner comes last, so
        # that no peer sees an older value in between.
        pieces = _split(tombstones, room)
        for piece in pieces[:-1]:
            self._append((), piece)
        if elements or pieces:
            self._append(elements, pieces[-1] if pieces else ())

    def join_heads(self) -> None:
        """Write a node without content that makes one head of many."""
        if len(self._heads("")) > 1:
            self._append((), ())

    def finish(self) -> Outcome:
        """What was done; the last call."""
        outcome = self._outcome
        if self._cut_closed:
            self._reconsider()
        self._end_checkpoint()
        outcome.withheld = self._withheld()
        self._blocks.put_in(self._db, outcome.stored)
        if self._entries.keys_added:
            self._db.execute(
                "UPDATE crdt_counts SET count = count + ? WHERE name = 'names'", (self._entries.keys_added,)
            )
        outcome.changes = self._entries.changes()
        outcome.heads = [Head(multihash, dag) for multihash, dag, _ in self._heads()]
        outcome.height = self._height()
        outcome.tips_left = self._count("crdt_tips")
        return outcome

    def _end_checkpoint(self) -> None:
        checkpoint = self._claims
        checkpoint.count_differing(len(self._entries.contradicted))
        if checkpoint.is_ending:
            checkpoint.settle_some()
        elif self._progressed and checkpoint.can_settle:
            checkpoint.begin_settling()
            if not self._writers.are_open:
                self._reconsider()
        self._outcome.closing_left |= checkpoint.is_ending
        self._outcome.checkpoint_changed = checkpoint.changed

    def _withheld(self) -> list[tuple[bytes, str]]:
        nodes = {number: key for key, number in self._entries.withheld}
        return [
            (self._db.execute("SELECT multihash FROM crdt_nodes WHERE number = ?", (number,)).fetchone()[0], key)
            for number, key in nodes.items()
        ]

    # ------------------------------------------------------------------ rows

    def _row(self, multihash: bytes, state: int) -> tuple[int, int]:
        """The number and state of a node, which is made with *state* if it is new."""
        row = self._db.execute("SELECT number, state FROM crdt_nodes WHERE multihash = ?", (multihash,)).fetchone()
        if row is not None:
            return row[0], row[1]
        inserted = self._db.execute("INSERT INTO crdt_nodes (multihash, state) VALUES (?, ?)", (multihash, state))
        assert inserted.lastrowid is not None
        return inserted.lastrowid, state

    def _number_of(self, multihash: bytes) -> int:
        return self._row(multihash, NAMED)[0]

    def _set_wanted(self, number: int, state: int) -> None:
        if state == NAMED:
            self._db.execute("UPDATE crdt_nodes SET state = ? WHERE number = ?", (WANTED, number))

    def _set_fault(self, number: int, multihash: bytes, fault: str) -> None:
        self._db.execute("UPDATE crdt_nodes SET fault = ? WHERE number = ?", (fault, number))
        self._outcome.faults.append((multihash, fault))

    def _link(self, parent: int, links: Iterable[bytes]) -> int:
        """Write the links of a node; return how many of them lead to what is not closed."""
        waiting = 0
        for multihash in links:
            child, state = self._row(multihash, WANTED)
            self._set_wanted(child, state)
            self._db.execute("INSERT OR IGNORE INTO crdt_links VALUES (?, ?)", (parent, child))
            if state not in (CLOSED, VOID):
                self._db.execute("INSERT OR IGNORE INTO crdt_waits VALUES (?, ?)", (child, parent))
                waiting += 1
        return waiting

    def _count(self, table: str) -> int:
        count: int = self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (our own names)
        return count

    # CROSS JOIN is SQLite's way to keep the order of the tables: few heads, tips or children, each looked up among all
    # nodes. Left to itself it runs through all nodes for the sake of an order or a maximum, with every write.

    def _heads(self, dag: str | None = None) -> list[tuple[bytes, str, int]]:
        return self._db.execute(
            "SELECT multihash, dag, height FROM crdt_heads CROSS JOIN crdt_nodes ON number = node"
            " WHERE ? IS NULL OR dag = ? ORDER BY multihash",
            (dag, dag),
        ).fetchall()

    def _height(self) -> int:
        highest: int | None = self._db.execute(
            "SELECT max(height) FROM crdt_heads CROSS JOIN crdt_nodes ON number = node"
        ).fetchone()[0]
        return highest or 0

    # --------------------------------------------------------------- closing

    def _close(self, number: int, delta: Delta | None = None) -> None:
        """All below node *number* is here: judge it, let it count, make it a head. *delta*: its own, if at hand."""
        multihash, priority, merged, fault, author = self._db.execute(
            "SELECT multihash, priority, merged, fault, author FROM crdt_nodes WHERE number = ?", (number,)
        ).fetchone()
        below: int | None = self._db.execute(
            "SELECT max(height) FROM crdt_links CROSS JOIN crdt_nodes ON number = child WHERE parent = ?", (number,)
        ).fetchone()[0]
        if fault is None:
            fault = priority_fault(priority, below or 0)
            if merged and fault is None:
                self._entries.confirm(number)
            elif merged:
                self._entries.withdraw(number, priority)
            else:
                delta = delta or self._held(number)
                if fault is None:
                    veil = self._claims.veil_of(number)
                    self._entries.merge(number, delta, author and PeerId(author), early=False, veil=veil)
            if fault is not None:
                self._set_fault(number, multihash, fault)
        self._db.execute(
            "UPDATE crdt_nodes SET state = ?, height = ?, merged = ? WHERE number = ?",
            (CLOSED, height_of(priority, below or 0), fault is None, number),
        )
        self._db.execute(
            "DELETE FROM crdt_heads WHERE node IN (SELECT child FROM crdt_links WHERE parent = ?)", (number,)
        )
        self._db.execute("INSERT INTO crdt_heads VALUES (?)", (number,))
        self._release(number)
        self._closed += 1
        self._progressed = True
        self._cut_closed |= multihash in self._writers.cut_heads

    def _held(self, number: int) -> Delta:
        """The delta that was kept until its node could be judged; it is kept no longer."""
        (delta,) = self._db.execute("DELETE FROM crdt_held WHERE node = ? RETURNING delta", (number,)).fetchone()
        return Delta.decode(delta)

    def _release(self, number: int) -> None:
        """Nobody waits for node *number* any more."""
        self._db.execute("DELETE FROM crdt_tips WHERE node = ?", (number,))
        self._db.execute(
            "UPDATE crdt_nodes SET waiting = waiting - 1 WHERE number IN"
            " (SELECT parent FROM crdt_waits WHERE child = ?)",
            (number,),
        )
        self._db.execute("DELETE FROM crdt_waits WHERE child = ?", (number,))

    # --------------------------------------------------------------- writing

    def _append(self, elements: Sequence[Element], tombstones: Sequence[Tombstone]) -> None:
        heads = self._heads("")[:MAX_NODE_LINKS]
        # While we are catching up, a write of ours must not be older than everything the others have: it takes its
        # priority from what was announced and counts already, as far as the slack allows.
        (ahead,) = self._db.execute(
            "SELECT max(priority) FROM crdt_tips CROSS JOIN crdt_nodes ON number = node WHERE merged = 1"
        ).fetchone()
        below = max((height for *_, height in heads), default=0)
        ahead = max(ahead or 0, self._claims.height)
        priority = 1 + max(below, min(ahead, below + PRIORITY_SLACK))
        links = [multihash for multihash, _, _ in heads]
        links += self._skip_link(priority)
        node = build_node(set(links), Delta(tuple(elements), tuple(tombstones), priority), self._signer, self._epoch())
        self.receive(node)
        self._outcome.written.append(node)

    def _epoch(self) -> int:
        row = self._db.execute("SELECT number FROM crdt_epoch").fetchone()
        return 1 if row is None else row[0]

    def _skip_link(self, height: int) -> list[bytes]:
        """For one node in 64, an ancestor as far back as the height's lowest bit says, or half as far: 64, 128, 256 …

        Every closed node is an ancestor of one that links to all heads.
        """
        if height % SKIP_EVERY:
            return []
        back = height & -height
        if back == height:
            back //= 2
        rows = self._db.execute(
            "SELECT multihash FROM crdt_nodes WHERE state = 3 AND dag = '' AND height = ? ORDER BY multihash LIMIT 1",
            (height - back,),
        )
        return [multihash for (multihash,) in rows]


def _split(tombstones: Sequence[Tombstone], room: int) -> list[list[Tombstone]]:
    pieces: list[list[Tombstone]] = []
    size = room
    for tombstone in tombstones:
        cost = len(tombstone.key.encode()) + 72
        if size + cost > room:
            pieces.append([])
            size = 0
        pieces[-1].append(tombstone)
        size += cost
    return pieces


# ---------------------------------------------------------------------- reads


def state_of_node(database: Database, multihash: bytes) -> int | None:
    """The state of a node; None for one we have never heard of."""
    row = database.read("SELECT state FROM crdt_nodes WHERE multihash = ?", (multihash,)).fetchone()
    return None if row is None else row[0]


def has_nodes_of_others(database: Database, ourselves: PeerId) -> bool:
    """Whether there is a node here that somebody else has written, or that nobody has signed."""
    row = database.read(
        "SELECT 1 FROM crdt_nodes WHERE state IN (2, 3) AND (author IS NULL OR author <> ?) LIMIT 1", (ourselves.raw,)
    ).fetchone()
    return row is not None


def wanted_nodes(database: Database, limit: int, after: int = 0) -> list[tuple[int, bytes]]:
    """Up to *limit* nodes whose blocks are still to be fetched, by number, those behind the number *after*."""
    return database.read(
        "SELECT number, multihash FROM crdt_nodes WHERE state = 1 AND number > ? ORDER BY number LIMIT ?",
        (after, limit),
    ).fetchall()


def closed_node(database: Database, multihash: bytes) -> tuple[int, bytes, int] | None:
    """Number, multihash and height of a closed node; None for any other."""
    sql = "SELECT number, multihash, height FROM crdt_nodes WHERE multihash = ? AND state = 3"
    row: tuple[int, bytes, int] | None = database.read(sql, (multihash,)).fetchone()
    return row


def closed_children(database: Database, number: int) -> list[tuple[int, bytes, int]]:
    """The closed nodes that node *number* links to, as `closed_node` has them."""
    return database.read(
        "SELECT number, multihash, height FROM crdt_links CROSS JOIN crdt_nodes ON number = child"
        " WHERE parent = ? AND state = 3",
        (number,),
    ).fetchall()


def sample_closed(database: Database, limit: int) -> list[bytes]:
    """Up to *limit* closed nodes by which another replica sees what is here: the heads, then one at each distance of
    1, 2, 4, 8 … below the highest."""
    heads = database.read(
        "SELECT multihash, height FROM crdt_heads CROSS JOIN crdt_nodes ON number = node ORDER BY height DESC LIMIT ?",
        (limit,),
    ).fetchall()
    found = [multihash for multihash, _ in heads]
    back, highest = 1, heads[0][1] if heads else 0
    while back < highest and len(found) < limit:
        row = database.read(
            "SELECT multihash FROM crdt_nodes WHERE state = 3 AND dag = '' AND height <= ?"
            " ORDER BY height DESC LIMIT 1",
            (highest - back,),
        ).fetchone()
        if row is not None:
            found.append(row[0])
        back *= 2
    return found


@dataclass(frozen=True, slots=True)
class Tally:
    """Counts for the operator."""

    names: int
    nodes_wanted: int
    tips: int
    quarantined: int
    withheld: int


_TALLY = (
    "SELECT count, (SELECT count(*) FROM crdt_nodes WHERE state = 1), (SELECT count(*) FROM crdt_tips),"
    " (SELECT count(*) FROM crdt_nodes WHERE fault IS NOT NULL),"
    " (SELECT count(*) FROM crdt_elements WHERE withheld = 1) FROM crdt_counts WHERE name = 'names'"
)


def tally(database: Database) -> Tally:
    """Count what is there."""
    return Tally(*database.read(_TALLY).fetchone())


async def tally_beside(database: Database) -> Tally:
    """The same in a worker thread."""
    (row,) = await database.count(_TALLY)
    return Tally(*row)


def withheld_values(database: Database, limit: int = 1000) -> list[tuple[str, bytes, bytes | None]]:
    """Up to *limit* values that the rules on writers keep from counting: key, node, author."""
    return database.read(
        "SELECT key, multihash, author FROM crdt_elements CROSS JOIN crdt_nodes ON number = node"
        " WHERE withheld = 1 ORDER BY key LIMIT ?",
        (limit,),
    ).fetchall()


def quarantined_nodes(database: Database, limit: int = 1000) -> list[tuple[bytes, str]]:
    """Up to *limit* nodes that are not allowed to count, each with the rule it breaks."""
    return database.read(
        "SELECT multihash, fault FROM crdt_nodes WHERE fault IS NOT NULL ORDER BY number DESC LIMIT ?", (limit,)
    ).fetchall()

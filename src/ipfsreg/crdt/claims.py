"""A checkpoint in the tables: what it claims counts at once, and is checked against the nodes as they come.

While a checkpoint speaks, the names are those of

    its elements, and all that nodes say which it does not name

The nodes it names ("covered") come with the history. What they say is written beside, and does not count yet: a value
that a newer node removes would show again, because the older node is whole before the newer is. When all its heads are
closed, nothing is left of it: key by key, what it claimed and no node said is deleted, and what the nodes said counts.
If it was right, no name changes in that moment. If it was not, the names that change are counted and reported.

It is in the bits of `withheld`, in crdt_elements and crdt_tombstones:

    1  the rules on writers keep it from counting
    2  veiled: said by a covered node, and the checkpoint speaks instead
    4  claimed: here because of the checkpoint alone; its node has not said so yet

An element counts at 0 and 4, a tombstone at 0. A checkpoint speaks only for keys that its signer may write: it can say
nothing that its signer could not have written.

    LOADING    its elements come in and count. Interrupted, it is dropped at the next start
    SPEAKING   it is wholly here
    SETTLING   its heads are closed, and key by key the nodes take over
    DROPPING   as SETTLING, with the heads not closed: it was refused, or came to nothing
    SETTLED, DROPPED
"""

from __future__ import annotations

import sqlite3
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from ipfsreg.crdt.checkpoint import ClaimedElement, Header, Piece, elements_in, multihashes_in
from ipfsreg.crdt.entries import Entries, Veil
from ipfsreg.crdt.writers import Writers
from ipfsreg.database import Database
from ipfsreg.errors import MalformedData
from ipfsreg.peer_id import PeerId

LOADING, SPEAKING, SETTLING, DROPPING, SETTLED, DROPPED = range(6)

STATE_NAMES = ("loading", "speaking", "settling", "dropping", "settled", "dropped")

SCHEMA = """
ALTER TABLE crdt_nodes ADD COLUMN checkpoint INTEGER NOT NULL DEFAULT 0;
CREATE TABLE crdt_checkpoints (
    number INTEGER PRIMARY KEY, signer BLOB NOT NULL, state INTEGER NOT NULL, whole INTEGER NOT NULL,
    header BLOB NOT NULL, proof BLOB, settled_to TEXT NOT NULL DEFAULT '', differing INTEGER NOT NULL DEFAULT 0
)
"""
"""`crdt_nodes.checkpoint`: the number of the checkpoint that covers the node."""

_HERE = (2, 3)
"""The states in which a node may have been merged."""

_TOO_LATE = "nodes of the checkpoint are here already"
"""What they have said counts already, unveiled; from here the history is the better way."""

SETTLED_AT_ONCE = 5000
"""Elements looked at in one transaction."""


MAX_ELEMENTS_IN_ALL = 1 << 23
"""Of one checkpoint: eight times as many as a large registry has. With more, names come with the history."""

MAX_BYTES_IN_ALL = 2 << 30
"""Keys and values of one checkpoint, unpacked."""


@dataclass(eq=False, slots=True)
class Loading:
    """A checkpoint on its way into the tables: what the writer thread and whoever brings it know of it."""

    signer: PeerId
    everything: bool
    """Its signer is trusted for every key, whatever the rules on writers say."""
    begun: bool = False
    """Something of it may be in the tables."""
    number: int = 0
    nodes: array[int] = field(default_factory=lambda: array("q"))
    """Numbers in crdt_nodes, by position in the checkpoint."""
    elements: int = 0
    """How many have come."""
    element_bytes: int = 0
    last_key: str = ""
    failed: str | None = None
    """Why it was dropped."""


@dataclass(eq=False, slots=True)
class Claim:
    """One step of a checkpoint: *header* begins it, *piece* adds to it, and with *proof*, its signature, it speaks.
    One without any of them drops it."""

    loading: Loading | None
    header: Header | None = None
    piece: Piece | None = None
    proof: bytes | None = None
    done: trio.Event = field(default_factory=trio.Event)
    """It is durable, or `Loading.failed` says why not."""


@dataclass(frozen=True, slots=True)
class CheckpointStatus:
    """The last checkpoint, for the operator and for whoever waits for it."""

    number: int
    signer: PeerId
    state: int
    whole: bool
    """It speaks for every key."""
    taken_us: int
    differing: int
    """In how many places it said something else than the nodes."""

    @property
    def is_answering(self) -> bool:
        """Reads are right by it, for every key."""
        return self.whole and self.state in (SPEAKING, SETTLING, SETTLED)


def last_checkpoint(database: Database) -> CheckpointStatus | None:
    """The last checkpoint that was taken, in whatever state."""
    row = database.read(
        "SELECT number, signer, state, whole, header, differing FROM crdt_checkpoints ORDER BY number DESC LIMIT 1"
    ).fetchone()
    if row is None:
        return None
    number, signer, state, whole, header, differing = row
    return CheckpointStatus(number, PeerId(signer), state, bool(whole), Header.decode(header).taken_us, differing)


def speaks_of(database: Database, multihash: bytes) -> bool:
    """Whether names are what they are with this node, by a checkpoint, though it may not be here yet."""
    row = database.read(
        "SELECT 1 FROM crdt_nodes AS n JOIN crdt_checkpoints AS c ON c.number = n.checkpoint"
        " WHERE multihash = ? AND c.state IN (1, 2) AND whole",
        (multihash,),
    ).fetchone()
    return row is not None


def _count(loading: Loading, elements: Sequence[ClaimedElement]) -> None:
    """Note that *elements* came, those of one piece. Raises MalformedData: too many, or not behind those before."""
    if not elements:
        return
    if elements[0][0] < loading.last_key:
        raise MalformedData(f"the key {elements[0][0][:80]!r} of a checkpoint is not in order")
    loading.last_key = elements[-1][0]
    loading.elements += len(elements)
    loading.element_bytes += sum(len(key.encode()) + len(value) for key, _, _, value, _ in elements)
    if loading.elements > MAX_ELEMENTS_IN_ALL or loading.element_bytes > MAX_BYTES_IN_ALL:
        raise MalformedData(f"a checkpoint of {loading.elements} elements or more, {loading.element_bytes} bytes")


class Claims:
    """The checkpoint, if there is one, within one transaction."""

    def __init__(self, db: sqlite3.Connection, entries: Entries, writers: Writers) -> None:
        self._db = db
        self._entries = entries
        self._writers = writers
        row = db.execute(
            "SELECT number, state, signer, whole, header FROM crdt_checkpoints WHERE state < ? LIMIT 1", (SETTLED,)
        ).fetchone()
        number, state, signer, whole, header = row or (0, SETTLED, None, False, None)
        self._number: int = number
        self.state: int = state
        self._whole = bool(whole)
        self._signer = None if signer is None else PeerId(signer)
        self._header = None if header is None else Header.decode(header)
        entries.any_claims = row is not None
        self.changed = False
        """Whether the state became another one."""

    # ------------------------------------------------------------- speaking

    @property
    def height(self) -> int:
        """Of what is claimed; 0 while nothing is."""
        return self._header.height if self._header is not None and self.state == SPEAKING else 0

    def veil_of(self, node: int) -> Veil | None:
        """What the checkpoint says instead of the node with this number; None: nothing."""
        return Veil(self._speaks_for, self.covers) if self.state == SPEAKING and self.covers(node) else None

    def covers(self, node: int) -> bool:
        """Whether the node with this number is one the checkpoint names."""
        row = self._db.execute("SELECT 1 FROM crdt_nodes WHERE number = ? AND checkpoint = ?", (node, self._number))
        return self._number > 0 and row.fetchone() is not None

    def _speaks_for(self, key: str) -> bool:
        return self._whole or self._writers.allow(key, self._signer)

    # -------------------------------------------------------------- loading

    def take(self, claim: Claim) -> tuple[bytes, ...]:
        """Do one step; return the heads to be wanted from now on. One that cannot be done drops the checkpoint."""
        loading = claim.loading
        if loading is None:
            self.drop()
            return ()
        if loading.failed is not None:
            return ()
        try:
            if claim.header is not None:
                self._begin(loading, claim.header)
            elif self.state != LOADING or loading.number != self._number:
                raise MalformedData("the checkpoint was dropped meanwhile")  # noqa: TRY301 (one way to fail)
            elif claim.proof is not None:
                return self._speak(loading, claim.proof)
            elif claim.piece is not None:
                self._load(loading, claim.piece)
        except MalformedData as error:
            loading.failed = str(error)
            self.drop()
        return ()

    def _begin(self, loading: Loading, header: Header) -> None:
        if self._number:
            raise MalformedData("there is a checkpoint already")
        self._signer, self._header = loading.signer, header
        self._whole = loading.everything or self._writers.allow_all(loading.signer)
        inserted = self._db.execute(
            "INSERT INTO crdt_checkpoints (signer, state, whole, header) VALUES (?, ?, ?, ?)",
            (loading.signer.raw, LOADING, self._whole, header.encode()),
        )
        assert inserted.lastrowid is not None
        self._number = loading.number = inserted.lastrowid
        self.state = LOADING
        self._entries.any_claims = True

    def _load(self, loading: Loading, piece: Piece) -> None:
        assert self._header is not None
        if piece.nodes is not None:
            for multihash in multihashes_in(piece.nodes):
                number, state = self._db.execute(
                    "INSERT INTO crdt_nodes (multihash, state, checkpoint) VALUES (?, 0, ?)"
                    " ON CONFLICT (multihash) DO UPDATE SET checkpoint = excluded.checkpoint RETURNING number, state",
                    (multihash, self._number),
                ).fetchone()
                if state in _HERE:
                    raise MalformedData(_TOO_LATE)
                loading.nodes.append(number)
            if len(loading.nodes) > self._header.nodes:
                raise MalformedData("a checkpoint of more nodes than it says")
        if piece.elements is not None:
            numbers = loading.nodes
            elements = elements_in(piece.elements, len(numbers))
            _count(loading, elements)
            self._entries.claim(
                [
                    (key, priority, numbers[node], value, withheld)
                    for key, priority, node, value, withheld in elements
                    if self._speaks_for(key)
                ]
            )

    def _speak(self, loading: Loading, proof: bytes) -> tuple[bytes, ...]:
        assert self._header is not None
        if len(loading.nodes) != self._header.nodes:
            raise MalformedData(f"a checkpoint of {len(loading.nodes)} nodes that says {self._header.nodes}")
        for head in self._header.heads:
            row = self._db.execute("SELECT checkpoint FROM crdt_nodes WHERE multihash = ?", (head,)).fetchone()
            if row is None or row[0] != self._number:
                raise MalformedData("a checkpoint whose heads are not among its nodes")
        here = self._db.execute(
            "SELECT 1 FROM crdt_nodes WHERE checkpoint = ? AND state IN (2, 3) LIMIT 1", (self._number,)
        ).fetchone()
        if here is not None:
            raise MalformedData(_TOO_LATE)
        self._db.execute("UPDATE crdt_checkpoints SET proof = ? WHERE number = ?", (proof, self._number))
        self._set(SPEAKING)
        return self._header.heads

    # ------------------------------------------------------------- settling

    def drop(self) -> None:
        """Take everything back that is claimed, in this transaction and those after it."""
        if self._number and self.state < SETTLING:
            self._set(DROPPING)

    @property
    def can_settle(self) -> bool:
        """Whether it speaks, and all its heads are closed, or no nodes."""
        if self.state != SPEAKING or self._header is None:
            return False
        return not any(
            self._db.execute("SELECT 1 FROM crdt_nodes WHERE multihash = ? AND state < 3", (head,)).fetchone()
            for head in self._header.heads
        )

    def begin_settling(self) -> None:
        """From now on the nodes speak for themselves."""
        self._set(SETTLING)

    @property
    def is_ending(self) -> bool:
        """Whether `settle_some` has something to do."""
        return self.state in (SETTLING, DROPPING)

    def settle_some(self) -> None:
        """Let the nodes take over for the next keys, and note where the checkpoint was wrong."""
        (low,) = self._db.execute(
            "SELECT settled_to FROM crdt_checkpoints WHERE number = ?", (self._number,)
        ).fetchone()
        row = self._db.execute(
            "SELECT key FROM crdt_elements WHERE key > ? ORDER BY key LIMIT 1 OFFSET ?", (low, SETTLED_AT_ONCE)
        ).fetchone()
        high = row[0] if row is not None else None
        wrong = self._entries.unveil(low, high)
        self.count_differing(len(wrong) if self.state == SETTLING else 0)
        if high is None:
            self._set(SETTLED if self.state == SETTLING else DROPPED)
        else:
            self._db.execute("UPDATE crdt_checkpoints SET settled_to = ? WHERE number = ?", (high, self._number))

    def count_differing(self, places: int) -> None:
        """Note that the checkpoint was wrong in so many places more."""
        if places:
            self._db.execute(
                "UPDATE crdt_checkpoints SET differing = differing + ? WHERE number = ?", (places, self._number)
            )

    def _set(self, state: int) -> None:
        self.state = state
        self.changed = True
        self._db.execute("UPDATE crdt_checkpoints SET state = ? WHERE number = ?", (state, self._number))

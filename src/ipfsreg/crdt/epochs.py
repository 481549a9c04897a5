"""Epochs: leaving the history behind, and beginning a new DAG with what all names are.

The first nodes of a new epoch, its seed, are a function of the names alone, so every replica with the same names makes
the same blocks, byte for byte, and nobody has to be believed:

    leaves  the names in byte order of their keys, as many in each as come to 512 KiB; priority 1, no links
    head    no content, priority 2, a link to each leaf; with one leaf, that leaf alone

They are signed by nobody: what they say was signed in the epoch before. They are nodes like any other to go-ds-crdt.
The topic of epoch 2 is the configured one with `.e2` behind it, and so on.

The steps, on all replicas: seal (nothing is written from here), wait until all have the same names, compare their
seeds, rotate, open again. See docs/operations.md.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ipfsreg.crdt.delta import MAX_NODE_LINKS, Delta, Element, Node, build_node
from ipfsreg.crdt.state import DELTA_BYTES, SCHEMA, NodeBlocks, Work, apply
from ipfsreg.crdt.writers import Writers
from ipfsreg.database import Database
from ipfsreg.errors import StoreError

TABLES = (
    "crdt_nodes",
    "crdt_links",
    "crdt_waits",
    "crdt_held",
    "crdt_heads",
    "crdt_tips",
    "crdt_elements",
    "crdt_tombstones",
    "crdt_names",
    "crdt_early",
    "crdt_checkpoints",
)
"""All that belongs to one epoch."""

DropBlocks = Callable[[sqlite3.Connection, Sequence[bytes]], None]
"""Lets go of blocks that were put, by their multihashes, in the transaction of a connection."""


@dataclass(frozen=True, slots=True)
class Epoch:
    """Where a replica is."""

    number: int
    sealed: bool
    """Nothing is written here: the next epoch is about to begin."""
    seed: bytes | None
    """Multihash of the head that this epoch began with; None for the first, and where it is not known."""


FIRST = Epoch(1, sealed=False, seed=None)


def topic_of(configured: str, epoch: int) -> str:
    """The topic in which an epoch is talked about."""
    return configured if epoch == 1 else f"{configured}.e{epoch}"


async def open_epoch(database: Database, least: int) -> Epoch:
    """The epoch of the names in *database*; an empty one begins with epoch *least*.

    Raises:
        StoreError: its names are of an epoch before *least*.
    """
    await database.prepare("crdt", SCHEMA)
    epoch = read_epoch(database)
    if epoch is None and database.read("SELECT 1 FROM crdt_nodes LIMIT 1").fetchone() is None:
        epoch = Epoch(least, sealed=False, seed=None)
        if least > 1:
            await database.write(lambda db: write_epoch(db, Epoch(least, sealed=False, seed=None)))
    epoch = epoch or FIRST
    if epoch.number < least:
        raise StoreError(
            f"the names here are of epoch {epoch.number}, and crdt.epoch = {least}: go there with `ipfsreg epoch next`"
        )
    return epoch


def read_epoch(database: Database) -> Epoch | None:
    """What is written down of the epoch; None: it is the first, and was never sealed."""
    row = database.read("SELECT number, sealed, seed FROM crdt_epoch").fetchone()
    return None if row is None else Epoch(row[0], bool(row[1]), row[2])


def write_epoch(db: sqlite3.Connection, epoch: Epoch) -> None:
    """Write it down."""
    db.execute("DELETE FROM crdt_epoch")
    db.execute("INSERT INTO crdt_epoch VALUES (?, ?, ?)", (epoch.number, epoch.sealed, epoch.seed))


def seed_of(db: sqlite3.Connection) -> list[Node]:
    """The nodes that the next epoch begins with, the head last; none without names. As large as all names together.

    Raises:
        StoreError: more names than one node can link to, some gigabytes.
    """
    leaves: list[Node] = []
    waiting: list[Element] = []
    size = 0

    def flush() -> None:
        leaves.append(build_node((), Delta(tuple(waiting), (), 1)))
        waiting.clear()

    for key, value in db.execute("SELECT key, value FROM crdt_names ORDER BY key"):
        element = Element(key, value)
        cost = len(key.encode()) + len(value) + 16
        if waiting and size + cost > DELTA_BYTES:
            flush()
            size = 0
        waiting.append(element)
        size += cost
    if waiting:
        flush()
    if len(leaves) > MAX_NODE_LINKS:
        raise StoreError(f"the names fill {len(leaves)} nodes, and one can link to {MAX_NODE_LINKS}")
    if len(leaves) < 2:
        return leaves
    return [*leaves, build_node((leaf.multihash for leaf in leaves), Delta((), (), 2))]


def rotate(
    db: sqlite3.Connection,
    blocks: NodeBlocks,
    drop: DropBlocks,
    writers: Writers,
    number: int,
    nodes: Sequence[Node],
    wanted: bytes | None = None,
) -> None:
    """Leave everything behind and begin epoch *number* with *nodes*, in the transaction of *db*.

    *wanted*: with no nodes, the head to fetch instead.
    """
    old = [multihash for (multihash,) in db.execute("SELECT multihash FROM crdt_nodes WHERE state IN (2, 3)")]
    drop(db, old)
    for table in TABLES:
        db.execute(f"DELETE FROM {table}")  # noqa: S608 (our own names)
    db.execute("UPDATE crdt_counts SET count = 0")
    seed = nodes[-1].multihash if nodes else wanted
    for node in nodes:
        apply(blocks, Work(arrivals=[node]), db, writers=writers)
    if wanted is not None and not nodes:
        apply(blocks, Work(tips=[wanted]), db, writers=writers)
    write_epoch(db, Epoch(number, sealed=False, seed=seed))

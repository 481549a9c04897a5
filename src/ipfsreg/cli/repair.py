"""`ipfsreg verify` and `ipfsreg repair`: what of a datastore is right, and a new database out of what is.

Nearly everything in a datastore says by its hash what it should be, so what can still be read of a damaged database is
either right or known to be wrong:

- nodes of the names' DAG that were in the tables, or that this node signed, and all below them, are merged anew, in the
  epoch that the database was in;
- blobs in files are hashed and indexed anew; small ones are taken from the database where the digest is right;
- what is lost of names, any other node has; what is lost of this node's own unsent pushes is lost.

Blocks that only lie in the database are not taken for nodes: anybody's blob could have the bytes of one.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import trio

from ipfsreg.blockstore.disk import Disk, sync_directory
from ipfsreg.blockstore.hashing import digest_of_file
from ipfsreg.blockstore.index import FILE, INLINE, Index, put_blocks_in
from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.blockstore.room import Room, StoreLimits
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.blockstore.uploads import UploadBook
from ipfsreg.crdt import state
from ipfsreg.crdt.delta import Node, is_node_cid, node_cid, parse_node
from ipfsreg.crdt.epochs import FIRST, Epoch, write_epoch
from ipfsreg.database import Database, open_database
from ipfsreg.errors import DigestInvalid, DigestMismatch, IpfsregError, MalformedData, StoreError
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.peer_id import PeerId

DATABASE = "node.db"
REPAIRED = "node.db.repaired"
"""A whole new database that has not taken the old one's place yet."""

_PARTS = ("", "-wal", "-shm")
_PAGE = 200
_ROWID_END = 1 << 62
NODES_AT_ONCE = 256


def _open_to_read(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None, check_same_thread=False)


# --------------------------------------------------------------------------------------------- verify


async def verify(directory: Path, *, hash_files: bool = True) -> list[str]:
    """What is wrong with the datastore in *directory*, a sentence each. May run beside its node; changes nothing.

    *hash_files*: read the bytes of all blobs, which takes as long as that takes.
    """
    path = directory / DATABASE
    if not path.exists():
        return [f"{path} is missing"]
    try:
        found = await trio.to_thread.run_sync(_verify_database, path)
        found += await _verify_files(directory, path, hash_files=hash_files)
    except sqlite3.DatabaseError as error:
        return [f"{path} is damaged: {error}"]
    return found


def _verify_database(path: Path) -> list[str]:
    with closing(_open_to_read(path)) as db:
        found = [f"{path}: {line}" for (line,) in db.execute("PRAGMA integrity_check(20)") if line != "ok"]
        if found:
            return found
        for multihash, data in db.execute("SELECT hash, data FROM small_blocks"):
            if not Cid(1, RAW, bytes(multihash)).matches(data):
                found.append(f"block {multihash.hex()} does not hash to its name")
        missing = db.execute(
            "SELECT multihash FROM crdt_nodes"
            " WHERE state IN (?, ?) AND multihash NOT IN (SELECT hash FROM small_blocks)",
            (state.STORED, state.CLOSED),
        )
        found += [f"the block of node {node_cid(bytes(multihash))} is missing" for (multihash,) in missing]
        return found


async def _verify_files(directory: Path, path: Path, *, hash_files: bool) -> list[str]:
    disk, found = Disk(directory), []
    threads = trio.CapacityLimiter(2)
    with closing(_open_to_read(path)) as db:
        rows = db.execute("SELECT digest, size FROM blobs WHERE state = ? ORDER BY digest", (FILE,))
        for text, size in rows:
            digest = Digest.parse(text)
            file = disk.blob_path(digest)
            try:
                if (await trio.to_thread.run_sync(file.stat)).st_size != size:
                    found.append(f"blob {digest} has not the {size} bytes that it should have")
                elif hash_files and await digest_of_file(file, size, digest.algorithm, threads) != digest.hex:
                    found.append(f"the bytes of blob {digest} do not hash to it")
            except OSError as error:
                found.append(f"blob {digest} cannot be read: {error.strerror}")
    return found


# --------------------------------------------------------------------------------------------- repair


@dataclass(slots=True)
class Repaired:
    """What came of a repair."""

    aside: Path | None = None
    """Where the damaged database lies now."""
    nodes: int = 0
    """Of the names' DAG."""
    names: int = 0
    missing: int = 0
    """Nodes known to be missing; they come from other nodes."""
    blobs: int = 0
    damaged: list[Digest] = field(default_factory=list)
    """Files whose bytes are not what their names say. They are left where they are."""


def told_epoch(number: int | None, head: str | None) -> Epoch | None:
    """The epoch that an operator names, with the CID of the head it began with; None: none was named.

    Raises:
        MalformedData: half of it, or what cannot be one.
    """
    if number is None and head is None:
        return None
    if number is None or number < 1 or (number > 1) != (head is not None):
        raise MalformedData("say the epoch as --epoch 1, or as --epoch N --head CID from 2 on")
    if head is None:
        return FIRST
    cid = Cid.parse(head)
    if not is_node_cid(cid):
        raise MalformedData(f"{head} cannot be the head of an epoch")
    return Epoch(number, sealed=False, seed=cid.multihash)


async def repair(directory: Path, ourselves: PeerId, told: Epoch | None = None) -> Repaired:
    """Make a new database out of what can be trusted in *directory*, and put the old one aside.

    *told*: the epoch of its names, for where the database cannot tell any more.

    The node must not run. Killed while the new database is made, it has changed nothing, and begins anew; killed while
    the two change places, it has only that left to do, and a node does not start before it is done.

    Raises:
        StoreFull, StoreError: nothing was changed. Also where the epoch of the names is not known, or is not the one
            that was told: in a wrong one, names would be written where nobody reads them.
    """
    old, made, ready = (directory / name for name in (DATABASE, f"{DATABASE}.unfinished", REPAIRED))
    disk = Disk(directory)

    def prepare() -> bool:
        if ready.exists():
            return False
        for part in _PARTS:
            Path(f"{made}{part}").unlink(missing_ok=True)
        disk.prepare()
        return True

    report = Repaired()
    if await trio.to_thread.run_sync(prepare):
        there = await trio.Path(old).exists()
        epoch = await trio.to_thread.run_sync(_find_epoch, old, told) if there else told
        async with open_database(made) as database:
            await _fill(database, disk, old if there else None, ourselves, epoch, report)
        await trio.to_thread.run_sync(_rename_durably, made, ready)
    report.aside = await trio.to_thread.run_sync(_exchange, old, ready)
    return report


async def _fill(
    database: Database, disk: Disk, old: Path | None, ourselves: PeerId, epoch: Epoch | None, report: Repaired
) -> None:
    index = await Index.open(database)
    await database.prepare("crdt", state.SCHEMA)
    if epoch is not None and epoch != FIRST:
        await database.write(partial(write_epoch, epoch=epoch))
    async with _open_shelf(disk, index) as (shelf, uploads):
        await _index_files(shelf, uploads, report)
        if old is not None:
            with closing(_open_to_read(old)) as db:
                salvage = await trio.to_thread.run_sync(_Salvage, db, ourselves, epoch or FIRST)
                await _merge_nodes(database, salvage, report)
                await _keep_small_blobs(shelf, salvage, report)
    if epoch is not None and epoch.seed is not None:
        # Where nothing above it was left, it is what the names begin with.
        await database.write(partial(state.apply, _Blocks(), state.Work(tips=[epoch.seed])))
        report.missing = state.tally(database).nodes_wanted


def _find_epoch(old: Path, told: Epoch | None) -> Epoch:
    """The epoch of the names in the database *old*. Raises StoreError."""
    try:
        with closing(_open_to_read(old)) as db:
            found = _epoch_in(db)
    except (sqlite3.DatabaseError, MalformedData) as error:
        if told is None:
            raise StoreError(
                f"{old} does not tell its epoch any more ({error}); see `ipfsreg epoch status` on another node, and say"
                " it: --epoch 1 if `epoch next` was never run, else --epoch N --head CID, the head that it began with"
            ) from error
        return told
    if told is not None and (told.number, told.seed) != (found.number, found.seed):
        head = "" if found.seed is None else f", begun with {node_cid(found.seed)}"
        raise StoreError(f"the names in {old} are of epoch {found.number}{head}: leave out --epoch and --head")
    return found


def _epoch_in(db: sqlite3.Connection) -> Epoch:
    if db.execute("SELECT 1 FROM sqlite_master WHERE name = 'crdt_epoch'").fetchone() is None:
        return FIRST  # written before there were epochs
    row = db.execute("SELECT number, sealed, seed FROM crdt_epoch").fetchone()
    if row is None:
        return FIRST
    number, sealed, seed = row
    if not isinstance(number, int) or number < 1 or not isinstance(seed, bytes | None):
        raise MalformedData("its row is not one of an epoch")
    return Epoch(number, bool(sealed), seed)


@asynccontextmanager
async def _open_shelf(disk: Disk, index: Index) -> AsyncIterator[tuple[Shelf, UploadBook]]:
    async with trio.open_nursery() as nursery:
        # No sweep: it would take files that the new database does not know yet for leftovers.
        shelf = Shelf(disk, index, Room(disk, StoreLimits()), nursery)
        yield shelf, UploadBook(shelf)
        nursery.cancel_scope.cancel()


def _rename_durably(source: Path, target: Path) -> None:
    os.rename(source, target)
    sync_directory(target.parent)


def _exchange(old: Path, ready: Path) -> Path | None:
    """Put *old* aside and *ready* in its place; begun before, it is finished."""
    aside = next(one for number in range(1, 1 << 20) if not (one := Path(f"{old}.damaged-{number}")).exists())
    there = old.exists()
    for part in reversed(_PARTS):  # the log before the file it belongs to: alone, the file is an older state of it
        if Path(f"{old}{part}").exists():
            _rename_durably(Path(f"{old}{part}"), Path(f"{aside}{part}"))
    _rename_durably(ready, old)
    return aside if there else None


class _Salvage:
    """What can still be read of a database."""

    def __init__(self, db: sqlite3.Connection, ourselves: PeerId, epoch: Epoch) -> None:
        self._db = db
        self._epoch = epoch.number
        self._rows: dict[bytes, int] = {}
        own: list[bytes] = []
        for row, multihash, data in read_around(db, "small_blocks", "hash, data"):
            if not isinstance(multihash, bytes) or not isinstance(data, bytes) or not _matches(multihash, data):
                continue
            self._rows[multihash] = row
            node = _node_in(multihash, data, self._epoch)
            if node is not None and node.author == ourselves:
                own.append(multihash)
        known = [
            multihash
            for _, multihash, how in read_around(db, "crdt_nodes", "multihash, state")
            if how in (state.STORED, state.CLOSED) and isinstance(multihash, bytes)
        ]
        self._priorities: dict[bytes, int] = {}
        missing = known + own + ([] if epoch.seed is None else [epoch.seed])
        while missing:
            multihash = missing.pop()
            node = None if multihash in self._priorities else self.node(multihash)
            if node is not None:
                self._priorities[multihash] = node.delta.priority
                missing += node.links

    def block(self, multihash: bytes) -> Block | None:
        """A block that is here, by what it hashes to."""
        row = self._rows.get(multihash)
        if row is None:
            return None
        (data,) = self._db.execute("SELECT data FROM small_blocks WHERE rowid = ?", (row,)).fetchone()
        return Block.verified(Cid(1, RAW, multihash), data)

    def node(self, multihash: bytes) -> Node | None:
        """A node that is here."""
        block = self.block(multihash)
        return None if block is None else _node_in(multihash, bytes(block.data), self._epoch)

    def nodes(self) -> Iterator[Node]:
        """All nodes of the names' DAG, none before those below it."""
        for multihash in sorted(self._priorities, key=lambda one: self._priorities[one]):
            node = self.node(multihash)
            assert node is not None
            yield node

    def small_blobs(self) -> Iterator[tuple[Digest, Block]]:
        """Small blobs that the database lists and whose bytes are right."""
        for _, text, root, how in read_around(self._db, "blobs", "digest, root, state"):
            if how != INLINE or not isinstance(text, str) or not isinstance(root, bytes):
                continue
            try:
                digest, block = Digest.parse(text), self.block(Cid.decode(root).multihash)
            except (DigestInvalid, MalformedData):
                continue
            if block is not None and Digest.of(block.data, digest.algorithm) == digest:
                yield digest, block


def _matches(multihash: bytes, data: bytes) -> bool:
    try:
        return Cid(1, RAW, multihash).matches(data)
    except IpfsregError:
        return False


def _node_in(multihash: bytes, data: bytes, epoch: int) -> Node | None:
    try:
        return parse_node(Block(node_cid(multihash), data), epoch)
    except MalformedData:
        return None


def read_around(db: sqlite3.Connection, table: str, columns: str) -> Iterator[tuple[Any, ...]]:
    """The rows of *table*, each after its rowid, in that order: all that can be read. Damaged pages are stepped over.

    Finding the end of a damaged stretch costs a few dozen lookups.
    """
    query = f"SELECT rowid, {columns} FROM {table} WHERE rowid > ? ORDER BY rowid LIMIT {_PAGE}"  # noqa: S608 (ours)
    at = 0
    while at < _ROWID_END:
        try:
            rows = db.execute(query, (at,)).fetchall()
        except sqlite3.DatabaseError:
            alone = _read_alone(db, query, at)
            if alone is None:
                at = _end_of_damage(db, query, at)
                continue
            rows = [alone]
        if not rows:
            return
        yield from rows
        at = rows[-1][0]


def _read_alone(db: sqlite3.Connection, query: str, at: int) -> tuple[Any, ...] | None:
    """The one row after *at*, if a page that is behind it was what could not be read."""
    try:
        row: tuple[Any, ...] | None = db.execute(query, (at,)).fetchone()
    except sqlite3.DatabaseError:
        return None
    return row


def _end_of_damage(db: sqlite3.Connection, query: str, at: int) -> int:
    """The first place behind *at* from where reading goes on."""
    bad, step = at, 1
    while bad + step < _ROWID_END and _read_alone(db, query, bad + step) is None:
        bad, step = bad + step, step * 2
    good = min(bad + step, _ROWID_END)
    while good - bad > 1:
        middle = (good + bad) // 2
        if _read_alone(db, query, middle) is None:
            bad = middle
        else:
            good = middle
    return good


class _Blocks:
    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        """Keeps `state.NodeBlocks`."""
        put_blocks_in(db, blocks)


async def _merge_nodes(database: Database, salvage: _Salvage, report: Repaired) -> None:
    batch: list[Node] = []
    for node in salvage.nodes():
        batch.append(node)
        if len(batch) == NODES_AT_ONCE:
            await _apply(database, batch, report)
            batch = []
    await _apply(database, batch, report)
    tally = state.tally(database)
    report.names, report.missing = tally.names, tally.nodes_wanted


async def _apply(database: Database, batch: list[Node], report: Repaired) -> None:
    report.nodes += len(batch)
    outcome = await database.write(partial(state.apply, _Blocks(), state.Work(arrivals=batch)))
    while outcome.closing_left:
        outcome = await database.write(partial(state.apply, _Blocks(), state.Work()))


async def _index_files(shelf: Shelf, uploads: UploadBook, report: Repaired) -> None:
    """Take every blob's file in as a push of it: hashed, and published where it is."""
    for path, digest in await trio.to_thread.run_sync(lambda: list(shelf.disk.blob_files())):
        if digest is None:
            continue
        upload_id = os.urandom(16).hex()
        aside = shelf.disk.uploads / upload_id
        await trio.to_thread.run_sync(os.link, path, aside)
        upload = await uploads.resume(upload_id)
        try:
            await upload.commit(digest)
            report.blobs += 1
        except DigestMismatch:
            report.damaged.append(digest)
        finally:
            await shelf.remove_file(aside)


async def _keep_small_blobs(shelf: Shelf, salvage: _Salvage, report: Repaired) -> None:
    for digest, block in salvage.small_blobs():
        if shelf.index.blob(digest) is None:
            await shelf.publish_inline(BlobInfo(digest, len(block.data), block.cid), block)
            report.blobs += 1

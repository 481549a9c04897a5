"""The index of the store: which blocks and blobs are here, and where. Tables of the embedded database.

    blobs         one row per blob: its digest, size, root, and what there is of it
    leaves        multihash -> blob, offset, length: blocks that lie in the file of a blob. A leaf that several blobs
                  share has a row for each; one that a blob has several times has one row
    small_blocks  multihash -> bytes: blocks that were put (`own`), and those that belong to blobs
    blob_blocks   multihash, blob: which blobs a small block belongs to (inner nodes; all of an inline blob)

State of a blob: ARRIVING (a file in `arriving/` with some of the bytes, or none), FILE (whole, in `blobs/`), INLINE
(whole, at most `INLINE_BYTES`; its bytes are the small block its root names).

A blob is `kept` for good, or it came from peers and may go when its room is needed; `used` says when it was last asked
for, in milliseconds since 1970. `blob_totals` has the bytes of all blobs and of those that may go, arriving ones with
what they will have; triggers keep it in step, in whatever transaction a row changes.

Reads answer at once from what is committed. The functions that change something are bodies of transactions, to be
passed to `Database.write`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from ipfsreg.blockstore.interface import BlobInfo, Pulled
from ipfsreg.blockstore.outline import Leaf
from ipfsreg.database import Database
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest

ARRIVING, FILE, INLINE = 0, 1, 2

INLINE_BYTES = 64 * 1024
"""Blobs up to this size lie in the database: one group commit instead of three fsyncs of their own."""

_PAGE = 500

_STEPS = (
    """
    CREATE TABLE blobs (
        id INTEGER PRIMARY KEY,
        digest TEXT NOT NULL UNIQUE,
        size INTEGER NOT NULL,
        root BLOB NOT NULL,
        state INTEGER NOT NULL
    );
    CREATE TABLE leaves (
        hash BLOB NOT NULL,
        blob INTEGER NOT NULL,
        offset INTEGER NOT NULL,
        length INTEGER NOT NULL,
        framed INTEGER NOT NULL,
        PRIMARY KEY (hash, blob)
    ) WITHOUT ROWID;
    CREATE INDEX leaves_by_blob ON leaves (blob);
    CREATE TABLE small_blocks (
        hash BLOB PRIMARY KEY,
        own INTEGER NOT NULL,
        data BLOB NOT NULL
    );
    CREATE TABLE blob_blocks (
        hash BLOB NOT NULL,
        blob INTEGER NOT NULL,
        PRIMARY KEY (hash, blob)
    ) WITHOUT ROWID;
    CREATE INDEX blob_blocks_by_blob ON blob_blocks (blob);
    """,
    # How the blobs of before came here is not known. In doubt they are kept.
    """
    ALTER TABLE blobs ADD COLUMN kept INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE blobs ADD COLUMN used INTEGER NOT NULL DEFAULT 0;
    CREATE INDEX blobs_by_use ON blobs (used) WHERE kept = 0;
    CREATE TABLE blob_totals (bytes INTEGER NOT NULL, pulled INTEGER NOT NULL);
    INSERT INTO blob_totals SELECT coalesce(sum(size), 0), 0 FROM blobs;
    CREATE TRIGGER blob_totals_insert AFTER INSERT ON blobs BEGIN
        UPDATE blob_totals SET bytes = bytes + NEW.size, pulled = pulled + NEW.size * (1 - NEW.kept);
    END;
    CREATE TRIGGER blob_totals_update AFTER UPDATE OF size, kept ON blobs BEGIN
        UPDATE blob_totals SET
            bytes = bytes + NEW.size - OLD.size,
            pulled = pulled + NEW.size * (1 - NEW.kept) - OLD.size * (1 - OLD.kept);
    END;
    CREATE TRIGGER blob_totals_delete AFTER DELETE ON blobs BEGIN
        UPDATE blob_totals SET bytes = bytes - OLD.size, pulled = pulled - OLD.size * (1 - OLD.kept);
    END
    """,
)


@dataclass(frozen=True, slots=True)
class BlobRow:
    """A blob, whole or arriving."""

    id: int
    info: BlobInfo
    state: int

    @property
    def is_whole(self) -> bool:
        return self.state != ARRIVING


@dataclass(frozen=True, slots=True)
class LeafPlace:
    """A leaf in the file of a whole blob."""

    digest: Digest
    leaf: Leaf


@dataclass(frozen=True, slots=True)
class Census:
    """What is in a store, counted."""

    blobs: dict[int, tuple[int, int]]
    """By state: how many, and their bytes; of arriving ones the bytes they will have."""
    leaves: int
    """Blocks that lie in files of blobs."""
    small_blocks: int
    """Blocks in the database."""


def put_blocks_in(db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
    """Keep *blocks* as put, in the transaction *db* is in."""
    db.executemany(
        "INSERT INTO small_blocks (hash, own, data) VALUES (?, 1, ?) ON CONFLICT (hash) DO UPDATE SET own = 1",
        [(block.cid.multihash, bytes(block.data)) for block in blocks],
    )


def delete_blocks_in(db: sqlite3.Connection, multihashes: Sequence[bytes]) -> None:
    """Forget, in the transaction of *db*, that blocks were put; what belongs to no blob goes."""
    db.executemany("UPDATE small_blocks SET own = 0 WHERE hash = ?", [(multihash,) for multihash in multihashes])
    _drop_unused(db, multihashes)


class Index:
    """The tables, as the store asks them."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @classmethod
    async def open(cls, database: Database) -> Index:
        """Bring the tables up to date."""
        await database.prepare("blockstore", _STEPS)
        return cls(database)

    async def census(self) -> Census:
        """Count everything, beside the event loop: a fraction of a second for a million blocks. Raises StoreError."""
        blobs = await self._database.count("SELECT state, count(*), sum(size) FROM blobs GROUP BY state")
        ((leaves, small),) = await self._database.count(
            "SELECT (SELECT count(*) FROM leaves), (SELECT count(*) FROM small_blocks)"
        )
        return Census({state: (count, size) for state, count, size in blobs}, leaves, small)

    def blob(self, digest: Digest) -> BlobRow | None:
        """The blob, in whatever state."""
        row = self._database.read("SELECT id, size, root, state FROM blobs WHERE digest = ?", (str(digest),)).fetchone()
        return None if row is None else BlobRow(row[0], BlobInfo(digest, row[1], Cid.decode(row[2])), row[3])

    def blobs(self, *, whole: bool) -> Iterator[BlobInfo]:
        """Blobs by digest, those that are whole or those that are not; read page by page while iterating."""
        last = ""
        while True:
            rows = self._database.read(
                "SELECT digest, size, root FROM blobs WHERE digest > ? AND (state > 0) = ? ORDER BY digest LIMIT ?",
                (last, whole, _PAGE),
            ).fetchall()
            for digest, size, root in rows:
                yield BlobInfo(Digest.parse(digest), size, Cid.decode(root))
            if len(rows) < _PAGE:
                return
            last = rows[-1][0]

    def totals(self) -> tuple[int, int]:
        """Bytes of all blobs, and of those among them that are not kept. Of arriving ones those they will have."""
        total, pulled = self._database.read("SELECT bytes, pulled FROM blob_totals").fetchone()
        return total, pulled

    def is_kept(self, digest: Digest) -> bool:
        """Whether the blob is to stay for good."""
        row = self._database.read("SELECT kept FROM blobs WHERE digest = ?", (str(digest),)).fetchone()
        return row is not None and bool(row[0])

    def least_used(self, after: tuple[int, int], limit: int) -> list[Pulled]:
        """Up to *limit* blobs that are not kept, the least recently used first, those behind the place *after*."""
        rows = self._database.read(
            "SELECT id, used, digest, size, root, state FROM blobs INDEXED BY blobs_by_use "
            "WHERE kept = 0 AND (used, id) > (?, ?) ORDER BY used, id LIMIT ?",
            (*after, limit),
        )
        return [
            Pulled(BlobInfo(Digest.parse(digest), size, Cid.decode(root)), state != ARRIVING, (used, number))
            for number, used, digest, size, root, state in rows
        ]

    def small_size(self, multihash: bytes) -> int | None:
        """Length of a small block."""
        row = self._database.read("SELECT length(data) FROM small_blocks WHERE hash = ?", (multihash,)).fetchone()
        return None if row is None else int(row[0])

    def small_block(self, multihash: bytes) -> bytes | None:
        """The bytes of a small block, unchecked."""
        row = self._database.read("SELECT data FROM small_blocks WHERE hash = ?", (multihash,)).fetchone()
        return None if row is None else bytes(row[0])

    def owns(self, multihash: bytes) -> bool:
        """Whether the block is here because it was put."""
        return (
            self._database.read("SELECT 1 FROM small_blocks WHERE hash = ? AND own = 1", (multihash,)).fetchone()
            is not None
        )

    def leaf(self, multihash: bytes) -> Leaf | None:
        """Where a leaf lies in any of the whole blobs that have it."""
        row = self._database.read(
            "SELECT offset, length, framed FROM leaves WHERE hash = ? LIMIT 1", (multihash,)
        ).fetchone()
        return None if row is None else Leaf(row[0], row[1], bool(row[2]))

    def leaf_places(self, multihash: bytes) -> list[LeafPlace]:
        """Where a leaf lies in each whole blob that has it, at most eight of them."""
        rows = self._database.read(
            "SELECT digest, offset, length, framed FROM leaves JOIN blobs ON blobs.id = leaves.blob "
            "WHERE hash = ? LIMIT 8",
            (multihash,),
        )
        return [LeafPlace(Digest.parse(row[0]), Leaf(row[1], row[2], bool(row[3]))) for row in rows]

    # ------------------------------------------------------------- changes

    async def put_blocks(self, blocks: Sequence[Block]) -> None:
        """Keep *blocks* as put."""
        await self._database.write(partial(put_blocks_in, blocks=blocks))

    async def delete_blocks(self, multihashes: Sequence[bytes]) -> None:
        """Forget that *multihashes* were put; what belongs to no blob goes."""

        await self._database.write(partial(delete_blocks_in, multihashes=multihashes))

    async def drop_damaged(self, multihash: bytes) -> None:
        """Delete a small block whose bytes have rotted, whoever needs it. An inline blob of it is whole no more."""

        def drop(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM small_blocks WHERE hash = ?", (multihash,))
            db.execute(
                "UPDATE blobs SET state = ? WHERE state = ? AND id IN (SELECT blob FROM blob_blocks WHERE hash = ?)",
                (ARRIVING, INLINE, multihash),
            )

        await self._database.write(drop)

    async def publish(
        self,
        info: BlobInfo,
        state: int,
        leaves: Sequence[tuple[bytes, Leaf]],
        blocks: Sequence[Block],
        *,
        keep: bool = True,
    ) -> BlobInfo:
        """Record a whole blob, with its *leaves* and the small *blocks* of its DAG.

        The first root it was known under stays its root; leaves and nodes of later ones are served beside. Without
        *keep* it is kept only if it was so before.
        """
        return await self._database.write(partial(_publish, info, state, leaves, blocks, keep))

    async def keep(self, digests: Sequence[Digest]) -> None:
        """Let the blobs among *digests* that are here stay for good."""
        rows = [(str(digest),) for digest in digests]
        await self._database.write(lambda db: _many(db, "UPDATE blobs SET kept = 1 WHERE digest = ?", rows))

    async def used(self, when: Sequence[tuple[Digest, int]]) -> None:
        """Note when blobs were last asked for."""
        rows = [(milliseconds, str(digest)) for digest, milliseconds in when]
        sql = "UPDATE blobs SET used = ? WHERE digest = ? AND kept = 0"
        await self._database.write(lambda db: _many(db, sql, rows))

    async def restore(self, row: BlobRow, leaves: Sequence[tuple[bytes, Leaf]], blocks: Sequence[Block]) -> None:
        """Record again what of the DAG of a whole blob may be missing here; nothing where it is *row* no more."""

        def restore(db: sqlite3.Connection) -> None:
            if _find(db, row.info.digest) == row:
                _publish(row.info, row.state, leaves, blocks, False, db)

        await self._database.write(restore)

    async def begin(self, info: BlobInfo) -> BlobRow:
        """Record that a blob is arriving. One that is whole stays so; an arrival by another root is forgotten."""

        def begin(db: sqlite3.Connection) -> BlobRow:
            row = _find(db, info.digest)
            if row is not None and not row.is_whole and row.info != info:
                _forget(db, row.id)
                row = None
            if row is None:
                row = BlobRow(_insert(db, info, ARRIVING, kept=False), info, ARRIVING)
            return row

        return await self._database.write(begin)

    async def add_nodes(self, blob: int, blocks: Sequence[Block]) -> None:
        """Keep inner nodes of an arriving blob. A blob that is gone meanwhile gets nothing."""

        def add(db: sqlite3.Connection) -> None:
            if db.execute("SELECT 1 FROM blobs WHERE id = ?", (blob,)).fetchone() is not None:
                _add_blocks(db, blob, blocks)

        await self._database.write(add)

    async def demote(self, digest: Digest) -> None:
        """A whole blob turned out not to be: count it as arriving, and none of its leaves as here."""

        def demote(db: sqlite3.Connection) -> None:
            row = _find(db, digest)
            if row is not None:
                db.execute("UPDATE blobs SET state = ? WHERE id = ?", (ARRIVING, row.id))
                db.execute("DELETE FROM leaves WHERE blob = ?", (row.id,))

        await self._database.write(demote)

    async def forget(self, digest: Digest, unless: Callable[[sqlite3.Connection], bool] = lambda db: False) -> bool:
        """Delete the blob with all that is only its own. False: *unless* forbids it."""

        def forget(db: sqlite3.Connection) -> bool:
            row = _find(db, digest)
            if row is None:
                return True
            if unless(db):
                return False
            _forget(db, row.id)
            return True

        return await self._database.write(forget)


def _find(db: sqlite3.Connection, digest: Digest) -> BlobRow | None:
    row = db.execute("SELECT id, size, root, state FROM blobs WHERE digest = ?", (str(digest),)).fetchone()
    return None if row is None else BlobRow(row[0], BlobInfo(digest, row[1], Cid.decode(row[2])), row[3])


def _many(db: sqlite3.Connection, sql: str, rows: Iterable[Sequence[object]]) -> None:
    db.executemany(sql, rows)


def is_kept_in(db: sqlite3.Connection, digest: Digest) -> bool:
    """Whether the blob is to stay for good, as the transaction *db* is in sees it."""
    return db.execute("SELECT 1 FROM blobs WHERE digest = ? AND kept = 1", (str(digest),)).fetchone() is not None


def _insert(db: sqlite3.Connection, info: BlobInfo, state: int, *, kept: bool) -> int:
    row = db.execute(
        "INSERT INTO blobs (digest, size, root, state, kept, used) VALUES (?, ?, ?, ?, ?, ?)",
        (str(info.digest), info.size, bytes(info.root), state, kept, time.time_ns() // 1_000_000),
    ).lastrowid
    assert row is not None
    return row


def _publish(
    info: BlobInfo,
    state: int,
    leaves: Sequence[tuple[bytes, Leaf]],
    blocks: Sequence[Block],
    keep: bool,
    db: sqlite3.Connection,
) -> BlobInfo:
    row = _find(db, info.digest)
    if row is not None and keep:
        db.execute("UPDATE blobs SET kept = 1 WHERE id = ? AND kept = 0", (row.id,))
    if row is None:
        row = BlobRow(_insert(db, info, state, kept=keep), info, state)
    elif row.is_whole and row.info.size == info.size:
        db.execute("UPDATE blobs SET state = ? WHERE id = ?", (state, row.id))
        info = row.info
    else:
        db.execute(
            "UPDATE blobs SET size = ?, root = ?, state = ? WHERE id = ?",
            (info.size, bytes(info.root), state, row.id),
        )
    db.executemany(
        "INSERT OR IGNORE INTO leaves (hash, blob, offset, length, framed) VALUES (?, ?, ?, ?, ?)",
        [(multihash, row.id, leaf.offset, leaf.length, leaf.framed) for multihash, leaf in leaves],
    )
    _add_blocks(db, row.id, blocks)
    return info


def _add_blocks(db: sqlite3.Connection, blob: int, blocks: Iterable[Block]) -> None:
    for block in blocks:
        # Other bytes under the same hash have rotted: these mend them.
        db.execute(
            "INSERT INTO small_blocks (hash, own, data) VALUES (?, 0, ?) "
            "ON CONFLICT (hash) DO UPDATE SET data = excluded.data WHERE data <> excluded.data",
            (block.cid.multihash, bytes(block.data)),
        )
        db.execute("INSERT OR IGNORE INTO blob_blocks (hash, blob) VALUES (?, ?)", (block.cid.multihash, blob))


def _forget(db: sqlite3.Connection, blob: int) -> None:
    hashes = [row[0] for row in db.execute("SELECT hash FROM blob_blocks WHERE blob = ?", (blob,))]
    db.execute("DELETE FROM leaves WHERE blob = ?", (blob,))
    db.execute("DELETE FROM blob_blocks WHERE blob = ?", (blob,))
    db.execute("DELETE FROM blobs WHERE id = ?", (blob,))
    _drop_unused(db, hashes)


def _drop_unused(db: sqlite3.Connection, multihashes: Iterable[bytes]) -> None:
    db.executemany(
        "DELETE FROM small_blocks WHERE hash = ?1 AND own = 0 "
        "AND NOT EXISTS (SELECT 1 FROM blob_blocks WHERE blob_blocks.hash = ?1)",
        [(multihash,) for multihash in multihashes],
    )

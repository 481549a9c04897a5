"""`ipfsreg epoch next`: leave the history of the names behind. The node must not run."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ipfsreg.blockstore.index import Index, delete_blocks_in, put_blocks_in
from ipfsreg.config import Config
from ipfsreg.crdt import epochs
from ipfsreg.crdt.delta import is_node_cid, node_cid
from ipfsreg.crdt.epochs import Epoch
from ipfsreg.database import Database, open_database
from ipfsreg.datastore import identity_of
from ipfsreg.errors import MalformedData, StoreError
from ipfsreg.ipld.cid import Cid
from ipfsreg.trust import writers_of


class _SmallBlocks:
    put_in = staticmethod(put_blocks_in)


@dataclass(frozen=True, slots=True)
class Size:
    """What names take."""

    names: int
    rows: int
    """In all tables of names, and of their blocks."""
    bytes: int
    """Of the database file, log included."""


@dataclass(frozen=True, slots=True)
class Rotated:
    """What became of a datastore."""

    epoch: int
    topic: str
    before: Size
    after: Size


async def rotate(config: Config, head: str, *, discard: bool = False) -> Rotated:
    """Begin the next epoch, whose first head must be *head*, with the names that are here.

    *discard*: with no names; those below *head* are fetched from peers when the node runs. What was written here and
    reached nobody is lost then.

    Raises:
        MalformedData: *head* is no CID of a node.
        StoreError: names are written here, or the names here do not make that head; nothing was changed.
        StoreFull: nothing was changed, or the file was not made smaller.
    """
    cid = Cid.parse(head)
    if not is_node_cid(cid):
        raise MalformedData(f"{head} cannot be the head of an epoch")
    directory = Path(config.node.datastore_path)
    async with open_database(directory / "node.db") as database:
        await Index.open(database)
        epoch = await epochs.open_epoch(database, 1)
        nodes = []
        if not discard:
            _check_sealed(epoch)
            async with database.snapshot() as snapshot:
                nodes = await snapshot.run(epochs.seed_of)
            found = node_cid(nodes[-1].multihash) if nodes else None
            if found is None or found.multihash != cid.multihash:
                raise StoreError(f"the names here make {found}, not {cid}: wait until all nodes have the same names")
        before = _measure(database, directory)
        await database.write(
            partial(
                epochs.rotate,
                blocks=_SmallBlocks(),
                drop=delete_blocks_in,
                writers=writers_of(config, identity_of(config).peer_id, cid.multihash),
                number=epoch.number + 1,
                nodes=nodes,
                wanted=cid.multihash,
            )
        )
        await database.compact()
        after = _measure(database, directory)
    number = epoch.number + 1
    return Rotated(number, epochs.topic_of(config.crdt.pubsub_topic, number), before, after)


def _check_sealed(epoch: Epoch) -> None:
    if not epoch.sealed:
        raise StoreError("names are written here: `ipfsreg epoch seal` on every node first, while they run")


def _measure(database: Database, directory: Path) -> Size:
    rows = 0
    for table in (*epochs.TABLES, "small_blocks"):
        rows += database.read(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608 (our own names)
    (names,) = database.read("SELECT count FROM crdt_counts WHERE name = 'names'").fetchone()
    size = sum(path.stat().st_size for part in ("", "-wal") if (path := directory / f"node.db{part}").exists())
    return Size(names, rows, size)

"""Datastores with holes in their database: what is found, and what comes back."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from random import Random

import pytest

from ipfsreg.blockstore.index import delete_blocks_in, put_blocks_in
from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.cli.repair import read_around, repair, told_epoch, verify
from ipfsreg.crdt.delta import Delta, Element, build_node, node_cid
from ipfsreg.crdt.epochs import Epoch, read_epoch, rotate, seed_of
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.crdt.replica import Replica, open_replica
from ipfsreg.crdt.writers import EVERYBODY
from ipfsreg.database import open_database
from ipfsreg.errors import BlobUnknown, MalformedData, StoreError
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import NamedSigner, ReplicaSwarm, SwarmBlocks
from ipfsreg.testing.topic import MemoryMesh

LARGE = os.urandom(300_000)
SMALL = b"a manifest, say"
FORGED = bytes(build_node([], Delta((Element("/forged", b"never merged"),), (), 1)).block.data)
"""The bytes of a node, pushed as a blob."""

PAGE_BYTES = 4096


@asynccontextmanager
async def open_datastore(directory: Path) -> AsyncIterator[tuple[Replica, BlobStore]]:
    async with (
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database) as (store, blobs),
        MemoryMesh().join("names", peer_of("alice")) as topic,
        open_replica(
            database,
            store,
            SwarmBlocks(ReplicaSwarm(directory), peer_of("alice")),
            topic,
            signer=NamedSigner("alice"),
        ) as replica,
    ):
        yield replica, blobs


async def fill(directory: Path) -> dict[str, bytes]:
    async with open_datastore(directory) as (replica, blobs):
        for content in (LARGE, SMALL, FORGED):
            await blobs.put_whole(content)
        for number in range(120):
            await replica.commit([Put(f"/r/app/_t/{number:03}", b"%d" % number * 100), Put("/last", b"%d" % number)])
        await replica.commit([Delete("/r/app/_t/007")])
        return dict(replica.scan("/"))


def pages_of(path: Path, table: str) -> list[int]:
    """The leaf pages of a table, or all pages that are no table's root where the SQLite here cannot tell."""
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        data = path.read_bytes()
    page = data[(root - 1) * PAGE_BYTES : root * PAGE_BYTES]
    assert page[0] == 0x05, f"{table} is one page only"  # an interior page of a table b-tree (fileformat2.html, 1.6)
    cells = int.from_bytes(page[3:5], "big")
    places = [int.from_bytes(page[12 + 2 * cell : 14 + 2 * cell], "big") for cell in range(cells)]
    return [int.from_bytes(page[place : place + 4], "big") for place in places]


def destroy(path: Path, pages: list[int]) -> None:
    with path.open("r+b") as file:
        for page in pages:
            file.seek((page - 1) * PAGE_BYTES)
            file.write(b"\xff" * PAGE_BYTES)


async def test_a_whole_datastore_is_found_right_and_stays_what_it_is_through_a_repair(tmp_path: Path) -> None:
    names = await fill(tmp_path)
    assert await verify(tmp_path) == []
    async with open_datastore(tmp_path) as (replica, _):
        heads = replica.heads()
    report = await repair(tmp_path, peer_of("alice"))
    assert (report.nodes, report.names, report.missing, report.blobs) == (121, len(names), 0, 3)
    assert await verify(tmp_path) == []
    async with open_datastore(tmp_path) as (replica, blobs):
        assert dict(replica.scan("/")) == names
        assert replica.heads() == heads
        for content in (LARGE, SMALL, FORGED):
            assert await blobs.read_whole(Digest.of(content), 1 << 20) == content
    assert report.aside is not None
    assert report.aside.exists()


class PutBlocks:
    put_in = staticmethod(put_blocks_in)


async def fill_epoch_2(directory: Path, *, sealed: bool = False) -> tuple[dict[str, bytes], bytes]:
    """Names of the second epoch; also the head it began with."""
    await fill(directory)
    async with open_database(directory / "node.db") as database:
        async with database.snapshot() as snapshot:
            nodes = await snapshot.run(seed_of)
        begin = partial(rotate, blocks=PutBlocks(), drop=delete_blocks_in, writers=EVERYBODY, number=2, nodes=nodes)
        await database.write(begin)
    async with open_datastore(directory) as (replica, _):
        await replica.commit([Put("/new", b"of epoch 2")])
        if sealed:
            await replica.seal()
        return dict(replica.scan("/")), nodes[-1].multihash


@pytest.mark.parametrize("sealed", [False, True])
async def test_names_stay_in_their_epoch(tmp_path: Path, sealed: bool) -> None:
    names, seed = await fill_epoch_2(tmp_path, sealed=sealed)
    with pytest.raises(StoreError, match="are of epoch 2, begun with"):
        await repair(tmp_path, peer_of("alice"), told_epoch(1, None))
    await repair(tmp_path, peer_of("alice"))
    async with open_datastore(tmp_path) as (replica, _):
        assert replica.epoch == Epoch(2, sealed, seed)
        assert dict(replica.scan("/")) == names


async def test_a_database_that_cannot_tell_its_epoch_is_repaired_only_when_told(tmp_path: Path) -> None:
    names, seed = await fill_epoch_2(tmp_path)
    path = tmp_path / "node.db"
    with closing(sqlite3.connect(path)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'crdt_epoch'").fetchone()
        nodes = [page for (page,) in db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'crdt_nodes'")]
    destroy(path, [root, *nodes])
    with pytest.raises(StoreError, match="does not tell its epoch"):
        await repair(tmp_path, peer_of("alice"))
    await repair(tmp_path, peer_of("alice"), told_epoch(2, str(node_cid(seed))))
    async with open_datastore(tmp_path) as (replica, _):
        assert replica.epoch == Epoch(2, sealed=False, seed=seed)
        assert dict(replica.scan("/")) == names


async def test_with_nothing_left_of_an_epoch_its_head_is_wanted(tmp_path: Path) -> None:
    _, seed = await fill_epoch_2(tmp_path)
    (tmp_path / "node.db").unlink()
    report = await repair(tmp_path, peer_of("alice"), told_epoch(2, str(node_cid(seed))))
    assert report.missing == 1
    async with open_database(tmp_path / "node.db") as database:
        assert read_epoch(database) == Epoch(2, sealed=False, seed=seed)


@pytest.mark.parametrize(
    ("number", "head"),
    [(2, None), (None, str(node_cid(b"\x12\x20" + bytes(32)))), (0, None), (2, "bafkreia"), (2, str(Digest.of(b"")))],
)
def test_half_an_epoch_is_none(number: int | None, head: str | None) -> None:
    with pytest.raises(MalformedData):
        told_epoch(number, head)


@pytest.mark.parametrize("table", ["crdt_nodes", "small_blocks"])
async def test_pages_that_are_lost_take_nothing_else_with_them(tmp_path: Path, table: str) -> None:
    names = await fill(tmp_path)
    path = tmp_path / "node.db"
    lost = Random(1).sample(pages_of(path, table), 1)
    destroy(path, lost)
    assert any("node.db" in line for line in await verify(tmp_path))
    report = await repair(tmp_path, peer_of("alice"))
    async with open_datastore(tmp_path) as (replica, blobs):
        found = dict(replica.scan("/"))
        assert await blobs.read_whole(Digest.of(LARGE), 1 << 20) == LARGE
        if table == "crdt_nodes":
            assert found == names, "what this node signed is known by its signature"
        else:
            assert report.missing > 0, "what is below the lost nodes' heirs is wanted, and comes from other nodes"
            assert len(found) > len(names) // 2
            assert found.items() <= names.items() | {("/r/app/_t/007", b"7" * 100)}
        assert "/forged" not in found


async def test_without_a_database_the_files_are_taken_in(tmp_path: Path) -> None:
    await fill(tmp_path)
    (tmp_path / "node.db").unlink()
    report = await repair(tmp_path, peer_of("alice"))
    assert (report.aside, report.names, report.blobs) == (None, 0, 1)
    async with open_datastore(tmp_path) as (_, blobs):
        assert await blobs.read_whole(Digest.of(LARGE), 1 << 20) == LARGE


async def test_a_file_with_wrong_bytes_is_named_and_left(tmp_path: Path) -> None:
    await fill(tmp_path)
    (file,) = [path for path in (tmp_path / "blobs").glob("*/*/*") if path.stat().st_size == len(LARGE)]
    with file.open("r+b") as opened:
        opened.write(b"rot")
    assert await verify(tmp_path) == [f"the bytes of blob {Digest.of(LARGE)} do not hash to it"]
    assert await verify(tmp_path, hash_files=False) == []
    report = await repair(tmp_path, peer_of("alice"))
    assert report.damaged == [Digest.of(LARGE)]
    assert file.stat().st_size == len(LARGE)
    async with open_datastore(tmp_path) as (_, blobs):
        with pytest.raises(BlobUnknown):
            await blobs.read_whole(Digest.of(LARGE), 1 << 20)


async def test_a_file_that_no_database_remains_of_is_put_aside_and_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "node.db").write_bytes(b"garbage" * 5000)
    assert len(await verify(tmp_path)) == 1
    with pytest.raises(StoreError, match="--epoch 1 if"):
        await repair(tmp_path, peer_of("alice"))
    report = await repair(tmp_path, peer_of("alice"), told_epoch(1, None))
    assert report.aside is not None
    assert report.aside.read_bytes() == b"garbage" * 5000
    assert await verify(tmp_path) == []


def test_rows_on_both_sides_of_damaged_pages_are_read(tmp_path: Path) -> None:
    path = tmp_path / "some.db"
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE notes (number INTEGER PRIMARY KEY, text TEXT)")
        db.executemany("INSERT INTO notes VALUES (?, ?)", [(number * 3, "x" * 300) for number in range(2000)])
        db.commit()
    pages = pages_of(path, "notes")
    destroy(path, pages[3:6] + pages[50:51] + pages[-1:])
    with closing(sqlite3.connect(path)) as db:
        found = [number for number, _ in read_around(db, "notes", "text")]
    assert found == sorted(set(found))
    assert 2000 - 5 * 14 <= len(found) < 2000


@pytest.mark.parametrize("step", range(4))
async def test_a_repair_that_is_cut_off_while_the_databases_change_places_is_finished_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    names = await fill(tmp_path)
    # A log beside the file, as a kill leaves it: what it has must not be lost, nor end up beside the new file.
    with closing(sqlite3.connect(tmp_path / "node.db")) as writer, closing(sqlite3.connect(tmp_path / "node.db")) as db:
        writer.execute("DELETE FROM crdt_rules")
        writer.commit()
        for part in ("", "-wal"):
            shutil.copy(tmp_path / f"node.db{part}", tmp_path / f"copy{part}")
        del db
    for part in ("", "-wal"):
        os.replace(tmp_path / f"copy{part}", tmp_path / f"node.db{part}")
    real = os.rename
    renames: list[Path] = []

    def rename(source: Path, target: Path) -> None:
        if Path(source).name.startswith("node.db"):
            if len(renames) == step:
                raise KeyboardInterrupt
            renames.append(target)
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", rename)
        with pytest.raises(KeyboardInterrupt):
            await repair(tmp_path, peer_of("alice"))
    await repair(tmp_path, peer_of("alice"))
    assert await verify(tmp_path) == []
    assert not (tmp_path / "node.db.repaired").exists()
    assert (tmp_path / "node.db.damaged-1").exists()
    async with open_datastore(tmp_path) as (replica, blobs):
        assert dict(replica.scan("/")) == names
        assert await blobs.read_whole(Digest.of(SMALL), 1 << 20) == SMALL

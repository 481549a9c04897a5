from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import V1_2025
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import file_blocks, pattern
from ipfsreg.testing.crash_points import every_crash

CHUNK = V1_2025.chunk_bytes
LAYER = pattern(2 * CHUNK + 5)
FETCHED = pattern(3 * CHUNK)[1:]
DELETED = pattern(CHUNK + 7)
MANIFEST = b'{"schemaVersion": 2}'
NODE = Block.of(b"a node of the name store")


@asynccontextmanager
async def open_in(directory: Path) -> AsyncIterator[tuple[DiskBlockstore, DiskBlobStore]]:
    async with open_database(directory / "db") as database, open_blobstore(directory / "store", database) as stores:
        yield stores


async def story(directory: Path, acknowledge: Callable[[str], None]) -> None:
    """A bit of everything that is durable, told again and again from where it was cut off."""
    async with open_in(directory) as (blocks, blobs):
        await blocks.put(NODE)
        acknowledge("node")
        await blobs.put_whole(MANIFEST)
        acknowledge("manifest")
        for name, data in (("layer", LAYER), ("deleted", DELETED)):
            upload = await blobs.create_upload()
            acknowledge(f"upload {upload.id} 0")
            for start in range(0, len(data), CHUNK):
                await upload.write(data[start : start + CHUNK])
                acknowledge(f"upload {upload.id} {upload.offset}")
            acknowledge("committing")
            await upload.commit(Digest.of(data))
            acknowledge(name)
        acknowledge("deleting")
        await blobs.delete(Digest.of(DELETED))
        acknowledge("gone")
        await fetch(blobs)
        acknowledge("fetched")
        refused = await blobs.create_upload()
        await refused.write(b"to be thrown away")
        await refused.abort()
    acknowledge("closed")


async def fetch(blobs: DiskBlobStore) -> int:
    layout, source = file_blocks(FETCHED)
    partial = await blobs.open_partial(Digest.of(FETCHED), len(FETCHED), layout.root)
    given = 0
    while wanted := partial.wanted():
        for cid in wanted:
            await partial.put(source[cid])
            given += 1
    await partial.complete()
    return given


async def check(directory: Path, acknowledged: Sequence[str]) -> None:
    async with open_in(directory) as (blocks, blobs):
        await blobs._shelf.sweep()
        if "node" in acknowledged:
            assert await blocks.get(NODE.cid) == NODE
        for word, data in (("manifest", MANIFEST), ("layer", LAYER), ("fetched", FETCHED)):
            if word in acknowledged:
                assert blobs.stat(Digest.of(data)) is not None, word
        if "deleted" in acknowledged and "deleting" not in acknowledged:
            assert blobs.stat(Digest.of(DELETED)) is not None
        if "gone" in acknowledged:
            assert blobs.stat(Digest.of(DELETED)) is None
        await everything_here_is_whole(blocks, blobs)
        await no_file_is_without_an_owner(directory, blobs)
    async with open_in(directory) as (blocks, blobs):
        await story_goes_on(blobs)
        await everything_here_is_whole(blocks, blobs)


async def everything_here_is_whole(blocks: DiskBlockstore, blobs: DiskBlobStore) -> None:
    contents = {Digest.of(data): data for data in (MANIFEST, LAYER, DELETED, FETCHED)}
    for info in blobs.blobs():
        data = contents[info.digest]
        assert await blobs.read_whole(info.digest, len(data)) == data
        assert blobs.open(info.digest).path.read_bytes() == data
        for cid, block in file_blocks(data)[1].items():
            assert bytes((await blocks.get(cid)).data) == bytes(block.data)


async def no_file_is_without_an_owner(directory: Path, blobs: DiskBlobStore) -> None:
    store = directory / "store"
    whole = {info.digest.hex for info in blobs.blobs()}
    assert {path.name for path in store.glob("blobs/*/*/*")} <= whole
    arriving = {f"sha256-{info.digest.hex}" for info in blobs.partials()}
    assert {path.name for path in store.glob("arriving/*")} <= arriving
    for path in store.glob("uploads/*"):
        upload = await blobs.resume_upload(path.name)
        assert upload.offset in (0, CHUNK, 2 * CHUNK, len(LAYER), len(DELETED), len(b"to be thrown away"))


async def story_goes_on(blobs: DiskBlobStore) -> None:
    """Whatever was cut off can be done again."""
    for data in (LAYER, DELETED):
        upload = await blobs.create_upload()
        await upload.write(data)
        await upload.commit(Digest.of(data))
    await blobs.put_whole(MANIFEST)
    await fetch(blobs)
    await blobs.expire_uploads(-60)


async def check_kill(directory: Path, acknowledged: Sequence[str]) -> None:
    """What a killed process had written is in the kernel's hands: uploads go on where they were."""
    async with open_in(directory) as (_, blobs):
        last = [line.split() for line in acknowledged if line.startswith("upload")][-1:]
        if last and acknowledged[-1].startswith("upload"):
            upload = await blobs.resume_upload(last[0][1])
            assert upload.offset >= int(last[0][2])
            data = LAYER if "layer" not in acknowledged else DELETED
            await upload.write(data[upload.offset :])
            await upload.commit(Digest.of(data))
    await check(directory, acknowledged)


def test_what_was_acknowledged_survives_a_kill_before_each_durable_step(tmp_path: Path) -> None:
    assert every_crash(story, check_kill, tmp_path) > 20


def test_what_was_acknowledged_survives_a_power_cut_before_each_durable_step(tmp_path: Path) -> None:
    assert every_crash(story, check, tmp_path, power_cut=True) > 20


async def test_files_nobody_knows_are_swept_and_known_ones_stay(tmp_path: Path) -> None:
    async with open_in(tmp_path) as (_, blobs):
        upload = await blobs.create_upload()
        await upload.write(LAYER)
        await upload.commit(Digest.of(LAYER))
        layout, source = file_blocks(FETCHED)
        partial = await blobs.open_partial(Digest.of(FETCHED), len(FETCHED), layout.root)
        await partial.put(source[layout.root])
    store = tmp_path / "store"
    orphan = store / "blobs" / "sha256" / "00" / ("00" * 32)
    orphan.parent.mkdir(parents=True)
    strange = store / "blobs" / "sha256" / "00" / "README"
    forgotten = store / "arriving" / f"sha256-{'11' * 32}"
    scratch = store / "scratch" / "half"
    for path in (orphan, strange, forgotten, scratch):
        path.write_bytes(b"left over")
    async with open_in(tmp_path) as (_, blobs):
        with trio.fail_after(5):
            await blobs._shelf.sweep()
        assert not any(path.exists() for path in (orphan, strange, forgotten, scratch))
        assert blobs.open(Digest.of(LAYER)).path.exists()
        assert (store / "arriving" / f"sha256-{Digest.of(FETCHED).hex}").exists()
    assert os.listdir(store / "scratch") == []


async def test_a_lost_database_does_not_cost_the_blobs(tmp_path: Path) -> None:
    lost = [tmp_path / "store" / "blobs" / "sha256" / f"{number:02x}" / f"{number:064x}" for number in range(65)]
    for path in lost:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"a blob of a node whose node.db is gone")
    async with open_in(tmp_path) as (_, blobs):
        await blobs._shelf.sweep()
        assert all(path.exists() for path in lost)
        await blobs.put_whole(bytes(100_000))
        await blobs._shelf.sweep()
        assert all(path.exists() for path in lost)


async def test_files_beside_a_database_that_knows_no_blob_are_left_alone(tmp_path: Path) -> None:
    async with open_in(tmp_path) as (_, blobs):
        await blobs.put_whole(LAYER)
    for name in ("db", "db-wal", "db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (file,) = [path for path in (tmp_path / "store" / "blobs").glob("*/*/*") if path.is_file()]
    async with open_in(tmp_path) as (_, blobs):
        await blobs._shelf.sweep()
        assert file.exists(), "the database was lost, and the file is all there is"
        await blobs.put_whole(MANIFEST)
        await blobs._shelf.sweep()
    assert not file.exists(), "a database in use knows what it has"

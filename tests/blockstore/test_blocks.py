from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import pytest

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.checked import Stamp
from ipfsreg.blockstore.index import LeafPlace
from ipfsreg.errors import BlockNotFound, StoreDamaged
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.builder import V1_2025
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import file_blocks, pattern

OpenStore = Callable[[], AbstractAsyncContextManager[tuple[DiskBlockstore, DiskBlobStore]]]

CHUNK = V1_2025.chunk_bytes
LAYER = pattern(3 * CHUNK)
LAYOUT, SOURCE = file_blocks(LAYER)


async def push(blobs: DiskBlobStore, data: bytes) -> Digest:
    upload = await blobs.create_upload()
    await upload.write(data)
    return (await upload.commit(Digest.of(data))).digest


def damage(blobs: DiskBlobStore, digest: Digest, offset: int) -> None:
    with blobs.open(digest).path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xde\xad")


async def damage_small(blobs: DiskBlobStore, cid: Cid) -> None:
    def rot(db: sqlite3.Connection) -> None:
        assert db.execute("UPDATE small_blocks SET data = x'00' WHERE hash = ?", (cid.multihash,)).rowcount == 1

    await blobs._shelf.index._database.write(rot)


async def test_a_damaged_leaf_takes_its_blob_off_the_shelf(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        damage(blobs, digest, CHUNK + 5)
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[1])
        assert not blocks.has(LAYOUT.leaves[1])
        assert blobs.stat(digest) is None
        with pytest.raises(BlockNotFound):
            await blocks.get(LAYOUT.leaves[1])


async def test_what_is_good_of_a_damaged_blob_need_not_be_fetched_again(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        damage(blobs, digest, CHUNK + 5)
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[1])
        partial = await blobs.open_partial(digest, len(LAYER), LAYOUT.root)
        assert partial.wanted() == [LAYOUT.leaves[1]]
        assert blocks.has(LAYOUT.leaves[0])
        await partial.put(SOURCE[LAYOUT.leaves[1]])
        await partial.complete()
        await blobs.verify(digest)
        assert (await blocks.get(LAYOUT.leaves[1])).data == SOURCE[LAYOUT.leaves[1]].data


async def test_pushing_again_mends_a_damaged_blob(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        damage(blobs, digest, 5)
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[0])
        await push(blobs, LAYER)
        await blobs.verify(digest)
        for cid in LAYOUT.leaves:
            assert (await blocks.get(cid)).data == SOURCE[cid].data


async def test_a_leaf_hashed_within_the_hour_is_read_without_hashing(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        digest = await push(blobs, LAYER)
    async with open_store() as (blocks, blobs):
        path = blobs.open(digest).path
        status = path.stat()
        await blocks.get(LAYOUT.leaves[0])
        for offset in (0, CHUNK):
            damage(blobs, digest, offset)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert bytes((await blocks.get(LAYOUT.leaves[0])).data[:2]) == b"\xde\xad", "a disk that lies unnoticed"
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[1])


async def test_a_leaf_that_is_in_memory_is_read_at_once(open_store: OpenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_store() as (blocks, blobs):
        await push(blobs, LAYER)
        monkeypatch.delattr(DiskBlockstore, "_read_leaf")
        for cid in LAYOUT.leaves:
            assert (await blocks.get(cid)).data == SOURCE[cid].data


async def test_a_leaf_that_has_to_come_from_the_disk_is_waited_for_in_a_thread(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_thread: list[Cid] = []
    read = DiskBlockstore._read_leaf

    def count(self: DiskBlockstore, cid: Cid, place: LeafPlace, trusted: Stamp | None) -> tuple[Block, Stamp]:
        in_thread.append(cid)
        return read(self, cid, place, trusted)

    def busy(file: int, buffers: object, offset: int, flags: int = 0) -> int:
        raise BlockingIOError

    monkeypatch.setattr(DiskBlockstore, "_read_leaf", count)
    async with open_store() as (blocks, blobs):
        await push(blobs, LAYER)
        monkeypatch.setattr(os, "preadv", busy)
        for cid in LAYOUT.leaves:
            assert (await blocks.get(cid)).data == SOURCE[cid].data
    assert in_thread == list(LAYOUT.leaves)


async def test_a_second_blob_with_the_leaf_helps_out(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        first, second = await push(blobs, LAYER), await push(blobs, LAYER + b"more")
        for digest in (first, second):
            damage(blobs, digest, CHUNK)
            assert blocks.has(LAYOUT.leaves[0])
        damage(blobs, first, 0)
        assert (await blocks.get(LAYOUT.leaves[0])).data == SOURCE[LAYOUT.leaves[0]].data
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[1])
        assert (blobs.stat(first), blobs.stat(second)) == (None, None)


async def test_a_file_that_is_gone_is_noticed_when_it_is_needed(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        blobs.open(digest).path.unlink()
        assert blobs.stat(digest) is not None
        with pytest.raises(StoreDamaged, match="gone"):
            await blocks.get(LAYOUT.leaves[0])
        assert blobs.stat(digest) is None
        assert list(blobs.partials()) != []


async def test_a_file_that_became_shorter_is_damaged(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        with blobs.open(digest).path.open("r+b") as file:
            file.truncate(CHUNK + 1)
        assert (await blocks.get(LAYOUT.leaves[0])).data == SOURCE[LAYOUT.leaves[0]].data
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.leaves[1])


async def test_a_damaged_small_block_is_dropped_and_can_be_put_again(open_store: OpenStore) -> None:
    block = Block.of(b"a node")
    async with open_store() as (blocks, blobs):
        await blocks.put(block)
        await damage_small(blobs, block.cid)
        with pytest.raises(StoreDamaged):
            await blocks.get(block.cid)
        assert not blocks.has(block.cid)
        await blocks.put(block)
        assert await blocks.get(block.cid) == block


async def test_a_damaged_small_blob_is_not_whole_any_more(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        info = await blobs.put_whole(b"a manifest")
        await damage_small(blobs, info.root)
        with pytest.raises(StoreDamaged):
            await blocks.get(info.root)
        assert blobs.stat(info.digest) is None
        assert await blobs.put_whole(b"a manifest") == info
        assert await blobs.read_whole(info.digest, 100) == b"a manifest"


async def test_a_lost_inner_node_comes_back_when_the_blob_is_verified(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs):
        digest = await push(blobs, LAYER)
        await damage_small(blobs, LAYOUT.root)
        with pytest.raises(StoreDamaged):
            await blocks.get(LAYOUT.root)
        await blobs.verify(digest)
        assert (await blocks.get(LAYOUT.root)).data == SOURCE[LAYOUT.root].data


async def test_a_block_that_peers_would_refuse_is_not_put(open_store: OpenStore) -> None:
    async with open_store() as (blocks, _):
        with pytest.raises(ValueError, match="allowed"):
            await blocks.put(Block.of(bytes(MAX_BLOCK_BYTES + 1)))


async def test_a_leaf_of_a_push_is_news(open_store: OpenStore) -> None:
    async with open_store() as (blocks, blobs), blocks.arrivals() as arrivals:
        await push(blobs, LAYER)
        assert await anext(arrivals) == {cid.multihash for cid in SOURCE}

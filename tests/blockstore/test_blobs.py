from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.index import INLINE_BYTES
from ipfsreg.errors import BlobUnknown, StoreDamaged
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import pattern

OpenStore = Callable[[], AbstractAsyncContextManager[tuple[DiskBlockstore, DiskBlobStore]]]

LAYER = pattern(INLINE_BYTES + 1)


async def test_small_blobs_cost_no_file_until_one_is_asked_for(open_store: OpenStore, tmp_path: Path) -> None:
    data = pattern(INLINE_BYTES)
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(data)
        assert not list((tmp_path / "store" / "blobs").glob("*/*/*"))
        path = blobs.open(info.digest).path
        assert path.read_bytes() == data
        inode = path.stat().st_ino
        assert blobs.open(info.digest).path.stat().st_ino == inode, "written once"


async def test_the_file_of_a_small_blob_is_not_trusted_after_a_restart(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(b"a manifest")
        path = blobs.open(info.digest).path
    path.write_bytes(b"zeros, say")
    async with open_store() as (_, blobs):
        assert blobs.open(info.digest).path.read_bytes() == b"a manifest"
        path.unlink()
        assert blobs.open(info.digest).path.read_bytes() == b"a manifest"


async def test_a_blob_without_its_file_is_unknown_and_counted_as_arriving(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(LAYER)
        for is_gone in (True, False):
            assert await blobs.put_whole(LAYER) == info
            path = blobs.open(info.digest).path
            path.unlink() if is_gone else os.truncate(path, 5)
            with pytest.raises(BlobUnknown):
                blobs.open(info.digest)
            with trio.fail_after(5):
                while blobs.stat(info.digest) is not None:
                    await wait_all_tasks_blocked(0.001)
            assert list(blobs.partials()) == [info]


async def test_reading_a_blob_without_its_file_notices_too(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(LAYER)
        blobs.open(info.digest).path.unlink()
        with pytest.raises(BlobUnknown):
            await blobs.read_whole(info.digest, len(LAYER))
        assert blobs.stat(info.digest) is None


async def test_verifying_finds_a_single_wrong_bit(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(LAYER)
        await blobs.verify(info.digest)
        path = blobs.open(info.digest).path
        path.write_bytes(LAYER[:-1] + bytes((LAYER[-1] ^ 1,)))
        with pytest.raises(StoreDamaged):
            await blobs.verify(info.digest)
        assert blobs.stat(info.digest) is None
        with pytest.raises(BlobUnknown):
            await blobs.verify(info.digest)


async def test_verifying_a_small_blob_reads_the_database(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(b"a manifest")
        await blobs.verify(info.digest)

        def rot(db: sqlite3.Connection) -> None:
            db.execute("UPDATE small_blocks SET data = x'00'")

        await blobs._shelf.index._database.write(rot)
        with pytest.raises(StoreDamaged):
            await blobs.verify(info.digest)
        assert blobs.stat(info.digest) is None
        assert await blobs.put_whole(b"a manifest") == info
        await blobs.verify(info.digest)


async def test_a_blob_that_is_deleted_while_it_is_verified_stays_deleted(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_store() as (_, blobs):
        info = await blobs.put_whole(LAYER)
        restoring, deleted = trio.Event(), trio.Event()
        restore = blobs._shelf.index.restore

        async def restore_later(*of: Any) -> None:
            restoring.set()
            await deleted.wait()
            await restore(*of)

        monkeypatch.setattr(blobs._shelf.index, "restore", restore_later)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(blobs.verify, info.digest)
            await restoring.wait()
            await blobs.delete(info.digest)
            deleted.set()
        assert blobs.stat(info.digest) is None
        assert not list(blobs.partials())


async def test_listing_may_take_its_time(open_store: OpenStore) -> None:
    """Whoever iterates slowly sees what comes meanwhile, and holds nobody up."""
    async with open_store() as (_, blobs):
        first = await blobs.put_whole(b"first")
        listing = blobs.blobs()
        assert next(listing) == first
        await blobs.put_whole(b"second")
        assert blobs.stat(Digest.of(b"second")) is not None

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import pytest
import trio

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.errors import DigestMismatch, StoreFull, UploadUnknown
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import V1_2025
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import pattern

OpenStore = Callable[[], AbstractAsyncContextManager[tuple[DiskBlockstore, DiskBlobStore]]]

MIB = 1 << 20
CHUNK = V1_2025.chunk_bytes


async def test_an_upload_is_its_file_and_nothing_else(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        path = tmp_path / "store" / "uploads" / upload.id
        await upload.write(b"one")
        assert path.read_bytes() == b"one"
        await upload.abort()
        assert not path.exists()


async def test_whatever_buffer_it_is_given_is_the_callers_again(open_store: OpenStore) -> None:
    data = pattern(CHUNK + 10)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        buffer = bytearray(1000)
        for start in range(0, len(data), len(buffer)):
            piece = data[start : start + len(buffer)]
            buffer[: len(piece)] = piece
            await upload.write(memoryview(buffer)[: len(piece)])
            buffer[:] = b"\xff" * len(buffer)
        info = await upload.commit(Digest.of(data))
        assert await blobs.read_whole(info.digest, len(data)) == data


async def test_a_cancelled_write_counts_wholly_or_not_at_all(open_store: OpenStore) -> None:
    data = pattern(3 * CHUNK)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        with trio.CancelScope() as scope:
            scope.cancel()
            await upload.write(data)
        assert scope.cancelled_caught
        assert upload.offset == 0
        while upload.offset < len(data):
            start = upload.offset
            with trio.move_on_after(0.0002):
                await upload.write(data[start : start + 50_000])
            assert upload.offset in (start, min(start + 50_000, len(data)))
            if upload.offset == start:
                await upload.write(data[start : start + 50_000])
        await upload.commit(Digest.of(data))


async def test_a_cancelled_commit_publishes_or_can_be_repeated(open_store: OpenStore) -> None:
    data = pattern(40 * CHUNK)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        await upload.write(data)
        with trio.CancelScope() as scope:
            scope.cancel()
            await upload.commit(Digest.of(data))
        assert scope.cancelled_caught
        assert blobs.stat(Digest.of(data)) is None
        assert await blobs.resume_upload(upload.id) is upload
        await upload.commit(Digest.of(data))
        await blobs.verify(Digest.of(data))


async def test_many_uploads_at_once_take_their_turns_with_few_threads(open_store: OpenStore) -> None:
    async def push(blobs: DiskBlobStore, number: int) -> None:
        data = number.to_bytes(2, "big") + pattern(2 * CHUNK)
        upload = await blobs.create_upload()
        for start in range(0, len(data), 256 * 1024):
            await upload.write(data[start : start + 256 * 1024])
        await upload.commit(Digest.of(data))

    async with open_store() as (_, blobs):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(push, blobs, number)
        assert len(list(blobs.blobs())) == 20


async def test_a_full_disk_leaves_the_upload_where_it_was(
    open_store: OpenStore, small_disk: Callable[[int], None]
) -> None:
    small_disk(6 * MIB)
    data = pattern(5 * MIB)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        await upload.write(data[: 4 * MIB])
        with pytest.raises(StoreFull):
            await upload.write(pattern(3 * MIB))
        assert upload.offset == 4 * MIB
        await upload.write(data[4 * MIB :])
        info = await upload.commit(Digest.of(data))
        assert await blobs.read_whole(info.digest, len(data)) == data
        other = await blobs.create_upload()
        with pytest.raises(StoreFull):
            await other.write(pattern(2 * MIB))
        await other.abort()
        await blobs.verify(info.digest)
        await blobs.delete(info.digest)
        upload = await blobs.create_upload()
        await upload.write(pattern(4 * MIB))


async def test_a_full_disk_is_told_by_the_next_buffer_and_the_upload_goes_on(
    open_store: OpenStore, small_disk: Callable[[int], None]
) -> None:
    small_disk(4 * MIB)
    data = pattern(8 * MIB)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()

        async def pour() -> None:
            for start in range(0, len(data), 100_000):
                buffer = await upload.buffer()
                buffer[:100_000] = data[start : start + 100_000]
                upload.append(100_000)

        with pytest.raises(StoreFull):
            await pour()
        await upload.settle()
        size = upload.offset
        assert 0 < size < 4 * MIB
        await upload.write(data[size : size + 1000])
        await upload.commit(Digest.of(data[: size + 1000]))
        await blobs.verify(Digest.of(data[: size + 1000]))


async def test_an_upload_that_expires_while_bytes_arrive_keeps_its_buffer_until_they_are_over(
    open_store: OpenStore, tmp_path: Path
) -> None:
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        buffers = blobs._shelf.buffers
        buffer = await upload.buffer()
        assert await blobs.expire_uploads(-60) == 1
        buffer[:4] = b"late"
        assert buffers._lent == 1, "another push would get it while it is being filled"
        with pytest.raises(UploadUnknown):
            upload.append(4)
        await upload.settle()
        assert buffers._lent == 0
        assert not list((tmp_path / "store" / "uploads").iterdir())


async def test_a_disk_without_a_single_free_page_refuses_every_write(
    open_store: OpenStore, small_disk: Callable[[int], None], tmp_path: Path
) -> None:
    small_disk(MIB)
    async with open_store() as (blocks, blobs):
        upload = await blobs.create_upload()

        def fill() -> None:
            for number in range(1000):
                (tmp_path / "store" / f"filler{number}").write_bytes(b"x" * 4096)

        with pytest.raises(OSError, match="No space"):
            fill()
        with pytest.raises(StoreFull):
            await upload.write(b"x" * 8192)
        assert upload.offset == 0
        with pytest.raises(StoreFull):
            await blobs.put_whole(pattern(100_000))
        assert [path.name for path in (tmp_path / "store" / "uploads").iterdir()] == [upload.id], "nothing is left over"
        # The database lies elsewhere here, and goes on.
        await blocks.put(Block.of(b"small"))


async def test_a_commit_that_the_database_refuses_can_be_repeated(open_store: OpenStore, tmp_path: Path) -> None:
    data = pattern(2 * CHUNK)
    async with open_store() as (blocks, blobs):
        database = blobs._shelf.index._database
        upload = await blobs.create_upload()
        await upload.write(data)
        (pages,) = database._writer.execute("PRAGMA page_count").fetchone()
        database._writer.execute(f"PRAGMA max_page_count = {pages}")

        async def fill(size: int) -> None:
            for number in range(1000):
                await blocks.put(Block.of(b"%d" % number + bytes(size)))

        for size in (3000, 100):
            with pytest.raises(StoreFull):
                await fill(size)
        with pytest.raises(StoreFull):
            await upload.commit(Digest.of(data))
        assert blobs.stat(Digest.of(data)) is None
        assert upload.offset == len(data)
        assert not list((tmp_path / "store" / "blobs").glob("*/*/*"))
        database._writer.execute("PRAGMA max_page_count = 1000000")
        await upload.commit(Digest.of(data))
        await blobs.verify(Digest.of(data))


async def test_resuming_after_a_restart_hashes_what_is_there(open_store: OpenStore) -> None:
    data = pattern(12 * CHUNK + 3)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        await upload.write(data[: 10 * CHUNK + 1])
    async with open_store() as (_, blobs):
        again = await blobs.resume_upload(upload.id)
        assert again.offset == 10 * CHUNK + 1
        await again.write(data[again.offset :])
        await again.commit(Digest.of(data))


async def test_bytes_that_rotted_during_the_upload_are_not_published(open_store: OpenStore, tmp_path: Path) -> None:
    data = pattern(2 * CHUNK)
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        await upload.write(data[:CHUNK])
    path = tmp_path / "store" / "uploads" / upload.id
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff\xff")
    async with open_store() as (_, blobs):
        again = await blobs.resume_upload(upload.id)
        await again.write(data[CHUNK:])
        with pytest.raises(DigestMismatch):
            await again.commit(Digest.of(data))
        assert not path.exists()


async def test_uploads_expire_by_their_last_write(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        old, young, resumed = [await blobs.create_upload() for _ in range(3)]
        for upload in (old, resumed):
            await upload.write(b"long ago")
            past = time.time() - 3600
            os.utime(tmp_path / "store" / "uploads" / upload.id, (past, past))
        await resumed.write(b"and now")
        assert await blobs.expire_uploads(1800) == 1
        with pytest.raises(UploadUnknown):
            await old.write(b"too late")
        assert {path.name for path in (tmp_path / "store" / "uploads").iterdir()} == {young.id, resumed.id}
    async with open_store() as (_, blobs):
        assert await blobs.expire_uploads(-60) == 2, "those from before a restart too"


async def test_an_upload_whose_file_was_taken_away_is_unknown(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        upload = await blobs.create_upload()
        (tmp_path / "store" / "uploads" / upload.id).unlink()
        with pytest.raises(UploadUnknown):
            await upload.write(b"data")

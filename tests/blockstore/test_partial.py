from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, suppress
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.index import INLINE_BYTES
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.errors import BlockNotFound, DigestMismatch, StoreError, StoreFull
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import LITE, V1_2025
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import file_blocks, pattern
from ipfsreg.testing.crash_points import every_crash

OpenStore = Callable[[], AbstractAsyncContextManager[tuple[DiskBlockstore, DiskBlobStore]]]

MIB = 1 << 20
CHUNK = V1_2025.chunk_bytes
LAYER = pattern(5 * CHUNK + 9)
LAYOUT, SOURCE = file_blocks(LAYER)
DIGEST = Digest.of(LAYER)


def arriving(tmp_path: Path) -> Path:
    return tmp_path / "store" / "arriving" / f"sha256-{DIGEST.hex}"


def open_files() -> list[Path]:
    """What this process has open now."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(link.readlink())
    return found


async def test_what_is_missing_takes_no_room(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await partial.put(SOURCE[LAYOUT.root])
        await partial.put(SOURCE[LAYOUT.leaves[3]])
        status = arriving(tmp_path).stat()
        assert status.st_size == len(LAYER)
        assert CHUNK <= status.st_blocks * 512 < 2 * CHUNK


async def test_the_disk_begins_with_a_blob_before_it_is_whole(
    open_store: OpenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fdatasync
    missing: list[int] = []
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)

        def sync(file: int) -> None:
            missing.append(partial.missing_bytes)
            real(file)

        monkeypatch.setattr("ipfsreg.blockstore.partial.SYNC_BYTES", 2 * CHUNK)
        monkeypatch.setattr(os, "fdatasync", sync)
        for cid in (LAYOUT.root, *LAYOUT.leaves):
            await partial.put(SOURCE[cid])
            await wait_all_tasks_blocked(0.01)
        await partial.complete()
    assert len(missing) >= 2
    assert missing[0] > 0


async def test_leaves_damaged_on_disk_are_fetched_again_after_a_restart(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        for cid in (LAYOUT.root, *LAYOUT.leaves[:4]):
            await partial.put(SOURCE[cid])
    with arriving(tmp_path).open("r+b") as file:
        file.seek(2 * CHUNK + 100)
        file.write(b"what a power cut leaves")
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        assert partial.wanted() == [LAYOUT.leaves[2], *LAYOUT.leaves[4:]]
        for cid in partial.wanted():
            await partial.put(SOURCE[cid])
        await partial.complete()
        await blobs.verify(DIGEST)


async def test_a_lost_file_is_begun_anew(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        for cid in (LAYOUT.root, *LAYOUT.leaves[:4]):
            await partial.put(SOURCE[cid])
    arriving(tmp_path).unlink()
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        assert set(partial.wanted()) <= {LAYOUT.root, *LAYOUT.leaves}
        assert partial.missing_bytes == len(LAYER)


async def test_after_a_restart_another_root_begins_anew(open_store: OpenStore) -> None:
    layout, source = file_blocks(LAYER, LITE)
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), layout.root)
        await partial.put(source[layout.root])
        await partial.put(source[layout.leaves[0]])
    async with open_store() as (blocks, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        assert partial.wanted() == [LAYOUT.root]
        assert not blocks.has(layout.root)
        while wanted := partial.wanted():
            for cid in wanted:
                await partial.put(SOURCE[cid])
        assert (await partial.complete()).root == LAYOUT.root


async def test_a_small_blob_that_came_in_one_leaf_lies_in_the_database(open_store: OpenStore, tmp_path: Path) -> None:
    data = pattern(INLINE_BYTES)
    block = Block.of(data)
    async with open_store() as (blocks, blobs):
        partial = await blobs.open_partial(Digest.of(data), len(data), block.cid)
        await partial.put(block)
        await partial.complete()
        assert not list((tmp_path / "store").glob("blobs/*/*/*"))
        assert not list((tmp_path / "store").glob("arriving/*"))
        assert await blocks.get(block.cid) == block
        assert await partial.read(10, 20) == data[10:20]


async def test_a_blob_that_does_not_fit_is_refused_before_anything_is_fetched(
    open_store: OpenStore, small_disk: Callable[[int], None], tmp_path: Path
) -> None:
    small_disk(4 * MIB)
    async with open_store() as (_, blobs):
        with pytest.raises(StoreFull):
            await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        assert list(blobs.partials()) == []
        assert not arriving(tmp_path).exists()


async def test_two_blobs_that_fit_only_one_by_one_are_not_both_begun(
    open_store: OpenStore, small_disk: Callable[[int], None]
) -> None:
    small_disk(7 * MIB)
    other = LAYER[::-1]
    async with open_store() as (_, blobs):
        first = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        with pytest.raises(StoreFull):
            await blobs.open_partial(Digest.of(other), len(other), file_blocks(other)[0].root)
        while wanted := first.wanted():
            for cid in wanted:
                await first.put(SOURCE[cid])
        await first.complete()


async def test_a_fetch_that_was_given_up_keeps_no_room_for_what_did_not_come(
    open_store: OpenStore, small_disk: Callable[[int], None]
) -> None:
    small_disk(7 * MIB)
    other = LAYER[::-1]
    async with open_store() as (_, blobs):
        given_up = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await given_up.put(SOURCE[LAYOUT.root])
        await given_up.abandon()
        info = await blobs.put_whole(other)
        with pytest.raises(StoreFull):
            await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await blobs.delete(info.digest)
        assert await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root) is given_up


@pytest.mark.parametrize("order", ["pushed, given up", "given up, pushed", "given up, pushed, deleted"])
async def test_what_has_come_of_a_blob_goes_when_it_was_pushed_meanwhile(
    open_store: OpenStore, tmp_path: Path, order: str
) -> None:
    async with open_store() as (blocks, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await partial.put(SOURCE[LAYOUT.root])
        await partial.put(SOURCE[LAYOUT.leaves[1]])
        for step in order.split(", "):
            if step == "pushed":
                await blobs.put_whole(LAYER)
            elif step == "given up":
                await partial.abandon()
            else:
                await blobs.delete(DIGEST)
        await blobs.expire_partials(3600)
        assert not arriving(tmp_path).exists()
        assert blocks.has(LAYOUT.leaves[1]) == (blobs.stat(DIGEST) is not None)
        del partial
        assert arriving(tmp_path) not in open_files()


async def test_a_disk_that_fills_up_during_a_fetch_keeps_what_has_come(
    open_store: OpenStore, small_disk: Callable[[int], None], tmp_path: Path
) -> None:
    small_disk(7 * MIB)
    async with open_store() as (blocks, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await partial.put(SOURCE[LAYOUT.root])
        await partial.put(SOURCE[LAYOUT.leaves[0]])
        other = tmp_path / "store" / "somebody else's"
        with suppress(OSError):
            other.write_bytes(bytes(7 * MIB))
        with pytest.raises(StoreFull):
            await partial.put(SOURCE[LAYOUT.leaves[1]])
        assert LAYOUT.leaves[1] in partial.wanted()
        assert (await blocks.get(LAYOUT.leaves[0])).data == SOURCE[LAYOUT.leaves[0]].data
        other.unlink()
        while wanted := partial.wanted():
            for cid in wanted:
                await partial.put(SOURCE[cid])
        await partial.complete()
        await blobs.verify(DIGEST)


async def test_a_reader_goes_on_when_the_blob_is_published_and_even_deleted(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        while wanted := partial.wanted():
            for cid in wanted:
                await partial.put(SOURCE[cid])
        await partial.complete()
        await blobs.delete(DIGEST)
        assert await partial.read(CHUNK, CHUNK + 5) == LAYER[CHUNK : CHUNK + 5]


async def test_a_closed_store_keeps_no_file_open_also_not_of_what_was_published(
    open_store: OpenStore, tmp_path: Path
) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        while wanted := partial.wanted():
            for cid in wanted:
                await partial.put(SOURCE[cid])
        await partial.complete()
    assert not [path for path in open_files() if path.is_relative_to(tmp_path / "store")]
    with pytest.raises(StoreError):
        await partial.read(0, 5)


async def test_a_cancelled_put_or_complete_can_be_repeated(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        while wanted := partial.wanted(limit=1):
            with trio.CancelScope() as scope:
                scope.cancel()
                await partial.put(SOURCE[wanted[0]])
            assert scope.cancelled_caught
            assert partial.wanted(limit=1) == wanted
            await partial.put(SOURCE[wanted[0]])
        with trio.CancelScope() as scope:
            scope.cancel()
            await partial.complete()
        assert scope.cancelled_caught
        assert blobs.stat(DIGEST) is None
        await partial.complete()
        await blobs.verify(DIGEST)


async def test_reading_and_completing_what_has_not_come_is_a_mistake_of_the_caller(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        with pytest.raises(ValueError, match="not all here"):
            await partial.read(0, 1)
        with pytest.raises(ValueError, match="not come"):
            await partial.complete()


async def test_a_lie_found_at_the_end_leaves_nothing_behind(open_store: OpenStore, tmp_path: Path) -> None:
    lie = Digest.of(b"something else")
    async with open_store() as (blocks, blobs):
        partial = await blobs.open_partial(lie, len(LAYER), LAYOUT.root)
        while wanted := partial.wanted():
            for cid in wanted:
                await partial.put(SOURCE[cid])
        with pytest.raises(DigestMismatch):
            await partial.complete()
        with pytest.raises(DigestMismatch):
            await partial.complete()
        with pytest.raises(DigestMismatch):
            await partial.put(SOURCE[LAYOUT.root])
        assert not any(blocks.has(cid) for cid in SOURCE)
        assert list((tmp_path / "store" / "arriving").iterdir()) == []
    async with open_store() as (blocks, blobs):
        assert not any(blocks.has(cid) for cid in SOURCE)
        assert list(blobs.partials()) == []


async def test_many_fetches_at_once_do_not_disturb_each_other(open_store: OpenStore) -> None:
    async def fetch(blobs: DiskBlobStore, number: int) -> None:
        data = number.to_bytes(2, "big") + LAYER[: CHUNK + number]
        layout, source = file_blocks(data, LITE if number % 2 else V1_2025)
        partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial.wait_range, 0, len(data))
            while wanted := partial.wanted(limit=3):
                for cid in wanted:
                    await partial.put(source[cid])
        await partial.complete()
        assert await blobs.read_whole(Digest.of(data), len(data)) == data

    async with open_store() as (_, blobs):
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(fetch, blobs, number)
        assert len(list(blobs.blobs())) == 30


async def test_dropping_releases_the_readers(open_store: OpenStore) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await blobs.drop_partial(DIGEST)
        with pytest.raises(BlockNotFound):
            await partial.wait_range(0, 1)


async def test_arrivals_from_before_a_restart_expire_too(open_store: OpenStore, tmp_path: Path) -> None:
    async with open_store() as (_, blobs):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        await partial.put(SOURCE[LAYOUT.root])
    async with open_store() as (blocks, blobs):
        assert await blobs.expire_partials(3600) == 0
        os.utime(arriving(tmp_path), (1_000_000_000, 1_000_000_000))
        assert await blobs.expire_partials(3600) == 1
        assert not arriving(tmp_path).exists()
        assert not blocks.has(LAYOUT.root)
        assert list(blobs.partials()) == []


# ------------------------------------------------------ killed while fetching


async def fetch_slowly(directory: Path, acknowledge: Callable[[str], None]) -> None:
    """Each leaf waits for a durable write, so that the process is killed between any two of them."""
    async with (
        open_database(directory / "db") as database,
        open_blobstore(directory / "store", database) as (blocks, blobs),
    ):
        partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
        for number, cid in enumerate((LAYOUT.root, *LAYOUT.leaves)):
            await partial.put(SOURCE[cid])
            acknowledge(str(cid))
            await blocks.put(Block.of(b"%d" % number))
        await partial.complete()
        acknowledge("whole")


async def fetch_the_rest(directory: Path, acknowledged: Sequence[str]) -> None:
    async with (
        open_database(directory / "db") as database,
        open_blobstore(directory / "store", database) as (_, blobs),
    ):
        if "whole" in acknowledged:
            assert blobs.stat(DIGEST) is not None
        if blobs.stat(DIGEST) is None:
            partial = await blobs.open_partial(DIGEST, len(LAYER), LAYOUT.root)
            fetched: list[Cid] = []
            while wanted := partial.wanted():
                fetched += wanted
                for cid in wanted:
                    await partial.put(SOURCE[cid])
            await partial.complete()
            kept = {text for text in acknowledged if text != str(LAYOUT.root)}
            assert not kept & {str(cid) for cid in fetched}, "only what was missing"
        await blobs.verify(DIGEST)


def test_a_fetch_killed_at_any_step_goes_on_where_it_was(tmp_path: Path) -> None:
    assert every_crash(fetch_slowly, fetch_the_rest, tmp_path) > 10


async def whole_in_the_end(directory: Path, acknowledged: Sequence[str]) -> None:
    """After a power cut nothing of a fetch is promised before it is complete, but it must be possible to finish it."""
    lost = [text for text in acknowledged if text == "whole"]
    await fetch_the_rest(directory, lost)


def test_a_fetch_cut_off_by_a_power_cut_can_be_finished(tmp_path: Path) -> None:
    assert every_crash(fetch_slowly, whole_in_the_end, tmp_path, power_cut=True) > 10

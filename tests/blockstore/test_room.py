"""What is taken and what is refused, on a disk of a known size."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ipfsreg.blockstore.disk import Disk
from ipfsreg.blockstore.room import RESERVED_PART, Room, StoreLimits
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.errors import StoreFull, TooManyRequests
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import file_blocks, pattern

MIB = 1024 * 1024


class KnownDisk(Disk):
    """A disk with so much room as a test says."""

    free = 1000 * MIB
    total = 2000 * MIB

    def space(self) -> tuple[int, int]:
        return self.free, self.total


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., tuple[Room, KnownDisk]]:
    def make(**limits: int) -> tuple[Room, KnownDisk]:
        disk = KnownDisk(tmp_path)
        disk.prepare()
        room = Room(disk, StoreLimits(**limits))
        room.load()
        return room, disk

    return make


Make = Callable[..., tuple[Room, KnownDisk]]


def test_the_reserve_is_never_promised(make: Make) -> None:
    room, _ = make(reserve_bytes=90 * MIB)
    room.check_upload("a", 910 * MIB)
    with pytest.raises(StoreFull, match="are kept so"):
        room.check_upload("a", 910 * MIB + 1)
    with pytest.raises(StoreFull):
        room.promise_arrival("x", 910 * MIB + 1, is_counted=False)


def test_of_a_small_disk_a_part_is_kept(make: Make) -> None:
    room, disk = make(reserve_bytes=90 * MIB)
    disk.total, disk.free = 100 * MIB, 50 * MIB
    room.check_upload("a", 50 * MIB - 100 * MIB // RESERVED_PART)
    with pytest.raises(StoreFull):
        room.check_upload("a", 50 * MIB)


def test_what_one_body_will_bring_is_not_promised_to_another(make: Make) -> None:
    room, disk = make()
    room.promise("a", 600 * MIB)
    with pytest.raises(StoreFull, match="promised to others"):
        room.promise("b", 500 * MIB)
    room.promise("b", 400 * MIB)
    with pytest.raises(StoreFull):
        room.promise_arrival("x", 1, is_counted=False)
    # What has come is on the disk, and what is still to come is less.
    room.took("a", 100 * MIB, 100 * MIB)
    disk.free -= 100 * MIB
    room.check_upload("a", 500 * MIB)
    with pytest.raises(StoreFull):
        room.check_upload("c", 1)
    room.promise("a", 0)
    room.check_upload("c", 500 * MIB)


def test_blobs_that_are_arriving_have_their_room(make: Make) -> None:
    room, _ = make()
    room.arriving = lambda: 700 * MIB
    room.check_upload("a", 300 * MIB)
    with pytest.raises(StoreFull):
        room.check_upload("a", 301 * MIB)


def test_uploads_are_counted_and_so_are_their_bytes(make: Make) -> None:
    room, _ = make(max_uploads=2, max_upload_bytes=100)
    for key in ("a", "b"):
        room.check_upload(key, 0)
        room.took(key, 0, 0)
    with pytest.raises(TooManyRequests, match=r"store\.max_uploads"):
        room.check_upload("c", 0)
    room.took("a", 70, 70)
    with pytest.raises(TooManyRequests, match=r"store\.max_upload_bytes"):
        room.promise("b", 31)
    room.promise("b", 30)
    assert room.uploads == (2, 70)
    room.forget("a")
    room.check_upload("c", 70)
    assert room.uploads == (1, 0)


def test_uploads_of_an_earlier_run_count(make: Make, tmp_path: Path) -> None:
    make()
    (tmp_path / "uploads" / "x").write_bytes(b"12345")
    room, _ = make(max_uploads=1)
    assert room.uploads == (1, 5)
    with pytest.raises(TooManyRequests):
        room.check_upload("y", 0)


async def test_a_store_with_a_limit_takes_no_more_and_takes_again_when_something_is_deleted(tmp_path: Path) -> None:
    async with open_database(tmp_path / "db") as database:
        limits = StoreLimits(max_bytes=5 * MIB)
        async with open_blobstore(tmp_path / "store", database, limits) as (_, blobs):
            first = await blobs.put_whole(pattern(3 * MIB))
            upload = await blobs.create_upload()
            with pytest.raises(StoreFull, match=r"store\.max_bytes"):
                upload.expect(2 * MIB + 1)
            upload.expect(2 * MIB)
            with pytest.raises(StoreFull):
                await blobs.open_partial(Digest.of(pattern(MIB)), MIB, file_blocks(pattern(MIB))[0].root)
            await upload.write(pattern(2 * MIB))
            await upload.abort()
            await blobs.delete(first.digest)
        async with open_blobstore(tmp_path / "store", database, limits) as (_, blobs):
            upload = await blobs.create_upload()
            upload.expect(5 * MIB)


async def test_unfinished_uploads_give_their_place_when_they_end(tmp_path: Path) -> None:
    async with (
        open_database(tmp_path / "db") as database,
        open_blobstore(tmp_path / "store", database, StoreLimits(max_uploads=1)) as (_, blobs),
    ):
        for size in (10, 100_000):
            data = pattern(size)
            upload = await blobs.create_upload()
            with pytest.raises(TooManyRequests):
                await blobs.create_upload()
            await upload.write(data)
            await upload.commit(Digest.of(data))
        upload = await blobs.create_upload()
        await upload.abort()
        upload = await blobs.create_upload()
        await upload.write(b"left behind")
        assert await blobs.expire_uploads(-1.0) == 1
        await blobs.create_upload()

"""Whole blobs on disk, served: what damage is found, when, and what is done about it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.ipld.builder import build
from ipfsreg.oci.digest import Digest
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import BlobContent
from ipfsreg.registry.local import SMALL_BYTES, LocalBlobs
from ipfsreg.testing.content import pattern

BIG = pattern(3 * 1024 * 1024 + 7)
SMALL = pattern(1000)


@dataclass
class Here:
    local: LocalBlobs
    blobs: DiskBlobStore
    directory: Path

    async def put(self, data: bytes) -> Digest:
        return (await self.blobs.put_whole(data)).digest

    def file(self, digest: Digest) -> Path:
        return self.directory / "blobs" / "sha256" / digest.hex[:2] / digest.hex

    def overwrite(self, digest: Digest, *, quietly: bool = False) -> None:
        """Rot in the middle; *quietly*: the file system does not tell that anything was written."""
        path = self.file(digest)
        before = path.stat()
        with path.open("r+b") as file:
            file.seek(before.st_size // 2)
            file.write(b"rot")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns if quietly else before.st_mtime_ns + 1))


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Here]:
    async with (
        open_database(tmp_path / "node.db") as database,
        open_blobstore(tmp_path, database) as (_, blobs),
        trio.open_nursery() as nursery,
    ):
        yield Here(LocalBlobs(nursery, blobs, Holds()), blobs, tmp_path)
        nursery.cancel_scope.cancel()


async def read(blob: BlobContent | None) -> bytes | None:
    if blob is None:
        return None
    content = b""
    async with blob:
        async for piece in blob.stream(0, blob.stat.size):
            assert isinstance(piece, bytes | memoryview)
            content += piece
    return content


@pytest.mark.parametrize("data", [b"", b"x", SMALL, pattern(SMALL_BYTES), pattern(SMALL_BYTES + 1), BIG])
async def test_what_is_whole_is_opened(here: Here, data: bytes) -> None:
    digest = await here.put(data)
    blob = await here.local.open(digest)
    assert await read(blob) == data
    assert blob is not None
    assert (blob.path is None) == (len(data) <= SMALL_BYTES)
    assert await here.local.read(digest, len(data)) == data


async def test_what_is_not_here_is_none(here: Here) -> None:
    assert await here.local.open(Digest.of(BIG)) is None
    assert await here.local.read(Digest.of(BIG), 10) is None


@pytest.mark.parametrize("hashed", [True, False])
async def test_a_file_that_is_gone_counts_as_missing_at_once(here: Here, hashed: bool) -> None:
    digest = await here.put(BIG)
    if hashed:
        here.local.hashed(digest)
    here.file(digest).unlink()
    assert await here.local.open(digest) is None
    assert here.blobs.stat(digest) is None


async def test_a_file_that_was_written_to_is_hashed_before_it_is_served(here: Here) -> None:
    digest = await here.put(BIG)
    here.local.hashed(digest)
    here.overwrite(digest)
    assert await here.local.open(digest) is None
    assert here.blobs.stat(digest) is None
    partial = await here.blobs.open_partial(digest, len(BIG), build(BIG).root)
    assert 0 < partial.missing_bytes <= 1024 * 1024, "what is good of it is kept"


async def test_a_file_that_was_only_touched_is_served(here: Here) -> None:
    digest = await here.put(BIG)
    here.local.hashed(digest)
    os.utime(here.file(digest))
    for _ in range(2):
        assert await read(await here.local.open(digest)) == BIG


async def test_rot_that_nobody_wrote_is_found_behind_the_first_pull_after_a_start(here: Here) -> None:
    digest = await here.put(BIG)
    here.overwrite(digest, quietly=True)
    assert await here.local.open(digest) is not None
    with trio.fail_after(10):
        while here.blobs.stat(digest) is not None:  # noqa: ASYNC110 (found by a task that tells nobody)
            await trio.sleep(0.01)
    assert await here.local.open(digest) is None


async def test_many_who_open_a_file_that_was_written_to_wait_for_one_check(here: Here) -> None:
    digest = await here.put(BIG)
    here.local.hashed(digest)
    os.utime(here.file(digest))
    opened: list[BlobContent | None] = []

    async def open_it() -> None:
        opened.append(await here.local.open(digest))

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(open_it)
    assert len(opened) == 50
    assert None not in opened


async def test_a_large_manifest_that_rots_is_never_given(here: Here) -> None:
    digest = await here.put(pattern(300_000))
    here.overwrite(digest, quietly=True)
    assert await here.local.read(digest, 1 << 20) is None
    assert here.blobs.stat(digest) is None

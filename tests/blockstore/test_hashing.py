from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.hashing import JOB_BYTES, LEAF_BYTES, Follower, Hasher, digest_of_file
from ipfsreg.errors import StoreDamaged, StoreError
from ipfsreg.ipld.builder import Builder, build
from ipfsreg.ipld.cid import Cid
from ipfsreg.testing.content import pattern


@pytest.fixture
async def nursery() -> AsyncIterator[trio.Nursery]:
    async with trio.open_nursery() as nursery:
        yield nursery
        nursery.cancel_scope.cancel()


def follower(path: Path, nursery: trio.Nursery, *, leaves: bool = True) -> Follower:
    def spawn(task: object) -> None:
        nursery.start_soon(task)  # type: ignore[arg-type]

    return Follower(path, Hasher("sha256", leaves=leaves), spawn, trio.CapacityLimiter(1))


@pytest.mark.parametrize("size", [0, 1, LEAF_BYTES - 1, LEAF_BYTES, LEAF_BYTES + 1, JOB_BYTES + 3 * LEAF_BYTES + 5])
async def test_digest_and_dag_are_those_of_the_content(tmp_path: Path, nursery: trio.Nursery, size: int) -> None:
    data = pattern(size)
    (tmp_path / "file").write_bytes(data)
    following = follower(tmp_path / "file", nursery)
    for end in range(0, size, 700_001):
        following.extend(end)
        await following.wait_behind(LEAF_BYTES)
    await following.finish(size)
    assert following.hasher.hex == hashlib.sha256(data).hexdigest()
    assert following.hasher.layout() == build(data)


async def test_what_is_written_is_hashed_while_the_file_grows(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "file").write_bytes(pattern(3 * LEAF_BYTES))
    following = follower(tmp_path / "file", nursery)
    following.extend(2 * LEAF_BYTES + 1)
    await following.wait_behind(0)
    assert following.hasher.position == 2 * LEAF_BYTES + 1


async def test_a_writer_waits_while_the_hasher_is_too_far_behind(tmp_path: Path, nursery: trio.Nursery) -> None:
    data = pattern(3 * JOB_BYTES)
    (tmp_path / "file").write_bytes(data)
    following = follower(tmp_path / "file", nursery)
    following.extend(len(data))
    await following.wait_behind(JOB_BYTES)
    assert following.hasher.position >= 2 * JOB_BYTES


async def test_a_file_that_ends_early_is_called_damaged(tmp_path: Path, nursery: trio.Nursery) -> None:
    (tmp_path / "file").write_bytes(pattern(LEAF_BYTES + 5))
    following = follower(tmp_path / "file", nursery)
    following.extend(3 * LEAF_BYTES)
    await wait_all_tasks_blocked(0.01)
    for _ in range(2):
        with pytest.raises(StoreDamaged):
            await following.wait_behind(0)
        with pytest.raises(StoreDamaged):
            await following.finish(3 * LEAF_BYTES)


async def test_a_file_that_is_gone_is_a_store_error(tmp_path: Path, nursery: trio.Nursery) -> None:
    with pytest.raises(StoreError):
        await follower(tmp_path / "file", nursery).finish(10)


async def test_a_cancelled_finish_can_be_called_again(tmp_path: Path, nursery: trio.Nursery) -> None:
    data = pattern(2 * JOB_BYTES + 7)
    (tmp_path / "file").write_bytes(data)
    following = follower(tmp_path / "file", nursery)
    with trio.CancelScope() as scope:
        scope.cancel()
        await following.finish(len(data))
    assert scope.cancelled_caught
    await following.finish(len(data))
    assert following.hasher.hex == hashlib.sha256(data).hexdigest()
    assert following.hasher.layout() == build(data)


async def test_the_digest_of_a_file_by_any_algorithm(tmp_path: Path) -> None:
    data = pattern(JOB_BYTES + 1)
    (tmp_path / "file").write_bytes(data)
    digits = await digest_of_file(tmp_path / "file", len(data), "sha512", trio.CapacityLimiter(1))
    assert digits == hashlib.sha512(data).hexdigest()


def test_the_position_tells_of_no_leaf_that_is_not_in_the_dag_yet(tmp_path: Path) -> None:
    """Another thread that finds the end reached takes the DAG at once."""
    hasher = Hasher("sha256", leaves=True)
    seen: list[int] = []

    class WatchedBuilder(Builder):
        def add_leaf(self, cid: Cid, size: int) -> None:
            seen.append(hasher.position)
            super().add_leaf(cid, size)

    hasher._builder = WatchedBuilder()
    (tmp_path / "file").write_bytes(pattern(2 * LEAF_BYTES + 5))
    hasher.advance(tmp_path / "file", 2 * LEAF_BYTES + 5)
    assert len(seen) == 2
    assert seen[0] < LEAF_BYTES
    assert seen[1] < 2 * LEAF_BYTES
    hasher.layout()
    assert len(seen) == 3, "the last leaf is short, which only the end of the file tells"

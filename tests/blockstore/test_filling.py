from __future__ import annotations

import hashlib
import os
import random
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore import filling as module
from ipfsreg.blockstore.filling import Filling
from ipfsreg.blockstore.hashing import JOB_BYTES, LEAF_BYTES, Follower, Hasher
from ipfsreg.errors import StoreError
from ipfsreg.testing.content import pattern

COUNT = 20
SIZE = COUNT * LEAF_BYTES + 9
DATA = pattern(SIZE)
OFFSETS = list(range(0, SIZE, LEAF_BYTES))


class File:
    """One that fills, with what is known of it."""

    def __init__(self, path: Path, nursery: trio.Nursery) -> None:
        path.write_bytes(b"")
        self.number = os.open(path, os.O_RDWR)
        self.written: set[int] = set()
        self.follower = Follower(path, Hasher("sha256", leaves=False), nursery.start_soon, trio.CapacityLimiter(1))
        self.filling = Filling(self.follower, self.prefix)

    def prefix(self) -> int:
        return next((offset for offset in OFFSETS if offset not in self.written), SIZE)

    async def put(self, *offsets: int) -> None:
        await self.filling.write(self.number, memoryview(DATA)[offsets[0] : offsets[0] + LEAF_BYTES], offsets)
        self.written.update(offsets)
        self.filling.settled()

    async def digest(self) -> str:
        await self.follower.finish(SIZE)
        return self.follower.hasher.hex


@pytest.fixture
async def file(tmp_path: Path) -> AsyncIterator[File]:
    async with trio.open_nursery() as nursery:
        file = File(tmp_path / "file", nursery)
        yield file
        nursery.cancel_scope.cancel()
    os.close(file.number)


async def test_what_comes_in_order_is_hashed_without_reading_it_back(
    file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(os, "preadv")
    for offset in OFFSETS:
        await file.put(offset)
    assert await file.digest() == hashlib.sha256(DATA).hexdigest()
    assert os.pread(file.number, SIZE + 1, 0) == DATA


@pytest.mark.parametrize("seed", range(5))
async def test_in_any_order_the_digest_is_that_of_the_file(file: File, seed: int) -> None:
    order = OFFSETS.copy()
    random.Random(seed).shuffle(order)
    async with trio.open_nursery() as nursery:
        for offset in order:
            nursery.start_soon(file.put, offset)
    assert await file.digest() == hashlib.sha256(DATA).hexdigest()
    assert os.pread(file.number, SIZE + 1, 0) == DATA


async def test_a_gap_that_closes_is_hashed_by_the_next_visits(file: File) -> None:
    for offset in OFFSETS[1:6]:
        await file.put(offset)
    assert file.follower.hasher.position == 0
    await file.put(OFFSETS[0])
    await file.put(OFFSETS[6])
    assert file.follower.hasher.position == OFFSETS[7]


async def test_far_behind_the_hash_catches_up_beside_the_visits(file: File) -> None:
    for offset in OFFSETS[1:12]:
        await file.put(offset)
    await file.put(OFFSETS[0])
    await file.follower.wait_behind(0)
    assert file.follower.hasher.position == OFFSETS[12] > JOB_BYTES


async def test_all_that_waits_is_written_in_one_visit(file: File, monkeypatch: pytest.MonkeyPatch) -> None:
    visits: list[int] = []
    fill = module._fill

    def count(number: int, pieces: Sequence[module._Piece], hasher: Hasher | None, prefix: int) -> None:
        visits.append(len(pieces))
        fill(number, pieces, hasher, prefix)

    monkeypatch.setattr(module, "_fill", count)
    async with trio.open_nursery() as nursery:
        for offset in OFFSETS:
            nursery.start_soon(file.put, offset)
    assert sum(visits) == len(OFFSETS)
    assert len(visits) <= 2


async def test_a_piece_at_several_places_is_hashed_at_each(file: File) -> None:
    same = DATA[:LEAF_BYTES]
    await file.put(OFFSETS[0], OFFSETS[1], OFFSETS[2])
    assert file.follower.hasher.position == OFFSETS[3]
    assert file.follower.hasher.hex == hashlib.sha256(3 * same).hexdigest()


async def test_each_hears_of_its_own_failure_and_the_hash_stays_where_it_was(file: File) -> None:
    os.close(file.number)
    file.number = os.open("/dev/full", os.O_RDWR)
    failed: list[int] = []

    async def put(offset: int) -> None:
        try:
            await file.put(offset)
        except StoreError:
            failed.append(offset)

    async with trio.open_nursery() as nursery:
        for offset in OFFSETS[:3]:
            nursery.start_soon(put, offset)
    assert sorted(failed) == OFFSETS[:3]
    assert file.follower.hasher.position == 0


async def test_who_is_cancelled_while_waiting_leaves_nothing_behind(file: File) -> None:
    gate = trio.Event()

    async def hold() -> None:
        async with file.filling._turn:
            await gate.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0):
            await file.put(OFFSETS[0])
        assert not file.filling._waiting
        gate.set()

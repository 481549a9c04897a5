from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.crew import Crew
from ipfsreg.blockstore.hashing import LEAF_BYTES, Hasher
from ipfsreg.blockstore.intake import APART_BYTES, BUFFER_BYTES, KEPT, MAX_EACH, MAX_SHARED, Buffers, Intake
from ipfsreg.errors import StoreError, StoreFull, UploadUnknown
from ipfsreg.ipld.builder import build
from ipfsreg.testing.content import pattern


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "upload"


def content(path: Path) -> bytes:
    return path.read_bytes()


def open_intake(path: Path, buffers: Buffers | None = None, content: bytes = b"") -> Intake:
    path.write_bytes(content)
    return Intake(path, path.stat().st_size, Hasher("sha256", leaves=True), Crew(3), buffers or Buffers())


async def pour(intake: Intake, data: bytes, piece: int) -> None:
    for start in range(0, len(data), piece):
        part = data[start : start + piece]
        buffer = await intake.buffer()
        assert buffer is not None
        buffer[: len(part)] = part
        intake.append(len(part))
        assert intake.offset == start + len(part)


@pytest.mark.parametrize("piece", [50_000, APART_BYTES, LEAF_BYTES - 7, BUFFER_BYTES])
async def test_what_is_poured_in_is_in_the_file_and_hashed(path: Path, piece: int) -> None:
    data = pattern(3 * LEAF_BYTES + 5)
    intake = open_intake(path)
    await pour(intake, data, piece)
    await intake.settle()
    assert content(path) == data
    assert intake.hasher.position == intake.offset == intake.written == len(data)
    assert intake.hasher.hex == hashlib.sha256(data).hexdigest()
    assert intake.hasher.layout() == build(data)


async def test_small_pieces_and_large_ones_keep_their_order(path: Path) -> None:
    data = pattern(4 * LEAF_BYTES)
    intake = open_intake(path)
    sizes, start = [10, 900_000, 5, 131_072, 100, 1_000_000, 1_000_000, 1], 0
    for size in sizes:
        buffer = await intake.buffer()
        assert buffer is not None
        buffer[:size] = data[start : start + size]
        intake.append(size)
        start += size
    await intake.settle()
    assert content(path) == data[:start]
    assert intake.hasher.hex == hashlib.sha256(data[:start]).hexdigest()
    assert intake.hasher.layout() == build(data[:start])


async def test_what_was_never_hashed_from_its_start_is_only_written(path: Path) -> None:
    intake = open_intake(path, content=b"from before a restart")
    buffer = await intake.buffer()
    assert buffer is not None
    buffer[:3] = b"new"
    intake.append(3)
    assert intake.is_followed
    await intake.settle()
    assert content(path) == b"from before a restartnew"
    assert intake.hasher.position == 0


async def test_a_buffer_is_the_same_until_bytes_are_appended_and_goes_back_at_the_end(path: Path) -> None:
    buffers = Buffers()
    intake = open_intake(path, buffers)
    assert await intake.buffer() is await intake.buffer()
    assert buffers._lent == 1
    await intake.settle()
    assert buffers._lent == 0


async def test_a_writer_waits_while_its_buffers_are_full(path: Path, nursery: trio.Nursery) -> None:
    held = Held(path)
    poured = trio.Event()

    async def push() -> None:
        await pour(held.intake, bytes((MAX_EACH + 2) * BUFFER_BYTES), BUFFER_BYTES)
        poured.set()

    nursery.start_soon(push)
    await wait_all_tasks_blocked()
    assert held.intake.offset == MAX_EACH * BUFFER_BYTES
    held.go()
    await poured.wait()
    await held.intake.settle()
    assert held.intake.written == (MAX_EACH + 2) * BUFFER_BYTES


class Held:
    """An intake whose first piece is not done before it is told to."""

    def __init__(self, path: Path, buffers: Buffers | None = None) -> None:
        self.intake = open_intake(path, buffers)
        self._gate = threading.Event()
        for lane in (self.intake._writing, self.intake._content, self.intake._leaves):
            self.intake._crew.add(lane, self._wait)

    def _wait(self) -> None:
        self._gate.wait(30)

    def go(self) -> None:
        self._gate.set()


def test_beyond_what_all_may_share_everybody_has_one_buffer() -> None:
    buffers = Buffers()
    lent: list[memoryview | None] = []
    for _ in range(MAX_SHARED // MAX_EACH):
        lent += [buffers.take(held) for held in range(MAX_EACH)]
        assert buffers.take(MAX_EACH) is None
    assert None not in lent
    first = buffers.take(0)
    assert first is not None, "or a slow push could stop all others"
    assert buffers.take(1) is None
    for buffer in [first, *lent]:
        assert buffer is not None
        buffers.give_back(buffer)
    assert len(buffers._idle) == KEPT
    assert buffers._lent == 0


async def test_a_disk_that_is_full_stops_everything_after_it(tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    small_disk(3 * BUFFER_BYTES + 1000)
    place = tmp_path / "store" / "upload"
    buffers = Buffers()
    intake = open_intake(place, buffers)
    data = pattern(8 * BUFFER_BYTES)
    for start in range(0, len(data), BUFFER_BYTES):
        buffer = await intake.buffer()
        if buffer is None:
            break
        buffer[:] = data[start : start + BUFFER_BYTES]
        intake.append(BUFFER_BYTES)
    with pytest.raises(StoreFull):
        await intake.settle()
    size = intake.offset
    assert size == intake.written == place.stat().st_size
    assert 0 < size <= 3 * BUFFER_BYTES
    assert content(place) == data[:size]
    assert buffers._lent == 0
    await intake.settle()


async def test_a_file_that_is_gone_is_an_unknown_upload(path: Path) -> None:
    intake = open_intake(path)
    (path.parent / path.name).unlink()
    intake.append_data(memoryview(b"data"))
    with pytest.raises(UploadUnknown):
        await intake.settle()
    assert intake.offset == 0


async def test_whatever_goes_wrong_reaches_who_waits(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    intake = open_intake(path)

    def broken(data: memoryview) -> None:
        raise StoreError("broken")

    monkeypatch.setattr(intake.hasher, "take_leaves", broken)
    intake.append_data(memoryview(pattern(APART_BYTES)))
    with pytest.raises(StoreError, match="broken"):
        await intake.settle()


async def test_settling_is_not_cancelled(path: Path) -> None:
    held = Held(path)
    await pour(held.intake, pattern(APART_BYTES), APART_BYTES)
    with trio.CancelScope() as scope:
        scope.cancel()
        held.go()
        await held.intake.settle()
    assert held.intake.written == APART_BYTES

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.waiting import RangeWaiters, Turns
from ipfsreg.errors import BlockNotFound


class Arrived:
    """Whole bytes that have come."""

    def __init__(self) -> None:
        self.bytes: set[int] = set()
        self.waiters = RangeWaiters(lambda start, end: self.bytes.issuperset(range(start, end)))

    def come(self, start: int, end: int) -> None:
        self.bytes.update(range(start, end))
        self.waiters.arrived(start, end)


async def test_a_reader_wakes_when_the_last_byte_of_its_range_comes() -> None:
    arrived = Arrived()
    woken: list[str] = []

    async def read(name: str, start: int, end: int) -> None:
        await arrived.waiters.wait(start, end)
        woken.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, "first half", 0, 5)
        nursery.start_soon(read, "all", 0, 10)
        await wait_all_tasks_blocked()
        arrived.come(5, 10)
        await wait_all_tasks_blocked()
        assert woken == []
        arrived.come(0, 5)
        await wait_all_tasks_blocked()
        assert sorted(woken) == ["all", "first half"]
        nursery.start_soon(read, "late", 3, 4)
        await wait_all_tasks_blocked()
        assert woken[-1] == "late"


async def test_who_waits_when_it_fails_learns_why_even_if_it_is_tried_again_at_once() -> None:
    arrived = Arrived()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(BlockNotFound, match="gone"):
                await arrived.waiters.wait(0, 1)

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        arrived.waiters.fail(BlockNotFound("gone"))
        arrived.waiters.failure = None
        await wait_all_tasks_blocked()
        nursery.start_soon(arrived.waiters.wait, 0, 1)
        await wait_all_tasks_blocked()
        arrived.come(0, 1)


async def test_what_is_here_can_be_waited_for_after_a_failure() -> None:
    arrived = Arrived()
    arrived.come(0, 5)
    arrived.waiters.fail(BlockNotFound("gone"))
    await arrived.waiters.wait(0, 5)
    with pytest.raises(BlockNotFound):
        await arrived.waiters.wait(0, 6)


async def test_a_cancelled_reader_is_forgotten() -> None:
    arrived = Arrived()
    with trio.move_on_after(0):
        await arrived.waiters.wait(0, 1)
    assert arrived.waiters._waiting == []


async def test_turns_are_taken_one_by_one_for_each_key() -> None:
    turns: Turns[str] = Turns()
    holding: dict[str, int] = {"a": 0, "b": 0}
    both = trio.Event()

    async def hold(key: str) -> None:
        async with turns.alone(key):
            holding[key] += 1
            assert holding[key] == 1
            if all(holding.values()):
                both.set()
            await both.wait()
            holding[key] -= 1

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, "a")
        nursery.start_soon(hold, "b")
    assert turns._locks == {}, "nothing is kept for keys nobody holds"

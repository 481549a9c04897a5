import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfsreg.bitswap.allowance import Allowance


async def test_who_asks_for_too_much_waits_until_there_is_room(autojump_clock: MockClock) -> None:
    allowance = Allowance(100)
    held: list[int] = []

    async def hold(size: int) -> None:
        async with allowance.hold(size):
            held.append(size)
            await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        for size in (60, 30, 50, 90):
            nursery.start_soon(hold, size)
            await wait_all_tasks_blocked()
        assert held == [60, 30]
        assert allowance.held == 90
        await trio.sleep(1.5)
        assert held == [60, 30, 50]
    assert held == [60, 30, 50, 90]
    assert allowance.held == 0


async def test_more_than_the_limit_is_granted_to_one_alone() -> None:
    allowance = Allowance(100)
    async with allowance.hold(1000):
        assert allowance.held == 1000


async def test_nothing_stays_held_when_the_holder_fails_or_is_cancelled(autojump_clock: MockClock) -> None:
    allowance = Allowance(100)
    with pytest.raises(ValueError, match="inside"):
        async with allowance.hold(80):
            raise ValueError("inside")
    async with allowance.hold(80):
        with trio.move_on_after(1):
            async with allowance.hold(80):
                raise AssertionError("there is no room")
    assert allowance.held == 0

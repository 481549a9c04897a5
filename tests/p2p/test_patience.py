"""Deadlines of streams."""

from __future__ import annotations

import trio
import trio.testing

from ipfsreg.p2p.patience import Patience


async def test_each_stream_gets_the_whole_time_unless_it_ends(autojump_clock: trio.testing.MockClock) -> None:
    ran_out: list[tuple[int, float]] = []
    patience = Patience(10, lambda number: ran_out.append((number, trio.current_time())))
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in (1, 3, 5):
            patience.begin(number, nursery)
            await trio.sleep(2)
        assert patience.numbers() == [1, 3, 5]
        patience.end(3)
        patience.end(3)
    # The nursery is done: no task is left once nobody is waited for.
    assert ran_out == [(1, began + 10), (5, began + 14)]
    assert patience.numbers() == []


async def test_it_begins_anew_after_everything_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    ran_out: list[int] = []
    patience = Patience(10, ran_out.append)
    async with trio.open_nursery() as nursery:
        patience.begin(1, nursery)
        await trio.sleep(20)
        patience.begin(2, nursery)
    assert ran_out == [1, 2]

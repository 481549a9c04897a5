from __future__ import annotations

import threading
from functools import partial

import trio

from ipfsreg.blockstore.crew import Crew, Lane


async def finished(crew: Crew, lanes: list[Lane]) -> None:
    """Return when all that is in *lanes* now is done."""
    token = trio.lowlevel.current_trio_token()
    for lane in lanes:
        over = trio.Event()
        crew.add(lane, partial(token.run_sync_soon, over.set))
        await over.wait()


async def test_each_lane_keeps_its_order_and_several_are_under_way_at_once() -> None:
    crew, lanes = Crew(2), [Lane() for _ in range(3)]
    done: list[list[int]] = [[], [], []]
    # The first of one lane waits for the second of another: with lanes one after the other it would for ever.
    met = threading.Event()
    crew.add(lanes[0], lambda: done[0].append(-1 if met.wait(30) else -2))
    crew.add(lanes[1], lambda: done[1].append(-1))
    crew.add(lanes[1], met.set)
    for number in range(50):
        for lane, seen in zip(lanes, done, strict=True):
            crew.add(lane, partial(seen.append, number))
    await finished(crew, lanes)
    assert done == [[-1, *range(50)], [-1, *range(50)], [*range(50)]]


async def test_no_more_threads_than_allowed_and_none_when_idle() -> None:
    crew, lock = Crew(2), threading.Lock()
    running = most = 0

    def job() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.001)
        with lock:
            running -= 1

    lanes = [Lane() for _ in range(8)]
    for _ in range(3):
        for lane in lanes:
            crew.add(lane, job)
        await finished(crew, lanes)
        assert most == 2
    with trio.fail_after(10):
        while crew._threads:  # the last one is about to find nothing more
            await trio.lowlevel.checkpoint()


async def test_a_long_lane_does_not_keep_out_a_short_one() -> None:
    crew, begun, go = Crew(1), threading.Event(), threading.Event()
    order: list[str] = []
    long, short = Lane(), Lane()

    def first() -> None:
        begun.set()
        go.wait(30)

    crew.add(long, first)
    for _ in range(10):
        crew.add(long, lambda: order.append("long"))
    await trio.to_thread.run_sync(begun.wait)
    crew.add(short, lambda: order.append("short"))
    go.set()
    await finished(crew, [long, short])
    assert order.index("short") <= 2

"""What waits for endpoints, and what of it survives."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from ipfsreg.database import Database, open_database
from ipfsreg.notifications.queue import Queue


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    async with open_database(tmp_path / "node.db") as database:
        yield database


async def test_events_come_out_in_order_and_stay_until_they_are_delivered(database: Database) -> None:
    queue = await Queue.open(database, {"a": 100, "b": 100})
    await queue.put([("a", b"1"), ("b", b"x"), ("a", b"2")])
    await queue.put([("a", b"3")])
    first = await queue.take("a", 2)
    assert first.events == (b"1", b"2")
    assert (await queue.take("a", 2)).events == (b"1", b"2")
    await queue.delivered("a", first)
    assert (await queue.take("a", 2)).events == (b"3",)
    assert (await queue.take("b", 2)).events == (b"x",)
    assert (len(queue.waiting["a"]), len(queue.waiting["b"])) == (1, 1)


async def test_what_waits_survives_a_restart_but_pulls_do_not(tmp_path: Path) -> None:
    async with open_database(tmp_path / "node.db") as database:
        queue = await Queue.open(database, {"a": 100})
        await queue.put([("a", b"push")])
        queue.put_pull("a", b"pull")
        assert (await queue.take("a", 10)).events == (b"push", b"pull")
        assert len(queue.waiting["a"]) == 2
    async with open_database(tmp_path / "node.db") as database:
        queue = await Queue.open(database, {"a": 100})
        assert len(queue.waiting["a"]) == 1
        assert (await queue.take("a", 10)).events == (b"push",)


async def test_what_waits_for_an_endpoint_that_is_gone_is_forgotten(database: Database) -> None:
    await (await Queue.open(database, {"gone": 100, "here": 100})).put([("gone", b"1"), ("here", b"2")])
    queue = await Queue.open(database, {"here": 100})
    assert database.read("SELECT endpoint FROM notifications").fetchall() == [("here",)]
    assert len(queue.waiting["here"]) == 1


async def test_a_full_queue_drops_the_oldest_and_counts_them(database: Database) -> None:
    queue = await Queue.open(database, {"a": 3})
    for number in range(5):
        await queue.put([("a", b"%d" % number)])
        queue.put_pull("a", b"p%d" % number)
    assert (await queue.take("a", 10)).events == (b"2", b"3", b"4", b"p2", b"p3", b"p4")
    assert (len(queue.waiting["a"]), queue.waiting["a"].dropped) == (6, 4)


async def test_pulls_that_were_dropped_while_they_were_delivered_take_no_others_along(database: Database) -> None:
    queue = await Queue.open(database, {"a": 2})
    queue.put_pull("a", b"0")
    queue.put_pull("a", b"1")
    batch = await queue.take("a", 2)
    queue.put_pull("a", b"2")
    await queue.delivered("a", batch)
    assert (await queue.take("a", 10)).events == (b"2",)


async def test_whoever_takes_waits_until_something_is_there(database: Database) -> None:
    queue = await Queue.open(database, {"a": 10})
    taken: list[tuple[bytes, ...]] = []

    async def take() -> None:
        taken.append((await queue.take("a", 10)).events)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        assert taken == []
        await queue.put([("a", b"1")])
    async with trio.open_nursery() as nursery:
        await queue.delivered("a", await queue.take("a", 10))
        nursery.start_soon(take)
        await trio.testing.wait_all_tasks_blocked()
        queue.put_pull("a", b"2")
    assert taken == [(b"1",), (b"2",)]


async def test_an_event_delivered_before_its_writer_hears_that_it_is_on_disk_waits_no_more(database: Database) -> None:
    queue = await Queue.open(database, {"a": 100})
    for _ in range(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(queue.put, [("a", b"push")])
            # The row is there a few turns before `put` goes on, which has to come by the thread's answer first.
            while not database.read("SELECT 1 FROM notifications").fetchall():
                await trio.lowlevel.checkpoint()
            batch = await queue.take("a", 10)
        assert len(queue.waiting["a"]) == 1
        await queue.delivered("a", batch)
        assert len(queue.waiting["a"]) == 0

"""The queue in front of a topic's reader."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, TopicMessage
from ipfsreg.pubsub.subscription import MAX_JOINED, MAX_RUN, Subscription
from ipfsreg.testing.gossip import numbered_peer
from ipfsreg.testing.network import peer_of

ALICE = peer_of("alice")


def message(data: bytes) -> TopicMessage:
    return TopicMessage(data, ALICE, ALICE)


async def test_the_oldest_give_way_by_count_and_by_bytes() -> None:
    queue = Subscription(max_messages=3, max_bytes=100)
    for data in (b"1", b"2", b"3", b"4"):
        queue.put_message(message(data))
    assert [await anext(queue) for _ in range(4)] == [MessagesDropped(1), *map(message, (b"2", b"3", b"4"))]
    for data in (b"a" * 60, b"b" * 60):
        queue.put_message(message(data))
    assert [await anext(queue) for _ in range(2)] == [MessagesDropped(1), message(b"b" * 60)]


async def test_a_peer_that_comes_and_goes_is_told_once() -> None:
    queue = Subscription(max_messages=3, max_bytes=100)
    for _ in range(3):
        queue.put_joined(ALICE)
    queue.put_message(message(b"1"))
    assert [await anext(queue) for _ in range(2)] == [PeerJoined(ALICE), message(b"1")]


async def test_peers_that_wait_to_be_told_are_bounded() -> None:
    queue = Subscription(max_messages=3, max_bytes=100)
    for number in range(MAX_JOINED + 1):
        queue.put_joined(numbered_peer(number))
    queue.put_message(message(b"last"))
    told = [await anext(queue) for _ in range(MAX_JOINED + 1)]
    assert told[0] == PeerJoined(numbered_peer(1))
    assert told[-1] == message(b"last")


async def test_a_reader_with_much_to_read_lets_others_run() -> None:
    queue = Subscription(max_messages=1000, max_bytes=1000)
    turns = 0

    async def wait_for_turns() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for_turns)
        for _ in range(10 * MAX_RUN):
            queue.put_message(message(b"1"))
            await anext(queue)
        nursery.cancel_scope.cancel()
    assert turns >= 5


async def test_a_reader_cancelled_while_it_waits_loses_nothing() -> None:
    queue = Subscription(max_messages=3, max_bytes=100)
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                await anext(queue)

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            scope.cancel()
    queue.put_message(message(b"1"))
    assert await anext(queue) == message(b"1")


async def test_closing_ends_a_reader_that_waits() -> None:
    queue = Subscription(max_messages=3, max_bytes=100)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                assert [event async for event in queue] == []

            nursery.start_soon(read)
            await wait_all_tasks_blocked()
            queue.close()
    with pytest.raises(StopAsyncIteration):
        await anext(queue)

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.dht.keys import Contact
from ipfsreg.dht.messages import MAX_ANSWER_BYTES, Message, MessageType, decode_message, encode_message
from ipfsreg.dht.messenger import IDLE_S, MAX_LINES, Messenger
from ipfsreg.errors import NetworkError, PeerMisbehaved, PeerUnreachable, ProtocolUnsupported
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Stream
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm

PROTOCOL = "/ipfs/kad/1.0.0"
KEY = b"\x12\x20" + bytes(32)
FIND = Message(MessageType.FIND_NODE, KEY)

Answer = Callable[[Stream], Awaitable[None]]


@asynccontextmanager
async def conversation(answer: Answer) -> AsyncIterator[tuple[Messenger, Contact, MemoryEndpoint]]:
    """Alice's messenger, and bob, who treats every stream as told."""
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with bob.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:

        async def serve() -> None:
            async for stream in streams:
                nursery.start_soon(contained, stream)

        async def contained(stream: Stream) -> None:
            try:
                await answer(stream)
            except NetworkError:
                await stream.reset()

        nursery.start_soon(serve)
        messenger = Messenger(alice, [PROTOCOL], query_s=10)
        nursery.start_soon(messenger.keep_tidy)
        yield messenger, Contact(bob.peer_id), alice
        nursery.cancel_scope.cancel()


async def echo(stream: Stream) -> None:
    """Send back whatever comes: a well-formed answer of the right type, and what py-libp2p does to announcements."""
    reader = MessageReader(stream, 1 << 20)
    while (data := await reader.read()) is not None:
        await send_message(stream, data)


async def test_one_stream_serves_many_requests(autojump_clock: MockClock) -> None:
    async with conversation(echo) as (messenger, bob, alice):
        for _ in range(5):
            assert await messenger.ask(bob, FIND) == FIND
        assert len(alice.streams()) == 1


async def test_requests_of_several_tasks_get_their_own_answers(autojump_clock: MockClock) -> None:
    async with conversation(echo) as (messenger, bob, _), trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            request = Message(MessageType.FIND_NODE, bytes([number]))
            assert await messenger.ask(bob, request) == request

        for number in range(20):
            nursery.start_soon(ask, number)


async def test_an_announcement_that_is_sent_back_is_not_taken_for_an_answer(autojump_clock: MockClock) -> None:
    async with conversation(echo) as (messenger, bob, _):
        await messenger.ask(bob, FIND)
        await messenger.announce(bob, [encode_message(Message(MessageType.ADD_PROVIDER, KEY))] * 3)
        assert await messenger.ask(bob, FIND) == FIND


async def test_announcements_arrive_whole_and_in_order(autojump_clock: MockClock) -> None:
    received: list[Message] = []

    async def listen(stream: Stream) -> None:
        reader = MessageReader(stream, 1 << 20)
        while (data := await reader.read()) is not None:
            received.append(decode_message(data))

    sent = [Message(MessageType.ADD_PROVIDER, number.to_bytes(40, "big")) for number in range(5000)]
    async with conversation(listen) as (messenger, bob, _):
        await messenger.announce(bob, [encode_message(message) for message in sent])
        await trio.sleep(1)
    assert received == sent


async def test_a_stream_that_died_while_idle_is_opened_anew(autojump_clock: MockClock) -> None:
    async def once(stream: Stream) -> None:
        data = await MessageReader(stream, 1 << 20).read()
        assert data is not None
        await send_message(stream, data)
        await trio.sleep(1)
        await stream.reset()

    async with conversation(once) as (messenger, bob, _):
        for _ in range(3):
            assert await messenger.ask(bob, FIND) == FIND
            await trio.sleep(2)


async def test_a_silent_peer_costs_its_time_and_its_stream(autojump_clock: MockClock) -> None:
    async def silence(stream: Stream) -> None:
        await stream.receive_some()
        await trio.sleep_forever()

    async with conversation(silence) as (messenger, bob, alice):
        started = trio.current_time()
        with pytest.raises(PeerUnreachable, match="within 10 s"):
            await messenger.ask(bob, FIND)
        assert trio.current_time() - started == 10
        assert all(stream._in.error is not None for stream in alice.streams())
        assert not messenger._lines


async def test_an_abandoned_request_leaves_no_answer_for_the_next(autojump_clock: MockClock) -> None:
    async def late(stream: Stream) -> None:
        reader = MessageReader(stream, 1 << 20)
        while (data := await reader.read()) is not None:
            await trio.sleep(2)
            await send_message(stream, data)

    async with conversation(late) as (messenger, bob, _):
        with trio.move_on_after(1):
            await messenger.ask(bob, Message(MessageType.FIND_NODE, b"abandoned"))
        assert await messenger.ask(bob, FIND) == FIND


@pytest.mark.parametrize(
    "reply",
    [
        b"\x02\x08\x05",
        b"\x03abc",
        encode_varint(MAX_ANSWER_BYTES + 1),
        b"\x02\x08\x02",
    ],
    ids=["another type", "garbage", "too long", "an announcement out of nowhere"],
)
async def test_nonsense_is_the_peers_fault(autojump_clock: MockClock, reply: bytes) -> None:
    async def nonsense(stream: Stream) -> None:
        await stream.receive_some()
        await stream.send_all(reply)

    async with conversation(nonsense) as (messenger, bob, _):
        with pytest.raises(PeerMisbehaved):
            await messenger.ask(bob, FIND)
        assert not messenger._lines


async def test_a_peer_that_ends_the_stream_has_not_answered(autojump_clock: MockClock) -> None:
    async def hang_up(stream: Stream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with conversation(hang_up) as (messenger, bob, _):
        with pytest.raises(PeerUnreachable, match="ended the stream"):
            await messenger.ask(bob, FIND)


async def test_peers_that_do_not_speak_it_leave_nothing_behind(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    messenger = Messenger(alice, [PROTOCOL], query_s=10)
    with pytest.raises(ProtocolUnsupported):
        await messenger.ask(Contact(bob.peer_id), FIND)
    assert not messenger._lines


async def test_idle_streams_are_closed_and_their_number_is_bounded(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    alice = swarm.endpoint("alice")
    crowd = [swarm.endpoint(f"peer {number}") for number in range(MAX_LINES + 20)]
    async with trio.open_nursery() as nursery:

        async def serve(endpoint: MemoryEndpoint) -> None:
            async with endpoint.accept([PROTOCOL]) as streams:
                async for stream in streams:
                    nursery.start_soon(echo, stream)

        for endpoint in crowd:
            nursery.start_soon(serve, endpoint)
        messenger = Messenger(alice, [PROTOCOL], query_s=10)
        nursery.start_soon(messenger.keep_tidy)
        for endpoint in crowd:
            await messenger.ask(Contact(endpoint.peer_id), FIND)
            await trio.sleep(0.01)
        await trio.sleep(IDLE_S / 4 + 1)
        assert len(messenger._lines) == MAX_LINES
        assert crowd[0].peer_id not in messenger._lines
        await trio.sleep(1.5 * IDLE_S)
        assert not messenger._lines
        nursery.cancel_scope.cancel()

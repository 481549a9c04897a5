import pytest
import trio
from trio.testing import MockClock

from ipfsreg.bitswap.messages import BITSWAP_1_1, PROTOCOLS, Entry, Message, Payload, decode_message
from ipfsreg.bitswap.voice import Voice, deadline_for
from ipfsreg.errors import NetworkError, ProtocolUnsupported
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.p2p.framing import MessageReader
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm

HELLO = Message((Entry(Cid.of(RAW, b"hello")),))


@pytest.fixture
def ends() -> tuple[MemorySwarm, MemoryEndpoint, MemoryEndpoint]:
    swarm = MemorySwarm()
    return swarm, swarm.endpoint("alice"), swarm.endpoint("bob")


Ends = tuple[MemorySwarm, MemoryEndpoint, MemoryEndpoint]


async def test_all_that_is_said_goes_over_one_stream(ends: Ends) -> None:
    _, alice, bob = ends
    voice = Voice(alice, bob.peer_id)
    async with bob.accept(PROTOCOLS) as streams:
        for _ in range(3):
            await voice.say(HELLO, tries=1)
        await voice.close()
        reader = MessageReader(await anext(streams), 1000)
        for _ in range(3):
            data = await reader.read()
            assert data is not None
            assert decode_message(data) == HELLO
        assert await reader.read() is None


async def test_the_form_is_that_of_the_protocol_agreed_on(ends: Ends) -> None:
    _, alice, bob = ends
    question = Message((Entry(Cid.of(RAW, b"hello"), want_have=True),))
    async with bob.accept([BITSWAP_1_1]) as streams:
        await Voice(alice, bob.peer_id).say(question, tries=1)
        data = await MessageReader(await anext(streams), 1000).read()
        assert data is not None
        assert decode_message(data) == Message()


async def test_a_broken_stream_is_replaced_while_tries_are_left(ends: Ends) -> None:
    _, alice, bob = ends
    voice = Voice(alice, bob.peer_id)
    async with bob.accept(PROTOCOLS) as streams:
        await voice.say(HELLO, tries=1)
        await (await anext(streams)).reset()
        await voice.say(HELLO, tries=2)
        again = await anext(streams)
        assert await MessageReader(again, 1000).read() is not None
        await again.reset()
        with pytest.raises(NetworkError):
            await voice.say(HELLO, tries=1)
        await voice.say(HELLO, tries=1)


async def test_a_peer_that_does_not_speak_bitswap_is_told_nothing(ends: Ends) -> None:
    _, alice, bob = ends
    with pytest.raises(ProtocolUnsupported):
        await Voice(alice, bob.peer_id).say(HELLO, tries=3)


async def test_a_peer_that_takes_nothing_costs_a_bounded_time(ends: Ends, autojump_clock: MockClock) -> None:
    swarm, alice, bob = ends
    block = Message(payloads=(Payload(b"\x01\x55\x12\x20", bytes(1024 * 1024)),))
    taken: list[int] = []
    async with bob.accept(PROTOCOLS):
        await alice.connect(PeerInfo(bob.peer_id))
        swarm.stall(alice, bob)
        with pytest.raises(NetworkError, match="takes nothing"):
            await Voice(alice, bob.peer_id).say(block, tries=3, sent=taken.append)
    assert trio.current_time() == pytest.approx(deadline_for(1024 * 1024), abs=0.1)
    assert sum(taken) < 512 * 1024


async def test_how_a_large_block_proceeds_is_reported(ends: Ends) -> None:
    _, alice, bob = ends
    block = Message(payloads=(Payload(b"\x01\x55\x12\x20", bytes(1024 * 1024)),))
    taken: list[int] = []
    async with bob.accept(PROTOCOLS) as streams, trio.open_nursery() as nursery:

        async def read() -> None:
            data = await MessageReader(await anext(streams), 4 * 1024 * 1024).read()
            assert data is not None
            assert len(decode_message(data).payloads[0].data) == 1024 * 1024

        nursery.start_soon(read)
        await Voice(alice, bob.peer_id).say(block, tries=1, sent=taken.append)
    assert len(taken) >= 4
    assert max(taken) <= 256 * 1024


async def test_a_cancelled_message_takes_its_stream_with_it(ends: Ends, autojump_clock: MockClock) -> None:
    swarm, alice, bob = ends
    voice = Voice(alice, bob.peer_id)
    async with bob.accept(PROTOCOLS) as streams:
        await alice.connect(PeerInfo(bob.peer_id))
        swarm.stall(alice, bob)
        with trio.move_on_after(1):
            await voice.say(Message(payloads=(Payload(b"\x01\x55\x12\x20", bytes(1024 * 1024)),)), tries=1)
        swarm.resume(alice, bob)
        with pytest.raises(NetworkError):
            await MessageReader(await anext(streams), 4 * 1024 * 1024).read()
        # Half a message must never be followed by the next one.
        await voice.say(HELLO, tries=1)
        data = await MessageReader(await anext(streams), 1000).read()
        assert data is not None
        assert decode_message(data) == HELLO


async def test_a_block_nobody_wants_any_more_is_broken_off(ends: Ends) -> None:
    _, alice, bob = ends
    voice = Voice(alice, bob.peer_id)
    block = Message(payloads=(Payload(Cid.of(RAW, b"x").prefix, bytes(1024 * 1024)),))
    taken: list[int] = []
    async with bob.accept(PROTOCOLS) as streams, trio.open_nursery() as nursery:
        ended = []

        async def listen() -> None:
            reader = MessageReader(await anext(streams), 2 * 1024 * 1024)
            with pytest.raises(NetworkError):
                await reader.read()
            ended.append(True)

        nursery.start_soon(listen)
        assert not await voice.say(block, tries=2, sent=taken.append, wanted=lambda: sum(taken) < 300 * 1024)
        assert sum(taken) < 600 * 1024
        await trio.testing.wait_all_tasks_blocked()
        assert ended
        assert await voice.say(HELLO, tries=1), "over a stream of its own"
        assert await MessageReader(await anext(streams), 1000).read() is not None
        nursery.cancel_scope.cancel()


async def test_what_is_nearly_sent_is_sent_to_its_end(ends: Ends) -> None:
    _, alice, bob = ends
    block = Message(payloads=(Payload(Cid.of(RAW, b"x").prefix, bytes(200 * 1024)),))
    async with bob.accept(PROTOCOLS) as streams, trio.open_nursery() as nursery:

        async def listen() -> None:
            assert await MessageReader(await anext(streams), 1024 * 1024).read() is not None

        nursery.start_soon(listen)
        assert await Voice(alice, bob.peer_id).say(block, tries=1, wanted=lambda: False)

import hashlib
import logging
import random
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, suppress

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfsreg.bitswap.messages import (
    BITSWAP_1_2,
    PROTOCOLS,
    Entry,
    Message,
    Payload,
    decode_message,
    encode_message,
)
from ipfsreg.bitswap.service import Bitswap, open_bitswap
from ipfsreg.bitswap.settings import MIB, BitswapSettings
from ipfsreg.blockstore.memory import MemoryBlockstore
from ipfsreg.errors import BlockNotFound, NetworkError
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, peer_of


def blocks_of(count: int, size: int = 32 * 1024, *, seed: str = "") -> list[Block]:
    """Blocks below 64 KiB are hashed in the event loop: worker threads and a clock that jumps do not agree."""
    return [Block.of(random.Random(f"{seed}{index}").randbytes(size)) for index in range(count)]


def cids(blocks: Iterable[Block]) -> list[Cid]:
    return [block.cid for block in blocks]


class House:
    """Named peers with stores, all connected to each other."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.swarm = MemorySwarm()
        self.stores: dict[str, MemoryBlockstore] = {}
        self.ends: dict[str, MemoryEndpoint] = {}
        self._nursery = nursery

    async def move_in(
        self,
        name: str,
        blocks: Iterable[Block] = (),
        *,
        routing: "Signpost | None" = None,
        settings: BitswapSettings | None = None,
        knows: Sequence[str] | None = None,
    ) -> Bitswap:
        end, store = self.swarm.endpoint(name), MemoryBlockstore(blocks)

        opened: list[Bitswap] = []
        ready = trio.Event()

        async def live() -> None:
            async with open_bitswap(end, store, routing, settings) as bitswap:
                opened.append(bitswap)
                ready.set()
                await trio.sleep_forever()

        self._nursery.start_soon(live)
        await ready.wait()
        for other in self.ends if knows is None else knows:
            await end.connect(PeerInfo(self.ends[other].peer_id))
        self.ends[name], self.stores[name] = end, store
        await wait_all_tasks_blocked()
        return opened[0]

    async def stranger(self, name: str) -> MemoryEndpoint:
        """A peer without a bitswap of ours: the test speaks for it."""
        end = self.swarm.endpoint(name)
        for other in self.ends.values():
            await end.connect(PeerInfo(other.peer_id))
        self.ends[name] = end
        return end


class Signpost:
    """Content routing that knows what it was told."""

    def __init__(self, providers: dict[Cid, list[str]]) -> None:
        self.providers = providers
        self.asked: list[tuple[float, Cid]] = []

    async def provide(self, cids: Iterable[Cid]) -> None: ...

    async def unprovide(self, cids: Iterable[Cid]) -> None: ...

    async def find_providers(self, cid: Cid, *, count: int = 20) -> AsyncIterator[PeerInfo]:
        self.asked.append((trio.current_time(), cid))
        for name in self.providers.get(cid, ()):
            yield PeerInfo(peer_of(name))

    async def find_peer(self, peer: PeerId) -> PeerInfo | None:
        return PeerInfo(peer)


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def house(nursery: trio.Nursery) -> House:
    return House(nursery)


async def fetch_all(
    bitswap: Bitswap, blocks: Sequence[Block], *, first: Sequence[str] = (), deadline_s: float = 30.0
) -> set[Cid]:
    got = set()
    async with aclosing(
        bitswap.fetch(cids(blocks), first=[peer_of(name) for name in first], deadline_s=deadline_s)
    ) as arriving:
        async for block in arriving:
            assert hashlib.sha256(block.data).digest() == block.cid.digest
            got.add(block.cid)
    return got


async def speak(end: MemoryEndpoint, to: str, *messages: Message) -> None:
    stream = await end.open_stream(peer_of(to), [BITSWAP_1_2])
    for message in messages:
        await send_message(stream, *encode_message(message))
    await stream.send_eof()


async def answer_wants(end: MemoryEndpoint, answer: "Answer") -> None:
    """Accept wants for ever and say to each what *answer* makes of it."""
    async with end.accept(PROTOCOLS) as streams, trio.open_nursery() as nursery:

        async def read(stream: Stream) -> None:
            reader = MessageReader(stream, 4 * MIB)
            reply = None
            with suppress(NetworkError):
                while (data := await reader.read()) is not None:
                    message = answer(decode_message(data))
                    if message is not None:
                        if reply is None:
                            reply = await end.open_stream(stream.peer, [BITSWAP_1_2])
                        await send_message(reply, *encode_message(message))

        async for stream in streams:
            nursery.start_soon(read, stream)


class Answer:
    """What a stranger says to wants, and what it has seen."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def __call__(self, message: Message) -> Message | None:
        self.entries += message.entries
        return self.reply([entry for entry in message.entries if not entry.cancel])

    def reply(self, wants: list[Entry]) -> Message | None:
        return None


# ---------------------------------------------------------------- the main job


async def test_bob_fetches_from_alice_what_he_lacks(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(20)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob", blocks[:5])
    assert await fetch_all(bob, blocks) == set(cids(blocks))
    assert len(house.stores["bob"]) == 5, "what was fetched is the caller's to store"


async def test_a_named_peer_is_asked_for_the_block_at_once(house: House, autojump_clock: MockClock) -> None:
    block = blocks_of(1)[0]
    seen = Answer()
    bob = await house.move_in("bob")
    end = await house.stranger("alice")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, seen)
        with trio.move_on_after(0.5):
            await fetch_all(bob, [block], first=["alice"])
        nursery.cancel_scope.cancel()
    assert seen.entries[0] == Entry(block.cid, 1, send_dont_have=True)


async def test_large_blocks_are_hashed_beside_the_event_loop_and_arrive_whole(house: House) -> None:
    blocks = blocks_of(40, MIB)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob")
    assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))


async def test_blocks_up_to_two_mebibytes_travel(house: House) -> None:
    blocks = [Block.of(bytes(2 * MIB)), Block.of(b"x", DAG_PB)]
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob")
    assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))


async def test_identity_cids_and_the_empty_block_are_asked_of_nobody(house: House, autojump_clock: MockClock) -> None:
    inlined = Cid(1, RAW, b"\x00\x05hello")
    empty = Block.of(b"")
    seen = Answer()
    bob = await house.move_in("bob")
    end = await house.stranger("alice")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, seen)
        got = [block async for block in bob.fetch([inlined, empty.cid], first=[end.peer_id])]
        nursery.cancel_scope.cancel()
    assert {bytes(block.data) for block in got} == {b"hello", b""}
    assert not seen.entries


async def test_a_block_that_arrives_later_is_pushed_to_who_asked_for_it(
    house: House, autojump_clock: MockClock
) -> None:
    late, small = blocks_of(2, 2000), blocks_of(1, 100)
    await house.move_in("alice")
    bob = await house.move_in("bob")
    async with trio.open_nursery() as nursery:

        async def fetch() -> None:
            assert await fetch_all(bob, late + small, first=["alice"]) == set(cids(late + small))
            assert trio.current_time() - began < 6.5

        began = trio.current_time()
        nursery.start_soon(fetch)
        await trio.sleep(5.5)
        await house.stores["alice"].put_many(late + small)


async def test_a_peer_that_connects_during_a_search_is_asked(house: House, autojump_clock: MockClock) -> None:
    block = blocks_of(1)[0]
    bob = await house.move_in("bob")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch_all, bob, [block])
        await trio.sleep(3)
        await house.move_in("alice", [block])


async def test_routing_is_asked_when_nobody_connected_has_it(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(3)
    signpost = Signpost({blocks[0].cid: ["carol"]})
    await house.move_in("alice")
    await house.move_in("carol", blocks)
    bob = await house.move_in("bob", routing=signpost, knows=["alice"])
    began = trio.current_time()
    assert await fetch_all(bob, blocks) == set(cids(blocks))
    assert 0.9 < signpost.asked[0][0] - began < 1.5, "after the patience, not before"


async def test_routing_is_asked_for_the_root_of_a_session(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(3)
    root = Cid.of(DAG_PB, b"root")
    signpost = Signpost({root: ["carol"]})
    await house.move_in("carol", blocks)
    bob = await house.move_in("bob", routing=signpost, knows=[])
    with bob.session(root) as wanted:
        wanted.want(cids(blocks))
        assert {arrival.peer async for arrival in wanted} == {peer_of("carol")}


async def test_a_peer_named_first_that_is_not_connected_is_dialled(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(3)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob", knows=[])
    assert await fetch_all(bob, blocks, first=["alice"], deadline_s=3) == set(cids(blocks))


async def test_blocks_that_reach_the_store_by_another_way_are_delivered(
    house: House, autojump_clock: MockClock
) -> None:
    block = blocks_of(1)[0]
    bob = await house.move_in("bob")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fetch_all, bob, [block])
        await trio.sleep(2)
        await house.stores["bob"].put(block)


async def test_a_damaged_local_block_is_fetched_from_a_peer(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(2)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob", blocks)
    house.stores["bob"].damage(blocks[0].cid)
    assert await fetch_all(bob, blocks) == set(cids(blocks))


# --------------------------------------------------------------- many peers


async def test_three_providers_share_the_work(house: House) -> None:
    blocks = blocks_of(60, 256 * 1024)
    names = ["alice", "carol", "dave"]
    for name in names:
        await house.move_in(name, blocks)
    bob = await house.move_in("bob")
    with bob.session(None, first=[PeerInfo(peer_of(name)) for name in names], block_bytes=256 * 1024) as wanted:
        wanted.want(cids(blocks))
        async for _ in wanted:
            pass
        assert wanted.stats.blocks == 60
        assert wanted.stats.duplicate_blocks == 0
        assert all(wanted.stats.by_peer[peer_of(name)] >= 5 * 256 * 1024 for name in names)


@pytest.mark.parametrize("fate", ["dies", "stalls", "is cut"])
async def test_when_one_provider_fails_in_the_middle_the_others_finish(
    house: House, autojump_clock: MockClock, fate: str
) -> None:
    blocks = blocks_of(200)
    await house.move_in("alice", blocks)
    await house.move_in("carol", blocks)
    bob = await house.move_in("bob")
    alice = house.ends["alice"]
    # Slow enough that both have much to do when it happens.
    for name in ("alice", "carol"):
        house.swarm.delay(house.ends[name], house.ends["bob"], 0.1)
    got = 0
    began = trio.current_time()
    with bob.session(None, first=[PeerInfo(peer_of("alice")), PeerInfo(peer_of("carol"))]) as wanted:
        wanted.want(cids(blocks))
        async for _ in wanted:
            got += 1
            if got == 20:
                if fate == "dies":
                    house.swarm.kill(alice)
                elif fate == "stalls":
                    house.swarm.stall(alice, house.ends["bob"])
                else:
                    house.swarm.cut(alice, house.ends["bob"])
    assert got == 200
    assert trio.current_time() - began < 10


async def test_a_block_is_asked_again_when_its_peer_is_silent_for_longer_than_ever(
    house: House, autojump_clock: MockClock
) -> None:
    blocks = blocks_of(4)
    seen = Answer()
    await house.move_in("carol", blocks)
    bob = await house.move_in("bob")
    end = await house.stranger("alice")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, seen)
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))
        assert 0.5 < trio.current_time() - began < 3
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    asked = {entry.cid for entry in seen.entries if not entry.cancel}
    cancelled = {entry.cid for entry in seen.entries if entry.cancel}
    assert asked == cancelled == set(cids(blocks)), "and what was asked of the silent one is cancelled"


class Liar(Answer):
    """Sends other bytes than were asked for."""

    def reply(self, wants: list[Entry]) -> Message | None:
        payloads = [Payload(entry.cid.prefix, b"wrong" + bytes(entry.cid)) for entry in wants if not entry.want_have]
        return Message(payloads=payloads, haves=[entry.cid for entry in wants if entry.want_have])


async def test_a_peer_that_sends_wrong_bytes_is_thrown_out_and_others_give_the_blocks(
    house: House, autojump_clock: MockClock
) -> None:
    blocks = blocks_of(10)
    await house.move_in("carol", blocks)
    bob = await house.move_in("bob")
    end = await house.stranger("mallory")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, Liar())
        await wait_all_tasks_blocked()
        assert await fetch_all(bob, blocks, first=["mallory"]) == set(cids(blocks))
        nursery.cancel_scope.cancel()
    assert [peer for peer, _ in house.ends["bob"].disconnects] == [peer_of("mallory")]


class Promiser(Answer):
    """Says HAVE to everything and sends nothing."""

    def reply(self, wants: list[Entry]) -> Message | None:
        return Message(haves=[entry.cid for entry in wants])


async def test_a_peer_that_says_have_and_never_sends_does_not_stop_the_others(
    house: House, autojump_clock: MockClock
) -> None:
    blocks = blocks_of(40)
    bob = await house.move_in("bob")
    await house.move_in("carol", blocks)
    end = await house.stranger("mallory")
    house.swarm.delay(house.ends["carol"], house.ends["bob"], 0.2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, Promiser())
        await wait_all_tasks_blocked()
        began = trio.current_time()
        assert await fetch_all(bob, blocks) == set(cids(blocks))
        assert trio.current_time() - began < 8
        nursery.cancel_scope.cancel()


async def test_a_peer_that_trickles_is_relieved_of_its_blocks(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(30)
    bob = await house.move_in("bob")
    await house.move_in("carol", blocks)
    end = await house.stranger("mallory")

    async def trickle() -> None:
        stream = await end.open_stream(peer_of("bob"), [BITSWAP_1_2])
        pieces = b"".join(encode_message(Message(payloads=[Payload(blocks[0].cid.prefix, blocks[0].data)])))
        await stream.send_all(bytes((0x80 | len(pieces) & 0x7F, len(pieces) >> 7 & 0x7F | 0x80, len(pieces) >> 14)))
        with suppress(NetworkError):
            for byte in pieces:
                await stream.send_all(bytes((byte,)))
                await trio.sleep(0.5)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, Answer())
        await wait_all_tasks_blocked()
        nursery.start_soon(trickle)
        assert await fetch_all(bob, blocks, first=["mallory"]) == set(cids(blocks))
        assert trio.current_time() < 60
        nursery.cancel_scope.cancel()


async def test_all_providers_gone_is_a_clear_error_and_works_again_when_one_returns(
    house: House, autojump_clock: MockClock
) -> None:
    blocks = blocks_of(10)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob")
    house.swarm.cut(house.ends["alice"], house.ends["bob"])
    began = trio.current_time()
    with pytest.raises(BlockNotFound, match="no peer in reach gave any of 10 blocks in 7 s"):
        await fetch_all(bob, blocks, deadline_s=7)
    assert trio.current_time() - began == pytest.approx(7, abs=0.5)
    house.swarm.heal(house.ends["alice"], house.ends["bob"])
    await house.ends["alice"].connect(PeerInfo(house.ends["bob"].peer_id))
    assert await fetch_all(bob, blocks, deadline_s=7) == set(cids(blocks))


async def test_eight_that_pull_at_once_give_to_each_other(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(48, 60 * 1024)
    size = 48 * 60 * 1024
    root = Cid.of(DAG_PB, b"root")
    # Everybody can send the whole in eight seconds.
    narrow = BitswapSettings(upload_bytes_per_s=size // 8)
    await house.move_in("holder", blocks, settings=narrow)
    names = [f"peer {index}" for index in range(8)]
    peers = [await house.move_in(name, settings=narrow) for name in names]
    for one in (*names, "holder"):
        for other in names:
            house.swarm.delay(house.ends[one], house.ends[other], 0.01)
    duplicates, from_holder = [], []
    began = trio.current_time()

    async def pull(name: str, bitswap: Bitswap) -> None:
        with bitswap.session(root, first=[PeerInfo(peer_of("holder"))], block_bytes=60 * 1024) as wanted:
            wanted.want(cids(blocks))
            async for arrival in wanted:
                await house.stores[name].put(arrival.block)
            duplicates.append(wanted.stats.duplicate_blocks)
            from_holder.append(wanted.stats.by_peer.get(peer_of("holder"), 0))

    async with trio.open_nursery() as nursery:
        for name, bitswap in zip(names, peers, strict=True):
            nursery.start_soon(pull, name, bitswap)
    assert sum(duplicates) <= 0.03 * 8 * 48
    assert sum(from_holder) <= 2.5 * size
    assert trio.current_time() - began < 2 * 8, "alone, the holder would need 64 seconds"


# ------------------------------------------------------- what must not hurt


async def test_two_hundred_sessions_at_once(house: House, autojump_clock: MockClock) -> None:
    shared, own = blocks_of(10), [blocks_of(3, 1000, seed=f"session {number} ") for number in range(200)]
    await house.move_in("alice", [*shared, *(block for blocks in own for block in blocks)])
    bob = await house.move_in("bob")
    done = 0

    async def pull(blocks: list[Block]) -> None:
        nonlocal done
        assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))
        done += 1

    async with trio.open_nursery() as nursery:
        for blocks in own:
            nursery.start_soon(pull, shared + blocks)
    assert done == 200
    # One question for each block, however many sessions want it.
    assert house.ends["bob"].peer_id != house.ends["alice"].peer_id


async def test_a_wantlist_of_a_million_costs_little_and_hides_nothing(house: House, autojump_clock: MockClock) -> None:
    block = blocks_of(1)[0]
    alice = await house.move_in("alice", [block])
    bob = await house.move_in("bob")
    end = await house.stranger("mallory")
    stream = await end.open_stream(peer_of("alice"), [BITSWAP_1_2])
    for number in range(4):
        wants = [Entry(Cid.of(RAW, b"%d %d" % (number, index)), send_dont_have=True) for index in range(50_000)]
        message = b"".join(encode_message(Message(wants)))
        for _ in range(5):
            await send_message(stream, message)
    ledger = alice.engine._giving._side(end.peer_id).ledger
    assert ledger.waiting <= 1024
    assert len(ledger.dont_haves) <= 4096
    assert await fetch_all(bob, [block], first=["alice"]) == {block.cid}


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 20, b"\x05hello", b"\x02\x0a\x7f", b"\x80\x80\x80\x04", b"\x01"],
    ids=["endless length", "no protobuf", "field past the end", "eight mebibytes", "cut off"],
)
async def test_garbage_costs_its_sender_the_stream_and_nobody_else_anything(
    house: House, autojump_clock: MockClock, garbage: bytes
) -> None:
    blocks = blocks_of(3)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob")
    end = await house.stranger("mallory")
    for to in ("alice", "bob"):
        stream = await end.open_stream(peer_of(to), [BITSWAP_1_2])
        await stream.send_all(garbage)
        await stream.send_eof()
    await wait_all_tasks_blocked()
    assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))


async def test_leaving_a_fetch_cancels_what_is_still_wanted(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(3)
    seen = Answer()
    bob = await house.move_in("bob")
    end = await house.stranger("alice")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_wants, end, seen)
        with trio.move_on_after(0.3):
            await fetch_all(bob, blocks, first=["alice"])
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert {entry.cid for entry in seen.entries if entry.cancel} == set(cids(blocks))


async def test_a_peer_that_takes_nothing_does_not_keep_others_from_being_served(
    house: House, autojump_clock: MockClock
) -> None:
    # Large blocks compete for upload slots; those whose peer stands still do not count.
    blocks = blocks_of(40, 60_000)
    await house.move_in("alice", blocks)
    for number in range(10):
        end = await house.stranger(f"stuck {number}")
        house.swarm.stall(end, house.ends["alice"])
        stream = await end.open_stream(peer_of("alice"), [BITSWAP_1_2])
        await send_message(stream, *encode_message(Message([Entry(block.cid) for block in blocks])))
    bob = await house.move_in("bob")
    assert await fetch_all(bob, blocks, first=["alice"]) == set(cids(blocks))


async def test_a_closed_exchange_tells_its_readers(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    block = blocks_of(1)[0]
    failures = []

    async def wait(bitswap: Bitswap) -> None:
        try:
            await fetch_all(bitswap, [block], deadline_s=1000)
        except BlockNotFound as error:
            failures.append(str(error))

    async with trio.open_nursery() as nursery, open_bitswap(swarm.endpoint("bob"), MemoryBlockstore()) as bob:
        nursery.start_soon(wait, bob)
        await wait_all_tasks_blocked()
    assert failures == ["the block exchange is closed"]


# ------------------------------------------------------------------ urgency


async def test_what_a_reader_waits_for_comes_first_and_in_order(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(120)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob", settings=BitswapSettings(outstanding_bytes=128 * 1024))
    house.swarm.delay(house.ends["alice"], house.ends["bob"], 0.05)
    urgent = cids(blocks)[100:108]
    with bob.session(None, first=[PeerInfo(peer_of("alice"))], block_bytes=32 * 1024) as wanted:
        wanted.want(cids(blocks))
        wanted.urge(urgent)
        order = [arrival.block.cid async for arrival in wanted]
    # Four were asked for before anybody was in a hurry.
    hurried = [cid for cid in urgent if order.index(cid) >= 4]
    assert order[4 : 4 + len(hurried)] == hurried


async def test_what_was_forgotten_is_not_delivered(house: House, autojump_clock: MockClock) -> None:
    blocks = blocks_of(10)
    await house.move_in("alice", blocks)
    bob = await house.move_in("bob")
    with bob.session(None, first=[PeerInfo(peer_of("alice"))]) as wanted:
        wanted.want(cids(blocks))
        wanted.forget(cids(blocks[:5]))
        assert {arrival.block.cid async for arrival in wanted} == set(cids(blocks[5:]))

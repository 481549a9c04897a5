"""Dagsync: what an answer holds, and a replica that takes it from the honest and from liars."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ipfsreg.crdt.dagsync import MAX_HAVES, MAX_WANTS, PROTOCOL, SILENCE_S, Descent, Row, decode_request, encode_request
from ipfsreg.crdt.delta import Delta, Element, Head, build_node, encode_broadcasts
from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.replica import Replica
from ipfsreg.errors import MalformedData, StreamReset
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.pubsub.interface import TopicMessage
from ipfsreg.testing.network import MemorySwarm, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal

# ---------------------------------------------------------------------- descent


def below(nodes: Sequence[int], links: dict[int, list[int]]) -> set[int]:
    found: set[int] = set()
    missing = list(nodes)
    while missing:
        number = missing.pop()
        if number not in found:
            found.add(number)
            missing += links[number]
    return found


@settings(max_examples=200, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 30))
def test_an_answer_is_what_is_below_the_wants_and_not_below_the_haves_and_parents_come_first(
    rng: Random, size: int
) -> None:
    links: dict[int, list[int]] = {}
    heights: dict[int, int] = {}
    for number in range(size):
        links[number] = rng.sample(range(number), min(number, rng.choice([0, 1, 1, 2, 3])))
        heights[number] = 1 + max((heights[child] for child in links[number]), default=0) + rng.choice([0, 0, 0, 5])

    def row(number: int) -> Row:
        return number, b"%d" % number, heights[number]

    want, have = (rng.sample(range(size), rng.randrange(min(size, 4) + 1)) for _ in range(2))
    descent = Descent(lambda number: [row(child) for child in links[number]], map(row, want), map(row, have))
    sent = []
    while not descent.is_done:
        multihash = descent.step()
        if multihash is not None:
            sent.append(int(multihash))
    assert set(sent) == below(want, links) - below(have, links)
    assert len(set(sent)) == len(sent)
    for place, number in enumerate(sent):
        parents = {parent for parent in links if number in links[parent]}
        assert number in want or parents & set(sent[:place]), "nobody led to it"


def test_a_request_is_read_back_and_cut_to_what_is_looked_at() -> None:
    assert decode_request(encode_request([b"a", b"b"], [b"c"])) == ([b"a", b"b"], [b"c"])
    want, have = decode_request(encode_request([b"x"] * 5000, [b"y"] * 5000))
    assert (len(want), len(have)) == (MAX_WANTS, MAX_HAVES)
    assert decode_request(b"") == ([], [])
    with pytest.raises(MalformedData):
        decode_request(b"\x0a\x05x")


# --------------------------------------------------------------------- replicas


@pytest.fixture
def swarm(tmp_path: Path) -> ReplicaSwarm:
    made = ReplicaSwarm(tmp_path, delay_s=0.05, signed=True)
    made.wires = MemorySwarm()
    return made


def chain(length: int) -> list[Block]:
    blocks: list[Block] = []
    for height in range(1, length + 1):
        links = [blocks[-1].cid.multihash] if blocks else []
        blocks.append(build_node(links, Delta((Element(f"/k/{height:04}", b"%d" % height),), (), height)).block)
    return blocks


async def test_a_newcomer_gets_a_long_chain_in_one_stream(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        for number in range(700):
            await alice.commit([Put(f"/t/{number:03}", b"1")])
        started_at = trio.current_time()
        async with swarm.open("bob") as bob:
            await wait_equal(alice, bob)
            assert bob.scan("/") == alice.scan("/")
            assert swarm.blocks["bob"].requests == [], "not even the head, which the checkpoint named"
            assert trio.current_time() - started_at < 5, "a round trip for each node is 35 s"


async def test_replicas_that_wrote_apart_exchange_only_what_the_other_lacks(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        for number in range(300):
            await alice.commit([Put(f"/both/{number:03}", b"1")])
        await wait_equal(alice, bob)
        swarm.cut("alice", "bob")
        for number in range(50):
            await alice.commit([Put(f"/alice/{number}", b"1")])
            await bob.commit([Put(f"/bob/{number}", b"1")])
        writes = swarm.databases["bob"].writes
        swarm.heal("alice", "bob")
        await wait_equal(alice, bob)
        assert len(bob.scan("/")) == 400
        assert swarm.databases["bob"].writes - writes < 60


class Mallory:
    """Somebody who answers every request with the same messages, or (None) with nothing at all, ever."""

    def __init__(self, swarm: ReplicaSwarm, messages: Sequence[bytes] | None) -> None:
        assert swarm.wires is not None
        self._endpoint = swarm.wires.endpoint("mallory")
        self._topics = swarm.topics
        self._messages = messages
        self.asked = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        async with self._endpoint.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
            nursery.start_soon(self._answer_all, streams, nursery)
            yield
            nursery.cancel_scope.cancel()

    async def _answer_all(self, streams: AsyncIterator[Stream], nursery: trio.Nursery) -> None:
        async for stream in streams:
            self.asked += 1
            nursery.start_soon(self._answer, stream)

    async def _answer(self, stream: Stream) -> None:
        try:
            for message in self._messages or ():
                await send_message(stream, message)
            if self._messages is not None:
                await stream.send_eof()
        except StreamReset:
            assert self._messages, "only who was sent too much stops listening"

    async def announce(self, listener: str, block: Block) -> None:
        """Connect to *listener* and say that *block* is a head."""
        await self._endpoint.connect(PeerInfo(peer_of(listener)))
        message = encode_broadcasts([Head(block.cid.multihash)])[0]
        self._topics[listener].push(TopicMessage(message, peer_of("mallory"), peer_of("mallory")))


async def wait_height(replica: Replica, height: int) -> None:
    with trio.fail_after(5 * SILENCE_S):
        while replica.status().height < height:  # noqa: ASYNC110 (no event tells)
            await trio.sleep(0.1)


async def test_what_one_peer_does_not_finish_another_does(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    blocks = chain(200)
    mallory = Mallory(swarm, [bytes(block.data) for block in blocks[100:-1][::-1]])
    async with mallory.listening(), swarm.open("carol") as carol:
        swarm.give(blocks)
        await mallory.announce("carol", blocks[-1])
        await wait_height(carol, 200)
        asked = mallory.asked
        swarm.extra.clear()
        swarm.withheld = {block.cid.multihash for block in blocks[:-1]}
        async with swarm.open("bob") as bob:
            await mallory.announce("bob", blocks[-1])
            await wait_height(bob, 200)
            assert len(bob.scan("/k/")) == 200, "no block below the head can be had but by dagsync"
        assert mallory.asked > asked


@pytest.mark.parametrize("lie", ["a node nobody leads to", "nothing", "no node", "silence", "a huge message"])
async def test_a_liar_gets_nothing_in_and_the_rest_is_fetched_as_blocks(
    swarm: ReplicaSwarm, autojump_clock: MockClock, lie: str
) -> None:
    blocks = chain(5)
    foreign = build_node([], Delta((Element("/evil", b"1"),), (), 1)).block
    answers: dict[str, list[bytes] | None] = {
        "a node nobody leads to": [bytes(foreign.data)],
        "nothing": [],
        "no node": [b"\xff"],
        "silence": None,
        "a huge message": [bytes(MAX_BLOCK_BYTES + 1)],
    }
    mallory = Mallory(swarm, answers[lie])
    async with mallory.listening(), swarm.open("bob") as bob:
        swarm.give(blocks)
        await mallory.announce("bob", blocks[-1])
        await wait_height(bob, 5)
        assert [key for key, _ in bob.scan("/")] == [f"/k/{height:04}" for height in range(1, 6)]
        assert bob.status().quarantined == 0
    assert mallory.asked == 1, "and is left alone for a while"


@pytest.mark.parametrize(
    "request_bytes", [b"", b"\x0a\x05x", encode_request([b"unknown"] * 9, [b"x"] * 300), bytes(70_000)]
)
async def test_a_strange_request_costs_its_stream_alone(
    swarm: ReplicaSwarm, autojump_clock: MockClock, request_bytes: bytes
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/a", b"1")])
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, request_bytes)
        try:
            assert await stream.receive_some() == b""
        except StreamReset:
            assert request_bytes[:1] in (b"\x0a", b"\0")
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, encode_request([alice.heads()[0].multihash], []))
        answer = await MessageReader(stream, MAX_BLOCK_BYTES).read()
        assert answer is not None
        assert Block.of(bytes(answer), DAG_PB).cid == alice.heads()[0]

"""Dagsync: what an answer holds, and a replica that takes it from the honest and from liars."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ipfsreg.crdt.dagsync import MAX_HAVES, MAX_WANTS, PROTOCOL, SILENCE_S, Descent, Row, decode_request, encode_request
from ipfsreg.crdt.delta import Delta, Element, build_node
from ipfsreg.crdt.interface import Put
from ipfsreg.errors import MalformedData, StreamReset
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.testing.mallory import Mallory
from ipfsreg.testing.network import MemorySwarm, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal, wait_height

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


async def test_what_one_peer_does_not_finish_another_does(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    blocks = chain(200)
    mallory = Mallory(swarm, PROTOCOL, [bytes(block.data) for block in blocks[100:-1][::-1]])
    async with mallory.answering(), swarm.open("carol") as carol:
        swarm.give(blocks)
        await mallory.announce("carol", blocks[-1])
        await wait_height(carol, 200, 5 * SILENCE_S)
        asked = mallory.asked
        swarm.extra.clear()
        swarm.withheld = {block.cid.multihash for block in blocks[:-1]}
        async with swarm.open("bob") as bob:
            await mallory.announce("bob", blocks[-1])
            await wait_height(bob, 200, 5 * SILENCE_S)
            assert len(bob.scan("/k/")) == 200, "no block below the head can be had but by dagsync"
        assert mallory.asked > asked


@pytest.mark.parametrize("lie", ["a node nobody leads to", "nothing", "no node", "silence", "a huge message"])
async def test_a_liar_gets_nothing_in_and_the_rest_is_fetched_as_blocks(
    swarm: ReplicaSwarm, autojump_clock: MockClock, lie: str
) -> None:
    blocks = chain(5)
    foreign = build_node([], Delta((Element("/evil", b"1"),), (), 1)).block
    answers: dict[str, list[bytes | None]] = {
        "a node nobody leads to": [bytes(foreign.data)],
        "nothing": [],
        "no node": [b"\xff"],
        "silence": [None],
        "a huge message": [bytes(MAX_BLOCK_BYTES + 1)],
    }
    mallory = Mallory(swarm, PROTOCOL, answers[lie])
    async with mallory.answering(), swarm.open("bob") as bob:
        swarm.give(blocks)
        await mallory.announce("bob", blocks[-1])
        await wait_height(bob, 5, 5 * SILENCE_S)
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

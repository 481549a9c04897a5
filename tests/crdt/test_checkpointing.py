"""Checkpoints between replicas: an empty one is right at once, and a liar's does not last."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.crdt import checkpointing
from ipfsreg.crdt.checkpoint import (
    Header,
    Seal,
    decode_piece,
    encode_elements,
    encode_end,
    encode_nodes,
    encode_request,
)
from ipfsreg.crdt.checkpointing import OVERLAP_S, PAUSE_S, PROTOCOL, REST_S, SILENCE_S, Places
from ipfsreg.crdt.claims import DROPPED, SETTLED
from ipfsreg.crdt.delta import Delta, Element, build_node
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.crdt.replica import CHECKPOINT_PATIENCE_S, Replica, ReplicaSettings
from ipfsreg.crdt.writers import EVERYBODY, Rule, Writers
from ipfsreg.errors import StreamReset
from ipfsreg.ipld.block import Block
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.testing.mallory import Mallory
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, key_of, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal, wait_height

NODES = 300
RULES = bytes.fromhex(EVERYBODY.fingerprint())


@pytest.fixture
def swarm(tmp_path: Path) -> ReplicaSwarm:
    made = ReplicaSwarm(tmp_path, delay_s=0.05, signed=True)
    made.wires = MemorySwarm()
    return made


async def fill(replica: Replica) -> None:
    for number in range(NODES):
        await replica.commit([Put(f"/t/{number % 100:03}", b"%d" % number), Put(f"/m/{number:03}", b"1")])
    for number in range(20):
        await replica.commit([Delete(f"/t/{number:03}")])


async def wait_ready(replica: Replica) -> None:
    with trio.fail_after(60):
        await replica.wait_synced()


async def test_a_newcomer_reads_all_names_before_any_node_is_here(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice:
        await fill(alice)
        async with swarm.open("bob") as bob:
            await wait_ready(bob)
            assert bob.scan("/") == alice.scan("/")
            assert bob.heads() == (), "the history has not come"
            with trio.fail_after(0.001):
                await bob.wait_merged(alice.heads())
            async with bob.changes() as changes:
                await wait_equal(alice, bob)
                with trio.move_on_after(10):
                    pytest.fail(f"the history changed {await anext(changes)}")
            status = bob.status()
            assert status.checkpoint is not None
            assert (status.checkpoint.signer, status.checkpoint.state) == (peer_of("alice"), SETTLED)
            assert status.checkpoint.differing == 0
            assert status.nodes_wanted == 0
        async with swarm.open("bob") as bob:
            assert bob.scan("/") == alice.scan("/")


async def test_writes_before_the_history_is_here_are_right_everywhere(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice:
        await fill(alice)
        async with swarm.open("bob") as bob:
            await wait_ready(bob)
            assert bob.heads() == ()
            await bob.commit([Put("/t/050", b"bob"), Delete("/m/000"), Delete("/t/060"), Put("/t/000", b"again")])
            assert bob.get("/t/050") == b"bob"
            await wait_equal(alice, bob)
            for replica in (alice, bob):
                assert replica.get("/t/050") == b"bob"
                assert replica.get("/m/000") is replica.get("/t/060") is None
                assert replica.get("/t/000") == b"again"
            await alice.commit([Delete("/t/050")])
            await wait_equal(alice, bob)
            assert bob.get("/t/050") is None, "nothing older comes back"
            assert alice.scan("/") == bob.scan("/")


async def test_a_node_with_writes_of_its_own_takes_a_checkpoint_too(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("bob") as bob:
        await bob.commit([Put("/own", b"1"), Put("/t/050", b"older")])
        async with swarm.open("alice", ReplicaSettings(checkpoint_peers=frozenset())) as alice:
            swarm.cut("alice", "bob")
            await fill(alice)
            swarm.heal("alice", "bob")
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await wait_equal(alice, bob)
        assert alice.scan("/") == bob.scan("/")
        assert bob.get("/own") == b"1"


@pytest.mark.parametrize(
    ("settings", "asked"),
    [
        (ReplicaSettings(), True),
        (ReplicaSettings(trusted_peers=frozenset({peer_of("alice")})), True),
        (ReplicaSettings(trusted_peers=frozenset({peer_of("carol")})), False),
        (ReplicaSettings(checkpoint_peers=frozenset()), False),
        (ReplicaSettings(checkpoint_peers=frozenset({peer_of("carol")})), False),
        (ReplicaSettings(checkpoint_peers=frozenset({peer_of("alice")})), True),
    ],
)
async def test_only_a_trusted_peer_is_asked(
    swarm: ReplicaSwarm, autojump_clock: MockClock, settings: ReplicaSettings, asked: bool
) -> None:
    async with swarm.open("alice") as alice:
        await fill(alice)
        async with swarm.open("bob", settings) as bob:
            await wait_ready(bob)
            assert (bob.status().checkpoint is not None) == asked


async def test_a_peer_with_other_rules_offers_none(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    rule = Rule("a/*", frozenset({peer_of("alice"), peer_of("bob")}))
    async with swarm.open("alice") as alice:
        await fill(alice)
        async with swarm.open("bob", ReplicaSettings(writers=Writers((rule,)))) as bob:
            await wait_equal(alice, bob)
            assert bob.status().checkpoint is None
            assert bob.scan("/") == alice.scan("/")


async def test_with_writers_who_may_not_write_everything_a_checkpoint_does_not_make_ready(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    rules = (Rule("a/*", frozenset({peer_of("alice")})), Rule("b/*", frozenset({peer_of("bob")})))
    settings = ReplicaSettings(writers=Writers(rules, repository_of=lambda key: key[1:].partition("/_")[0]))
    async with swarm.open("alice", settings) as alice:
        await fill(alice)
        swarm.withheld = {cid.multihash for cid in alice.heads()}
        async with swarm.open("bob", settings) as bob:
            await wait_ready(bob)
            assert bob.heads(), "it waited for the history"
            assert bob.scan("/") == alice.scan("/")


async def test_where_it_is_required_silence_does_not_make_ready(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("bob", ReplicaSettings(checkpoint_required=True)) as bob:
        with trio.move_on_after(3600) as hour:
            await bob.wait_synced()
        assert hour.cancelled_caught
        async with swarm.open("alice", ReplicaSettings(alone_s=0, silence_s=0, checkpoint_peers=frozenset())) as alice:
            await alice.commit([Put("/a", b"1")])
            await wait_ready(bob)
            assert bob.get("/a") == b"1"


# -------------------------------------------------------------------------- liars


def chain(length: int) -> list[Block]:
    blocks: list[Block] = []
    for height in range(1, length + 1):
        links = [blocks[-1].cid.multihash] if blocks else []
        blocks.append(build_node(links, Delta((Element(f"/k/{height:04}", b"%d" % height),), (), height)).block)
    return blocks


BLOCKS = chain(5)
FALSE = ("/false", 1, 0, b"lie", False)


def checkpoint(
    blocks: Sequence[Block], elements: list[tuple[str, int, int, bytes, bool]], signer: str = "mallory"
) -> list[bytes]:
    """The messages of a checkpoint with *elements* at the last of *blocks*, signed."""
    seal = Seal()
    header = Header(
        heads=(blocks[-1].cid.multihash,),
        height=len(blocks),
        nodes=len(blocks),
        taken_us=1,
        topic="names",
        rules=RULES,
    )
    messages = [
        header.encode(),
        encode_nodes(block.cid.multihash for block in blocks[::-1]),
        encode_elements(elements),
    ]
    for message in messages:
        seal.add(message)
    return [*messages, encode_end(peer_of(signer), key_of(signer).sign(seal.signed_bytes()))]


RIGHT = checkpoint(BLOCKS, [("/k/0005", 5, 0, b"5", False)])
SPOILT: dict[str, Sequence[bytes | None]] = {
    "cut off": RIGHT[:-1],
    "silent in the middle": [*RIGHT[:2], None],
    "silent from the first": [None],
    "signed by another": checkpoint(BLOCKS, [FALSE], "carol"),
    "changed after it was signed": [*RIGHT[:2], encode_elements([FALSE]), RIGHT[3]],
    "garbage": [RIGHT[0], b"\xff\xff"],
    "packed garbage": [*RIGHT[:2], b"\x12\x03abc", RIGHT[3]],
    "a bomb": [*RIGHT[:2], encode_elements([("/k", 1, 0, bytes(5_000_000), False)]), RIGHT[3]],
    "of another topic": [RIGHT[0].replace(b"names", b"other"), *RIGHT[1:]],
    "a huge message": [RIGHT[0], bytes(5_000_000)],
    "no header": [b"\x0a\x01x"],
}


@pytest.mark.parametrize("how", SPOILT)
async def test_a_spoilt_checkpoint_leaves_nothing_and_the_history_comes(
    swarm: ReplicaSwarm, autojump_clock: MockClock, how: str
) -> None:
    mallory = Mallory(swarm, PROTOCOL, SPOILT[how])
    async with mallory.answering(), swarm.open("bob") as bob:
        swarm.give(BLOCKS)
        await mallory.announce("bob", BLOCKS[-1], joined=True)
        await wait_height(bob, 5, 5 * SILENCE_S)
        assert [key for key, _ in bob.scan("/")] == [f"/k/{height:04}" for height in range(1, 6)]
        assert mallory.asked == 1
        status = bob.status().checkpoint
        assert status is None or status.state == DROPPED


async def test_a_lie_is_put_right_and_reported(
    swarm: ReplicaSwarm, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    lie = [FALSE, ("/k/0003", 3, 2, b"lie", False), ("/k/0005", 5, 0, b"5", False)]
    mallory = Mallory(swarm, PROTOCOL, checkpoint(BLOCKS, lie))
    async with mallory.answering(), swarm.open("bob") as bob:
        await mallory.announce("bob", BLOCKS[-1], joined=True)
        await wait_ready(bob)
        assert dict(bob.scan("/")) == {"/false": b"lie", "/k/0003": b"lie", "/k/0005": b"5"}
        swarm.give(BLOCKS)
        await wait_height(bob, 5, 5 * SILENCE_S)
        while bob.status().checkpoint.state != SETTLED:  # type: ignore[union-attr]  # noqa: ASYNC110
            await trio.sleep(0.1)
        assert dict(bob.scan("/")) == {f"/k/{height:04}": b"%d" % height for height in range(1, 6)}
        told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        wrong = f"the checkpoint of {peer_of('mallory')} was wrong in 6 places; the history has put them right"
        assert told == [wrong], "a name that never was, a value that is another, four elements that it did not tell"


async def test_a_checkpoint_at_a_head_that_nobody_has_is_dropped_in_time(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    mallory = Mallory(swarm, PROTOCOL, checkpoint(BLOCKS, [FALSE]))
    async with mallory.answering(), swarm.open("bob") as bob:
        await mallory.announce("bob", BLOCKS[-1], joined=True)
        await wait_ready(bob)
        await bob.commit([Put("/own", b"1")])
        assert dict(bob.scan("/")) == {"/false": b"lie", "/own": b"1"}
        await trio.sleep(CHECKPOINT_PATIENCE_S + 10)
        assert dict(bob.scan("/")) == {"/own": b"1"}


# ---------------------------------------------------------------------- answering


async def ask(endpoint: MemoryEndpoint, request: bytes) -> list[bytes]:
    stream = await endpoint.open_stream(peer_of("alice"), [PROTOCOL])
    await send_message(stream, request)
    reader = MessageReader(stream, 1 << 22)
    answer = []
    while (message := await reader.read()) is not None:
        answer.append(bytes(message))
    return answer


async def test_an_answer_is_one_state_whatever_is_written_meanwhile(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        await fill(alice)
        heads = tuple(cid.multihash for cid in alice.heads())
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, encode_request("names", RULES))
        reader = MessageReader(stream, 1 << 22)
        header = await reader.read()
        assert header is not None
        assert Header.decode(header).heads == heads
        await alice.commit([Put("/later", b"1")])
        rest = []
        while (message := await reader.read()) is not None:
            rest.append(bytes(message))
        assert not any(b"/later" in piece for piece in rest)
        assert decode_piece(rest[-1]).end is not None
        await trio.sleep(PAUSE_S)
        again = await ask(mallory, encode_request("names", RULES))
        assert Header.decode(again[0]).heads != heads


@pytest.mark.parametrize(
    "request_bytes", [encode_request("other", RULES), encode_request("names", b"other"), b"", bytes(9000), b"\x0a\x05x"]
)
async def test_a_strange_request_is_answered_with_nothing(
    swarm: ReplicaSwarm, autojump_clock: MockClock, request_bytes: bytes
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        await fill(alice)
        try:
            assert await ask(mallory, request_bytes) == []
        except StreamReset:
            assert request_bytes[:1] in (b"\x0a", b"\0")
        assert len(await ask(mallory, encode_request("names", RULES))) > 3


async def test_a_third_who_asks_meanwhile_is_told_that_there_is_none(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        for number in range(NODES):
            await alice.commit([Put(f"/t/{number:03}", Random(number).randbytes(4000))])
        for name in ("carol", "dave"):
            stream = await swarm.wires.endpoint(name).open_stream(peer_of("alice"), [PROTOCOL])
            await send_message(stream, encode_request("names", RULES))
        await trio.sleep(1)
        assert await ask(mallory, encode_request("names", RULES)) == []
        await trio.sleep(SILENCE_S + 1)
        assert await ask(mallory, encode_request("names", RULES)), "the slow ones were given up"


async def test_a_peer_is_answered_once_at_a_time_and_then_not_for_a_while(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    request = encode_request("names", RULES)
    async with swarm.open("alice") as alice:
        for number in range(NODES):
            await alice.commit([Put(f"/t/{number:03}", Random(number).randbytes(4000))])
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, request)
        await trio.sleep(1)
        assert await ask(mallory, request) == []
        reader = MessageReader(stream, 1 << 22)
        while await reader.read() is not None:
            pass
        assert await ask(mallory, request) == []
        assert await ask(swarm.wires.endpoint("carol"), request) != []
        await trio.sleep(PAUSE_S)
        assert await ask(mallory, request) != []


async def test_who_takes_an_answer_drop_by_drop_is_given_up(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        for number in range(NODES):
            await alice.commit([Put(f"/t/{number:03}", Random(number).randbytes(10_000))])
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, encode_request("names", RULES))
        began = trio.current_time()

        async def take_slowly() -> None:
            # Half of the pace, 64 KiB each time, but no piece takes as long as a silence may.
            while await stream.receive_some(64 * 1024):  # noqa: ASYNC110 (it is the pace)
                await trio.sleep(2)

        with pytest.raises(StreamReset):
            await take_slowly()
        assert trio.current_time() - began < 6 * SILENCE_S


async def test_an_answer_ends_when_the_log_has_grown_too_large_behind_it(
    swarm: ReplicaSwarm, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert swarm.wires is not None
    mallory = swarm.wires.endpoint("mallory")
    async with swarm.open("alice") as alice:
        for number in range(NODES):
            await alice.commit([Put(f"/t/{number:03}", Random(number).randbytes(10_000))])
        stream = await mallory.open_stream(peer_of("alice"), [PROTOCOL])
        await send_message(stream, encode_request("names", RULES))
        assert await stream.receive_some()
        monkeypatch.setattr(checkpointing, "MAX_LOG_BYTES", swarm.databases["alice"].log_bytes)
        for number in range(20):
            await alice.commit([Put(f"/more/{number}", bytes(100_000))])
        with pytest.raises(StreamReset):
            await MessageReader(stream, 1 << 30).read_body(1 << 22)


def test_those_who_take_turns_come_to_an_end() -> None:
    places, now, begun, peers = Places(), 0.0, 0, [peer_of(f"peer{number}") for number in range(40)]
    assert places.take(peers[0], now=now)
    for before, peer in pairwise(peers):
        now += 2
        if not places.take(peer, now=now):
            break
        places.free(before, now=now)
        begun += 1
    assert begun == OVERLAP_S / 2 - 1
    places.free(before, now=now)
    assert not places.take(peer, now=now + REST_S - 1)
    assert places.take(peer, now=now + REST_S)

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.crdt.delta import Delta, Element, Head, build_node, decode_broadcast, encode_broadcasts
from ipfsreg.crdt.interface import Delete, KeyChanged, Names, Put
from ipfsreg.crdt.replica import Replica, ReplicaSettings, trusting
from ipfsreg.crdt.walker import PATIENCE_S
from ipfsreg.errors import MalformedData, StoreError, StoreFull
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.pubsub.interface import MessagesDropped, TopicMessage
from ipfsreg.testing.inline_database import Crash
from ipfsreg.testing.names_checks import check_names
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal


@pytest.fixture
def swarm(tmp_path: Path) -> ReplicaSwarm:
    return ReplicaSwarm(tmp_path)


def chain(length: int, first: bytes | None = None, start: int = 1) -> list[Block]:
    """A chain of nodes, each setting a key of its own and /last."""
    blocks: list[Block] = []
    below = [first] if first else []
    for height in range(start, start + length):
        elements = (Element(f"/k/{height:04}", b"%d" % height), Element("/last", b"%d" % height))
        blocks.append(build_node(below, Delta(elements, (), height)).block)
        below = [blocks[-1].cid.multihash]
    return blocks


def announcement(*blocks: Block) -> bytes:
    return encode_broadcasts([Head(block.cid.multihash) for block in blocks])[0]


def say(swarm: ReplicaSwarm, listener: str, *blocks: Block, author: str = "go") -> None:
    swarm.topics[listener].push(TopicMessage(announcement(*blocks), peer_of(author), peer_of("carrier")))


# -------------------------------------------------------------------- promises


async def test_a_replica_keeps_the_promises_of_names(tmp_path: Path, autojump_clock: MockClock) -> None:
    opened = 0

    @asynccontextmanager
    async def open_names() -> AsyncIterator[Names]:
        nonlocal opened
        opened += 1
        async with ReplicaSwarm(tmp_path).open(f"replica-{opened}", ReplicaSettings(marks=("/_l/",))) as replica:
            yield replica

    await check_names(open_names)


async def test_commits_that_meet_share_a_delta_and_one_push_stays_one_delta(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/warm", b"up")])
        before = swarm.databases["alice"].writes
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(alice.commit, [Put(f"/t/{number}", b"1"), Put(f"/m/{number}", b"1")])
        assert swarm.databases["alice"].writes - before <= 2
        assert alice.status().height <= 3
        assert len(alice.scan("/t/")) == len(alice.scan("/m/")) == 50


async def test_who_signed_a_write_is_told_until_it_is_removed(tmp_path: Path, autojump_clock: MockClock) -> None:
    swarm = ReplicaSwarm(tmp_path, signed=True)
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await alice.commit([Put("/a", b"1"), Put("/b", b"1")])
        await wait_equal(alice, bob)
        assert bob.authors("/a") == alice.authors("/a") == (peer_of("alice"),)
        await bob.commit([Put("/a", b"1")])
        await bob.commit([Put("/a", b"1"), Delete("/b")])
        await wait_equal(alice, bob)
        assert alice.authors("/a") == (peer_of("bob"), peer_of("alice")), "the latest first, each once"
        assert alice.authors("/b") == alice.authors("/never") == ()


async def test_a_write_that_nobody_signed_has_no_author(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/a", b"1")])
        assert alice.authors("/a") == ()


@pytest.mark.parametrize("after_checkpoints", range(6))
async def test_a_cancelled_commit_is_all_or_nothing(
    swarm: ReplicaSwarm, autojump_clock: MockClock, after_checkpoints: int
) -> None:
    async with swarm.open("alice") as alice:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(alice.commit, [Put("/a", b"1"), Put("/b", b"1")])
            for _ in range(after_checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        await alice.commit([Put("/c", b"1")])
        assert (alice.get("/a"), alice.get("/b")) in ((None, None), (b"1", b"1"))


async def test_a_full_disk_fails_the_commit_and_nothing_else(
    swarm: ReplicaSwarm, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = chain(3)
    async with swarm.open("alice") as alice:
        swarm.databases["alice"].fail_with = StoreFull("no room left")
        with pytest.raises(StoreFull):
            await alice.commit([Put("/a", b"1")])
        swarm.give(blocks)
        say(swarm, "alice", blocks[-1])
        await trio.sleep(3)
        assert alice.scan("/") == []
        swarm.databases["alice"].fail_with = None
        writes = swarm.databases["alice"].writes
        await trio.sleep(2)
        assert alice.status().tips_wanted == 1, "the announcement is not forgotten"
        assert swarm.databases["alice"].writes > writes, "what may have been left to close is looked at again"
        await trio.sleep(60)
        assert alice.get("/last") == b"3", "what came and could not be written was fetched again"
        assert alice.status().tips_wanted == 0
    assert "no room left" in caplog.text


async def test_commits_under_way_are_finished_when_the_replica_closes(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        async with swarm.open("alice") as alice:
            nursery.start_soon(alice.commit, [Put("/a", b"1")])
            await trio.lowlevel.checkpoint()
        with pytest.raises(StoreError):
            await alice.commit([Put("/b", b"1")])
    async with swarm.open("alice") as alice:
        assert alice.scan("/") == [("/a", b"1")]


# ------------------------------------------------------------------- two peers


async def test_what_alice_writes_appears_on_bob(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        async with bob.changes() as changes:
            heads = await alice.commit([Put("/a", b"1")])
            with trio.fail_after(1):
                assert await anext(changes) == KeyChanged("/a", None, b"1")
        assert bob.get("/a") == b"1"
        await wait_equal(alice, bob)
        assert bob.heads() == heads
        assert swarm.blocks["bob"].first[0][0] == peer_of("alice"), "the announcer is asked first"
        await bob.commit([Delete("/a")])
        await wait_equal(alice, bob)
        assert alice.get("/a") is None


async def test_both_write_while_cut_off_and_merge_afterwards(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await alice.commit([Put("/shared", b"0"), Put("/gone", b"0")])
        await wait_equal(alice, bob)
        swarm.cut("alice", "bob")
        await alice.commit([Put("/from/alice", b"1"), Put("/shared", b"a"), Delete("/gone")])
        await bob.commit([Put("/from/bob", b"1"), Put("/shared", b"b")])
        await trio.sleep(200)
        assert alice.get("/from/bob") is None
        swarm.heal("alice", "bob")
        await wait_equal(alice, bob, deadline_s=3)
        expected = [("/from/alice", b"1"), ("/from/bob", b"1"), ("/shared", b"b")]
        assert alice.scan("/") == bob.scan("/") == expected
        assert len(alice.heads()) == 2


async def test_a_late_joiner_learns_all_names(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        for number in range(150):
            await alice.commit([Put(f"/t/{number}", b"1")])
        async with swarm.open("carol") as carol:
            with trio.fail_after(10):
                await carol.wait_synced()
            assert carol.scan("/") == alice.scan("/")
            assert carol.heads() == alice.heads()
            status = carol.status()
            assert (status.height, status.names, status.tips_wanted, status.nodes_wanted) == (150, 150, 0, 0)
            assert status.last_merge_at is not None


async def test_an_announcement_that_was_lost_is_made_up_for(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await trio.sleep(10)
        swarm.mesh.loses = lambda author, reader, data: True
        await alice.commit([Put("/a", b"1")])
        await trio.sleep(1)
        swarm.mesh.loses = lambda author, reader, data: False
        await wait_equal(alice, bob, deadline_s=2 * 78)
        assert bob.get("/a") == b"1"


async def test_who_missed_messages_is_told_the_newest_heads(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await alice.commit([Put("/a", b"1")])
        await wait_equal(alice, bob)
        await trio.sleep(10)
        swarm.mesh.loses = lambda author, reader, data: reader == peer_of("bob")
        await alice.commit([Put("/a", b"2")])
        await trio.sleep(1)
        swarm.mesh.loses = lambda author, reader, data: False
        swarm.topics["bob"].push(MessagesDropped(1))
        await wait_equal(alice, bob, deadline_s=4)


async def test_a_flood_of_announcements_loses_nothing(tmp_path: Path, autojump_clock: MockClock) -> None:
    swarm = ReplicaSwarm(tmp_path)
    async with swarm.open("alice") as alice:
        heads = [build_node([], Delta((Element(f"/k/{number:04}", b"1"),), (), 1)).block for number in range(2000)]
        swarm.give(heads)
        for number, block in enumerate(heads):
            say(swarm, "alice", block)
            if number % 500 == 0:
                await trio.sleep(0.001)
        await trio.sleep(120)
        assert len(alice.scan("/k/")) == 2000
        assert alice.status().tips_wanted == 0


@pytest.mark.parametrize("seed", range(8))
async def test_random_writes_and_partitions_end_in_equal_state(
    swarm: ReplicaSwarm, autojump_clock: MockClock, seed: int
) -> None:
    rng = Random(seed)
    names = ["alice", "bob", "carol"]
    pairs = [("alice", "bob"), ("alice", "carol"), ("bob", "carol")]
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(swarm.open(name)) for name in names]
        for _ in range(40):
            action = rng.random()
            if action < 0.15:
                swarm.cut(*rng.choice(pairs))
            elif action < 0.3:
                swarm.heal(*rng.choice(pairs))
            elif action < 0.4:
                await trio.sleep(rng.uniform(0, 30))
            else:
                keys = rng.sample(["/a", "/b", "/c", "/d"], rng.randint(1, 3))
                await rng.choice(replicas).commit(
                    [Put(key, rng.randbytes(2)) if rng.random() < 0.7 else Delete(key) for key in keys]
                )
        for pair in pairs:
            swarm.heal(*pair)
        await wait_equal(*replicas)
        assert replicas[0].scan("/") == replicas[1].scan("/") == replicas[2].scan("/")
        assert [replica.status().quarantined for replica in replicas] == [0, 0, 0]


# ----------------------------------------------------------- interrupted walks


@pytest.mark.parametrize("missing", range(8))
async def test_a_walk_that_stops_at_any_node_goes_on_when_it_comes(
    swarm: ReplicaSwarm, autojump_clock: MockClock, missing: int
) -> None:
    blocks = chain(8)
    swarm.give(block for number, block in enumerate(blocks) if number != missing)
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/own", b"1")])
        own = alice.heads()
        say(swarm, "alice", blocks[-1])
        await trio.sleep(100)
        assert alice.heads() == own
        assert alice.status().tips_wanted == 1
        assert alice.get("/last") == (b"8" if missing < 7 else None), "what is newer is readable"
        swarm.give([blocks[missing]])
        await trio.sleep(300)
        assert set(alice.heads()) == {*own, blocks[-1].cid}
        assert alice.status().tips_wanted == 0
        assert len(alice.scan("/k/")) == 8


@pytest.mark.parametrize("missing", range(8))
async def test_a_walk_goes_on_after_a_restart_without_being_told(
    swarm: ReplicaSwarm, autojump_clock: MockClock, missing: int
) -> None:
    blocks = chain(8)
    swarm.give(block for number, block in enumerate(blocks) if number != missing)
    async with swarm.open("alice"):
        say(swarm, "alice", blocks[-1])
        await trio.sleep(5)
    swarm.give([blocks[missing]])
    async with swarm.open("alice") as alice:
        await trio.sleep(5)
        assert alice.heads() == (blocks[-1].cid,)
        fetched = {cid for request in swarm.blocks["alice"].requests for cid in request}
        assert len(fetched) == missing + 1, "what was here before is not fetched again"


@pytest.mark.parametrize("crash_at", range(4, 12))
async def test_a_crash_before_any_transaction_is_healed_by_a_restart(
    swarm: ReplicaSwarm, autojump_clock: MockClock, crash_at: int
) -> None:
    blocks = chain(6)
    swarm.give(blocks)
    acknowledged: list[str] = []

    async def live() -> None:
        async with swarm.open("alice") as alice:
            swarm.databases["alice"].crash_at = crash_at
            say(swarm, "alice", blocks[-1])
            for number in range(6):
                await alice.commit([Put(f"/own/{number}", b"1"), Put(f"/too/{number}", b"1")])
                acknowledged.append(f"/own/{number}")
                await trio.sleep(0.025)
            await trio.sleep(5)

    with pytest.RaisesGroup(Crash, flatten_subgroups=True):
        await live()
    async with swarm.open("alice") as alice:
        say(swarm, "alice", blocks[-1])
        await trio.sleep(5)
        own = [key for key, _ in alice.scan("/own/")]
        assert set(acknowledged) <= set(own)
        assert [key.replace("/too", "/own") for key, _ in alice.scan("/too/")] == own
        assert alice.get("/last") == b"6"
        assert alice.status().tips_wanted == 0
        assert blocks[-1].cid in alice.heads() or alice.status().height > 6
        store = swarm.stores[peer_of("alice")]
        assert all(store.has(cid) for cid in alice.heads())


async def test_a_chain_is_walked_with_one_round_trip_a_node_and_no_wait_for_the_disk(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    swarm.delay_s = 0.05
    blocks = chain(100)
    swarm.give(blocks)
    async with swarm.open("alice") as alice:
        say(swarm, "alice", blocks[-1])
        await trio.sleep(100 * 0.05 + 0.2)
        assert alice.heads() == (blocks[-1].cid,)


async def test_skip_links_let_a_newcomer_descend_on_several_ways(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    swarm.delay_s = 0.05
    async with swarm.open("alice") as alice:
        for number in range(1, 513):
            await alice.commit([Put("/a", b"%d" % number)])
        start = trio.current_time()
        async with swarm.open("bob") as bob:
            await wait_equal(alice, bob)
            assert trio.current_time() - start < 512 * 0.05 / 2


async def test_many_branches_are_walked_at_once(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    swarm.delay_s = 1
    branches = [chain(10, start=1 + number) for number in range(20)]
    for branch in branches:
        swarm.give(branch)
    async with swarm.open("alice") as alice:
        say(swarm, "alice", *(branch[-1] for branch in branches))
        await trio.sleep(15)
        assert len(alice.heads()) == 20


@pytest.mark.parametrize("occasion", ["a peer joins", "the tip is announced again"])
async def test_what_nobody_had_is_asked_for_again_when_there_is_reason_to(
    swarm: ReplicaSwarm, autojump_clock: MockClock, occasion: str
) -> None:
    blocks = chain(3)
    swarm.give(blocks[1:])
    async with swarm.open("alice"):
        say(swarm, "alice", blocks[-1])
        await trio.sleep(2000)
        requests = swarm.blocks["alice"].requests
        if occasion == "a peer joins":
            before = await pause_after_failure(requests)
            async with swarm.mesh.join("names", peer_of("carol")):
                await trio.sleep(2)
        else:
            before = await pause_after_failure(requests)
            say(swarm, "alice", blocks[-1], author="carol")
            await trio.sleep(2)
        assert len(requests) == before + 1
        assert peer_of("carol") in swarm.blocks["alice"].first[-1]


async def pause_after_failure(requests: list[tuple[Cid, ...]]) -> int:
    """Return, with the number of requests, when the last one has failed and the next is minutes away."""
    before = len(requests)
    while len(requests) == before:  # noqa: ASYNC110 (tells nobody)
        await trio.sleep(1)
    await trio.sleep(PATIENCE_S + 10)
    return before + 1


async def test_the_store_tells_of_nodes_that_are_durable(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.stores[peer_of("alice")].arrivals() as arrivals:
        (head,) = await alice.commit([Put("/a", b"1")])
        assert await anext(arrivals) == {head.multihash}


# --------------------------------------------------------------------- strangers


async def test_only_trusted_authors_are_heard(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    trusted, other = chain(1), chain(1, start=2)
    swarm.give([*trusted, *other])
    settings = ReplicaSettings(trusted_peers=trusting([str(peer_of("bob"))]))
    async with swarm.open("alice", settings) as alice:
        say(swarm, "alice", *other, author="mallory")
        say(swarm, "alice", *trusted, author="bob")
        await trio.sleep(100)
        assert alice.heads() == (trusted[0].cid,)
        assert alice.status().tips_wanted == 0


def test_a_star_trusts_everybody_and_nonsense_nobody() -> None:
    assert trusting(["*"]) is None
    assert trusting([]) == frozenset()
    with pytest.raises(MalformedData):
        trusting(["bob"])


async def test_garbage_in_the_topic_costs_nothing(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    blocks = chain(1)
    swarm.give(blocks)
    async with swarm.open("alice") as alice:
        rng = Random(1)
        for size in range(200):
            swarm.topics["alice"].push(TopicMessage(rng.randbytes(size), peer_of("mallory"), peer_of("mallory")))
        say(swarm, "alice", *blocks)
        await trio.sleep(2)
        assert alice.heads() == (blocks[0].cid,)


async def test_bad_nodes_are_quarantined_with_a_warning(
    swarm: ReplicaSwarm, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    void = Block.of(b"\x0a\x02\xff\xff", DAG_PB)
    bad = build_node([void.cid.multihash], Delta((Element("/../x", b"1"),), (), 1)).block
    tip = build_node([bad.cid.multihash], Delta((Element("/good", b"1"),), (), 2)).block
    swarm.give([void, bad, tip])
    async with swarm.open("alice") as alice:
        with caplog.at_level(logging.WARNING):
            say(swarm, "alice", tip)
            await trio.sleep(2)
        assert alice.scan("/") == [("/good", b"1")]
        assert {cid for cid, _ in alice.quarantined()} == {void.cid, bad.cid}
        assert alice.status().quarantined == 2
        assert str(bad.cid) in caplog.text
        assert alice.heads() == (tip.cid,)


# --------------------------------------------------------------------- announcing


def announced(swarm: ReplicaSwarm, name: str) -> list[list[bytes]]:
    return [[head.multihash for head in decode_broadcast(data, 4096)] for data in swarm.topics[name].published]


async def test_a_write_is_one_message_with_one_head(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        (head,) = await alice.commit([Put("/a", b"1")])
        await trio.sleep(1)
        assert announced(swarm, "alice") == [[head.multihash]]


async def test_who_is_behind_is_answered_by_one_of_many(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with AsyncExitStack() as stack:
        replicas = [await stack.enter_async_context(swarm.open(f"peer-{number}")) for number in range(6)]
        (old,) = await replicas[0].commit([Put("/a", b"1")])
        (new,) = await replicas[0].commit([Put("/a", b"2")])
        await wait_equal(*replicas)
        await trio.sleep(10)
        before = sum(len(topic.published) for topic in swarm.topics.values())
        async with swarm.mesh.join("names", peer_of("behind")) as behind:
            for topic in swarm.topics.values():
                topic.push(TopicMessage(encode_broadcasts([Head(old.multihash)])[0], behind.peer, behind.peer))
            await trio.sleep(1.5)
        said = sum(len(topic.published) for topic in swarm.topics.values()) - before
        assert said == 1
        assert [new.multihash] in [announced(swarm, name)[-1] for name in swarm.topics if announced(swarm, name)]


async def test_many_heads_are_joined_when_nobody_writes(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    heads = [build_node([], Delta((Element(f"/{number}", b"1"),), (), 1)).block for number in range(9)]
    swarm.give(heads)
    async with swarm.open("alice") as alice:
        say(swarm, "alice", *heads)
        await trio.sleep(5)
        assert len(alice.heads()) == 9
        await trio.sleep(60)
        assert len(alice.heads()) == 1
        assert len(alice.scan("/")) == 9


async def test_heads_are_not_joined_while_they_change(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        for number in range(40):
            head = build_node([], Delta((Element(f"/{number}", b"1"),), (), 1)).block
            swarm.give([head])
            say(swarm, "alice", head)
            await trio.sleep(5)
        assert len(alice.heads()) == 40


# -------------------------------------------------------------------- readiness


async def wait_ready(replica: Replica) -> float:
    start = trio.current_time()
    with trio.fail_after(120):
        await replica.wait_synced()
    return trio.current_time() - start


async def test_a_replica_that_is_alone_is_ready_soon(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        assert not alice.synced
        assert await wait_ready(alice) <= 1.0


async def test_empty_replicas_do_not_wait_for_each_other(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        assert await wait_ready(alice) <= 4.0
        assert await wait_ready(bob) <= 4.0


async def test_a_replica_with_names_is_ready_at_once(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/a", b"1")])
    async with swarm.open("alice") as alice, swarm.open("bob"):
        assert await wait_ready(alice) == 0.0


async def test_a_newcomer_is_ready_when_its_first_walk_is_done(swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    swarm.delay_s = 0.5
    async with swarm.open("alice") as alice:
        for number in range(40):
            await alice.commit([Put(f"/{number}", b"1")])
        async with swarm.open("bob") as bob:
            assert await wait_ready(bob) > 10
            assert bob.scan("/") == alice.scan("/")


async def test_blocks_that_are_withheld_do_not_hold_up_readiness_for_ever(
    swarm: ReplicaSwarm, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    blocks = chain(3)
    swarm.give(blocks[1:])
    async with swarm.open("alice") as alice:
        say(swarm, "alice", blocks[-1])
        await wait_ready(alice)
        assert "1 announced heads cannot be completed" in caplog.text
        assert alice.status().tips_wanted == 1

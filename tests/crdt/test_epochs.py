"""Epochs: a new DAG with the same names, the same on every replica, and nothing of the old one left."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.crdt import epochs
from ipfsreg.crdt.delta import node_cid, parse_node
from ipfsreg.crdt.epochs import Epoch, open_epoch, read_epoch, rotate, seed_of, topic_of
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.crdt.merge import state_of
from ipfsreg.crdt.replica import Replica, ReplicaSettings
from ipfsreg.crdt.writers import EVERYBODY, Rule, Writers
from ipfsreg.errors import NotReady, StoreError
from ipfsreg.testing.inline_database import open_inline_database
from ipfsreg.testing.network import MemorySwarm, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, TableBlockstore, wait_equal

ROWS = ("crdt_nodes", "crdt_elements", "crdt_tombstones", "crdt_links", "blocks")


@pytest.fixture
def swarm(tmp_path: Path) -> ReplicaSwarm:
    made = ReplicaSwarm(tmp_path, signed=True)
    made.wires = MemorySwarm()
    return made


def drop(db: sqlite3.Connection, multihashes: Sequence[bytes]) -> None:
    db.executemany("DELETE FROM blocks WHERE multihash = ?", [(one,) for one in multihashes])


async def turn(
    swarm: ReplicaSwarm, name: str, writers: Writers = EVERYBODY, *, discard: bytes | None = None
) -> dict[str, int]:
    """Rotate the closed replica *name*; return how many rows there were before."""
    async with open_inline_database(swarm.directory / f"{name}.db") as database:
        store = await TableBlockstore.prepared(database)
        epoch = await open_epoch(database, 1)
        before = {table: database.read(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ROWS}
        async with database.snapshot() as snapshot:
            nodes = await snapshot.run(seed_of)
        await database.write(
            partial(
                rotate,
                blocks=store,
                drop=drop,
                writers=writers,
                number=epoch.number + 1,
                nodes=[] if discard else nodes,
                wanted=discard,
            )
        )
        await database.compact()
        return before


async def begin(swarm: ReplicaSwarm, name: str, epoch: int) -> None:
    """Let the replica *name*, which is empty, begin in *epoch*."""
    async with open_inline_database(swarm.directory / f"{name}.db") as database:
        await open_epoch(database, epoch)


def rows(swarm: ReplicaSwarm, name: str) -> dict[str, int]:
    database = swarm.databases[name]
    return {table: database.read(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ROWS}


async def fill(replica: Replica) -> None:
    for number in range(300):
        await replica.commit([Put(f"/t/{number % 30:02}", b"%d" % number)])
    for number in range(10):
        await replica.commit([Delete(f"/t/{number:02}")])


async def test_replicas_with_the_same_names_begin_the_same_epoch_each_for_itself(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await fill(alice)
        await wait_equal(alice, bob)
        names = alice.scan("/")
        for replica in (alice, bob):
            await replica.seal()
        assert await alice.next_seed() == await bob.next_seed()
        head, count = await alice.next_seed()
        assert count == len(names) == 20
    before = [await turn(swarm, name) for name in ("alice", "bob")]
    assert before[0]["blocks"] == 310
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        assert alice.scan("/") == bob.scan("/") == names
        assert alice.heads() == bob.heads() == (head,)
        assert rows(swarm, "alice") == {
            "crdt_nodes": 1,
            "crdt_elements": 20,
            "crdt_tombstones": 0,
            "crdt_links": 0,
            "blocks": 1,
        }
        assert alice.epoch.number == 2
        await alice.commit([Put("/t/00", b"new"), Delete("/t/29")])
        await wait_equal(alice, bob)
        assert alice.get("/t/29") is None, "nothing older comes back"
        assert alice.scan("/") == bob.scan("/")
        assert len(alice.scan("/")) == 20
        await begin(swarm, "carol", 2)
        async with swarm.open("carol") as carol:
            await wait_equal(alice, carol)
            assert carol.scan("/") == alice.scan("/")


async def test_a_sealed_replica_writes_nothing_and_merges_what_comes(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/a", b"1")])
        await alice.seal()
        with pytest.raises(NotReady, match="epoch"):
            await alice.commit([Put("/a", b"2")])
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        with pytest.raises(NotReady):
            await alice.commit([Put("/a", b"2")])
        await bob.commit([Put("/b", b"1")])
        await wait_equal(alice, bob)
        assert alice.get("/b") == b"1"
        await alice.seal(sealed=False)
        await alice.commit([Put("/a", b"2")])
        assert alice.get("/a") == b"2"


async def test_who_was_away_drops_its_names_and_takes_those_of_the_others(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await fill(alice)
        await wait_equal(alice, bob)
        swarm.cut("alice", "bob")
        await bob.commit([Put("/only-here", b"1")])
        await alice.commit([Delete("/t/15")])
        head, _ = await alice.next_seed()
        assert head is not None
        assert await bob.next_seed() != (head, 19)
    swarm.heal("alice", "bob")
    await turn(swarm, "alice")
    await turn(swarm, "bob", discard=head.multihash)
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await wait_equal(alice, bob)
        assert bob.scan("/") == alice.scan("/")
        assert bob.get("/only-here") is bob.get("/t/15") is None


async def test_where_signatures_are_required_the_seed_counts_unsigned(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    rule = Rule("a/*", frozenset({peer_of("alice")}))

    def rules(*seeds: bytes) -> Writers:
        return Writers(
            (rule,),
            require_signed=True,
            unsigned_heads=frozenset(seeds),
            repository_of=lambda key: key[1:].partition("/_")[0],
        )

    async with swarm.open("alice", ReplicaSettings(writers=rules())) as alice:
        for number in range(5):
            await alice.commit([Put(f"/a/x/_t/{number}", b"1" * 200_000)])
        head, _ = await alice.next_seed()
        names = alice.scan("/")
        assert head is not None
    await turn(swarm, "alice", rules(head.multihash))
    settings = ReplicaSettings(writers=rules(head.multihash))
    async with swarm.open("alice", settings) as alice, swarm.open("bob", settings) as bob:
        assert alice.heads() == (head,)
        assert rows(swarm, "alice")["crdt_nodes"] == 4, "three leaves and what links to them"
        assert alice.scan("/") == names
        await wait_equal(alice, bob)
        assert bob.scan("/") == names
        assert alice.status().withheld == 0


async def test_nodes_of_an_epoch_before_change_nothing_when_somebody_says_them_again(
    swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    def rules(*seeds: bytes) -> ReplicaSettings:
        rule = Rule("*", frozenset({peer_of("alice")}))
        unsigned = frozenset(seeds)
        return ReplicaSettings(
            writers=Writers((rule,), require_signed=True, unsigned_heads=unsigned, repository_of=lambda key: "r")
        )

    async with swarm.open("alice", rules()) as alice, swarm.open("mallory", rules()) as mallory:
        for number in range(6):
            await alice.commit([Put("/tag", b"%d" % number), Put("/gone", b"1")])
        await wait_equal(alice, mallory)
        swarm.cut("alice", "mallory")
        await alice.commit([Put("/tag", b"newest"), Delete("/gone")])
        head, _ = await alice.next_seed()
        assert head is not None
    swarm.heal("alice", "mallory")
    settings = rules(head.multihash)
    await turn(swarm, "alice", settings.writers)
    async with swarm.open("alice", settings) as alice, swarm.open("mallory", rules()) as mallory:
        assert mallory.epoch.number == 1
        with trio.fail_after(300):
            await alice.wait_merged(mallory.heads())
        assert alice.scan("/") == [("/tag", b"newest")]
        assert alice.status().quarantined == 6
    await begin(swarm, "carol", 2)
    async with swarm.open("alice", settings) as alice, swarm.open("carol", settings) as carol:
        await alice.commit([Put("/tag", b"after")])
        await wait_equal(alice, carol)
        assert alice.scan("/") == carol.scan("/") == [("/tag", b"after")]


async def test_the_seed_says_what_the_names_are(tmp_path: Path, swarm: ReplicaSwarm, autojump_clock: MockClock) -> None:
    async with swarm.open("alice") as alice:
        assert await alice.next_seed() == (None, 0)
        for number in range(40):
            await alice.commit([Put(f"/{number:02}", bytes([number + 1]) * 50_000)])
        async with swarm.databases["alice"].snapshot() as snapshot:
            nodes = await snapshot.run(seed_of)
        parsed = [parse_node(node.block) for node in nodes]
        assert all(node.fault is None and node.author is None for node in parsed)
        assert state_of(parsed) == dict(alice.scan("/"))
        assert all(len(node.block.data) < 600_000 for node in nodes)
        assert set(nodes[-1].links) == {node.multihash for node in nodes[:-1]}
        assert node_cid(nodes[-1].multihash) == (await alice.next_seed())[0]


async def test_an_empty_replica_begins_in_the_epoch_it_is_told_and_a_full_one_does_not_jump(
    tmp_path: Path, swarm: ReplicaSwarm, autojump_clock: MockClock
) -> None:
    async with open_inline_database(tmp_path / "new.db") as database:
        assert (await open_epoch(database, 3)).number == 3
        assert read_epoch(database) == Epoch(3, sealed=False, seed=None)
        assert (await open_epoch(database, 1)).number == 3, "what is written down counts"
    async with swarm.open("alice") as alice:
        await alice.commit([Put("/a", b"1")])
        with pytest.raises(StoreError, match=r"epoch 1, and crdt\.epoch = 2"):
            await open_epoch(swarm.databases["alice"], 2)
    assert [topic_of("t", epoch) for epoch in (1, 2, 10)] == ["t", "t.e2", "t.e10"]


async def test_every_table_of_names_is_left_behind(tmp_path: Path) -> None:
    async with open_inline_database(tmp_path / "new.db") as database:
        await open_epoch(database, 1)
        there = {name for (name,) in database.read("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert {name for name in there if name.startswith("crdt_")} - set(epochs.TABLES) == {
        "crdt_counts",
        "crdt_rules",
        "crdt_epoch",
    }

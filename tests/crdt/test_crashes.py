"""The replica killed before each of its durable steps, in processes of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.crdt.checkpoint import Header, Seal, encode_elements, encode_end, encode_nodes
from ipfsreg.crdt.checkpointing import PROTOCOL
from ipfsreg.crdt.claims import SETTLED
from ipfsreg.crdt.delta import Delta, Element, Head, build_node, encode_broadcasts, parse_node
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.crdt.merge import heads_of, state_of
from ipfsreg.crdt.replica import Replica, open_replica
from ipfsreg.crdt.writers import EVERYBODY
from ipfsreg.database import open_database
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.p2p.framing import send_message
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.pubsub.interface import TopicMessage
from ipfsreg.testing.crash_points import every_crash
from ipfsreg.testing.network import MemorySwarm, key_of, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, SwarmBlocks
from ipfsreg.testing.topic import MemoryMesh, MemoryTopic

FIRST = build_node([], Delta((Element("/theirs", b"1"),), (), 1))
SECOND = build_node([FIRST.multihash], Delta((Element("/theirs", b"2"),), (), 2))
TIP = build_node([SECOND.multihash], Delta((Element("/theirs", b"3"), Element("/more", b"3")), (), 3))


@asynccontextmanager
async def open_all(directory: Path) -> AsyncIterator[tuple[Replica, DiskBlockstore, MemoryTopic]]:
    swarm = ReplicaSwarm(directory, delay_s=0.001)
    swarm.give(node.block for node in (FIRST, SECOND, TIP))
    async with (
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database) as (store, _),
        MemoryMesh().join("names", peer_of("alice")) as topic,
        open_replica(database, store, SwarmBlocks(swarm, peer_of("alice")), topic) as replica,
    ):
        yield replica, store, topic


async def receive_tip(replica: Replica, topic: MemoryTopic) -> None:
    async with replica.changes(["/more"]) as changes:
        topic.push(TopicMessage(encode_broadcasts([Head(TIP.multihash)])[0], peer_of("go"), peer_of("go")))
        if replica.get("/more") is None:
            await anext(changes)
    while replica.status().tips_wanted:  # noqa: ASYNC110 (no event tells that nothing is missing any more)
        await trio.sleep(0.001)


async def write_and_receive(directory: Path, acknowledge: Callable[[str], None]) -> None:
    async with open_all(directory) as (replica, _, topic):
        await replica.commit([Put("/a", b"1"), Put("/b", b"1")])
        acknowledge("first")
        await receive_tip(replica, topic)
        acknowledge("theirs")
        await replica.commit([Put("/c", b"1"), Delete("/a"), Put("/theirs", b"4")])
        acknowledge("last")


async def check(directory: Path, acknowledged: Sequence[str]) -> None:
    async with open_all(directory) as (replica, store, topic):
        names = dict(replica.scan("/"))
        if "first" in acknowledged:
            assert names["/b"] == b"1"
        assert ("/a" in names) == ("/b" in names and "/c" not in names), "all of a commit or nothing"
        if "theirs" in acknowledged:
            assert "/more" in names
        if "last" in acknowledged:
            assert (names["/c"], names["/theirs"]) == (b"1", b"4")
        nodes = {}
        waiting = [cid.multihash for cid in replica.heads()]
        while waiting:
            multihash = waiting.pop()
            nodes[multihash] = parse_node(await store.get(Cid(1, DAG_PB, multihash)))
            waiting += [link for link in nodes[multihash].links if link not in nodes]
        assert heads_of(list(nodes.values())) == {cid.multihash for cid in replica.heads()}
        if not replica.status().tips_wanted:
            assert state_of(nodes.values()) == names, "the tables say what the blocks say"
        await receive_tip(replica, topic)
        await replica.commit([Put("/again", b"1")])
        assert len(replica.heads()) == 1


def test_killed_before_any_durable_step_it_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    assert every_crash(write_and_receive, check, tmp_path) > 6


# ---------------------------------------------------------------- with a checkpoint


def checkpoint() -> list[bytes]:
    """What bob has of the three nodes, in his words."""
    seal = Seal()
    header = Header(
        heads=(TIP.multihash,),
        height=3,
        nodes=3,
        taken_us=1,
        topic="names",
        rules=bytes.fromhex(EVERYBODY.fingerprint()),
    )
    elements = [
        ("/more", 3, 0, b"3", False),
        ("/theirs", 1, 2, b"1", False),
        ("/theirs", 2, 1, b"2", False),
        ("/theirs", 3, 0, b"3", False),
    ]
    nodes = [TIP.multihash, SECOND.multihash, FIRST.multihash]
    messages = [header.encode(), encode_nodes(nodes), *(encode_elements([one]) for one in elements)]
    for message in messages:
        seal.add(message)
    return [*messages, encode_end(peer_of("bob"), key_of("bob").sign(seal.signed_bytes()))]


async def offer(streams: AsyncIterator[Stream]) -> None:
    async for stream in streams:
        for message in checkpoint():
            await send_message(stream, message)
        await stream.send_eof()


@asynccontextmanager
async def open_joining(directory: Path) -> AsyncIterator[tuple[Replica, ReplicaSwarm]]:
    swarm, wires, mesh = ReplicaSwarm(directory, delay_s=0.001), MemorySwarm(), MemoryMesh()
    alice, bob = wires.endpoint("alice"), wires.endpoint("bob")
    await alice.connect(PeerInfo(bob.peer_id))
    async with (
        bob.accept([PROTOCOL]) as streams,
        trio.open_nursery() as nursery,
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database) as (store, _),
        mesh.join("names", bob.peer_id),
        mesh.join("names", alice.peer_id) as topic,
    ):
        nursery.start_soon(offer, streams)
        async with open_replica(
            database, store, SwarmBlocks(swarm, alice.peer_id), topic, signer=alice, network=alice
        ) as replica:
            yield replica, swarm
        nursery.cancel_scope.cancel()


async def wait_ended(replica: Replica) -> None:
    while (checkpoint := replica.status().checkpoint) is None or checkpoint.state < SETTLED:  # noqa: ASYNC110 (no event)
        await trio.sleep(0.001)


async def join_and_write(directory: Path, acknowledge: Callable[[str], None]) -> None:
    async with open_joining(directory) as (replica, swarm):
        await replica.wait_synced()
        assert replica.get("/theirs") == b"3"
        acknowledge("ready")
        await replica.commit([Put("/a", b"1"), Delete("/theirs")])
        acknowledge("written")
        swarm.give(node.block for node in (FIRST, SECOND, TIP))
        await wait_ended(replica)
        acknowledge("settled")


async def check_joined(directory: Path, acknowledged: Sequence[str]) -> None:
    async with open_joining(directory) as (replica, swarm):
        await replica.wait_synced()
        names = dict(replica.scan("/"))
        if "written" in acknowledged:
            assert names == {"/a": b"1", "/more": b"3"}
        elif "/a" not in names:
            assert names == {"/theirs": b"3", "/more": b"3"}, "by the old checkpoint, or by a new one"
        swarm.give(node.block for node in (FIRST, SECOND, TIP))
        await wait_ended(replica)
        status = replica.status().checkpoint
        assert status is not None
        assert status.differing == 0
        while replica.status().tips_wanted or replica.status().nodes_wanted:  # noqa: ASYNC110 (no event tells)
            await trio.sleep(0.001)
        assert dict(replica.scan("/")) == names


def test_killed_before_any_durable_step_of_joining_it_reads_right_all_the_same(tmp_path: Path) -> None:
    assert every_crash(join_and_write, check_joined, tmp_path) > 10

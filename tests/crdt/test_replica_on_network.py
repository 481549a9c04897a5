"""The replica with the real parts below it: gossip, bitswap, the block store, SQLite. Only the wires are in memory."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.crdt.claims import SETTLED
from ipfsreg.crdt.interface import Delete, Names, Put
from ipfsreg.crdt.replica import Replica, ReplicaSettings, open_replica
from ipfsreg.database import open_database
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.pubsub.service import open_pubsub
from ipfsreg.testing.names_checks import check_names
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, peer_of
from ipfsreg.testing.tcp_replica import open_replica_on_tcp


@dataclass
class Peer:
    endpoint: MemoryEndpoint
    replica: Replica


@asynccontextmanager
async def open_peer(swarm: MemorySwarm, directory: Path, name: str, *friends: str) -> AsyncIterator[Peer]:
    endpoint = swarm.endpoint(name)
    (directory / name).mkdir(exist_ok=True)
    async with (
        open_database(directory / name / "node.db") as database,
        open_blobstore(directory / name, database) as (store, _),
        open_bitswap(endpoint, store) as bitswap,
        open_pubsub(endpoint) as pubsub,
        pubsub.join("names") as topic,
        open_replica(
            database,
            store,
            bitswap,
            topic,
            ReplicaSettings(marks=("/_l/",)),
            signer=endpoint,
            network=endpoint,
        ) as replica,
    ):
        for friend in friends:
            await endpoint.connect(PeerInfo(peer_of(friend)))
        yield Peer(endpoint, replica)
        swarm.kill(endpoint)


async def wait_for(replica: Replica, key: str, value: bytes | None) -> None:
    with trio.fail_after(20):
        async with replica.changes([key]) as changes:
            while replica.get(key) != value:
                await anext(changes)


async def test_a_write_travels_by_gossip_and_bitswap(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with (
        open_peer(swarm, tmp_path, "alice") as alice,
        open_peer(swarm, tmp_path, "bob", "alice") as bob,
    ):
        await alice.replica.commit([Put("/a", b"1"), Put("/b", b"1")])
        await wait_for(bob.replica, "/b", b"1")
        heads = await bob.replica.commit([Delete("/a"), Put("/c", b"1")])
        await wait_for(alice.replica, "/c", b"1")
        assert alice.replica.scan("/") == bob.replica.scan("/") == [("/b", b"1"), ("/c", b"1")]
        assert alice.replica.heads() == heads
        assert {cid.codec for cid in heads} == {DAG_PB}


async def test_who_waits_for_the_heads_of_a_write_reads_it_on_another_replica(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with (
        open_peer(swarm, tmp_path, "alice") as alice,
        open_peer(swarm, tmp_path, "bob", "alice") as bob,
    ):
        with trio.fail_after(20):
            for number in range(20):
                writer, reader = (alice, bob) if number % 2 else (bob, alice)
                heads = await writer.replica.commit([Put("/tag", b"%d" % number), Delete("/gone"), Put("/x", b"1")])
                await reader.replica.wait_merged(heads)
                assert reader.replica.get("/tag") == b"%d" % number


async def test_a_late_joiner_and_one_who_comes_back_learn_what_they_missed(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_peer(swarm, tmp_path, "alice") as alice:
        for number in range(100):
            await alice.replica.commit([Put(f"/t/{number:03}", b"%d" % number)])
        async with open_peer(swarm, tmp_path, "bob", "alice") as bob:
            with trio.fail_after(20):
                await bob.replica.wait_synced()
            assert bob.replica.scan("/") == alice.replica.scan("/")
        await alice.replica.commit([Put("/t/000", b"new")])
        async with open_peer(swarm, tmp_path, "bob", "alice") as bob:
            assert len(bob.replica.scan("/t/")) == 100, "its names are there at once"
            await wait_for(bob.replica, "/t/000", b"new")


async def test_on_a_real_disk_the_replica_keeps_the_promises_of_names(tmp_path: Path) -> None:
    opened = 0

    @asynccontextmanager
    async def open_names() -> AsyncIterator[Names]:
        nonlocal opened
        opened += 1
        async with open_peer(MemorySwarm(), tmp_path, f"peer-{opened}") as peer:
            yield peer.replica

    await check_names(open_names)


async def test_an_empty_replica_takes_a_checkpoint_over_real_connections(tmp_path: Path) -> None:
    async with open_replica_on_tcp(tmp_path / "alice") as (alice, full):
        for number in range(300):
            await full.commit([Put(f"/t/{number % 250:03}", bytes(200) + b"%d" % number)])
        async with open_replica_on_tcp(tmp_path / "bob") as (bob, empty):
            await bob.connect(PeerInfo(alice.peer_id, tuple(alice.listen_addrs())))
            with trio.fail_after(20):
                await empty.wait_synced()
                assert empty.scan("/") == full.scan("/")
                while empty.heads() != full.heads():  # noqa: ASYNC110 (no event tells)
                    await trio.sleep(0.05)
                while (checkpoint := empty.status().checkpoint) is None or checkpoint.state != SETTLED:  # noqa: ASYNC110
                    await trio.sleep(0.05)
            assert (checkpoint.signer, checkpoint.differing) == (alice.peer_id, 0)
            assert empty.scan("/") == full.scan("/")

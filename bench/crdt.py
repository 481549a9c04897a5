"""How fast one replica of the names is, and what a push costs in it.

    python bench/crdt.py [--keys 1000000] [--writes 3000] [--directory DIR]
    python bench/crdt.py --join 10000,100000 [--rtt 0.05] [--by checkpoint,dagsync,blocks]
    python bench/crdt.py --epoch 10000
    python bench/crdt.py --snapshot 30

Prints durable tag writes per second (one at a time, and from many tasks at once), lookup and listing times with that
many names, the bytes of node and announcement of one push of a six-layer image, and what a thousand of
them leave in the database. All deltas are signed. Disk figures are those
of the directory's file system; a RAM disk flatters them.

With --join: how long an empty node takes until it reads that many names of another, and until it has all history, by
a checkpoint and dagsync, by dagsync, and by blocks alone, the wires between them in memory with that round trip. The
history is one chain of pushes of ten names, without the skip links our own writes have: what a Go replica leaves
behind, and the worst case. Both nodes share one process, and so one core. Beside it what go-ds-crdt's walk of the same
chain takes at the least: a node names only the one before it, so it is a round trip for each.

With --epoch: rows and bytes of so many pushes to a thousand tags, what older pushes had deleted except their history,
before the next epoch and after, and how long the node stands still for it.

With --snapshot: what the database's log takes while one snapshot is kept open for so many seconds and 16 tasks push as
fast as they are answered, and what is left of it after some more pushes without one.
"""

from __future__ import annotations

import argparse
import sqlite3
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from random import Random

import trio

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.interface import DatabaseBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.cli.epoch import rotate
from ipfsreg.config import Config, CrdtConfig, NodeConfig
from ipfsreg.crdt.delta import Delta, Element, Head, Node, build_node, encode_broadcasts, parse_node
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.crdt.replica import Replica, ReplicaSettings, open_replica
from ipfsreg.crdt.state import Work, apply
from ipfsreg.database import open_database
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.pubsub.service import open_pubsub
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, MoveRecord, TagRecord
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, peer_of
from ipfsreg.testing.pushing import IMAGE
from ipfsreg.testing.replicas import NamedSigner, ReplicaSwarm, SwarmBlocks
from ipfsreg.testing.topic import MemoryMesh

VALUE = bytes(range(120))
"""About what a tag record takes."""


@dataclass
class Peer:
    """One end of a join."""

    endpoint: MemoryEndpoint
    replica: Replica
    store: DatabaseBlockstore


@asynccontextmanager
async def open_alone(directory: Path) -> AsyncIterator[Replica]:
    """A replica on a real disk with nobody else."""
    async with (
        open_database(directory / "names.db") as database,
        open_blobstore(directory, database) as (store, _),
        MemoryMesh().join("names", peer_of("alice")) as topic,
    ):
        blocks = SwarmBlocks(ReplicaSwarm(directory), peer_of("alice"))
        async with open_replica(database, store, blocks, topic, signer=NamedSigner("alice")) as replica:
            yield replica


def push(number: int, layers: int = 6) -> list[Put]:
    """The changes of one push, as the registry makes them: tag, its history, manifest, links of config and layers."""
    repository, tag, peer = RepositoryName("team/application"), Tag(f"v{number}"), peer_of("alice")
    digest, when_us = Digest.of(b"%d" % number), 1_800_000_000_000_000 + number
    blobs = [(Digest.of(b"%d/%d" % (number, blob)), 30_000_000 if blob else 5_000) for blob in range(layers + 1)]
    manifest = ManifestRecord(IMAGE, 1_800, Cid.from_sha256(RAW, digest.raw))
    return [
        Put(catalog.tag_key(repository, tag), TagRecord(digest, when_us, peer).encode()),
        Put(catalog.history_key(repository, tag, when_us, peer), MoveRecord(digest, None, peer).encode()),
        Put(catalog.manifest_key(repository, digest), manifest.encode(digest)),
        *(
            Put(catalog.link_key(repository, blob), LinkRecord(size, Cid.of(DAG_PB, blob.raw)).encode(blob))
            for blob, size in blobs
        ),
    ]


def print_bytes() -> None:
    changes = push(1)
    delta = Delta(tuple(Element(change.key, change.value) for change in changes), (), 100_000)
    links = [Cid.of(RAW, b"head").multihash]
    plain, signed = build_node(links, delta), build_node(links, delta, NamedSigner("alice"))
    (message,) = encode_broadcasts([Head(signed.multihash)])
    keys = sum(len(change.key) for change in changes)
    values = sum(len(change.value) for change in changes)
    print(f"one push of a 6-layer image: one delta, {len(changes)} keys, {keys} bytes of keys, {values} of values")
    print(
        f"  node {len(plain.block.data)} bytes, signed {len(signed.block.data)} bytes, "
        f"announcement {len(message)} bytes"
    )


async def print_growth(replica: Replica, pushes: int = 2000) -> None:
    """What pushes leave behind, one after the other, so that each is a delta of its own."""
    before = _measure(replica)
    for number in range(pushes):
        await replica.commit(push(1_000_000 + number))
    after = _measure(replica)
    size = (after.pop("bytes") - before.pop("bytes")) / pushes
    rows = {table: (after[table] - before[table]) / pushes for table in after}
    print(f"growth by one push of a 6-layer image: {size:,.0f} bytes of database, {sum(rows.values()):.1f} rows:")
    print("  " + ", ".join(f"{table} {count:.1f}" for table, count in rows.items() if count >= 0.05))


def _measure(replica: Replica) -> dict[str, int]:
    read = replica._database.read
    tables = [name for (name,) in read("SELECT name FROM sqlite_master WHERE type = 'table'")]
    counts = {name: read(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}
    pages = read("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size").fetchone()[0]
    return {"bytes": pages, **counts}


async def _write_tags(replica: Replica, numbers: Iterator[int]) -> None:
    for number in numbers:
        await replica.commit([Put(f"/r/many/_t/{number}", VALUE)])


async def _write_pushes(replica: Replica, numbers: Iterator[int]) -> None:
    for number in numbers:
        await replica.commit(push(number))


async def print_writes(replica: Replica, writes: int) -> None:
    start = time.perf_counter()
    alone = min(writes, 300)
    for number in range(alone):
        await replica.commit([Put(f"/r/alone/_t/{number}", VALUE)])
    taken = time.perf_counter() - start
    print(f"durable tag writes, one after the other: {alone / taken:,.0f}/s ({taken / alone * 1e3:.2f} ms each)")

    for writers in (16, 64, 256):
        numbers = iter(range(writes))
        before = replica.status().height
        start = time.perf_counter()
        async with trio.open_nursery() as nursery:
            for _ in range(writers):
                nursery.start_soon(_write_tags, replica, numbers)
        taken = time.perf_counter() - start
        deltas = replica.status().height - before
        print(f"durable tag writes, {writers:3} at a time: {writes / taken:,.0f}/s in {deltas} deltas")

    start = time.perf_counter()
    pushes = max(writes // 10, 1)
    numbers = iter(range(pushes))
    async with trio.open_nursery() as nursery:
        for _ in range(32):
            nursery.start_soon(_write_pushes, replica, numbers)
    taken = time.perf_counter() - start
    print(f"durable image pushes (10 keys), 32 at a time: {pushes / taken:,.0f}/s")


class _NoBlocks:
    def put_in(self, db: sqlite3.Connection, blocks: Sequence[object]) -> None:
        """Filling up is about names."""


async def fill(replica: Replica, keys: int) -> None:
    """Bring the replica to *keys* names in few, large transactions."""
    head = replica.heads()
    links = [cid.multihash for cid in head]
    height = replica.status().height
    start = time.perf_counter()
    for first in range(0, keys, 2000):
        height += 1
        elements = tuple(
            Element(f"/r/repository-{number % 1000:04}/_t/tag-{number:07}", VALUE)
            for number in range(first, min(first + 2000, keys))
        )
        node = parse_node(build_node(links, Delta(elements, (), height)).block)
        links = [node.multihash]
        await replica._database.write(partial(apply, _NoBlocks(), Work(arrivals=[node])))
    print(f"merging {keys:,} names from deltas of 2,000: {keys / (time.perf_counter() - start):,.0f} names/s")


def print_reads(replica: Replica, keys: int) -> None:
    rng = Random(1)
    wanted = [f"/r/repository-{number % 1000:04}/_t/tag-{number:07}" for number in rng.choices(range(keys), k=5000)]
    times = []
    for key in wanted:
        start = time.perf_counter()
        value = replica.get(key)
        times.append(time.perf_counter() - start)
        assert value == VALUE
    times.sort()
    print(
        f"lookup among {keys:,} names: median {statistics.median(times) * 1e6:.0f} us,"
        f" p99 {times[len(times) * 99 // 100] * 1e6:.0f} us"
    )
    times = []
    for number in range(50):
        prefix = "/r/" if number % 2 else f"/r/repository-{number:04}/"
        after = f"/r/repository-{rng.randrange(900):04}/" if number % 2 else ""
        start = time.perf_counter()
        found = replica.scan(prefix, after=after, limit=1000)
        times.append((time.perf_counter() - start) / max(len(found), 1) * 1000)
    print(f"listing 1,000 of {keys:,} names: median {statistics.median(times) * 1e3:.1f} ms")


@asynccontextmanager
async def open_peer(wires: MemorySwarm, directory: Path, name: str, by: str) -> AsyncIterator[Peer]:
    """A replica on a real disk with gossip and block exchange, and dagsync and checkpoints if asked for."""
    settings = ReplicaSettings(checkpoint_peers=None if by == "checkpoint" else frozenset())
    endpoint = wires.endpoint(name)
    directory = directory / name
    directory.mkdir()
    async with (
        open_database(directory / "names.db") as database,
        open_blobstore(directory, database) as (store, _),
        open_bitswap(endpoint, store) as bitswap,
        open_pubsub(endpoint) as pubsub,
        pubsub.join("names") as topic,
        open_replica(
            database, store, bitswap, topic, settings, signer=endpoint, network=None if by == "blocks" else endpoint
        ) as replica,
    ):
        yield Peer(endpoint, replica, store)
        wires.kill(endpoint)


async def write_history(peer: Peer, names: int) -> None:
    """One chain of signed pushes of ten names each, below one head."""
    links: list[bytes] = []
    nodes: list[Node] = []
    for height in range(1, names // 10 + 1):
        elements = tuple(
            Element(f"/r/repository-{height % 1000:04}/_t/tag-{height:06}-{one}", VALUE) for one in range(10)
        )
        nodes.append(build_node(links, Delta(elements, (), height), peer.endpoint))
        links = [nodes[-1].multihash]
        if len(nodes) == 1000 or height == names // 10:
            await peer.replica._database.write(partial(apply, peer.store, Work(arrivals=nodes)))
            nodes = []
    await peer.replica.commit([Put("/r/last/_t/one", VALUE)])


async def print_join(names: int, rtt_s: float, by: str, *, patience_s: float = 600.0) -> None:
    with tempfile.TemporaryDirectory() as directory:
        wires = MemorySwarm()
        async with open_peer(wires, Path(directory), "alice", by) as alice:
            await write_history(alice, names)
            height = alice.replica.status().height
            async with open_peer(wires, Path(directory), "bob", by) as bob:
                wires.delay(alice.endpoint, bob.endpoint, rtt_s / 2)
                start = time.perf_counter()
                await bob.endpoint.connect(PeerInfo(alice.endpoint.peer_id))
                ready = readable = whole = None
                while whole is None and time.perf_counter() - start < patience_s:
                    await trio.sleep(0.1)
                    status = bob.replica.status()
                    if ready is None and status.synced:
                        ready = time.perf_counter() - start
                    if readable is None and status.names >= names:
                        readable = time.perf_counter() - start
                    if status.height == height:
                        whole = time.perf_counter() - start
                print(
                    f"join of {names:,} names in {height:,} nodes at {rtt_s * 1e3:.0f} ms by {by}:"
                    f" ready after {_seconds(ready)}, all readable after {_seconds(readable)},"
                    f" all history after {_seconds(whole)}"
                    + ("" if whole else f"; given up with {bob.replica.status().names:,} names")
                )


async def print_epoch(pushes: int, directory: Path, tags: int = 1000) -> None:
    """Pushes to *tags* tags again and again, each of which deletes what the one before it at its tag had."""
    config = Config(
        node=NodeConfig(datastore_path=str(directory)), crdt=CrdtConfig(pubsub_topic="names", trusted_peers=("*",))
    )
    (directory / "names.db").unlink(missing_ok=True)
    async with (
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database) as (store, _),
        MemoryMesh().join("names", peer_of("alice")) as topic,
        open_replica(database, store, SwarmBlocks(ReplicaSwarm(directory), peer_of("alice")), topic) as replica,
    ):

        async def write(numbers: Iterator[int]) -> None:
            for number in numbers:
                changes: list[Put | Delete] = list(push(number))
                changes[0] = Put(f"/r/team/application/_t/v{number % tags}", VALUE)
                if number >= tags:
                    changes += [Delete(change.key) for change in push(number - tags)[2:]]
                await replica.commit(changes)

        numbers = iter(range(pushes))
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(write, numbers)
        await replica.seal()
        start = time.perf_counter()
        head, names = await replica.next_seed()
        print(f"the seed of {names:,} names: {time.perf_counter() - start:.2f} s, beside everything else")
    start = time.perf_counter()
    done = await rotate(config, str(head))
    print(f"the next epoch of {names:,} names after {pushes:,} pushes: {time.perf_counter() - start:.2f} s")
    print(f"  rows {done.before.rows:,} before, {done.after.rows:,} after")
    print(f"  database {done.before.bytes / 1e6:,.1f} MB before, {done.after.bytes / 1e6:,.1f} MB after")


async def print_snapshot(directory: Path, held_s: float) -> None:
    """What the log takes while a snapshot keeps it from beginning anew."""
    log = directory / "names.db-wal"
    async with open_alone(directory) as replica:

        async def push_until(deadline: float, first: int) -> int:
            numbers = count(first)
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = deadline
                for _ in range(16):
                    nursery.start_soon(_write_pushes, replica, numbers)
            return next(numbers) - first

        await push_until(trio.current_time() + 2, 0)
        before = log.stat().st_size
        async with replica._database.snapshot() as snapshot:
            await snapshot.run(lambda db: db.execute("SELECT count(*) FROM crdt_names").fetchone())
            pushes = await push_until(trio.current_time() + held_s, 1_000_000)
            most = log.stat().st_size
        await push_until(trio.current_time() + 2, 2_000_000)
        print(
            f"a snapshot held for {held_s:g} s and {pushes / held_s:,.0f} pushes a second: the log grew from"
            f" {before / 1e6:,.0f} to {most / 1e6:,.0f} MB, {(most - before) / pushes:,.0f} bytes a push;"
            f" two seconds later it has {log.stat().st_size / 1e6:,.0f} MB"
        )


def _seconds(taken: float | None) -> str:
    return "-" if taken is None else f"{taken:.1f} s"


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--writes", type=int, default=3000)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to be measured")
    parser.add_argument("--join", default="", help="numbers of names, separated by commas")
    parser.add_argument("--epoch", type=int, default=0, help="number of pushes")
    parser.add_argument("--snapshot", type=float, default=0.0, help="seconds for which one is held")
    parser.add_argument("--rtt", type=float, default=0.05, help="seconds")
    parser.add_argument("--by", default="checkpoint,dagsync,blocks")
    parser.add_argument("--patience", type=float, default=600.0, help="seconds after which a join is given up")
    options = parser.parse_args()
    if options.join:
        for names in map(int, options.join.split(",")):
            for by in options.by.split(","):
                await print_join(names, options.rtt, by, patience_s=options.patience)
            print(
                f"  go-ds-crdt, a round trip for each of {names // 10 + 1:,} nodes: {names / 10 * options.rtt:,.0f} s"
            )
        return
    if options.epoch:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            await print_epoch(options.epoch, Path(directory))
        return
    if options.snapshot:
        with tempfile.TemporaryDirectory(dir=options.directory) as directory:
            await print_snapshot(Path(directory), options.snapshot)
        return
    print_bytes()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        async with open_alone(Path(directory)) as replica:
            await print_writes(replica, options.writes)
            await print_growth(replica)
            await fill(replica, options.keys)
            print_reads(replica, options.keys)
            size = (Path(directory) / "names.db").stat().st_size
            print(f"the database: {size / 1e6:,.0f} MB, {size / options.keys:,.0f} bytes a name")


if __name__ == "__main__":
    trio.run(main)

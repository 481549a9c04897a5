"""Replicas of the names with everything below them in memory or inline: gossip, block exchange, disk.

    swarm = ReplicaSwarm(tmp_path)
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        await alice.commit([Put("/a", b"1")])

Peers who are not cut off hear each other and give each other blocks, one round trip (`delay_s`) per request; `withheld`
blocks nobody gives.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random

import trio

from ipfsreg.blockstore.arrivals import ArrivalFeed
from ipfsreg.crdt.replica import Replica, ReplicaSettings, open_replica
from ipfsreg.database import Database
from ipfsreg.errors import BlockNotFound
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.inline_database import InlineDatabase, open_inline_database
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, key_of, peer_of
from ipfsreg.testing.topic import MemoryMesh, MemoryTopic


class NamedSigner:
    """Signs with the key that the test peer *name* always has. Keeps `Signer`."""

    def __init__(self, name: str) -> None:
        self._name = name

    @property
    def peer_id(self) -> PeerId:
        return peer_of(self._name)

    def sign(self, data: bytes) -> bytes:
        return key_of(self._name).sign(data)


class TableBlockstore:
    """A block store of one table. Keeps `DatabaseBlockstore`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._feed = ArrivalFeed()

    @classmethod
    async def prepared(cls, database: Database) -> TableBlockstore:
        """The store in *database*, whose table is made if need be."""
        await database.prepare("blocks", ["CREATE TABLE blocks (multihash BLOB PRIMARY KEY, data BLOB NOT NULL)"])
        return cls(database)

    def has(self, cid: Cid) -> bool:
        return self.size_of(cid) is not None

    def size_of(self, cid: Cid) -> int | None:
        row = self._database.read("SELECT length(data) FROM blocks WHERE multihash = ?", (cid.multihash,)).fetchone()
        return None if row is None else row[0]

    async def get(self, cid: Cid) -> Block:
        await trio.lowlevel.checkpoint()
        return self.get_nowait(cid)

    def get_nowait(self, cid: Cid) -> Block:
        """As `get`."""
        row = self._database.read("SELECT data FROM blocks WHERE multihash = ?", (cid.multihash,)).fetchone()
        if row is None:
            raise BlockNotFound(f"block {cid} is not in this store")
        return Block.verified(cid, row[0])

    async def put(self, block: Block) -> None:
        await self.put_many([block])

    async def put_many(self, blocks: Sequence[Block]) -> None:
        await self._database.write(lambda db: self.put_in(db, blocks))
        self.committed(blocks)

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        db.executemany(
            "INSERT OR IGNORE INTO blocks VALUES (?, ?)", [(block.cid.multihash, block.data) for block in blocks]
        )

    def committed(self, blocks: Sequence[Block]) -> None:
        self._feed.publish(block.cid.multihash for block in blocks)

    async def delete(self, cids: Iterable[Cid]) -> None:
        keys = [(cid.multihash,) for cid in cids]
        await self._database.write(lambda db: db.executemany("DELETE FROM blocks WHERE multihash = ?", keys))

    @asynccontextmanager
    async def arrivals(self) -> AsyncIterator[AsyncIterator[frozenset[bytes]]]:
        with self._feed.reader() as reader:
            yield reader


class SwarmBlocks:
    """The block service of one peer of a `ReplicaSwarm`. Keeps `BlockService`."""

    def __init__(self, swarm: ReplicaSwarm, peer: PeerId) -> None:
        self._swarm = swarm
        self._peer = peer
        self.requests: list[tuple[Cid, ...]] = []
        """What was asked for, for tests that count round trips."""
        self.first: list[tuple[PeerId, ...]] = []

    async def fetch(
        self, cids: Sequence[Cid], *, first: Sequence[PeerId] = (), deadline_s: float | None = None
    ) -> AsyncIterator[Block]:
        self.requests.append(tuple(cids))
        self.first.append(tuple(first))
        missing = dict.fromkeys(cids)
        while missing:
            with trio.move_on_after(deadline_s if deadline_s is not None else float("inf")) as patience:
                await trio.sleep(self._swarm.delay_s)
                while not (found := [block for cid in missing if (block := self._swarm.find(self._peer, cid))]):
                    await self._swarm.wait_change()
            if patience.cancelled_caught:
                raise BlockNotFound(f"nobody gave {len(missing)} blocks within {deadline_s} s")
            for block in found:
                del missing[block.cid]
                yield block


class ReplicaSwarm:
    """All the replicas, and what lies between them."""

    def __init__(self, directory: Path, *, delay_s: float = 0.01, signed: bool = False) -> None:
        """*signed*: replicas sign what they write, as nodes do; without it, they write what Go writes."""
        self.directory = directory
        self.signed = signed
        self.delay_s = delay_s
        self.mesh = MemoryMesh()
        self.wires: MemorySwarm | None = None
        """If set, replicas are connected by these, too, and speak dagsync over them."""
        self.withheld: set[bytes] = set()
        """Multihashes of blocks that nobody gives to others."""
        self.extra: dict[bytes, Block] = {}
        """Blocks that somebody outside gives to everybody."""
        self.stores: dict[PeerId, TableBlockstore] = {}
        self.databases: dict[str, InlineDatabase] = {}
        self.topics: dict[str, MemoryTopic] = {}
        self.blocks: dict[str, SwarmBlocks] = {}
        self._cut: set[frozenset[PeerId]] = set()
        self._changed = trio.Event()

    @asynccontextmanager
    async def open(self, name: str, settings: ReplicaSettings | None = None) -> AsyncIterator[Replica]:
        """The replica *name*, with what it had on its disk when it was last open."""
        peer = peer_of(name)
        async with (
            open_inline_database(self.directory / f"{name}.db") as database,
            self.mesh.join("names", peer) as topic,
        ):
            self.databases[name] = database
            self.topics[name] = topic
            self.blocks[name] = SwarmBlocks(self, peer)
            store = self.stores[peer] = await TableBlockstore.prepared(database)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, store)
                    async with open_replica(
                        database,
                        store,
                        self.blocks[name],
                        topic,
                        settings,
                        signer=NamedSigner(name) if self.signed else None,
                        network=None if self.wires is None else await self._endpoint(name),
                        rng=Random(name),
                    ) as replica:
                        yield replica
                    nursery.cancel_scope.cancel()
            finally:
                del self.stores[peer]
                if self.wires is not None and peer in self.wires.by_id:
                    self.wires.kill(self.wires.by_id[peer])

    async def _endpoint(self, name: str) -> MemoryEndpoint:
        assert self.wires is not None
        endpoint = self.wires.endpoint(name)
        for peer in self.stores:
            if peer != endpoint.peer_id:
                await endpoint.connect(PeerInfo(peer))
        return endpoint

    async def _watch(self, store: TableBlockstore) -> None:
        async with store.arrivals() as arrivals:
            async for _ in arrivals:
                self.change()

    def change(self) -> None:
        """Let everybody look again for what they miss."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self) -> None:
        """Return when somebody may have got what he had not."""
        await self._changed.wait()

    def find(self, asker: PeerId, cid: Cid) -> Block | None:
        """The block *cid*, from the asker itself or somebody it can reach."""
        own = self.stores.get(asker)
        if own is not None and own.has(cid):
            return own.get_nowait(cid)
        if cid.multihash in self.withheld:
            return None
        for peer, store in self.stores.items():
            if frozenset((asker, peer)) not in self._cut and store.has(cid):
                return store.get_nowait(cid)
        return self.extra.get(cid.multihash)

    def give(self, blocks: Iterable[Block]) -> None:
        """Let somebody outside have *blocks*."""
        self.extra.update((block.cid.multihash, block) for block in blocks)
        self.change()

    def cut(self, one: str, other: str) -> None:
        """They neither hear nor reach each other."""
        self.mesh.cut(peer_of(one), peer_of(other))
        self._cut.add(frozenset((peer_of(one), peer_of(other))))

    def heal(self, one: str, other: str) -> None:
        """They are together again."""
        self._cut.discard(frozenset((peer_of(one), peer_of(other))))
        self.mesh.heal(peer_of(one), peer_of(other))
        self.change()


async def wait_equal(*replicas: Replica, deadline_s: float = 300.0) -> None:
    """Return when all have the same heads and miss nothing. Raises trio.TooSlowError."""
    with trio.fail_after(deadline_s):
        while not _are_equal(replicas):  # noqa: ASYNC110 (no event tells that nothing is missing any more)
            await trio.sleep(0.1)


def _are_equal(replicas: Sequence[Replica]) -> bool:
    return len({replica.heads() for replica in replicas}) == 1 and not any(
        replica.status().tips_wanted for replica in replicas
    )


async def wait_height(replica: Replica, height: int, within_s: float) -> None:
    """Return when *replica* has closed nodes of that height. Raises trio.TooSlowError."""
    with trio.fail_after(within_s):
        while replica.status().height < height:  # noqa: ASYNC110 (no event tells)
            await trio.sleep(0.1)

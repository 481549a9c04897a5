"""The promises of docs/consistency.md, checked on histories: random writes and reads through partitions, kills and
clocks that are days apart. Every operation is recorded with its node and what that node knew; the checker knows
nothing but that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.crdt.delta import Node, block_id, node_cid, parse_node
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.replica import Replica
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import MoveRecord, TagRecord
from ipfsreg.registry.history import Move, read_move, trace
from ipfsreg.testing.inline_database import Crash
from ipfsreg.testing.network import MemorySwarm, peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal

NODES = ("alice", "bob", "carol")
APP = RepositoryName("team/app")
TAGS = tuple(map(Tag, ("latest", "1.0", "edge")))
DAY_US = 86_400 * 1_000_000


@dataclass(frozen=True)
class Write:
    """An acknowledged push (of a digest nobody else pushes) or deletion, and what its node had read before."""

    node: str
    tag: Tag
    to: Digest | None
    when_us: int
    saw: Digest | None
    knew: frozenset[tuple[int, PeerId]]
    """Moves of the tag that were at the node, by time and node; its own too."""
    heads: tuple[Cid, ...]

    @property
    def key(self) -> tuple[int, PeerId]:
        """By which a move is known."""
        return self.when_us, peer_of(self.node)


@dataclass
class History:
    writes: list[Write] = field(default_factory=list)
    unacknowledged: list[Digest | None] = field(default_factory=list)
    """Pushes that a kill cut off: there or not, and both is right."""


class Cluster:
    """Nodes that move tags as the registry does, each with a clock of its own."""

    def __init__(self, swarm: ReplicaSwarm, rng: Random) -> None:
        self.swarm = swarm
        self.rng = rng
        self.history = History()
        self.replicas: dict[str, Replica] = {}
        self._skew_us = {name: rng.choice([-3, 0, 2]) * DAY_US for name in NODES}
        self._last_us = dict.fromkeys(NODES, 0)
        self._pushed = 0
        self._stop: dict[str, Callable[[], None]] = {}
        self._stopped: dict[str, trio.Event] = {}

    def now_us(self, node: str) -> int:
        """As the registry's: never twice, never back, and wrong by days."""
        clock = 10 * DAY_US + int(trio.current_time() * 1e6) + self._skew_us[node]
        self._last_us[node] = max(self._last_us[node] + 1, clock)
        return self._last_us[node]

    def read(self, node: str, tag: Tag) -> TagRecord | None:
        data = self.replicas[node].get(catalog.tag_key(APP, tag))
        return None if data is None else TagRecord.decode(data)

    async def move(self, node: str, tag: Tag, *, delete: bool) -> Write | None:
        """Push something new to *tag*, or delete it; None if there was nothing to delete."""
        now = self.read(node, tag)
        if delete and now is None:
            return None
        saw = None if now is None else now.digest
        self._pushed += 1
        to = None if delete else Digest.of(b"%d" % self._pushed)
        when_us, peer = self.now_us(node), peer_of(node)
        key = catalog.tag_key(APP, tag)
        record = MoveRecord(to, saw, peer)
        changes: list[Change] = [
            Delete(key) if to is None else Put(key, TagRecord(to, when_us, peer).encode()),
            Put(catalog.history_key(APP, tag, when_us, peer), record.encode()),
        ]
        self.history.unacknowledged.append(to)
        heads = await self.replicas[node].commit(changes)
        self.history.unacknowledged.remove(to)
        # Taken after the commit: with it other moves may have come, which it then knew of.
        knew = frozenset((move.when_us, move.peer) for move in self.moves(node, tag))
        write = Write(node, tag, to, when_us, saw, knew, heads)
        self.history.writes.append(write)
        return write

    async def run(self, nursery: trio.Nursery, name: str) -> None:
        """Open a node; it stays until `stop` or `kill`."""
        opened, self._stopped[name] = trio.Event(), trio.Event()
        nursery.start_soon(self._run, name, opened)
        await opened.wait()

    async def _run(self, name: str, opened: trio.Event) -> None:
        try:
            with trio.CancelScope() as scope:
                async with self.swarm.open(name) as replica:
                    self.replicas[name] = replica
                    self._stop[name] = scope.cancel
                    opened.set()
                    await trio.sleep_forever()
        except* Crash:
            pass
        del self.replicas[name]
        self._stopped[name].set()

    async def kill(self, name: str) -> None:
        """Take the power from a node before its next transaction, in the middle of a push."""
        database = self.swarm.databases[name]
        database.crash_at = database.writes
        with trio.move_on_after(5):
            await self.move(name, self.rng.choice(TAGS), delete=False)
        self._stop[name]()
        await self._stopped[name].wait()

    def moves(self, node: str, tag: Tag) -> list[Move]:
        """What `ipfsreg log` shows at *node*."""
        prefix = catalog.history_prefix(APP, tag)
        found = [read_move(key[len(prefix) :], value) for key, value in self.replicas[node].scan(prefix)]
        return trace(found, self.read(node, tag))


async def some_writes(cluster: Cluster, node: str, count: int) -> None:
    rng = Random(cluster.rng.randrange(1 << 30))
    for _ in range(count):
        tag = rng.choice(TAGS)
        write = await cluster.move(node, tag, delete=rng.random() < 0.25)
        if write is not None and write.to is not None:
            seen = cluster.read(node, tag)
            assert seen is not None, "read your writes at the same node"
            assert seen.digest == write.to or seen.when_us != write.when_us
        await trio.sleep(rng.choice([0, 0.01, 0.3]))


async def follow(cluster: Cluster, node: str, count: int) -> None:
    """Carry the heads of writes elsewhere to *node*, and read them there."""
    for _ in range(count):
        await trio.sleep(0.2)
        if cluster.history.writes:
            write = cluster.history.writes[-1]
            replica = cluster.replicas[node]
            with trio.move_on_after(5):
                await replica.wait_merged(write.heads)
                key = catalog.history_key(APP, write.tag, write.when_us, peer_of(write.node))
                assert replica.get(key) is not None, "read your writes at another node"


@pytest.mark.parametrize("dagsync", [False, True], ids=["blocks", "dagsync"])
@pytest.mark.parametrize("seed", range(6))
async def test_a_history_with_partitions_kills_and_skewed_clocks_keeps_the_promises(
    tmp_path: Path, autojump_clock: MockClock, seed: int, dagsync: bool
) -> None:
    rng = Random(seed)
    swarm = ReplicaSwarm(tmp_path, signed=True)
    swarm.wires = MemorySwarm() if dagsync else None
    cluster = Cluster(swarm, rng)
    async with trio.open_nursery() as nursery:
        for name in NODES:
            await cluster.run(nursery, name)
        for _ in range(5):
            alone = rng.choice([None, *NODES])
            for other in NODES:
                if alone and other != alone:
                    swarm.cut(alone, other)
            async with trio.open_nursery() as turn:
                for name in NODES:
                    turn.start_soon(some_writes, cluster, name, rng.randrange(1, 6))
                    turn.start_soon(follow, cluster, name, 3)
            if rng.random() < 0.5:
                killed = rng.choice(NODES)
                await cluster.kill(killed)
                await cluster.run(nursery, killed)
            for other in NODES:
                if alone and other != alone:
                    swarm.heal(alone, other)
        await wait_equal(*cluster.replicas.values())
        check(cluster)
        nursery.cancel_scope.cancel()


class Dag:
    """Which write is below which."""

    def __init__(self, cluster: Cluster) -> None:
        self._nodes: dict[bytes, Node] = {}
        self._places: dict[str, bytes] = {}
        self._pushes = {(write.tag, write.to): write for write in cluster.history.writes}
        store = cluster.swarm.stores[peer_of("alice")]
        missing = [head.multihash for head in cluster.replicas["alice"].heads()]
        while missing:
            multihash = missing.pop()
            if multihash not in self._nodes:
                node = self._nodes[multihash] = parse_node(store.get_nowait(node_cid(multihash)))
                self._places.update((element.key, multihash) for element in node.delta.elements)
                missing += node.links

    def _place(self, write: Write) -> bytes:
        return self._places[catalog.history_key(APP, write.tag, write.when_us, peer_of(write.node))]

    def is_below(self, write: Write) -> bool:
        """Whether what *write* saw is at or below it."""
        if write.saw is None:
            return True
        push = self._pushes.get((write.tag, write.saw))
        if push is None:
            return False  # of a push that was cut off, nobody knows when
        return self._place(push) in self._at_or_below(self._place(write))

    def removes_early(self, tag: Tag) -> bool:
        """Whether some node of the DAG removes by name what set *tag* in a node that is not below it: what is older
        than that had not arrived, so it could not be removed."""
        key = catalog.tag_key(APP, tag)
        ids = {block_id(multihash): multihash for multihash in self._nodes}
        for multihash, node in self._nodes.items():
            removed = [tombstone.id for tombstone in node.delta.tombstones if tombstone.key == key]
            if removed and not self._at_or_below(multihash).issuperset(ids[id_] for id_ in removed):
                return True
        return False

    def _at_or_below(self, multihash: bytes) -> set[bytes]:
        found: set[bytes] = set()
        missing = [multihash]
        while missing:
            multihash = missing.pop()
            if multihash not in found:
                found.add(multihash)
                missing += self._nodes[multihash].links
        return found


def check(cluster: Cluster) -> None:
    """The promises, on what was recorded and on what the nodes show in the end."""
    dag = Dag(cluster)
    alice, *others = (cluster.replicas[name] for name in NODES)
    assert all(other.scan("/") == alice.scan("/") for other in others), "convergence"
    writes = cluster.history.writes
    assert len(writes) > 20
    for tag in TAGS:
        moves = cluster.moves("alice", tag)
        shown = {(move.when_us, move.peer): move for move in moves}
        mine = [write for write in writes if write.tag == tag]
        for write in mine:
            move = shown.get((write.when_us, peer_of(write.node)))
            assert move is not None, "no acknowledged write is lost: its move is in the history"
            assert (move.to, move.before) == (write.to, write.saw)
        now = cluster.read("alice", tag)
        seen_and_overwritten = {write.saw for write in mine if write.saw is not None}
        if dag.removes_early(tag) or not all(dag.is_below(write) for write in mine):
            seen_and_overwritten = set()  # the exception: somebody wrote while its node was catching up
        if now is not None:
            assert now.digest not in seen_and_overwritten, "what was seen and overwritten or deleted does not come back"
            pushes = {write.to for write in mine} | set(cluster.history.unacknowledged)
            assert now.digest in pushes, "every value was written by somebody"
            (winner,) = [move for move in moves if move.step == 0]
            assert winner.to == now.digest, "the winner is shown in the history"
        else:
            pushed = {write.key for write in mine if write.to is not None}
            known = {key for write in mine for key in write.knew - {write.key}}
            assert pushed <= known, "a push that nobody knew of who moved or deleted the tag survives all of that"

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

import trio
from trio.testing import MockClock

from ipfsreg.crdt import state
from ipfsreg.crdt.delta import Delta, Element, Node, build_node
from ipfsreg.crdt.frontier import Frontier
from ipfsreg.crdt.intake import Intake
from ipfsreg.crdt.state import VoidNode, Work
from ipfsreg.crdt.walker import LOOKED_UP_AT_ONCE, PATIENCE_S, Walker
from ipfsreg.database import Database
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.testing.inline_database import open_inline_database
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import ReplicaSwarm, SwarmBlocks, TableBlockstore


@dataclass
class Scene:
    swarm: ReplicaSwarm
    database: Database
    store: TableBlockstore
    blocks: SwarmBlocks
    intake: Intake
    walker: Walker

    async def write(self) -> list[bytes]:
        """Bring what has come to the tables; return what it was."""
        batch = await self.intake.take()
        assert batch is not None
        await self.database.write(lambda db: state.apply(self.store, batch.work, db))
        self.intake.taken_in(batch.work.arrivals)
        self.walker.written()
        return [arrival.multihash for arrival in batch.work.arrivals]


@asynccontextmanager
async def scene(directory: Path, wanted: list[bytes], *, max_nodes: int = 1000) -> AsyncIterator[Scene]:
    """A running walker over tables in which *wanted* are wanted."""
    swarm = ReplicaSwarm(directory)
    async with open_inline_database(directory / "names.db") as database, trio.open_nursery() as nursery:
        store = swarm.stores[peer_of("alice")] = await TableBlockstore.prepared(database)
        await database.prepare("crdt", state.SCHEMA)
        await database.write(lambda db: state.apply(store, Work(tips=wanted), db))
        blocks, intake = SwarmBlocks(swarm, peer_of("alice")), Intake()
        walker = Walker(database, blocks, intake, Frontier(Random(1), max_nodes=max_nodes))
        nursery.start_soon(walker.run)
        walker.release()
        yield Scene(swarm, database, store, blocks, intake, walker)
        nursery.cancel_scope.cancel()


def chain(length: int) -> list[Node]:
    nodes: list[Node] = []
    for height in range(1, length + 1):
        links = [nodes[-1].multihash] if nodes else []
        nodes.append(build_node(links, Delta((Element(f"/{height}", b"1"),), (), height)))
    return nodes


async def test_a_walk_goes_down_to_what_is_known_and_no_further(tmp_path: Path, autojump_clock: MockClock) -> None:
    nodes = chain(6)
    async with scene(tmp_path, []) as here:
        here.swarm.give(node.block for node in nodes)
        await here.database.write(lambda db: state.apply(here.store, Work(arrivals=nodes[:3]), db))
        here.walker.want(nodes[-1].multihash, [peer_of("bob")])
        await trio.sleep(1)
        assert [cids[0].multihash for cids in here.blocks.requests] == [node.multihash for node in nodes[:2:-1]]
        assert here.blocks.first == [(peer_of("bob"),)] * 3, "who announced the tip is asked for what is below it"
        assert set(await here.write()) == {node.multihash for node in nodes[3:]}


async def test_a_node_on_its_way_to_the_tables_is_not_fetched_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    nodes = chain(2)
    async with scene(tmp_path, []) as here:
        await here.walker.bring(nodes[0].block)
        await here.walker.bring(nodes[1].block)
        await trio.sleep(1)
        assert here.blocks.requests == []


async def test_wanted_nodes_of_an_earlier_run_are_fetched(tmp_path: Path, autojump_clock: MockClock) -> None:
    (node,) = chain(1)
    async with scene(tmp_path, [node.multihash]) as here:
        await trio.sleep(1)
        here.swarm.give([node.block])
        await trio.sleep(1)
        assert await here.write() == [node.multihash]


async def test_more_wanted_nodes_than_memory_holds_are_fetched_in_turns(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    nodes = [build_node([], Delta((Element(f"/{number}", b"1"),), (), 1)) for number in range(45)]
    async with scene(tmp_path, [], max_nodes=10) as here:
        here.swarm.give(node.block for node in nodes)
        tip = build_node([node.multihash for node in nodes], Delta((), (), 2))
        await here.walker.bring(tip.block)
        await trio.sleep(1)
        while not here.intake.is_empty:
            await here.write()
            await trio.sleep(1)
        assert max(len(cids) for cids in here.blocks.requests) <= 10
        assert state.wanted_nodes(here.database, 100) == []
        assert state.state_of_node(here.database, tip.multihash) == state.CLOSED


async def test_what_nobody_gives_is_asked_for_again(tmp_path: Path, autojump_clock: MockClock) -> None:
    (node,) = chain(1)
    async with scene(tmp_path, [node.multihash]) as here:
        await trio.sleep(4 * PATIENCE_S)
        assert 3 <= len(here.blocks.requests) <= 5
        here.walker.hint(peer_of("carol"))
        await trio.sleep(PATIENCE_S + 2)
        assert here.blocks.first[-1] == (peer_of("carol"),)


async def test_a_node_of_very_many_links_is_looked_up_a_few_at_a_time(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    links = [Cid.of(DAG_PB, b"%d" % number) for number in range(3000)]
    tip = Block.of(PBNode(tuple(map(PBLink, links)), Delta((), (), 2).encode()).encode(), DAG_PB)
    async with scene(tmp_path, [], max_nodes=5000) as here, trio.open_nursery() as nursery:
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        nursery.start_soon(count_turns)
        await here.walker.bring(tip)
        assert turns >= len(links) // LOOKED_UP_AT_ONCE
        nursery.cancel_scope.cancel()


async def test_what_is_wanted_is_read_a_little_at_a_time_and_wholly(tmp_path: Path, autojump_clock: MockClock) -> None:
    nodes = [build_node([], Delta((Element(f"/{number}", b"1"),), (), 1)) for number in range(3 * LOOKED_UP_AT_ONCE)]
    async with scene(tmp_path, [node.multihash for node in nodes]) as here:
        await trio.sleep(0.1)
        assert {cid.multihash for cids in here.blocks.requests for cid in cids} == {node.multihash for node in nodes}


async def test_a_block_that_is_no_node_is_brought_as_such(tmp_path: Path, autojump_clock: MockClock) -> None:
    void = Block.of(b"\x0a\x02\xff\xff", DAG_PB)
    async with scene(tmp_path, []) as here:
        await here.walker.bring(void)
        batch = await here.intake.take()
        assert batch is not None
        (arrival,) = batch.work.arrivals
        assert isinstance(arrival, VoidNode)
        assert arrival.multihash == void.cid.multihash


async def test_a_node_of_very_many_elements_is_parsed_beside_everything_else(tmp_path: Path) -> None:
    block = Block.of(PBNode((), b"\x0a\x04\x0a\x02/a" * 340_000 + b"\x18\x01").encode(), DAG_PB)
    turns = 0

    async def spin() -> None:
        nonlocal turns
        while True:
            await trio.sleep(0.001)
            turns += 1

    async with scene(tmp_path, []) as here, trio.open_nursery() as nursery:
        nursery.start_soon(spin)
        await here.walker.bring(block)
        nursery.cancel_scope.cancel()
    assert turns > 5, "half a second in one piece lets nobody else have a turn"

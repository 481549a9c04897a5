"""Three to seven replicas that write on what they have while nodes are lost, doubled, reordered and cut off by crashes:
once repaired, all have the same tables, and those that the definition of the merge gives.
"""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random

from hypothesis import event, given, settings
from hypothesis import strategies as st

from ipfsreg.crdt import state
from ipfsreg.crdt.delta import Node, multihash_of_id, parse_node
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.merge import heads_of, heights_of, state_of, values_by_key
from ipfsreg.crdt.state import Outcome, Work
from ipfsreg.ipld.block import Block
from ipfsreg.testing.replicas import NamedSigner

KEYS = ("/k", "/k/below", "/l", "/m", "/n")


class Replica:
    """Tables, and the blocks beside them. What a crash cuts off never was."""

    def __init__(self, name: str) -> None:
        self.signer = NamedSigner(name)
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(state.SCHEMA).split(";"):
            self.db.execute(statement)
        self.db.execute("CREATE TABLE blocks (multihash BLOB PRIMARY KEY, data BLOB)")

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        db.executemany("INSERT OR IGNORE INTO blocks VALUES (?, ?)", [(b.cid.multihash, b.data) for b in blocks])

    def apply(self, work: Work, *, crash: bool = False) -> Outcome | None:
        """None: the power went before it was durable."""
        self.db.execute("BEGIN")
        outcome = state.apply(self, work, self.db, signer=self.signer)
        self.db.execute("ROLLBACK" if crash else "COMMIT")
        return None if crash else outcome

    def wanted(self) -> set[bytes]:
        """What its walks would fetch."""
        return {multihash for (multihash,) in self.db.execute("SELECT multihash FROM crdt_nodes WHERE state = 1")}

    def finish(self) -> None:
        """Close what can be closed."""
        while (outcome := self.apply(Work())) is not None and outcome.closing_left:
            pass

    def dump(self) -> dict[str, object]:
        """All that is kept, without the numbers by which rows name nodes."""
        name = "(SELECT multihash FROM crdt_nodes WHERE number = "
        query = self.db.execute
        return {
            "names": query("SELECT key, priority, value FROM crdt_names ORDER BY key").fetchall(),
            "elements": set(query(f"SELECT key, priority, {name} node), value, withheld FROM crdt_elements")),
            "tombstones": set(query(f"SELECT key, {name} node), {name} by), withheld FROM crdt_tombstones")),
            "nodes": set(query("SELECT multihash, state, priority, height, merged, fault, author FROM crdt_nodes")),
            "links": set(query(f"SELECT {name} parent), {name} child) FROM crdt_links")),
            "heads": set(query(f"SELECT {name} node) FROM crdt_heads")),
            "counts": query("SELECT * FROM crdt_counts ORDER BY name").fetchall(),
            "left over": [
                query(f"SELECT count(*) FROM {table}").fetchone()
                for table in ("crdt_early", "crdt_held", "crdt_waits", "crdt_tips")
            ],
        }


@dataclass
class Swarm:
    """Replicas, every node that was ever durable somewhere, and what is on its way to whom."""

    rng: Random
    replicas: list[Replica]
    nodes: dict[bytes, Node] = field(default_factory=dict)
    on_the_way: list[tuple[Replica, bytes]] = field(default_factory=list)
    acted: Counter[str] = field(default_factory=Counter)

    def step(self) -> None:
        """One of the things that happen."""
        act = self.rng.choice([self.write, self.write, self.deliver, self.deliver, self.deliver, self.walk, self.join])
        act()
        self.acted[act.__name__] += 1

    def some_changes(self) -> list[Change]:
        keys = self.rng.sample(KEYS, self.rng.choice([1, 1, 2, 3]))
        return [
            Delete(k) if self.rng.random() < 0.35 else Put(k, self.rng.randbytes(self.rng.choice([1, 2]))) for k in keys
        ]

    def write(self) -> None:
        """Somebody writes on what it has, perhaps several commits at once; others may hear of it."""
        author = self.rng.choice(self.replicas)
        commits = [self.some_changes() for _ in range(self.rng.choice([1, 1, 3]))]
        self.publish(author, author.apply(Work(commits=commits), crash=self.crashes()))

    def join(self) -> None:
        """Somebody joins its heads with a node without content."""
        author = self.rng.choice(self.replicas)
        self.publish(author, author.apply(Work(join_heads=True), crash=self.crashes()))

    def publish(self, author: Replica, outcome: Outcome | None) -> None:
        for written in outcome.written if outcome is not None else ():
            self.nodes[written.multihash] = parse_node(written.block)
            for other in self.replicas:
                if other is not author and self.rng.random() < 0.6:
                    self.on_the_way += [(other, written.multihash)] * self.rng.choice([1, 1, 1, 2])

    def deliver(self) -> None:
        """Something arrives somewhere, whatever was sent before or after it; as a tip, a node, or both."""
        if not self.on_the_way:
            return
        replica, multihash = self.on_the_way.pop(self.rng.randrange(len(self.on_the_way)))
        how = self.rng.choice(["tip", "node", "both"])
        tips = [multihash] if how != "node" else []
        arrivals = [self.nodes[multihash]] if how != "tip" else []
        replica.apply(Work(tips=tips, arrivals=arrivals), crash=self.crashes())

    def walk(self) -> None:
        """One step of somebody's walk: some of what it wants comes, in any order; then it is broken off."""
        replica = self.rng.choice(self.replicas)
        wanted = sorted(replica.wanted())
        some = self.rng.sample(wanted, min(len(wanted), self.rng.randint(1, 3)))
        replica.apply(Work(arrivals=[self.nodes[multihash] for multihash in some]), crash=self.crashes())

    def crashes(self) -> bool:
        return self.rng.random() < 0.1

    def repair(self) -> None:
        """Everybody hears of all heads and walks to the end."""
        heads = heads_of(list(self.nodes.values()))
        for replica in self.replicas:
            replica.apply(Work(tips=self.rng.sample(sorted(heads), len(heads))))
            while wanted := sorted(replica.wanted()):
                some = self.rng.sample(wanted, self.rng.randint(1, len(wanted)))
                replica.apply(Work(arrivals=[self.nodes[multihash] for multihash in some]))
            replica.finish()


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 7), st.integers(0, 2**32), st.integers(5, 60))
def test_lost_doubled_and_reordered_nodes_once_repaired_leave_equal_tables_everywhere(
    size: int, seed: int, steps: int
) -> None:
    swarm = Swarm(Random(seed), [Replica(f"r{number}") for number in range(size)])
    for _ in range(steps):
        swarm.step()
    swarm.repair()
    event(f"{min(len(swarm.nodes) // 10 * 10, 40)} or more nodes")
    first, *others = [replica.dump() for replica in swarm.replicas]
    assert all(other == first for other in others)
    nodes = list(swarm.nodes.values())
    heights = heights_of(swarm.nodes)
    assert first["names"] == sorted(
        (key, priority_of(nodes, key, value), value) for key, value in state_of(nodes).items()
    )
    assert first["heads"] == {(multihash,) for multihash in heads_of(nodes)}
    assert first["left over"] == [(0,)] * 4
    assert first["elements"] == {
        (key, node.delta.priority, node.multihash, value, 0)
        for node in nodes
        for key, value in values_by_key(node.delta).items()
    }
    assert first["tombstones"] == {
        (stone.key, multihash_of_id(stone.id), node.multihash, 0) for node in nodes for stone in node.delta.tombstones
    }
    assert {(row[0], row[3]) for row in first["nodes"]} == set(heights.items())  # type: ignore[attr-defined]
    for replica in swarm.replicas:
        replica.db.close()


def priority_of(nodes: Sequence[Node], key: str, value: bytes) -> int:
    """Of the live element that won: the greatest with this value that nobody removed."""
    removed = {(stone.key, multihash_of_id(stone.id)) for node in nodes for stone in node.delta.tombstones}
    return max(
        node.delta.priority
        for node in nodes
        if values_by_key(node.delta).get(key) == value and (key, node.multihash) not in removed
    )

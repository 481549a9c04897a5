"""Who may write what: the rules, and how the tables heed them."""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from random import Random
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from ipfsreg.crdt import state
from ipfsreg.crdt.delta import Delta, Element, Node, Tombstone, block_id, build_node, parse_node
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.replica import ReplicaSettings
from ipfsreg.crdt.state import Outcome, Work
from ipfsreg.crdt.writers import EVERYBODY, NEVER, Rule, Writers
from ipfsreg.errors import Denied
from ipfsreg.ipld.block import Block
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.catalog import repository_of
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import NamedSigner, ReplicaSwarm, wait_equal

ALICE, BOB, EVE = peer_of("alice"), peer_of("bob"), peer_of("eve")
TAG, OTHER = "/r/team-a/app/_t/1.0", "/r/team-b/app/_t/1.0"


def team_a(*peers: PeerId, former: dict[PeerId, set[bytes]] | None = None, require_signed: bool = False) -> Writers:
    kept = tuple((peer, frozenset(heads)) for peer, heads in (former or {}).items())
    return Writers(
        (Rule("team-a/*", frozenset(peers), kept),), require_signed=require_signed, repository_of=repository_of
    )


# ----------------------------------------------------------------------- rules


def test_without_rules_everybody_may_write_everything() -> None:
    assert EVERYBODY.allow(TAG, EVE)
    assert EVERYBODY.allow("/anything", None)


def test_a_rule_is_about_its_repositories_and_what_lies_below_them() -> None:
    writers = team_a(ALICE)
    assert writers.allow(TAG, ALICE)
    assert not writers.allow(TAG, BOB)
    assert not writers.allow("/r/team-a/app/deep/_m/sha256:00", BOB)
    assert not writers.allow(TAG, None), "who did not sign is nobody in particular"
    assert writers.allow(OTHER, BOB)
    assert writers.allow("/r/team-a/_t/1.0", BOB), "team-a itself is not below team-a/"
    assert writers.allow("/elsewhere", None)


def test_of_several_rules_for_a_repository_one_is_enough() -> None:
    writers = Writers((Rule("*", frozenset({ALICE})), Rule("team-b/*", frozenset({BOB}))), repository_of=repository_of)
    assert writers.allow(OTHER, ALICE)
    assert writers.allow(OTHER, BOB)
    assert not writers.allow(TAG, BOB)


def test_required_signatures_are_those_of_signers() -> None:
    writers = Writers(require_signed=True, signers=frozenset({ALICE}), unsigned_heads=frozenset({b"head"}))
    assert writers.limits("/any", ALICE) == ()
    assert writers.limits("/any", EVE) == NEVER
    assert writers.limits("/any", None) == (frozenset({b"head"}),)
    assert Writers(require_signed=True).allow("/any", EVE)


def test_the_fingerprint_is_that_of_the_rules() -> None:
    assert team_a(ALICE, BOB).fingerprint() == team_a(BOB, ALICE).fingerprint()
    different = [
        EVERYBODY,
        team_a(ALICE),
        team_a(ALICE, former={BOB: set()}),
        team_a(ALICE, former={BOB: {b"head"}}),
        team_a(ALICE, require_signed=True),
        Writers(unsigned_heads=frozenset({b"head"})),
    ]
    assert len({writers.fingerprint() for writers in different}) == len(different)


# ---------------------------------------------------------------------- tables


class Tables:
    """One replica's tables under rules."""

    def __init__(self, writers: Writers = EVERYBODY) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(state.SCHEMA).split(";"):
            self.db.execute(statement)
        self.start(writers)

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        """The blocks are not asked for here."""

    def start(self, writers: Writers) -> None:
        self.writers = writers
        self.apply(Work(starting=True))

    def apply(self, work: Work, author: str | None = None) -> Outcome:
        signer = None if author is None else NamedSigner(author)
        self.db.execute("BEGIN")
        outcome = state.apply(self, work, self.db, writers=self.writers, signer=signer)
        self.db.execute("COMMIT")
        return outcome

    def write(self, author: str | None, *changes: Change) -> Node:
        return self.apply(Work(commits=[changes]), author).written[-1]

    def receive(self, *nodes: Node) -> Outcome:
        return self.apply(Work(arrivals=[parse_node(node.block) for node in nodes]))

    @property
    def names(self) -> dict[str, bytes]:
        return dict(self.db.execute("SELECT key, value FROM crdt_names").fetchall())

    def count(self) -> int:
        return int(self.db.execute("SELECT count(*) FROM crdt_elements WHERE withheld = 1").fetchone()[0])


@pytest.fixture
def tables() -> Iterator[Tables]:
    made = Tables()
    with closing(made.db):
        yield made


def test_what_a_stranger_sets_or_removes_is_withheld_and_the_rest_of_his_node_counts(tables: Tables) -> None:
    tables.start(team_a(ALICE))
    good = tables.write("alice", Put(TAG, b"good"))
    elements = (Element(TAG, b"evil"), Element(OTHER, b"fine"))
    evil = build_node(
        [good.multihash], Delta(elements, (Tombstone(TAG, block_id(good.multihash)),), 2), NamedSigner("eve")
    )
    outcome = tables.receive(evil)
    assert tables.names == {TAG: b"good", OTHER: b"fine"}
    assert outcome.withheld == [(evil.multihash, TAG)]
    assert tables.count() == 1


def test_unsigned_nodes_reached_from_a_trusted_head_do_not_count_when_signatures_are_required(tables: Tables) -> None:
    tables.start(Writers(require_signed=True, signers=frozenset({ALICE})))
    laundered = build_node((), Delta((Element("/a", b"evil"),), (), 1))
    others = build_node((), Delta((Element("/b", b"evil"),), (), 1), NamedSigner("eve"))
    links = [laundered.multihash, others.multihash]
    tables.receive(build_node(links, Delta((Element("/c", b"good"),), (), 2), NamedSigner("alice")), laundered, others)
    assert tables.names == {"/c": b"good"}
    assert len(tables.apply(Work()).heads) == 1, "they are part of the DAG like any node"


def test_other_rules_after_a_restart_are_applied_to_all_that_is_there(tables: Tables) -> None:
    tables.write("alice", Put(TAG, b"first"))
    tables.write("eve", Put(TAG, b"second"), Put(OTHER, b"1"))
    tables.write("eve", Delete(OTHER))
    tables.write(None, Put("/r/team-a/x/_t/1", b"of a Go replica"))
    everything = {TAG: b"second", "/r/team-a/x/_t/1": b"of a Go replica"}
    assert tables.names == everything
    tables.start(team_a(ALICE))
    assert tables.names == {TAG: b"first"}
    assert tables.count() == 2
    tables.start(Writers((Rule("team-b/*", frozenset({ALICE})),), repository_of=repository_of))
    assert tables.names == everything, "what eve set and removed in team-b counts no more, what she did in team-a does"
    tables.start(EVERYBODY)
    assert tables.names == everything
    assert tables.count() == 0


def test_the_removal_of_a_writer_wins_over_what_it_writes_at_the_same_time(tables: Tables) -> None:
    before = tables.write("eve", Put(TAG, b"while she was one of us"), Put("/r/team-a/app/_t/2", b"kept"))
    beside = build_node([before.multihash], Delta((Element(TAG, b"beside"),), (), 2), NamedSigner("eve"))
    cut = tables.write("alice", Put(OTHER, b"1"))
    backdated = build_node((), Delta((Element("/r/team-a/app/_t/3", b"backdated"),), (), 1), NamedSigner("eve"))
    after = build_node([cut.multihash], Delta((Element(TAG, b"after"),), (), 9), NamedSigner("eve"))
    rules = team_a(ALICE, former={EVE: {cut.multihash}})
    kept = {TAG: b"while she was one of us", "/r/team-a/app/_t/2": b"kept", OTHER: b"1"}
    tables.start(rules)
    tables.receive(beside, backdated, after)
    assert tables.names == kept
    for order in ([before, beside, cut, backdated, after], [after, cut, beside, backdated, before]):
        newcomer = Tables(rules)
        with closing(newcomer.db):
            for one in order:
                newcomer.receive(one)
            assert newcomer.names == kept, "whatever the order in which a newcomer gets them"
    tables.start(team_a(ALICE, former={EVE: set()}))
    assert tables.names == {OTHER: b"1"}, "without heads nothing of hers is left"


def test_a_deletion_takes_withheld_versions_with_it(tables: Tables) -> None:
    tables.start(team_a(ALICE))
    tables.write("alice", Put(TAG, b"good"))
    tables.receive(build_node((), Delta((Element(TAG, b"evil"),), (), 1), NamedSigner("eve")))
    tables.write("alice", Delete(TAG))
    tables.start(EVERYBODY)
    assert tables.names == {}, "nothing deleted comes back with other rules"


# ------------------------------------------------------------------ any history

AUTHORS = (None, "alice", "bob", "eve")
KEYS = (TAG, OTHER, "/r/team-a/app/_t/2", "/elsewhere")


@st.composite
def dags(draw: Any) -> list[Node]:
    nodes: list[Node] = []
    for number in range(draw(st.integers(1, 9))):
        below = draw(st.lists(st.sampled_from(nodes), max_size=2, unique=True)) if nodes else []
        key = draw(st.sampled_from(KEYS))
        removed = draw(st.sampled_from(nodes)) if nodes and draw(st.booleans()) else None
        delta = Delta(
            () if removed else (Element(key, b"%d" % number),),
            (Tombstone(key, block_id(removed.multihash)),) if removed else (),
            1 + max((node.delta.priority for node in below), default=0),
        )
        author = draw(st.sampled_from(AUTHORS))
        links = [node.multihash for node in below]
        nodes.append(build_node(links, delta, None if author is None else NamedSigner(author)))
    return nodes


def ancestors(heads: frozenset[bytes], nodes: dict[bytes, Node]) -> set[bytes]:
    found: set[bytes] = set()
    missing = [head for head in heads if head in nodes]
    while missing:
        head = missing.pop()
        if head not in found:
            found.add(head)
            missing += nodes[head].links
    return found


def names_under(writers: Writers, nodes: Sequence[Node]) -> dict[str, bytes]:
    """What the rules define."""
    by_multihash = {node.multihash: node for node in nodes}

    def counts(key: str, node: Node) -> bool:
        return all(node.multihash in ancestors(heads, by_multihash) for heads in writers.limits(key, node.author))

    removed = {(stone.key, stone.id) for node in nodes for stone in node.delta.tombstones if counts(stone.key, node)}
    best: dict[str, tuple[int, bytes]] = {}
    for node in nodes:
        for element in node.delta.elements:
            pair = (node.delta.priority, element.value)
            if counts(element.key, node) and (element.key, block_id(node.multihash)) not in removed:
                best[element.key] = max(pair, best.get(element.key, pair))
    return {key: value for key, (_, value) in best.items()}


@settings(max_examples=60, deadline=None)
@given(dags(), st.randoms(use_true_random=False), st.data())
def test_names_are_what_the_rules_define_in_any_order_and_after_any_change_of_rules(
    nodes: list[Node], rng: Random, data: st.DataObject
) -> None:
    def cut() -> set[bytes]:
        return {data.draw(st.sampled_from(nodes)).multihash for _ in range(data.draw(st.integers(0, 2)))}

    rules = [
        EVERYBODY,
        team_a(ALICE, former={EVE: cut()}),
        Writers(
            (Rule("team-*", frozenset({BOB}), ((EVE, frozenset(cut())),)),),
            require_signed=True,
            signers=frozenset({ALICE, BOB, EVE}),
            unsigned_heads=frozenset(cut()),
            repository_of=repository_of,
        ),
    ]
    first, second = data.draw(st.permutations(rules))[:2]
    tables = Tables(first)
    with closing(tables.db):
        shuffled = list({node.multihash: node for node in nodes}.values())
        rng.shuffle(shuffled)
        middle = len(shuffled) // 2
        tables.receive(*shuffled[:middle])
        tables.receive(*shuffled[middle:])
        assert tables.names == names_under(first, nodes)
        tables.start(second)
        assert tables.names == names_under(second, nodes)


# --------------------------------------------------------------------- replicas


async def test_a_replica_refuses_its_own_writes_where_it_is_no_writer(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    swarm = ReplicaSwarm(tmp_path, signed=True)
    rules = ReplicaSettings(writers=team_a(ALICE))
    async with swarm.open("alice", rules) as alice, swarm.open("bob", rules) as bob:
        with pytest.raises(Denied):
            await bob.commit([Put(OTHER, b"1"), Put(TAG, b"evil")])
        assert bob.get(OTHER) is None, "all or nothing"
        await bob.commit([Put(OTHER, b"1")])
        await alice.commit([Put(TAG, b"good")])
        await wait_equal(alice, bob)
        assert alice.scan("/") == bob.scan("/") == [(TAG, b"good"), (OTHER, b"1")]


async def test_a_member_without_rules_cannot_repoint_a_tag_for_those_with_rules(
    tmp_path: Path, autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    swarm = ReplicaSwarm(tmp_path, signed=True)
    async with swarm.open("alice", ReplicaSettings(writers=team_a(ALICE))) as alice, swarm.open("eve") as eve:
        await alice.commit([Put(TAG, b"good")])
        await wait_equal(alice, eve)
        heads = await eve.commit([Put(TAG, b"evil")])
        await wait_equal(alice, eve)
        await trio.sleep(1)
        assert eve.get(TAG) == b"evil"
        assert alice.get(TAG) == b"good"
        assert alice.withheld() == [(TAG, heads[0], EVE)]
        assert alice.status().withheld == 1
    assert "its author may not" in caplog.text

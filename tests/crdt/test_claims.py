"""A checkpoint in the tables: right at once, right all the time the history comes, and nothing left of it after."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.crdt import state
from ipfsreg.crdt.checkpoint import (
    ClaimedElement,
    Header,
    decode_piece,
    elements_in,
    encode_elements,
    encode_nodes,
)
from ipfsreg.crdt.checkpointing import Making
from ipfsreg.crdt.claims import DROPPED, LOADING, SETTLED, SPEAKING, Claim, Loading
from ipfsreg.crdt.delta import Delta, Element, Node, Tombstone, block_id, build_node, parse_node
from ipfsreg.crdt.interface import Delete, KeyChanged, Put
from ipfsreg.crdt.merge import state_of
from ipfsreg.crdt.state import Outcome, Work
from ipfsreg.crdt.writers import EVERYBODY, Rule, Writers
from ipfsreg.ipld.block import Block
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import NamedSigner

RULES = bytes(32)
KEYS = ("/k", "/l", "/m")


class Tables:
    """One replica's tables, and the blocks that were put beside them."""

    def __init__(self, writers: Writers = EVERYBODY) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(state.SCHEMA).split(";"):
            self.db.execute(statement)
        self.blocks: dict[bytes, Block] = {}
        self.writers = writers

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        self.blocks.update((block.cid.multihash, block) for block in blocks)

    def step(self, work: Work, author: str | None = None) -> Outcome:
        """One transaction."""
        signer = None if author is None else NamedSigner(author)
        self.db.execute("BEGIN")
        outcome = state.apply(self, work, self.db, writers=self.writers, signer=signer)
        self.db.execute("COMMIT")
        return outcome

    def apply(self, work: Work, author: str | None = None) -> Outcome:
        """As many transactions as it takes."""
        outcome = self.step(work, author)
        while outcome.closing_left:
            more = self.step(Work())
            outcome.closing_left = more.closing_left
            outcome.changes += more.changes
        return outcome

    def receive(self, *nodes: Node) -> Outcome:
        return self.apply(Work(arrivals=[parse_node(one.block) for one in nodes]))

    def write(self, *changes: Put | Delete, author: str | None = None) -> Node:
        return self.apply(Work(commits=[changes]), author).written[-1]

    @property
    def names(self) -> dict[str, bytes]:
        return dict(self.db.execute("SELECT key, value FROM crdt_names").fetchall())

    @property
    def checkpoint(self) -> tuple[int, int]:
        """State of the last checkpoint, and for how many keys it was wrong."""
        row: tuple[int, int] = self.db.execute(
            "SELECT state, differing FROM crdt_checkpoints ORDER BY number DESC"
        ).fetchone()
        return row

    def content(self) -> dict[str, list[tuple[object, ...]]]:
        """All that is known, by multihashes instead of numbers."""
        queries = {
            "elements": "SELECT key, e.priority, multihash, value, withheld FROM crdt_elements AS e"
            " JOIN crdt_nodes ON number = node",
            "tombstones": "SELECT key, one.multihash, two.multihash, withheld FROM crdt_tombstones"
            " JOIN crdt_nodes AS one ON one.number = node JOIN crdt_nodes AS two ON two.number = by",
            "names": "SELECT key, priority, value FROM crdt_names",
            "nodes": "SELECT multihash, state, priority, height, waiting, merged, dag, fault, author FROM crdt_nodes",
            "heads": "SELECT multihash FROM crdt_heads JOIN crdt_nodes ON number = node",
            "links": "SELECT one.multihash, two.multihash FROM crdt_links JOIN crdt_nodes AS one ON one.number = parent"
            " JOIN crdt_nodes AS two ON two.number = child",
            "early": "SELECT * FROM crdt_early",
            "held": "SELECT * FROM crdt_held",
            "waits": "SELECT * FROM crdt_waits",
            "tips": "SELECT * FROM crdt_tips",
            "counts": "SELECT * FROM crdt_counts",
        }
        return {name: sorted(self.db.execute(query).fetchall(), key=repr) for name, query in queries.items()}


@pytest.fixture
def alice() -> Iterator[Tables]:
    made = Tables()
    with closing(made.db):
        yield made


@pytest.fixture
def bob() -> Iterator[Tables]:
    made = Tables()
    with closing(made.db):
        yield made


def claims_of(tables: Tables, signer: str = "alice", *, everything: bool = False) -> list[Claim]:
    """The checkpoint of *tables*, step by step."""
    making = Making(tables.db, "names", RULES, least_nodes=1, now_us=1)
    assert making.header is not None
    loading = Loading(peer_of(signer), everything)
    pieces = [Claim(loading, piece=decode_piece(piece)) for piece in making.pieces()]
    return [Claim(loading, header=making.header), *pieces, Claim(loading, proof=b"signed")]


def take(tables: Tables, claims: Sequence[Claim]) -> list[KeyChanged]:
    changes: list[KeyChanged] = []
    for claim in claims:
        changes += tables.step(Work(claims=[claim])).changes
    return changes


def forged(claims: Sequence[Claim], change: Callable[[list[ClaimedElement]], list[ClaimedElement]]) -> list[Claim]:
    """The same checkpoint with other elements."""
    nodes = next(claim.piece.nodes for claim in claims if claim.piece is not None and claim.piece.nodes is not None)
    elements = [
        element
        for claim in claims
        if claim.piece is not None and claim.piece.elements is not None
        for element in elements_in(claim.piece.elements, 1000)
    ]
    loading = claims[0].loading
    return [
        claims[0],
        Claim(
            loading,
            piece=decode_piece(
                encode_nodes([b"\x12\x20" + bytes(nodes[i : i + 32]) for i in range(0, len(nodes), 32)])
            ),
        ),
        Claim(loading, piece=decode_piece(encode_elements(change(elements)))),
        claims[-1],
    ]


@st.composite
def histories(draw: st.DrawFn) -> tuple[Tables, list[Node]]:
    """A replica that has merged what three wrote beside each other, and all their nodes."""
    rng = Random(draw(st.integers(0, 2**32)))
    replicas = [Tables() for _ in range(3)]
    nodes: dict[bytes, Node] = {}
    for _ in range(draw(st.integers(2, 16))):
        author = rng.choice(replicas)
        if rng.random() < 0.3:
            author.receive(*nodes.values())
            continue
        keys = rng.sample(KEYS, rng.randint(1, 2))
        changes = [Put(key, rng.randbytes(rng.randint(1, 2))) if rng.random() < 0.6 else Delete(key) for key in keys]
        for written in author.apply(Work(commits=[changes])).written:
            nodes[written.multihash] = parse_node(written.block)
    if not nodes:
        nodes[b""] = build_node([], Delta((Element("/k", b"1"),), (), 1))
    replicas[0].receive(*nodes.values())
    for other in replicas[1:]:
        other.db.close()
    return replicas[0], list(nodes.values())


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_names_are_right_from_the_checkpoint_on_and_in_the_end_it_is_as_if_there_had_been_none(
    history: tuple[Tables, list[Node]], seed: int
) -> None:
    rng = Random(seed)
    signer, nodes = history
    joiner, plain = Tables(), Tables()
    take(joiner, claims_of(signer))
    assert joiner.names == signer.names
    order = rng.sample(nodes, len(nodes))
    for node in order:
        outcome = joiner.apply(Work(arrivals=[parse_node(node.block)]))
        assert joiner.names == signer.names
        assert outcome.changes == []
        plain.receive(node)
    assert joiner.checkpoint == (SETTLED, 0)
    assert joiner.content() == plain.content()
    for tables in (signer, joiner, plain):
        tables.db.close()


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_what_is_written_while_the_history_comes_counts_as_if_it_had_been_here(
    history: tuple[Tables, list[Node]], seed: int
) -> None:
    rng = Random(seed)
    signer, nodes = history
    joiner = Tables()
    claims = claims_of(signer)
    arrivals = rng.sample(nodes, len(nodes))
    expected = dict(signer.names)
    written: list[Node] = []
    take(joiner, claims)
    while arrivals or len(written) < 3:
        if rng.random() < 0.3 or not arrivals:
            key = rng.choice(KEYS)
            change = Put(key, b"own %d" % len(written)) if rng.random() < 0.6 else Delete(key)
            written += joiner.apply(Work(commits=[[change]])).written
            if isinstance(change, Put):
                expected[key] = change.value
            else:
                expected.pop(key, None)
            if not arrivals and rng.random() < 0.5:
                break
        else:
            joiner.receive(arrivals.pop())
        assert joiner.names == expected
    everything = [*nodes, *(parse_node(one.block) for one in written)]
    assert joiner.names == state_of(everything) == expected
    assert joiner.checkpoint == (SETTLED, 0)
    signer.receive(*written)
    assert signer.names == expected, "also for those who had the history from the first"
    for tables in (signer, joiner):
        tables.db.close()


@settings(max_examples=150, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_a_lying_checkpoint_leaves_nothing_behind(history: tuple[Tables, list[Node]], seed: int) -> None:
    rng = Random(seed)
    signer, nodes = history

    def lie(elements: list[ClaimedElement]) -> list[ClaimedElement]:
        kept = [
            (key, priority, node, rng.choice([value, b"\xff lie"]), withheld)
            for key, priority, node, value, withheld in elements
            if rng.random() < 0.7
        ]
        kept += [
            (key, rng.randint(1, 99), 0, b"lie", rng.random() < 0.3) for key in ("/k", "/never") if rng.random() < 0.5
        ]
        return sorted({one[:3]: one for one in kept}.values())

    joiner, plain = Tables(), Tables()
    take(joiner, forged(claims_of(signer), lie))
    told = joiner.names
    joiner.receive(*rng.sample(nodes, len(nodes)))
    plain.receive(*nodes)
    assert joiner.names == plain.names
    assert joiner.content() == plain.content()
    ended, differing = joiner.checkpoint
    assert ended == SETTLED
    assert differing or told == plain.names
    for tables in (signer, joiner, plain):
        tables.db.close()


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 2**32), st.integers(0, 8))
def test_dropped_at_any_moment_it_leaves_what_the_nodes_say(
    history: tuple[Tables, list[Node]], seed: int, moment: int
) -> None:
    rng = Random(seed)
    signer, nodes = history
    joiner, plain = Tables(), Tables()
    claims = claims_of(signer)
    take(joiner, claims[:moment])
    some = rng.sample(nodes, rng.randint(0, len(nodes) - 1)) if moment >= len(claims) else []
    joiner.receive(*some)
    plain.receive(*some)
    if moment:
        # What a restart does with one that was not taken in wholly.
        work = Work(starting=True) if joiner.checkpoint[0] == LOADING else Work(claims=[Claim(None)])
        joiner.apply(work)
        assert joiner.checkpoint[0] in (DROPPED, SETTLED)
    assert joiner.names == plain.names
    joiner.receive(*nodes)
    plain.receive(*nodes)
    assert joiner.content() == plain.content()
    for tables in (signer, joiner, plain):
        tables.db.close()


# --------------------------------------------------------------------------- rules


def team(name: str, *peers: str) -> Rule:
    return Rule(f"{name}/*", frozenset(map(peer_of, peers)))


def ruled(*rules: Rule) -> Writers:
    return Writers(rules, repository_of=lambda key: key[1:].partition("/_")[0])


def signed(author: str, links: Sequence[Node], *elements: Element, tombstones: Sequence[Tombstone] = ()) -> Node:
    height = 1 + max((link.delta.priority for link in links), default=0)
    delta = Delta(tuple(elements), tuple(tombstones), height)
    return build_node([link.multihash for link in links], delta, NamedSigner(author))


def test_a_checkpoint_speaks_only_for_what_its_signer_may_write() -> None:
    rules = ruled(team("a", "alice"), team("b", "bob"))
    alice, joiner = Tables(rules), Tables(rules)
    first = signed("alice", [], Element("/a/x/_t/1", b"1"))
    second = signed("bob", [first], Element("/b/x/_t/1", b"1"), Element("/free/_t/1", b"1"))
    alice.receive(first, second)
    take(joiner, claims_of(alice))
    assert joiner.names == {"/a/x/_t/1": b"1", "/free/_t/1": b"1"}
    (whole,) = joiner.db.execute("SELECT whole FROM crdt_checkpoints").fetchone()
    assert not whole, "and so a node is not ready by it"
    joiner.receive(second)
    assert joiner.names == alice.names, "what it does not speak for comes with the nodes"
    joiner.receive(first)
    assert joiner.names == alice.names
    assert joiner.checkpoint == (SETTLED, 0)


def test_a_checkpoint_of_a_peer_that_is_trusted_for_everything_speaks_for_everything() -> None:
    rules = ruled(team("a", "alice"), team("b", "bob"))
    alice, joiner = Tables(rules), Tables(rules)
    alice.receive(signed("bob", [], Element("/b/x/_t/1", b"1")))
    take(joiner, claims_of(alice, everything=True))
    assert joiner.names == alice.names
    assert joiner.db.execute("SELECT whole FROM crdt_checkpoints").fetchone() == (1,)


def test_what_the_rules_withhold_is_claimed_as_withheld_and_can_be_deleted() -> None:
    rules = ruled(team("a", "alice"))
    alice, joiner = Tables(rules), Tables(rules)
    first = signed("alice", [], Element("/a/x/_t/1", b"1"))
    second = signed("mallory", [first], Element("/a/x/_t/1", b"2"))
    alice.receive(first, second)
    take(joiner, claims_of(alice))
    assert joiner.names == {"/a/x/_t/1": b"1"}
    removal = joiner.write(Delete("/a/x/_t/1"), author="alice")
    assert {one.id for one in removal.delta.tombstones} == {block_id(first.multihash), block_id(second.multihash)}
    joiner.receive(first, second)
    assert joiner.names == {}
    assert joiner.checkpoint == (SETTLED, 0)


def test_a_former_writer_counts_below_its_heads_without_a_gap() -> None:
    old = signed("mallory", [], Element("/a/x/_t/1", b"old"))
    middle = signed("alice", [old], Element("/a/x/_t/2", b"1"))
    top = signed("alice", [middle], Element("/a/x/_t/3", b"1"))
    rule = replace(team("a", "alice"), former=((peer_of("mallory"), frozenset({middle.multihash})),))
    alice, joiner = Tables(ruled(rule)), Tables(ruled(rule))
    alice.receive(old, middle, top)
    assert alice.names["/a/x/_t/1"] == b"old"
    take(joiner, claims_of(alice))
    for node in (top, old, middle):
        assert joiner.names == alice.names
        joiner.receive(node)
    assert joiner.names == alice.names
    assert joiner.checkpoint == (SETTLED, 0)


def test_other_rules_at_the_next_start_drop_it(alice: Tables, bob: Tables) -> None:
    node = alice.write(Put("/a/x/_t/1", b"1"), author="mallory")
    take(bob, claims_of(alice))
    assert bob.names == alice.names
    bob.writers = ruled(team("a", "alice"))
    bob.apply(Work(starting=True))
    assert bob.names == {}
    assert bob.checkpoint[0] == DROPPED
    bob.receive(node)
    assert bob.names == {}


# ------------------------------------------------------------------------- strange ones


def test_a_checkpoint_that_is_not_what_it_says_is_dropped(alice: Tables, bob: Tables) -> None:
    for number in range(3):
        alice.write(Put(f"/{number}", b"1"))
    header = claims_of(alice)[0].header
    assert header is not None
    loading = claims_of(alice)[0].loading
    strange: list[tuple[Header, list[bytes]]] = [
        (replace(header, nodes=2), []),
        (replace(header, nodes=4), []),
        (replace(header, heads=(b"\x12\x20" + bytes(32),)), []),
        (header, [encode_elements([("/k", 1, 3, b"v", False)])]),
        (header, [encode_elements([("k", 1, 0, b"v", False)])]),
        (header, [encode_elements([("/l", 1, 0, b"v", False), ("/k", 1, 0, b"v", False)])]),
    ]
    for changed, more in strange:
        claims = claims_of(alice)
        loading = claims[0].loading
        assert loading is not None
        take(
            bob,
            [
                Claim(loading, header=changed),
                *claims[1:-1],
                *(Claim(loading, piece=decode_piece(piece)) for piece in more),
                claims[-1],
            ],
        )
        bob.apply(Work())
        assert loading.failed, changed
        assert bob.checkpoint[0] == DROPPED
        assert bob.names == {}
    bob.receive(*(parse_node(build_node([], Delta((Element("/k", b"1"),), (), 1)).block),))
    take(bob, claims_of(alice))
    assert len(bob.names) == 4, "the next one is taken all the same"


def test_keys_of_later_pieces_come_behind_and_there_is_an_end_of_them(
    alice: Tables, bob: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice.write(Put("/a", b"1"), Put("/b", b"1"), Put("/c", b"1"))
    header, nodes, elements, last = forged(claims_of(alice), lambda given: given[1:])
    first = Claim(header.loading, piece=decode_piece(encode_elements([("/a", 1, 0, b"1", False)])))
    take(bob, [header, nodes, elements, first, last])
    assert bob.checkpoint == (DROPPED, 0)
    assert header.loading is not None
    assert header.loading.failed == "the key '/a' of a checkpoint is not in order"
    for limit in ("MAX_ELEMENTS_IN_ALL", "MAX_BYTES_IN_ALL"):
        with monkeypatch.context() as patched:
            patched.setattr(f"ipfsreg.crdt.claims.{limit}", 2)
            header, *rest = claims_of(alice)
            take(bob, [header, *rest])
        assert (bob.checkpoint, bob.names) == ((DROPPED, 0), {})
        assert header.loading is not None
        assert header.loading.failed is not None
        assert "3 elements or more, 9 bytes" in header.loading.failed


@pytest.mark.parametrize("broken_off", [True, False])
@pytest.mark.parametrize("comes_later", [True, False])
def test_of_a_node_that_is_here_it_claims_nothing(
    alice: Tables, bob: Tables, comes_later: bool, broken_off: bool
) -> None:
    node = alice.write(Put("/a", b"mine"), Put("/b", b"mine"))
    header, nodes, elements, last = forged(
        claims_of(alice), lambda given: [(key, priority, at, b"zzz", no) for key, priority, at, _, no in given]
    )
    if not comes_later:
        bob.receive(node)
    take(bob, [header, nodes])
    if comes_later:
        assert bob.checkpoint[0] == LOADING
        bob.receive(node)
    mine = {"/a": b"mine", "/b": b"mine"}
    assert take(bob, [elements]) == []
    assert bob.names == mine
    bob.apply(Work(claims=[Claim(None) if broken_off else last]))
    assert (bob.names, bob.checkpoint) == (mine, (DROPPED, 0))
    bob.apply(Work(starting=True))
    assert bob.names == mine
    assert bob.content() == alice.content()


def test_a_replica_that_is_not_whole_offers_none(alice: Tables, bob: Tables) -> None:
    assert Making(alice.db, "names", RULES, least_nodes=1, now_us=1).header is None, "nothing at all"
    first, second = alice.write(Put("/a", b"1")), alice.write(Put("/b", b"1"))
    assert Making(alice.db, "names", RULES, least_nodes=3, now_us=1).header is None, "too little"
    take(bob, claims_of(alice))
    assert bob.checkpoint[0] == SPEAKING
    assert Making(bob.db, "names", RULES, least_nodes=0, now_us=1).header is None, "hearsay"
    bob.receive(first, second)
    assert claims_of(bob)[0].header == claims_of(alice)[0].header


def test_what_counts_early_at_the_signer_is_not_in_its_checkpoint(alice: Tables, bob: Tables) -> None:
    first = alice.write(Put("/a", b"1"), Put("/b", b"1"))
    missing = build_node([first.multihash], Delta((Element("/c", b"1"),), (), 2))
    early = build_node(
        [missing.multihash], Delta((Element("/b", b"2"),), (Tombstone("/a", block_id(first.multihash)),), 3)
    )
    alice.receive(early)
    assert alice.names == {"/b": b"2"}
    take(bob, claims_of(alice))
    assert bob.names == {"/a": b"1", "/b": b"1"}


def test_a_higher_write_of_ours_wins_over_what_is_claimed(alice: Tables, bob: Tables) -> None:
    for number in range(50):
        alice.write(Put("/k", b"%d" % number))
    take(bob, claims_of(alice))
    written = bob.write(Put("/k", b"ours"))
    assert written.delta.priority == 51
    assert len(written.delta.tombstones) == 50, "all versions it has seen, so that none comes back"
    bob.receive(*(parse_node(build_node([], Delta((Element("/x", b"1"),), (), 1)).block),))
    assert bob.names == {"/k": b"ours", "/x": b"1"}

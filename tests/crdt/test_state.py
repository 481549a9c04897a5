import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.crdt import state
from ipfsreg.crdt.delta import Delta, Element, Node, Tombstone, block_id, build_node, parse_node
from ipfsreg.crdt.interface import Delete, KeyChanged, Put
from ipfsreg.crdt.merge import PRIORITY_SLACK, heads_of, state_of
from ipfsreg.crdt.state import CLOSED, DELTA_BYTES, VOID, Outcome, VoidNode, Work
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block


class Tables:
    """One replica's tables, and the blocks that were put beside them."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(state.SCHEMA).split(";"):
            self.db.execute(statement)
        self.blocks: dict[bytes, Block] = {}

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        self.blocks.update((block.cid.multihash, block) for block in blocks)

    def apply(self, work: Work) -> Outcome:
        self.db.execute("BEGIN")
        outcome = state.apply(self, work, self.db)
        self.db.execute("COMMIT")
        while outcome.closing_left:
            more = self.apply(Work())
            outcome.closing_left = more.closing_left
            outcome.heads = more.heads
            outcome.changes += more.changes
            outcome.faults += more.faults
        return outcome

    def receive(self, *arrivals: state.Arrival) -> Outcome:
        return self.apply(Work(arrivals=arrivals))

    def write(self, *changes: Put | Delete) -> Node:
        return self.apply(Work(commits=[changes])).written[-1]

    @property
    def names(self) -> dict[str, bytes]:
        return dict(self.db.execute("SELECT key, value FROM crdt_names").fetchall())

    @property
    def heads(self) -> set[bytes]:
        return {mh for (mh,) in self.db.execute("SELECT multihash FROM crdt_heads JOIN crdt_nodes ON node = number")}

    @property
    def faults(self) -> set[bytes]:
        return {mh for (mh,) in self.db.execute("SELECT multihash FROM crdt_nodes WHERE fault IS NOT NULL")}

    def count(self, table: str) -> int:
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    def check_tidy(self) -> None:
        """With everything closed, nothing that serves walks is left, and the counter of names is right."""
        for table in ("crdt_early", "crdt_held", "crdt_waits", "crdt_tips"):
            assert self.count(table) == 0, table
        (names,) = self.db.execute("SELECT count FROM crdt_counts WHERE name = 'names'").fetchone()
        assert names == self.count("crdt_names")


@pytest.fixture
def tables() -> Iterator[Tables]:
    made = Tables()
    with closing(made.db):
        yield made


def node(links: Sequence[Node] = (), priority: int | None = None, **values: str) -> Node:
    """A node that sets /<name> to each value, parsed as if it came from a peer."""
    height = 1 + max((link.delta.priority for link in links), default=0)
    elements = tuple(Element(f"/{name}", value.encode()) for name, value in values.items())
    delta = Delta(elements, (), height if priority is None else priority)
    return parse_node(build_node([link.multihash for link in links], delta).block)


def removal(links: Sequence[Node], key: str, *removed: Node) -> Node:
    delta = Delta(
        (),
        tuple(Tombstone(key, block_id(one.multihash)) for one in removed),
        1 + max(link.delta.priority for link in links),
    )
    return parse_node(build_node([link.multihash for link in links], delta).block)


# ------------------------------------------------------------------- histories


@dataclass
class History:
    """What some replicas wrote, in an order in which it could have been written."""

    nodes: list[Node]


@st.composite
def histories(draw: st.DrawFn) -> History:
    """Random writes by three replicas that exchange what they have now and then, and liars among them."""
    rng = Random(draw(st.integers(0, 2**32)))
    replicas = [Tables() for _ in range(3)]
    nodes: dict[bytes, Node] = {}
    for _ in range(draw(st.integers(1, 14))):
        author = rng.choice(replicas)
        action = rng.random()
        if action < 0.25:
            author.receive(*nodes.values())
        elif action < 0.35:
            below = rng.sample(list(nodes.values()), min(len(nodes), rng.randint(0, 2)))
            liar = node(below, rng.choice([0, 1, 2, 3, 7, 2**30, 2**48, 2**48 + 1, 2**64 - 1]), k="lie")
            nodes[liar.multihash] = liar
        else:
            keys = rng.sample(["/k", "/l", "/m"], rng.randint(1, 2))
            changes = [
                Put(key, rng.randbytes(rng.randint(1, 2))) if rng.random() < 0.7 else Delete(key) for key in keys
            ]
            for written in author.apply(Work(commits=[changes])).written:
                nodes[written.multihash] = parse_node(written.block)
    for replica in replicas:
        replica.db.close()
    return History(list(nodes.values()))


@settings(max_examples=150, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_any_order_and_repetition_ends_in_the_state_the_formula_gives(history: History, rng: Random) -> None:
    expected = state_of(history.nodes)
    for _ in range(3):
        tables = Tables()
        deliveries = history.nodes + rng.choices(history.nodes, k=len(history.nodes)) if history.nodes else []
        rng.shuffle(deliveries)
        shown: dict[str, bytes] = {}
        while deliveries:
            size = rng.randint(1, 4)
            outcome = tables.receive(*deliveries[:size])
            deliveries = deliveries[size:]
            for change in outcome.changes:
                assert shown.get(change.key) == change.old, "each change begins where the last one ended"
                if change.new is None:
                    del shown[change.key]
                else:
                    shown[change.key] = change.new
        assert tables.names == expected == shown
        assert tables.heads == heads_of(history.nodes)
        tables.check_tidy()
        tables.db.close()


@settings(max_examples=50, deadline=None)
@given(histories(), st.randoms(use_true_random=False))
def test_with_some_nodes_missing_the_heads_are_those_of_what_is_whole(history: History, rng: Random) -> None:
    tables = Tables()
    missing = {one.multihash for one in history.nodes if rng.random() < 0.3}
    here = [one for one in history.nodes if one.multihash not in missing]
    rng.shuffle(here)
    for one in here:
        tables.receive(one)
    whole: dict[bytes, Node] = {}
    for one in history.nodes:
        if one.multihash not in missing and all(link in whole for link in one.links):
            whole[one.multihash] = one
    assert tables.heads == heads_of(list(whole.values()))
    tables.receive(*(one for one in history.nodes if one.multihash in missing))
    assert tables.names == state_of(history.nodes)
    tables.check_tidy()
    tables.db.close()


# ------------------------------------------------------------------------ cost


def steps_of(tables: Tables, *changes: Put | Delete) -> int:
    """What SQLite does for one write, in hundreds of its instructions."""
    steps = 0

    def count() -> None:
        nonlocal steps
        steps += 1

    tables.db.set_progress_handler(count, 100)
    tables.write(*changes)
    tables.db.set_progress_handler(None, 0)
    return steps


def test_a_write_costs_the_same_however_many_nodes_there_are(tables: Tables) -> None:
    tables.write(Put("/k", b"1"))
    alone = steps_of(tables, Put("/k", b"2")), steps_of(tables, Delete("/k"))
    below: list[Node] = []
    for number in range(3000):
        below = [node(below, k=str(number))]
        tables.receive(*below)
    tables.receive(removal(below, "/k", *(node(priority=7, x=str(number)) for number in range(3000))))
    tables.write(Put("/other", b"1"))
    after = steps_of(tables, Put("/other", b"2")), steps_of(tables, Delete("/other"))
    assert max(after) < 2 * max(alone) + 5


def test_removals_of_what_nobody_saw_remove_nothing_and_cost_their_size(tables: Tables) -> None:
    kept = tables.write(Put("/k", b"kept"), Put("/l", b"kept"))
    stones = tuple(
        Tombstone("/k", block_id(b"\x12\x20" + number.to_bytes(32, "big"))) for number in range(DELTA_BYTES // 64)
    )
    flood = parse_node(build_node([kept.multihash], Delta((), stones, 2)).block)
    assert len(flood.block.data) > DELTA_BYTES
    tables.receive(flood)
    assert tables.names == {"/k": b"kept", "/l": b"kept"}
    assert tables.count("crdt_tombstones") == len(stones)
    assert tables.apply(Work()).tips_left == 0, "nobody goes to fetch what only a removal has spoken of"
    assert not tables.db.execute("SELECT 1 FROM crdt_nodes WHERE state = 1").fetchall()
    assert steps_of(tables, Put("/l", b"after")) < 50
    tables.write(Delete("/k"))
    assert tables.names == {"/l": b"after"}
    tables.check_tidy()


# ---------------------------------------------------------------------- merge


def test_equal_priorities_are_settled_by_the_greater_value_on_every_replica(tables: Tables) -> None:
    for value in (b"\x01", b"\x02", b"\x01\xff\xff"):
        tables.receive(parse_node(build_node([], Delta((Element("/k", value),), (), 1)).block))
    assert tables.names == {"/k": b"\x02"}
    assert len(tables.heads) == 3


def test_an_addition_beside_a_removal_survives(tables: Tables) -> None:
    first = node(k="v1")
    tables.receive(first, removal([first], "/k", first), node([first], k="v2"))
    assert tables.names == {"/k": b"v2"}


def test_removing_the_winner_shows_the_best_of_the_rest(tables: Tables) -> None:
    low, base = node(k="low"), node(x="1")
    high = node([base], k="high")
    tables.receive(low, base, high)
    assert tables.names["/k"] == b"high"
    outcome = tables.receive(removal([high], "/k", high))
    assert tables.names["/k"] == b"low"
    assert outcome.changes == [KeyChanged("/k", b"high", b"low")]


def test_what_was_removed_before_it_came_never_shows(tables: Tables) -> None:
    base, other = node(x="1"), node(k="v")
    outcome = tables.receive(base, removal([base], "/k", other), other)
    assert tables.names == {"/x": b"1"}
    assert [change.key for change in outcome.changes] == ["/x"]


def test_of_one_key_twice_in_a_delta_the_greatest_value_counts(tables: Tables) -> None:
    for values in ([b"2", b"1"], [b"1", b"2"]):
        delta = Delta(tuple(Element(f"/{values[0].decode()}", value) for value in values), (), 1)
        tables.receive(parse_node(build_node([], delta).block))
    assert tables.names == {"/1": b"2", "/2": b"2"}


def test_news_are_one_for_each_key_however_much_happened_to_it(tables: Tables) -> None:
    first = node(k="1", l="1")
    second = node([first], k="2")
    outcome = tables.receive(first, second, removal([second], "/l", first))
    assert outcome.changes == [KeyChanged("/k", None, b"2")]


# -------------------------------------------------------------------- writing


def test_a_removal_names_what_is_live_here_and_nothing_twice(tables: Tables) -> None:
    first, second = tables.write(Put("/a", b"1")), tables.write(Put("/a", b"2"))
    gone = tables.write(Delete("/a"))
    assert {tombstone.id for tombstone in gone.delta.tombstones} == {
        block_id(first.multihash),
        block_id(second.multihash),
    }
    assert tables.apply(Work(commits=[[Delete("/a")]])).written == []
    third = tables.write(Put("/a", b"3"))
    again = tables.write(Delete("/a"))
    assert [tombstone.id for tombstone in again.delta.tombstones] == [block_id(third.multihash)]


def test_a_write_links_to_all_heads_and_is_one_higher(tables: Tables) -> None:
    tables.receive(node(a="1"), node([node(b="0")], b="1"), node(b="0"))
    heads = tables.heads
    written = tables.write(Put("/c", b"1"))
    assert set(written.links) == heads
    assert list(written.links) == sorted(written.links)
    assert written.delta.priority == 3
    assert tables.heads == {written.multihash}


def test_writes_without_a_key_in_common_share_a_delta_and_others_do_not(tables: Tables) -> None:
    outcome = tables.apply(Work(commits=[[Put("/a", b"1")], [Put("/b", b"1")], [Put("/a", b"2")], [Delete("/b")]]))
    assert [len(written.delta.elements) for written in outcome.written] == [2, 1]
    assert [len(written.delta.tombstones) for written in outcome.written] == [0, 1]
    assert tables.names == {"/a": b"2"}
    assert outcome.changes == [KeyChanged("/a", None, b"2")]


def test_a_delta_that_is_full_is_followed_by_another(tables: Tables) -> None:
    commits = [[Put(f"/{number}", bytes(DELTA_BYTES // 3))] for number in range(5)]
    outcome = tables.apply(Work(commits=commits))
    assert [len(written.delta.elements) for written in outcome.written] == [2, 2, 1]
    assert len(tables.names) == 5


def test_removing_more_versions_than_a_block_can_name_takes_several_nodes(tables: Tables) -> None:
    key = "/" + "k" * 900
    versions = [Delta((Element(key, b"%d" % number),), (), 1) for number in range(2500)]
    tables.receive(*(parse_node(build_node([], delta).block) for delta in versions))
    outcome = tables.apply(Work(commits=[[Delete(key), Put("/other", b"1")]]))
    assert tables.names == {"/other": b"1"}
    assert sum(len(written.delta.tombstones) for written in outcome.written) == 2500
    assert len(outcome.written) > 3
    assert all(len(written.block.data) < MAX_BLOCK_BYTES for written in outcome.written)


def test_one_node_in_64_links_far_back_as_well(tables: Tables) -> None:
    chain = [tables.write(Put("/a", b"%d" % number)) for number in range(1, 194)]
    height = {written.multihash: written.delta.priority for written in chain}
    links = {height[written.multihash]: sorted(height[link] for link in written.links) for written in chain}
    assert {at: below for at, below in links.items() if below != [at - 1] and at > 1} == {
        64: [32, 63],
        128: [64, 127],
        192: [128, 191],
    }
    fresh = Tables()
    fresh.receive(*reversed(chain))
    assert (fresh.heads, fresh.names) == (tables.heads, tables.names)
    fresh.check_tidy()
    fresh.db.close()


def test_many_heads_are_joined_by_a_node_without_content(tables: Tables) -> None:
    tables.receive(*(node(k=str(number)) for number in range(9)))
    (written,) = tables.apply(Work(join_heads=True)).written
    assert len(written.links) == 9
    assert written.delta == Delta((), (), 2)
    assert tables.heads == {written.multihash}
    assert tables.apply(Work(join_heads=True)).written == [], "there is nothing left to join"


# -------------------------------------------------------------------- walking


def test_an_announced_node_is_wanted_until_all_below_it_is_here(tables: Tables) -> None:
    low = node(a="1")
    middle = node([low], b="1")
    tip = node([middle], c="1")
    assert tables.apply(Work(tips=[tip.multihash])).tips_left == 1
    assert tables.receive(tip, middle).tips_left == 1
    assert tables.heads == set()
    assert tables.receive(low).tips_left == 0
    assert tables.heads == {tip.multihash}
    assert tables.apply(Work(tips=[tip.multihash, low.multihash])).tips_left == 0


def test_fresh_names_are_readable_before_history_is_complete(tables: Tables) -> None:
    low = node(a="1", b="old")
    tip = node([low], b="new")
    outcome = tables.receive(tip)
    assert tables.names == {"/b": b"new"}
    assert outcome.heads == []
    outcome = tables.receive(low)
    assert outcome.changes == [KeyChanged("/a", None, b"1")]


def test_a_write_while_catching_up_links_to_what_is_whole_but_is_not_older_than_what_was_seen(tables: Tables) -> None:
    ours = tables.write(Put("/mine", b"1"))
    far = node([node(x="1")], 500, k="theirs")
    tables.apply(Work(tips=[far.multihash], arrivals=[far]))
    written = tables.write(Put("/k", b"ours"))
    assert set(written.links) == {ours.multihash}
    assert written.delta.priority == 501
    assert tables.names["/k"] == b"ours"
    other = Tables()
    outcome = other.receive(written, ours)
    assert outcome.faults == []
    assert other.names["/k"] == b"ours"
    other.db.close()


def test_a_long_chain_is_closed_in_several_transactions(tables: Tables) -> None:
    chain = [node(k="0")]
    for number in range(1, 2500):
        chain.append(node([chain[-1]], k=str(number)))
    for start in range(2499, 0, -500):
        tables.receive(*reversed(chain[max(1, start - 499) : start + 1]))
    tables.db.execute("BEGIN")
    outcome = state.apply(tables, Work(arrivals=[chain[0]]), tables.db)
    tables.db.execute("COMMIT")
    assert outcome.closing_left
    assert tables.heads not in ({chain[-1].multihash}, set()), "what is closed can be built upon"
    tables.apply(Work())
    assert tables.heads == {chain[-1].multihash}
    assert tables.names == {"/k": b"2499"}
    tables.check_tidy()


# ----------------------------------------------------------------- quarantine


@pytest.mark.parametrize("priority", [0, 1, 2**48, 2**48 + 1, 2**63, 2**64 - 1, 2 + PRIORITY_SLACK + 1])
def test_a_node_with_an_impossible_priority_is_part_of_the_dag_and_does_not_count(
    tables: Tables, priority: int
) -> None:
    base = node(k="v1")
    liar = node([base], priority, k="evil", e="1")
    outcome = tables.receive(liar, base)
    assert [multihash for multihash, _ in outcome.faults] == [liar.multihash]
    assert tables.names == {"/k": b"v1"}
    assert tables.heads == {liar.multihash}
    assert liar.multihash in tables.blocks, "peers need it to see the DAG whole"
    honest = tables.write(Put("/k", b"v2"))
    assert honest.delta.priority == 3, "a liar does not lift those who build on it"
    assert tables.names == {"/k": b"v2"}
    tables.check_tidy()


def test_what_counted_early_is_taken_back_when_it_turns_out_to_be_wrong(tables: Tables) -> None:
    base, victim = node(k="v1"), node(x="1")
    delta = Delta((Element("/k", b"evil"),), (Tombstone("/x", block_id(victim.multihash)),), 5)
    child = node([base], 7, k="child")
    liar = parse_node(build_node([child.multihash], delta).block)
    tables.receive(victim)
    outcome = tables.receive(liar)
    assert tables.names == {"/k": b"evil"}, "plausible as long as its child is not here"
    outcome = tables.receive(child, base)
    assert tables.names == {"/k": b"child", "/x": b"1"}
    assert [multihash for multihash, _ in outcome.faults] == [liar.multihash]
    assert {change.key: (change.old, change.new) for change in outcome.changes} == {
        "/k": (b"evil", b"child"),
        "/x": (None, b"1"),
    }
    tables.check_tidy()


def test_a_priority_far_above_what_is_known_does_not_count_before_it_is_proved(tables: Tables) -> None:
    below = node(a="1")
    tables.receive(node([below], 2**40, k="evil"))
    assert tables.names == {}
    tables.receive(below)
    assert tables.names == {"/a": b"1"}
    tables.check_tidy()


def test_a_block_that_is_no_node_stands_for_itself_and_holds_up_nobody(tables: Tables) -> None:
    void = Block.of(b"\x0a\x02\xff\xff", 0x70).cid.multihash
    tip = parse_node(build_node([void], Delta((Element("/a", b"1"),), (), 1)).block)
    outcome = tables.apply(Work(tips=[tip.multihash, void], arrivals=[tip, VoidNode(void, "nonsense")]))
    assert outcome.tips_left == 0
    assert outcome.faults == [(void, "nonsense")]
    assert tables.heads == {tip.multihash}
    assert tables.names == {"/a": b"1"}
    states = dict(tables.db.execute("SELECT multihash, state FROM crdt_nodes").fetchall())
    assert states == {void: VOID, tip.multihash: CLOSED}


def test_keys_of_a_node_that_breaks_a_rule_are_dropped_and_those_below_it_count(tables: Tables) -> None:
    base = node(a="1")
    bad = parse_node(build_node([base.multihash], Delta((Element("/../h/x", b"1"), Element("/b", b"1")), (), 2)).block)
    tables.receive(bad, base)
    assert tables.names == {"/a": b"1"}
    assert tables.faults == {bad.multihash}
    tables.check_tidy()


def test_a_named_dag_is_merged_and_not_built_upon(tables: Tables) -> None:
    named = parse_node(build_node([], Delta((Element("/k", b"d"),), (), 1, "repoA")).block)
    tables.receive(named)
    written = tables.write(Put("/other", b"1"))
    assert tables.names == {"/k": b"d", "/other": b"1"}
    assert written.links == ()
    assert tables.heads == {named.multihash, written.multihash}


def test_what_was_seen_early_and_overwritten_does_not_come_back_when_the_new_value_is_deleted(tables: Tables) -> None:
    old = node(k="old")
    early = node([old], k="early")
    tables.receive(early)
    assert tables.names == {"/k": b"early"}, "it counts, though what is below it is not here"
    written = tables.write(Put("/k", b"new"))
    assert early.multihash not in written.links, "nobody builds on what is not whole"
    elsewhere = Tables()
    with closing(elsewhere.db):
        elsewhere.receive(written)
        deletion = elsewhere.write(Delete("/k"))
        elsewhere.receive(early, old)
    tables.receive(deletion, old)
    assert b"early" not in tables.names.values()
    assert tables.names == {"/k": b"old"}, "the exception: what nobody could know of when it was overwritten"


# --------------------------------------------------------------------- stuck tips


def test_a_tip_that_nobody_announces_is_given_up_with_all_that_it_alone_led_to(tables: Tables) -> None:
    base = node(a="1")
    missing = node([base], b="1")
    shared = node([missing], c="1")
    stuck, alive = node([shared], k="stuck"), node([shared], l="alive")
    lost = node([node(z="1")], m="lost")
    tables.receive(base)
    tables.apply(Work(tips=[stuck.multihash, alive.multihash, lost.multihash], arrivals=[stuck, alive, shared, lost]))
    assert tables.names == {"/a": b"1", "/c": b"1", "/k": b"stuck", "/l": b"alive", "/m": b"lost"}
    assert tables.apply(Work(expire_tips=True)).forgotten == [], "each has one period"
    tables.apply(Work(tips=[alive.multihash]))
    outcome = tables.apply(Work(expire_tips=True))
    assert set(outcome.forgotten) == {stuck.multihash, lost.multihash, *lost.links}
    assert tables.names == {"/a": b"1", "/c": b"1", "/l": b"alive"}
    assert outcome.tips_left == 1
    tables.receive(missing)
    tables.check_tidy()
    assert tables.heads == {alive.multihash}
    tables.apply(Work(tips=[stuck.multihash]))
    tables.receive(stuck)
    assert tables.names == state_of([base, missing, shared, stuck, alive]), "announced again, it counts again"
    tables.check_tidy()


@settings(max_examples=100, deadline=None)
@given(histories(), st.integers(0, 2**32))
def test_giving_up_anything_at_any_time_changes_nothing_in_the_end(history: History, seed: int) -> None:
    rng = Random(seed)
    tables = Tables()
    order = rng.sample(history.nodes, len(history.nodes))
    for one in order:
        tables.apply(Work(arrivals=[one], tips=[rng.choice(history.nodes).multihash], expire_tips=rng.random() < 0.4))
    for _ in range(2):
        tables.apply(Work(expire_tips=True))
    whole: dict[bytes, Node] = {}
    closed = {mh for (mh,) in tables.db.execute("SELECT multihash FROM crdt_nodes WHERE state = 3")}
    for one in history.nodes:
        if one.multihash in closed:
            whole[one.multihash] = one
    assert tables.names == state_of(whole.values()), "what is not whole is gone without a trace"
    tables.receive(*history.nodes)
    assert tables.names == state_of(history.nodes)
    tables.check_tidy()
    tables.db.close()

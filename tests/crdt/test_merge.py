from ipfsreg.crdt.delta import Delta, Element, Node, Tombstone, block_id, build_node, parse_node
from ipfsreg.crdt.merge import PRIORITY_SLACK, heads_of, height_of, heights_of, priority_fault, state_of, values_by_key


def node(priority: int, value: bytes, *links: Node, removes: Node | None = None) -> Node:
    tombstones = (Tombstone("/k", block_id(removes.multihash)),) if removes else ()
    delta = Delta((Element("/k", value),) if value else (), tombstones, priority)
    return parse_node(build_node([link.multihash for link in links], delta).block)


def test_the_greatest_pair_of_priority_and_value_wins() -> None:
    assert state_of([node(1, b"\x02"), node(1, b"\x01\xff"), node(1, b"\x02\x00")]) == {"/k": b"\x02\x00"}
    low = node(1, b"\xff")
    assert state_of([low, node(2, b"\x00", low)]) == {"/k": b"\x00"}


def test_a_removal_takes_away_what_it_names_and_nothing_else() -> None:
    seen, unseen = node(1, b"1"), node(1, b"2")
    assert state_of([seen, unseen, node(2, b"", unseen, removes=unseen)]) == {"/k": b"1"}
    assert state_of([seen, node(2, b"", seen, removes=seen)]) == {}


def test_of_one_key_twice_the_greatest_value_counts() -> None:
    delta = Delta((Element("/k", b"1"), Element("/k", b"2"), Element("/k", b"1"), Element("/e", b"")), (), 1)
    assert values_by_key(delta) == {"/k": b"2", "/e": b""}


def test_a_priority_lies_above_its_children_and_not_far_above() -> None:
    assert priority_fault(1, 0) is None
    assert priority_fault(8, 7) is None
    assert priority_fault(7 + 1 + PRIORITY_SLACK, 7) is None
    for wrong in (0, 6, 7, 7 + 2 + PRIORITY_SLACK, 2**48 + 1, 2**64 - 1):
        assert priority_fault(wrong, 7)
        assert height_of(wrong, 7) == 8


def test_a_liar_counts_one_above_its_children_and_its_content_not_at_all() -> None:
    base = node(1, b"base")
    liar = node(2**60, b"lie", base)
    honest = node(3, b"honest", liar)
    follower = node(2**60 + 1, b"lie too", liar)
    nodes = [base, liar, honest, follower]
    assert heights_of({one.multihash: one for one in nodes}) == {
        base.multihash: 1,
        liar.multihash: 2,
        honest.multihash: 3,
        follower.multihash: 3,
    }
    assert state_of(nodes) == {"/k": b"honest"}
    assert heads_of(nodes) == {honest.multihash, follower.multihash}

import tracemalloc

import pytest

from ipfsreg.crdt.delta import Delta, Element, Node, build_node, parse_node
from ipfsreg.crdt.signing import SIGNATURE_FIELD, author_of, signed_delta
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import NamedSigner

ALICE = NamedSigner("alice")
DELTA = Delta((Element("/a", b"1"),), (), 2)
BELOW = build_node((), Delta((Element("/b", b"1"),), (), 1))
LINKS = [BELOW.multihash]


def node_with(data: bytes, *links: Node) -> Node:
    """What a peer sees who gets a node of these links and this delta."""
    encoded = PBNode(tuple(PBLink(link.block.cid) for link in links), data).encode()
    return parse_node(Block.of(encoded, DAG_PB))


def test_a_signed_node_tells_its_author_and_says_the_same() -> None:
    built = build_node(LINKS, DELTA, ALICE)
    parsed = parse_node(built.block)
    assert parsed == built
    assert (parsed.author, parsed.delta, parsed.fault) == (peer_of("alice"), DELTA, None)
    assert parse_node(build_node(LINKS, DELTA).block).author is None


def test_a_signature_costs_110_bytes() -> None:
    assert len(build_node(LINKS, DELTA, ALICE).block.data) - len(build_node(LINKS, DELTA).block.data) <= 111


def test_a_delta_lifted_to_another_place_in_the_dag_is_quarantined() -> None:
    lifted = node_with(signed_delta(LINKS, DELTA.encode(), ALICE))
    assert lifted.fault is not None
    assert "signature" in lifted.fault
    assert lifted.author is None


@pytest.mark.parametrize("place", range(8, 120, 7))
def test_a_changed_byte_is_noticed(place: int) -> None:
    data = bytearray(signed_delta(LINKS, DELTA.encode(), ALICE))
    data[place] ^= 1
    try:
        changed = node_with(bytes(data), BELOW)
    except MalformedData:
        return
    # A change in the number of the field makes it an unknown one: then nobody has signed.
    assert changed.fault is not None or changed.author is None


@pytest.mark.parametrize(
    "strange",
    [
        signed_delta(LINKS, DELTA.encode(), ALICE) + varint_field(2000, 1),
        signed_delta(LINKS, signed_delta(LINKS, DELTA.encode(), ALICE), ALICE),
        DELTA.encode() + varint_field(SIGNATURE_FIELD, 1),
        DELTA.encode() + bytes_field(SIGNATURE_FIELD, b""),
        DELTA.encode()
        + bytes_field(SIGNATURE_FIELD, bytes_field(1, b"\x12\x20" + bytes(32)) + bytes_field(2, bytes(64))),
        DELTA.encode() + bytes_field(SIGNATURE_FIELD, bytes_field(1, peer_of("alice").raw)),
    ],
    ids=["not the last field", "two", "a number", "empty", "a peer ID without its key", "no signature"],
)
def test_a_strange_signature_is_none_and_quarantines_the_node(strange: bytes) -> None:
    with pytest.raises(MalformedData):
        author_of(LINKS, strange)
    assert node_with(strange, BELOW).fault is not None


def test_a_signature_holds_in_its_epoch_only() -> None:
    for epoch in (1, 2, 3):
        built = build_node(LINKS, DELTA, ALICE, epoch)
        assert parse_node(built.block, epoch) == built
        for other in {1, 2, 3} - {epoch}:
            replayed = parse_node(built.block, other)
            assert replayed.author is None
            assert replayed.fault is not None
            assert f"in epoch {other}" in replayed.fault


def test_unknown_fields_before_the_signature_are_signed_with_the_rest() -> None:
    signed = signed_delta(LINKS, DELTA.encode() + varint_field(200, 7), ALICE)
    assert author_of(LINKS, memoryview(signed)) == peer_of("alice")
    with pytest.raises(MalformedData):
        author_of(LINKS, signed.replace(varint_field(200, 7), varint_field(200, 8)))


def test_a_block_full_of_empty_fields_takes_no_memory_to_find_no_signature_in() -> None:
    delta = varint_field(3, 1) + bytes_field(5, b"") * 300_000
    tracemalloc.start()
    try:
        assert author_of([], delta) is None
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()

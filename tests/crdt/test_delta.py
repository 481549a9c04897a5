import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.crdt.delta import (
    MAX_HEADS_PER_BROADCAST,
    Delta,
    Element,
    Head,
    Tombstone,
    block_id,
    build_node,
    decode_broadcast,
    encode_broadcasts,
    multihash_of_id,
    node_cid,
    parse_node,
)
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.protobuf import bytes_field, varint_field

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "crdt_vectors.json").read_text())
NODES: list[dict[str, Any]] = VECTORS["vectors"]
BROADCASTS: dict[str, dict[str, Any]] = {entry["name"].split(" ")[0]: entry for entry in VECTORS["broadcasts"]}
SOME = Cid.of(DAG_PB, b"some").multihash


def delta_of(vector: dict[str, Any]) -> Delta:
    return Delta(
        tuple(Element(element["key"], bytes.fromhex(element["value"])) for element in vector["elements"]),
        tuple(Tombstone(tombstone["key"], tombstone["id"]) for tombstone in vector["tombstones"]),
        vector["priority"],
        vector["dagName"],
    )


def node_block(delta: bytes, *links: bytes) -> Block:
    return Block.of(PBNode(tuple(PBLink(node_cid(link)) for link in links), delta).encode(), DAG_PB)


@pytest.mark.parametrize("vector", NODES, ids=lambda vector: vector["name"])
def test_a_node_has_the_bytes_go_gives_it(vector: dict[str, Any]) -> None:
    delta = delta_of(vector)
    links = [Cid.parse(text) for text in vector["links"]]
    assert delta.encode().hex() == vector["delta_hex"]
    data = PBNode(tuple(PBLink(link) for link in links), delta.encode()).encode()
    assert data.hex() == vector["node_hex"]
    node = parse_node(Block.of(data, DAG_PB))
    assert str(node.block.cid) == vector["cid"]
    assert block_id(node.multihash) == vector["multihash_dskey"]
    assert multihash_of_id(vector["multihash_dskey"]) == node.multihash
    assert node.delta == delta
    assert [node_cid(link) for link in node.links] == links
    assert node.fault is None
    assert encode_broadcasts([Head(node.multihash, delta.dag_name)]) == [bytes.fromhex(vector["broadcast_hex"])]


@pytest.mark.parametrize("vector", NODES, ids=lambda vector: vector["name"])
def test_what_we_build_is_what_go_builds_with_its_links_in_byte_order(vector: dict[str, Any]) -> None:
    links = [Cid.parse(text).multihash for text in vector["links"]]
    node = build_node(links, delta_of(vector))
    assert parse_node(node.block) == node
    if links == sorted(links):
        assert bytes(node.block.data).hex() == vector["node_hex"]


def test_a_broadcast_carries_several_heads() -> None:
    entry = BROADCASTS["two-heads"]
    heads = decode_broadcast(bytes.fromhex(entry["hex"]), 4096)
    assert [str(node_cid(head.multihash)) for head in heads] == entry["heads"]
    assert encode_broadcasts(heads) == [bytes.fromhex(entry["hex"])]


def test_a_named_head_keeps_its_name() -> None:
    (head,) = decode_broadcast(bytes.fromhex(BROADCASTS["named"]["hex"]), 4096)
    assert head.dag_name == "repoA"


def test_unknown_fields_are_passed_over_inside_a_head_and_refused_at_the_top() -> None:
    (head,) = decode_broadcast(bytes.fromhex(BROADCASTS["head-with-unknown-field-15"]["hex"]), 4096)
    assert str(node_cid(head.multihash)) == NODES[0]["cid"]
    with pytest.raises(MalformedData):
        decode_broadcast(bytes.fromhex(BROADCASTS["unknown-top-level-field-2"]["hex"]), 4096)


def test_the_bare_cid_of_old_replicas_is_understood_only_as_version_0() -> None:
    (head,) = decode_broadcast(bytes.fromhex(BROADCASTS["legacy"]["hex"]), 4096)
    assert str(node_cid(head.multihash)) == NODES[0]["cid"]
    with pytest.raises(MalformedData):
        decode_broadcast(bytes.fromhex(BROADCASTS["raw"]["hex"]), 4096)


def test_a_bad_head_does_not_take_the_others_with_it() -> None:
    good = encode_broadcasts([Head(SOME)])[0]
    for bad in (
        b"",
        b"\x0a\x00",
        b"\x0a\x02\x01\x55",
        b"\x0a\x24" + bytes(Cid.of(RAW, b"x")),
        b"\xff",
        b"\x12\x01\xff",
    ):
        message = b"\x0a" + bytes([len(bad)]) + bad
        assert decode_broadcast(message + good + message, 4096) == [Head(SOME)]


def test_a_head_of_version_0_is_the_head_of_version_1() -> None:
    message = b"\x0a\x24\x0a\x22" + SOME
    assert decode_broadcast(message, 4096) == [Head(SOME)]


def test_many_heads_go_out_in_several_messages() -> None:
    heads = [Head(b"\x12\x20" + number.to_bytes(32)) for number in range(MAX_HEADS_PER_BROADCAST + 1)]
    messages = encode_broadcasts(heads)
    assert [len(decode_broadcast(message, 4096)) for message in messages] == [MAX_HEADS_PER_BROADCAST, 1]
    assert [head for message in messages for head in decode_broadcast(message, 4096)] == heads
    assert encode_broadcasts([]) == []


def test_of_a_message_of_a_million_heads_only_the_first_are_read() -> None:
    good = encode_broadcasts([Head(SOME)])[0]
    assert decode_broadcast(good * 10, 3) == [Head(SOME)] * 3
    assert decode_broadcast(b"\x0a\x00" * 3 + good, 3) == [], "bad ones count too"
    # What comes after them is not even looked at, however wrong it is.
    assert decode_broadcast(good * 3 + b"\xff" * 1_000_000, 3) == [Head(SOME)] * 3


def test_unknown_fields_inside_a_delta_are_passed_over() -> None:
    delta = Delta((Element("/a", b"1"),), (), 1)
    signed = delta.encode() + b"\x2a\x01x" + b"\xa2\x06\x02ok" + b"\x30\x07"
    assert Delta.decode(signed) == delta


def test_an_id_inside_an_element_is_ignored() -> None:
    with_id = b"\x0a\x0b" + b"\x0a\x02/a" + b"\x12\x02id" + b"\x1a\x011" + b"\x18\x01"
    assert Delta.decode(with_id) == Delta((Element("/a", b"1"),), (), 1)


@pytest.mark.parametrize(
    "data",
    [
        b"\x0a\x02\xff\xff",  # a delta that does not parse
        b"\x0a\x0b\x0a\x07\x0a\x02/k\x1a\x01e\x18\x01\x1a\x01x",  # dag-pb field 3
        b"\x0a\x02\x18\x01\x0a\x02\x18\x01",  # Data twice
        b"\x0a\x06\x0a\x04\x0a\x02/\xff",  # a key that is not UTF-8
        b"\x0a\x05\x22\x03a/b",  # a slash in a DAG name
        b"\x0a\x84\x01\x22\x81\x01" + b"n" * 129,  # a DAG name of 129 bytes
        b"\x12\x02\x0a\x00",  # a link without a CID
    ],
)
def test_what_is_no_node_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedData):
        parse_node(Block.of(data, DAG_PB))


def test_a_block_under_another_codec_is_no_node() -> None:
    with pytest.raises(MalformedData):
        parse_node(Block.of(Delta((Element("/a", b"1"),), (), 1).encode(), RAW))


@pytest.mark.parametrize(
    "delta",
    [
        Delta((Element("/a", b"1"),), (), 0),
        Delta((Element("/a", b"1"),), (), 2**48 + 1),
        Delta((Element("/a", b"1"),), (), 2**64 - 1),
        Delta((Element("a", b"1"),), (), 1),
        Delta((Element("/a/../../h/x", b"1"),), (), 1),
        Delta((Element("/a//b", b"1"),), (), 1),
        Delta((Element("/a\0", b"1"),), (), 1),
        Delta((Element("", b"1"),), (), 1),
        Delta((Element("/" + "k" * 1024, b"1"),), (), 1),
        Delta((), (Tombstone("/a", block_id(SOME)[1:]),), 1),
        Delta((), (Tombstone("/a/", block_id(SOME)),), 1),
        Delta((), (Tombstone("/a", "/" + "A" * 55),), 1),
        Delta((), (Tombstone("/a", block_id(SOME)[:-1] + "B"),), 1),
    ],
    ids=lambda delta: repr(delta)[:60],
)
def test_a_node_that_breaks_a_rule_keeps_its_links_and_has_a_fault(delta: Delta) -> None:
    node = parse_node(node_block(delta.encode(), SOME))
    assert node.links == (SOME,)
    assert node.fault


def test_a_million_empty_changes_are_one_fault() -> None:
    delta = bytes_field(1, b"") * 500_000 + bytes_field(2, b"") * 500_000 + varint_field(3, 1)
    node = parse_node(Block.of(PBNode((), delta).encode(), DAG_PB))
    assert (node.delta.elements, node.delta.tombstones) == ((Element("", b""),), (Tombstone("", ""),))
    assert node.fault is not None


def test_a_link_to_what_can_be_no_node_is_a_fault() -> None:
    data = PBNode((PBLink(Cid.of(RAW, b"x")), PBLink(node_cid(SOME))), Delta((), (), 1).encode()).encode()
    node = parse_node(Block.of(data, DAG_PB))
    assert node.links == (SOME,)
    assert node.fault is not None
    assert "names no node" in node.fault


def test_names_and_sizes_on_links_are_taken_and_mean_nothing() -> None:
    data = PBNode((PBLink(node_cid(SOME), 7, b"name"),), Delta((), (), 2).encode()).encode()
    assert parse_node(Block.of(data, DAG_PB)).links == (SOME,)


KEYS = st.text(min_size=1, max_size=8).map(lambda text: "/" + text)


@given(
    st.lists(st.builds(Element, KEYS, st.binary(max_size=20)), max_size=5),
    st.lists(st.builds(Tombstone, KEYS, st.binary(max_size=34).map(block_id)), max_size=5),
    st.integers(0, 2**64 - 1),
    st.text(max_size=10).filter(lambda name: "/" not in name),
)
def test_a_delta_survives_its_encoding(
    elements: list[Element], tombstones: list[Tombstone], priority: int, dag_name: str
) -> None:
    delta = Delta(tuple(elements), tuple(tombstones), priority, dag_name)
    assert Delta.decode(delta.encode()) == delta


@given(st.binary(max_size=80))
def test_any_bytes_are_a_node_or_malformed(data: bytes) -> None:
    with suppress(MalformedData):
        parse_node(Block.of(data, DAG_PB))
    with suppress(MalformedData):
        decode_broadcast(data, 4096)

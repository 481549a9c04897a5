import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import MAX_BLOCK_BYTES
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.dag_pb import MAX_LINKS, PBLink, PBNode
from ipfsreg.ipld.protobuf import bytes_field, varint_field

CHILD = Cid.of(RAW, b"child")
HASH = bytes_field(1, bytes(CHILD))
LINK = bytes_field(2, HASH + bytes_field(2, b"") + varint_field(3, 0))

links = st.builds(
    PBLink, st.builds(Cid.of, st.just(DAG_PB), st.binary(max_size=4)), st.integers(0, 2**64 - 1), st.binary(max_size=5)
)


def test_a_node_of_go_ds_crdt_is_reproduced_byte_for_byte() -> None:
    # Recorded from go-ds-crdt: the second put of a fresh replica, one link to the first.
    wire = bytes.fromhex(
        "122a0a24017012207d5ff6d2aed674982694ab46cd1670238aa909d7745142add7d7177e7f689412120018000a0c0a080a022f611a0232321802"
    )
    first = Cid.parse("bafybeid5l73nflwwosmcnffli3grm4bdrkuqtv3ukfbk3v6xc57h62euci")
    node = PBNode.decode(wire)
    assert node == PBNode((PBLink(first),), bytes.fromhex("0a080a022f611a0232321802"))
    assert node.encode() == wire
    assert str(Cid.of(DAG_PB, wire)) == "bafybeihiuk7o22cgvl6kbckf62aswwysgt4t3n2z3pbcpr2ptacbcuxruu"


@given(st.lists(links, max_size=6), st.none() | st.binary(max_size=20))
def test_what_is_written_is_read_back_with_its_links_in_the_order_of_their_names(
    children: list[PBLink], data: bytes | None
) -> None:
    wire = PBNode(tuple(children), data).encode()
    node = PBNode.decode(wire)
    assert node.links == tuple(sorted(children, key=lambda link: link.name))
    assert node.data == data
    assert node.encode() == wire


def test_no_data_and_empty_data_are_different_blocks() -> None:
    assert PBNode().encode() == b""
    assert PBNode(data=b"").encode() == b"\x0a\x00"
    assert PBNode.decode(b"").data is None
    assert PBNode.decode(b"\x0a\x00").data == b""


def test_links_may_lack_name_and_size_and_may_follow_data() -> None:
    assert PBNode.decode(bytes_field(1, b"x") + bytes_field(2, HASH)) == PBNode((PBLink(CHILD),), b"x")


def test_the_payload_is_a_slice_of_the_block() -> None:
    wire = PBNode(data=bytes(1000)).encode()
    payload = PBNode.decode(wire).data
    assert isinstance(payload, memoryview)
    assert payload.obj is wire


@pytest.mark.parametrize(
    "wire",
    [
        LINK + varint_field(3, 1),
        bytes_field(3, b""),
        varint_field(1, 5),
        varint_field(2, 5),
        bytes_field(1, b"a") + bytes_field(1, b"b"),
        LINK + bytes_field(1, b"a") + LINK,
        bytes_field(2, b""),
        bytes_field(2, bytes_field(2, b"name")),
        bytes_field(2, HASH + HASH),
        bytes_field(2, bytes_field(2, b"name") + HASH),
        bytes_field(2, HASH + varint_field(3, 1) + bytes_field(2, b"")),
        bytes_field(2, HASH + bytes_field(4, b"")),
        bytes_field(2, bytes_field(1, bytes(CHILD) + b"\x00")),
        bytes_field(2, bytes_field(1, b"")),
        bytes_field(2, varint_field(1, 5)),
        LINK[:-1],
    ],
)
def test_blocks_go_refuses_are_refused(wire: bytes) -> None:
    with pytest.raises(MalformedData):
        PBNode.decode(wire)


def test_too_many_links_and_too_large_blocks_are_refused() -> None:
    assert len(PBNode.decode(LINK * MAX_LINKS).links) == MAX_LINKS
    with pytest.raises(MalformedData):
        PBNode.decode(LINK * (MAX_LINKS + 1))
    with pytest.raises(MalformedData):
        PBNode.decode(LINK * 3, max_links=2)
    with pytest.raises(MalformedData):
        PBNode.decode(bytes_field(1, bytes(MAX_BLOCK_BYTES)))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_node_or_malformed(wire: bytes) -> None:
    try:
        node = PBNode.decode(wire)
    except MalformedData:
        return
    assert PBNode.decode(node.encode()).data == node.data

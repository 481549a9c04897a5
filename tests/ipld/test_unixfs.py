import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.dag_pb import MAX_LINKS, PBNode
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.ipld.unixfs import UnixfsNode, UnixfsType, inner_message, leaf_frame

numbers = st.integers(0, 2**64 - 1)


@given(
    st.sampled_from(UnixfsType), st.binary(max_size=20), st.none() | numbers, st.lists(numbers, max_size=5).map(tuple)
)
def test_what_is_written_is_read_back(
    kind: UnixfsType, data: bytes, filesize: int | None, blocksizes: tuple[int, ...]
) -> None:
    node = UnixfsNode(kind, data, filesize, blocksizes)
    assert UnixfsNode.decode(node.encode()) == node


def test_an_inner_node_is_written_as_boxo_does() -> None:
    assert inner_message([262144, 1]).hex() == "08021881801020808010" + "2001"


@pytest.mark.parametrize("size", [0, 1, 12, 127, 128, 16_000, 262_144])
def test_a_frame_around_content_is_the_block_of_a_leaf(size: int) -> None:
    head, tail = leaf_frame(size)
    content = bytes(size)
    assert head + content + tail == PBNode(data=UnixfsNode(UnixfsType.FILE, content, size).encode()).encode()


def test_packed_block_sizes_and_unknown_fields_are_read() -> None:
    message = varint_field(1, 2) + bytes_field(4, b"\x05\x80\x01") + varint_field(4, 7)
    message += varint_field(7, 0o644) + bytes_field(8, varint_field(1, 1_700_000_000)) + varint_field(5, 0x22)
    assert UnixfsNode.decode(message) == UnixfsNode(UnixfsType.FILE, blocksizes=(5, 128, 7))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        varint_field(3, 5),
        varint_field(1, 6),
        varint_field(1, 2**64 - 1),
        bytes_field(1, b"\x02"),
        varint_field(1, 2) + varint_field(2, 1),
        varint_field(1, 2) + bytes_field(3, b""),
        varint_field(1, 2) + bytes_field(4, b"\x80"),
        varint_field(1, 2) + varint_field(4, 1) * (MAX_LINKS + 1),
        varint_field(1, 2) + bytes_field(4, b"\x01" * 1_000_000),
    ],
)
def test_malformed_messages_are_refused(message: bytes) -> None:
    with pytest.raises(MalformedData):
        UnixfsNode.decode(message)

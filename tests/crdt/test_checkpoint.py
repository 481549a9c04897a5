"""The messages of a checkpoint, from strangers."""

from __future__ import annotations

import pytest

from ipfsreg.crdt.checkpoint import MAX_HEADS, Header, decode_piece, encode_nodes
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, varint_field

HEAD = b"\x12\x20" + bytes(32)
AFTER = b"\xff" * 100
"""No field at all: an error of its own, where it is looked at."""


def test_a_header_is_not_read_beyond_the_fields_it_may_have() -> None:
    header = Header(heads=(HEAD,) * MAX_HEADS, height=1, nodes=1, taken_us=1, topic="names", rules=b"r")
    assert Header.decode(header.encode()) == header
    with pytest.raises(MalformedData, match="too many fields"):
        Header.decode(header.encode() + bytes_field(1, b"") * 10 + AFTER)


@pytest.mark.parametrize("junk", [varint_field(4, 0), bytes_field(4, b""), encode_nodes([HEAD])])
def test_a_piece_is_one_field_and_the_second_is_the_end_of_it(junk: bytes) -> None:
    piece = encode_nodes([HEAD, HEAD])
    assert decode_piece(piece).nodes is not None
    for data in (piece + junk + AFTER, junk + piece + AFTER):
        with pytest.raises(MalformedData, match="a piece of a checkpoint with field"):
            decode_piece(data)
    with pytest.raises(MalformedData, match="nothing in it"):
        decode_piece(b"")

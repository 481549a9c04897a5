import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.varint import decode_varint, encode_varint


@pytest.mark.parametrize(
    ("value", "wire"),
    [(0, "00"), (1, "01"), (127, "7f"), (128, "8001"), (300, "ac02"), (2**64 - 1, "ffffffffffffffffff01")],
)
def test_known_values_have_their_known_bytes(value: int, wire: str) -> None:
    assert encode_varint(value).hex() == wire
    assert decode_varint(bytes.fromhex(wire)) == (value, len(wire) // 2)


@given(st.integers(0, 2**64 - 1), st.binary(max_size=3), st.binary(max_size=3))
def test_any_value_is_found_between_other_bytes(value: int, before: bytes, behind: bytes) -> None:
    wire = encode_varint(value)
    for kind in (bytes, bytearray, memoryview):
        data = kind(before + wire + behind)
        assert decode_varint(data, len(before)) == (value, len(before) + len(wire))


@pytest.mark.parametrize("wire", ["", "80", "ffffff", "80808080808080808080", "ffffffffffffffffff02", "ff" * 40])
def test_truncated_and_oversized_ones_are_refused(wire: str) -> None:
    with pytest.raises(MalformedData):
        decode_varint(bytes.fromhex(wire))


def test_an_offset_behind_the_end_is_truncation() -> None:
    with pytest.raises(MalformedData):
        decode_varint(b"\x01", 1)

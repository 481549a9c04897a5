import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, expect_int, read_fields, varint_field


def test_the_examples_of_the_encoding_page_read_as_it_says() -> None:
    assert list(read_fields(bytes.fromhex("089601"))) == [(1, 150)]
    assert list(read_fields(bytes.fromhex("120774657374696e67"))) == [(2, memoryview(b"testing"))]
    assert bytes_field(2, b"testing").hex() == "120774657374696e67"
    assert varint_field(1, 150).hex() == "089601"


def test_fixed_width_numbers_are_little_endian() -> None:
    assert list(read_fields(b"\x0d\x01\x00\x00\x80" + b"\x11" + bytes(7) + b"\x80")) == [(1, 0x80000001), (2, 1 << 63)]


@given(st.lists(st.tuples(st.integers(1, 2**29 - 1), st.one_of(st.integers(0, 2**64 - 1), st.binary(max_size=200)))))
def test_what_is_written_is_read_back_in_order(fields: list[tuple[int, int | bytes]]) -> None:
    wire = b"".join(varint_field(n, v) if isinstance(v, int) else bytes_field(n, v) for n, v in fields)
    assert [(n, v if isinstance(v, int) else bytes(v)) for n, v in read_fields(wire)] == fields


def test_values_are_slices_and_not_copies() -> None:
    wire = bytearray(bytes_field(1, b"abc"))
    ((_, value),) = read_fields(wire)
    wire[-1] = ord("z")
    assert bytes(expect_bytes(value)) == b"abz"


@pytest.mark.parametrize(
    "wire",
    [
        "0a",  # a length is missing
        "0a05abcd",  # shorter than it says
        "0affffffff7f",  # claims 32 GiB
        "0affffffffffffffffff01",  # claims 2**64 - 1 bytes
        "0d000000",  # a short fixed32
        "0b0c",  # groups
        "0f00",  # wire type 7
        "0000",  # field number 0
        "8080808010" + "00",  # field number 2**29
    ],
)
def test_malformed_messages_are_refused(wire: str) -> None:
    with pytest.raises(MalformedData):
        list(read_fields(bytes.fromhex(wire)))


@given(st.binary(max_size=64))
def test_any_bytes_are_fields_or_malformed(wire: bytes) -> None:
    try:
        fields = list(read_fields(wire))
    except MalformedData:
        return
    assert all(number > 0 for number, _ in fields)


def test_a_value_of_the_other_kind_is_refused() -> None:
    with pytest.raises(MalformedData):
        expect_bytes(1)
    with pytest.raises(MalformedData):
        expect_int(memoryview(b"1"))

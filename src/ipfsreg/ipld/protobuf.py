"""The protobuf wire format, as far as IPLD and the libp2p block protocols use it.

dag-pb fixes the order of fields and which of them are written although empty, so the bytes are laid out by hand;
and a reader that yields slices lets a megabyte of payload be hashed and written without being copied.
Spec: protobuf.dev "Encoding".
"""

from __future__ import annotations

from collections.abc import Iterator

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.varint import decode_varint, encode_varint

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

MAX_FIELD_NUMBER = (1 << 29) - 1

FieldValue = int | memoryview


def read_fields(data: bytes | bytearray | memoryview) -> Iterator[tuple[int, FieldValue]]:
    """Yield (field number, value) in order: an int for numbers, a slice of *data* for bytes and messages.

    Raises:
        MalformedData: a length that points past the end, a group, or a field number that cannot be.
    """
    view = memoryview(data)
    position, end = 0, len(view)
    while position < end:
        # One byte for nearly every tag and most lengths: calls for them would be half the cost of reading a message.
        tag = view[position]
        if tag < 0x80:
            position += 1
        else:
            tag, position = decode_varint(view, position)
        number, kind = tag >> 3, tag & 7
        if not 0 < number <= MAX_FIELD_NUMBER:
            raise MalformedData(f"protobuf field number {number}")
        if kind == VARINT:
            value, position = decode_varint(view, position)
            yield number, value
            continue
        if kind == BYTES:
            if position < end and (length := view[position]) < 0x80:
                position += 1
            else:
                length, position = decode_varint(view, position)
        elif kind in (FIXED32, FIXED64):
            length = 4 if kind == FIXED32 else 8
        else:
            raise MalformedData(f"protobuf wire type {kind}")
        if length > end - position:
            raise MalformedData(f"protobuf field {number} claims {length} bytes, {end - position} are left")
        piece = view[position : position + length]
        position += length
        yield number, int.from_bytes(piece, "little") if kind != BYTES else piece


def bytes_field(number: int, value: bytes | bytearray | memoryview) -> bytes:
    """One length-delimited field, written also when empty."""
    if number < 16 and len(value) < 0x80:
        return bytes((number << 3 | BYTES, len(value))) + value
    return encode_varint(number << 3 | BYTES) + encode_varint(len(value)) + bytes(value)


def varint_field(number: int, value: int) -> bytes:
    """One varint field, written also when zero."""
    return encode_varint(number << 3 | VARINT) + encode_varint(value)


def expect_bytes(value: FieldValue) -> memoryview:
    """The value of a field that must be length-delimited. Raises MalformedData."""
    if isinstance(value, int):
        raise MalformedData("protobuf number where bytes belong")
    return value


def expect_int(value: FieldValue) -> int:
    """The value of a field that must be a number. Raises MalformedData."""
    if not isinstance(value, int):
        raise MalformedData("protobuf bytes where a number belongs")
    return value

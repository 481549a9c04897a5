"""Unsigned varints (LEB128), bounded. Spec: multiformats/unsigned-varint."""

from __future__ import annotations

from ipfsreg.errors import MalformedData

MAX_VARINT_BYTES = 10
"""Enough for any uint64, as protobuf has it; multiformats itself allows nine."""


def encode_varint(value: int) -> bytes:
    """Encode *value*, 0 <= value < 2**64."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode_varint(data: bytes | bytearray | memoryview, offset: int = 0) -> tuple[int, int]:
    """Return the value at *offset* and the offset behind it.

    Raises:
        MalformedData: truncated, longer than ten bytes, or above 2**64 - 1.
    """
    if offset < len(data) and data[offset] < 0x80:  # nine of ten in practice
        return data[offset], offset + 1
    value = shift = 0
    for position in range(offset, min(len(data), offset + MAX_VARINT_BYTES)):
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            if value >= 1 << 64:
                raise MalformedData("varint above 2**64 - 1")
            return value, position + 1
        shift += 7
    raise MalformedData("varint truncated or longer than ten bytes")

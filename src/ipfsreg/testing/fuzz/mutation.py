"""Inputs out of other inputs: changed bytes, changed protobuf fields, and inputs blown up to what a decoder may meet.

Small inputs find wrong answers; only large ones find answers that take too long or too much. `swell` makes those: it
repeats one piece, inside its length prefixes where there are such, until the input is as large as allowed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import BYTES, FIXED32, FIXED64, VARINT
from ipfsreg.ipld.varint import decode_varint, encode_varint

MAX_DEPTH = 6

VERBATIM = -1
"""The kind of a field whose value is written as it is."""

NUMBERS = (0, 1, 2, 3, 127, 128, 255, 256, 2**14, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**63, 2**64 - 1)

BYTES_OF_NOTE = b"\x00\x01\x02\x0a\x0d\x12\x1a\x20\x22/:.-%7\x7f\x80\xc0\xff"


class Field:
    """One field of a message, its value read as a message too where it can be."""

    __slots__ = ("kind", "number", "value")

    def __init__(self, number: int, kind: int, value: int | bytes | list[Field]) -> None:
        self.number = number
        self.kind = kind
        self.value = value

    def encode(self) -> bytes:
        """The field as it travels, its lengths made right."""
        if self.kind == VERBATIM:
            assert isinstance(self.value, bytes)
            return self.value
        tag = encode_varint(self.number << 3 | self.kind)
        if isinstance(self.value, int):
            return tag + encode_varint(self.value)
        body = b"".join([each.encode() for each in self.value]) if isinstance(self.value, list) else self.value
        return tag + (encode_varint(len(body)) if self.kind == BYTES else b"") + body


def read_tree(data: bytes, depth: int = MAX_DEPTH) -> list[Field] | None:
    """*data* as a protobuf; None where it is none."""
    fields: list[Field] = []
    position = 0
    try:
        while position < len(data):
            tag, position = decode_varint(data, position)
            number, kind = tag >> 3, tag & 7
            if number == 0 or number >= 1 << 29:
                return None
            if kind == VARINT:
                number_value, position = decode_varint(data, position)
                fields.append(Field(number, kind, number_value))
                continue
            if kind == BYTES:
                length, position = decode_varint(data, position)
            elif kind in (FIXED32, FIXED64):
                length = 4 if kind == FIXED32 else 8
            else:
                return None
            if length > len(data) - position:
                return None
            body = data[position : position + length]
            position += length
            nested = read_tree(body, depth - 1) if kind == BYTES and depth and body else None
            fields.append(Field(number, kind, body if nested is None else nested))
    except MalformedData:
        return None
    return fields


class Mutator:
    """Changes inputs, as *rng* says."""

    def __init__(self, rng: Random, *, max_bytes: int, is_protobuf: bool) -> None:
        self._rng = rng
        self._max_bytes = max_bytes
        self._is_protobuf = is_protobuf
        self._changes: Sequence[Callable[[bytearray], None]] = (
            self._flip,
            self._set,
            self._insert,
            self._remove,
            self._repeat,
            self._write_number,
            self._move,
        )

    def mutate(self, data: bytes, other: bytes = b"") -> bytes:
        """*data* with a few changes, maybe with a part of *other*."""
        rng = self._rng
        if self._is_protobuf and rng.random() < 0.6:
            tree = read_tree(data)
            if tree:
                for _ in range(1 + rng.randrange(3)):
                    self._change_tree(tree)
                return b"".join([each.encode() for each in tree])[: self._max_bytes]
        changed = bytearray(data)
        if other and rng.random() < 0.2:
            start = rng.randrange(len(changed) + 1)
            begin = rng.randrange(len(other))
            changed[start : start + rng.randrange(16)] = other[begin : begin + 1 + rng.randrange(64)]
        for _ in range(1 + rng.randrange(4)):
            rng.choice(self._changes)(changed)
        return bytes(changed[: self._max_bytes])

    def swell(self, data: bytes) -> bytes:
        """*data* with one piece of it repeated until it is as large as may be."""
        rng = self._rng
        if self._is_protobuf and rng.random() < 0.7:
            tree = read_tree(data)
            if tree:
                fields = self._pick_list(tree)
                place = rng.randrange(len(fields))
                piece = fields[place].encode()
                # Lengths of the messages around it grow as well.
                count = max(0, (self._max_bytes - len(data) - 6 * MAX_DEPTH) // len(piece))
                fields.insert(place, Field(0, VERBATIM, piece * count))
                return b"".join([each.encode() for each in tree])[: self._max_bytes]
        start = rng.randrange(len(data) + 1)
        piece = data[start : start + rng.choice((1, 2, 3, 8, 64))] or b"\x00"
        count = max(0, (self._max_bytes - len(data)) // len(piece))
        return data[:start] + piece * count + data[start:]

    # ---------------------------------------------------------------- fields

    def _pick_list(self, fields: list[Field]) -> list[Field]:
        """The fields of a message somewhere inside."""
        while True:
            nested = [each.value for each in fields if isinstance(each.value, list) and each.value]
            if not nested or self._rng.random() < 0.4:
                return fields
            fields = self._rng.choice(nested)

    def _change_tree(self, tree: list[Field]) -> None:
        rng = self._rng
        fields = self._pick_list(tree)
        if not fields:
            return
        place = rng.randrange(len(fields))
        chosen = fields[place]
        match rng.randrange(7):
            case 0:
                del fields[place]
            case 1:
                fields[place:place] = [chosen] * (1 + rng.randrange(3))
            case 2:
                rng.shuffle(fields)
            case 3:
                fields.insert(place, Field(1 + rng.randrange(12), VARINT, rng.choice(NUMBERS)))
            case 4:
                fields[place] = Field(rng.choice((1 + rng.randrange(12), chosen.number)), chosen.kind, chosen.value)
            case 5 if isinstance(chosen.value, int):
                fields[place] = Field(chosen.number, chosen.kind, rng.choice((rng.choice(NUMBERS), chosen.value ^ 1)))
            case _:
                body = chosen.value if isinstance(chosen.value, bytes) else chosen.encode()
                changed = bytearray(body)
                rng.choice(self._changes)(changed)
                fields[place] = Field(chosen.number, BYTES, bytes(changed))

    # ----------------------------------------------------------------- bytes

    def _place(self, data: bytearray) -> int:
        return self._rng.randrange(len(data) + 1)

    def _flip(self, data: bytearray) -> None:
        if data:
            data[self._rng.randrange(len(data))] ^= 1 << self._rng.randrange(8)

    def _set(self, data: bytearray) -> None:
        if data:
            data[self._rng.randrange(len(data))] = self._rng.choice(BYTES_OF_NOTE)

    def _insert(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = self._rng.randbytes(1 + self._rng.randrange(8))

    def _remove(self, data: bytearray) -> None:
        place = self._place(data)
        del data[place : place + 1 + self._rng.randrange(16)]

    def _repeat(self, data: bytearray) -> None:
        place = self._place(data)
        data[place:place] = data[place : place + 1 + self._rng.randrange(32)] * (1 + self._rng.randrange(8))

    def _write_number(self, data: bytearray) -> None:
        number, place = self._rng.choice(NUMBERS), self._place(data)
        match self._rng.randrange(4):
            case 0:
                written = encode_varint(number)
            case 1:
                written = str(number).encode()
            case 2:
                written = number.to_bytes(8, "big")[-1 << self._rng.randrange(4) :]
            case _:
                written = number.to_bytes(8, "little")[: 1 << self._rng.randrange(4)]
        data[place : place + self._rng.choice((0, len(written)))] = written

    def _move(self, data: bytearray) -> None:
        start, place = self._place(data), self._place(data)
        piece = data[start : start + 1 + self._rng.randrange(24)]
        data[place:place] = piece

"""A checkpoint: what all names are at some heads, in the words of one peer, signed by it. PURE.

    message Request { string topic = 1; bytes rules = 2; }
    message Header  { repeated bytes heads = 1; uint64 height = 2; uint64 nodes = 3; uint64 taken_us = 4;
                      string topic = 5; bytes rules = 6; }
    message Piece   { bytes nodes = 1; bytes elements = 2; Signature end = 3; }
    message Signature { bytes peer = 1; bytes signature = 2; }

One Header, then Pieces, each with one field; the one with the signature is the last.

    nodes     sha2-256 digests, 32 bytes each, of all nodes at or below the heads, the highest first; each node once
    elements  zlib (RFC 1950) of a MessagePack array of [key, priority, node, value, withheld]: all elements of those
              nodes that none of them removes, ascending by key. *node* counts the nodes from 0 in the order they came.
              *withheld*: the rules on writers keep it from counting
    end       signed are "ipfsreg checkpoint 1\\0" and the sha2-256 of all messages before, each with its length
              before it as a varint

A checkpoint holds losing values as well as winners, for whoever deletes a key must name all of them. It holds no
tombstones: of the nodes it names, what it does not hold is removed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from ipfsreg.crdt.delta import MAX_PRIORITY
from ipfsreg.crdt.keys import is_normal_key
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.identity import public_key_in, verify
from ipfsreg.peer_id import PeerId

MAX_HEADS = 512
"""A replica with more offers no checkpoint; it joins its heads when it is quiet."""

MAX_NODES = 1 << 24
"""2 GB of rows."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""One message on the wire; a piece of ours is a tenth of that, unless a single value is large."""

MAX_ELEMENT_BYTES = 4 * 1024 * 1024
"""The elements of one piece, unpacked."""

MAX_ELEMENTS = 8192
"""In one piece."""

PIECE_BYTES = 384 * 1024
PIECE_ELEMENTS = 2048
PIECE_NODES = 4096
"""What we put into one piece: a transaction of some tens of milliseconds for whoever takes it."""

_CONTEXT = b"ipfsreg checkpoint 1\0"
_DIGEST_PREFIX = b"\x12\x20"

ClaimedElement = tuple[str, int, int, bytes, bool]
"""Key, priority, position of the node, value, withheld."""

_ELEMENTS = msgspec.msgpack.Decoder(Annotated[list[ClaimedElement], msgspec.Meta(max_length=MAX_ELEMENTS)])
_encode_elements = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a checkpoint is of."""

    heads: tuple[bytes, ...]
    """Multihashes: it speaks for the nodes at or below them, and for no other."""
    height: int
    """Of the highest head."""
    nodes: int
    """How many there are at or below the heads."""
    taken_us: int
    """Microseconds since 1970, by the signer's clock."""
    topic: str
    rules: bytes
    """Fingerprint of the rules on writers it was made under: under others, names are others."""

    def encode(self) -> bytes:
        """The Header message."""
        return b"".join(
            [
                *(bytes_field(1, head) for head in self.heads),
                varint_field(2, self.height),
                varint_field(3, self.nodes),
                varint_field(4, self.taken_us),
                bytes_field(5, self.topic.encode()),
                bytes_field(6, self.rules),
            ]
        )

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Header:
        """Read a Header within the limits. Raises MalformedData."""
        heads: list[bytes] = []
        numbers = {2: 0, 3: 0, 4: 0}
        texts = {5: b"", 6: b""}
        for place, (number, value) in enumerate(read_fields(data)):
            if place >= MAX_HEADS + len(numbers) + len(texts):
                raise MalformedData("a checkpoint whose header has too many fields")
            if number == 1:
                heads.append(bytes(expect_bytes(value)))
            elif number in numbers:
                numbers[number] = expect_int(value)
            elif number in texts:
                texts[number] = bytes(expect_bytes(value))
        if not 0 < len(heads) <= MAX_HEADS or any(len(one) != 34 or one[:2] != _DIGEST_PREFIX for one in heads):
            raise MalformedData(f"a checkpoint of {len(heads)} heads, or of what cannot be one")
        if not 0 < numbers[3] <= MAX_NODES or not 0 < numbers[2] <= MAX_PRIORITY or numbers[4] >= 1 << 62:
            raise MalformedData(f"a checkpoint of {numbers[3]} nodes at height {numbers[2]}")
        try:
            topic = texts[5].decode()
        except UnicodeDecodeError:
            raise MalformedData("a checkpoint of a topic that is no text") from None
        return cls(
            heads=tuple(heads),
            height=numbers[2],
            nodes=numbers[3],
            taken_us=numbers[4],
            topic=topic,
            rules=texts[6],
        )


def encode_request(topic: str, rules: bytes) -> bytes:
    """The Request message."""
    return bytes_field(1, topic.encode()) + bytes_field(2, rules)


def decode_request(data: bytes | memoryview) -> tuple[bytes, bytes]:
    """Read a Request: topic and rules. Raises MalformedData."""
    found = {1: b"", 2: b""}
    for number, value in read_fields(data):
        if number in found:
            found[number] = bytes(expect_bytes(value))
    return found[1], found[2]


@dataclass(frozen=True, slots=True)
class Piece:
    """One message of a checkpoint, still packed."""

    nodes: memoryview | None = None
    elements: memoryview | None = None
    end: memoryview | None = None


def encode_nodes(multihashes: Iterable[bytes]) -> bytes:
    """A Piece with nodes."""
    return bytes_field(1, b"".join(multihash[2:] for multihash in multihashes))


def encode_elements(elements: Sequence[ClaimedElement]) -> bytes:
    """A Piece with elements."""
    # Level 1: half of the size at a fifth of the time of level 6, which saves only a tenth more.
    return bytes_field(2, zlib.compress(_encode_elements(elements), 1))


def decode_piece(data: bytes | memoryview) -> Piece:
    """Read a Piece; what is in it is not looked at yet. Raises MalformedData."""
    found: dict[int, memoryview] = {}
    for number, value in read_fields(data):
        if number not in (1, 2, 3) or found:
            raise MalformedData(f"a piece of a checkpoint with field {number}, or with several")
        found[number] = expect_bytes(value)
    if not found:
        raise MalformedData("a piece of a checkpoint with nothing in it")
    return Piece(found.get(1), found.get(2), found.get(3))


def multihashes_in(nodes: memoryview) -> list[bytes]:
    """The nodes of a piece. Raises MalformedData."""
    if len(nodes) % 32 or not nodes:
        raise MalformedData(f"nodes of a checkpoint in {len(nodes)} bytes")
    return [_DIGEST_PREFIX + bytes(nodes[start : start + 32]) for start in range(0, len(nodes), 32)]


def elements_in(packed: memoryview, nodes: int) -> list[ClaimedElement]:
    """The elements of a piece, which comes after *nodes* nodes. Takes milliseconds. Raises MalformedData."""
    unpacking = zlib.decompressobj()
    try:
        data = unpacking.decompress(packed, MAX_ELEMENT_BYTES)
    except zlib.error as error:
        raise MalformedData(f"elements of a checkpoint: {error}") from None
    if not unpacking.eof:
        raise MalformedData(f"elements of a checkpoint in more than {MAX_ELEMENT_BYTES} bytes, or not wholly")
    try:
        elements: list[ClaimedElement] = _ELEMENTS.decode(data)
    except (msgspec.DecodeError, RecursionError) as error:
        raise MalformedData(f"elements of a checkpoint: {error}") from None
    before = ""
    for key, priority, node, _, _ in elements:
        if key != before and (not is_normal_key(key) or key.encode() < before.encode()):
            raise MalformedData(f"the key {key[:80]!r} of a checkpoint is not in normal form, or not in order")
        if not 1 <= priority <= MAX_PRIORITY or not 0 <= node < nodes:
            raise MalformedData(f"an element of a checkpoint with priority {priority} in node {node} of {nodes}")
        before = key
    return elements


class Seal:
    """What is signed, while messages go by."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, message: bytes | memoryview) -> None:
        """The next message, Header and Pieces alike."""
        self._hash.update(encode_varint(len(message)))
        self._hash.update(message)

    def signed_bytes(self) -> bytes:
        """What the signature is over."""
        return _CONTEXT + self._hash.digest()


def encode_end(signer: PeerId, signature: bytes) -> bytes:
    """The last Piece."""
    return bytes_field(3, bytes_field(1, signer.raw) + bytes_field(2, signature))


def check_end(end: memoryview, signer: PeerId, seal: Seal) -> None:
    """Raise MalformedData unless *end* is the signature of *signer* over what *seal* has seen."""
    found = {1: b"", 2: b""}
    for number, value in read_fields(end):
        if number in found:
            found[number] = bytes(expect_bytes(value))
    key = public_key_in(signer)
    if found[1] != signer.raw or key is None or not verify(key, seal.signed_bytes(), found[2]):
        raise MalformedData(f"a checkpoint that {signer} has not signed")

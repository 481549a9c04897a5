"""The UnixFS message: what a dag-pb node of a file carries in its Data. Spec: specs.ipfs.tech "UnixFS".

    message Data { required Type = 1; bytes Data = 2; uint64 filesize = 3; repeated uint64 blocksizes = 4;
                   uint64 hashType = 5; uint64 fanout = 6; uint32 mode = 7; UnixTime mtime = 8; }

Written in ascending order; Data only where there is some; filesize always, also 0; blocksizes unpacked, one for each
link. Mode and mtime are never written and ignored when read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.dag_pb import MAX_LINKS
from ipfsreg.ipld.protobuf import FieldValue, expect_bytes, expect_int, read_fields
from ipfsreg.ipld.varint import decode_varint, encode_varint


class UnixfsType(IntEnum):
    """What a node stands for."""

    RAW = 0
    """A piece of a file; only written by trickle layouts and old importers."""
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True)
class UnixfsNode:
    """One UnixFS message."""

    type: UnixfsType
    data: bytes | memoryview = b""
    """Content that comes before that of the children."""
    filesize: int | None = None
    """Content bytes of this node and all below it; None where the field is absent."""
    blocksizes: tuple[int, ...] = ()
    """Content bytes below each child."""

    def encode(self) -> bytes:
        """The message. An absent filesize is left out."""
        parts: list[bytes | memoryview] = [b"\x08", encode_varint(self.type)]
        if len(self.data):
            parts += (b"\x12", encode_varint(len(self.data)), self.data)
        if self.filesize is not None:
            parts += (b"\x18", encode_varint(self.filesize))
        parts += [b"\x20" + encode_varint(size) for size in self.blocksizes]
        return b"".join(parts)

    @classmethod
    def decode(cls, message: bytes | memoryview) -> UnixfsNode:
        """Read one message. Fields we do not know are skipped; the content is a slice, not a copy.

        Raises:
            MalformedData: no type or an unknown one, more block sizes than a node may have links, a field of the
                wrong wire type.
        """
        kind: int | None = None
        data: bytes | memoryview = b""
        filesize: int | None = None
        blocksizes: list[int] = []
        for number, value in read_fields(message):
            if number == 1:
                kind = expect_int(value)
            elif number == 2:
                data = expect_bytes(value)
            elif number == 3:
                filesize = expect_int(value)
            elif number == 4:
                _read_sizes(value, blocksizes)
        try:
            kind = UnixfsType(-1 if kind is None else kind)
        except ValueError:
            raise MalformedData("UnixFS message without a known type") from None
        return cls(kind, data, filesize, tuple(blocksizes))


def _read_sizes(value: FieldValue, sizes: list[int]) -> None:
    """Take in one blocksizes field: a number, or several of them packed as proto3 writers do."""
    if isinstance(value, int):
        sizes.append(value)
    else:
        position = 0
        while position < len(value) and len(sizes) <= MAX_LINKS:
            size, position = decode_varint(value, position)
            sizes.append(size)
    if len(sizes) > MAX_LINKS:
        raise MalformedData(f"UnixFS message with more than {MAX_LINKS} block sizes")


def leaf_frame(size: int) -> tuple[bytes, bytes]:
    """The bytes before and behind *size* content bytes in a dag-pb leaf of type File.

    With them a leaf can be hashed and served out of a contiguous file, without a second copy of its content.
    """
    filesize = b"\x18" + encode_varint(size)
    head = b"\x08\x02" + (b"\x12" + encode_varint(size) if size else b"")
    return b"\x0a" + encode_varint(len(head) + size + len(filesize)) + head, filesize


def inner_message(blocksizes: Sequence[int]) -> bytes:
    """The message of an inner node of type File without content of its own."""
    return UnixfsNode(UnixfsType.FILE, filesize=sum(blocksizes), blocksizes=tuple(blocksizes)).encode()

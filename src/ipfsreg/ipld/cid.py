"""Content identifiers: what a block is called. Spec: multiformats/cid."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

import base58

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.varint import decode_varint, encode_varint

RAW = 0x55
DAG_PB = 0x70

IDENTITY = 0x00
SHA2_256 = 0x12
SHA2_512 = 0x13
BLAKE2B_256 = 0xB220

MAX_CID_BYTES = 168
"""Longer ones are refused: boxo skips them too (its limit is the same), and none is needed."""

MAX_CID_CHARACTERS = 1 + 2 * MAX_CID_BYTES
"""Text is measured before it is decoded: base58 takes quadratic time."""

_SHA2_256_HEAD = b"\x12\x20"
"""sha2-256 with all its 32 bytes: nearly every multihash there is."""


_HASHERS: dict[int, tuple[int, Callable[[bytes | memoryview], bytes]]] = {
    SHA2_256: (32, lambda data: hashlib.sha256(data).digest()),
    SHA2_512: (64, lambda data: hashlib.sha512(data).digest()),
    BLAKE2B_256: (32, lambda data: hashlib.blake2b(data, digest_size=32).digest()),
}
"""Hash function -> digest length, and the hash of some bytes."""


@dataclass(frozen=True, slots=True)
class Cid:
    """A content identifier, version 0 or 1.

    Two CIDs of the same bytes under different codecs are different CIDs and share a multihash; stores key by the
    multihash.
    """

    version: int
    codec: int
    multihash: bytes
    _hash: int = field(init=False, repr=False, compare=False, default=0)

    def __post_init__(self) -> None:
        # Hashed once: CIDs are dictionary keys in every hot path of the block exchange.
        object.__setattr__(self, "_hash", hash((self.version, self.codec, self.multihash)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def of(cls, codec: int, data: bytes | bytearray | memoryview) -> Cid:
        """The CIDv1 of *data* with sha2-256."""
        return cls.from_sha256(codec, hashlib.sha256(data).digest())

    @classmethod
    def from_sha256(cls, codec: int, digest: bytes) -> Cid:
        """The CIDv1 of content whose sha2-256 is already known, 32 bytes."""
        return cls(1, codec, b"\x12\x20" + digest)

    @classmethod
    def under(cls, prefix: bytes, data: bytes | memoryview) -> Cid:
        """The CID of *data* that begins with *prefix*: version, codec, hash function and digest length.

        Raises:
            MalformedData: not such a prefix, or a hash function we do not know.
        """
        if prefix == b"\x00\x70\x12\x20":
            return cls(0, DAG_PB, _SHA2_256_HEAD + hashlib.sha256(data).digest())
        version, position = _decode_minimal(prefix, 0)
        codec, start = _decode_minimal(prefix, position)
        code, position = _decode_minimal(prefix, start)
        length, end = _decode_minimal(prefix, position)
        hasher = _HASHERS.get(code)
        if version != 1 or end != len(prefix) or hasher is None or length != hasher[0]:
            raise MalformedData(f"{prefix[:64].hex()} is not the prefix of a CID that can be checked")
        return cls(1, codec, prefix[start:] + hasher[1](data))

    @classmethod
    def decode(cls, raw: bytes | memoryview) -> Cid:
        """Read exactly one binary CID.

        Raises:
            MalformedData: anything else, a trailing byte included.
        """
        cid, end = cls.decode_prefix(raw)
        if end != len(raw):
            raise MalformedData(f"{len(raw) - end} bytes behind a CID")
        return cid

    @classmethod
    def decode_prefix(cls, raw: bytes | memoryview, offset: int = 0) -> tuple[Cid, int]:
        """Read the binary CID at *offset*; return it and the offset behind it. Raises MalformedData."""
        head = bytes(raw[offset : offset + 4])
        if head == b"\x01\x55\x12\x20" or head == b"\x01\x70\x12\x20":
            end = offset + 36
            if end > len(raw):
                raise MalformedData("truncated CID")
            return cls(1, head[1], bytes(raw[offset + 2 : end])), end
        if head[:2] == _SHA2_256_HEAD:
            end = offset + 34
            if end > len(raw):
                raise MalformedData("truncated CIDv0")
            return cls(0, DAG_PB, bytes(raw[offset:end])), end
        version, position = _decode_minimal(raw, offset)
        if version != 1:
            raise MalformedData(f"CID version {version}")
        codec, start = _decode_minimal(raw, position)
        _, position = _decode_minimal(raw, start)
        length, position = _decode_minimal(raw, position)
        end = position + length
        if end > len(raw) or end - offset > MAX_CID_BYTES:
            raise MalformedData(f"CID of {end - offset} bytes")
        return cls(1, codec, bytes(raw[start:end])), end

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Read the text form: base58 (CIDv0), base32 lower or base58btc (CIDv1). Raises MalformedData."""
        if len(text) > MAX_CID_CHARACTERS:
            raise MalformedData(f"{len(text)} characters are not a CID")
        try:
            if len(text) == 46 and text.startswith("Qm"):
                return cls.decode(base58.b58decode(text))
            if text[:1] in ("b", "B"):
                body = text[1:].upper()
                raw = base64.b32decode(body + "=" * (-len(body) % 8))
            elif text[:1] == "z":
                raw = base58.b58decode(text[1:])
            else:
                raise MalformedData(f"{text[:100]!r} is not a CID")
        except ValueError as error:
            raise MalformedData(f"{text[:100]!r} is not a CID: {error}") from None
        cid = cls.decode(raw)
        if cid.version == 0:
            raise MalformedData(f"{text[:100]!r} is a CIDv0 behind a multibase letter")
        return cid

    def __bytes__(self) -> bytes:
        if self.version == 0:
            return self.multihash
        return b"\x01" + encode_varint(self.codec) + self.multihash

    def __str__(self) -> str:
        if self.version == 0:
            return base58.b58encode(self.multihash).decode()
        return "b" + base64.b32encode(bytes(self)).decode().rstrip("=").lower()

    def __repr__(self) -> str:
        return f"Cid({self})"

    @property
    def hash_code(self) -> int:
        """The multihash function, as its multicodec number."""
        return decode_varint(self.multihash)[0]

    @property
    def digest(self) -> bytes:
        """The hash itself, without the two numbers before it."""
        return self.multihash[self._head_bytes() :]

    @property
    def prefix(self) -> bytes:
        """Version, codec, hash function and digest length, as bitswap sends them beside a block."""
        if self.version == 0:
            return b"\x00\x70\x12\x20"
        return b"\x01" + encode_varint(self.codec) + self.multihash[: self._head_bytes()]

    def _head_bytes(self) -> int:
        """Length of the two numbers before the digest."""
        if self.multihash[:2] == _SHA2_256_HEAD:
            return 2
        _, position = decode_varint(self.multihash)
        return decode_varint(self.multihash, position)[1]

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether *data* hashes to this CID. False too for a hash function we do not know, or a shortened hash."""
        code = self.hash_code
        if code == SHA2_256:
            return hashlib.sha256(data).digest() == self.digest
        if code == SHA2_512:
            return hashlib.sha512(data).digest() == self.digest
        if code == BLAKE2B_256:
            return hashlib.blake2b(data, digest_size=32).digest() == self.digest
        return code == IDENTITY and data == self.digest


def _decode_minimal(raw: bytes | memoryview, offset: int) -> tuple[int, int]:
    """A varint in its one shortest form: a longer one would give the same CID a second spelling."""
    value, end = decode_varint(raw, offset)
    if end - offset > 1 and raw[end - 1] == 0:
        raise MalformedData("varint with needless bytes in a CID")
    return value, end

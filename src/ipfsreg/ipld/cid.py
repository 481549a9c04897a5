"""Content identifiers: what a block is called. Spec: multiformats/cid."""

from __future__ import annotations

import base64
import hashlib
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

MAX_IDENTITY_BYTES = 128

_HASHERS = {
    SHA2_256: ("sha256", 32),
    SHA2_512: ("sha512", 64),
}


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
        if bytes(raw[offset : offset + 2]) == b"\x12\x20":
            if len(raw) < offset + 34:
                raise MalformedData("truncated CIDv0")
            return cls(0, DAG_PB, bytes(raw[offset : offset + 34])), offset + 34
        version, position = decode_varint(raw, offset)
        if version != 1:
            raise MalformedData(f"CID version {version}")
        codec, start = decode_varint(raw, position)
        _, position = decode_varint(raw, start)
        length, position = decode_varint(raw, position)
        end = position + length
        if end > len(raw) or end - offset > MAX_CID_BYTES:
            raise MalformedData(f"CID of {end - offset} bytes")
        return cls(1, codec, bytes(raw[start:end])), end

    @classmethod
    def parse(cls, text: str) -> Cid:
        """Read the text form: base58 (CIDv0), base32 lower or base58btc (CIDv1). Raises MalformedData."""
        try:
            if len(text) == 46 and text.startswith("Qm"):
                return cls.decode(base58.b58decode(text))
            if text[:1] in ("b", "B"):
                body = text[1:].upper()
                return cls.decode(base64.b32decode(body + "=" * (-len(body) % 8)))
            if text[:1] == "z":
                return cls.decode(base58.b58decode(text[1:]))
        except ValueError as error:
            raise MalformedData(f"{text[:100]!r} is not a CID: {error}") from None
        raise MalformedData(f"{text[:100]!r} is not a CID")

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
        _, position = decode_varint(self.multihash)
        _, position = decode_varint(self.multihash, position)
        return self.multihash[position:]

    @property
    def prefix(self) -> bytes:
        """Version, codec, hash function and digest length, as bitswap sends them beside a block."""
        digest = self.digest
        if self.version == 0:
            return b"\x00\x70\x12\x20"
        head = self.multihash[: len(self.multihash) - len(digest)]
        return b"\x01" + encode_varint(self.codec) + head

    def matches(self, data: bytes | bytearray | memoryview) -> bool:
        """Whether *data* hashes to this CID. False too for a hash function we do not know."""
        code = self.hash_code
        if code == IDENTITY:
            return self.digest == bytes(data)
        if code == BLAKE2B_256:
            return self.digest == hashlib.blake2b(data, digest_size=32).digest()
        known = _HASHERS.get(code)
        return known is not None and self.digest == hashlib.new(known[0], data).digest()

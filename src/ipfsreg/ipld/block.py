"""Blocks: bytes together with the CID that names them."""

from __future__ import annotations

from dataclasses import dataclass

from ipfsreg.errors import BlockCorrupt
from ipfsreg.ipld.cid import RAW, Cid

MAX_BLOCK_BYTES = 2 * 1024 * 1024
"""Bitswap peers must take blocks up to 2 MiB and may refuse larger ones."""


@dataclass(frozen=True, slots=True)
class Block:
    """Bytes and the CID that names them. Holding one proves the hash was checked."""

    cid: Cid
    data: bytes | memoryview
    """Never written to again, also when it is a view into a larger buffer."""

    @classmethod
    def of(cls, data: bytes | memoryview, codec: int = RAW) -> Block:
        """Name *data* of ours with a CIDv1 and sha2-256."""
        return cls(Cid.of(codec, data), data)

    @classmethod
    def verified(cls, cid: Cid, data: bytes | memoryview) -> Block:
        """Accept *data* from outside as *cid*, or raise BlockCorrupt."""
        if not cid.matches(data):
            raise BlockCorrupt(f"{len(data)} bytes do not hash to {cid}")
        return cls(cid, data)

    @classmethod
    def under(cls, prefix: bytes, data: bytes | memoryview) -> Block:
        """Name *data* from outside by hashing it: *prefix* is its CID without the digest (`Cid.prefix`).

        Raises:
            MalformedData: no CID begins like that, or with a hash function we do not know.
        """
        return cls(Cid.under(prefix, data), data)

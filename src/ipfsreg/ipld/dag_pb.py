"""dag-pb: the block format of UnixFS and of the name store's nodes. Spec: ipld.io "DAG-PB".

    message PBLink { optional bytes Hash = 1; optional string Name = 2; optional uint64 Tsize = 3; }
    message PBNode { repeated PBLink Links = 2; optional bytes Data = 1; }

The bytes are part of the name (a CID hashes them), so they are laid out exactly as Go does it: all links first, in the
order of their names, each with Hash, Name and Tsize written even when empty or zero; then Data.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import MAX_BLOCK_BYTES
from ipfsreg.ipld.cid import Cid
from ipfsreg.ipld.protobuf import expect_bytes, expect_int, read_fields
from ipfsreg.ipld.varint import encode_varint

MAX_LINKS = 16_384
"""More links in one node are refused. The widest UnixFS profile in use writes 1,024; 2 MiB could hold 50,000."""


@dataclass(frozen=True, slots=True)
class PBLink:
    """A named edge to another block."""

    cid: Cid
    tsize: int = 0
    """Bytes of all blocks below, as the author claims."""
    name: bytes = b""
    """UTF-8 by the spec; kept as bytes because Go takes, and hashes, any others too."""

    def encode(self) -> bytes:
        """The PBLink message."""
        raw = bytes(self.cid)
        return b"".join(
            (
                b"\x0a",
                encode_varint(len(raw)),
                raw,
                b"\x12",
                encode_varint(len(self.name)),
                self.name,
                b"\x18",
                encode_varint(self.tsize),
            )
        )


@dataclass(frozen=True, slots=True)
class PBNode:
    """Links to other blocks, and a payload of the format above."""

    links: tuple[PBLink, ...] = ()
    data: bytes | memoryview | None = None
    """None: the field is absent. Empty: it is written, with length zero."""

    def encode(self) -> bytes:
        """The block's bytes, in Go's canonical order."""
        links: Iterable[PBLink] = self.links
        if any(link.name for link in self.links):
            links = sorted(self.links, key=lambda link: link.name)
        parts: list[bytes | memoryview] = []
        for link in links:
            message = link.encode()
            parts += (b"\x12", encode_varint(len(message)), message)
        if self.data is not None:
            parts += (b"\x0a", encode_varint(len(self.data)), self.data)
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes | memoryview, *, max_links: int = MAX_LINKS) -> PBNode:
        """Read one block of at most 2 MiB. The payload is a slice of *data*, not a copy.

        Raises:
            MalformedData: too large, more than *max_links* links, a field other than Links and Data, Data twice,
                links on both sides of Data, a link without a CID or with its fields out of order. Go refuses the same,
                apart from the limits.
        """
        if len(data) > MAX_BLOCK_BYTES:
            raise MalformedData(f"dag-pb block of {len(data)} bytes, {MAX_BLOCK_BYTES} are allowed")
        links: list[PBLink] = []
        payload: memoryview | None = None
        links_before_data = False
        for number, value in read_fields(data):
            if number == 2:
                if links_before_data:
                    raise MalformedData("dag-pb links on both sides of Data")
                if len(links) >= max_links:
                    raise MalformedData(f"dag-pb node with more than {max_links} links")
                links.append(_decode_link(expect_bytes(value)))
            elif number == 1:
                if payload is not None:
                    raise MalformedData("dag-pb node with Data twice")
                payload = expect_bytes(value)
                links_before_data = bool(links)
            else:
                raise MalformedData(f"dag-pb node with field {number}")
        return cls(tuple(links), payload)


def _decode_link(message: memoryview) -> PBLink:
    cid: Cid | None = None
    name, tsize, last = b"", 0, 0
    for number, value in read_fields(message):
        if number <= last:
            raise MalformedData(f"dag-pb link with field {number} behind field {last}")
        last = number
        if number == 1:
            cid = Cid.decode(expect_bytes(value))
        elif number == 2:
            name = bytes(expect_bytes(value))
        elif number == 3:
            tsize = expect_int(value)
        else:
            raise MalformedData(f"dag-pb link with field {number}")
    if cid is None:
        raise MalformedData("dag-pb link without a CID")
    return PBLink(cid, tsize, name)

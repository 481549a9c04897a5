"""Signatures on deltas: who wrote a node, provable from the node alone, however it travelled.

    message Signature { bytes peer = 1; bytes signature = 2; }      field 1000 of Delta, its last field

Go replicas pass over fields they do not know, so a signed node is a node like any other to them. Signed are

    "ipfsreg delta 1\\0", the number of links (varint), the multihash of each link in the order of the block,
    the bytes of the Delta before field 1000

with the key that the peer ID carries (Ed25519). In epochs from the second on "ipfsreg delta 2\\0" and the number of the
epoch (varint) come first instead: what was written in an epoch before is not to be said again in a later one, where it
would win over the names that one began with. Links are part of it, so a delta cannot be lifted to another place in the
DAG, where it would win over other values. Whoever changes a signed node makes one without a right signature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, read_fields
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.identity import public_key_in, verify
from ipfsreg.peer_id import PeerId

SIGNATURE_FIELD = 1000
"""In Delta. Below 100 upstream may need numbers."""

_CONTEXT = b"ipfsreg delta 1\0"
_CONTEXT_OF_EPOCH = b"ipfsreg delta 2\0"


class Signer(Protocol):
    """Who signs what we write. A `Network` is one. Called in the writer thread."""

    @property
    def peer_id(self) -> PeerId:
        """Ourselves."""

    def sign(self, data: bytes) -> bytes:
        """The signature of *data*."""


def signed_delta(links: Sequence[bytes], delta: bytes, signer: Signer, epoch: int = 1) -> bytes:
    """The encoded *delta* with the signature it has on top of *links* in *epoch*."""
    signature = signer.sign(_signed_bytes(epoch, links, delta))
    return delta + bytes_field(SIGNATURE_FIELD, bytes_field(1, signer.peer_id.raw) + bytes_field(2, signature))


def author_of(links: Sequence[bytes], delta: bytes | memoryview, epoch: int = 1) -> PeerId | None:
    """Who signed the encoded *delta* on top of *links* in *epoch*; None where nobody did. One check: about 70 us.

    Raises:
        MalformedData: a signature that is not right, or not in this epoch, or not where it belongs, or of a key that
            no peer ID carries.
    """
    found = None
    signatures = 0
    for number, value in read_fields(delta):  # a million of them fit into a block: none is kept
        if number == SIGNATURE_FIELD:
            found = value
            signatures += 1
    if found is None:
        return None
    content = expect_bytes(found)
    field = bytes_field(SIGNATURE_FIELD, content)
    if signatures > 1 or bytes(delta[-len(field) :]) != field:
        raise MalformedData("a signature that is not the last field")
    peer, signature = b"", b""
    for number, value in read_fields(content):
        if number == 1:
            peer = bytes(expect_bytes(value))
        elif number == 2:
            signature = bytes(expect_bytes(value))
    author = PeerId.decode(peer)
    key = public_key_in(author)
    if key is None or not verify(key, _signed_bytes(epoch, links, delta[: -len(field)]), signature):
        raise MalformedData(f"a signature that is not one of {author} in epoch {epoch}")
    return author


def _signed_bytes(epoch: int, links: Sequence[bytes], delta: bytes | memoryview) -> bytes:
    context = _CONTEXT if epoch == 1 else _CONTEXT_OF_EPOCH + encode_varint(epoch)
    return b"".join((context, encode_varint(len(links)), *links, delta))

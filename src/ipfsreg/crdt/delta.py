"""What replicas say to each other: deltas in DAG nodes, and broadcasts of heads. Byte for byte go-ds-crdt.

    message Element       { string key = 1; string id = 2; bytes value = 3; }
    message Delta         { repeated Element elements = 1; repeated Element tombstones = 2;
                            uint64 priority = 3; string dagName = 4; }
    message Head          { bytes Cid = 1; string DagName = 2; }
    message CRDTBroadcast { repeated Head Heads = 1; }

A node is a dag-pb block: one link for each head its author had, unnamed and without a size, then the delta. Fields are
written in ascending order and left out where they hold the default. An element travels without an id (its id is the
block it stands in); a tombstone has the id of the block whose element it removes.

What a peer sends is judged in two steps. Bytes that are no node are `MalformedData`: nothing can be done with them.
A node that breaks a rule is a `Node` with a `fault`: its links are followed, so that the DAG stays whole, and what it
says is dropped. Only unknown fields inside Delta and Head are free for extensions: Go passes over them, and takes a
broadcast with an unknown field at the top for something else. Ours is the signature (signing.py).
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from ipfsreg.crdt.keys import is_normal_key
from ipfsreg.crdt.signing import Signer, author_of, signed_delta
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, read_fields, varint_field
from ipfsreg.peer_id import PeerId

MAX_PRIORITY = 1 << 48
"""No honest DAG gets this high; above it lie overflows."""

MAX_NODE_LINKS = 4096
"""More links than any honest replica has heads."""

MAX_DAG_NAME_BYTES = 128

MAX_HEADS_PER_BROADCAST = 512
"""About 20 kB a message, far below every pubsub limit; more heads go out in several messages."""

_SHA2_256_PREFIX = b"\x12\x20"
_BLOCK_ID = re.compile(r"/[A-Z2-7]{55}")


def block_id(multihash: bytes) -> str:
    """The id by which deltas name the block with this *multihash*."""
    return "/" + base64.b32encode(multihash).decode().rstrip("=")


def multihash_of_id(text: str) -> bytes:
    """The sha2-256 multihash that a block id names. Raises MalformedData for any other text."""
    if _BLOCK_ID.fullmatch(text):
        multihash = base64.b32decode(text[1:] + "=")
        if multihash.startswith(_SHA2_256_PREFIX) and block_id(multihash) == text:
            return multihash
    raise MalformedData(f"{text[:80]!r} is not a block id")


def node_cid(multihash: bytes) -> Cid:
    """The CID of the DAG node with this *multihash*; nodes are known by their multihash everywhere else."""
    return Cid(1, DAG_PB, multihash)


def is_node_cid(cid: Cid) -> bool:
    """Whether *cid* can name a DAG node: dag-pb and sha2-256, CIDv0 included."""
    return cid.codec == DAG_PB and len(cid.multihash) == 34 and cid.multihash.startswith(_SHA2_256_PREFIX)


@dataclass(frozen=True, slots=True)
class Element:
    """A value set for a key."""

    key: str
    value: bytes

    def encode(self) -> bytes:
        """The Element message, as it stands in `elements`."""
        value = bytes_field(3, self.value) if self.value else b""
        return bytes_field(1, self.key.encode()) + value


@dataclass(frozen=True, slots=True)
class Tombstone:
    """The removal of what one block set for a key."""

    key: str
    id: str
    """Block id, with its leading slash: without it Go stores the tombstone and goes on serving the value."""

    def encode(self) -> bytes:
        """The Element message, as it stands in `tombstones`."""
        return bytes_field(1, self.key.encode()) + bytes_field(2, self.id.encode())


@dataclass(frozen=True, slots=True)
class Delta:
    """The content of one node."""

    elements: tuple[Element, ...] = ()
    tombstones: tuple[Tombstone, ...] = ()
    priority: int = 0
    """The height the author gives the node: 1 + that of the highest head it had."""
    dag_name: str = ""

    def encode(self) -> bytes:
        """The Delta message."""
        parts = [bytes_field(1, element.encode()) for element in self.elements]
        parts += [bytes_field(2, tombstone.encode()) for tombstone in self.tombstones]
        if self.priority:
            parts.append(varint_field(3, self.priority))
        if self.dag_name:
            parts.append(bytes_field(4, self.dag_name.encode()))
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Delta:
        """Read a Delta; unknown fields are passed over, as are known ones of the wrong type. Raises MalformedData.

        Of elements and of tombstones with nothing in them the first is kept: it makes the node one that does not
        count, and a block has room for a million, which would take 64 MiB and a second.
        """
        elements: list[Element] = []
        tombstones: list[Tombstone] = []
        hollow: set[int] = set()
        priority, dag_name = 0, ""
        for number, value in read_fields(data):
            if number == 3 and isinstance(value, int):
                priority = value
            elif isinstance(value, int) or (number in hollow and not value):
                continue
            elif number == 1:
                if not value:
                    hollow.add(1)
                key, _, content = _decode_element(value)
                elements.append(Element(key, content))
            elif number == 2:
                if not value:
                    hollow.add(2)
                key, removed, _ = _decode_element(value)
                tombstones.append(Tombstone(key, removed))
            elif number == 4:
                dag_name = _text(value)
        if len(dag_name.encode()) > MAX_DAG_NAME_BYTES or "/" in dag_name:
            raise MalformedData(f"DAG name {dag_name[:MAX_DAG_NAME_BYTES]!r}")
        return cls(tuple(elements), tuple(tombstones), priority, dag_name)


def _decode_element(message: memoryview) -> tuple[str, str, bytes]:
    key, identifier, content = "", "", b""
    for number, value in read_fields(message):
        if isinstance(value, int):
            continue
        if number == 1:
            key = _text(value)
        elif number == 2:
            identifier = _text(value)
        elif number == 3:
            content = bytes(value)
    return key, identifier, content


def _text(value: memoryview) -> str:
    try:
        return bytes(value).decode()
    except UnicodeDecodeError as error:
        raise MalformedData(f"protobuf string that is not UTF-8: {error}") from None


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the DAG, parsed and judged on its own."""

    block: Block
    links: tuple[bytes, ...]
    """Multihashes of the nodes it builds on; links that can name no node are left out."""
    delta: Delta
    fault: str | None
    """The rule it breaks: such a node is part of the DAG, and nothing it says counts."""
    author: PeerId | None = None
    """Who signed it, checked; None: nobody did, as with nodes of Go."""

    @property
    def multihash(self) -> bytes:
        """What it is known by."""
        return self.block.cid.multihash


def build_node(links: Iterable[bytes], delta: Delta, signer: Signer | None = None, epoch: int = 1) -> Node:
    """The node of ours that builds on the nodes *links* (multihashes) in *epoch*; links are put in byte order.

    Go's order is that of a map, so nobody can rely on it; ours is always the same.
    """
    ordered = tuple(sorted(links))
    data = delta.encode() if signer is None else signed_delta(ordered, delta.encode(), signer, epoch)
    encoded = PBNode(tuple(PBLink(node_cid(link)) for link in ordered), data).encode()
    return Node(Block.of(encoded, DAG_PB), ordered, delta, None, None if signer is None else signer.peer_id)


def parse_node(block: Block, epoch: int = 1) -> Node:
    """Read the node in *block*, whose hash was checked, as one of *epoch*.

    Raises:
        MalformedData: it is no node; Go refuses it too.
    """
    if not is_node_cid(block.cid):
        raise MalformedData(f"{block.cid} does not name a node")
    content = PBNode.decode(block.data)
    data = content.data if content.data is not None else b""
    delta = Delta.decode(data)
    links = tuple(dict.fromkeys(link.cid.multihash for link in content.links if is_node_cid(link.cid)))
    strange = next((str(link.cid) for link in content.links if not is_node_cid(link.cid)), None)
    fault = f"a link to {strange}, which names no node" if strange else None
    if len(content.links) > MAX_NODE_LINKS:
        fault = f"{len(content.links)} links, allowed are {MAX_NODE_LINKS}"
    fault = fault or _fault_of(delta)
    author = None
    if fault is None:
        try:
            author = author_of([link.cid.multihash for link in content.links], data, epoch)
        except MalformedData as error:
            fault = str(error)
    block = Block(node_cid(block.cid.multihash), block.data)
    return Node(block, links, delta, fault, author)


def _fault_of(delta: Delta) -> str | None:
    if not 1 <= delta.priority <= MAX_PRIORITY:
        return f"priority {delta.priority}, allowed are 1 to 2^48"
    for element in delta.elements:
        if not is_normal_key(element.key):
            return f"the key {element.key[:80]!r} is not in normal form"
    for tombstone in delta.tombstones:
        if not is_normal_key(tombstone.key):
            return f"the key {tombstone.key[:80]!r} is not in normal form"
        try:
            multihash_of_id(tombstone.id)
        except MalformedData as error:
            return str(error)
    return None


@dataclass(frozen=True, slots=True)
class Head:
    """A head as it is announced."""

    multihash: bytes
    dag_name: str = ""


def encode_broadcasts(heads: Sequence[Head]) -> list[bytes]:
    """The messages that announce *heads*, in as many pieces as the limit asks for; none for none."""
    messages = []
    for start in range(0, len(heads), MAX_HEADS_PER_BROADCAST):
        piece = heads[start : start + MAX_HEADS_PER_BROADCAST]
        messages.append(b"".join(bytes_field(1, _encode_head(head)) for head in piece))
    return messages


def _encode_head(head: Head) -> bytes:
    name = bytes_field(2, head.dag_name.encode()) if head.dag_name else b""
    return bytes_field(1, bytes(node_cid(head.multihash))) + name


def decode_broadcast(data: bytes, limit: int) -> list[Head]:
    """The heads among the first *limit* that a message announces. One that cannot be a head is left out; the others
    count.

    The message of before 2020, one bare CIDv0, is understood.

    Raises:
        MalformedData: not a broadcast, or one with an unknown field at the top, which Go drops as well.
    """
    if len(data) == 34 and data.startswith(_SHA2_256_PREFIX):
        return [Head(data)]
    heads: list[Head] = []
    for number, value in islice(read_fields(data), limit):
        if number != 1:
            raise MalformedData(f"broadcast with field {number}")
        head = _decode_head(expect_bytes(value))
        if head is not None:
            heads.append(head)
    return heads


def _decode_head(message: memoryview) -> Head | None:
    cid: Cid | None = None
    dag_name = ""
    try:
        for number, value in read_fields(message):
            if number == 1 and not isinstance(value, int):
                cid = Cid.decode(value)
            elif number == 2 and not isinstance(value, int):
                dag_name = _text(value)
    except MalformedData:
        return None
    return Head(cid.multihash, dag_name) if cid is not None and is_node_cid(cid) else None

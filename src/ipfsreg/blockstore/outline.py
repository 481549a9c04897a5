"""What is known of a DAG while its blocks arrive: which bytes are here, and which blocks bring the others.

Pure. Only what is missing is kept, as a sorted list of spans: each is a stretch of the file and the one block that
brings it. A leaf that comes removes its span; an inner node replaces its span by those of its children. So the list
shrinks as the file grows, a range is whole when no span touches it, and one block may stand for many spans (a run of
zeros is the same leaf again and again).

Nothing an inner node claims is believed beyond its parent's claim: the sizes of the children must add up to the span.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, IDENTITY, RAW, Cid
from ipfsreg.ipld.dag_pb import PBNode
from ipfsreg.ipld.unixfs import UnixfsNode, UnixfsType, leaf_frame

MAX_DEPTH = 16
"""Deeper DAGs are refused; balanced layouts of real files have at most four levels."""

MAX_SPANS = 1 << 20
"""DAGs of more blocks are refused: 256 GiB in leaves of 256 KiB, 1 TiB in ours."""


@dataclass(frozen=True, slots=True)
class Span:
    """The content bytes [start, end), which the block *cid* brings."""

    start: int
    end: int
    cid: Cid
    depth: int


@dataclass(frozen=True, slots=True)
class Leaf:
    """Where the content of a leaf lies in the file."""

    offset: int
    length: int
    """Content bytes."""
    framed: bool
    """The block is a dag-pb leaf in canonical form: `leaf_frame(length)` around the content. Else the content alone."""

    @property
    def block_bytes(self) -> int:
        """Length of the block."""
        return self.length + (sum(map(len, leaf_frame(self.length))) if self.framed else 0)

    def block_data(self, content: bytes) -> bytes:
        """The block made of its content."""
        if not self.framed:
            return content
        head, tail = leaf_frame(self.length)
        return b"".join((head, content, tail))


@dataclass(frozen=True, slots=True)
class Placement:
    """What one block means for the file. Made by `Outline.place`, taken in by `Outline.settle`."""

    block: Block
    spans: tuple[Span, ...]
    """Those the block was awaited for. Empty: nobody waits for it."""
    content: bytes | memoryview
    """Content bytes of the block itself; they belong at the start of each span."""
    leaf: Leaf | None
    """Set if the block can be made again from the file."""
    children: tuple[tuple[Cid, int], ...]
    """Of an inner node: each child and its content bytes."""


class Outline:
    """A file of known size and root, of which blocks have come or not."""

    def __init__(self, root: Cid, size: int) -> None:
        self.root = root
        self.size = size
        self.leaves: dict[bytes, Leaf] = {}
        """Multihash -> where in the file, of leaves that are here."""
        self.nodes: dict[bytes, Block] = {}
        """Multihash -> block, of inner nodes that are here."""
        self.inlined: list[Block] = []
        """Blocks that are awaited and came inside their own CID (identity multihash). Place them like any other."""
        self.missing_bytes = size
        self._missing: list[Span] = []
        self._starts: list[int] = []
        self._by_hash: dict[bytes, list[Span]] = {}
        self._spans_seen = 0
        self._insert(0, [Span(0, size, root, 0)])

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here."""
        return not self._missing

    @property
    def prefix(self) -> int:
        """How many bytes are here without a gap from the start."""
        return self._starts[0] if self._starts else self.size

    def has_range(self, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is here."""
        first = self._first_touching(start)
        return first == len(self._missing) or self._starts[first] >= end

    def wanted(self, start: int, end: int, limit: int | None) -> list[Cid]:
        """The blocks missing for [start, end), in file order, each once, at most *limit*."""
        if not self.size:
            return [span.cid for span in self._missing][:limit]
        found: dict[Cid, None] = {}
        for index in range(self._first_touching(start), len(self._missing)):
            span = self._missing[index]
            if span.start >= end or (limit is not None and len(found) >= limit):
                break
            found[span.cid] = None
        return list(found)

    def _first_touching(self, start: int) -> int:
        """Index of the first missing span that ends behind *start*."""
        index = bisect_right(self._starts, start)
        if index and self._missing[index - 1].end > start:
            return index - 1
        return index

    def place(self, block: Block) -> Placement:
        """Work out where *block* belongs. Changes nothing, so that its content can be written first.

        Raises:
            MalformedData: it does not fit where it is named, so this is not the DAG of a file of that size.
        """
        spans = tuple(self._by_hash.get(block.cid.multihash, ()))
        if not spans:
            return Placement(block, (), b"", None, ())
        first = spans[0]
        if any(span.end - span.start != first.end - first.start or span.cid.codec != first.cid.codec for span in spans):
            raise MalformedData(f"the DAG gives different sizes for block {first.cid}")
        length = first.end - first.start
        if first.cid.codec == RAW:
            if len(block.data) != length:
                raise MalformedData(f"leaf {first.cid} has {len(block.data)} bytes, its parent says {length}")
            return Placement(block, spans, block.data, Leaf(first.start, length, framed=False), ())
        if first.cid.codec != DAG_PB:
            raise MalformedData(f"block {first.cid} of codec {first.cid.codec:#x} in a file")
        return self._place_node(block, spans, length)

    def _place_node(self, block: Block, spans: tuple[Span, ...], length: int) -> Placement:
        node = PBNode.decode(block.data)
        message = UnixfsNode.decode(node.data if node.data is not None else b"")
        if message.type not in (UnixfsType.FILE, UnixfsType.RAW):
            raise MalformedData(f"block {block.cid} is a UnixFS {message.type.name}, not a file")
        if len(node.links) != len(message.blocksizes):
            raise MalformedData(f"node {block.cid} has {len(node.links)} links, {len(message.blocksizes)} block sizes")
        total = len(message.data) + sum(message.blocksizes)
        if total != length or message.filesize not in (None, length):
            raise MalformedData(f"node {block.cid} has {total} bytes below it, its parent says {length}")
        if node.links and spans[0].depth >= MAX_DEPTH:
            raise MalformedData(f"the DAG is deeper than {MAX_DEPTH}")
        if self._spans_seen + len(spans) * len(node.links) > MAX_SPANS:
            raise MalformedData(f"the DAG has more than {MAX_SPANS} blocks")
        leaf = None
        if not node.links:
            head, tail = leaf_frame(length)
            if len(block.data) == len(head) + length + len(tail) and bytes(block.data[: len(head)]) == head:
                leaf = Leaf(spans[0].start, length, framed=True)
        # A child without content brings no byte of the file: it is not fetched.
        children = tuple((link.cid, size) for link, size in zip(node.links, message.blocksizes, strict=True) if size)
        return Placement(block, spans, message.data, leaf, children)

    def settle(self, placement: Placement) -> None:
        """Count what `place` found as here, its content now being in the file. Again is fine."""
        key = placement.block.cid.multihash
        # Since `place`, another node may have named the same block for more spans: those stay missing, their bytes were
        # not written. And the same block may have come twice.
        settled = set(placement.spans)
        waiting = self._by_hash.pop(key, [])
        rest = [span for span in waiting if span not in settled]
        if rest:
            self._by_hash[key] = rest
        done = [span for span in waiting if span in settled]
        if not done:
            return
        if placement.leaf is not None:
            self.leaves[key] = placement.leaf
        elif placement.children and not placement.content:
            # One with content of its own would be kept twice. No importer in use writes such a node, and peers can do
            # without it from us.
            self.nodes[key] = Block(done[0].cid, bytes(placement.block.data))
        for span in done:
            self._replace(span, placement)

    def _replace(self, span: Span, placement: Placement) -> None:
        index = bisect_left(self._starts, span.start)
        del self._starts[index]
        del self._missing[index]
        self.missing_bytes -= len(placement.content)
        position = span.start + len(placement.content)
        children: list[Span] = []
        for cid, size in placement.children:
            children.append(Span(position, position + size, cid, span.depth + 1))
            position += size
        self._insert(index, children)

    def _insert(self, index: int, spans: list[Span]) -> None:
        self._missing[index:index] = spans
        self._starts[index:index] = [span.start for span in spans]
        self._spans_seen += len(spans)
        for span in spans:
            awaited = self._by_hash.setdefault(span.cid.multihash, [])
            if not awaited and span.cid.multihash[0] == IDENTITY:
                self.inlined.append(Block(span.cid, span.cid.digest))
            awaited.append(span)

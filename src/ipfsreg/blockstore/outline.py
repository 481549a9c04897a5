"""What is here of a file while its blocks arrive, and which blocks bring the rest.

Pure. `ipld.reader` knows what a DAG says and checks it; this keeps, beside it, the stretches of the file that are
missing, in order, each with the block that brings it. A leaf that comes removes its stretches; an inner node replaces
its own by those of its children. So the list shrinks as the file grows, a range is whole when no missing stretch
touches it, and one block may stand for many (a run of zeros is the same leaf again and again).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.ipld.reader import Reader, content_of, inline_block
from ipfsreg.ipld.unixfs import leaf_frame

MAX_MISSING = 1 << 19
"""Stretches that may be missing at a time: 512 GiB in leaves of 1 MiB, and about 100 MB of memory. A few blocks that
name each other a thousand times each could claim any number."""


@dataclass(frozen=True, slots=True)
class Missing:
    """The content bytes [start, end) are not here; *cid* brings them, or says which blocks do."""

    cid: Cid
    start: int
    end: int


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

    def block_data(self, content: bytes | memoryview) -> bytes | memoryview:
        """The block made of its content."""
        if not self.framed:
            return content
        head, tail = leaf_frame(self.length)
        return b"".join((head, content, tail))


@dataclass(frozen=True, slots=True)
class Placement:
    """What one block means for the file. Made by `Outline.place`, taken in by `Outline.settle`."""

    block: Block
    spans: tuple[Missing, ...]
    """Those the block was awaited for. Empty: nobody waits for it."""
    content: bytes | memoryview
    """Content bytes of the block itself; they belong at the start of each span."""
    leaf: Leaf | None
    """Set if the block can be made again from the file."""

    @property
    def is_node(self) -> bool:
        """Whether the block only says where the content is."""
        return not self.content and any(span.start < span.end for span in self.spans)


class Outline:
    """A file of known size and root, of which blocks have come or not."""

    def __init__(self, root: Cid, size: int) -> None:
        """Nothing is here yet. Raises MalformedData: *root* cannot be a file of *size* bytes."""
        self.root = root
        self.size = size
        self.leaves: dict[bytes, Leaf] = {}
        """Multihash -> where in the file, of leaves that are here."""
        self.nodes: dict[bytes, Block] = {}
        """Multihash -> block, of inner nodes that are here."""
        self.inline: list[Block] = []
        """Blocks that are awaited and came inside their own CID. Place them like others; never ask peers for them."""
        self.again: list[Cid] = []
        """Blocks that are awaited although `leaves` has their content at another place. Place them from there."""
        self.missing_bytes = size
        self._reader = Reader(root, size=size)
        self._missing: list[Missing] = []
        self._starts: list[int] = []
        self._by_hash: dict[bytes, list[Missing]] = {}
        # The reader covers nothing of an empty file, but its root has to come.
        self._insert(0, self._uncovered(0, size) if size else [Missing(root, 0, 0)])

    @property
    def is_whole(self) -> bool:
        """Whether every byte is here."""
        return not self._missing

    @property
    def prefix(self) -> int:
        """How many bytes are here without a gap from the start."""
        return self._starts[0] if self._starts else self.size

    def missing(self) -> tuple[Missing, ...]:
        """Every stretch that is not here, in file order."""
        return tuple(self._missing)

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
        """Work out where *block* belongs. What is missing stays so, until its content is written and `settle` called.

        Raises:
            MalformedData: it does not fit where it is named, so this is not the DAG of a file of that size.
        """
        spans = tuple(self._by_hash.get(block.cid.multihash, ()))
        if not spans:
            return Placement(block, (), b"", None)
        first = spans[0]
        if any(span.cid != first.cid for span in spans):
            raise MalformedData(f"block {first.cid} is named as {spans[-1].cid} too")
        block = Block(first.cid, block.data)  # who sent it may have named it by another codec
        if first.cid.codec == RAW:
            if any(len(block.data) != span.end - span.start for span in spans):
                raise MalformedData(f"leaf {first.cid} has {len(block.data)} bytes, its parent says otherwise")
            return Placement(block, spans, block.data, Leaf(first.start, len(block.data), framed=False))
        self._reader.receive(block)
        content = content_of(block)
        leaf = None
        if len(content) == first.end - first.start:
            head, tail = leaf_frame(len(content))
            if len(block.data) == len(head) + len(content) + len(tail) and block.data[: len(head)] == head:
                leaf = Leaf(first.start, len(content), framed=True)
        return Placement(block, spans, content, leaf)

    def settle(self, placement: Placement) -> None:
        """Count what `place` found as here, its content now being in the file. Again is fine.

        Raises:
            MalformedData: the DAG is nested too deep, or has too many pieces.
        """
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
        elif placement.is_node:
            # A node with content of its own would be kept twice. No importer in use writes one, and peers can do
            # without it from us.
            self.nodes[key] = Block(placement.block.cid, bytes(placement.block.data))
        for span in done:
            self._replace(span, len(placement.content))

    def _replace(self, span: Missing, written: int) -> None:
        """The first *written* bytes of *span* are here, and the reader knows where the others are."""
        index = bisect_left(self._starts, span.start)
        del self._starts[index]
        del self._missing[index]
        self.missing_bytes -= written
        if span.start + written < span.end:
            self._insert(index, self._uncovered(span.start + written, span.end))

    def _uncovered(self, start: int, end: int) -> list[Missing]:
        """Every block of [start, end), which begins and ends at the edge of blocks."""
        return [
            Missing(part.cid, part.start, end if part.end is None else part.end)
            for part in self._reader.cover(start, end)
        ]

    def _insert(self, index: int, spans: list[Missing]) -> None:
        if len(self._missing) + len(spans) > MAX_MISSING:
            raise MalformedData(f"{self.size} bytes below {self.root} lie in more than {MAX_MISSING} pieces")
        self._missing[index:index] = spans
        self._starts[index:index] = [span.start for span in spans]
        for span in spans:
            awaited = self._by_hash.setdefault(span.cid.multihash, [])
            if not awaited:
                inline = inline_block(span.cid)
                if inline is not None:
                    self.inline.append(inline)
                elif span.cid.multihash in self.leaves:
                    self.again.append(span.cid)
            awaited.append(span)

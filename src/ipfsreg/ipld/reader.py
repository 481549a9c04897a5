"""Reading a UnixFS file out of its DAG: which blocks hold the bytes [start, end), as far as is known yet.

The reader thinks and never fetches. It starts from the root's CID; asked to `cover` a range it yields, in order, the
`Piece`s whose block holds content, and a `Gap` for every dag-pb block that must be seen before one can say more.

    for span in reader.cover(start, end):
        block = await fetch(span.cid)
        if isinstance(span, Gap):
            reader.receive(block)       # the iteration goes on inside it
        else:
            write(span.content(block))

where `fetch` asks `inline_block` before it asks peers.

It reads what any UnixFS importer writes: raw leaves and dag-pb ones (types File and Raw), any width, content in inner
nodes too (it comes before that of the children), identity CIDs.

What a DAG says about itself is a claim, whoever signed it. Everything is checked before a byte is believed: the block
sizes of a node against its filesize, both against what the parent said, Tsize against them, nesting and the number of
links against limits. A DAG cannot have cycles, a hash would have to contain itself; but the same block may stand in
many places, so nodes are kept once each and never unfolded: a few kilobytes that claim a petabyte cost kilobytes here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import DAG_PB, IDENTITY, RAW, Cid
from ipfsreg.ipld.dag_pb import MAX_LINKS, PBNode
from ipfsreg.ipld.unixfs import UnixfsNode, UnixfsType

MAX_DEPTH = 16
"""Levels of blocks from the root down. The narrowest layout in use (174) reaches the third at 8 GB."""

MAX_FILE_BYTES = (1 << 63) - 1

MIN_MEAN_LEAF_BYTES = 16 * 1024
"""Content cut finer than this is refused, but for files of few pieces (16,384). No importer in use comes near."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Content bytes [start, end) of the file, which the block *cid* holds whole."""

    cid: Cid
    start: int
    end: int

    def content(self, block: Block) -> memoryview:
        """The bytes, out of the block. Raises MalformedData: it does not hold that many."""
        if block.cid != self.cid:
            raise ValueError(f"{block.cid} is not {self.cid}")
        content = content_of(block)
        if len(content) != self.end - self.start:
            raise MalformedData(f"{self.cid} holds {len(content)} bytes, its parent says {self.end - self.start}")
        return content


@dataclass(frozen=True, slots=True)
class Gap:
    """A block to `receive` before anything can be said about the content bytes [start, end)."""

    cid: Cid
    start: int
    end: int | None
    """None: the root of a file whose size is not known."""


@dataclass(frozen=True, slots=True)
class _Node:
    """What is kept of a dag-pb block."""

    own: int
    """Content bytes in the block itself."""
    children: tuple[Cid, ...]
    starts: tuple[int, ...]
    """Where each child's content begins, counted from the beginning of this node's. One more entry: where it ends."""
    tsize: int | None
    """Bytes of all blocks from here down, where every link says so."""

    @property
    def size(self) -> int:
        return self.starts[-1]


@dataclass(frozen=True, slots=True)
class _Claim:
    """What parents say about a block that is not here yet."""

    size: int | None
    tsize: int | None


class Reader:
    """One file's DAG, as far as its dag-pb blocks have been received."""

    def __init__(self, root: Cid, *, size: int | None = None) -> None:
        """Begin at *root*. *size* is the number of content bytes, where it is known from elsewhere.

        Raises:
            MalformedData: *root* cannot be a file, or not of that size.
        """
        self._root = root
        self._size = size
        self._nodes: dict[Cid, _Node] = {}
        self._claims: dict[Cid, _Claim] = {}
        self._link(root, size, None)

    @property
    def root(self) -> Cid:
        """Where the file begins."""
        return self._root

    @property
    def size(self) -> int | None:
        """Content bytes of the file; None before the root is here, unless it was given."""
        return self._size

    def receive(self, block: Block) -> None:
        """Learn what is below *block*, which a Gap named. Receiving it again changes nothing.

        The content it may hold itself is not kept: later its Piece asks for the same block.

        Raises:
            MalformedData: it is not a node of a file, or contradicts itself or its parents. The file is unreadable.
        """
        cid = block.cid
        if cid in self._nodes:
            return
        claim = self._claims.get(cid)
        if claim is None:
            raise ValueError(f"{cid} was not asked for")
        if cid.codec == RAW:
            node = _Node(len(block.data), (), (len(block.data),), len(block.data))
        else:
            node = self._read(block)
        _check(cid, claim, node)
        if cid == self._root:
            self._size = node.size
        self._nodes[cid] = node
        del self._claims[cid]

    def _read(self, block: Block) -> _Node:
        """Parse a dag-pb block and take in the links below it."""
        pb, unixfs = _parse(block)
        if len(pb.links) != len(unixfs.blocksizes):
            raise MalformedData(f"{block.cid} has {len(pb.links)} links and {len(unixfs.blocksizes)} block sizes")
        own = len(unixfs.data)
        starts = tuple(accumulate(unixfs.blocksizes, initial=own))
        if starts[-1] > MAX_FILE_BYTES or unixfs.filesize not in (None, starts[-1]):
            raise MalformedData(f"{block.cid} says it holds {unixfs.filesize} bytes, its parts {starts[-1]}")
        # Each node gets its share of the links a file of this size may have. A sum over all nodes would not do: one
        # may stand in a million places, and callers keep something for each place.
        whole = self._size or starts[-1]
        if len(pb.links) > max(1, starts[-1] * (MAX_LINKS + whole // MIN_MEAN_LEAF_BYTES) // max(1, whole)):
            raise MalformedData(f"{block.cid} cuts {starts[-1]} bytes into {len(pb.links)} pieces")
        tsize: int | None = len(block.data)
        for link, size in zip(pb.links, unixfs.blocksizes, strict=True):
            self._link(link.cid, size, link.tsize or None)
            tsize = tsize + link.tsize if tsize is not None and link.tsize else None
        return _Node(own, tuple(link.cid for link in pb.links), starts, tsize)

    def _link(self, cid: Cid, size: int | None, tsize: int | None) -> None:
        """Take in one claim: *size* content bytes and *tsize* block bytes are below *cid*."""
        if cid.codec not in (RAW, DAG_PB):
            raise MalformedData(f"{cid} is no part of a file: codec {cid.codec:#x}")
        if size is not None and size > MAX_FILE_BYTES:
            raise MalformedData(f"{cid} claims {size} bytes")
        if size is not None and tsize is not None and tsize < size:
            raise MalformedData(f"{cid} claims {size} content bytes in blocks of {tsize}")
        if cid.codec == RAW and size is not None:
            if size > MAX_BLOCK_BYTES or (tsize is not None and tsize != size):
                raise MalformedData(f"the raw block {cid} claims {size} content bytes in {tsize} block bytes")
            inline = inline_block(cid)
            if inline is not None and len(inline.data) != size:
                raise MalformedData(f"{cid} holds {len(inline.data)} bytes, its parent says {size}")
            return
        known = self._nodes.get(cid)
        if known is not None:
            _check(cid, _Claim(size, tsize), known)
            return
        before = self._claims.get(cid)
        if before is not None:
            tsize = before.tsize if tsize is None else tsize
            if size != before.size or before.tsize not in (None, tsize):
                raise MalformedData(f"{cid} stands in two places with different sizes")
        self._claims[cid] = _Claim(size, tsize)
        inline = inline_block(cid)
        if inline is not None:
            self.receive(inline)

    def cover(self, start: int = 0, end: int | None = None) -> Iterator[Piece | Gap]:
        """Yield in order what holds the content bytes [start, end); *end* None or too large means the end of the file.

        Pieces are whole: the first and the last may reach beyond the range. A Gap that was received by the time the
        iteration goes on is descended into, one that was not is passed over.

        Raises:
            MalformedData: nested deeper than sixteen levels.
        """
        if end is not None and end <= start:
            return
        trail = [iter([(self._root, 0, self._size)])]
        while trail:
            step = next(trail[-1], None)
            if step is None:
                trail.pop()
                continue
            cid, base, size = step
            if size is not None and base + size <= start:
                continue
            if cid.codec == RAW and size is not None:
                yield Piece(cid, base, base + size)
                continue
            if cid not in self._nodes:
                yield Gap(cid, base, None if size is None else base + size)
            node = self._nodes.get(cid)
            if node is None:
                continue
            if node.own and start < base + node.own and (end is None or base < end):
                yield Piece(cid, base, base + node.own)
            if node.children:
                if len(trail) == MAX_DEPTH:
                    raise MalformedData(f"{self._root} is nested deeper than {MAX_DEPTH} levels")
                trail.append(_children(node, base, start, end))


def _children(node: _Node, base: int, start: int, end: int | None) -> Iterator[tuple[Cid, int, int | None]]:
    """The children of *node*, whose content begins at *base*, that hold some of [start, end)."""
    first = max(0, bisect_right(node.starts, start - base) - 1)
    for index in range(first, len(node.children)):
        low, high = node.starts[index], node.starts[index + 1]
        if end is not None and base + low >= end:
            return
        if low < high:  # a child without content needs no look
            yield node.children[index], base + low, high - low


def _check(cid: Cid, claim: _Claim, node: _Node) -> None:
    if claim.size not in (None, node.size):
        raise MalformedData(f"{cid} holds {node.size} bytes, its parent says {claim.size}")
    if None not in (claim.tsize, node.tsize) and claim.tsize != node.tsize:
        raise MalformedData(f"{cid} has {node.tsize} bytes of blocks, its parent says {claim.tsize}")


def _parse(block: Block) -> tuple[PBNode, UnixfsNode]:
    pb = PBNode.decode(block.data)
    if pb.data is None:
        raise MalformedData(f"{block.cid} has no UnixFS message")
    unixfs = UnixfsNode.decode(pb.data)
    if unixfs.type not in (UnixfsType.FILE, UnixfsType.RAW):
        raise MalformedData(f"{block.cid} is a UnixFS {unixfs.type.name}, not a file")
    return pb, unixfs


def content_of(block: Block) -> memoryview:
    """The file content that lies in *block* itself, as a slice. Raises MalformedData."""
    if block.cid.codec == RAW:
        return memoryview(block.data)
    return memoryview(_parse(block)[1].data)


def inline_block(cid: Cid) -> Block | None:
    """The block of a CID that says it all: an identity hash, or that of no bytes at all; else None.

    Never ask peers for these: servers ignore the first, and boxo answers a want for the second with HAVE only.
    """
    if cid.hash_code == IDENTITY:
        return Block.verified(cid, cid.digest)
    return Block(cid, b"") if cid.multihash == _EMPTY_MULTIHASH else None


_EMPTY_MULTIHASH = Cid.of(RAW, b"").multihash

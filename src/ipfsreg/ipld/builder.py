"""Building the UnixFS DAG of a file: leaves in, root and inner blocks out. Spec: IPIP-0499 for `v1-2025`.

The layout is the balanced one. Content is cut into fixed chunks; the last may be short, and no content is one empty
leaf. While a level has more than one node, each run of `width` nodes gets a parent, the last run even if it is of one.
All leaves lie at the same depth, and a single leaf is the root itself.

The builder never sees content. Leaves are hashed wherever that is cheap, in worker threads or while bytes arrive, and
come in here as CIDs, in order. Per GiB of content under `v1-2025` it holds 1,024 CIDs, about 0.2 MB.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.unixfs import inner_message, leaf_frame


@dataclass(frozen=True, slots=True)
class Profile:
    """Import parameters. The same content has another root under another profile."""

    name: str
    chunk_bytes: int
    width: int
    """Most children of an inner node, at least 2."""
    raw_leaves: bool
    """Leaves are the bytes alone; else each is wrapped in a dag-pb node."""
    cid_version: int

    def leaf_block(self, data: bytes | memoryview) -> Block:
        """The leaf for *data*, at most `chunk_bytes`. A raw leaf shares the buffer."""
        if self.raw_leaves:
            return Block.of(data, RAW)
        head, tail = leaf_frame(len(data))
        return self._name(b"".join((head, data, tail)))

    def leaf_block_bytes(self, size: int) -> int:
        """Length of the block of a leaf with *size* content bytes."""
        return size if self.raw_leaves else size + sum(map(len, leaf_frame(size)))

    def inner_block(self, children: Sequence[_Node]) -> Block:
        """The parent of *children*."""
        links = tuple(PBLink(child.cid, child.tsize) for child in children)
        return self._name(PBNode(links, inner_message([child.size for child in children])).encode())

    def _name(self, data: bytes) -> Block:
        block = Block.of(data, DAG_PB)
        return block if self.cid_version else Block(Cid(0, DAG_PB, block.cid.multihash), data)


V1_2025 = Profile("v1-2025", chunk_bytes=1 << 20, width=1024, raw_leaves=True, cid_version=1)
"""The profile of IPIP-0499, and ours for everything new: a fourth of the blocks of the older ones."""

KUBO_V1 = Profile("kubo-v1", chunk_bytes=1 << 18, width=174, raw_leaves=True, cid_version=1)
"""`ipfs add --cid-version=1` with unmodified settings."""

LITE = Profile("lite", chunk_bytes=1 << 18, width=174, raw_leaves=False, cid_version=1)
"""ipfs-lite's `AddFile` without parameters."""

V0_2015 = Profile("v0-2015", chunk_bytes=1 << 18, width=174, raw_leaves=False, cid_version=0)
"""`ipfs add` with unmodified settings."""

PROFILES = {profile.name: profile for profile in (V1_2025, KUBO_V1, LITE, V0_2015)}


@dataclass(frozen=True, slots=True)
class Layout:
    """The DAG of one file."""

    profile: Profile
    root: Cid
    size: int
    """Content bytes."""
    tsize: int
    """Bytes of all blocks, counted once for each link to them: what a parent would write as Tsize."""
    leaves: tuple[Cid, ...]
    """In the order of the content. At least one."""
    inner: tuple[Block, ...]
    """Children before parents, the root last; empty where the only leaf is the root."""

    def leaf_range(self, index: int) -> tuple[int, int]:
        """The content bytes [start, end) of leaf *index*."""
        start = index * self.profile.chunk_bytes
        return start, min(start + self.profile.chunk_bytes, self.size)


@dataclass(frozen=True, slots=True)
class _Node:
    cid: Cid
    size: int
    tsize: int


class Builder:
    """Takes the leaves of one file in order. After `finish` it is used up."""

    def __init__(self, profile: Profile = V1_2025) -> None:
        self._profile = profile
        self._leaves: list[Cid] = []
        self._inner: list[Block] = []
        self._waiting: list[list[_Node]] = [[]]
        """Per level, nodes that have no parent yet: fewer than `width`."""
        self._size = 0

    @property
    def size(self) -> int:
        """Content bytes so far."""
        return self._size

    def add_leaf(self, cid: Cid, size: int) -> None:
        """Append the leaf *cid* of *size* content bytes.

        Raises:
            ValueError: *size* is above the chunk size, or the leaf before this one was short, so that this is not the
                layout of any file.
        """
        chunk = self._profile.chunk_bytes
        if self._size != len(self._leaves) * chunk or not 0 <= size <= chunk or (self._leaves and not size):
            raise ValueError(f"leaf {len(self._leaves)} of {size} bytes at offset {self._size} for chunks of {chunk}")
        self._leaves.append(cid)
        self._size += size
        self._append(0, _Node(cid, size, self._profile.leaf_block_bytes(size)))

    def _append(self, level: int, node: _Node) -> None:
        if level == len(self._waiting):
            self._waiting.append([])
        self._waiting[level].append(node)
        if len(self._waiting[level]) == self._profile.width:
            self._close(level)

    def _close(self, level: int) -> None:
        """Give the waiting nodes of *level* their parent."""
        children = self._waiting[level]
        self._waiting[level] = []
        block = self._profile.inner_block(children)
        self._inner.append(block)
        size = sum(child.size for child in children)
        self._append(level + 1, _Node(block.cid, size, len(block.data) + sum(child.tsize for child in children)))

    def finish(self) -> Layout:
        """Close every level and return the DAG."""
        if not self._leaves:
            self.add_leaf(self._profile.leaf_block(b"").cid, 0)
        level = 0
        # A lone node in the top level is the root. In a lower one it gets a parent of its own: its level has others.
        while level < len(self._waiting) - 1 or len(self._waiting[level]) > 1:
            if self._waiting[level]:
                self._close(level)
            level += 1
        root = self._waiting[level][0]
        return Layout(self._profile, root.cid, self._size, root.tsize, tuple(self._leaves), tuple(self._inner))


def cut(data: bytes | memoryview, profile: Profile = V1_2025) -> Iterator[memoryview]:
    """The chunks of *data*, as slices. One empty chunk for no data."""
    view = memoryview(data)
    for start in range(0, max(len(view), 1), profile.chunk_bytes):
        yield view[start : start + profile.chunk_bytes]


def build(data: bytes | memoryview, profile: Profile = V1_2025) -> Layout:
    """The DAG of content that is in memory whole. Leaf blocks are not kept; `profile.leaf_block` makes them."""
    builder = Builder(profile)
    for chunk in cut(data, profile):
        builder.add_leaf(profile.leaf_block(chunk).cid, len(chunk))
    return builder.finish()

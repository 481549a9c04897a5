"""Content to test with, and the blocks it is made of."""

from __future__ import annotations

from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import V1_2025, Layout, Profile, build, cut
from ipfsreg.ipld.cid import Cid


def pattern(size: int) -> bytes:
    """Content that repeats only after 16 MiB: byte i is (7i + 13 floor(i / 256) + 31 floor(i / 65536)) mod 256.

    The one the UnixFS vectors were made with.
    """
    count = -(-size // 256)
    return b"".join(_ROWS[(13 * row + 31 * (row >> 8)) % 256] for row in range(count))[:size]


def file_blocks(data: bytes, profile: Profile = V1_2025) -> tuple[Layout, dict[Cid, Block]]:
    """The DAG of *data* and all its blocks, leaves too."""
    layout = build(data, profile)
    leaves = [profile.leaf_block(chunk) for chunk in cut(data, profile)]
    return layout, {block.cid: block for block in [*leaves, *layout.inner]}


_ROWS = [bytes((7 * column + shift) % 256 for column in range(256)) for shift in range(256)]

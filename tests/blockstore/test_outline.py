from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.blockstore.outline import MAX_MISSING, Leaf, Outline
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import LITE, V1_2025, Profile
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.unixfs import inner_message
from ipfsreg.testing.content import file_blocks, pattern

TINY = Profile("tiny", chunk_bytes=4, width=3, raw_leaves=True, cid_version=1)
FRAMED = Profile("framed", chunk_bytes=4, width=3, raw_leaves=False, cid_version=0)


def put(outline: Outline, file: bytearray, block: Block) -> None:
    placement = outline.place(block)
    for span in placement.spans:
        file[span.start : span.start + len(placement.content)] = placement.content
    outline.settle(placement)


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=150) | st.builds(bytes, st.integers(0, 150)),
    profile=st.sampled_from([TINY, FRAMED]),
    choices=st.lists(st.integers(0, 10_000), min_size=200, max_size=200),
)
def test_blocks_in_any_order_make_the_file_and_can_be_made_from_it(
    data: bytes, profile: Profile, choices: list[int]
) -> None:
    layout, source = file_blocks(data, profile)
    outline, file = Outline(layout.root, len(data)), bytearray(len(data))
    while outline.inline:
        put(outline, file, outline.inline.pop())
    for choice in choices:
        wanted = outline.wanted(0, len(data), None)
        if not wanted:
            break
        missing = outline.missing_bytes
        put(outline, file, source[wanted[choice % len(wanted)]])
        assert outline.missing_bytes <= missing
        assert file[: outline.prefix] == data[: outline.prefix]
        for span in outline.missing():
            assert not outline.has_range(span.start, max(span.end, span.start + 1)) or not data
    assert outline.is_whole
    assert file == data
    for cid, block in source.items():
        leaf = outline.leaves.get(cid.multihash)
        if leaf is not None:
            made = leaf.block_data(bytes(file[leaf.offset : leaf.offset + leaf.length]))
            assert len(made) == leaf.block_bytes
        elif cid == Cid.of(RAW, b""):
            continue
        else:
            made = bytes(outline.nodes[cid.multihash].data)
        assert made == bytes(block.data)


def test_only_the_blocks_of_a_range_are_wanted() -> None:
    data = pattern(40)
    layout, source = file_blocks(data, TINY)
    outline, file = Outline(layout.root, 40), bytearray(40)
    seen: list[Cid] = []
    while wanted := outline.wanted(17, 22, None):
        for cid in wanted:
            put(outline, file, source[cid])
            seen.append(cid)
    assert file[17:22] == data[17:22]
    assert [cid for cid in seen if cid in layout.leaves] == list(layout.leaves[4:6])
    assert outline.has_range(16, 24)
    assert not outline.has_range(15, 24)
    assert not outline.has_range(16, 25)


def test_a_node_that_names_a_block_again_asks_for_it_again() -> None:
    """Between placing and settling: the copy for the new place was not written."""
    data = bytes(24)
    layout, source = file_blocks(data, TINY)
    outline, file = Outline(layout.root, 24), bytearray(b"\xff" * 24)
    put(outline, file, source[layout.root])
    (inner,) = outline.wanted(0, 24, None)
    assert len(outline.missing()) == 2, "both halves are the same node"
    put(outline, file, source[inner])
    (leaf,) = outline.wanted(0, 24, None)
    put(outline, file, source[leaf])
    assert outline.is_whole
    assert file == data
    assert outline.leaves[leaf.multihash] == Leaf(0, 4, framed=False)


def test_a_leaf_that_is_here_already_is_placed_from_there() -> None:
    """The second node is seen after the leaf both name: who fetches need not ask for it twice."""
    data = bytes(12) + bytes(8) + b"end"
    layout, source = file_blocks(data, TINY)
    outline, file = Outline(layout.root, len(data)), bytearray(b"\xff" * len(data))
    for cid in (layout.root, *outline.wanted(0, len(data), 1)):
        put(outline, file, source[cid])
    first, second = outline.wanted(0, len(data), None)
    put(outline, file, source[first])
    (zeros,) = outline.wanted(0, 12, None)
    put(outline, file, source[zeros])
    assert outline.again == []
    put(outline, file, source[second])
    assert outline.again == [zeros]
    leaf = outline.leaves[zeros.multihash]
    put(outline, file, Block(zeros, bytes(file[leaf.offset : leaf.offset + leaf.length])))
    assert file[:20] == bytes(20)
    assert [span.start for span in outline.missing()] == [20]


def test_settling_twice_counts_once() -> None:
    data = pattern(9)
    layout, source = file_blocks(data, TINY)
    outline = Outline(layout.root, 9)
    root = outline.place(source[layout.root])
    outline.settle(root)
    outline.settle(root)
    first, again = (outline.place(source[layout.leaves[0]]) for _ in range(2))
    outline.settle(first)
    outline.settle(again)
    assert outline.missing_bytes == 5


def test_a_leaf_of_another_length_than_its_parent_says_is_refused() -> None:
    small = Block.of(b"four")
    with pytest.raises(MalformedData):
        Outline(small.cid, 5).place(small)


def test_a_root_that_cannot_be_a_file_of_that_size_is_refused() -> None:
    with pytest.raises(MalformedData):
        Outline(Cid.of(RAW, b"x"), 1 << 40)
    with pytest.raises(MalformedData):
        Outline(Cid.of(0x71, b"cbor"), 10)


def test_a_sender_may_name_a_block_by_another_codec() -> None:
    data = pattern(2 << 18)
    layout, source = file_blocks(data, LITE)
    outline = Outline(layout.root, len(data))
    root = source[layout.root]
    outline.settle(outline.place(Block(Cid(1, RAW, root.cid.multihash), root.data)))
    assert outline.wanted(0, len(data), None) == list(layout.leaves)
    assert outline.nodes[layout.root.multihash].cid == layout.root


def test_what_an_identity_cid_says_need_not_be_fetched() -> None:
    root = Cid(1, RAW, b"\x00\x05hello")
    outline, file = Outline(root, 5), bytearray(5)
    (block,) = outline.inline
    put(outline, file, block)
    assert file == b"hello"
    assert outline.is_whole


def test_an_empty_file_has_a_root_that_must_come() -> None:
    for profile in (LITE, FRAMED):
        layout, source = file_blocks(b"", profile)
        outline = Outline(layout.root, 0)
        assert not outline.is_whole
        assert outline.wanted(0, 0, None) == [layout.root]
        put(outline, bytearray(), source[layout.root])
        assert outline.is_whole
        assert outline.leaves[layout.root.multihash].block_data(b"") == source[layout.root].data
    assert Outline(file_blocks(b"", V1_2025)[0].root, 0).inline, "the empty raw block is known to everybody"


def test_a_few_blocks_cannot_claim_any_number_of_pieces() -> None:
    leaf = bytes(32 * 1024)
    child, size, tsize, blocks = Block.of(leaf).cid, len(leaf), len(leaf), []
    for width in (1000, 1000):
        sizes = [size] * width
        data = PBNode(tuple(PBLink(child, tsize) for _ in sizes), inner_message(sizes)).encode()
        blocks.append(Block.of(data, DAG_PB))
        child, size, tsize = blocks[-1].cid, size * width, tsize * width + len(data)
    outline = Outline(child, size)
    outline.settle(outline.place(blocks[1]))
    with pytest.raises(MalformedData, match="pieces"):
        outline.settle(outline.place(blocks[0]))
    assert len(outline.missing()) <= MAX_MISSING

from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.builder import PROFILES, Profile
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.ipld.reader import MAX_DEPTH, Gap, Piece, Reader, inline_block
from ipfsreg.ipld.unixfs import UnixfsNode, UnixfsType
from ipfsreg.testing.content import file_blocks, pattern

TINY = Profile("tiny", chunk_bytes=4, width=3, raw_leaves=True, cid_version=1)
TINY_WRAPPED = Profile("tiny-wrapped", chunk_bytes=4, width=3, raw_leaves=False, cid_version=1)
TINY_V0 = Profile("tiny-v0", chunk_bytes=4, width=3, raw_leaves=False, cid_version=0)


def pieces(reader: Reader, blocks: Mapping[Cid, Block], start: int = 0, end: int | None = None) -> Iterator[Piece]:
    """Cover a range, giving the reader each block it asks for."""
    for span in reader.cover(start, end):
        if isinstance(span, Gap):
            reader.receive(blocks[span.cid])
        else:
            yield span


def read(root: Cid, blocks: Mapping[Cid, Block], start: int = 0, end: int | None = None) -> bytes:
    """What a caller does to read a range."""
    out = b""
    for piece in pieces(Reader(root), blocks, start, end):
        content = piece.content(inline_block(piece.cid) or blocks[piece.cid])
        out += content[max(0, start - piece.start) : len(content) if end is None else max(0, end - piece.start)]
    return out


def node(*children: tuple[Block, int], data: bytes = b"", kind: UnixfsType = UnixfsType.FILE) -> Block:
    """A node over blocks and the content sizes said to be below them."""
    links = tuple(PBLink(block.cid, len(block.data) if block.cid.codec == RAW else 0) for block, _ in children)
    sizes = tuple(size for _, size in children)
    return Block.of(PBNode(links, UnixfsNode(kind, data, len(data) + sum(sizes), sizes).encode()).encode(), DAG_PB)


def table(*blocks: Block) -> dict[Cid, Block]:
    return {block.cid: block for block in blocks}


def identity(codec: int, data: bytes) -> Block:
    cid = Cid(1, codec, bytes((0, len(data))) + data)
    return Block.verified(cid, data)


# ------------------------------------------------------------------ what it reads


@pytest.mark.parametrize("profile", [TINY, TINY_WRAPPED, TINY_V0], ids=lambda profile: profile.name)
@pytest.mark.parametrize("size", [0, 1, 4, 5, 12, 13, 36, 37, 109, 250])
def test_a_file_of_any_layout_is_read_back_whole(profile: Profile, size: int) -> None:
    data = pattern(size)
    layout, blocks = file_blocks(data, profile)
    assert read(layout.root, blocks) == data


@pytest.mark.parametrize("name", PROFILES)
def test_a_file_of_each_known_profile_is_read_back_whole(name: str) -> None:
    data = pattern(2_500_000)
    layout, blocks = file_blocks(data, PROFILES[name])
    assert read(layout.root, blocks) == data


@given(st.integers(0, 120), st.integers(0, 130), st.integers(0, 130), st.booleans())
def test_any_range_is_read_from_the_blocks_that_hold_it(size: int, start: int, end: int, raw: bool) -> None:
    data = pattern(size)
    layout, blocks = file_blocks(data, TINY if raw else TINY_WRAPPED)
    assert read(layout.root, blocks, start, end) == data[start:end]


def test_only_the_blocks_on_the_way_to_a_range_are_asked_for() -> None:
    layout, blocks = file_blocks(pattern(4 * 27), TINY)  # three levels of three
    reader = Reader(layout.root)
    asked = []
    for span in reader.cover(40, 44):
        asked.append(span.cid)
        if isinstance(span, Gap):
            reader.receive(blocks[span.cid])
    on_the_way = [cid for cid in asked if bytes(layout.leaves[10]) in bytes(blocks[cid].data)]
    assert (asked[0], asked[-1], len(asked)) == (layout.root, layout.leaves[10], 4)
    assert on_the_way == [asked[2]]


def test_a_gap_that_stays_open_is_passed_over_and_asked_for_again() -> None:
    layout, blocks = file_blocks(pattern(24), TINY)
    reader = Reader(layout.root)
    assert list(reader.cover()) == [Gap(layout.root, 0, None)]
    reader.receive(blocks[layout.root])
    assert reader.size == 24
    first, second = layout.inner[0].cid, layout.inner[1].cid
    assert list(reader.cover()) == [Gap(first, 0, 12), Gap(second, 12, 24)]
    reader.receive(blocks[second])
    assert list(reader.cover())[:2] == [Gap(first, 0, 12), Piece(layout.leaves[3], 12, 16)]
    reader.receive(blocks[second])
    assert len(list(reader.cover())) == 4


def test_a_lone_raw_leaf_needs_no_look_where_the_size_is_known() -> None:
    block = Block.of(b"abc")
    assert list(Reader(block.cid, size=3).cover()) == [Piece(block.cid, 0, 3)]
    unsized = Reader(block.cid)
    assert list(unsized.cover()) == [Gap(block.cid, 0, None)]
    unsized.receive(block)
    assert list(unsized.cover()) == [Piece(block.cid, 0, 3)]
    assert unsized.size == 3


def test_an_empty_file_needs_no_block() -> None:
    reader = Reader(Cid.of(RAW, b""))
    assert reader.size == 0
    assert list(reader.cover()) == []


def test_content_in_an_inner_node_comes_before_that_of_its_children() -> None:
    tail = Block.of(b"world")
    root = node((tail, 5), data=b"hello ")
    assert read(root.cid, table(tail, root)) == b"hello world"
    assert read(root.cid, table(tail, root), 4, 7) == b"o w"
    assert read(root.cid, table(root), 0, 6) == b"hello "


def test_nodes_of_type_raw_are_read() -> None:
    leaf = node(data=b"abc", kind=UnixfsType.RAW)
    root = node((leaf, 3), (leaf, 3))
    assert read(root.cid, table(leaf, root)) == b"abcabc"


def test_content_inside_identity_cids_is_read_without_asking_anyone() -> None:
    raw = identity(RAW, b"raw ")
    inner = node((identity(RAW, b"in"), 2), data=b"with")
    wrapped = identity(DAG_PB, bytes(inner.data))
    root = node((raw, 4), (wrapped, 6))
    assert read(root.cid, table(root)) == b"raw within"
    alone = Reader(wrapped.cid)
    assert alone.size == 6
    assert [piece.end for piece in pieces(alone, {})] == [4, 6]


def test_children_without_content_are_passed_over() -> None:
    empty, leaf = Block.of(b""), Block.of(b"x")
    root = node((empty, 0), (leaf, 1), (empty, 0))
    assert read(root.cid, table(root, leaf)) == b"x"


def test_missing_filesize_and_tsize_are_made_up_for() -> None:
    leaf = Block.of(b"abc")
    message = UnixfsNode(UnixfsType.FILE, blocksizes=(3,)).encode()
    root = Block.of(PBNode((PBLink(leaf.cid),), message).encode(), DAG_PB)
    assert read(root.cid, table(root, leaf)) == b"abc"


def test_a_block_in_many_places_is_looked_at_once() -> None:
    # A few kilobytes a level, and five levels: 180**5 times the same mebibyte.
    level, size, blocks = Block.of(bytes(1 << 20)), 1 << 20, {}
    for _ in range(5):
        level = node(*[(level, size)] * 180)
        size *= 180
        blocks[level.cid] = level
    reader = Reader(level.cid)
    (piece,) = pieces(reader, blocks, size // 2, size // 2 + 1)
    assert piece.start == size // 2
    assert reader.size == 180**5 << 20


def read_all(*blocks: Block) -> None:
    """Read the file whose root is the last block."""
    known = table(*blocks)
    for piece in pieces(Reader(blocks[-1].cid), known):
        piece.content(known[piece.cid])


def refuses(*blocks: Block) -> None:
    with pytest.raises(MalformedData):
        read_all(*blocks)


LEAF = Block.of(b"abc")


def lying(
    *,
    filesize: int | None = 6,
    blocksizes: tuple[int, ...] = (3, 3),
    tsizes: tuple[int, ...] = (3, 3),
    child: Block = LEAF,
) -> Block:
    message = UnixfsNode(UnixfsType.FILE, filesize=filesize, blocksizes=blocksizes).encode()
    return Block.of(PBNode(tuple(PBLink(child.cid, tsize) for tsize in tsizes), message).encode(), DAG_PB)


def test_the_node_the_lies_are_told_about_is_read_when_it_tells_none() -> None:
    assert read(lying().cid, table(LEAF, lying())) == b"abcabc"


@pytest.mark.parametrize(
    "root",
    [
        lying(filesize=7),
        lying(filesize=0),
        lying(filesize=8, blocksizes=(4, 4), tsizes=(4, 4)),
        lying(blocksizes=(6,)),
        lying(blocksizes=(2, 2, 2)),
        lying(tsizes=(3,)),
        lying(blocksizes=()),
        lying(tsizes=(3, 4)),
        lying(tsizes=(3, 2)),
        lying(filesize=5, blocksizes=(2, 3), tsizes=(2, 3)),
        lying(filesize=None, blocksizes=(2**64 - 1, 2**64 - 1), tsizes=(0, 0)),
        lying(filesize=2**32, blocksizes=(2**31, 2**31), tsizes=(2**31, 2**31)),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(root: Block) -> None:
    refuses(LEAF, root)


def test_a_child_that_is_not_what_its_parent_says_is_refused() -> None:
    child = lying()
    tsize = len(child.data) + 6

    def parent(sizes: tuple[int, int], tsizes: tuple[int, int]) -> Block:
        return lying(filesize=sum(sizes), blocksizes=sizes, tsizes=tsizes, child=child)

    read_all(LEAF, child, parent((6, 6), (tsize, tsize)))
    read_all(LEAF, child, parent((6, 6), (tsize, 0)))
    refuses(LEAF, child, parent((5, 5), (tsize, tsize)))
    refuses(LEAF, child, parent((6, 5), (tsize, tsize)))
    refuses(LEAF, child, parent((6, 6), (tsize + 1, tsize + 1)))
    refuses(LEAF, child, parent((6, 6), (tsize, tsize + 1)))
    refuses(LEAF, child, parent((6, 6), (5, 5)))


def test_a_later_parent_that_says_something_else_is_refused_too() -> None:
    child = lying()
    honest, liar = node((child, 6)), node((child, 7))
    read_all(LEAF, child, honest, node((honest, 6), (honest, 6)))
    refuses(LEAF, child, honest, liar, node((honest, 6), (liar, 7)))


def test_a_file_of_another_size_than_was_recorded_is_refused() -> None:
    layout, blocks = file_blocks(pattern(24), TINY)
    with pytest.raises(MalformedData):
        list(pieces(Reader(layout.root, size=25), blocks))
    assert len(list(pieces(Reader(layout.root, size=24), blocks))) == 6
    with pytest.raises(MalformedData):
        Reader(Cid.of(RAW, b""), size=1)
    with pytest.raises(MalformedData):
        Reader(Cid.of(RAW, b"x"), size=MAX_BLOCK_BYTES + 1)
    with pytest.raises(MalformedData):
        Reader(identity(RAW, b"xyz").cid, size=2)


@pytest.mark.parametrize("kind", set(UnixfsType) - {UnixfsType.FILE, UnixfsType.RAW})
def test_what_is_not_a_file_is_refused(kind: UnixfsType) -> None:
    refuses(node(data=b"x", kind=kind))
    refuses(bad := node(data=b"x", kind=kind), node((bad, 1)))


def test_blocks_that_are_no_unixfs_at_all_are_refused() -> None:
    refuses(Block.of(b"", DAG_PB))
    refuses(Block.of(b"\x0a\x00", DAG_PB))
    refuses(Block.of(b"garbage", DAG_PB))
    with pytest.raises(MalformedData):
        Reader(Cid.of(0x71, b"cbor"))
    refuses(cbor := Block.of(b"cbor", 0x71), node((cbor, 4)))


def test_nesting_is_bounded() -> None:
    chain = [Block.of(b"x")]
    for _ in range(MAX_DEPTH):
        chain.append(node((chain[-1], 1)))
    assert read(chain[-2].cid, table(*chain)) == b"x"
    refuses(*chain)


def test_a_file_cut_into_crumbs_is_refused() -> None:
    crumb = Block.of(b"xyz")
    few = node(*[(crumb, 3)] * 10_000)
    read_all(crumb, few)
    many = node(*[(few, 30_000)] * 1_000)
    with pytest.raises(MalformedData, match="cuts 30000 bytes into 10000 pieces"):
        read_all(crumb, few, many)


def test_a_short_end_behind_large_leaves_is_no_crumb() -> None:
    leaf, end = Block.of(bytes(1 << 20)), Block.of(b"x")
    full, tail = node(*[(leaf, 1 << 20)] * 1024), node((leaf, 1 << 20), (end, 1))
    read_all(leaf, end, full, tail, node((full, 1 << 30), (tail, (1 << 20) + 1)))
    read_all(leaf, end, full, lone := node((end, 1)), node((full, 1 << 30), (lone, 1)))


def test_a_leaf_of_another_length_than_its_parent_says_is_refused() -> None:
    block = Block.of(b"abc")
    assert bytes(Piece(block.cid, 5, 8).content(block)) == b"abc"
    with pytest.raises(MalformedData):
        Piece(block.cid, 5, 9).content(block)


def test_a_block_nobody_asked_for_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="was not asked for"):
        Reader(Cid.of(RAW, b"a")).receive(Block.of(b"b"))
    with pytest.raises(ValueError, match="is not"):
        Piece(Cid.of(RAW, b"a"), 0, 1).content(Block.of(b"b"))


def test_only_cids_that_say_it_all_have_an_inline_block() -> None:
    assert inline_block(Cid.of(RAW, b"")) == Block.of(b"")
    assert inline_block(identity(RAW, b"hi").cid) == identity(RAW, b"hi")
    assert inline_block(Cid.of(RAW, b"x")) is None


@given(st.binary(max_size=80))
def test_any_dag_pb_block_is_read_or_malformed(data: bytes) -> None:
    block = Block.of(data, DAG_PB)
    try:
        reader = Reader(block.cid)
        reader.receive(block)
    except MalformedData:
        return
    assert reader.size is not None
    assert all(span.start <= reader.size for span in reader.cover())

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from ipfsreg.ipld.builder import KUBO_V1, LITE, PROFILES, V0_2015, V1_2025, Builder, Profile, build
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.testing.content import file_blocks, pattern

VECTORS = Path(__file__).parent.parent / "vectors"
FILES: list[dict[str, Any]] = json.loads((VECTORS / "unixfs_vectors.json").read_text())["vectors"]
SMALL: list[dict[str, Any]] = json.loads((VECTORS / "unixfs_layout_small.json").read_text())


def content(vector: dict[str, Any]) -> bytes:
    made: bytes
    match vector["gen"]:
        case "pattern":
            made = pattern(vector["size"])
        case "zeros":
            made = bytes(vector["size"])
        case literal:
            made = {"b''": b"", "b'a'": b"a", "b'hello world\\n'": b"hello world\n"}[literal]
    assert hashlib.sha256(made).hexdigest() == vector["sha256"]
    return made


@pytest.mark.parametrize("vector", FILES, ids=lambda vector: vector["name"])
def test_a_file_has_the_root_other_implementations_give_it(vector: dict[str, Any]) -> None:
    data = content(vector)
    assert str(build(data, V1_2025).root) == vector["cid_unixfs_v1_2025"]
    assert str(build(data, V0_2015).root) == vector["cid_v0"]
    for profile, leaves in ((KUBO_V1, "raw"), (LITE, "dagpb")):
        layout = build(data, profile)
        assert str(layout.root) == vector[f"cid_v1_{leaves}_leaves"]
        assert layout.tsize == vector[f"tsize_{leaves}"]
        assert len(layout.leaves) + len(layout.inner) == vector[f"blocks_{leaves}"]
        root = layout.inner[-1] if layout.inner else profile.leaf_block(data)
        assert root.cid == layout.root
        assert len(root.data) == vector[f"root_len_{leaves}"]
        assert bytes(root.data).hex() == vector.get(f"root_hex_{leaves}", bytes(root.data).hex())


def test_every_small_layout_is_reproduced() -> None:
    profiles = {raw: Profile("tiny", chunk_bytes=4, width=3, raw_leaves=raw, cid_version=1) for raw in (True, False)}
    assert len(SMALL) == 802
    for vector in SMALL:
        layout = build(pattern(vector["n"]), profiles[vector["raw"]])
        assert str(layout.root) == vector["cid"], vector


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_no_content_is_one_empty_leaf(profile: Profile) -> None:
    layout = Builder(profile).finish()
    assert layout == build(b"", profile)
    assert (layout.size, layout.inner, layout.leaves) == (0, (), (layout.root,))
    assert layout.leaf_range(0) == (0, 0)


def test_leaf_ranges_follow_one_another_to_the_end() -> None:
    layout = build(pattern(10), Profile("tiny", chunk_bytes=4, width=3, raw_leaves=True, cid_version=1))
    assert [layout.leaf_range(index) for index in range(3)] == [(0, 4), (4, 8), (8, 10)]


def test_inner_blocks_come_children_first_and_root_last() -> None:
    layout, blocks = file_blocks(pattern(200), Profile("tiny", chunk_bytes=4, width=3, raw_leaves=True, cid_version=1))
    seen = set(layout.leaves)
    for block in layout.inner:
        assert all(bytes(cid) not in bytes(block.data) for cid in blocks if cid not in seen)
        seen.add(block.cid)
    assert layout.inner[-1].cid == layout.root


def test_leaves_that_are_no_layout_of_any_file_are_refused() -> None:
    leaf = Cid.of(RAW, b"")
    with pytest.raises(ValueError, match="leaf 0 of 1048577 bytes"):
        Builder().add_leaf(leaf, (1 << 20) + 1)
    short = Builder()
    short.add_leaf(leaf, 5)
    with pytest.raises(ValueError, match="leaf 1 of 1048576 bytes at offset 5"):
        short.add_leaf(leaf, 1 << 20)
    full = Builder()
    full.add_leaf(leaf, 1 << 20)
    with pytest.raises(ValueError, match="leaf 1 of 0 bytes"):
        full.add_leaf(leaf, 0)


def test_a_gigabyte_costs_the_builder_less_than_a_megabyte() -> None:
    digests = [hashlib.sha256(b"%d" % index).digest() for index in range(1024)]
    tracemalloc.start()
    builder = Builder()
    for digest in digests:
        builder.add_leaf(Cid.from_sha256(RAW, digest), 1 << 20)
    layout = builder.finish()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert layout.size == 1 << 30
    assert peak < 1_000_000

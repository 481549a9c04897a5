"""The bytes shown in the documents are those the code writes. In `hex` fences: bytes, two spaces, what they say."""

import json
import re
from pathlib import Path

from ipfsreg.crdt.delta import Head, decode_broadcast, encode_broadcasts, node_cid, parse_node
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import build
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository, parse_tag
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, MoveRecord, TagRecord

ROOT = Path(__file__).parents[1]
REPOSITORY, TAG = parse_repository("team/app"), parse_tag("1.0")
PEER = PeerId.parse("12D3KooWHHdZxR5iJZvxigsx7cDyhG6m5LwYdCmaPtA2pknNGnf7")
WHEN_US = 1_767_225_600_000_000
MANIFEST, CONFIG, LAYER = b'{"schemaVersion":2}', b"{}", bytes(range(256)) * 12288
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


def shown_bytes(document: str) -> list[bytes]:
    text = (ROOT / "docs" / document).read_text()
    blocks = re.findall(r"^```hex\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return [bytes.fromhex("".join(re.split(r"  +", line)[0] for line in block.splitlines())) for block in blocks]


def test_the_worked_example_of_the_storage_format_is_what_the_code_writes() -> None:
    manifest, config, layer = map(Digest.of, (MANIFEST, CONFIG, LAYER))
    layout = build(LAYER)
    assert shown_bytes("storage-format.md") == [
        TagRecord(manifest, WHEN_US, PEER).encode(),
        MoveRecord(manifest, None, PEER).encode(),
        LinkRecord(len(CONFIG), Cid.of(RAW, CONFIG)).encode(config),
        LinkRecord(layout.size, layout.root).encode(layer),
        ManifestRecord(MANIFEST_TYPE, len(MANIFEST), Cid.of(RAW, MANIFEST)).encode(manifest),
        layout.inner[0].data,
    ]


def test_the_storage_format_names_the_keys_and_roots_of_its_example() -> None:
    text = (ROOT / "docs" / "storage-format.md").read_text()
    manifest, config, layer = map(Digest.of, (MANIFEST, CONFIG, LAYER))
    for name in (
        catalog.tag_key(REPOSITORY, TAG),
        catalog.history_key(REPOSITORY, TAG, WHEN_US, PEER),
        catalog.link_key(REPOSITORY, config),
        catalog.link_key(REPOSITORY, layer),
        catalog.manifest_key(REPOSITORY, manifest),
        build(LAYER).root,
        build(b"").root,
    ):
        assert f"`{name}`" in text


def test_the_node_and_broadcast_of_the_wire_format_are_those_of_the_vectors() -> None:
    node, broadcast = shown_bytes("wire-format.md")
    vectors = json.loads((ROOT / "tests/vectors/crdt_vectors.json").read_text())["vectors"]
    vector = next(vector for vector in vectors if vector["name"] == "put2")
    assert node.hex() == vector["node_hex"]
    assert broadcast.hex() == vector["broadcast_hex"]
    cid = Cid.parse(vector["cid"])
    parsed = parse_node(Block.verified(cid, node))
    assert [str(node_cid(link)) for link in parsed.links] == vector["links"]
    assert decode_broadcast(broadcast, 4096) == [Head(cid.multihash)]
    assert encode_broadcasts([Head(cid.multihash)]) == [broadcast]


def test_each_attack_that_the_architecture_names_has_its_tests() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\|.*::test_.*$", text, re.MULTILINE)
    assert len(rows) > 30
    for row in rows:
        file = ""
        for named, test in re.findall(r"`([a-z0-9_/.]*)::(test_\w+)`", row):
            file = named or file
            assert f"def {test}(" in (ROOT / "tests" / file).read_text(), f"{file}::{test}"

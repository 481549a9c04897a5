"""Decoders of what is stored and named: IPLD, OCI, the name store, the registry's records, configuration."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from ipfsreg.config import Config, load_config
from ipfsreg.crdt.delta import (
    MAX_HEADS_PER_BROADCAST,
    Delta,
    Element,
    Head,
    Tombstone,
    block_id,
    build_node,
    decode_broadcast,
    encode_broadcasts,
    multihash_of_id,
    parse_node,
)
from ipfsreg.crdt.keys import end_of_prefix, is_normal_key
from ipfsreg.errors import ConfigError, DigestInvalid, ManifestInvalid, NameInvalid, RangeInvalid, TagInvalid
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import DAG_PB, IDENTITY, MAX_CID_BYTES, RAW, Cid
from ipfsreg.ipld.dag_pb import MAX_LINKS, PBLink, PBNode
from ipfsreg.ipld.protobuf import bytes_field, read_fields, varint_field
from ipfsreg.ipld.reader import Gap, Piece, Reader, inline_block
from ipfsreg.ipld.unixfs import UnixfsNode, UnixfsType, inner_message
from ipfsreg.ipld.varint import decode_varint, encode_varint
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES, parse_manifest
from ipfsreg.oci.media_types import OCI_INDEX, OCI_MANIFEST
from ipfsreg.oci.names import parse_reference, parse_repository
from ipfsreg.oci.ranges import parse_content_range, parse_range
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.catalog import (
    MAX_RECORD_BYTES,
    LinkRecord,
    ManifestRecord,
    MoveRecord,
    ReferrerRecord,
    TagRecord,
    repository_of,
)
from ipfsreg.testing.fuzz.harness import Target

_LEAF = Cid.of(RAW, b"leaf")
_NODE = Cid.of(DAG_PB, b"node")
_INLINE = Cid(1, RAW, bytes((IDENTITY, 5)) + b"hello")
_DIGEST = Digest.of(b"layer")
_LONG_DIGEST = Digest.of(b"layer", "sha512")
_ROUND_TRIP_BYTES = 128 * 1024
"""Of larger inputs only the decoding is measured."""

_PEER = PeerId(bytes((0, 36)) + b"\x08\x01\x12\x20" + bytes(32))

# ----------------------------------------------------------------------- ipld


def _varint(data: bytes) -> None:
    value, end = decode_varint(data)
    assert 0 <= value < 1 << 64
    assert 0 < end <= len(data)
    assert decode_varint(encode_varint(value)) == (value, len(encode_varint(value)))


def _protobuf(data: bytes) -> None:
    written = bytearray()
    for number, value in read_fields(data):
        written += varint_field(number, value) if isinstance(value, int) else bytes_field(number, value)
    # Fixed-width numbers come back as varints of the same value. Not as lists: a field of two bytes is a tuple and a
    # view of 300, which is why those who read messages bound the fields they keep.
    again = read_fields(written)
    assert all(next(again) == field for field in read_fields(data))
    assert next(again, None) is None


def _cid(data: bytes) -> None:
    cid = Cid.decode(data)
    assert bytes(cid) == data, "one CID has two spellings"
    assert len(data) <= MAX_CID_BYTES
    assert Cid.parse(str(cid)) == cid
    assert cid.hash_code >= 0
    assert cid.matches(b"") in (True, False)


def _cid_text(data: bytes) -> None:
    cid = Cid.parse(data.decode("latin-1"))
    assert Cid.parse(str(cid)) == cid


def _cid_prefix(data: bytes) -> None:
    block = Block.under(data, b"content")
    assert block.cid.matches(b"content")
    assert Cid.decode(bytes(block.cid)) == block.cid


def _dag_pb(data: bytes) -> None:
    node = PBNode.decode(data)
    assert len(node.links) <= MAX_LINKS
    if len(data) > _ROUND_TRIP_BYTES:
        return
    again = PBNode.decode(node.encode())
    assert again.data == node.data
    assert sorted(again.links, key=_link_order) == sorted(node.links, key=_link_order)


def _link_order(link: PBLink) -> tuple[bytes, bytes, int]:
    return link.name, bytes(link.cid), link.tsize


def _unixfs(data: bytes) -> None:
    node = UnixfsNode.decode(data)
    assert len(node.blocksizes) <= MAX_LINKS
    assert UnixfsNode.decode(node.encode()) == node


def _unixfs_dag(data: bytes) -> None:
    """A reader that is given the same block wherever it asks for one: the worst a set of blocks can be."""
    reader = Reader(Cid.of(DAG_PB, data))
    end = 0
    for number, span in enumerate(reader.cover(0, 1 << 40)):
        assert isinstance(span, Gap | Piece)
        assert span.start >= end or isinstance(span, Gap)
        if isinstance(span, Piece):
            end = span.end
        elif block := inline_block(span.cid):
            reader.receive(block)
        elif span.cid == reader.root:
            reader.receive(Block.of(data, DAG_PB))
        if number > 50:
            break


# ------------------------------------------------------------------------ oci


def _manifest(data: bytes) -> None:
    manifest = parse_manifest(data, OCI_INDEX if b'"manifests"' in data else OCI_MANIFEST)
    for descriptor in (*manifest.blobs, *manifest.manifests):
        assert descriptor.size >= 0
    assert len(manifest.layers) <= len(data)
    str(manifest.annotations).encode()


def _manifest_alone(data: bytes) -> None:
    parse_manifest(data)


def _reference(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference
    if isinstance(reference, Digest):
        assert len(reference.raw) in (32, 64)


def _repository(data: bytes) -> None:
    name = parse_repository(data.decode("utf-8", "surrogateescape"))
    assert "//" not in name
    assert ".." not in name
    assert repository_of(f"/r/{name}/_t/latest") == name


def _ranges(data: bytes) -> None:
    size = data[0] * 1000 if data else 0
    text = data[1:].decode("latin-1")
    try:
        start, end = parse_content_range(text)
        assert 0 <= start < end
    except RangeInvalid:
        pass
    asked = parse_range(text, size)
    assert asked is None or 0 <= asked[0] < asked[1] <= size


# ----------------------------------------------------------------------- crdt


def _crdt_node(data: bytes) -> None:
    node = parse_node(Block.of(data, DAG_PB))
    if node.fault is None and len(data) <= _ROUND_TRIP_BYTES:
        assert parse_node(build_node(node.links, node.delta).block).delta == node.delta
        for tombstone in node.delta.tombstones:
            assert block_id(multihash_of_id(tombstone.id)) == tombstone.id


def _crdt_delta(data: bytes) -> None:
    delta = Delta.decode(data)
    assert len(data) > _ROUND_TRIP_BYTES or Delta.decode(delta.encode()) == delta


def _crdt_broadcast(data: bytes) -> None:
    heads = decode_broadcast(data, 4096)
    again = [head for message in encode_broadcasts(heads) for head in decode_broadcast(message, 4096)]
    assert again == heads
    assert len(encode_broadcasts(heads)) <= 1 + len(heads) // MAX_HEADS_PER_BROADCAST


def _crdt_key(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    if is_normal_key(text):
        assert "/../" not in text
        assert text.encode()
    end = end_of_prefix(text)
    assert end is None or (end > text and not end.startswith(text) and end.encode())


# ------------------------------------------------------------------- registry


def _record(data: bytes) -> None:
    """The first byte chooses the kind of record."""
    body = data[1:]
    match data[0] % 5 if data else 0:
        case 0:
            tag = TagRecord.decode(body)
            assert TagRecord.decode(tag.encode()) == tag
        case 1:
            move = MoveRecord.decode(body)
            assert MoveRecord.decode(move.encode()) == move
        case 2:
            link = LinkRecord.decode(_DIGEST, body)
            assert LinkRecord.decode(_DIGEST, link.encode(_DIGEST)) == link
        case 3:
            manifest = ManifestRecord.decode(_LONG_DIGEST, body)
            assert ManifestRecord.decode(_LONG_DIGEST, manifest.encode(_LONG_DIGEST)) == manifest
        case _:
            referrer = ReferrerRecord.decode(body)
            assert ReferrerRecord.decode(referrer.encode()).size == referrer.size


def _key(data: bytes) -> None:
    name = repository_of(data.decode("utf-8", "replace"))
    assert name is None or "/_" not in name


# --------------------------------------------------------------- configuration

_config_file = Path(tempfile.gettempdir()) / f"ipfsreg-fuzz-{os.getpid()}.toml"


def _config(data: bytes) -> None:
    """A file, and behind a NUL what the environment says."""
    text, _, variable = data.partition(b"\0")
    name, _, value = variable.decode("utf-8", "replace").partition("=")
    _config_file.write_bytes(text)
    try:
        config = load_config(_config_file, {f"IPFSREG_{name}": value})
    finally:
        _config_file.unlink()
    assert isinstance(config, Config)


_RECORDS = (
    b"\0" + TagRecord(_DIGEST, 1_700_000_000_000_000, _PEER).encode(),
    b"\1" + MoveRecord(_DIGEST, None, _PEER).encode(),
    b"\1" + MoveRecord(None, _LONG_DIGEST, _PEER).encode(),
    b"\2" + LinkRecord(5, Cid.from_sha256(RAW, _DIGEST.raw)).encode(_DIGEST),
    b"\2" + LinkRecord(5_000_000, _NODE).encode(_DIGEST),
    b"\3" + ManifestRecord(OCI_MANIFEST, 500, _LEAF, _DIGEST).encode(_LONG_DIGEST),
    b"\4" + ReferrerRecord(OCI_MANIFEST, 500, "application/spdx+json", {"a": "b"}).encode(),
    # What CBOR can say and no record does: a bignum, a fraction, a decimal, shared and cyclic values, a date.
    b"\2\xa2\x61v\x01\x61s\xc2\x48\xff\xff\xff\xff\xff\xff\xff\xff",
    b"\2\xa2\x61v\x01\x61s\xd8\x1e\x82\x01\x02",
    b"\2\xa2\x61v\x01\x61s\xc4\x82\x1b\x00\x00\x00\x00\x3b\x9a\xca\x00\x01",
    b"\2\xa2\x61v\x01\x61s\xd8\x1c\x81\xd8\x1d\x00",
    b"\2\xa3\x61v\x01\x61s\xd8\x1c\x81\x01\x61r\x82\xd8\x1d\x00\xd8\x1d\x00",
    b"\0\xa3\x61v\x01\x61w\xc1\x1a\x51\x4b\x67\xb0\x61d\x9f\x01\xff",
)

_DELTA = Delta((Element("/a/b", b"value"), Element("/c", b"")), (Tombstone("/a", block_id(_NODE.multihash)),), 7, "dag")

_DESCRIPTOR = f'{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{_DIGEST}","size":5'
_MANIFESTS = tuple(
    text.encode()
    for text in (
        f'{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{_DESCRIPTOR}}},"layers":[{_DESCRIPTOR},'
        f'"annotations":{{"a":"b"}},"urls":["http://x"]}}],"subject":{_DESCRIPTOR}}},"annotations":{{"k":"v"}}}}',
        f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{_DESCRIPTOR},'
        f'"platform":{{"os":"linux","architecture":"arm","variant":"v7"}}}}]}}',
        f'{{"schemaVersion":2,"config":{_DESCRIPTOR},"data":"bGF5ZXI="}},"layers":[],"artifactType":"a/b"}}',
        '{"schemaVersion":1,"\\ud800":1e400,"a":[[[[]]]],"n":-0,"mediaType":"x/y"}',
    )
)

TARGETS = (
    Target("varint", _varint, (b"\x00", b"\x80\x01", encode_varint(2**64 - 1)), 64),
    Target(
        "protobuf", _protobuf, (varint_field(1, 300) + bytes_field(2, b"x"), b"\x0d\x01\x02\x03\x04"), 8192, weight=0.5
    ),
    Target("cid", _cid, (bytes(_LEAF), bytes(_NODE), _NODE.multihash, bytes(_INLINE)), 1024),
    Target("cid_text", _cid_text, (str(_LEAF).encode(), str(Cid(0, DAG_PB, _NODE.multihash)).encode(), b"z2"), 65536),
    Target("cid_prefix", _cid_prefix, (_LEAF.prefix, Cid(0, DAG_PB, _NODE.multihash).prefix, b"\x01\x55\x13\x40"), 64),
    Target(
        "dag_pb",
        _dag_pb,
        (PBNode((PBLink(_LEAF, 5, b"a"), PBLink(_NODE, 9)), b"data").encode(), PBNode((), b"").encode()),
        MAX_BLOCK_BYTES,
        is_protobuf=True,
    ),
    Target(
        "unixfs",
        _unixfs,
        (
            inner_message([5, 6, 7]),
            UnixfsNode(UnixfsType.FILE, b"content", 7).encode(),
            b"\x08\x02\x22\x03\x05\x06\x07",
        ),
        MAX_BLOCK_BYTES,
        is_protobuf=True,
    ),
    Target(
        "unixfs_dag",
        _unixfs_dag,
        (
            PBNode((PBLink(_LEAF, 5), PBLink(_NODE, 9)), inner_message([5, 9])).encode(),
            PBNode((PBLink(_INLINE, 5), PBLink(_INLINE, 5)), inner_message([5, 5])).encode(),
            PBNode((), UnixfsNode(UnixfsType.FILE, b"content", 7).encode()).encode(),
        ),
        MAX_BLOCK_BYTES,
        is_protobuf=True,
        weight=0.3,
    ),
    Target("manifest", _manifest, _MANIFESTS, MAX_MANIFEST_BYTES, (ManifestInvalid,), weight=0.3),
    Target("manifest_alone", _manifest_alone, _MANIFESTS, MAX_MANIFEST_BYTES, (ManifestInvalid,), weight=0.3),
    Target(
        "reference",
        _reference,
        (str(_DIGEST).encode(), str(_LONG_DIGEST).encode(), b"v1.0-rc_1"),
        8192,
        (DigestInvalid, TagInvalid),
    ),
    Target("repository", _repository, (b"library/alpine", b"a.b__c---d/e"), 8192, (NameInvalid,)),
    Target(
        "ranges", _ranges, (b"\x01bytes=0-99", b"\x01bytes=-5", b"\x010-99", b"\x01bytes 5-9/*"), 8192, (RangeInvalid,)
    ),
    Target(
        "crdt_node",
        _crdt_node,
        (bytes(build_node((_NODE.multihash,), _DELTA).block.data), bytes(build_node((), Delta(priority=1)).block.data)),
        MAX_BLOCK_BYTES,
        is_protobuf=True,
        weight=0.3,
    ),
    Target("crdt_delta", _crdt_delta, (_DELTA.encode(),), MAX_BLOCK_BYTES, is_protobuf=True),
    Target(
        "crdt_broadcast",
        _crdt_broadcast,
        (*encode_broadcasts([Head(_NODE.multihash), Head(_NODE.multihash, "dag")]), _NODE.multihash),
        1024 * 1024,
        is_protobuf=True,
    ),
    Target("crdt_key", _crdt_key, (b"/a/b", "/\ud7ff".encode("utf-8", "surrogatepass"), "/\U0010ffff".encode()), 4096),
    Target("record", _record, _RECORDS, MAX_RECORD_BYTES + 1, weight=0.5),
    Target("record_key", _key, (b"/r/team/app/_t/latest", b"/r/a/_m/sha256:00"), 4096),
    Target(
        "config",
        _config,
        (
            b'[p2p]\nlisten_addrs = ["/ip4/0.0.0.0/tcp/4619"]\nprotector_key = "ab"\n',
            b'[p2p]\nbootstrappers = ["/dns4/a.b/tcp/1/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"]\n'
            b'[crdt]\npubsub_topic = "x"\ntrusted_peers = ["*"]\n',
            b'[crdt]\npubsub_topic = "x"\n[http]\nlisten = ["[::1]:5000"]\n[fetch]\npatience_s = 1.5\n\0NODE_DRAIN_S=3',
            b'[crdt]\npubsub_topic = "x"\n\0P2P_LISTEN_ADDRS=/ip4/127.0.0.1/tcp/0,/ip6/::1/tcp/0',
        ),
        16384,
        (ConfigError,),
        weight=0.1,
    ),
)

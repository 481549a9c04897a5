"""Keys and records of the name store: what is written is read, what is not ours is refused."""

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository, parse_tag
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, MoveRecord, ReferrerRecord, TagRecord
from ipfsreg.testing.network import peer_of

APP = parse_repository("team/app")
LATEST = parse_tag("latest")
DIGEST = Digest.of(b"content")
WIDE = Digest.of(b"content", "sha512")
ROOT = Cid.of(DAG_PB, b"root")
ALICE = peer_of("alice")


def test_keys_of_nested_repositories_never_meet() -> None:
    inner = parse_repository("team/app/t/latest")
    assert not catalog.tag_key(inner, LATEST).startswith(catalog.repository_prefix(APP))
    assert catalog.repository_of(catalog.tag_key(inner, LATEST)) == inner
    assert catalog.repository_of(catalog.link_key(APP, DIGEST)) == APP


@pytest.mark.parametrize("key", ["/x", "/r/team/app", "/b/sha256:00", ""])
def test_keys_of_others_belong_to_no_repository(key: str) -> None:
    assert catalog.repository_of(key) is None


def test_history_keys_sort_by_time() -> None:
    times = [1, 9, 255, 2**40, 2**53]
    keys = [catalog.history_key(APP, LATEST, when, ALICE) for when in times]
    assert keys == sorted(keys)


@pytest.mark.parametrize("digest", [DIGEST, WIDE])
def test_records_come_back_as_they_were(digest: Digest) -> None:
    tag = TagRecord(digest, 1_700_000_000_000_000, ALICE)
    assert TagRecord.decode(tag.encode()) == tag
    for move in (MoveRecord(digest, None, ALICE), MoveRecord(None, digest, ALICE), MoveRecord(digest, WIDE, ALICE)):
        assert MoveRecord.decode(move.encode()) == move
    link = LinkRecord(5 << 30, ROOT)
    assert LinkRecord.decode(digest, link.encode(digest)) == link
    manifest = ManifestRecord("application/vnd.oci.image.manifest.v1+json", 1234, ROOT, subject=digest)
    assert ManifestRecord.decode(digest, manifest.encode(digest)) == manifest
    referrer = ReferrerRecord("application/json", 12, "application/spdx+json", {"b": "2", "a": "1"})
    assert ReferrerRecord.decode(referrer.encode()) == referrer


def test_a_small_blob_says_its_root_by_its_digest() -> None:
    link = LinkRecord(1000, Cid.of(0x55, b"content"))
    data = link.encode(DIGEST)
    assert len(data) < 12
    assert LinkRecord.decode(DIGEST, data) == link


def test_a_small_blob_under_another_layout_keeps_its_root() -> None:
    link = LinkRecord(1000, ROOT)
    assert LinkRecord.decode(DIGEST, link.encode(DIGEST)) == link


def test_equal_pushes_write_equal_bytes() -> None:
    one = ReferrerRecord("t", 1, None, {"a": "1", "b": "2"}).encode()
    assert one == ReferrerRecord("t", 1, None, {"b": "2", "a": "1"}).encode()


def _unfolding(levels: int) -> bytes:
    """A record in which each of *levels* lists names the one before twice."""
    value: list[object] = [1]
    for _ in range(levels):
        value = [value, value]
    return cbor2.dumps({"v": 1, "s": value}, value_sharing=True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        cbor2.dumps([1]),
        cbor2.dumps({"s": 1}),
        cbor2.dumps({"v": 0, "s": 1}),
        cbor2.dumps({"v": 1}),
        cbor2.dumps({"v": 1, "s": -1}),
        cbor2.dumps({"v": 1, "s": 1 << 60}),
        cbor2.dumps({"v": 1, "s": "1"}),
        cbor2.dumps({"v": 1, "s": 5 << 20}),
        cbor2.dumps({"v": 1, "s": 5, "r": b"\x01"}),
        b"\x9b\xff\xff\xff\xff\xff\xff\xff\xff",
        b"\x81" * 5000,
        b"\x00" * 100_000,
        pytest.param(cbor2.dumps({"v": 1, "s": 2**20_000}), id="a number too large to be written down"),
        pytest.param(_unfolding(100), id="132 bytes that unfold to more than there are atoms"),
        pytest.param(b"\xa2\x61v\x01\x61s\xc4\x82\x1b" + b"\x7f" * 8 + b"\x01", id="a decimal exponent of 2**62"),
        pytest.param(b"\xa2\x61v\x01\x61s\xd8\x24\x63abc", id="an e-mail"),
        pytest.param(b"\xa2\x61v\x01\x61v\x02", id="a key twice"),
        pytest.param(b"\xbf\x61v\x01\x61s\x05\xff", id="an indefinite length"),
    ],
)
def test_a_record_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedData):
        LinkRecord.decode(DIGEST, data)


@given(st.binary(max_size=200))
def test_no_bytes_crash_a_decoder(data: bytes) -> None:
    for decode in (TagRecord.decode, MoveRecord.decode, ReferrerRecord.decode):
        try:
            decode(data)
        except MalformedData:
            continue


@given(st.dictionaries(st.sampled_from("vdwpfsrtuan"), st.one_of(st.binary(max_size=40), st.integers(), st.text())))
def test_no_record_of_the_wrong_types_crashes_a_decoder(fields: dict[str, object]) -> None:
    try:
        data = cbor2.dumps({**fields, "v": 1})
    except cbor2.CBOREncodeError:
        return
    for decode in (TagRecord.decode, MoveRecord.decode, ReferrerRecord.decode):
        try:
            decode(data)
        except MalformedData:
            continue

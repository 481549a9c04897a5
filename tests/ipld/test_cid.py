import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.cid import BLAKE2B_256, DAG_PB, IDENTITY, RAW, SHA2_512, Cid
from ipfsreg.ipld.varint import encode_varint

HELLO = b"hello world\n"
# `ipfs add` of this content, once for each kind of CID.
HELLO_RAW = "bafkreifjjcie6lypi6ny7amxnfftagclbuxndqonfipmb64f2km2devei4"
HELLO_V0 = "QmT78zSuBmuS4z925WZfrqQ1qHaJ56DQaTfyMUF7F8ff5o"

cids = st.one_of(
    st.builds(Cid.of, st.sampled_from([RAW, DAG_PB, 0x71, 0x0129]), st.binary(max_size=8)),
    st.builds(lambda data: Cid(0, DAG_PB, Cid.of(DAG_PB, data).multihash), st.binary(max_size=8)),
    st.builds(lambda data: Cid(1, RAW, b"\x00" + encode_varint(len(data)) + data), st.binary(max_size=130)),
)


def multihash(code: int, digest: bytes) -> bytes:
    return encode_varint(code) + encode_varint(len(digest)) + digest


def test_content_has_the_name_kubo_gives_it() -> None:
    cid = Cid.of(RAW, HELLO)
    assert str(cid) == HELLO_RAW
    assert repr(cid) == f"Cid({HELLO_RAW})"
    assert cid == Cid.from_sha256(RAW, hashlib.sha256(HELLO).digest())
    assert cid.prefix == b"\x01\x55\x12\x20"
    assert cid.matches(HELLO)
    assert not cid.matches(HELLO[:-1])


def test_version_0_is_a_bare_multihash() -> None:
    cid = Cid.parse(HELLO_V0)
    assert (cid.version, cid.codec, bytes(cid)) == (0, DAG_PB, cid.multihash)
    assert str(cid) == HELLO_V0
    assert cid.prefix == b"\x00\x70\x12\x20"
    assert cid.matches(bytes.fromhex("0a120802120c68656c6c6f20776f726c640a180c"))


@given(cids)
def test_every_cid_survives_its_binary_and_its_text_form(cid: Cid) -> None:
    assert Cid.decode(bytes(cid)) == cid
    assert Cid.decode(memoryview(bytes(cid))) == cid
    assert Cid.parse(str(cid)) == cid
    assert Cid.decode_prefix(b"ab" + bytes(cid) + b"cd", 2) == (cid, 2 + len(bytes(cid)))
    assert hash(Cid.decode(bytes(cid))) == hash(cid)


def test_the_human_readable_example_of_the_cid_spec() -> None:
    cid = Cid.parse("zb2rhe5P4gXftAwvA4eXQ5HJwsER2owDyS9sKaQRRVQPn93bA")
    assert (cid.version, cid.codec, cid.hash_code) == (1, RAW, 0x12)
    assert cid.digest.hex() == "6e6ff7950a36187a801613426e858dce686cd7d7e3c0fc42ee0330072d245c95"
    assert Cid.parse(str(cid)) == cid
    assert Cid.parse(str(cid).upper()) == cid


def test_codec_is_part_of_the_name_but_not_of_the_multihash() -> None:
    assert Cid.of(RAW, HELLO) != Cid.of(DAG_PB, HELLO)
    assert Cid.of(RAW, HELLO).multihash == Cid.of(DAG_PB, HELLO).multihash


@pytest.mark.parametrize(
    ("code", "digest"),
    [
        (SHA2_512, hashlib.sha512(HELLO).digest()),
        (BLAKE2B_256, hashlib.blake2b(HELLO, digest_size=32).digest()),
        (IDENTITY, HELLO),
    ],
)
def test_other_hash_functions_are_checked_too(code: int, digest: bytes) -> None:
    cid = Cid(1, RAW, multihash(code, digest))
    assert Cid.decode(bytes(cid)) == cid
    assert (cid.hash_code, cid.digest) == (code, digest)
    assert cid.prefix == b"\x01\x55" + encode_varint(code) + encode_varint(len(digest))
    assert cid.matches(HELLO)
    assert cid.matches(memoryview(HELLO))
    assert not cid.matches(HELLO + b"!")


def test_an_unknown_or_shortened_hash_matches_nothing() -> None:
    assert not Cid(1, RAW, multihash(0x1E, hashlib.sha256(HELLO).digest())).matches(HELLO)
    assert not Cid(1, RAW, multihash(0x12, hashlib.sha256(HELLO).digest()[:20])).matches(HELLO)
    assert not Cid(1, RAW, multihash(0x12, b"")).matches(HELLO)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "12",
        "1220" + "00" * 31,  # CIDv0 cut short
        "01551220" + "00" * 31,
        "01551220" + "00" * 33,  # one byte too many
        "00701220" + "00" * 32,  # version 0 spelled out
        "02551220" + "00" * 32,  # a version to come
        "0155",
        "015512",
        "0155000a" + "00" * 9,
        "0155" + "00" + "8002" + "00" * 256,  # above 168 bytes
        "0155" + "00" + "ffffffffffffffffff01",  # claims 2**64 - 1 bytes
        "01d500" + "1220" + "00" * 32,  # raw, with a needless varint byte
        "0155" + "9200" + "20" + "00" * 32,
        "0155" + "12" + "a000" + "00" * 32,
        "ffffffffffffffffffff01",
    ],
)
def test_malformed_binary_forms_are_refused(wire: str) -> None:
    with pytest.raises(MalformedData):
        Cid.decode(bytes.fromhex(wire))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "b",
        "z",
        "bafkrei",
        HELLO_RAW + "a",
        HELLO_RAW[:-1],
        HELLO_RAW.replace("f", "1"),
        HELLO_V0[:-1],
        HELLO_V0.replace("7", "0"),
        "z" + HELLO_V0,
        "kafkrei",
        "bäöü",
        "../../etc/passwd",
        "z" + "1" * 10_000_000,
    ],
)
def test_malformed_texts_are_refused(text: str) -> None:
    with pytest.raises(MalformedData):
        Cid.parse(text)


@given(st.binary(max_size=60))
def test_any_bytes_are_a_cid_or_malformed(wire: bytes) -> None:
    try:
        cid = Cid.decode(wire)
    except MalformedData:
        return
    assert bytes(cid) == wire
    cid.matches(b"")

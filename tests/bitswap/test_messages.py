import json
import time
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.bitswap.messages import (
    BITSWAP_1_1,
    BITSWAP_1_2,
    MAX_ENTRIES,
    MAX_MESSAGE_BYTES,
    MAX_PRIORITY,
    PROTOCOLS,
    Entry,
    Message,
    Payload,
    decode_message,
    encode_message,
)
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.ipld.varint import encode_varint

VECTORS = json.loads((Path(__file__).parent.parent / "vectors" / "bitswap_vectors.json").read_text())
NODE, LEAF = Cid.parse(VECTORS["node_cid"]), Cid.parse(VECTORS["raw_cid"])
NODE_BYTES = bytes.fromhex("0a0c0a080a022f611a0231311801")

MEANINGS = {
    "want-block": Message((Entry(LEAF, 1, send_dont_have=True),)),
    "want-have-full": Message(
        (
            Entry(NODE, MAX_PRIORITY, want_have=True, send_dont_have=True),
            Entry(LEAF, MAX_PRIORITY - 1, send_dont_have=True),
        ),
        full=True,
    ),
    "cancel": Message((Entry(LEAF, 0, cancel=True),)),
    "block": Message(payloads=(Payload(bytes.fromhex("01701220"), NODE_BYTES),)),
    "presences": Message(haves=(NODE,), dont_haves=(LEAF,), pending_bytes=262144),
}


def encoded(message: Message, protocol: str = BITSWAP_1_2) -> bytes:
    return b"".join(encode_message(message, protocol))


@pytest.mark.parametrize("vector", VECTORS["messages"], ids=lambda vector: str(vector["name"]))
def test_messages_are_read_and_written_as_boxo_writes_them(vector: dict[str, str]) -> None:
    raw = bytes.fromhex(vector["hex"])
    meaning = MEANINGS[vector["name"]]
    assert decode_message(raw) == meaning
    assert encoded(meaning) == raw
    assert encode_varint(len(raw)) + raw == bytes.fromhex(vector["framed"])


def test_the_block_of_a_message_is_a_slice_of_it_and_named_by_hashing() -> None:
    raw = bytes.fromhex(next(one["hex"] for one in VECTORS["messages"] if one["name"] == "block"))
    payload = decode_message(raw).payloads[0]
    assert isinstance(payload.data, memoryview)
    assert payload.data.obj is raw
    assert Block.under(payload.prefix, payload.data).cid == NODE


def test_large_blocks_are_sent_without_being_copied() -> None:
    data = bytes(1024 * 1024)
    pieces = encode_message(Message(payloads=[Payload(b"\x01\x55\x12\x20", data)]))
    assert any(piece is data for piece in pieces)
    assert sum(len(piece) for piece in pieces if piece is not data) < 32


cids = st.builds(Cid.of, st.sampled_from([RAW, DAG_PB]), st.binary(max_size=8)) | st.binary(
    min_size=32, max_size=32
).map(lambda digest: Cid(0, DAG_PB, b"\x12\x20" + digest))
entries = st.builds(
    Entry,
    cids,
    st.integers(-(2**31), MAX_PRIORITY),
    want_have=st.booleans(),
    send_dont_have=st.booleans(),
) | st.builds(lambda cid: Entry(cid, 0, cancel=True), cids)
payloads = st.builds(Payload, st.sampled_from([b"\x01\x55\x12\x20", b"\x00\x70\x12\x20"]), st.binary())
messages = st.builds(
    Message,
    st.lists(entries, max_size=5).map(tuple),
    st.booleans(),
    st.lists(payloads, max_size=3).map(tuple),
    st.lists(cids, max_size=3).map(tuple),
    st.lists(cids, max_size=3).map(tuple),
    st.integers(0, 2**31 - 1),
)


@given(messages)
def test_what_is_written_is_what_is_read(message: Message) -> None:
    assert decode_message(encoded(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_malformed(raw: bytes) -> None:
    with suppress(MalformedData):
        decode_message(raw)


@given(messages, st.data())
def test_a_cut_message_is_never_read_as_something_larger(message: Message, data: st.DataObject) -> None:
    raw = encoded(message)
    cut = data.draw(st.integers(0, len(raw)))
    try:
        part = decode_message(raw[:cut])
    except MalformedData:
        return
    assert len(part.entries) <= len(message.entries)
    assert len(part.payloads) <= len(message.payloads)


# ------------------------------------------------------------- older forms


def test_before_1_2_there_are_no_presences_and_no_wants_for_have() -> None:
    message = Message([Entry(LEAF), Entry(NODE, want_have=True)], haves=[NODE], dont_haves=[LEAF])
    for protocol in PROTOCOLS[1:]:
        read = decode_message(encoded(message, protocol))
        assert [entry.cid for entry in read.entries] == [LEAF]
        assert not read.haves
        assert not read.dont_haves


def test_1_1_has_prefixes_and_1_0_names_every_block_as_dag_pb_of_version_0() -> None:
    message = Message(payloads=[Payload(LEAF.prefix, b"leaf")])
    assert decode_message(encoded(message, BITSWAP_1_1)).payloads == (Payload(LEAF.prefix, b"leaf"),)
    for protocol in PROTOCOLS[2:]:
        assert encoded(message, protocol) == b"\x0a\x00" + bytes_field(2, b"leaf")
        payload = decode_message(encoded(message, protocol)).payloads[0]
        cid = Block.under(payload.prefix, payload.data).cid
        assert (cid.version, cid.codec, cid.multihash) == (0, DAG_PB, Cid.of(RAW, b"leaf").multihash)


# ---------------------------------------------------------------- hostility


def test_a_cid_nobody_knows_hides_no_other_entry() -> None:
    odd = bytes_field(1, bytes_field(1, b"\x07nonsense"))
    huge = bytes_field(1, bytes_field(1, b"\x01\x55\x12\xff\x01" + bytes(255)))
    good = bytes_field(1, bytes_field(1, bytes(LEAF)))
    assert decode_message(bytes_field(1, odd + huge + good)).entries == (Entry(LEAF, 0),)
    presence = bytes_field(4, bytes_field(1, b"\x07nonsense")) + bytes_field(4, bytes_field(1, bytes(LEAF)))
    assert decode_message(presence).haves == (LEAF,)


def test_unknown_fields_are_skipped_at_every_level() -> None:
    extra = varint_field(99, 7) + bytes_field(98, b"?")
    raw = bytes_field(1, bytes_field(1, bytes_field(1, bytes(LEAF)) + extra) + extra) + extra
    assert decode_message(raw).entries == (Entry(LEAF, 0),)


def test_a_message_makes_us_remember_a_bounded_number_of_things() -> None:
    many = [Cid.of(RAW, b"%d" % index) for index in range(3 * MAX_ENTRIES)]
    read = decode_message(encoded(Message([Entry(cid) for cid in many], full=True)))
    assert [entry.cid for entry in read.entries] == many[:MAX_ENTRIES]
    assert not read.full, "a list that was cut is not all the peer wants"
    read = decode_message(encoded(Message(haves=many, dont_haves=many)))
    assert len(read.haves) + len(read.dont_haves) == MAX_ENTRIES
    read = decode_message(encoded(Message(payloads=[Payload(b"\x01\x55\x12\x20", b"")] * (3 * MAX_ENTRIES))))
    assert len(read.payloads) == MAX_ENTRIES


@pytest.mark.parametrize(
    "unit", [b"\x30\x00", b"\x0a\x00", b"\x22\x00", b"\x1a\x00", b"\x12\x00", b"\x28\x00"], ids=lambda unit: unit.hex()
)
def test_the_largest_message_of_the_smallest_fields_takes_a_moment(unit: bytes) -> None:
    began = time.process_time()
    decode_message(unit * (MAX_MESSAGE_BYTES // len(unit)))
    assert time.process_time() - began < 1.0


@pytest.mark.parametrize("unit", [b"\x18\x01", bytes_field(1, b""), bytes_field(1, bytes_field(1, b"\x01"))])
def test_many_wantlists_of_many_fields_take_no_longer(unit: bytes) -> None:
    wantlist = bytes_field(1, unit * (500 // len(unit)))
    began = time.thread_time()
    decode_message(wantlist * (MAX_MESSAGE_BYTES // len(wantlist)))
    assert time.thread_time() - began < 0.3


def test_numbers_where_bytes_belong_are_malformed() -> None:
    for raw in (varint_field(1, 1), varint_field(3, 1), bytes_field(1, varint_field(1, 1)), bytes_field(5, b"1")):
        with pytest.raises(MalformedData):
            decode_message(raw)


@pytest.mark.parametrize("prefix", ["", "015512", "01551210", "01551e20", "02551220", "01550004", "0155122000"])
def test_a_block_under_a_prefix_that_cannot_be_checked_is_named_nothing(prefix: str) -> None:
    with pytest.raises(MalformedData):
        Block.under(bytes.fromhex(prefix), b"data")


@pytest.mark.parametrize("code", [0x12, 0x13, 0xB220])
def test_blocks_are_named_under_every_hash_function_we_know(code: int) -> None:
    length = {0x12: 32, 0x13: 64, 0xB220: 32}[code]
    prefix = b"\x01\x71" + encode_varint(code) + bytes((length,))
    block = Block.under(prefix, b"data")
    assert block.cid.prefix == prefix
    assert block.cid.matches(b"data")

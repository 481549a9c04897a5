"""The RPC codec: bytes laid out by hand from the specification, and bytes from elsewhere."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.pubsub.messages import (
    MAX_FIELDS,
    MAX_ID_BYTES,
    ExchangedPeer,
    IHave,
    Message,
    Prune,
    Rpc,
    Subscription,
    decode_rpc,
    encode_rpc,
)

topics = st.text(min_size=1, max_size=20)
ids = st.lists(st.binary(min_size=1, max_size=MAX_ID_BYTES), max_size=4).map(tuple)
messages = st.builds(
    Message,
    author=st.binary(min_size=1, max_size=40),
    seqno=st.binary(min_size=8, max_size=8),
    topic=topics,
    data=st.binary(max_size=60),
    signature=st.binary(min_size=1, max_size=64),
    key=st.none() | st.binary(min_size=1, max_size=40),
)
rpcs = st.builds(
    Rpc,
    subscriptions=st.lists(st.builds(Subscription, st.booleans(), topics), max_size=3).map(tuple),
    messages=st.lists(messages, max_size=3).map(tuple),
    ihave=st.lists(st.builds(IHave, topics, ids), max_size=3).map(tuple),
    iwant=ids,
    graft=st.lists(topics, max_size=3).map(tuple),
    prune=st.lists(
        st.builds(
            Prune,
            topics,
            st.lists(st.builds(ExchangedPeer, st.binary(max_size=40), st.binary(max_size=40)), max_size=2).map(tuple),
            st.integers(0, 2**64 - 1),
        ),
        max_size=3,
    ).map(tuple),
    idontwant=ids,
)


@given(rpcs)
@settings(max_examples=150, deadline=None)
def test_what_is_written_is_read(rpc: Rpc) -> None:
    assert decode_rpc(encode_rpc(rpc)) == rpc


@given(st.binary(max_size=200))
@settings(max_examples=300, deadline=None)
def test_any_bytes_are_an_rpc_or_malformed(data: bytes) -> None:
    try:
        decode_rpc(data)
    except MalformedData:
        return


@given(rpcs, st.data())
@settings(max_examples=150, deadline=None)
def test_a_flipped_byte_is_an_rpc_or_malformed(rpc: Rpc, draw: st.DataObject) -> None:
    data = bytearray(encode_rpc(rpc))
    if data:
        data[draw.draw(st.integers(0, len(data) - 1))] ^= draw.draw(st.integers(1, 255))
        test_any_bytes_are_an_rpc_or_malformed.hypothesis.inner_test(bytes(data))  # type: ignore[attr-defined]


def test_the_layout_is_that_of_the_specification() -> None:
    message = Message(b"\x00\x01A", bytes(7) + b"\x05", "t", b"hi", b"SIG")
    inner = b"\x0a\x03\x00\x01A" + b"\x12\x02hi" + b"\x1a\x08" + bytes(7) + b"\x05" + b"\x22\x01t"
    assert message.signed_bytes == b"libp2p-pubsub:" + inner
    assert message.encoded == inner + b"\x2a\x03SIG"
    assert message.id == b"\x00\x01A" + bytes(7) + b"\x05"
    rpc = Rpc(
        subscriptions=(Subscription(True, "t"), Subscription(False, "u")),
        messages=(message,),
        ihave=(IHave("t", (b"\xff\x00",)),),
        iwant=(b"\xfe",),
        graft=("t",),
        prune=(Prune("t", (ExchangedPeer(b"P", b"R"),), 60),),
        idontwant=(b"\xfd",),
    )
    control = (
        b"\x0a\x07\x0a\x01t\x12\x02\xff\x00"
        + b"\x12\x03\x0a\x01\xfe"
        + b"\x1a\x03\x0a\x01t"
        + b"\x22\x0d\x0a\x01t\x12\x06\x0a\x01P\x12\x01R\x18\x3c"
        + b"\x2a\x03\x0a\x01\xfd"
    )
    assert encode_rpc(rpc) == (
        b"\x0a\x05\x08\x01\x12\x01t"
        + b"\x0a\x05\x08\x00\x12\x01u"
        + bytes_field(2, message.encoded)
        + bytes((0x1A, len(control)))
        + control
    )


@pytest.mark.parametrize("size", [0, 1, 127, 128, 5000])
@pytest.mark.parametrize("key", [None, b"KEY"])
def test_of_a_known_message_only_the_id_is_read(size: int, key: bytes | None) -> None:
    old, new = (Message(b"A" * 38, bytes(7) + last, "t", bytes(size), b"S", key) for last in (b"1", b"2"))
    rpc = encode_rpc(Rpc(messages=(old, new, old)))
    assert decode_rpc(rpc, {old.id}.__contains__) == Rpc(messages=(new,), known=(old.id, old.id))


def test_a_known_message_in_an_unusual_order_is_known_too() -> None:
    fields = [bytes_field(3, bytes(8)), bytes_field(1, b"A"), bytes_field(5, b"S"), bytes_field(2, b"data")]
    rpc = bytes_field(2, b"".join(fields) + bytes_field(4, b"t"))
    message = Message(b"A", bytes(8), "t", b"data", b"S")
    assert decode_rpc(rpc) == Rpc(messages=(message,))
    assert decode_rpc(rpc, {message.id}.__contains__) == Rpc(known=(message.id,))


@given(st.binary(max_size=40))
def test_skimming_never_fails_on_what_is_cut_short(data: bytes) -> None:
    for head in (b"", b"\x0a", b"\x0a\x01A", b"\x0a\x01A\x12", b"\x0a\x01A\x12\x02hi\x1a\x08"):
        test_any_bytes_are_an_rpc_or_malformed.hypothesis.inner_test(bytes_field(2, head + data))  # type: ignore[attr-defined]


def test_the_key_follows_where_the_peer_id_does_not_carry_it() -> None:
    with_key = Message(b"A", bytes(8), "t", b"", b"S", key=b"KEY")
    without = Message(b"A", bytes(8), "t", b"", b"S")
    assert with_key.encoded == without.encoded + b"\x32\x03KEY"
    assert with_key.signed_bytes == without.signed_bytes


@pytest.mark.parametrize("missing", [1, 2, 3, 4, 5])
def test_a_message_without_one_of_its_fields_is_left_out_and_counted(missing: int) -> None:
    fields = {1: b"A", 2: b"data", 3: bytes(8), 4: b"t", 5: b"S"}
    inner = b"".join(bytes_field(number, value) for number, value in fields.items() if number != missing)
    whole = Message(b"A", bytes(8), "t", b"other", b"S")
    rpc = decode_rpc(bytes_field(2, inner) + bytes_field(2, whole.encoded))
    assert rpc == Rpc(messages=(whole,), malformed=1)


def test_a_seqno_of_another_length_is_malformed() -> None:
    assert decode_rpc(bytes_field(2, Message(b"A", bytes(9), "t", b"", b"S").encoded)).malformed == 1


def test_unknown_fields_are_passed_over() -> None:
    rpc = Rpc(graft=("t",), subscriptions=(Subscription(True, "t"),))
    assert decode_rpc(encode_rpc(rpc) + bytes_field(9, b"later") + bytes_field(3, varint_field(77, 1))) == rpc


def test_ids_that_are_too_long_to_be_remembered_are_passed_over() -> None:
    long, short = bytes(MAX_ID_BYTES + 1), bytes(MAX_ID_BYTES)
    rpc = decode_rpc(encode_rpc(Rpc(ihave=(IHave("t", (long, short)),), iwant=(long, short), idontwant=(long,))))
    assert rpc == Rpc(ihave=(IHave("t", (short,)),), iwant=(short,))


@given(st.lists(st.binary(max_size=MAX_ID_BYTES), max_size=6), st.integers(0, 6), st.booleans())
def test_ids_are_read_whatever_stands_between_them(ids: list[bytes], place: int, in_front: bool) -> None:
    entries = [bytes_field(2, each) for each in ids]
    entries.insert(place, bytes_field(9, b"later"))
    entries.insert(0 if in_front else place, bytes_field(1, b"t"))
    assert decode_rpc(bytes_field(3, bytes_field(1, b"".join(entries)))) == Rpc(ihave=(IHave("t", tuple(ids)),))


@pytest.mark.parametrize("cut", range(1, 12))
def test_ids_cut_short_are_malformed_or_fewer_but_never_made_up(cut: int) -> None:
    have = bytes_field(1, b"t") + bytes_field(2, b"first") + bytes_field(2, b"other")
    try:
        rpc = decode_rpc(bytes_field(3, bytes_field(1, have[:-cut])))
    except MalformedData:
        return
    assert rpc.ihave[0].ids in ((), (b"first",))


@pytest.mark.parametrize(
    "flood",
    [
        b"\x0a\x00" * (MAX_FIELDS + 1),
        b"\x48\x00" * (MAX_FIELDS + 1),
        bytes_field(3, b"\x1a\x00" * MAX_FIELDS),
        bytes_field(3, bytes_field(2, b"\x0a\x00" * MAX_FIELDS)),
        bytes_field(3, bytes_field(1, b"\x0a\x01t" + b"\x12\x00" * MAX_FIELDS)),
        bytes_field(2, b"\x48\x00" * MAX_FIELDS),
    ],
    ids=["subscriptions", "unknown", "grafts", "iwant", "ihave", "inside a message"],
)
def test_more_fields_than_anyone_needs_are_malformed(flood: bytes) -> None:
    with pytest.raises(MalformedData, match="fields"):
        decode_rpc(flood)


@pytest.mark.parametrize(
    "data",
    [
        varint_field(1, 1),
        bytes_field(2, varint_field(1, 1)),
        bytes_field(1, bytes_field(1, b"x")),
        bytes_field(1, bytes_field(2, b"\xff")),
        bytes_field(3, bytes_field(4, bytes_field(3, b"soon"))),
        b"\x0a\xff\xff\xff\xff\x7f",
    ],
)
def test_a_field_of_the_wrong_kind_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedData):
        decode_rpc(data)


def test_what_is_read_does_not_keep_the_frame_alive() -> None:
    frame = bytearray(encode_rpc(Rpc(messages=(Message(b"A", bytes(8), "t", b"data", b"S"),))))
    rpc = decode_rpc(memoryview(frame))
    frame[:] = bytes(len(frame))
    assert rpc.messages[0].data == b"data"

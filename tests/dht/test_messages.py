from __future__ import annotations

import contextlib

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from libp2p.kad_dht.pb import kademlia_pb2

from ipfsreg.dht.keys import Contact
from ipfsreg.dht.messages import (
    MAX_ADDR_BYTES,
    MAX_ADDRS,
    MAX_CLOSER,
    MAX_FIELDS,
    MAX_PROVIDERS,
    Message,
    MessageType,
    decode_message,
    encode_message,
)
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import peer_of

ADDR = bytes.fromhex("0401020304060fa1")  # /ip4/1.2.3.4/tcp/4001

peers = st.binary(min_size=1, max_size=42).map(lambda digest: PeerId(bytes((0x12, len(digest))) + digest))
contacts = st.builds(Contact, peers, st.lists(st.binary(min_size=1, max_size=60), max_size=5).map(tuple))
messages = st.builds(
    Message,
    st.sampled_from(MessageType),
    st.binary(max_size=80),
    st.lists(contacts, max_size=5).map(tuple),
    st.lists(contacts, max_size=5).map(tuple),
)


@given(messages)
def test_what_is_written_is_read(message: Message) -> None:
    assert decode_message(encode_message(message)) == message


@given(messages)
def test_the_generated_class_reads_what_we_write_and_we_what_it_writes(message: Message) -> None:
    theirs = kademlia_pb2.Message()
    theirs.ParseFromString(encode_message(message))
    assert (int(theirs.type), theirs.key) == (int(message.type), message.key)
    for said, read in ((message.closer, theirs.closerPeers), (message.providers, theirs.providerPeers)):
        assert [(each.peer.raw, each.addrs) for each in said] == [(each.id, tuple(each.addrs)) for each in read]
    assert decode_message(theirs.SerializeToString()) == message


def test_a_request_is_laid_out_as_go_libp2p_does_it() -> None:
    # type 4 (FIND_NODE), then the peer ID itself; the zero of PUT_VALUE is left out.
    alice = peer_of("alice")
    assert encode_message(Message(MessageType.FIND_NODE, alice.raw)) == b"\x08\x04\x12\x26" + alice.raw
    assert encode_message(Message(MessageType.PUT_VALUE, b"k")) == b"\x12\x01k"
    announced = Message(MessageType.ADD_PROVIDER, b"key", providers=(Contact(alice, (ADDR,)),))
    assert encode_message(announced) == b"\x08\x02\x12\x03key\x4a\x32\x0a\x26" + alice.raw + b"\x12\x08" + ADDR


@settings(max_examples=300)
@given(st.binary(max_size=300))
def test_rubbish_is_a_message_or_malformed_data(data: bytes) -> None:
    with contextlib.suppress(MalformedData):
        decode_message(data)


@given(messages, st.data())
def test_a_damaged_message_is_a_message_or_malformed_data(message: Message, data: st.DataObject) -> None:
    wire = bytearray(encode_message(message))
    if wire:
        at = data.draw(st.integers(0, len(wire) - 1))
        wire[at] = data.draw(st.integers(0, 255))
        del wire[data.draw(st.integers(at, len(wire))) :]
    with contextlib.suppress(MalformedData):
        decode_message(bytes(wire))


def test_unknown_fields_records_and_broken_peers_are_passed_over() -> None:
    alice = Contact(peer_of("alice"), (ADDR,))
    wire = b"".join(
        [
            varint_field(1, 3),
            bytes_field(3, b"\x0a\x01k"),  # a value record
            bytes_field(8, bytes_field(1, b"")),  # nobody
            bytes_field(8, bytes_field(1, b"\x12\x20short")),
            bytes_field(8, bytes_field(1, alice.peer.raw) + bytes_field(2, ADDR) + varint_field(3, 1)),
            varint_field(10, 7),
            bytes_field(99, b"to come"),
        ]
    )
    assert decode_message(wire) == Message(MessageType.GET_PROVIDERS, closer=(alice,))


def test_peers_and_addresses_beyond_the_limits_are_left_out() -> None:
    alice = peer_of("alice").raw
    entry = bytes_field(1, alice) + bytes_field(2, ADDR) * (MAX_ADDRS + 9) + bytes_field(2, bytes(MAX_ADDR_BYTES + 1))
    one = bytes_field(1, alice)
    wire = varint_field(1, 3) + bytes_field(8, entry) + bytes_field(8, one) * 200 + bytes_field(9, one) * 500
    message = decode_message(wire)
    assert len(message.closer) == MAX_CLOSER
    assert len(message.providers) == MAX_PROVIDERS
    assert len(message.closer[0].addrs) == MAX_ADDRS
    long = decode_message(bytes_field(8, bytes_field(1, alice) + bytes_field(2, bytes(MAX_ADDR_BYTES + 1))))
    assert long.closer[0].addrs == ()


@pytest.mark.parametrize(
    "wire",
    [
        varint_field(1, 6),
        varint_field(1, 2**64 - 1),
        bytes_field(1, b"x"),
        varint_field(2, 1),
        bytes_field(2, bytes(81)),
        varint_field(8, 1),
        bytes_field(2, b"abc")[:-1],
        varint_field(11, 0) * (MAX_FIELDS + 1),
        bytes_field(8, varint_field(4, 0) * (MAX_FIELDS + 1)),
    ],
)
def test_a_malformed_message_is_refused(wire: bytes) -> None:
    with pytest.raises(MalformedData):
        decode_message(wire)

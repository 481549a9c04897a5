"""What peers of the DHT say to each other, read and written by hand.

Spec: libp2p "kad-dht", RPC messages; fields in the order of their numbers, as the Go implementation writes them. Each
travels behind a varint with its length (`p2p/framing.py`). Written here and not by a generated class, because reading
has to be bounded by the number of peers, addresses and fields, not only by the bytes they came in.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from ipfsreg.dht.keys import Contact
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import FieldValue, bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.peer_id import PeerId

MAX_REQUEST_BYTES = 32 * 1024
"""The largest honest request is an IPNS record of 10 KiB."""

MAX_ANSWER_BYTES = 1024 * 1024
"""Go peers tell every provider they know of a popular key; 20 closer peers take about 10 KiB."""

MAX_FIELDS = 16_384
"""In one message, nested ones counted: a megabyte holds half a million empty ones."""

MAX_KEY_BYTES = 80
"""Go's limit for provider keys; the longest multihash in use has 68 bytes, the longest peer ID 42."""

MAX_CLOSER = 64
"""Closer peers kept of one answer. Twenty are due."""

MAX_PROVIDERS = 256
"""Providers kept of one answer."""

MAX_ADDRS = 32
"""Addresses kept of one peer."""

MAX_ADDR_BYTES = 512


class MessageType(IntEnum):
    """What is asked; the answer bears the same."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class Message:
    """One request or answer."""

    type: MessageType
    key: bytes = b""
    """A peer ID for FIND_NODE, a multihash for providers: the bytes themselves, not their hash."""
    closer: tuple[Contact, ...] = ()
    """Peers nearer to the key than the sender."""
    providers: tuple[Contact, ...] = ()


# ------------------------------------------------------------------- writing


def encode_message(message: Message) -> bytes:
    """The message as protobuf, without its length prefix."""
    # Zero is left out, as proto3 has it.
    parts = [varint_field(1, message.type)] if message.type else []
    if message.key:
        parts.append(bytes_field(2, message.key))
    parts += [bytes_field(8, _encode_contact(contact)) for contact in message.closer]
    parts += [bytes_field(9, _encode_contact(contact)) for contact in message.providers]
    return b"".join(parts)


def _encode_contact(contact: Contact) -> bytes:
    addrs = b"".join([bytes_field(2, addr) for addr in contact.addrs[:MAX_ADDRS]])
    # The connection field is left out: it says "not connected", and nobody decides anything by it.
    return bytes_field(1, contact.peer.raw) + addrs


# ------------------------------------------------------------------- reading


def decode_message(data: bytes | memoryview) -> Message:
    """Read one message. Unknown fields, peers without a valid ID, and what exceeds the limits are passed over.

    Nothing of *data* is kept alive.

    Raises:
        MalformedData: not the protobuf, an unknown type, a key that is too long, or too many fields.
    """
    return _Decoder().read_message(data)


class _Decoder:
    """Reads one message, counting every field against one budget."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def _fields(self, data: bytes | memoryview) -> Iterator[tuple[int, FieldValue]]:
        for each in read_fields(data):
            self._left -= 1
            if self._left < 0:
                raise MalformedData(f"DHT message of more than {MAX_FIELDS} fields")
            yield each

    def read_message(self, data: bytes | memoryview) -> Message:
        kind, key = 0, b""
        closer: list[Contact] = []
        providers: list[Contact] = []
        for number, value in self._fields(data):
            if number == 1:
                kind = expect_int(value)
            elif number == 2:
                piece = expect_bytes(value)
                if len(piece) > MAX_KEY_BYTES:
                    raise MalformedData(f"DHT key of {len(piece)} bytes")
                key = bytes(piece)
            elif number == 8:
                if len(closer) < MAX_CLOSER:
                    self._read_contact(expect_bytes(value), closer)
            elif number == 9 and len(providers) < MAX_PROVIDERS:
                self._read_contact(expect_bytes(value), providers)
        try:
            return Message(MessageType(kind), key, tuple(closer), tuple(providers))
        except ValueError:
            raise MalformedData(f"DHT message of type {kind}") from None

    def _read_contact(self, data: memoryview, into: list[Contact]) -> None:
        raw = b""
        addrs: list[bytes] = []
        for number, value in self._fields(data):
            if number == 1:
                raw = bytes(expect_bytes(value)[: MAX_KEY_BYTES + 1])
            elif number == 2:
                addr = expect_bytes(value)
                if len(addrs) < MAX_ADDRS and 0 < len(addr) <= MAX_ADDR_BYTES:
                    addrs.append(bytes(addr))
        try:
            peer = PeerId.decode(raw)
        except MalformedData:
            # One odd entry is no reason to lose the twenty others of an answer.
            return
        into.append(Contact(peer, tuple(addrs)))

"""What peers say to each other about topics: the RPC of gossipsub, read and written by hand.

Spec: libp2p/specs pubsub/README.md, gossipsub v1.0 to v1.2. Written here and not by a generated class, because

- message ids are raw bytes, and schemas that call them `string` break on them;
- a signature covers the exact bytes of a message without signature and key: their layout is part of the contract;
- reading has to be bounded by the number of fields too: a mebibyte holds half a million empty ones.

Most of what comes in a busy topic is known: messages for the fifth time, and once a heartbeat ids by the thousand. Ids
are therefore read by short cuts that know how everybody lays them out; any other layout is read field by field.

Every RPC travels behind a varint with its length (`p2p/framing.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import FieldValue, bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.ipld.varint import decode_varint

MAX_FIELDS = 32_768
"""Fields in one RPC, nested ones counted: above what the largest honest one has (four topics with 5,000 ids each)."""

MAX_ID_BYTES = 128
"""Longer message ids are passed over: ours have at most 72 bytes, and remembering ids must cost little."""

SEQNO_BYTES = 8

SIGN_PREFIX = b"libp2p-pubsub:"


@dataclass(frozen=True, slots=True)
class Message:
    """One message as it travels. Decoding proves its form only; `screening.py` proves who signed it."""

    author: bytes
    """The peer ID of who signed it, binary, as claimed (`from`)."""
    seqno: bytes
    """Eight bytes, big-endian, never used twice by one author."""
    topic: str
    data: bytes
    signature: bytes
    key: bytes | None = None
    """The author's public key in libp2p's protobuf form; None where it is carried in the peer ID."""
    id: bytes = field(init=False, repr=False, compare=False)
    """What IHAVE, IWANT and the duplicate check know it by: author and seqno, raw."""
    encoded: bytes = field(init=False, repr=False, compare=False)
    """The Message protobuf; kept, because it goes to many peers."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "id", self.author + self.seqno)
        encoded = unsigned_bytes(self.author, self.seqno, self.topic, self.data) + bytes_field(5, self.signature)
        if self.key is not None:
            encoded += bytes_field(6, self.key)
        object.__setattr__(self, "encoded", encoded)

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: all of `encoded` but signature and key, which come last."""
        behind = len(bytes_field(5, self.signature)) + (len(bytes_field(6, self.key)) if self.key is not None else 0)
        return SIGN_PREFIX + self.encoded[:-behind]


def unsigned_bytes(author: bytes, seqno: bytes, topic: str, data: bytes) -> bytes:
    """A message without signature and key, fields in ascending order as every implementation writes them."""
    return bytes_field(1, author) + bytes_field(2, data) + bytes_field(3, seqno) + bytes_field(4, topic.encode())


@dataclass(frozen=True, slots=True)
class Subscription:
    """A peer enters or leaves a topic."""

    subscribe: bool
    topic: str


@dataclass(frozen=True, slots=True)
class IHave:
    """Ids of messages in *topic* that the sender can give."""

    topic: str
    ids: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class ExchangedPeer:
    """A peer recommended in a PRUNE. Both fields are as claimed."""

    peer: bytes
    record: bytes = b""
    """A signed peer record (an envelope), or empty."""


@dataclass(frozen=True, slots=True)
class Prune:
    """The sender takes us out of its mesh for *topic*."""

    topic: str
    peers: tuple[ExchangedPeer, ...] = ()
    backoff_s: int = 0
    """Seconds before we may GRAFT again; 0 where not said. As claimed: anything up to 2**64 - 1."""


@dataclass(frozen=True, slots=True)
class Rpc:
    """One RPC: any number of subscriptions, messages and control entries."""

    subscriptions: tuple[Subscription, ...] = ()
    messages: tuple[Message, ...] = ()
    ihave: tuple[IHave, ...] = ()
    iwant: tuple[bytes, ...] = ()
    graft: tuple[str, ...] = ()
    prune: tuple[Prune, ...] = ()
    idontwant: tuple[bytes, ...] = ()
    known: tuple[bytes, ...] = ()
    """Ids of messages the reader had already, and so did not decode."""
    malformed: int = 0
    """Messages that were present and no signed message: dropped in decoding, held against who passed them on."""

    @property
    def entries(self) -> int:
        """How many things it says, messages excepted; ids count one each."""
        ids = sum(len(have.ids) for have in self.ihave) + len(self.iwant) + len(self.idontwant)
        return ids + len(self.subscriptions) + len(self.ihave) + len(self.graft) + len(self.prune)


# ------------------------------------------------------------------- writing


def encode_rpc(rpc: Rpc) -> bytes:
    """The RPC as protobuf, without its length prefix."""
    parts = [
        bytes_field(1, varint_field(1, int(each.subscribe)) + bytes_field(2, each.topic.encode()))
        for each in rpc.subscriptions
    ]
    parts += [bytes_field(2, message.encoded) for message in rpc.messages]
    control = _encode_control(rpc)
    if control:
        parts.append(bytes_field(3, control))
    return b"".join(parts)


def _encode_control(rpc: Rpc) -> bytes:
    parts = [bytes_field(1, bytes_field(1, have.topic.encode()) + _encode_ids(2, have.ids)) for have in rpc.ihave]
    if rpc.iwant:
        parts.append(bytes_field(2, _encode_ids(1, rpc.iwant)))
    parts += [bytes_field(3, bytes_field(1, topic.encode())) for topic in rpc.graft]
    parts += [bytes_field(4, _encode_prune(prune)) for prune in rpc.prune]
    if rpc.idontwant:
        parts.append(bytes_field(5, _encode_ids(1, rpc.idontwant)))
    return b"".join(parts)


def _encode_ids(number: int, ids: tuple[bytes, ...]) -> bytes:
    return b"".join([bytes_field(number, each) for each in ids])


def _encode_prune(prune: Prune) -> bytes:
    parts = [bytes_field(1, prune.topic.encode())]
    for each in prune.peers:
        record = bytes_field(2, each.record) if each.record else b""
        parts.append(bytes_field(2, bytes_field(1, each.peer) + record))
    if prune.backoff_s:
        parts.append(varint_field(3, prune.backoff_s))
    return b"".join(parts)


# ------------------------------------------------------------------- reading


def decode_rpc(data: bytes | memoryview, is_known: Callable[[bytes], bool] = lambda _id: False) -> Rpc:
    """Read one RPC. Unknown fields are passed over; nothing of *data* is kept alive.

    Of messages whose id *is_known* only the id is returned: in a mesh most messages are duplicates, and they should
    cost little.

    A message without author, topic or signature, or with a seqno of another length, is counted in `malformed` and
    left out: the rest of the RPC stands.

    Raises:
        MalformedData: not the protobuf, a topic that is no UTF-8, or more than MAX_FIELDS fields.
    """
    return _Decoder(is_known).read_rpc(data)


class _Decoder:
    """Reads one RPC, counting every field against one budget."""

    def __init__(self, is_known: Callable[[bytes], bool]) -> None:
        self._is_known = is_known
        self._left = MAX_FIELDS

    def _fields(self, data: bytes | memoryview) -> Iterator[tuple[int, FieldValue]]:
        for each in read_fields(data):
            self._left -= 1
            if self._left < 0:
                raise MalformedData(f"pubsub RPC of more than {MAX_FIELDS} fields")
            yield each

    def read_rpc(self, data: bytes | memoryview) -> Rpc:
        subscriptions: list[Subscription] = []
        messages: list[Message] = []
        ihave: list[IHave] = []
        iwant: list[bytes] = []
        graft: list[str] = []
        prune: list[Prune] = []
        idontwant: list[bytes] = []
        known: list[bytes] = []
        malformed = 0
        for number, value in self._fields(data):
            if number == 1:
                subscriptions.append(self._read_subscription(expect_bytes(value)))
            elif number == 2:
                message = self._read_message(expect_bytes(value))
                if message is None:
                    malformed += 1
                elif isinstance(message, bytes):
                    known.append(message)
                else:
                    messages.append(message)
            elif number == 3:
                for kind, entry in self._fields(expect_bytes(value)):
                    if kind == 1:
                        ihave.append(self._read_ihave(expect_bytes(entry)))
                    elif kind == 2:
                        iwant += self._read_ids(expect_bytes(entry))
                    elif kind == 3:
                        graft.append(self._read_graft(expect_bytes(entry)))
                    elif kind == 4:
                        prune.append(self._read_prune(expect_bytes(entry)))
                    elif kind == 5:
                        idontwant += self._read_ids(expect_bytes(entry))
        return Rpc(
            tuple(subscriptions),
            tuple(messages),
            tuple(ihave),
            tuple(iwant),
            tuple(graft),
            tuple(prune),
            tuple(idontwant),
            tuple(known),
            malformed,
        )

    def _read_subscription(self, data: memoryview) -> Subscription:
        subscribe, topic = False, ""
        for number, value in self._fields(data):
            if number == 1:
                subscribe = bool(expect_int(value))
            elif number == 2:
                topic = _text(value)
        return Subscription(subscribe, topic)

    def _read_message(self, data: memoryview) -> Message | bytes | None:
        """The message, or its id where it is known, or None where it is malformed."""
        skimmed = _skim_id(bytes(data))
        if skimmed is not None and self._is_known(skimmed):
            return skimmed
        parts: dict[int, memoryview] = {}
        for number, value in self._fields(data):
            if number <= 6:
                parts[number] = expect_bytes(value)
        # Peers that do not sign leave some out; a missing data field would change the bytes that were signed.
        if not all(parts.get(number) for number in (1, 3, 4, 5)) or 2 not in parts or len(parts[3]) != SEQNO_BYTES:
            return None
        author, seqno = bytes(parts[1]), bytes(parts[3])
        if self._is_known(author + seqno):
            return author + seqno
        key = bytes(parts[6]) if 6 in parts else None
        return Message(author, seqno, _text(parts[4]), bytes(parts[2]), bytes(parts[5]), key)

    def _read_ihave(self, data: memoryview) -> IHave:
        topic, position = "", 0
        if len(data) > 1 and data[0] == 0x0A and data[1] < min(0x80, len(data) - 1):
            position = 2 + data[1]
            topic = _text(data[2:position])
        ids, position = self._skim_ids(bytes(data), position, 0x12)
        for number, value in self._fields(data[position:]):
            if number == 1:
                topic = _text(value)
            elif number == 2 and len(expect_bytes(value)) <= MAX_ID_BYTES:
                ids.append(bytes(expect_bytes(value)))
        return IHave(topic, tuple(ids))

    def _read_ids(self, data: memoryview) -> list[bytes]:
        ids, position = self._skim_ids(bytes(data), 0, 0x0A)
        for number, value in self._fields(data[position:]):
            if number == 1 and len(expect_bytes(value)) <= MAX_ID_BYTES:
                ids.append(bytes(expect_bytes(value)))
        return ids

    def _skim_ids(self, data: bytes, position: int, tag: int) -> tuple[list[bytes], int]:
        """The run of short ids behind *tag* that begins at *position*, a sixth of the cost of reading it field by
        field, and where it ends: at the end of *data*, or at whatever is to be read with care."""
        ids: list[bytes] = []
        last, room = len(data) - 1, self._left
        while position < last and data[position] == tag and len(ids) < room:
            start = position + 2
            end = start + data[start - 1]
            if data[start - 1] >= 0x80 or end > last + 1:
                break
            ids.append(data[start:end])
            position = end
        self._left -= len(ids)
        return ids, position

    def _read_graft(self, data: memoryview) -> str:
        topic = ""
        for number, value in self._fields(data):
            if number == 1:
                topic = _text(value)
        return topic

    def _read_prune(self, data: memoryview) -> Prune:
        topic, peers, backoff_s = "", [], 0
        for number, value in self._fields(data):
            if number == 1:
                topic = _text(value)
            elif number == 2:
                peers.append(self._read_exchanged(expect_bytes(value)))
            elif number == 3:
                backoff_s = expect_int(value)
        return Prune(topic, tuple(peers), backoff_s)

    def _read_exchanged(self, data: memoryview) -> ExchangedPeer:
        peer = record = b""
        for number, value in self._fields(data):
            if number == 1:
                peer = bytes(expect_bytes(value))
            elif number == 2:
                record = bytes(expect_bytes(value))
        return ExchangedPeer(peer, record)


def _skim_id(data: bytes) -> bytes | None:
    """The id of a message laid out as everybody does, a fifth of the cost of reading it; None for any other layout."""
    size = len(data)
    if size < 2 or data[0] != 0x0A or data[1] >= 0x80:
        return None
    author_end = 2 + data[1]
    if author_end >= size or data[author_end] != 0x12:
        return None
    length, data_start = decode_varint(data, author_end + 1)
    tail = data[data_start + length : data_start + length + 2 + SEQNO_BYTES]
    if len(tail) != 2 + SEQNO_BYTES or tail[0] != 0x1A or tail[1] != SEQNO_BYTES:
        return None
    return data[2:author_end] + tail[2:]


def _text(value: FieldValue) -> str:
    try:
        return str(expect_bytes(value), "utf-8")
    except UnicodeDecodeError as error:
        raise MalformedData(f"topic that is not UTF-8: {error.reason}") from None

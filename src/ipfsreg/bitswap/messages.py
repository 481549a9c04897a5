"""What bitswap peers say: the message of bitswap 1.2.0 and what remains of it in 1.1.0, 1.0.0 and the unversioned form.

    Message { wantlist=1 { entries=1 { block=1 priority=2 cancel=3 wantType=4 sendDontHave=5 } full=2 }
              blocks=2  payload=3 { prefix=1 data=2 }  blockPresences=4 { cid=1 type=2 }  pendingBytes=5 }

Blocks are slices of the message they came in and are sent as pieces of their own: a megabyte is not copied here.
What a message may make us remember is bounded by MAX_ENTRIES before anything is built from it.
Spec: ipfs/specs "Bitswap"; the bytes are those of boxo (tests/vectors/bitswap.json).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.cid import Cid
from ipfsreg.ipld.protobuf import BYTES, bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.ipld.varint import encode_varint

BITSWAP_1_2 = "/ipfs/bitswap/1.2.0"
BITSWAP_1_1 = "/ipfs/bitswap/1.1.0"
PROTOCOLS = (BITSWAP_1_2, BITSWAP_1_1, "/ipfs/bitswap/1.0.0", "/ipfs/bitswap")
"""In the order they are offered."""

MAX_MESSAGE_BYTES = 4 * 1024 * 1024
"""The largest message peers may send, ours included."""

MAX_ENTRIES = 2048
"""Want entries, presences and blocks (each) taken from one message; the rest of it is skipped unread.

Peers remember about a thousand wants of each other, so nobody who means well comes near.
"""

MAX_PRIORITY = 2**31 - 1

_MAX_FIELDS = 4 * MAX_ENTRIES
"""Of one message and its wantlists together, those of the entries apart: more than the fullest message has.

Fields cost time also when nobody knows them, and four megabytes hold two million of them, two seconds of CPU.
"""

_V0_PREFIX = b"\x00\x70\x12\x20"
_HAVE, _DONT_HAVE = 0, 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a wantlist."""

    cid: Cid
    priority: int = 1
    """Larger is sooner, at most MAX_PRIORITY."""
    cancel: bool = False
    """The block is no longer wanted; the rest of the entry does not count."""
    want_have: bool = False
    """Asks whether the peer has the block, not for the block."""
    send_dont_have: bool = False
    """Asks to be told at once where the peer lacks it."""


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes of a block, and all of its CID except the hash."""

    prefix: bytes
    data: bytes | memoryview


@dataclass(frozen=True, slots=True)
class Message:
    """One bitswap message. What was decoded holds tuples, and is equal to what says the same."""

    entries: Sequence[Entry] = ()
    full: bool = False
    """The entries are all the sender wants; what it asked for before is forgotten."""
    payloads: Sequence[Payload] = ()
    haves: Sequence[Cid] = ()
    dont_haves: Sequence[Cid] = ()
    pending_bytes: int = 0
    """Bytes the sender has queued for us and did not put into this message."""


def decode_message(data: bytes | bytearray | memoryview) -> Message:
    """Read one message. Entries with a CID of no kind we know are left out; a CID may be one nobody can verify.

    Raises:
        MalformedData: the bytes are not this protobuf.
    """
    entries: list[Entry] = []
    payloads: list[Payload] = []
    presences: tuple[list[Cid], list[Cid]] = ([], [])
    full, pending = False, 0
    left = _MAX_FIELDS
    for number, value in read_fields(data):
        left -= 1
        if left < 0:
            break
        if number == 1:
            more, left = _read_wantlist(expect_bytes(value), entries, left)
            full |= more
        elif number == 2 and len(payloads) < MAX_ENTRIES:
            payloads.append(Payload(_V0_PREFIX, expect_bytes(value)))
        elif number == 3 and len(payloads) < MAX_ENTRIES:
            payloads.append(_read_payload(expect_bytes(value)))
        elif number == 4 and len(presences[0]) + len(presences[1]) < MAX_ENTRIES:
            _read_presence(expect_bytes(value), presences)
        elif number == 5:
            pending = max(0, _signed(expect_int(value)))
    haves, dont_haves = presences
    return Message(tuple(entries), full, tuple(payloads), tuple(haves), tuple(dont_haves), pending)


def _read_wantlist(data: memoryview, entries: list[Entry], left: int) -> tuple[bool, int]:
    """Whether it is a full one, and how many fields may still be read after it."""
    full = False
    for number, value in read_fields(data):
        left -= 1
        if left < 0:
            break
        if number == 1:
            if len(entries) >= MAX_ENTRIES:
                # The flag comes behind the entries; without it a list too long only adds to what is known.
                return full, left
            entry = _read_entry(expect_bytes(value))
            if entry is not None:
                entries.append(entry)
        elif number == 2:
            full = bool(expect_int(value))
    return full, left


def _read_entry(data: memoryview) -> Entry | None:
    cid: Cid | None = None
    numbers = [0, 0, 0, 0, 0, 0]
    for number, value in islice(read_fields(data), 8):
        if number == 1:
            cid = _read_cid(expect_bytes(value))
        elif 2 <= number <= 5:
            numbers[number] = expect_int(value)
    if cid is None:
        return None
    return Entry(cid, _signed(numbers[2]), bool(numbers[3]), numbers[4] == 1, bool(numbers[5]))


def _read_payload(data: memoryview) -> Payload:
    prefix, content = b"", memoryview(b"")
    for number, value in islice(read_fields(data), 4):
        if number == 1:
            prefix = bytes(expect_bytes(value)[:64])
        elif number == 2:
            content = expect_bytes(value)
    return Payload(prefix, content)


def _read_presence(data: memoryview, presences: tuple[list[Cid], list[Cid]]) -> None:
    cid, kind = None, _HAVE
    for number, value in islice(read_fields(data), 4):
        if number == 1:
            cid = _read_cid(expect_bytes(value))
        elif number == 2:
            kind = expect_int(value)
    if cid is not None and kind in (_HAVE, _DONT_HAVE):
        presences[kind].append(cid)


def _read_cid(raw: memoryview) -> Cid | None:
    """One unknown CID must not hide the rest of a message: boxo skips such entries too."""
    try:
        return Cid.decode(bytes(raw))
    except MalformedData:
        return None


def _signed(number: int) -> int:
    """An int32 field: negative numbers travel as their 64-bit two's complement."""
    number &= 0xFFFFFFFF
    return number - (1 << 32) if number >= 1 << 31 else number


def encode_message(message: Message, protocol: str = BITSWAP_1_2) -> list[bytes | memoryview]:
    """The pieces of *message* on *protocol*, to be sent one behind the other; the data of blocks is not copied.

    Peers before 1.2.0 know nothing of HAVE: wants for it and presences are left out for them.
    """
    knows_have = protocol == BITSWAP_1_2
    wantlist = b"".join([_entry(entry) for entry in message.entries if knows_have or not entry.want_have])
    if message.full:
        wantlist += varint_field(2, 1)
    # boxo writes an empty wantlist too.
    pieces: list[bytes | memoryview] = [bytes_field(1, wantlist)]
    for payload in message.payloads:
        if knows_have or protocol == BITSWAP_1_1:
            prefix = bytes_field(1, payload.prefix)
            head = encode_varint(2 << 3 | BYTES) + encode_varint(len(payload.data))
            body = len(prefix) + len(head) + len(payload.data)
            pieces[-1] = bytes(pieces[-1]) + encode_varint(3 << 3 | BYTES) + encode_varint(body) + prefix + head
        else:
            pieces[-1] = bytes(pieces[-1]) + encode_varint(2 << 3 | BYTES) + encode_varint(len(payload.data))
        pieces += [payload.data, b""]
    tail = b""
    if knows_have:
        tail = b"".join([_presence(cid, _HAVE) for cid in message.haves])
        tail += b"".join([_presence(cid, _DONT_HAVE) for cid in message.dont_haves])
    if message.pending_bytes:
        tail += varint_field(5, message.pending_bytes)
    pieces[-1] = bytes(pieces[-1]) + tail
    return [piece for piece in pieces if len(piece)]


def _entry(entry: Entry) -> bytes:
    body = bytes_field(1, bytes(entry.cid))
    if entry.priority and not entry.cancel:
        body += varint_field(2, entry.priority % (1 << 64))
    if entry.cancel:
        body += b"\x18\x01"
    else:
        if entry.want_have:
            body += b"\x20\x01"
        if entry.send_dont_have:
            body += b"\x28\x01"
    return bytes_field(1, body)


def _presence(cid: Cid, kind: int) -> bytes:
    body = bytes_field(1, bytes(cid))
    if kind != _HAVE:
        body += varint_field(2, kind)
    return bytes_field(4, body)

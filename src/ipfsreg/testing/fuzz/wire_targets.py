"""Decoders of a connection: from the first byte on a socket to the streams in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import cache

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from ipfsreg.errors import ConnectionLost, PeerMisbehaved, ProtocolUnsupported, StreamReset
from ipfsreg.ipld.protobuf import bytes_field
from ipfsreg.p2p import noise, yamux
from ipfsreg.p2p.connection import Connection, ConnectionLimits, MemoryBudget
from ipfsreg.p2p.handshake import Established
from ipfsreg.p2p.identity import MAX_PUBLIC_KEY_BYTES, Identity, peer_id_of, public_key_in, verify
from ipfsreg.p2p.multistream import MAX_LINE_BYTES, Dialer, Responder, encode_line
from ipfsreg.p2p.pnet import MAX_SWARM_KEY_BYTES, format_swarm_key, parse_swarm_key
from ipfsreg.peer_id import MAX_PEER_ID_BYTES, PeerId
from ipfsreg.testing.fuzz.harness import Target, cuts

ALICE, BOB = (Identity(Ed25519PrivateKey.from_private_bytes(bytes([number] * 32))) for number in (1, 2))
_STATIC, _EPHEMERAL = (X25519PrivateKey.from_private_bytes(bytes([number] * 32)) for number in (3, 4))
_ECHO = "/echo/1.0.0"

# ---------------------------------------------------------------- multistream


def _responder(data: bytes) -> None:
    whole = _negotiate(Responder(), [data])
    assert _negotiate(Responder(), cuts(data)) == whole, "the cut of the bytes changes what they say"


def _dialer(data: bytes) -> None:
    whole = _negotiate(Dialer(["/a", _ECHO]), [data])
    assert _negotiate(Dialer(["/a", _ECHO]), cuts(data)) == whole, "the cut of the bytes changes what they say"


def _negotiate(side: Responder | Dialer, pieces: Sequence[bytes]) -> tuple[bytes, str | None, bytes] | type[Exception]:
    answer = rest = b""
    try:
        for piece in pieces:
            if side.protocol is not None:
                rest += piece
            elif isinstance(side, Responder):
                answer += side.receive(piece, lambda name: name == _ECHO)
            else:
                answer += side.receive(piece)
    except (PeerMisbehaved, ProtocolUnsupported) as error:
        return type(error)
    held = side.rest()
    # Until it is agreed on a line is all that waits; what was sent with it came in one read.
    assert side.protocol is not None or len(held) <= MAX_LINE_BYTES + 2
    return answer, side.protocol, held + rest


# ---------------------------------------------------------------------- noise


class _Speaker(noise.Handshake):
    """A peer that says *payload* in the place of its proof."""

    def __init__(self, payload: bytes, *, dialer: bool) -> None:
        super().__init__(ALICE, dialer=dialer, static=_STATIC, ephemeral=_EPHEMERAL)
        self._said = payload

    def _payload(self) -> bytes:
        return self._said


def _proof(*muxers: str) -> bytes:
    signature = ALICE.sign(noise.SIGNED_PREFIX + _STATIC.public_key().public_bytes_raw())
    payload = bytes_field(1, ALICE.public_key) + bytes_field(2, signature)
    return payload + bytes_field(4, b"".join(bytes_field(2, muxer.encode()) for muxer in muxers))


def _we_dial_payload(data: bytes) -> None:
    us = noise.Handshake(BOB, dialer=True, muxers=[yamux.PROTOCOL])
    them = _Speaker(data, dialer=False)
    us.receive(them.receive(us.begin()))
    assert us.secured is not None
    assert us.secured.peer == ALICE.peer_id, "somebody got in without a proof"


def _we_listen_payload(data: bytes) -> None:
    us = noise.Handshake(BOB, dialer=False, muxers=[yamux.PROTOCOL])
    them = _Speaker(data, dialer=True)
    us.receive(them.receive(us.receive(them.begin())))
    assert us.secured is not None
    assert us.secured.peer == ALICE.peer_id, "somebody got in without a proof"


def _we_dial_bytes(data: bytes) -> None:
    us = noise.Handshake(BOB, dialer=True)
    us.begin()
    us.receive(data)
    raise AssertionError("bytes without our ephemeral key passed the handshake")


def _we_listen_bytes(data: bytes) -> None:
    """The first message of a stranger is any 32 bytes; no second one can be right."""
    us = noise.Handshake(BOB, dialer=False)
    assert len(us.receive(data[:64])) < 512
    us.receive(data[64:])
    raise AssertionError("bytes without our ephemeral key passed the handshake")


_KEY = bytes(range(32))


def _frames(data: bytes) -> None:
    """Ten honest messages, with *data* over them from a place its first bytes name."""
    encryptor, decryptor = noise.Encryptor(_KEY), noise.Decryptor(_KEY)
    room, plain = memoryview(bytearray(256)), memoryview(bytearray(noise.MAX_PLAINTEXT_BYTES))
    honest = [bytes(room[: encryptor.encrypt_into(b"message %d" % number, room)]) for number in range(10)]
    wire = bytearray(b"".join(honest))
    place = int.from_bytes(data[:2], "big") % len(wire)
    wire[place : place + len(data[2:])] = data[2:]
    position, number = 0, 0
    while position + 2 <= len(wire):
        end = position + 2 + int.from_bytes(wire[position : position + 2], "big")
        if end > len(wire):
            return
        size = decryptor.decrypt_into(memoryview(wire)[position + 2 : end], plain)
        assert bytes(plain[:size]) == b"message %d" % number, "a changed message was believed"
        position, number = end, number + 1


# ------------------------------------------------------------------- identity


def _public_key(data: bytes) -> None:
    """A key, and a signature behind the last NUL."""
    key, _, signature = data.rpartition(b"\0\0")
    key = key or data
    assert not verify(key, b"data", signature) or signature
    peer = peer_id_of(key)
    assert PeerId.decode(peer.raw) == peer
    assert PeerId.parse(str(peer)) == peer
    assert public_key_in(peer) in (None, key)


def _private_key(data: bytes) -> None:
    identity = Identity.from_protobuf(data)
    assert Identity.from_protobuf(identity.to_protobuf()).peer_id == identity.peer_id
    assert verify(identity.public_key, b"data", identity.sign(b"data"))


def _peer_id(data: bytes) -> None:
    peer = PeerId.decode(data)
    assert PeerId.parse(str(peer)) == peer
    assert len(peer.raw) <= MAX_PEER_ID_BYTES


def _peer_id_text(data: bytes) -> None:
    peer = PeerId.parse(data.decode("utf-8", "replace"))
    assert PeerId.parse(str(peer)) == peer


def _swarm_key(data: bytes) -> None:
    psk = parse_swarm_key(data)
    assert len(psk) == 32
    assert parse_swarm_key(format_swarm_key(psk)) == psk


# ----------------------------------------------------------------- yamux, and the whole connection


def _yamux(data: bytes) -> None:
    """The first byte says who dialled, the second how many streams we have open."""
    head, body = data[:2].ljust(2, b"\0"), data[2:]
    whole = _feed_session(head, [body])
    assert _feed_session(head, cuts(body)) == whole, "the cut of the bytes changes what they say"


def _feed_session(head: bytes, pieces: list[bytes]) -> object:
    session = yamux.Session(dialer=bool(head[0] & 1), max_stream_window_bytes=1 << 20, max_window_growth_bytes=1 << 20)
    for _ in range(head[1] % 4):
        session.start(session.open())
    said: list[tuple[str, int]] = []
    payload = bytearray()
    size = 0
    try:
        for piece in pieces:
            size += len(piece)
            for event in session.receive(memoryview(piece)):
                stream = getattr(event, "stream", None)
                if isinstance(event, yamux.Received):
                    payload += event.payload
                    continue
                said.append((type(event).__name__, stream.number if stream is not None else 0))
    except PeerMisbehaved:
        return "misbehaved"
    assert len(session.streams) <= 4 + size // yamux.HEADER_BYTES
    assert len(session.out) <= 3 * yamux.HEADER_BYTES + size
    for stream in session.streams.values():
        assert not stream.gone
        assert stream.unread + stream.receive_window == yamux.INITIAL_WINDOW_BYTES or stream.window
        assert 0 <= stream.receive_window <= stream.window
        assert 0 <= stream.send_window <= yamux.MAX_SEND_WINDOW_BYTES
    return said, bytes(payload), bytes(session.out), sorted(session.streams)


class _Tape:
    """A wire on which everything was said already, and nobody reads."""

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def wait_readable(self, at_least: int = 1) -> None:
        await trio.lowlevel.checkpoint()

    def read_into(self, buffer: memoryview) -> int | None:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if count < len(piece):
            self._pieces.insert(0, piece[count:])
        return count

    def write(self, data: memoryview) -> int:
        return len(data)

    def room(self) -> int:
        return 1 << 20

    async def wait_room(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        return

    async def aclose(self) -> None:
        return


class _Faults(logging.Handler):
    """Faults of ours that a connection contained: each is a bug, however well it was contained."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(self.format(record))


@cache
def _faults() -> _Faults:
    handler = _Faults()
    logger = logging.getLogger("ipfsreg.p2p.connection")
    logger.addHandler(handler)
    logger.propagate = False
    return handler


_LIMITS = ConnectionLimits(max_inbound_streams=8, max_buffered_bytes=4096, max_stream_window_bytes=1 << 20)


def _connection(data: bytes) -> None:
    """What a proved peer may say: the plaintext behind the handshake, cut into messages as the first byte says."""
    faults, budget = _faults(), MemoryBudget(2048)
    faults.seen.clear()
    step = 16 + (data[0] if data else 0) * 5
    body = data[1:]
    encryptor = noise.Encryptor(_KEY)
    room = memoryview(bytearray(step + 32))
    pieces = [
        bytes(room[: encryptor.encrypt_into(body[start : start + step], room)]) for start in range(0, len(body), step)
    ]
    trio.run(_carry, [b"".join(pieces[::2]), *pieces[1::2]] if step & 1 else pieces, budget)
    assert not faults.seen, faults.seen
    assert budget.used_bytes == 0


async def _carry(pieces: list[bytes], budget: MemoryBudget) -> None:
    established = Established(
        wire=_Tape(pieces),
        dialer=False,
        peer=ALICE.peer_id,
        public_key=ALICE.public_key,
        encryptor=noise.Encryptor(_KEY),
        decryptor=noise.Decryptor(_KEY),
        key_in=None,
        key_out=None,
        early=b"",
        leftover=b"",
        rtt_s=0.01,
        bytes_in=0,
        bytes_out=0,
    )
    connection = Connection(established, remote_addr="", limits=_LIMITS, budget=budget)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_use, connection)
        await connection.run()
        nursery.cancel_scope.cancel()
    assert connection.inbound_streams <= _LIMITS.max_inbound_streams
    assert connection.outbound_streams <= 1


async def _use(connection: Connection) -> None:
    """An application that opens a stream of its own, reads one in two of the peer's and answers."""
    try:
        ours = await connection.open_stream([_ECHO], lazy=True)
        await ours.send_all(b"hello")
        for number in range(64):
            stream = await connection.accept_stream({_ECHO})
            if number % 2:
                continue
            await stream.send_all(await stream.receive_some(100))
            await stream.aclose()
    except (ConnectionLost, StreamReset, ProtocolUnsupported, PeerMisbehaved):
        return


def _frame(kind: int, flags: int, number: int, length: int, payload: bytes = b"") -> bytes:
    return yamux.HEADER.pack(0, kind, flags, number, length) + payload


_OPENING = encode_line("/multistream/1.0.0") + encode_line(_ECHO) + b"hello"
_CONVERSATION = b"".join(
    (
        _frame(yamux.WINDOW_UPDATE, yamux.SYN, 1, 0),
        _frame(yamux.DATA, 0, 1, len(_OPENING), _OPENING),
        _frame(yamux.DATA, yamux.SYN | yamux.FIN, 3, len(_OPENING), _OPENING),
        _frame(yamux.PING, yamux.SYN, 0, 7),
        _frame(yamux.WINDOW_UPDATE, yamux.ACK, 2, 1000),
        _frame(yamux.DATA, yamux.FIN, 1, 3, b"end"),
        _frame(yamux.WINDOW_UPDATE, yamux.SYN | yamux.RST, 5, 0),
        _frame(yamux.GO_AWAY, 0, 0, 0),
    )
)

_SPEAKING = (PeerMisbehaved,)
_HELLO = encode_line("/multistream/1.0.0")
_PAYLOADS = (_proof(), _proof(yamux.PROTOCOL), _proof("/mplex/6.7.0", yamux.PROTOCOL))

TARGETS = (
    Target(
        "multistream_responder",
        _responder,
        (_HELLO + encode_line(_ECHO) + b"rest", _HELLO + encode_line("ls") + encode_line("/x")),
        65536,
        _SPEAKING,
    ),
    Target("multistream_dialer", _dialer, (_HELLO + encode_line("na") + encode_line(_ECHO),), 65536, _SPEAKING),
    Target(
        "noise_payload_dialing",
        _we_dial_payload,
        _PAYLOADS,
        noise.MAX_HANDSHAKE_BYTES - 512,
        _SPEAKING,
        is_protobuf=True,
        weight=0.05,
    ),
    Target(
        "noise_payload_listening",
        _we_listen_payload,
        _PAYLOADS,
        noise.MAX_HANDSHAKE_BYTES - 512,
        _SPEAKING,
        is_protobuf=True,
        weight=0.05,
    ),
    Target("noise_bytes_dialing", _we_dial_bytes, (bytes(range(200)),), 65535, _SPEAKING, weight=0.05),
    Target("noise_bytes_listening", _we_listen_bytes, (bytes(range(200)),), 65535, _SPEAKING, weight=0.05),
    Target("noise_frames", _frames, (b"\0\0\0\x10", b"\0\x1c" + bytes(3)), 65536, _SPEAKING, weight=0.3),
    Target(
        "public_key",
        _public_key,
        (
            ALICE.public_key,
            ALICE.public_key + b"\0\0" + ALICE.sign(b"data"),
            b"\x08\x02\x12\x21\x02" + bytes.fromhex("79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798"),
            bytes.fromhex(
                "0803125b3059301306072a8648ce3d020106082a8648ce3d030107034200046b17d1f2e12c4247f8bce6e563a440f277037d81"
                "2deb33a0f4a13945d898c2964fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
            ),
            b"\x08\x00\x12\x20" + b"\x30\x1e\x30\x0d\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x01\x05\x00\x03\x0d\x00",
        ),
        MAX_PUBLIC_KEY_BYTES + 512,
        weight=0.5,
    ),
    Target("private_key", _private_key, (ALICE.to_protobuf(),), 4096, weight=0.5),
    Target("peer_id", _peer_id, (ALICE.peer_id.raw, b"\x12\x20" + bytes(32)), 256),
    Target("peer_id_text", _peer_id_text, (str(ALICE.peer_id).encode(),), 65536),
    Target(
        "swarm_key",
        _swarm_key,
        (
            format_swarm_key(_KEY),
            b"/key/swarm/psk/1.0.0/\r\n/base64/\r\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n",
            b"/key/swarm/psk/1.0.0/\n/bin/\n" + _KEY,
        ),
        MAX_SWARM_KEY_BYTES + 1,
    ),
    Target("yamux", _yamux, (b"\0\1" + _CONVERSATION, b"\1\2" + _CONVERSATION), 256 * 1024, weight=0.3),
    Target("connection", _connection, (b"\x64" + _CONVERSATION, b"\x05" + _CONVERSATION), 256 * 1024, (), weight=0.02),
)

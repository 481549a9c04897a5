"""The fused connection: streams, limits, damage, cancellation."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from ipfsreg.errors import (
    ConnectionLost,
    LimitReached,
    NetworkError,
    PeerMisbehaved,
    ProtocolUnsupported,
    StreamReset,
    SwarmKeyMismatch,
    WrongPeer,
)
from ipfsreg.p2p import yamux
from ipfsreg.p2p.connection import (
    GOODBYE_S,
    LINGER_S,
    Connection,
    ConnectionLimits,
    MemoryBudget,
    secure,
)
from ipfsreg.p2p.handshake import Established, establish
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Stream
from ipfsreg.p2p.multistream import encode_line
from ipfsreg.p2p.pnet import NONCE_BYTES
from ipfsreg.p2p.stream import MuxedStream
from ipfsreg.p2p.wire import wire_over
from ipfsreg.testing.connections import open_pair, tcp_pair

PSK = bytes(range(32))
ECHO = "/echo/1.0.0"
HEADER = encode_line("/multistream/1.0.0")


async def read_all(stream: Stream, size: int = 65536) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some(size):
        data += piece
    return bytes(data)


async def read_exactly(stream: Stream, size: int) -> bytes:
    data = bytearray(size)
    view = memoryview(data)
    while view:
        count = await stream.receive_into(view)
        assert count, "ended early"
        view = view[count:]
    return bytes(data)


async def send_for_ever(stream: Stream) -> None:
    while True:
        await stream.send_all(bytes(100_000))


async def echo(stream: Stream) -> None:
    try:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.send_eof()
    except NetworkError:
        await stream.reset()
    finally:
        await stream.aclose()


async def serve(connection: Connection, handler: Callable[[Stream], Awaitable[None]] = echo) -> None:
    """Answer every stream on ECHO until the connection ends."""
    async with trio.open_nursery() as nursery:
        while True:
            try:
                stream = await connection.accept_stream({ECHO})
            except ConnectionLost:
                return
            nursery.start_soon(handler, stream)


@asynccontextmanager
async def echoing_pair(**options: object) -> AsyncIterator[tuple[Connection, Connection]]:
    async with open_pair(**options) as (alice, bob), trio.open_nursery() as nursery:  # type: ignore[arg-type]
        nursery.start_soon(serve, bob)
        yield alice, bob
        nursery.cancel_scope.cancel()


async def check_sound(connection: Connection) -> None:
    """A fresh stream carries a megabyte both ways."""
    data = random.Random(5).randbytes(1_000_000)
    stream = await connection.open_stream([ECHO])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.send_all, data)
        assert await read_exactly(stream, len(data)) == data
    await stream.send_eof()
    assert await read_all(stream) == b""
    await stream.aclose()


# ------------------------------------------------------------------ the good days


@pytest.mark.parametrize("psk", [None, PSK])
async def test_bytes_pass_both_ways_over_tcp(psk: bytes | None) -> None:
    async with echoing_pair(psk=psk, streams=await tcp_pair()) as (alice, bob):
        await check_sound(alice)
        assert (alice.inbound_streams, alice.outbound_streams) == (0, 0)
        assert (bob.inbound_streams, bob.outbound_streams) == (0, 0)
        assert alice.bytes_out == bob.bytes_in > 1_000_000


@pytest.mark.parametrize(
    ("psk", "pair"),
    # In a private network both speak first, which a pair without any buffer does not allow.
    [(None, trio.testing.lockstep_stream_pair), (PSK, trio.testing.memory_stream_pair)],
)
async def test_bytes_pass_both_ways_over_any_trio_stream(
    psk: bytes | None, pair: Callable[[], tuple[trio.abc.Stream, trio.abc.Stream]]
) -> None:
    async with echoing_pair(psk=psk, streams=pair()) as (alice, _):
        await check_sound(alice)


async def test_both_know_who_the_other_is() -> None:
    async with open_pair() as (alice, bob):
        assert alice.dialer
        assert not bob.dialer
        assert alice.peer != bob.peer
        assert alice.rtt_s is not None


async def test_the_first_protocol_the_peer_offers_is_taken() -> None:
    async with echoing_pair() as (alice, _):
        stream = await alice.open_stream(["/nope", ECHO])
        assert (stream.protocol, stream.peer) == (ECHO, alice.peer)
        with pytest.raises(ProtocolUnsupported, match="/nope, /never"):
            await alice.open_stream(["/nope", "/never"])
        assert alice.outbound_streams == 1


async def test_lazy_negotiation_puts_proposal_and_first_bytes_into_one_flight() -> None:
    sent: list[bytes] = []
    near, far = trio.testing.memory_stream_pair()
    async with echoing_pair(streams=(near, far)) as (alice, bob):
        await trio.testing.wait_all_tasks_blocked()
        assert isinstance(near.send_stream, trio.testing.MemorySendStream)
        hook = near.send_stream.send_all_hook

        async def note() -> None:
            sent.append(b"flight")
            if hook is not None:
                await hook()

        near.send_stream.send_all_hook = note
        stream = await alice.open_stream([ECHO], lazy=True)
        await trio.testing.wait_all_tasks_blocked()
        assert (sent, bob.inbound_streams) == ([], 0)
        await stream.send_all(b"request")
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        assert len(sent) == 1
        assert await read_all(stream) == b"request"


async def test_a_lazy_stream_learns_on_receiving_that_it_was_refused() -> None:
    async with echoing_pair() as (alice, bob):
        stream = await alice.open_stream(["/nope"], lazy=True)
        await stream.send_all(b"request")
        with pytest.raises(ProtocolUnsupported):
            await stream.receive_some()
        with pytest.raises(ProtocolUnsupported):
            await stream.send_all(b"more")
        await trio.testing.wait_all_tasks_blocked()
        assert alice.outbound_streams == bob.inbound_streams == 0


async def test_a_lazy_stream_that_is_closed_unused_was_never_opened() -> None:
    async with echoing_pair() as (alice, bob):
        before = alice.bytes_out
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert (alice.bytes_out, alice.outbound_streams, bob.inbound_streams) == (before, 0, 0)


async def test_streams_opened_before_anybody_accepts_wait_for_the_first_who_does() -> None:
    async with open_pair() as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.send_all(b"early")
        await stream.send_eof()
        await trio.testing.wait_all_tasks_blocked()
        accepted = await bob.accept_stream({ECHO})
        assert await read_all(accepted) == b"early"
        assert bob._buffered == 0


async def test_receiving_first_sends_the_proposal_of_a_lazy_stream() -> None:
    async def greet(stream: Stream) -> None:
        await stream.send_all(b"hello")
        await stream.aclose()

    async with open_pair() as (alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(serve, bob, greet)
        stream = await alice.open_stream([ECHO], lazy=True)
        assert await read_all(stream) == b"hello"
        nursery.cancel_scope.cancel()


async def test_the_listener_opens_streams_as_well() -> None:
    async with open_pair() as (alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(serve, alice)
        await check_sound(bob)
        nursery.cancel_scope.cancel()


async def test_ending_one_side_leaves_the_other_open() -> None:
    async with echoing_pair() as (alice, bob):
        stream = await alice.open_stream([ECHO])
        await stream.send_all(b"x" * 100_000)
        await stream.send_eof()
        await stream.send_eof()
        with pytest.raises(StreamReset):
            await stream.send_all(b"after the end")
        assert len(await read_all(stream)) == 100_000
        await stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert alice.outbound_streams == bob.inbound_streams == 0


async def test_many_streams_at_once_keep_their_bytes_apart() -> None:
    async def converse(seed: int) -> None:
        data = random.Random(seed).randbytes(random.Random(seed).randrange(300_000))
        stream = await alice.open_stream([ECHO], lazy=bool(seed % 2))
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                await stream.send_all(data)
                await stream.send_eof()

            nursery.start_soon(send)
            assert await read_all(stream, 1000) == data
        await stream.aclose()

    async with echoing_pair(streams=await tcp_pair()) as (alice, _):
        async with trio.open_nursery() as nursery:
            for seed in range(100):
                nursery.start_soon(converse, seed)
        assert alice.outbound_streams == 0


async def test_ping_measures_the_round_trip() -> None:
    async with open_pair() as (alice, _):
        assert 0 <= await alice.ping() < 1


# ------------------------------------------------------------------ the handshake


async def shake(psk_alice: bytes | None, psk_bob: bytes | None, **dialing: object) -> list[NetworkError | Connection]:
    """Both sides' outcomes."""
    outcomes: dict[str, NetworkError | Connection] = {}
    near, far = await tcp_pair()

    async def one(name: str, stream: trio.abc.Stream, psk: bytes | None, **options: object) -> None:
        try:
            outcomes[name] = await secure(stream, identity=Identity.generate(), psk=psk, **options)  # type: ignore[arg-type]
        except NetworkError as error:
            outcomes[name] = error

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: one("alice", near, psk_alice, dialer=True, **dialing))
            nursery.start_soon(lambda: one("bob", far, psk_bob, dialer=False))
    for stream in (near, far):
        await trio.aclose_forcefully(stream)
    return [outcomes["alice"], outcomes["bob"]]


@pytest.mark.parametrize("keys", [(PSK, PSK[::-1]), (PSK, None)])
async def test_another_swarm_key_is_named_on_the_side_that_has_one(keys: tuple[bytes, bytes | None]) -> None:
    assert isinstance((await shake(*keys))[0], SwarmKeyMismatch)
    assert isinstance((await shake(*keys[::-1]))[1], SwarmKeyMismatch)


async def test_somebody_else_answering_is_named() -> None:
    somebody = Identity.generate().peer_id
    at_alice, at_bob = await shake(None, None, expected=somebody)
    assert isinstance(at_alice, WrongPeer)
    assert str(somebody) in str(at_alice)
    assert isinstance(at_bob, ConnectionLost)


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        HEADER + b"\xff\xff\xff\x7f",
        HEADER + encode_line("/noise") + b"\xff\xff" + bytes(70_000),
        HEADER + encode_line("/noise") + b"\x00\x20" + bytes(32),
        HEADER + encode_line("/noise") + b"\x00\x00",
    ],
)
@pytest.mark.parametrize("psk", [None, PSK])
async def test_strangers_are_turned_away_in_the_handshake(garbage: bytes, psk: bytes | None) -> None:
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(garbage)
    await near.send_eof()
    with trio.fail_after(1):
        with pytest.raises((PeerMisbehaved, ConnectionLost)):
            await secure(far, identity=Identity.generate(), psk=psk, dialer=False)
        while await near.receive_some():
            pass  # until it is closed


async def test_in_a_private_network_the_listener_speaks_first() -> None:
    """js-libp2p waits for the nonce before it says anything itself."""
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(try_securing, far, PSK, False, [])
        with trio.fail_after(1):
            assert len(await near.receive_some()) == NONCE_BYTES
        nursery.cancel_scope.cancel()


async def test_a_handshake_given_up_closes_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    near, far = trio.testing.memory_stream_pair()
    with trio.move_on_after(5) as scope:
        await secure(far, identity=Identity.generate(), psk=None, dialer=False)
    assert scope.cancelled_caught
    with pytest.raises(trio.BrokenResourceError):
        await near.send_all(b"the stream is closed")


async def test_a_byte_flipped_anywhere_in_the_handshake_ends_it() -> None:
    """Also in the first bytes of Yamux: whatever is not caught in the handshake is caught by the next message."""
    for position in range(0, 320, 7):
        for psk in (None, PSK):
            near, relay_near = trio.testing.memory_stream_pair()
            relay_far, far = trio.testing.memory_stream_pair()
            with trio.move_on_after(0.5) as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(relay, relay_near, relay_far, position)
                    nursery.start_soon(relay, relay_far, relay_near, None)
                    caught: list[NetworkError] = []
                    nursery.start_soon(try_securing, near, psk, True, caught)
                    nursery.start_soon(try_securing, far, psk, False, caught)
                    while not caught:
                        await trio.lowlevel.checkpoint()
                    nursery.cancel_scope.cancel()
            # A flipped length can leave both waiting for the rest of a message: that is the deadline's business.
            assert caught or scope.cancelled_caught, f"nobody noticed byte {position}"


async def relay(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream, flip: int | None) -> None:
    seen = 0
    try:
        while piece := bytearray(await source.receive_some(65536)):
            if flip is not None and seen <= flip < seen + len(piece):
                piece[flip - seen] ^= 0x20
            seen += len(piece)
            await sink.send_all(bytes(piece))
        await sink.aclose()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await sink.aclose()


async def try_securing(stream: trio.abc.Stream, psk: bytes | None, dialer: bool, caught: list[NetworkError]) -> None:
    try:
        connection = await secure(stream, identity=Identity.generate(), psk=psk, dialer=dialer)
    except NetworkError as error:
        caught.append(error)
    else:
        # Something has to travel behind the handshake for damage to its last message to show.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ping_quietly, connection)
            caught.append(await connection.run())
            nursery.cancel_scope.cancel()


async def ping_quietly(connection: Connection) -> None:
    try:
        await connection.ping()
    except ConnectionLost:
        return


# ------------------------------------------------------------------ a peer that misbehaves


class Rogue:
    """A peer that has shaken hands and then says what it likes."""

    def __init__(self, established: Established) -> None:
        self.established = established
        self.heard = bytearray()

    async def say(self, plaintext: bytes) -> None:
        await self.say_raw(self.seal(plaintext))

    def seal(self, plaintext: bytes) -> bytes:
        out = memoryview(bytearray(len(plaintext) + 18))
        self.established.encryptor.encrypt_into(plaintext, out)
        return bytes(out)

    async def say_raw(self, data: bytes) -> None:
        await self.established.wire.write_all(data)


@asynccontextmanager
async def rogue_and_bob(
    *,
    limits: ConnectionLimits | None = None,
    handler: Callable[[Stream], Awaitable[None]] = echo,
    tcp: bool = False,
) -> AsyncIterator[tuple[Rogue, Connection]]:
    near, far = await tcp_pair() if tcp else trio.testing.memory_stream_pair()
    rogues: list[Rogue] = []

    async def be_rogue() -> None:
        wire = wire_over(near)
        rogues.append(Rogue(await establish(wire, identity=Identity.generate(), psk=None, dialer=True, expected=None)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(be_rogue)
        bob = await secure(far, identity=Identity.generate(), psk=None, dialer=False, limits=limits)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.run)
        nursery.start_soon(serve, bob, handler)
        yield rogues[0], bob
        nursery.cancel_scope.cancel()
    await trio.aclose_forcefully(near)


def frame(kind: int, flags: int, number: int, length: int, payload: bytes = b"") -> bytes:
    return yamux.HEADER.pack(0, kind, flags, number, length) + payload


def syn(number: int) -> bytes:
    return frame(yamux.WINDOW_UPDATE, yamux.SYN, number, 0)


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(yamux.DATA, flags, number, len(payload), payload)


def proposal(number: int, protocol: str = ECHO) -> bytes:
    return data(number, HEADER + encode_line(protocol))


async def test_garbage_after_the_handshake_ends_the_connection_and_nothing_else() -> None:
    rng = random.Random(11)
    garbage = [
        b"\x00\x05hello",
        b"\x00\x00",
        b"\xff\xff" + rng.randbytes(65535),
        rng.randbytes(1000),
    ]
    for piece in garbage:
        async with rogue_and_bob() as (rogue, bob):
            # Long enough that a random length is filled.
            await rogue.say_raw(piece + rng.randbytes(70_000))
            with trio.fail_after(2):
                await bob.closed.wait()
            assert isinstance(bob.reason, PeerMisbehaved)


@pytest.mark.parametrize(
    "plaintext",
    [
        b"\x01garbage that is no frame",
        frame(yamux.DATA, 0, 9, 5, b"hello"),
        frame(yamux.DATA, yamux.SYN, 1, 0xFFFFFFFF),
        syn(1) + syn(1),
        syn(2),
    ],
)
async def test_broken_yamux_ends_the_connection(plaintext: bytes) -> None:
    async with rogue_and_bob() as (rogue, bob):
        await rogue.say(plaintext)
        with trio.fail_after(2):
            await bob.closed.wait()
        assert isinstance(bob.reason, PeerMisbehaved)


@pytest.mark.parametrize(
    "opening",
    [
        b"garbage",
        HEADER + b"\x04\xff\xfe\xfd\n",
        HEADER + b"\xff\xff\xff\xff\x0f",
        HEADER + encode_line("/nope") * 65,
    ],
)
async def test_broken_negotiation_costs_the_stream_and_not_the_connection(opening: bytes) -> None:
    async with rogue_and_bob() as (rogue, bob):
        await rogue.say(syn(1) + data(1, opening) + syn(3) + proposal(3) + data(3, b"hello"))
        await trio.testing.wait_all_tasks_blocked()
        assert not bob.closed.is_set()
        assert bob.inbound_streams == 1


async def test_every_cut_of_what_a_peer_says_is_understood() -> None:
    said = syn(1) + proposal(1) + data(1, b"hello", yamux.FIN)
    for cut in range(1, len(said)):
        async with rogue_and_bob() as (rogue, bob):
            await rogue.say(said[:cut])
            await trio.testing.wait_all_tasks_blocked()
            sealed = rogue.seal(said[cut:])
            await rogue.say_raw(sealed[: cut % len(sealed)])
            await trio.testing.wait_all_tasks_blocked()
            await rogue.say_raw(sealed[cut % len(sealed) :])
            await trio.testing.wait_all_tasks_blocked()
            assert (bob.inbound_streams, bob.reason) == (0, None)
            assert bob.bytes_out > 0


async def test_a_peer_that_sends_a_byte_at_a_time_is_understood_and_costs_little() -> None:
    received: list[bytes] = []
    chunks: list[int] = []

    async def read_late(stream: Stream) -> None:
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert isinstance(stream, MuxedStream)
        chunks.append(len(stream._chunks))
        received.append(await read_all(stream))

    payload = random.Random(2).randbytes(3000)
    async with rogue_and_bob(handler=read_late) as (rogue, bob):
        said = syn(1) + proposal(1) + b"".join(data(1, payload[i : i + 1]) for i in range(len(payload)))
        said += frame(yamux.WINDOW_UPDATE, yamux.FIN, 1, 0)
        sealed = b"".join(rogue.seal(said[i : i + 500]) for i in range(0, len(said), 500))
        for i in range(0, len(sealed), 7):
            await rogue.say_raw(sealed[i : i + 7])
        await trio.testing.wait_all_tasks_blocked(0.1)
        assert received == [payload]
        assert chunks == [1]
        assert bob.reason is None


async def test_opening_and_resetting_streams_in_a_loop_leaves_nothing_behind() -> None:
    async with rogue_and_bob(limits=ConnectionLimits(max_inbound_streams=10)) as (rogue, bob):
        for start in range(1, 20_000, 2000):
            await rogue.say(
                b"".join(
                    syn(number) + frame(yamux.WINDOW_UPDATE, yamux.RST, number, 0)
                    for number in range(start, start + 2000, 2)
                )
            )
        await trio.testing.wait_all_tasks_blocked()
        assert (bob.inbound_streams, bob.reason) == (0, None)
        await rogue.say(syn(30_001) + proposal(30_001) + data(30_001, b"hello"))
        await trio.testing.wait_all_tasks_blocked()
        assert bob.inbound_streams == 1


async def test_streams_beyond_the_limit_are_reset_and_the_others_live() -> None:
    async with echoing_pair(limits=ConnectionLimits(max_inbound_streams=3)) as (alice, _):
        held = [await alice.open_stream([ECHO]) for _ in range(3)]
        with pytest.raises(StreamReset):
            await alice.open_stream([ECHO])
        await held[0].send_all(b"alive")
        assert await held[0].receive_some() == b"alive"
        await held[1].reset()
        await check_sound(alice)


async def test_our_own_streams_are_limited() -> None:
    async with (
        open_pair(limits=ConnectionLimits(max_outbound_streams=2)) as (alice, bob),
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve, alice)
        held = [await bob.open_stream([ECHO]) for _ in range(2)]
        with pytest.raises(LimitReached):
            await bob.open_stream([ECHO])
        await held[0].reset()
        await check_sound(bob)
        nursery.cancel_scope.cancel()


async def test_a_peer_that_never_names_a_protocol_loses_the_stream(autojump_clock: trio.testing.MockClock) -> None:
    async with rogue_and_bob(limits=ConnectionLimits(negotiation_timeout_s=30)) as (rogue, bob):
        await rogue.say(syn(1) + data(1, HEADER[:5]) + syn(3) + proposal(3))
        await trio.sleep(29)
        assert bob.inbound_streams == 2
        await trio.sleep(2)
        assert bob.inbound_streams == 1
        assert bob.reason is None


async def test_a_stream_we_closed_and_the_peer_does_not_is_reset_in_the_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def hang_up(stream: Stream) -> None:
        await stream.aclose()

    async with open_pair() as (alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(serve, bob, hang_up)
        stream = await alice.open_stream([ECHO])
        assert await read_all(stream) == b""
        await trio.sleep(LINGER_S - 1)
        assert bob.inbound_streams == 1
        await trio.sleep(2)
        assert bob.inbound_streams == 0
        with pytest.raises(StreamReset):
            await stream.send_all(b"too late")
        nursery.cancel_scope.cancel()


async def test_data_for_a_stream_we_closed_is_answered_with_a_reset() -> None:
    async def hang_up(stream: Stream) -> None:
        await stream.receive_some(1)
        await stream.aclose()

    async with open_pair() as (alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(serve, bob, hang_up)
        stream = await alice.open_stream([ECHO])
        with trio.fail_after(2), pytest.raises(StreamReset):
            await send_for_ever(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert alice.outbound_streams == bob.inbound_streams == 0
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ backpressure and memory


async def test_a_stream_nobody_reads_holds_back_its_sender_and_no_other() -> None:
    parked = trio.Event()

    async def park_first(stream: Stream) -> None:
        if await stream.receive_some(4) == b"park":
            await parked.wait()
            await stream.aclose()
        else:
            await echo(stream)

    async with open_pair() as (alice, bob), trio.open_nursery() as nursery:
        nursery.start_soon(serve, bob, park_first)
        stuck = await alice.open_stream([ECHO])
        await stuck.send_all(b"park")
        with trio.move_on_after(0.05) as scope:
            while True:
                await stuck.send_all(bytes(65536))
        assert scope.cancelled_caught
        assert bob._buffered <= yamux.INITIAL_WINDOW_BYTES
        other = await alice.open_stream([ECHO])
        await other.send_all(b"move" + bytes(500_000))
        assert len(await read_exactly(other, 500_000)) == 500_000
        parked.set()
        nursery.cancel_scope.cancel()


async def test_a_peer_that_never_reads_does_not_grow_our_memory() -> None:
    """Over TCP, with windows of a gigabyte: its socket fills, and then each of our senders waits."""
    numbers = range(1, 41, 2)
    block = bytes(1 << 20)
    calls = 0

    async def flood(stream: Stream) -> None:
        nonlocal calls
        while True:
            calls += 1
            await stream.send_all(block)

    async with rogue_and_bob(tcp=True, handler=flood) as (rogue, bob):
        tracemalloc.start()
        for number in numbers:
            await rogue.say(syn(number) + frame(yamux.WINDOW_UPDATE, 0, number, 1 << 30) + proposal(number))
        await trio.testing.wait_all_tasks_blocked(0.3)
        before = calls, bob.bytes_out
        await trio.testing.wait_all_tasks_blocked(0.1)
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert bob.inbound_streams == len(numbers)
        assert (calls, bob.bytes_out) == before
        # One batch of ciphertext, and what streams and tasks take.
        assert held < 1 << 20
        assert bob.reason is None


async def test_a_peer_that_makes_us_answer_and_does_not_read_is_cut_off() -> None:
    near, far = trio.testing.lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        rogues: list[Rogue] = []

        async def be_rogue() -> None:
            wire = wire_over(near)
            rogues.append(
                Rogue(await establish(wire, identity=Identity.generate(), psk=None, dialer=True, expected=None))
            )

        nursery.start_soon(be_rogue)
        bob = await secure(far, identity=Identity.generate(), psk=None, dialer=False)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bob.run)

        async def ping_for_ever() -> None:
            while True:
                await rogues[0].say(frame(yamux.PING, yamux.SYN, 0, 1) * 5000)

        with pytest.raises(ConnectionLost):
            await ping_for_ever()
        await bob.closed.wait()
        assert isinstance(bob.reason, PeerMisbehaved)


async def test_more_than_the_connection_may_hold_resets_the_stream_that_passes_it() -> None:
    async with open_pair(limits=ConnectionLimits(max_buffered_bytes=300_000)) as (alice, bob):
        streams = []
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                stream = await alice.open_stream([ECHO], lazy=True)
                streams.append(stream)
                nursery.start_soon(stream.send_all, bytes(200_000))
                accepted = await bob.accept_stream({ECHO})
        await trio.testing.wait_all_tasks_blocked()
        assert alice.outbound_streams == bob.inbound_streams == 1
        assert bob._buffered <= 300_000
        assert accepted.protocol == ECHO


async def test_all_connections_share_one_budget_and_give_back_to_it() -> None:
    budget = MemoryBudget(150_000)
    async with open_pair(budget=budget) as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.send_all(bytes(100_000))
        accepted = await bob.accept_stream({ECHO})
        await trio.testing.wait_all_tasks_blocked()
        assert budget.used_bytes == 100_000
        await accepted.receive_some(40_000)
        assert budget.used_bytes == 60_000
        await alice.aclose("enough")
        await bob.closed.wait()
    assert budget.used_bytes == 0


# ------------------------------------------------------------------ cancellation


@pytest.mark.parametrize("tcp", [True, False])
async def test_cancelled_reads_and_writes_leave_the_connection_right(tcp: bool) -> None:
    """Streams that are not cancelled lose no byte; cancelled receives lose none either."""
    rng = random.Random(17)
    payload = rng.randbytes(3_000_000)

    async def steady() -> None:
        stream = await alice.open_stream([ECHO])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            view, target = memoryview(bytearray(len(payload))), 0
            while target < len(payload):
                # Cancelled at random points, with whatever it was doing.
                with trio.move_on_after(rng.choice([0, 0.0001, 0.001])):
                    target += await stream.receive_into(view[target : target + rng.choice([1, 1000, 100_000])])
            assert view == payload
        await stream.aclose()

    async def fickle() -> None:
        for _ in range(150):
            stream: Stream | None = None
            with trio.move_on_after(rng.choice([0, 0.0001, 0.002])):
                stream = await alice.open_stream([ECHO], lazy=rng.random() < 0.5)
                await stream.send_all(payload[: rng.choice([1, 5000, 1_000_000])])
                await stream.receive_some(rng.choice([1, 100_000]))
            if stream is not None:
                await (stream.reset if rng.random() < 0.5 else stream.aclose)()

    async with echoing_pair(streams=await tcp_pair() if tcp else None) as (alice, bob):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(steady)
            for _ in range(5):
                nursery.start_soon(fickle)
        await check_sound(alice)
        assert (alice.reason, bob.reason) == (None, None)


async def test_a_cancelled_send_has_sent_a_prefix() -> None:
    async with open_pair() as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        payload = random.Random(1).randbytes(1_000_000)
        with trio.move_on_after(0.05) as scope:
            await stream.send_all(payload)
        assert scope.cancelled_caught
        await stream.send_eof()
        received = await read_all(await bob.accept_stream({ECHO}))
        assert payload.startswith(received)
        assert len(received) == yamux.INITIAL_WINDOW_BYTES - len(HEADER + encode_line(ECHO))


async def test_cancelling_whoever_opens_accepts_or_pings_harms_nothing() -> None:
    async with open_pair() as (alice, bob):
        for _ in range(20):
            for call in (
                lambda: alice.open_stream([ECHO]),
                lambda: alice.accept_stream({ECHO}),
                alice.ping,
            ):
                with trio.move_on_after(0):
                    await call()
        await trio.testing.wait_all_tasks_blocked()
        assert alice.outbound_streams == bob.inbound_streams == 0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve, bob)
            await check_sound(alice)
            nursery.cancel_scope.cancel()


async def test_two_tasks_on_one_side_of_a_stream_are_told_so() -> None:
    async with open_pair() as (alice, _), trio.open_nursery() as nursery:
        stream = await alice.open_stream([ECHO], lazy=True)
        nursery.start_soon(stream.receive_some)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.receive_some()
        nursery.start_soon(stream.send_all, bytes(1_000_000))
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(trio.BusyResourceError):
            await stream.send_all(b"x")
        nursery.cancel_scope.cancel()


# ------------------------------------------------------------------ endings


async def test_a_goodbye_is_heard_with_its_last_bytes() -> None:
    async with open_pair(streams=await tcp_pair()) as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.send_all(b"last words" * 1000)
        await stream.send_eof()
        accepted = await bob.accept_stream({ECHO})
        await alice.aclose("done")
        await bob.closed.wait()
        assert await read_all(accepted) == b"last words" * 1000
        assert "done" in str(alice.reason)
        with pytest.raises(ConnectionLost):
            await accepted.send_all(b"x" * 5000)
        for call in (lambda: alice.open_stream([ECHO]), alice.ping, lambda: bob.accept_stream({ECHO})):
            with pytest.raises(ConnectionLost):
                await call()
        await alice.aclose("again")


async def test_everybody_waiting_hears_that_the_connection_is_gone() -> None:
    heard = []

    async def wait(call: Callable[[], Awaitable[object]]) -> None:
        try:
            await call()
        except ConnectionLost as error:
            heard.append(error)

    async with open_pair() as (alice, bob):
        full = await alice.open_stream([ECHO], lazy=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait, lambda: full.send_all(bytes(1_000_000)))
            nursery.start_soon(wait, full.receive_some)
            nursery.start_soon(wait, lambda: alice.accept_stream({ECHO}))
            nursery.start_soon(wait, lambda: alice.open_stream(["/unanswered"]))
            await trio.testing.wait_all_tasks_blocked()
            await bob.aclose("away")
        assert len(heard) == 4
        assert alice.closed.is_set()
        assert len({id(error) for error in heard}) == 4


async def test_a_peer_that_does_not_hang_up_is_left_after_a_second(autojump_clock: trio.testing.MockClock) -> None:
    async with rogue_and_bob() as (_, bob):
        began = trio.current_time()
        await bob.aclose("bored")
        assert bob.closed.is_set()
        assert trio.current_time() - began <= GOODBYE_S + 0.1


async def test_a_connection_never_run_can_be_closed() -> None:
    near, far = await tcp_pair()
    ends: list[Connection] = []

    async def one(stream: trio.SocketStream, dialer: bool) -> None:
        ends.append(await secure(stream, identity=Identity.generate(), psk=None, dialer=dialer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, near, True)
        nursery.start_soon(one, far, False)
    for end in ends:
        await end.aclose("not needed")
        assert end.closed.is_set()
        assert isinstance(await end.run(), ConnectionLost)


async def test_a_normal_goodbye_lets_open_streams_finish() -> None:
    async with rogue_and_bob() as (rogue, bob):
        await rogue.say(syn(1) + proposal(1) + frame(yamux.GO_AWAY, 0, 0, 0) + data(1, b"still here"))
        await trio.testing.wait_all_tasks_blocked()
        assert bob.reason is None
        with pytest.raises(ConnectionLost):
            await bob.open_stream([ECHO])
        await rogue.say(frame(yamux.GO_AWAY, 0, 0, 2))
        await bob.closed.wait()
        assert "code 2" in str(bob.reason)


async def test_cancelling_run_ends_the_connection() -> None:
    async with open_pair() as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.send_all(b"x")
    assert alice.closed.is_set()
    assert bob.closed.is_set()
    with pytest.raises(ConnectionLost):
        await stream.receive_some()


async def test_a_reset_is_heard_at_once_and_drops_what_was_not_read() -> None:
    async with open_pair() as (alice, bob):
        stream = await alice.open_stream([ECHO], lazy=True)
        await stream.send_all(b"x" * 1000)
        accepted = await bob.accept_stream({ECHO})
        await stream.reset()
        await stream.reset()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(StreamReset):
            await accepted.receive_some()
        with pytest.raises(StreamReset):
            await accepted.send_all(b"x")
        with pytest.raises(StreamReset):
            await stream.receive_some()
        await accepted.aclose()
        assert bob._buffered == alice.outbound_streams == bob.inbound_streams == 0


async def test_a_window_grows_where_the_round_trip_holds_it_back(autojump_clock: trio.testing.MockClock) -> None:
    """50 ms of delay each way: the window must grow to carry what the reader takes."""
    near, near_relay = trio.testing.memory_stream_pair()
    far_relay, far = trio.testing.memory_stream_pair()

    async def delay(source: trio.abc.ReceiveStream, sink: trio.abc.SendStream) -> None:
        send, receive = trio.open_memory_channel[tuple[float, bytes]](10_000)

        async def pull() -> None:
            while piece := await source.receive_some(1 << 20):
                await send.send((trio.current_time() + 0.05, bytes(piece)))

        async with trio.open_nursery() as inner:
            inner.start_soon(pull)
            async for due, piece in receive:
                await trio.sleep_until(due)
                await sink.send_all(piece)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(delay, near_relay, far_relay)
        nursery.start_soon(delay, far_relay, near_relay)
        async with open_pair(streams=(near, far)) as (alice, bob):
            total = 60 << 20
            stream = await alice.open_stream([ECHO], lazy=True)

            async def send() -> None:
                block = bytes(1 << 20)
                for _ in range(total >> 20):
                    await stream.send_all(block)
                await stream.send_eof()

            began = trio.current_time()
            nursery.start_soon(send)
            accepted = await bob.accept_stream({ECHO})
            received, buffer = 0, bytearray(1 << 20)
            while count := await accepted.receive_into(buffer):
                received += count
            elapsed = trio.current_time() - began
            assert received == total
            # With the first window alone: 60 MiB / 256 KiB x 100 ms = 24 s.
            assert elapsed < 3.0
        nursery.cancel_scope.cancel()

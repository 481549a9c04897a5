"""What a node lives through: hostile peers against a whole node on real sockets, while another peer's transfer goes on.

Alice is a node with every protocol mounted. Bob keeps sending her bytes and checks that each comes back. Mallory is
played by hand, from the first byte on the socket or from behind a finished handshake. After each story alice serves bob
as before, has contained nothing that nobody foresaw, and remembers nothing of mallory.
"""

from __future__ import annotations

import logging
import os
import random
import resource
import traceback
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipfsreg.bitswap.messages import BITSWAP_1_2
from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.memory import MemoryBlockstore
from ipfsreg.database import open_database
from ipfsreg.dht.service import open_dht
from ipfsreg.dht.settings import LAN_PROTOCOL
from ipfsreg.errors import ConnectionLost, NetworkError, PeerUnreachable
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p import identify, noise, ping, pnet, swarm, yamux
from ipfsreg.p2p.connection import Connection, ConnectionLimits, secure
from ipfsreg.p2p.dialer import open_tcp
from ipfsreg.p2p.handshake import establish
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.p2p.limits import Limits
from ipfsreg.p2p.listening import reachable_at
from ipfsreg.p2p.multistream import encode_line
from ipfsreg.p2p.wire import Wire, wire_over
from ipfsreg.pubsub.service import open_pubsub

ECHO = "/echo/1.0.0"
MESHSUB = "/meshsub/1.1.0"
LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
PSK = bytes(range(32))
MIB = 1024 * 1024
HELLO = encode_line("/multistream/1.0.0")

PROTOCOLS = [ECHO, identify.ID, identify.PUSH, ping.PROTOCOL, BITSWAP_1_2, MESHSUB, LAN_PROTOCOL]


# ------------------------------------------------------------------ the cast


@asynccontextmanager
async def open_alice(directory: Path, settings: NetworkSettings) -> AsyncIterator[Host]:
    """A node with every protocol, and an echo."""
    async with (
        open_database(directory / "alice.db") as database,
        open_network(Identity.generate(), settings, database) as host,
        open_bitswap(host, MemoryBlockstore()),
        open_pubsub(host) as pubsub,
        open_dht(host, database),
        pubsub.join("names"),
        host.accept([ECHO]) as streams,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(serve_echo, streams)
        yield host
        nursery.cancel_scope.cancel()


async def serve_echo(streams: AsyncIterator[Stream]) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in streams:
            nursery.start_soon(echo_one, stream)


async def echo_one(stream: Stream) -> None:
    try:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.aclose()
    except NetworkError:
        await stream.reset()


class Transfer:
    """Bob's: bytes go to alice and come back, for ever, over one connection."""

    def __init__(self, bob: Host, alice: Host) -> None:
        self._bob = bob
        self._alice = alice
        self.moved = 0

    async def run(self) -> None:
        stream = await self._bob.open_stream(self._alice.peer_id, [ECHO])
        payload = random.Random(1).randbytes(65536)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send, stream, payload)
            position = 0
            while True:
                piece = await stream.receive_some()
                assert piece, "bob's stream ended"
                expected = (payload + payload)[position : position + len(piece)]
                assert piece == expected, "bob got other bytes than he sent"
                position = (position + len(piece)) % len(payload)
                self.moved += len(piece)

    async def _send(self, stream: Stream, payload: bytes) -> None:
        while True:
            await stream.send_all(payload)
            # So that a test is about mallory and not about how fast bob is.
            await trio.sleep(0.002)

    async def check_goes_on(self) -> None:
        """Another half mebibyte passes, and soon."""
        goal = self.moved + MIB // 2
        with trio.fail_after(10):
            while self.moved < goal:  # noqa: ASYNC110 - whatever moves it is the thing measured
                await trio.sleep(0.005)


class Story:
    """Alice, bob's transfer, and the door for mallory."""

    def __init__(self, alice: Host, bob: Host, transfer: Transfer, psk: bytes | None) -> None:
        self.alice = alice
        self.bob = bob
        self.transfer = transfer
        self._psk = psk

    async def socket(self) -> trio.SocketStream:
        """A stranger's TCP connection to alice."""
        return await open_tcp(reachable_at(self.alice._swarm.listeners)[0])

    async def hand(self) -> Hand:
        """A proved peer whose every byte the test says."""
        wire = wire_over(await self.socket())
        identity = Identity.generate()
        done = await establish(wire, identity=identity, psk=self._psk, dialer=True, expected=self.alice.peer_id)
        return Hand(identity, wire, done.encryptor, done.key_out)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A proved peer that speaks Yamux properly, and what it likes in its streams."""
        connection = await secure(await self.socket(), identity=Identity.generate(), psk=self._psk, dialer=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            nursery.start_soon(self._take_streams, connection)
            yield connection
            await connection.aclose("done")
            nursery.cancel_scope.cancel()

    async def _take_streams(self, connection: Connection) -> None:
        # Alice opens streams as well: to ask who we are, and for gossip if we say we speak it.
        with suppress(ConnectionLost):
            while True:
                await (await connection.accept_stream({identify.ID})).reset()

    async def wait_alone_with_bob(self) -> None:
        """Return once alice has let go of everybody else."""
        with trio.fail_after(10):
            while self.alice.peers() != [self.bob.peer_id]:  # noqa: ASYNC110 - sockets end in their own time
                await trio.sleep(0.01)


class Hand:
    """One end of a secured connection, spoken frame by frame."""

    def __init__(self, identity: Identity, wire: Wire, encryptor: noise.Encryptor, key: pnet.Keystream | None) -> None:
        self.identity = identity
        self._wire = wire
        self._encryptor = encryptor
        self._key = key

    async def say(self, plaintext: bytes) -> None:
        """Send *plaintext*, in as many Noise messages as it takes. Raises ConnectionLost."""
        room = memoryview(bytearray(noise.MAX_MESSAGE_BYTES + 2))
        for start in range(0, len(plaintext), noise.MAX_PLAINTEXT_BYTES):
            piece = plaintext[start : start + noise.MAX_PLAINTEXT_BYTES]
            message = room[: self._encryptor.encrypt_into(piece, room)]
            if self._key is not None:
                self._key.xor(message)
            await self._wire.write_all(bytes(message))

    async def read_on(self) -> None:
        """Take what alice answers, and throw it away."""
        room = memoryview(bytearray(65536))
        with suppress(ConnectionLost):
            while self._wire.read_into(room) != 0:
                await self._wire.wait_readable()

    async def hang_up(self) -> None:
        await self._wire.aclose()


def frame(kind: int, flags: int, number: int, payload: bytes = b"", length: int | None = None) -> bytes:
    return yamux.HEADER.pack(0, kind, flags, number, len(payload) if length is None else length) + payload


def opening(number: int, protocol: str, data: bytes = b"", *, flags: int = yamux.SYN) -> bytes:
    """A stream opened on *protocol*, with the first bytes on it."""
    return frame(yamux.DATA, flags, number, HELLO + encode_line(protocol) + data)


@asynccontextmanager
async def open_story(
    directory: Path,
    *,
    psk: bytes | None = None,
    limits: Limits | None = None,
    connection_limits: ConnectionLimits | None = None,
) -> AsyncIterator[Story]:
    settings = NetworkSettings(
        listen_addrs=LOOPBACK,
        psk=psk,
        limits=limits or Limits(),
        connection_limits=connection_limits or ConnectionLimits(),
    )
    async with (
        open_alice(directory, settings) as alice,
        open_network(Identity.generate(), NetworkSettings(listen_addrs=LOOPBACK, psk=psk)) as bob,
        trio.open_nursery() as nursery,
    ):
        await bob.connect(PeerInfo(alice.peer_id, tuple(alice.listen_addrs())))
        connection = bob._swarm.connection(alice.peer_id)
        transfer = Transfer(bob, alice)
        nursery.start_soon(transfer.run)
        await transfer.check_goes_on()
        try:
            yield Story(alice, bob, transfer, psk)
        except AssertionError:
            traceback.print_exc()  # pytest cuts off groups nested as deeply as these
            raise
        await transfer.check_goes_on()
        assert bob._swarm.connection(alice.peer_id) is connection, "bob had to dial again"
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def nothing_unforeseen(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Faults of ours are contained and logged with a trace: none may be met."""
    caplog.set_level(logging.INFO)
    yield
    assert not [record for record in caplog.records if record.exc_info], caplog.text
    assert "nobody foresaw" not in caplog.text


@contextmanager
def memory_within(mebibytes: float) -> Iterator[None]:
    """What the whole process (mallory's end included) holds at most beyond what it had."""
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1] / MIB
    finally:
        tracemalloc.stop()
    assert peak < mebibytes, f"{peak:.1f} MiB"


# ------------------------------------------------------------------ silence and slowness


async def test_a_peer_that_never_reads_costs_little(tmp_path: Path) -> None:
    limits = ConnectionLimits(max_buffered_bytes=4 * MIB)
    async with open_story(tmp_path, connection_limits=limits) as story:
        mallory = await story.hand()
        with memory_within(28), trio.move_on_after(20) as patience, suppress(ConnectionLost):
            # 40 MB to be echoed in 200 streams, of which each echo holds a piece; then pings to be answered.
            for number in range(1, 400, 2):
                await mallory.say(opening(number, ECHO, bytes(200_000)))
            while True:
                await mallory.say(frame(yamux.PING, yamux.SYN, 0, length=7) * 1000)
                await story.transfer.check_goes_on()
        assert not patience.cancelled_caught, "she was not cut off"
        await mallory.hang_up()
        await story.wait_alone_with_bob()


async def test_a_peer_that_never_writes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swarm, "SWEEP_S", 0.05)
    monkeypatch.setattr("ipfsreg.p2p.liveness.SWEEP_S", 0.05)
    monkeypatch.setattr("ipfsreg.p2p.liveness.QUIET_S", 0.2)
    monkeypatch.setattr("ipfsreg.p2p.liveness.DEAD_S", 0.6)
    async with open_story(tmp_path) as story:
        mallory = await story.hand()
        with trio.fail_after(5):
            while mallory.identity.peer_id not in story.alice.peers():  # noqa: ASYNC110
                await trio.sleep(0.01)
        await story.transfer.check_goes_on()
        await story.wait_alone_with_bob()
        await mallory.hang_up()


async def test_a_handshake_of_a_byte_at_a_time_has_a_deadline(tmp_path: Path) -> None:
    async with open_story(tmp_path, limits=Limits(handshake_s=0.4, handshakes=4)) as story, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(await story.socket()) for _ in range(20)]
        said = HELLO + encode_line("/noise") + bytes(1000)
        with trio.fail_after(15), suppress(trio.BrokenResourceError):
            for byte in said:
                for socket in sockets:
                    with suppress(trio.BrokenResourceError):
                        await socket.send_all(bytes([byte]))
                await trio.sleep(0.05)
                if not story.alice._swarm._doorstep._slots.borrowed_tokens:
                    break
        await story.transfer.check_goes_on()
        carol = open_network(Identity.generate(), NetworkSettings(listen_addrs=()))
        async with carol as host:
            with trio.fail_after(5):
                await host.connect(PeerInfo(story.alice.peer_id, tuple(story.alice.listen_addrs())))


async def test_a_stream_of_a_byte_at_a_time_is_reset_and_costs_its_peer_nothing_else(tmp_path: Path) -> None:
    limits = ConnectionLimits(negotiation_timeout_s=0.3)
    async with open_story(tmp_path, connection_limits=limits) as story:
        mallory = await story.hand()
        await mallory.say(frame(yamux.WINDOW_UPDATE, yamux.SYN, 1) + frame(yamux.WINDOW_UPDATE, yamux.SYN, 3))
        connection = None
        for byte in HELLO + encode_line(ECHO):
            await mallory.say(frame(yamux.DATA, 0, 1, bytes([byte])))
            await trio.sleep(0.03)
            connection = story.alice._swarm.connection(mallory.identity.peer_id) or connection
        assert connection is not None
        with trio.fail_after(5):
            while connection.inbound_streams:  # noqa: ASYNC110 - its patience runs out
                await trio.sleep(0.01)
        assert connection.reason is None
        await mallory.hang_up()
        await story.wait_alone_with_bob()


# ------------------------------------------------------------------ floods


async def test_streams_opened_and_reset_in_a_loop_leave_nothing_behind(tmp_path: Path) -> None:
    async with open_story(tmp_path) as story:
        mallory = await story.hand()
        number = 1
        with memory_within(16):
            for _ in range(40):
                said = bytearray()
                for _ in range(100):
                    for protocol in (ECHO, ping.PROTOCOL, BITSWAP_1_2, MESHSUB, "/none"):
                        said += opening(number, protocol) + frame(yamux.WINDOW_UPDATE, yamux.RST, number)
                        number += 2
                await mallory.say(bytes(said))
                await trio.lowlevel.checkpoint()
            await story.transfer.check_goes_on()
        connection = story.alice._swarm.connection(mallory.identity.peer_id)
        assert connection is None or connection.inbound_streams == 0
        await mallory.hang_up()
        await story.wait_alone_with_bob()


async def test_more_streams_than_a_peer_may_have_are_reset(tmp_path: Path) -> None:
    async with open_story(tmp_path) as story:
        mallory = await story.hand()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mallory.read_on)
            with memory_within(32):
                for start in range(1, 40_001, 2000):
                    await mallory.say(b"".join(opening(number, ECHO) for number in range(start, start + 2000, 2)))
                await story.transfer.check_goes_on()
            connection = story.alice._swarm.connection(mallory.identity.peer_id)
            assert connection is not None
            assert 0 < connection.inbound_streams <= 1024
            nursery.cancel_scope.cancel()
        await mallory.hang_up()
        await story.wait_alone_with_bob()


async def test_ten_thousand_connects_without_a_handshake_keep_nobody_out(tmp_path: Path) -> None:
    files = len(os.listdir("/proc/self/fd"))
    async with open_story(tmp_path, limits=Limits(silent_sockets=64)) as story:
        addr = reachable_at(story.alice._swarm.listeners)[0]
        with memory_within(32), trio.fail_after(100):
            for _ in range(50):
                async with AsyncExitStack() as stack:
                    for _ in range(200):
                        await stack.enter_async_context(await open_tcp(addr))
                    assert len(story.alice._swarm._doorstep._silent) <= 64
                await story.transfer.check_goes_on()
        with trio.fail_after(10):
            while story.alice._swarm._doorstep._silent:  # noqa: ASYNC110 - the last sockets end in their own time
                await trio.sleep(0.01)
        carol = open_network(Identity.generate(), NetworkSettings(listen_addrs=()))
        async with carol as host:
            await host.connect(PeerInfo(story.alice.peer_id, tuple(story.alice.listen_addrs())))
    assert len(os.listdir("/proc/self/fd")) <= files


# ------------------------------------------------------------------ cancellation


async def test_ten_thousand_cancelled_reads_and_writes_leave_the_connection_right(tmp_path: Path) -> None:
    rng = random.Random(11)
    payload = rng.randbytes(MIB)
    cancelled = 0

    async def fickle() -> None:
        nonlocal cancelled
        while cancelled < 10_000:
            stream: Stream | None = None
            with trio.move_on_after(rng.choice([0, 0, 0.0001, 0.001])) as scope:
                stream = await story.bob.open_stream(story.alice.peer_id, [ECHO])
                await stream.send_all(payload[: rng.choice([1, 5000, 300_000])])
                await stream.receive_some(rng.choice([1, 100_000]))
            cancelled += scope.cancelled_caught
            if stream is not None:
                await (stream.reset if rng.random() < 0.5 else stream.aclose)()

    async def steady() -> None:
        """Its reads are cancelled at any moment; no byte of it is lost."""
        nonlocal cancelled
        stream = await story.bob.open_stream(story.alice.peer_id, [ECHO])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.send_all, payload)
            view, filled = memoryview(bytearray(len(payload))), 0
            while filled < len(payload):
                with trio.move_on_after(rng.choice([0, 0.0001, 0.001])) as scope:
                    filled += await stream.receive_into(view[filled : filled + rng.choice([100, 1000, 10_000])])
                cancelled += scope.cancelled_caught
            assert view == payload
        await stream.aclose()

    async with open_story(tmp_path) as story:
        with trio.fail_after(100):
            async with trio.open_nursery() as nursery:
                for _ in range(6):
                    nursery.start_soon(fickle)
                nursery.start_soon(steady)
                nursery.start_soon(steady)
        assert cancelled >= 10_000
        connection = story.alice._swarm.connection(story.bob.peer_id)
        assert connection is not None
        with trio.fail_after(20):
            # Bob's transfer is left, and what identify and the like keep open.
            while connection.inbound_streams > 3:  # noqa: ASYNC110
                await trio.sleep(0.01)


# ------------------------------------------------------------------ garbage and lies


def garbage(rng: random.Random) -> bytes:
    """No message, in many ways: noise, lengths that lie, messages that end early, fields that point outside."""
    size = rng.choice([1, 10, 1000, 20_000])
    noise_bytes = rng.randbytes(size)
    match rng.randrange(5):
        case 0:
            return noise_bytes
        case 1:
            return encode_varint(2 ** rng.choice([20, 31, 40, 63])) + noise_bytes
        case 2:
            return encode_varint(size + rng.randrange(3)) + noise_bytes
        case 3:
            inner = bytes_field(rng.randrange(1, 12), noise_bytes) + encode_varint(0x0A) + encode_varint(2**40)
            return encode_varint(len(inner)) + inner
        case _:
            inner = b"".join(varint_field(rng.randrange(1, 12), 2**64 - 1) for _ in range(100))
            return encode_varint(len(inner)) + inner


@pytest.mark.parametrize("protocol", PROTOCOLS)
async def test_garbage_in_a_protocol_costs_its_stream_or_its_peer(tmp_path: Path, protocol: str) -> None:
    rng = random.Random(protocol)
    async with open_story(tmp_path) as story:
        with memory_within(24):
            for _ in range(8):
                async with story.connection() as mallory:
                    for number in range(15):
                        with suppress(NetworkError), trio.move_on_after(0.3):
                            stream = await mallory.open_stream([protocol], lazy=True)
                            await stream.send_all(garbage(rng))
                            if number % 3 == 0:
                                await stream.send_eof()
                                while await stream.receive_some():
                                    pass
                            elif number % 3 == 1:
                                await stream.reset()
            await story.transfer.check_goes_on()
        await story.wait_alone_with_bob()


async def test_lengths_that_claim_gigabytes_take_no_memory_at_any_layer(tmp_path: Path) -> None:
    gigabytes = [2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1]
    said: list[tuple[str, bytes]] = [("yamux", frame(yamux.DATA, yamux.SYN, 1, length=0xFFFF_FFFF) + bytes(100))]
    said += [("yamux, gone", opening(1, ECHO) + frame(yamux.DATA, yamux.RST, 1) + frame(0, 0, 1, length=0xFFFF_FFFF))]
    said += [("multistream", frame(yamux.DATA, yamux.SYN, 1, encode_varint(claim))) for claim in gigabytes]
    for protocol in PROTOCOLS:
        for claim in gigabytes:
            said.append((protocol, opening(1, protocol, encode_varint(claim) + bytes(100))))
            for number in range(1, 10):
                inner = encode_varint(number << 3 | 2) + encode_varint(claim) + bytes(20)
                nested = bytes_field(number, inner)
                said.append((protocol, opening(1, protocol, encode_varint(len(nested)) + nested)))
    async with open_story(tmp_path) as story:
        with memory_within(24):
            for what, plaintext in said:
                mallory = await story.hand()
                with suppress(ConnectionLost):
                    await mallory.say(plaintext)
                    await mallory.say(frame(yamux.WINDOW_UPDATE, yamux.SYN, 99))
                await trio.sleep(0.001)
                await mallory.hang_up()
                if what.startswith("yamux"):
                    await story.transfer.check_goes_on()
            # In the handshake, before anybody is known.
            for claim in (noise.MAX_HANDSHAKE_BYTES + 1, 65535):
                async with await story.socket() as stranger:
                    await stranger.send_all(HELLO + encode_line("/noise") + claim.to_bytes(2, "big") + bytes(100))
                    with trio.fail_after(5), suppress(trio.BrokenResourceError):
                        while await stranger.receive_some():
                            pass
        await story.wait_alone_with_bob()


class _Liar(noise.Handshake):
    """A peer whose proof is *payload*."""

    def __init__(self, payload: Callable[[bytes], bytes]) -> None:
        super().__init__(Identity(Ed25519PrivateKey.generate()), dialer=True, muxers=[yamux.PROTOCOL])
        self._make = payload

    def _payload(self) -> bytes:
        return self._make(self._static.public_key().public_bytes_raw())


def rsa_proof(bits: int, exponent: int, signature_bytes: int) -> bytes:
    """A key of *bits* bits that nobody has the private half of, and a signature of the right length."""
    modulus = (1 << bits - 1) | random.Random(bits).getrandbits(bits - 2) | 1
    key = RSAPublicNumbers(exponent, modulus).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return bytes_field(1, varint_field(1, 0) + bytes_field(2, der)) + bytes_field(2, bytes(signature_bytes))


@pytest.mark.parametrize(
    ("bits", "exponent"),
    [(2048, 65537), (8192, 65537), (8192, 2**33 - 1), (3072, 2**3000 + 1), (10_000, 65537), (16_384, 65537)],
)
async def test_a_giant_rsa_key_costs_next_to_nothing(tmp_path: Path, bits: int, exponent: int) -> None:
    proof = rsa_proof(bits, exponent, bits // 8)
    async with open_story(tmp_path) as story:
        began = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        for _ in range(10):
            await say_proof(story, proof)
        took = resource.getrusage(resource.RUSAGE_SELF).ru_utime - began
        # Of which most is bob's transfer; verifying with an unbounded key of this size would take seconds each.
        assert took < 5
        assert story.alice.peers() == [story.bob.peer_id]


async def say_proof(story: Story, proof: bytes) -> None:
    """Shake hands with alice up to *proof*, and hear that she hangs up."""
    liar = _Liar(lambda static: proof)
    async with await story.socket() as socket:
        await socket.send_all(HELLO + encode_line("/noise") + noise.framed(liar.begin()))
        received = bytearray()
        answer = len(HELLO) + len(encode_line("/noise"))
        with trio.fail_after(10):
            while len(received) < answer + 2 or len(received) < answer + 2 + int.from_bytes(
                received[answer : answer + 2], "big"
            ):
                received += await socket.receive_some()
            third = liar.receive(bytes(received[answer + 2 :]))
            if len(third) <= noise.MAX_HANDSHAKE_BYTES:
                await socket.send_all(noise.framed(third))
            else:
                await socket.send_all(noise.framed(third)[: noise.MAX_HANDSHAKE_BYTES])
            with suppress(trio.BrokenResourceError):
                assert await socket.receive_some() == b"", "alice believed it"


# ------------------------------------------------------------------ the swarm key


async def test_a_peer_without_the_key_learns_nothing(tmp_path: Path) -> None:
    """All it ever receives are 24 random bytes, whatever it says; and each time others."""
    limits = Limits(handshake_s=0.5)
    heard: list[bytes] = []
    sayings = [
        b"",
        HELLO + encode_line("/noise"),
        random.Random(1).randbytes(10_000),
        bytes(24) + HELLO + encode_line("/noise") + bytes(100),
        b"GET / HTTP/1.1\r\n\r\n",
    ]
    async with open_story(tmp_path, psk=PSK, limits=limits) as story:

        async def ask(said: bytes) -> None:
            received = bytearray()
            async with await story.socket() as stranger:
                with suppress(trio.BrokenResourceError):
                    if said:
                        await stranger.send_all(said)
                    while piece := await stranger.receive_some():
                        received += piece
            heard.append(bytes(received))

        with trio.fail_after(20), memory_within(16):
            async with trio.open_nursery() as nursery:
                for said in sayings * 10:
                    nursery.start_soon(ask, said)
            await story.transfer.check_goes_on()
        assert {len(received) for received in heard} <= {0, pnet.NONCE_BYTES}
        nonces = [received for received in heard if received]
        assert len(nonces) > 20
        assert len(set(nonces)) == len(nonces)
        # With another key nothing more is learned than that it is another.
        identity = Identity.generate()
        other = open_network(identity, NetworkSettings(listen_addrs=(), psk=bytes(32)))
        async with other as host:
            with pytest.raises(PeerUnreachable):
                await host.connect(PeerInfo(story.alice.peer_id, tuple(story.alice.listen_addrs())))
        assert story.alice.peers() == [story.bob.peer_id]


# ------------------------------------------------------------------ damage on the way


@pytest.mark.parametrize("psk", [None, PSK], ids=["public", "private"])
async def test_damaged_bytes_end_the_connection_and_never_become_others(tmp_path: Path, psk: bytes | None) -> None:
    """A wire that flips, drops, doubles or swaps bytes, or ends, anywhere: what arrives is right, or nothing does."""
    rng = random.Random(5)
    async with open_story(tmp_path, psk=psk) as story:
        outcomes = {"right": 0, "broken": 0}
        with trio.fail_after(100):
            for kind in ["flip", "drop", "double", "swap", "end"] * 8:
                outcomes[await send_through(story, psk, kind, rng)] += 1
        # Nothing at all happens where the place lies behind the last byte.
        assert outcomes["broken"] >= 30, outcomes
        await story.wait_alone_with_bob()


async def send_through(story: Story, psk: bytes | None, kind: str, rng: random.Random) -> str:
    near, far = await story.socket(), trio.testing.memory_stream_pair()
    ours, theirs = far
    place = [rng.choice([rng.randrange(800), rng.randrange(300_000)]), rng.randrange(2)]

    async def pump(source: trio.abc.Stream, sink: trio.abc.Stream, direction: int) -> None:
        position = 0
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while piece := await source.receive_some(65536):
                offset = place[0] - position
                position += len(piece)
                if direction == place[1] and 0 <= offset < len(piece) - 1:
                    piece = damaged(bytes(piece), offset, kind)
                    if kind == "end":
                        await sink.send_all(piece)
                        break
                await sink.send_all(piece)
        await trio.aclose_forcefully(sink)

    payload = rng.randbytes(200_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pump, theirs, near, 0)
        nursery.start_soon(pump, near, theirs, 1)
        try:
            with trio.move_on_after(1.5):
                connection = await secure(ours, identity=Identity.generate(), psk=psk, dialer=True)
                nursery.start_soon(connection.run)
                stream = await connection.open_stream([ECHO])
                nursery.start_soon(send_quietly, stream, payload)
                received = bytearray()
                while len(received) < len(payload):
                    piece = await stream.receive_some()
                    received += piece
                    assert payload.startswith(received), "other bytes arrived than were sent"
                    if not piece:
                        return "broken"
                return "right"
        except NetworkError:
            return "broken"
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(near)
    # A length that was made larger keeps both waiting; liveness ends that.
    return "broken"


async def send_quietly(stream: Stream, payload: bytes) -> None:
    with suppress(NetworkError):
        await stream.send_all(payload)


def damaged(piece: bytes, offset: int, kind: str) -> bytes:
    before, byte, behind = piece[:offset], piece[offset], piece[offset + 1 :]
    match kind:
        case "flip":
            return before + bytes([byte ^ 0x10]) + behind
        case "drop":
            return before + behind
        case "double":
            return before + bytes([byte, byte]) + behind
        case "swap":
            return before + bytes([behind[0], byte ^ (behind[0] == byte)]) + behind[1:]
        case _:
            return before

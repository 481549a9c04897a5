"""The way from a byte stream to a proved peer, with peers that do parts of it differently."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ipfsreg.errors import ProtocolUnsupported
from ipfsreg.p2p import yamux
from ipfsreg.p2p.connection import Connection, secure
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.multistream import encode_line
from ipfsreg.p2p.noise import Handshake, Secured, framed

HEADER = encode_line("/multistream/1.0.0")
NOISE = encode_line("/noise")
YAMUX = encode_line("/yamux/1.0.0")
ECHO = "/echo/1.0.0"


def seal(secured: Secured, plaintext: bytes) -> bytes:
    out = memoryview(bytearray(len(plaintext) + 18))
    secured.encryptor.encrypt_into(plaintext, out)
    return bytes(out)


class OldPeer:
    """A peer that knows no muxer in the handshake, and dials byte by byte or all at once."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._buffer = bytearray()
        self.secured: Secured | None = None

    async def dial(self) -> None:
        handshake = Handshake(Identity.generate(), dialer=True)
        for byte in HEADER + NOISE:
            await self._stream.send_all(bytes((byte,)))
        assert await self.read(len(HEADER + NOISE)) == HEADER + NOISE
        await self._stream.send_all(framed(handshake.begin()))
        await self._stream.send_all(framed(handshake.receive(await self.read_message())))
        self.secured = handshake.secured

    async def answer(self) -> None:
        handshake = Handshake(Identity.generate(), dialer=False)
        assert await self.read(len(HEADER + NOISE)) == HEADER + NOISE
        await self._stream.send_all(HEADER + NOISE)
        await self._stream.send_all(framed(handshake.receive(await self.read_message())))
        handshake.receive(await self.read_message())
        self.secured = handshake.secured

    async def say(self, plaintext: bytes) -> None:
        assert self.secured is not None
        await self._stream.send_all(seal(self.secured, plaintext))

    async def hear(self) -> bytes:
        assert self.secured is not None
        message = await self.read_message()
        out = memoryview(bytearray(len(message)))
        return bytes(out[: self.secured.decryptor.decrypt_into(memoryview(message), out)])

    async def read_message(self) -> bytes:
        return await self.read(int.from_bytes(await self.read(2), "big"))

    async def read(self, size: int) -> bytes:
        while len(self._buffer) < size:
            piece = await self._stream.receive_some()
            assert piece, "hung up"
            self._buffer += piece
        piece = bytes(self._buffer[:size])
        del self._buffer[:size]
        return piece


async def secure_into(ends: list[Connection], stream: trio.abc.Stream, dialer: bool) -> None:
    ends.append(await secure(stream, identity=Identity.generate(), psk=None, dialer=dialer))


async def test_a_dialer_without_early_muxers_may_say_everything_in_one_message() -> None:
    near, far = trio.testing.memory_stream_pair()
    peer, ends = OldPeer(near), list[Connection]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secure_into, ends, far, False)
        await peer.dial()
        request = HEADER + encode_line(ECHO) + b"hello"
        await peer.say(
            HEADER
            + YAMUX
            + yamux.HEADER.pack(0, yamux.WINDOW_UPDATE, yamux.SYN, 1, 0)
            + yamux.HEADER.pack(0, yamux.DATA, 0, 1, len(request))
            + request
        )
        assert await peer.hear() == HEADER + YAMUX
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends[0].run)
        stream = await ends[0].accept_stream({ECHO})
        assert await stream.receive_some() == b"hello"
        nursery.cancel_scope.cancel()


async def test_a_listener_without_early_muxers_is_asked_for_yamux() -> None:
    near, far = trio.testing.memory_stream_pair()
    peer, ends = OldPeer(near), list[Connection]()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secure_into, ends, far, True)
        await peer.answer()
        assert await peer.hear() == HEADER + YAMUX
        await peer.say(HEADER)
        await peer.say(YAMUX)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ends[0].run)
        stream = await ends[0].open_stream([ECHO], lazy=True)
        await stream.send_all(b"hello")
        assert (await peer.hear()).startswith(yamux.HEADER.pack(0, yamux.WINDOW_UPDATE, yamux.SYN, 1, 0))
        nursery.cancel_scope.cancel()


async def test_a_listener_without_yamux_is_named() -> None:
    near, far = trio.testing.memory_stream_pair()
    peer = OldPeer(near)
    async with trio.open_nursery() as nursery:

        async def refuse() -> None:
            await peer.answer()
            await peer.hear()
            await peer.say(HEADER + encode_line("na"))

        nursery.start_soon(refuse)
        with pytest.raises(ProtocolUnsupported, match="yamux"):
            await secure(far, identity=Identity.generate(), psk=None, dialer=True)


async def test_a_listener_without_noise_is_named() -> None:
    near, far = trio.testing.memory_stream_pair()
    await near.send_all(HEADER + encode_line("na"))
    with pytest.raises(ProtocolUnsupported, match="/noise"):
        await secure(far, identity=Identity.generate(), psk=None, dialer=True)


async def test_the_dialer_proposes_and_begins_the_handshake_in_one_flight() -> None:
    near, far = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(secure_into, [], far, True)
        flight = await near.receive_some()
        assert flight.startswith(HEADER + NOISE + b"\x00\x20")
        assert len(flight) == len(HEADER + NOISE) + 34
        nursery.cancel_scope.cancel()

"""From a fresh byte stream to a proved peer: PSK, `/noise`, Noise, and the agreement on Yamux.

The dialer sends its proposal of `/noise` together with the first handshake message, and each later message as early as
it can: a connection stands after two round trips of TCP payload on both sides, one of them before the dialer may send.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import trio

from ipfsreg.errors import ConnectionLost, PeerMisbehaved, ProtocolUnsupported, SwarmKeyMismatch, WrongPeer
from ipfsreg.p2p import noise, pnet, yamux
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.multistream import Dialer, Responder
from ipfsreg.p2p.noise import Decryptor, Encryptor
from ipfsreg.p2p.pnet import Keystream
from ipfsreg.p2p.wire import Wire, scratch
from ipfsreg.peer_id import PeerId

READ_BYTES = 16384
"""Read at once: more than any honest handshake sends."""


@dataclass(slots=True, kw_only=True)
class Established:
    """A secured wire, ready for Yamux."""

    wire: Wire
    dialer: bool
    peer: PeerId
    public_key: bytes
    encryptor: Encryptor
    decryptor: Decryptor
    key_in: Keystream | None
    key_out: Keystream | None
    early: bytes
    """Bytes of Yamux that arrived behind its negotiation, decrypted."""
    leftover: bytes
    """Ciphertext (Noise's, without the PSK's) that arrived behind the handshake."""
    rtt_s: float
    bytes_in: int
    bytes_out: int


async def establish(
    wire: Wire, *, identity: Identity, psk: bytes | None, dialer: bool, expected: PeerId | None
) -> Established:
    """Secure *wire*. See `connection.secure` for what it raises; closing the wire is left to the caller."""
    line = _Line(wire, psk)
    try:
        if psk is not None and not dialer:
            # At once: js-libp2p says nothing before it has our nonce. A dialer's goes with its first message.
            await line.send(b"")
        handshake = await _shake_hands(line, identity, dialer=dialer, expected=expected)
    except ConnectionLost as error:
        if psk is not None and not line.understood:
            raise SwarmKeyMismatch(f"the peer hung up without a word: another swarm key? ({error})") from None
        raise
    secured = handshake.secured
    assert secured is not None
    rtt_s = line.rtt_s
    early = b"" if secured.muxer else await _agree_on_muxer(line, secured, dialer=dialer)
    return Established(
        wire=wire,
        dialer=dialer,
        peer=secured.peer,
        public_key=secured.public_key,
        encryptor=secured.encryptor,
        decryptor=secured.decryptor,
        key_in=line.key_in,
        key_out=line.key_out,
        early=early,
        leftover=line.rest(),
        rtt_s=rtt_s,
        bytes_in=line.bytes_in,
        bytes_out=line.bytes_out,
    )


async def _shake_hands(line: _Line, identity: Identity, *, dialer: bool, expected: PeerId | None) -> noise.Handshake:
    handshake = noise.Handshake(identity, dialer=dialer, muxers=[yamux.PROTOCOL])
    if dialer:
        proposal = Dialer([noise.PROTOCOL])
        await line.send(proposal.begin() + noise.framed(handshake.begin()))
        await _negotiate(line, proposal, proposal.receive)
        third = handshake.receive(await line.read_message())
        _check_expected(handshake, expected)
        await line.send(noise.framed(third))
        return handshake
    responder = Responder()
    await _negotiate(line, responder, lambda data: responder.receive(data, lambda name: name == noise.PROTOCOL))
    await line.send(noise.framed(handshake.receive(await line.read_message())))
    handshake.receive(await line.read_message())
    _check_expected(handshake, expected)
    return handshake


def _check_expected(handshake: noise.Handshake, expected: PeerId | None) -> None:
    secured = handshake.secured
    assert secured is not None
    if expected is not None and secured.peer != expected:
        raise WrongPeer(f"{secured.peer} answered where {expected} was expected")


async def _negotiate(line: _Line, side: Dialer | Responder, receive: Callable[[bytes], bytes]) -> None:
    """Agree on `/noise` in the clear (or under the PSK)."""
    while side.protocol is None:
        data = await line.read_some()
        try:
            answer = receive(data)
        except PeerMisbehaved as error:
            if line.understood:
                raise
            if line.key_in is not None:
                raise SwarmKeyMismatch(f"the peer has another swarm key, or none ({error})") from None
            raise PeerMisbehaved(
                f"the peer speaks no libp2p, or has a swarm key, where we have none ({error})"
            ) from None
        line.understood = True
        if answer:
            await line.send(answer)
    line.unread(side.rest())


async def _agree_on_muxer(line: _Line, secured: noise.Secured, *, dialer: bool) -> bytes:
    """Negotiate `/yamux/1.0.0` inside Noise, with peers that do not do it in the handshake; return what follows it."""
    side: Dialer | Responder
    if dialer:
        side = Dialer([yamux.PROTOCOL])
        await line.send_secured(secured, side.begin())
    else:
        side = Responder()
    plain = scratch().plain
    while side.protocol is None:
        message = memoryview(await line.read_message(noise.MAX_MESSAGE_BYTES))
        data = bytes(plain[: secured.decryptor.decrypt_into(message, plain)])
        try:
            if isinstance(side, Dialer):
                answer = side.receive(data)
            else:
                answer = side.receive(data, lambda name: name == yamux.PROTOCOL)
        except ProtocolUnsupported:
            raise ProtocolUnsupported(f"the peer speaks no {yamux.PROTOCOL}") from None
        if answer:
            await line.send_secured(secured, answer)
    return side.rest()


class _Line:
    """The wire during the handshake: exact reads, PSK, bounded memory."""

    def __init__(self, wire: Wire, psk: bytes | None) -> None:
        self._wire = wire
        self._psk = psk
        self._buffer = bytearray()
        self.key_in: Keystream | None = None
        self.key_out: Keystream | None = None
        self.understood = False
        """Whether the peer has said anything that makes sense."""
        self.bytes_in = self.bytes_out = 0
        self._sent_at = trio.current_time()
        self.rtt_s = 0.0
        """Between the last thing sent and the first answer to it, while the handshake goes on."""

    async def send(self, data: bytes) -> None:
        if self._psk is not None:
            if self.key_out is None:
                nonce = os.urandom(pnet.NONCE_BYTES)
                self.key_out = pnet.open_keystream(self._psk, nonce)
            else:
                nonce = b""
            sealed = bytearray(data)
            self.key_out.xor(memoryview(sealed))
            data = nonce + bytes(sealed)
        self.bytes_out += len(data)
        self._sent_at = trio.current_time()
        await self._wire.write_all(data)

    async def send_secured(self, secured: noise.Secured, plaintext: bytes) -> None:
        out = memoryview(bytearray(len(plaintext) + noise.LENGTH_BYTES + noise.TAG_BYTES))
        secured.encryptor.encrypt_into(plaintext, out)
        await self.send(bytes(out))

    async def read_some(self) -> bytes:
        """What is here, or the next that comes."""
        if not self._buffer:
            await self._read_more()
        return self.rest()

    async def read_message(self, max_bytes: int = noise.MAX_HANDSHAKE_BYTES) -> bytes:
        """The next Noise message, without its length. Raises PeerMisbehaved where it claims more than *max_bytes*."""
        await self._read_until(noise.LENGTH_BYTES)
        size = int.from_bytes(self._buffer[: noise.LENGTH_BYTES], "big")
        if size > max_bytes:
            raise PeerMisbehaved(f"a handshake message of {size} bytes, at most {max_bytes} are taken")
        end = noise.LENGTH_BYTES + size
        await self._read_until(end)
        message = bytes(self._buffer[noise.LENGTH_BYTES : end])
        del self._buffer[:end]
        return message

    def unread(self, data: bytes) -> None:
        """Put *data* back in front."""
        self._buffer[:0] = data

    def rest(self) -> bytes:
        """Take what was read and not used."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest

    async def _read_until(self, size: int) -> None:
        while len(self._buffer) < size:
            await self._read_more()

    async def _read_more(self) -> None:
        if self._psk is not None and self.key_in is None:
            nonce = b""
            while len(nonce) < pnet.NONCE_BYTES:
                nonce += await self._read_wire(pnet.NONCE_BYTES - len(nonce))
            self.key_in = pnet.open_keystream(self._psk, nonce)
        data = bytearray(await self._read_wire(READ_BYTES))
        if self.key_in is not None:
            self.key_in.xor(memoryview(data))
        self._buffer += data

    async def _read_wire(self, max_bytes: int) -> bytes:
        room = scratch().incoming[:max_bytes]
        while True:
            await self._wire.wait_readable()
            count = self._wire.read_into(room)
            if count == 0:
                raise ConnectionLost("the peer hung up during the handshake")
            if count is not None:
                self.bytes_in += count
                self.rtt_s = trio.current_time() - self._sent_at
                return bytes(room[:count])

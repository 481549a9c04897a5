"""Noise as libp2p speaks it: `Noise_XX_25519_ChaChaPoly_SHA256`, pure.

    dialer                              listener
    -> e
                                        <- e, ee, s, es  {identity key, signature, muxers}
    -> s, se  {identity key, signature, muxers}

After that every message is two bytes of length and up to 65,535 bytes of ciphertext. The bytes inside form one stream;
where a message begins has no meaning for what it carries.

Spec: noiseprotocol.org revision 34; libp2p "noise-libp2p". The muxer both agree on travels in the handshake's
extension field ("Early Multiplexer Negotiation"); peers that do not know it leave it empty.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ipfsreg.errors import MalformedData, PeerMisbehaved
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, read_fields
from ipfsreg.p2p.identity import Identity, peer_id_of, verify
from ipfsreg.peer_id import PeerId

PROTOCOL = "/noise"
PROTOCOL_NAME = b"Noise_XX_25519_ChaChaPoly_SHA256"
SIGNED_PREFIX = b"noise-libp2p-static-key:"

LENGTH_BYTES = 2
TAG_BYTES = 16
MAX_MESSAGE_BYTES = 65535
MAX_PLAINTEXT_BYTES = MAX_MESSAGE_BYTES - TAG_BYTES

MAX_HANDSHAKE_BYTES = 4096
"""An 8192-bit RSA key with its signature takes about 2200 bytes; no honest handshake message is larger than this."""

MAX_NONCE = 2**64 - 2

_NONCE = Struct("<4xQ")


class Encryptor:
    """One direction of the transport, on the sending side."""

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    def encrypt_into(self, plaintext: bytes | bytearray | memoryview, out: memoryview) -> int:
        """Write one message with its length prefix to the start of *out*; return its size.

        *plaintext*: at most MAX_PLAINTEXT_BYTES; *out* must not overlap it.
        """
        size = len(plaintext) + TAG_BYTES
        out[0] = size >> 8
        out[1] = size & 0xFF
        self._aead.encrypt_into(_NONCE.pack(self._nonce), plaintext, None, out[2 : 2 + size])
        self._nonce += 1
        # 2**64 messages cannot be sent in the life of a connection, but a nonce must never repeat.
        assert self._nonce <= MAX_NONCE
        return LENGTH_BYTES + size


class Decryptor:
    """One direction of the transport, on the receiving side."""

    __slots__ = ("_aead", "_nonce")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._nonce = 0

    def decrypt_into(self, message: memoryview, out: memoryview) -> int:
        """Write the plaintext of one *message* (without its length prefix) to the start of *out*; return its size.

        *out* must have room for MAX_PLAINTEXT_BYTES and not overlap *message*.

        Raises:
            PeerMisbehaved: forged, damaged, repeated or out of order.
        """
        size = len(message) - TAG_BYTES
        if size < 0:
            raise PeerMisbehaved(f"a Noise message of {len(message)} bytes is shorter than its tag")
        try:
            self._aead.decrypt_into(_NONCE.pack(self._nonce), message, None, out[:size])
        except InvalidTag:
            raise PeerMisbehaved("a Noise message does not authenticate") from None
        self._nonce += 1
        return size


@dataclass(frozen=True, slots=True)
class Secured:
    """What a finished handshake leaves."""

    peer: PeerId
    public_key: bytes
    """The peer's identity key, as libp2p's protobuf."""
    muxer: str | None
    """What both agreed on inside the handshake; None where it has to be negotiated afterwards."""
    encryptor: Encryptor
    decryptor: Decryptor


class Handshake:
    """One side of the handshake. Messages are without their length prefix; `framed` adds it.

    The dialer begins with `begin`; then each side gives what arrives to `receive` until `secured` is set.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        dialer: bool,
        muxers: Sequence[str] = (),
        static: X25519PrivateKey | None = None,
        ephemeral: X25519PrivateKey | None = None,
    ) -> None:
        """*static* and *ephemeral* are random unless a test gives them; neither may be used twice."""
        self._identity = identity
        self._dialer = dialer
        self._muxers = tuple(muxers)
        self._static = static or X25519PrivateKey.generate()
        self._ephemeral = ephemeral or X25519PrivateKey.generate()
        self._remote_ephemeral: X25519PublicKey | None = None
        self._symmetric = _Symmetric()
        self._step = 0
        self.secured: Secured | None = None
        """Set once the peer has proved its identity; the last message may still have to be sent."""

    def begin(self) -> bytes:
        """The dialer's first message."""
        assert self._dialer
        assert self._step == 0
        self._step = 1
        raw = self._ephemeral.public_key().public_bytes_raw()
        self._symmetric.mix_hash(raw)
        # An empty payload is hashed as well.
        self._symmetric.mix_hash(b"")
        return raw

    def receive(self, message: bytes) -> bytes:
        """Take in one message, return the answer (b"" where there is none).

        Raises:
            PeerMisbehaved: anything that is not this handshake, or an identity that is not proved.
        """
        if len(message) > MAX_HANDSHAKE_BYTES:
            raise PeerMisbehaved(f"a handshake message of {len(message)} bytes")
        try:
            if not self._dialer and self._step == 0:
                return self._answer_first(message)
            if self._dialer and self._step == 1:
                return self._answer_second(message)
            if not self._dialer and self._step == 1:
                return self._take_third(message)
        except (InvalidTag, ValueError, MalformedData) as error:
            raise PeerMisbehaved(f"broken Noise handshake: {error or 'it does not authenticate'}") from None
        raise PeerMisbehaved("a handshake message after the handshake")

    def _answer_first(self, message: bytes) -> bytes:
        # -> e; a payload would be neither secret nor proved: hashed, and not looked at.
        symmetric = self._symmetric
        self._remote_ephemeral = self._take_ephemeral(message)
        symmetric.mix_hash(message[32:])
        # <- e, ee, s, es
        raw = self._ephemeral.public_key().public_bytes_raw()
        symmetric.mix_hash(raw)
        symmetric.mix_key(self._ephemeral.exchange(self._remote_ephemeral))
        answer = raw + symmetric.encrypt(self._static.public_key().public_bytes_raw())
        symmetric.mix_key(self._static.exchange(self._remote_ephemeral))
        answer += symmetric.encrypt(self._payload())
        self._step = 1
        return answer

    def _answer_second(self, message: bytes) -> bytes:
        symmetric = self._symmetric
        self._remote_ephemeral = self._take_ephemeral(message)
        symmetric.mix_key(self._ephemeral.exchange(self._remote_ephemeral))
        remote_static = X25519PublicKey.from_public_bytes(symmetric.decrypt(message[32:80]))
        symmetric.mix_key(self._ephemeral.exchange(remote_static))
        payload = symmetric.decrypt(message[80:])
        # -> s, se
        answer = symmetric.encrypt(self._static.public_key().public_bytes_raw())
        symmetric.mix_key(self._static.exchange(self._remote_ephemeral))
        answer += symmetric.encrypt(self._payload())
        self._finish(remote_static, payload)
        return answer

    def _take_third(self, message: bytes) -> bytes:
        symmetric = self._symmetric
        remote_static = X25519PublicKey.from_public_bytes(symmetric.decrypt(message[:48]))
        symmetric.mix_key(self._ephemeral.exchange(remote_static))
        self._finish(remote_static, symmetric.decrypt(message[48:]))
        return b""

    def _take_ephemeral(self, message: bytes) -> X25519PublicKey:
        self._symmetric.mix_hash(message[:32])
        return X25519PublicKey.from_public_bytes(message[:32])

    def _payload(self) -> bytes:
        signature = self._identity.sign(SIGNED_PREFIX + self._static.public_key().public_bytes_raw())
        payload = bytes_field(1, self._identity.public_key) + bytes_field(2, signature)
        if self._muxers:
            payload += bytes_field(4, b"".join(bytes_field(2, muxer.encode()) for muxer in self._muxers))
        return payload

    def _finish(self, remote_static: X25519PublicKey, payload: bytes) -> None:
        public_key, signature, muxers = _read_payload(payload)
        peer = peer_id_of(public_key)
        if not verify(public_key, SIGNED_PREFIX + remote_static.public_bytes_raw(), signature):
            raise PeerMisbehaved(f"whoever answered does not hold the key of {peer}")
        ours, theirs = (self._muxers, muxers) if self._dialer else (muxers, self._muxers)
        first, second = self._symmetric.split()
        self.secured = Secured(
            peer=peer,
            public_key=public_key,
            muxer=next((muxer for muxer in ours if muxer in theirs), None),
            encryptor=Encryptor(first if self._dialer else second),
            decryptor=Decryptor(second if self._dialer else first),
        )
        self._step = 2


def framed(message: bytes) -> bytes:
    """*message* with its two bytes of length in front."""
    return len(message).to_bytes(2, "big") + message


def _read_payload(payload: bytes) -> tuple[bytes, bytes, tuple[str, ...]]:
    public_key = signature = b""
    muxers: list[str] = []
    for number, value in read_fields(payload):
        if number == 1:
            public_key = bytes(expect_bytes(value))
        elif number == 2:
            signature = bytes(expect_bytes(value))
        elif number == 4:
            # UnicodeDecodeError is a ValueError, which the caller turns into the peer's fault.
            muxers += [
                str(expect_bytes(name), "utf-8") for field, name in read_fields(expect_bytes(value)) if field == 2
            ]
    return public_key, signature, tuple(muxers)


class _Symmetric:
    """Noise's SymmetricState: the chaining key and the hash of everything said so far."""

    def __init__(self) -> None:
        # The name has exactly 32 bytes, so it is the first hash itself.
        self._hash = self._chaining_key = PROTOCOL_NAME
        self.mix_hash(b"")  # the prologue
        self._aead: ChaCha20Poly1305 | None = None
        self._nonce = 0

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def mix_key(self, shared: bytes) -> None:
        self._chaining_key, key = _derive(self._chaining_key, shared)
        self._aead, self._nonce = ChaCha20Poly1305(key), 0

    def encrypt(self, plaintext: bytes) -> bytes:
        assert self._aead is not None
        ciphertext = self._aead.encrypt(_NONCE.pack(self._nonce), plaintext, self._hash)
        self._nonce += 1
        self.mix_hash(ciphertext)
        return ciphertext

    def decrypt(self, ciphertext: bytes) -> bytes:
        assert self._aead is not None
        plaintext = self._aead.decrypt(_NONCE.pack(self._nonce), ciphertext, self._hash)
        self._nonce += 1
        self.mix_hash(ciphertext)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        return _derive(self._chaining_key, b"")


def _derive(chaining_key: bytes, material: bytes) -> tuple[bytes, bytes]:
    """Noise's HKDF with two outputs."""
    temporary = hmac.digest(chaining_key, material, "sha256")
    first = hmac.digest(temporary, b"\x01", "sha256")
    return first, hmac.digest(temporary, first + b"\x02", "sha256")

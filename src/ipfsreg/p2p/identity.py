"""Keys: who we are, and whether a peer signed what it claims.

Our own key is Ed25519. Peers may use any of libp2p's four key types; their public keys are read here with
`cryptography` alone, and bounded before any arithmetic is done with them (a giant RSA key is an attack: verifying with
it takes seconds of CPU).

Spec: libp2p "Peer Ids and Keys". A key travels as a protobuf `{1: type, 2: data}`, and a peer ID is a hash over those
very bytes, so only the canonical encoding is accepted.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum
from functools import lru_cache

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_der_public_key

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.peer_id import PeerId

MAX_PUBLIC_KEY_BYTES = 2048
"""The protobuf of an 8192-bit RSA key has about 1070 bytes; nothing larger is looked at."""

MIN_RSA_BITS, MAX_RSA_BITS = 2048, 8192
"""The bounds go-libp2p has."""

MAX_INLINE_KEY_BYTES = 42
"""Public keys up to this size are carried whole in the peer ID."""

MAX_SIGNATURE_BYTES = MAX_RSA_BITS // 8

KEYS_KEPT = 1024
"""Public keys kept in their loaded form, a few KiB each: every gossip message of an author needs his."""

SHA2_256, IDENTITY = 0x12, 0x00
"""Multihash codes."""


class KeyType(IntEnum):
    """The types of keys in libp2p's protobuf."""

    RSA = 0
    ED25519 = 1
    SECP256K1 = 2
    ECDSA = 3


PublicKey = rsa.RSAPublicKey | Ed25519PublicKey | ec.EllipticCurvePublicKey


class Identity:
    """Our own key and the peer ID that follows from it."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self._public_key = _encode_key(KeyType.ED25519, key.public_key().public_bytes_raw())
        self._peer_id = peer_id_of(self._public_key)

    @classmethod
    def generate(cls) -> Identity:
        """A new one, from the system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_protobuf(cls, data: bytes) -> Identity:
        """Read libp2p's private key protobuf, as Kubo and py-libp2p write it.

        Raises:
            MalformedData: not such a protobuf, not an Ed25519 key, or a private key beside a foreign public one.
        """
        kind, raw = _decode_key(data)
        if kind is not KeyType.ED25519:
            raise MalformedData(f"the private key is of type {kind.name}; a node's own key must be Ed25519")
        # 32 bytes of seed, then the public key; an older form repeats the public key.
        if len(raw) not in (64, 96):
            raise MalformedData(f"an Ed25519 private key has 64 bytes, not {len(raw)}")
        key = Ed25519PrivateKey.from_private_bytes(raw[:32])
        public = key.public_key().public_bytes_raw()
        if raw[32:] != public * (len(raw) // 32 - 1):
            raise MalformedData("the private key does not belong to the public key beside it")
        return cls(key)

    def to_protobuf(self) -> bytes:
        """libp2p's private key protobuf. A secret."""
        return _encode_key(KeyType.ED25519, self._key.private_bytes_raw() + self._key.public_key().public_bytes_raw())

    @property
    def peer_id(self) -> PeerId:
        """Ourselves."""
        return self._peer_id

    @property
    def public_key(self) -> bytes:
        """The public key as libp2p's protobuf."""
        return self._public_key

    def sign(self, data: bytes) -> bytes:
        """Sign *data*: 64 bytes."""
        return self._key.sign(data)

    def __repr__(self) -> str:
        return f"Identity({self._peer_id})"


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer ID of a public key in protobuf form.

    Raises:
        MalformedData: not the canonical protobuf of a public key. The key itself is not looked at.
    """
    _decode_key(public_key)
    if len(public_key) <= MAX_INLINE_KEY_BYTES:
        return PeerId(bytes((IDENTITY, len(public_key))) + public_key)
    return PeerId(bytes((SHA2_256, 32)) + hashlib.sha256(public_key).digest())


def public_key_in(peer: PeerId) -> bytes | None:
    """The public key in protobuf form that *peer*'s ID carries whole (Ed25519, secp256k1), or None."""
    return peer.raw[2:] if peer.raw[0] == IDENTITY else None


def verify(public_key: bytes, data: bytes, signature: bytes) -> bool:
    """Whether *signature* over *data* was made with the private half of *public_key* (protobuf form).

    False as well for keys that are malformed, too large or of an unknown type: whoever sent them proved nothing.
    """
    if len(signature) > MAX_SIGNATURE_BYTES:
        return False
    try:
        key = _load_public_key(public_key)
        if isinstance(key, Ed25519PublicKey):
            key.verify(signature, data)
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, data, padding.PKCS1v15(), SHA256())
        else:
            key.verify(signature, data, ec.ECDSA(SHA256()))
    except (MalformedData, InvalidSignature):
        return False
    return True


@lru_cache(maxsize=KEYS_KEPT)
def _load_public_key(public_key: bytes) -> PublicKey:
    kind, raw = _decode_key(public_key)
    try:
        if kind is KeyType.ED25519:
            return Ed25519PublicKey.from_public_bytes(raw)
        if kind is KeyType.SECP256K1:
            return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), raw)
        key = load_der_public_key(raw)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise MalformedData(f"not a {kind.name} public key: {error}") from None
    if kind is KeyType.RSA and isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise MalformedData(f"RSA key of {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are taken")
        return key
    if kind is KeyType.ECDSA and isinstance(key, ec.EllipticCurvePublicKey):
        return key
    raise MalformedData(f"a key of another kind where {kind.name} was announced")


def _encode_key(kind: KeyType, raw: bytes) -> bytes:
    return varint_field(1, kind) + bytes_field(2, raw)


def _decode_key(data: bytes) -> tuple[KeyType, bytes]:
    """Split the protobuf of a public or private key. Raises MalformedData unless it is the canonical encoding."""
    if len(data) > MAX_PUBLIC_KEY_BYTES:
        raise MalformedData(f"key of {len(data)} bytes, at most {MAX_PUBLIC_KEY_BYTES} are taken")
    fields = list(read_fields(data))
    if [number for number, _ in fields] != [1, 2]:
        raise MalformedData("a key protobuf has the fields 1 and 2, in that order")
    try:
        kind = KeyType(expect_int(fields[0][1]))
    except ValueError:
        raise MalformedData(f"unknown key type {fields[0][1]!r}") from None
    raw = bytes(expect_bytes(fields[1][1]))
    if _encode_key(kind, raw) != data:
        raise MalformedData("not the canonical encoding of a key")
    return kind, raw

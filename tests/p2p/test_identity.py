"""Keys and peer IDs."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.p2p.identity import Identity, KeyType, peer_id_of, public_key_in, verify
from ipfsreg.peer_id import PeerId

SPEC_PRIVATE = bytes.fromhex(
    "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d"
    "1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e"
)
SPEC_PUBLIC = bytes.fromhex("080112201ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e")


def key_protobuf(kind: KeyType, raw: bytes) -> bytes:
    return varint_field(1, kind) + bytes_field(2, raw)


def der(key: rsa.RSAPublicKey | ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def test_the_key_of_the_specification_is_read_and_written_byte_for_byte() -> None:
    identity = Identity.from_protobuf(SPEC_PRIVATE)
    assert identity.public_key == SPEC_PUBLIC
    assert identity.to_protobuf() == SPEC_PRIVATE
    assert identity.peer_id == PeerId(b"\x00\x24" + SPEC_PUBLIC)


def test_the_old_form_with_the_public_key_repeated_is_read() -> None:
    raw = SPEC_PRIVATE[4:]
    assert Identity.from_protobuf(b"\x08\x01\x12\x60" + raw + raw[32:]).public_key == SPEC_PUBLIC


def test_a_private_key_beside_a_foreign_public_key_is_refused() -> None:
    with pytest.raises(MalformedData, match="does not belong"):
        Identity.from_protobuf(SPEC_PRIVATE[:-1] + b"\x00")


def test_a_generated_identity_survives_being_written_and_read() -> None:
    identity = Identity.generate()
    again = Identity.from_protobuf(identity.to_protobuf())
    assert again.peer_id == identity.peer_id
    assert PeerId.parse(str(identity.peer_id)) == identity.peer_id
    assert str(identity.peer_id).startswith("12D3KooW")


def test_a_signature_is_good_for_its_key_and_its_data_only() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    signature = alice.sign(b"data")
    assert verify(alice.public_key, b"data", signature)
    assert not verify(alice.public_key, b"dato", signature)
    assert not verify(bob.public_key, b"data", signature)
    assert not verify(alice.public_key, b"data", signature[:-1])
    assert not verify(alice.public_key, b"data", b"")


def test_rsa_signatures_of_peers_are_verified_and_their_ids_are_hashes() -> None:
    key = rsa.generate_private_key(65537, 2048)
    public = key_protobuf(KeyType.RSA, der(key.public_key()))
    signature = key.sign(b"data", padding.PKCS1v15(), SHA256())
    assert verify(public, b"data", signature)
    assert not verify(public, b"dato", signature)
    assert peer_id_of(public).raw == b"\x12\x20" + hashlib.sha256(public).digest()
    assert public_key_in(peer_id_of(public)) is None


def test_secp256k1_signatures_of_peers_are_verified_and_their_ids_carry_the_key() -> None:
    key = ec.generate_private_key(ec.SECP256K1())
    raw = key.public_key().public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    public = key_protobuf(KeyType.SECP256K1, raw)
    assert verify(public, b"data", key.sign(b"data", ec.ECDSA(SHA256())))
    assert public_key_in(peer_id_of(public)) == public


def test_ecdsa_signatures_of_peers_are_verified() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    public = key_protobuf(KeyType.ECDSA, der(key.public_key()))
    assert verify(public, b"data", key.sign(b"data", ec.ECDSA(SHA256())))


def test_rsa_keys_outside_the_bounds_prove_nothing() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    signature = weak.sign(b"data", padding.PKCS1v15(), SHA256())
    assert not verify(key_protobuf(KeyType.RSA, der(weak.public_key())), b"data", signature)
    # 9000 bits, still inside the bound on bytes; 2**9000 + 1 need not have a private half to cost time.
    giant = rsa.RSAPublicNumbers(65537, (1 << 8999) + 1).public_key()
    assert not verify(key_protobuf(KeyType.RSA, der(giant)), b"data", b"\x00" * 1024)


def test_a_key_larger_than_any_is_not_looked_at() -> None:
    public = key_protobuf(KeyType.RSA, b"\x30" * 100_000)
    assert not verify(public, b"data", b"\x00" * 256)
    with pytest.raises(MalformedData, match="at most 2048"):
        peer_id_of(public)


def test_a_key_announced_as_another_kind_is_refused() -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    signature = key.sign(b"data", ec.ECDSA(SHA256()))
    assert not verify(key_protobuf(KeyType.RSA, der(key.public_key())), b"data", signature)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SPEC_PUBLIC[:-1],
        SPEC_PUBLIC + b"\x00",
        SPEC_PUBLIC + SPEC_PUBLIC,
        SPEC_PUBLIC[2:] + SPEC_PUBLIC[:2],
        b"\x08\x81\x00" + SPEC_PUBLIC[2:],
        b"\x08\x07" + SPEC_PUBLIC[2:],
        b"\x12\x20" + SPEC_PUBLIC[4:],
        b"\x0a\x01\x01" + SPEC_PUBLIC[2:],
    ],
)
def test_anything_but_the_canonical_encoding_has_no_peer_id(data: bytes) -> None:
    with pytest.raises(MalformedData):
        peer_id_of(data)


@given(st.binary(max_size=128), st.binary(max_size=80))
def test_garbage_never_verifies_and_never_raises(public_key: bytes, signature: bytes) -> None:
    assert not verify(public_key, b"data", signature)

"""The Noise handshake and its transport."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from noise.connection import Keypair, NoiseConnection  # type: ignore[import-untyped]

from ipfsreg.errors import PeerMisbehaved
from ipfsreg.ipld.protobuf import bytes_field
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.noise import (
    MAX_PLAINTEXT_BYTES,
    SIGNED_PREFIX,
    Decryptor,
    Encryptor,
    Handshake,
    Secured,
    framed,
)

YAMUX = "/yamux/1.0.0"


def shake_hands(dialer: Handshake, listener: Handshake) -> tuple[Secured, Secured]:
    third = dialer.receive(listener.receive(dialer.begin()))
    assert listener.receive(third) == b""
    assert dialer.secured is not None
    assert listener.secured is not None
    return dialer.secured, listener.secured


def seal(encryptor: Encryptor, plaintext: bytes) -> bytes:
    out = memoryview(bytearray(len(plaintext) + 18))
    assert encryptor.encrypt_into(plaintext, out) == len(out)
    assert int.from_bytes(out[:2], "big") == len(out) - 2
    return bytes(out[2:])


def unseal(decryptor: Decryptor, message: bytes) -> bytes:
    out = memoryview(bytearray(MAX_PLAINTEXT_BYTES))
    return bytes(out[: decryptor.decrypt_into(memoryview(message), out)])


def test_both_learn_who_the_other_is() -> None:
    alice, bob = Identity.generate(), Identity.generate()
    at_alice, at_bob = shake_hands(Handshake(alice, dialer=True), Handshake(bob, dialer=False))
    assert (at_alice.peer, at_alice.public_key) == (bob.peer_id, bob.public_key)
    assert (at_bob.peer, at_bob.public_key) == (alice.peer_id, alice.public_key)


@pytest.mark.parametrize(
    ("dialers", "listeners", "agreed"),
    [
        ([YAMUX], [YAMUX], YAMUX),
        (["/a", "/b"], ["/b", "/a"], "/a"),
        (["/a"], ["/b"], None),
        ([YAMUX], [], None),
        ([], [], None),
    ],
)
def test_the_dialers_first_common_muxer_is_taken(dialers: list[str], listeners: list[str], agreed: str | None) -> None:
    ends = shake_hands(
        Handshake(Identity.generate(), dialer=True, muxers=dialers),
        Handshake(Identity.generate(), dialer=False, muxers=listeners),
    )
    assert [end.muxer for end in ends] == [agreed, agreed]


def test_messages_reach_the_other_side_in_both_directions() -> None:
    at_alice, at_bob = shake_hands(
        Handshake(Identity.generate(), dialer=True), Handshake(Identity.generate(), dialer=False)
    )
    for size in (0, 1, 100, MAX_PLAINTEXT_BYTES):
        data = random.Random(size).randbytes(size)
        assert unseal(at_bob.decryptor, seal(at_alice.encryptor, data)) == data
        assert unseal(at_alice.decryptor, seal(at_bob.encryptor, data)) == data


def other_implementation(*, dialer: bool, static: X25519PrivateKey) -> NoiseConnection:
    noise = NoiseConnection.from_name(b"Noise_XX_25519_ChaChaPoly_SHA256")
    noise.set_keypair_from_private_bytes(Keypair.STATIC, static.private_bytes_raw())
    (noise.set_as_initiator if dialer else noise.set_as_responder)()
    noise.start_handshake()
    return noise


def payload_of(identity: Identity, static: X25519PrivateKey) -> bytes:
    signature = identity.sign(SIGNED_PREFIX + static.public_key().public_bytes_raw())
    return bytes_field(1, identity.public_key) + bytes_field(2, signature)


def test_another_implementation_accepts_us_as_dialer() -> None:
    alice, bob, static = Identity.generate(), Identity.generate(), X25519PrivateKey.generate()
    ours, theirs = Handshake(alice, dialer=True), other_implementation(dialer=False, static=static)
    assert theirs.read_message(ours.begin()) == b""
    third = ours.receive(bytes(theirs.write_message(payload_of(bob, static))))
    assert alice.public_key in bytes(theirs.read_message(third))
    assert ours.secured is not None
    assert ours.secured.peer == bob.peer_id
    assert theirs.decrypt(seal(ours.secured.encryptor, b"hello")) == b"hello"
    assert unseal(ours.secured.decryptor, bytes(theirs.encrypt(b"hello"))) == b"hello"


def test_another_implementation_accepts_us_as_listener() -> None:
    alice, bob, static = Identity.generate(), Identity.generate(), X25519PrivateKey.generate()
    ours, theirs = Handshake(bob, dialer=False), other_implementation(dialer=True, static=static)
    second = ours.receive(bytes(theirs.write_message(b"not looked at")))
    assert bob.public_key in bytes(theirs.read_message(second))
    ours.receive(bytes(theirs.write_message(payload_of(alice, static))))
    assert ours.secured is not None
    assert ours.secured.peer == alice.peer_id
    assert unseal(ours.secured.decryptor, bytes(theirs.encrypt(b"hello"))) == b"hello"
    assert theirs.decrypt(seal(ours.secured.encryptor, b"hello")) == b"hello"


def shake_hands_damaged(dialer: Handshake, listener: Handshake, flipped: int, position: int, bit: int) -> None:
    message = dialer.begin()
    for step, side in enumerate((listener, dialer, listener)):
        if step == flipped:
            damaged = bytearray(message)
            damaged[position % len(message)] ^= bit
            message = bytes(damaged)
        message = side.receive(message)


def test_a_flipped_bit_anywhere_in_the_handshake_fails_it() -> None:
    rng = random.Random(1)
    alice, bob = Identity.generate(), Identity.generate()
    for flipped in range(3):
        # The clear first message is one key; the others are long, and a few hundred places tell enough.
        for position in range(0, 32 if flipped == 0 else 200, 5):
            dialer, listener = Handshake(alice, dialer=True), Handshake(bob, dialer=False)
            with pytest.raises(PeerMisbehaved):
                shake_hands_damaged(dialer, listener, flipped, position, 1 << rng.randrange(7))


def test_a_truncated_message_fails_the_handshake() -> None:
    for cut in (0, 1, 31, 32, 79, 80, 81, -1):
        dialer, listener = Handshake(Identity.generate(), dialer=True), Handshake(Identity.generate(), dialer=False)
        second = listener.receive(dialer.begin())
        with pytest.raises(PeerMisbehaved):
            dialer.receive(second[:cut])
    with pytest.raises(PeerMisbehaved):
        Handshake(Identity.generate(), dialer=False).receive(b"\x01" * 31)


def test_a_key_that_gives_a_null_secret_fails_the_handshake() -> None:
    with pytest.raises(PeerMisbehaved):
        Handshake(Identity.generate(), dialer=False).receive(bytes(32))


def test_an_identity_that_did_not_sign_the_static_key_fails_the_handshake() -> None:
    mallory, static = Identity.generate(), X25519PrivateKey.generate()
    payload = bytes_field(1, Identity.generate().public_key) + bytes_field(
        2, mallory.sign(SIGNED_PREFIX + static.public_key().public_bytes_raw())
    )
    for wrong in (payload, b"", b"\xff\xff", bytes_field(4, bytes_field(2, b"\xff"))):
        ours, theirs = Handshake(Identity.generate(), dialer=True), other_implementation(dialer=False, static=static)
        theirs.read_message(ours.begin())
        with pytest.raises(PeerMisbehaved):
            ours.receive(bytes(theirs.write_message(wrong)))
        assert ours.secured is None


def test_a_handshake_message_beyond_the_bound_is_refused_unread() -> None:
    with pytest.raises(PeerMisbehaved, match="5000 bytes"):
        Handshake(Identity.generate(), dialer=False).receive(bytes(5000))


def test_damaged_repeated_and_reordered_messages_do_not_authenticate() -> None:
    key = bytes(range(32))
    encryptor = Encryptor(key)
    first, second = seal(encryptor, b"first"), seal(encryptor, b"second")
    for wrong in (second, first[:-1], first + b"\x00", b"\x01" + first, b"", b"short"):
        with pytest.raises(PeerMisbehaved):
            unseal(Decryptor(key), wrong)
    for position in range(len(first)):
        damaged = bytearray(first)
        damaged[position] ^= 0x40
        with pytest.raises(PeerMisbehaved):
            unseal(Decryptor(key), bytes(damaged))
    decryptor = Decryptor(key)
    assert unseal(decryptor, first) == b"first"
    with pytest.raises(PeerMisbehaved):
        unseal(decryptor, first)


def test_framing_adds_two_bytes_of_length() -> None:
    assert framed(b"x" * 300) == b"\x01\x2c" + b"x" * 300

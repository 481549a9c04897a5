"""Signatures, authors and rates."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipfsreg.ipld.protobuf import bytes_field, varint_field
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.messages import SIGN_PREFIX, Message, unsigned_bytes
from ipfsreg.pubsub.screening import MAX_AUTHORS, Bucket, Screen, ScreenSettings, Verdict
from ipfsreg.testing.network import key_of, peer_of, public_key_of


def signed(author: str, *, signer: str | None = None, data: bytes = b"data", key: bytes | None = None) -> Message:
    peer = peer_of(author).raw
    signature = key_of(signer or author).sign(SIGN_PREFIX + unsigned_bytes(peer, bytes(8), "t", data))
    return Message(peer, bytes(8), "t", data, signature, key)


def judge(message: Message, settings: ScreenSettings | None = None) -> Verdict:
    return Screen(settings or ScreenSettings()).judge(message, now=0.0)


def test_a_message_signed_by_its_author_counts() -> None:
    assert judge(signed("alice")) is Verdict.ACCEPT
    assert judge(signed("alice", key=public_key_of("alice"))) is Verdict.ACCEPT


@pytest.mark.parametrize(
    "message",
    [
        signed("alice", signer="mallory"),
        signed("alice", signer="mallory", key=public_key_of("mallory")),
        signed("alice", key=public_key_of("mallory")),
        replace(signed("alice"), data=b"other"),
        replace(signed("alice"), topic="other"),
        replace(signed("alice"), seqno=bytes(7) + b"\x01"),
        replace(signed("alice"), author=peer_of("bob").raw),
        replace(signed("alice"), signature=b"short"),
        replace(signed("alice"), signature=bytes(1 << 16)),
        replace(signed("alice"), author=b"\x00\x01A"),
        replace(signed("alice"), author=b"not a peer"),
        replace(signed("alice"), author=bytes(1 << 16)),
        replace(signed("alice"), key=bytes(1 << 16)),
        replace(signed("alice"), author=b"\x12\x20" + bytes(32)),
        replace(signed("alice"), author=b"\x12\x20" + bytes(32), key=public_key_of("alice")),
        replace(signed("alice"), author=b"\x12\x20" + bytes(32), key=b"garbage"),
    ],
)
def test_what_its_author_has_not_signed_is_rejected(message: Message) -> None:
    assert judge(message) is Verdict.REJECT


def test_an_author_whose_id_is_a_hash_brings_the_key_along() -> None:
    private = rsa.generate_private_key(65537, 2048)
    der = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    key = varint_field(1, 0) + bytes_field(2, der)
    author = PeerId(b"\x12\x20" + hashlib.sha256(key).digest()).raw
    unsigned = SIGN_PREFIX + unsigned_bytes(author, bytes(8), "t", b"data")
    message = Message(author, bytes(8), "t", b"data", private.sign(unsigned, padding.PKCS1v15(), SHA256()), key)
    assert judge(message) is Verdict.ACCEPT
    assert judge(replace(message, key=None)) is Verdict.REJECT
    assert judge(replace(message, data=b"other")) is Verdict.REJECT


def test_authors_not_listed_are_ignored_and_nobody_is_to_blame() -> None:
    only_alice = ScreenSettings(authors=frozenset({peer_of("alice")}))
    assert judge(signed("alice"), only_alice) is Verdict.ACCEPT
    assert judge(signed("bob"), only_alice) is Verdict.IGNORE


def test_an_author_above_its_rate_is_ignored_until_time_has_passed() -> None:
    screen = Screen(ScreenSettings(author_rate_per_s=1, author_burst=3))
    verdicts = [screen.judge(signed("alice"), now=10.0) for _ in range(4)]
    assert verdicts == [Verdict.ACCEPT] * 3 + [Verdict.IGNORE]
    assert screen.judge(signed("bob"), now=10.0) is Verdict.ACCEPT
    assert screen.judge(signed("alice"), now=11.5) is Verdict.ACCEPT


def test_a_forger_cannot_use_up_the_rate_of_another() -> None:
    screen = Screen(ScreenSettings(author_rate_per_s=1, author_burst=1))
    for _ in range(10):
        assert screen.judge(signed("alice", signer="mallory"), now=0.0) is Verdict.REJECT
    assert screen.judge(signed("alice"), now=0.0) is Verdict.ACCEPT


def test_only_so_many_authors_are_remembered() -> None:
    screen = Screen(ScreenSettings())
    for number in range(MAX_AUTHORS + 10):
        screen._take(number.to_bytes(8, "big"), 0.0)
    assert len(screen._buckets) == MAX_AUTHORS


def test_a_debt_is_paid_at_the_rate() -> None:
    bucket = Bucket(10, 20, now=0.0)
    assert bucket.owe(20, now=0.0) == 0
    assert bucket.owe(5, now=0.0) == pytest.approx(0.5)
    assert bucket.owe(0, now=0.25) == pytest.approx(0.25)
    assert bucket.owe(20, now=100.0) == 0
    assert bucket.owe(1, now=99.0) == pytest.approx(0.1)

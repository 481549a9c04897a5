from __future__ import annotations

import hashlib
import random

import pytest
from multiaddr import Multiaddr

from ipfsreg.dht.keys import (
    MAX_FOUND_BITS,
    Contact,
    common_bits,
    has_public,
    is_public,
    networks_of,
    position_of,
    random_key,
    sibling,
)
from ipfsreg.ipld.cid import Cid
from ipfsreg.testing.network import peer_of

ALICE = peer_of("alice")


def raw(addr: str) -> bytes:
    encoded: bytes = Multiaddr(addr).to_bytes()
    return encoded


def test_a_cid_lies_where_its_multihash_hashes_to_whatever_its_version() -> None:
    # What Go calls the key of a provider record is the multihash alone.
    v0 = Cid.parse("QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn")
    v1 = Cid(1, v0.codec, v0.multihash)
    assert v0.multihash.hex() == "122059948439065f29619ef41280cbb932be52c56d99c5966b65e0111239f098bbef"
    assert position_of(v0.multihash) == position_of(v1.multihash)
    assert hashlib.sha256(v0.multihash).hexdigest() == f"{position_of(v0.multihash):064x}"


def test_a_peer_lies_where_its_id_hashes_to() -> None:
    assert Contact(ALICE).position == int(hashlib.sha256(ALICE.raw).hexdigest(), 16)


def test_distance_is_xor_and_closeness_the_bits_in_common() -> None:
    assert common_bits(0b1010 << 252, 0b1011 << 252) == 3
    assert common_bits(0, 1) == 255
    assert common_bits(7, 7) == 256
    assert common_bits(0, 1 << 255) == 0
    target = 0b0110 << 252
    order = sorted(range(8), key=lambda place: (place << 252) ^ target)
    assert order == [6, 7, 4, 5, 2, 3, 0, 1]


def test_a_key_is_found_in_any_part_of_the_keyspace() -> None:
    dice = random.Random(3)
    for bits in (0, 1, 5, 10):
        near = position_of(dice.randbytes(5))
        key = random_key(near, bits, dice.randbytes)
        assert common_bits(position_of(key), near) >= bits
        # A peer must be able to take it for a peer ID.
        assert key[:2] == b"\x12\x20"
        assert len(key) == 34


@pytest.mark.parametrize("depth", [0, 1, 9, MAX_FOUND_BITS])
def test_a_sibling_shares_exactly_so_many_bits(depth: int) -> None:
    near = position_of(b"anything")
    assert common_bits(sibling(near, depth), near) == depth


DIALABLE = [
    "/ip4/1.2.3.4/tcp/4001",
    "/ip6/2001:db8::1/tcp/4001",
    "/dns4/node.example/tcp/4619",
    "/dns/node.example/tcp/4619",
    "/dnsaddr/bootstrap.example",
]
FOREIGN = [
    "/ip4/1.2.3.4/udp/4001/quic-v1",
    "/ip6/::1/udp/4001/quic-v1",
    "/ip4/1.2.3.4/tcp/4001/ws",
    f"/ip4/1.2.3.4/tcp/4001/p2p/{ALICE}/p2p-circuit",
    "/dns4/node.example/tcp/443/wss",
    "/ip4/1.2.3.4",
    "/onion3/vww6ybal4bd7szmgncyruucpgfkqahzddi37ktceo3ah7ngmcopnpyyd:1234",
]


@pytest.mark.parametrize("addr", DIALABLE)
def test_what_we_can_dial_is_read(addr: str) -> None:
    assert Contact(ALICE, (raw(addr),)).dialable().addrs == (addr,)
    assert Contact(ALICE, (raw(f"{addr}/p2p/{ALICE}"),)).dialable().addrs == (addr,)
    assert Contact.of(ALICE, [addr]).addrs == (raw(addr),)


@pytest.mark.parametrize("addr", FOREIGN)
def test_addresses_for_other_transports_are_carried_but_not_dialled(addr: str) -> None:
    assert Contact.of(ALICE, [addr]).addrs == (raw(addr),)
    assert Contact(ALICE, (raw(addr),)).dialable().addrs == ()


@pytest.mark.parametrize(
    "junk", [b"", b"\x04", b"\x04\x01\x02\x03\x04\x06", b"\x29\x00", b"\x35\xff\xffx", b"\x36\x03abc"]
)
def test_broken_addresses_are_passed_over(junk: bytes) -> None:
    contact = Contact(ALICE, (junk, raw(DIALABLE[0])))
    assert contact.dialable().addrs == (DIALABLE[0],)
    assert networks_of(contact) == {"1.2"}
    is_public(junk)


def test_addresses_without_a_binary_form_are_left_out() -> None:
    assert Contact.of(ALICE, ["/memory/alice", "nonsense", DIALABLE[0]]).addrs == (raw(DIALABLE[0]),)


def test_public_addresses_are_told_from_private_ones() -> None:
    assert is_public(raw("/ip4/8.8.8.8/tcp/1"))
    assert is_public(raw("/dns4/node.example/tcp/1"))
    for private in (
        "/ip4/127.0.0.1/tcp/1",
        "/ip4/10.1.1.1/tcp/1",
        "/ip4/100.64.0.1/tcp/1",
        "/ip6/::1/tcp/1",
        "/ip6/fe80::1/tcp/1",
    ):
        assert not is_public(raw(private))
    assert has_public(["/ip4/10.1.1.1/tcp/1", "/ip4/8.8.8.8/tcp/1"])
    assert has_public(["/dns4/node.example/tcp/1"])
    assert not has_public(["/ip4/10.1.1.1/tcp/1", "/memory/alice"])
    assert not has_public([])


def test_networks_are_counted_by_what_one_owner_may_hold() -> None:
    contact = Contact.of(
        ALICE, ["/ip4/8.8.1.1/tcp/1", "/ip4/8.8.2.2/udp/1/quic-v1", "/ip4/10.0.0.1/tcp/1", "/ip6/2a00:1450::1/tcp/1"]
    )
    assert networks_of(contact) == {"8.8", "2a001450"}

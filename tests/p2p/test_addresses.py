"""Multiaddrs: what is dialled, kept, told."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData
from ipfsreg.p2p.addresses import (
    DnsAddr,
    Scope,
    TcpAddr,
    claims_worth_keeping,
    decode_addr,
    encode_addr,
    normal_form,
    parse_dialable,
    scope_of,
    split_peer,
    tellable,
)
from ipfsreg.peer_id import PeerId

PEER = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA"

# The binary forms are from the multiaddr specification's own examples and table of protocol codes.
BINARY = {
    "/ip4/127.0.0.1/tcp/4001": "047f000001060fa1",
    "/ip6/::1/tcp/1": "2900000000000000000000000000000001060001",
    "/dns4/example.org/tcp/443": "360b6578616d706c652e6f72670601bb",
    "/ip4/1.2.3.4/udp/4001/quic-v1": "0401020304910 20fa1cd03".replace(" ", ""),
}


@pytest.mark.parametrize(
    ("text", "dialable"),
    [
        ("/ip4/1.2.3.4/tcp/4001", TcpAddr("ip4", "1.2.3.4", 4001)),
        (f"/ip4/1.2.3.4/tcp/4001/p2p/{PEER}", TcpAddr("ip4", "1.2.3.4", 4001)),
        (f"/ip4/1.2.3.4/tcp/4001/ipfs/{PEER}", TcpAddr("ip4", "1.2.3.4", 4001)),
        ("/ip6/0:0::1/tcp/1", TcpAddr("ip6", "::1", 1)),
        ("/dns/a.example/tcp/1", TcpAddr("dns", "a.example", 1)),
        ("/dns6/a.example/tcp/1", TcpAddr("dns6", "a.example", 1)),
        (f"/dnsaddr/bootstrap.libp2p.io/p2p/{PEER}", DnsAddr("bootstrap.libp2p.io")),
        ("/ip4/1.2.3.4/tcp/4001/ws", None),
        ("/ip4/1.2.3.4/udp/4001/quic-v1", None),
        ("/ip4/1.2.3.4/tcp/65536", None),
        ("/ip4/1.2.3.4/tcp/-1", None),
        ("/ip4/1.2.3.4/tcp/٣", None),
        ("/ip4/1.2.3.4.5/tcp/1", None),
        ("/ip4/::1/tcp/1", None),
        ("/ip6/1.2.3.4/tcp/1", None),
        ("/ip4/1.2.3.4", None),
        ("ip4/1.2.3.4/tcp/1", None),
        ("/dns4//tcp/1", None),
        ("", None),
        ("/", None),
    ],
)
def test_only_tcp_over_ip_or_a_name_is_dialled(text: str, dialable: object) -> None:
    assert parse_dialable(text) == dialable


@pytest.mark.parametrize(("text", "binary"), BINARY.items())
def test_text_and_binary_form_agree_with_the_specification(text: str, binary: str) -> None:
    assert encode_addr(text).hex() == binary
    assert decode_addr(bytes.fromhex(binary)) == text


def test_a_trailing_peer_is_no_part_of_an_address() -> None:
    assert normal_form(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}") == "/ip4/1.2.3.4/tcp/1"
    assert decode_addr(encode_addr(f"/ip4/1.2.3.4/udp/1/quic-v1/p2p/{PEER}")) == "/ip4/1.2.3.4/udp/1/quic-v1"
    assert normal_form(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p/{PEER}/p2p/{PEER}") == "/ip4/1.2.3.4/tcp/1"
    relayed = f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}/p2p-circuit"
    assert normal_form(relayed) == relayed
    head, peer = split_peer(f"/ip4/1.2.3.4/tcp/1/p2p/{PEER}")
    assert (head, str(peer)) == ("/ip4/1.2.3.4/tcp/1", PEER)
    assert split_peer("/ip4/1.2.3.4/tcp/1") == ("/ip4/1.2.3.4/tcp/1", None)


@pytest.mark.parametrize("text", ["", "/", "nonsense", "/ip4/1.2.3.4/tcp/1/nonsense", "/dns4/" + "a" * 600 + "/tcp/1"])
def test_what_is_no_multiaddr_is_refused(text: str) -> None:
    with pytest.raises(MalformedData):
        normal_form(text)


@given(st.binary(max_size=64) | st.binary(max_size=20).map(lambda tail: b"\x04\x01\x02\x03\x04" + tail))
@settings(max_examples=500)
def test_any_bytes_are_an_address_or_malformed(raw: bytes) -> None:
    try:
        text = decode_addr(raw)
    except MalformedData:
        return
    assert normal_form(text) == text


def test_a_port_of_five_thousand_digits_is_no_port() -> None:
    assert parse_dialable("/ip4/1.2.3.4/tcp/" + "1" * 5000) is None


def test_a_peer_id_is_measured_before_it_is_decoded() -> None:
    with pytest.raises(MalformedData, match="100000 characters"):
        PeerId.parse("1" * 100_000)


def test_a_mapped_address_is_ipv4() -> None:
    assert str(TcpAddr.of("::ffff:10.0.0.1", 1)) == "/ip4/10.0.0.1/tcp/1"
    assert str(TcpAddr.of("fe80::1%eth0", 1)) == "/ip6/fe80::1/tcp/1"


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("/ip4/127.3.2.1/tcp/1", Scope.LOOPBACK),
        ("/ip6/::1/tcp/1", Scope.LOOPBACK),
        ("/ip4/10.0.0.1/tcp/1", Scope.PRIVATE),
        ("/ip4/169.254.0.1/tcp/1", Scope.PRIVATE),
        ("/ip4/100.64.0.1/tcp/1", Scope.PRIVATE),
        ("/ip6/fd00::1/tcp/1", Scope.PRIVATE),
        ("/ip4/8.8.8.8/tcp/1", Scope.PUBLIC),
        ("/dns4/a.example/tcp/1", None),
    ],
)
def test_addresses_reach_so_far(text: str, scope: Scope | None) -> None:
    assert scope_of(text) is scope


def test_a_peer_far_away_cannot_have_us_dial_into_our_own_network() -> None:
    claims = ["/ip4/127.0.0.1/tcp/6379", "/ip4/10.0.0.1/tcp/22", "/ip4/8.8.8.8/tcp/1", "/dns4/a.example/tcp/1"]
    assert claims_worth_keeping(claims, seen_from="/ip4/9.9.9.9/tcp/5") == claims[2:]
    assert claims_worth_keeping(claims, seen_from="/ip4/10.0.0.7/tcp/5") == claims[1:]
    assert claims_worth_keeping(claims, seen_from="/ip4/127.0.0.1/tcp/5") == claims


def test_loopback_addresses_are_told_on_this_machine_only() -> None:
    ours = ["/ip4/10.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1"]
    assert tellable(ours, to="/ip4/127.0.0.1/tcp/9") == ours
    assert tellable(ours, to="/ip4/10.0.0.2/tcp/9") == ours[:1]

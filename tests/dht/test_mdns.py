from __future__ import annotations

from pathlib import Path

import hypothesis.strategies as st
import pytest
import trio
from hypothesis import given
from trio.testing import MockClock

from ipfsreg.dht.mdns import (
    AGAIN_S,
    MAX_ADDRS,
    Findings,
    decode_txt,
    encode_txt,
    interfaces_for,
    open_mdns,
    service_of,
    told_addrs,
)
from ipfsreg.p2p.host import NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.pnet import fingerprint
from ipfsreg.testing.network import MemorySwarm, peer_of

ALICE, BOB = peer_of("alice"), peer_of("bob")
ADDR = "/ip4/192.168.1.2/tcp/4619"


def test_a_private_swarm_has_a_service_of_its_own() -> None:
    assert service_of(None) == "_p2p._udp.local."
    one, other = fingerprint(bytes(32)), fingerprint(bytes([1] * 32))
    assert service_of(one) == f"_p2p-{one}._udp.local."
    assert service_of(one) != service_of(other)
    assert all(len(label) <= 63 for label in service_of(one).split("."))


def test_what_is_told_is_what_is_heard() -> None:
    addrs = (ADDR, "/ip6/fd00::1/tcp/4619")
    txt = encode_txt(ALICE, addrs)
    assert txt.startswith(bytes((len(f"dnsaddr={ADDR}/p2p/{ALICE}"),)) + b"dnsaddr=/ip4/192.168.1.2")
    assert decode_txt(txt) == PeerInfo(ALICE, addrs)


def test_a_record_speaks_of_one_peer_and_of_a_bounded_number_of_addresses() -> None:
    many = [f"/ip4/10.0.{number // 256}.{number % 256}/tcp/1" for number in range(500)]
    txt = encode_txt(BOB, many[:1]) + b"".join(encode_txt(ALICE, [addr]) for addr in many[:300])
    assert decode_txt(txt) == PeerInfo(BOB, (many[0],))
    heard = decode_txt(b"".join(encode_txt(ALICE, [addr]) for addr in many))
    assert heard is not None
    assert len(heard.addrs) == MAX_ADDRS


@pytest.mark.parametrize(
    "string",
    [
        b"",
        b"dnsaddr=",
        b"dnsaddr=" + ADDR.encode(),
        b"dnsaddr=/ip4/1.2.3.4/tcp/1/p2p/nobody",
        b"dnsaddr=/ip4/1.2.3.4/udp/1/quic-v1/p2p/" + str(ALICE).encode(),
        b"dnsaddr=\xff\xfe",
        b"other=" + ADDR.encode(),
        b"dnsaddr=nonsense/p2p/" + str(ALICE).encode(),
    ],
)
def test_what_is_no_address_for_us_is_passed_over(string: bytes) -> None:
    txt = bytes((len(string),)) + string
    assert decode_txt(txt) is None
    assert decode_txt(txt + encode_txt(BOB, [ADDR])) == PeerInfo(BOB, (ADDR,))


@given(st.binary(max_size=600))
def test_rubbish_is_nobody_or_somebody(txt: bytes) -> None:
    decode_txt(txt)
    decode_txt(encode_txt(ALICE, [ADDR])[:-1] + txt)


def test_loopback_is_told_only_where_there_is_nothing_else() -> None:
    texts = ["/ip4/127.0.0.1/tcp/1", "/ip4/192.168.1.2/tcp/1", "/dns4/node.example/tcp/1", "/ip4/1.1.1.1/udp/1/quic-v1"]
    assert [str(addr) for addr in told_addrs(texts)] == ["/ip4/192.168.1.2/tcp/1"]
    assert [str(addr) for addr in told_addrs(texts[:1])] == texts[:1]
    assert told_addrs(["/memory/alice"]) == []


async def test_findings_come_once_in_a_while_and_never_tell_of_us(autojump_clock: MockClock) -> None:
    findings = Findings(ALICE)
    findings.heard(encode_txt(ALICE, [ADDR]))
    for _ in range(5):
        findings.heard(encode_txt(BOB, [ADDR]))
    findings.heard(encode_txt(BOB, ["/ip4/192.168.1.3/tcp/4619"]))
    assert await anext(findings) == PeerInfo(BOB, (ADDR,))
    assert await anext(findings) == PeerInfo(BOB, ("/ip4/192.168.1.3/tcp/4619",))
    await trio.sleep(AGAIN_S)
    findings.heard(encode_txt(BOB, [ADDR]))
    assert await anext(findings) == PeerInfo(BOB, (ADDR,))
    with trio.move_on_after(1) as scope:
        await anext(findings)
    assert scope.cancelled_caught


async def test_a_flood_of_findings_is_bounded(autojump_clock: MockClock) -> None:
    findings = Findings(ALICE)
    for number in range(5000):
        findings.heard(encode_txt(BOB, [f"/ip4/10.1.{number // 256}.{number % 256}/tcp/1"]))
    count = 0
    with trio.move_on_after(1):
        while True:
            await anext(findings)
            count += 1
    assert count == 64


async def test_two_nodes_with_the_same_key_find_each_other_and_no_others(tmp_path: Path) -> None:
    def settings(psk: bytes) -> NetworkSettings:
        return NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), psk=psk)

    key, other = bytes(32), bytes([1] * 32)
    with trio.fail_after(30):
        async with (
            open_network(Identity.generate(), settings(key)) as alice,
            open_network(Identity.generate(), settings(key)) as bob,
            open_network(Identity.generate(), settings(other)) as mallory,
            open_mdns(mallory, fingerprint=fingerprint(other)) as mallorys,
            open_mdns(alice, fingerprint=fingerprint(key)) as alices,
            open_mdns(bob, fingerprint=fingerprint(key)) as bobs,
        ):
            found = await anext(alices)
            assert found == PeerInfo(bob.peer_id, tuple(bob.listen_addrs()))
            assert (await anext(bobs)).peer == alice.peer_id
            await alice.connect(found)
            assert alice.peers() == [bob.peer_id]
            with trio.move_on_after(0.5) as scope:
                await anext(mallorys)
            assert scope.cancelled_caught


async def test_without_an_address_nobody_is_found_and_the_node_goes_on() -> None:
    nowhere = MemorySwarm().endpoint("nowhere")
    async with open_mdns(nowhere, fingerprint=None) as found:
        with trio.move_on_after(0.2) as scope:
            await anext(found)
    assert scope.cancelled_caught


def test_it_speaks_on_the_interfaces_it_listens_on() -> None:
    local = ["127.0.0.1", "192.168.1.2", "10.0.0.1"]
    assert interfaces_for(told_addrs([ADDR]), local) == ["192.168.1.2"]
    assert interfaces_for(told_addrs(["/ip4/127.0.0.1/tcp/1"]), local) == ["127.0.0.1"]
    # Announced by hand: it is not this machine's, but somebody on the LAN may reach it.
    assert interfaces_for(told_addrs(["/ip4/203.0.113.9/tcp/1"]), local) == local[1:]
    assert interfaces_for([], local) == []

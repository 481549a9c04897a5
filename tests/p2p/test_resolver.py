"""Names in multiaddrs, without a network."""

from __future__ import annotations

import pytest
import trio

from ipfsreg.errors import PeerUnreachable
from ipfsreg.p2p.addresses import DnsAddr, TcpAddr
from ipfsreg.p2p.resolver import MAX_RESULTS, Resolver
from ipfsreg.testing.network import peer_of

BOB, CAROL = peer_of("bob"), peer_of("carol")


class Zone:
    """TXT records."""

    def __init__(self, records: dict[str, list[str]]) -> None:
        self.records = records
        self.asked: list[str] = []

    async def __call__(self, domain: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        self.asked.append(domain)
        try:
            return self.records[domain]
        except KeyError:
            raise OSError(f"{domain}: no such name") from None


async def test_a_dnsaddr_yields_the_tcp_addresses_of_the_peer_asked_for(autojump_clock: object) -> None:
    zone = Zone(
        {
            "_dnsaddr.example": [
                "v=spf1 -all",
                "dnsaddr=",
                f"dnsaddr=/ip4/192.0.2.1/tcp/1/p2p/{CAROL}",
                f"dnsaddr=/ip4/192.0.2.2/udp/1/quic-v1/p2p/{BOB}",
                f"dnsaddr=/dnsaddr/inner.example/p2p/{BOB}",
                f"dnsaddr=/dnsaddr/gone.example/p2p/{BOB}",
            ],
            "_dnsaddr.inner.example": [f"dnsaddr=/ip4/192.0.2.3/tcp/1/p2p/{BOB}", "dnsaddr=/ip6/2001:db8::1/tcp/2"],
        }
    )
    found = await Resolver(zone).resolve(DnsAddr("example"), BOB)
    assert found == [TcpAddr("ip4", "192.0.2.3", 1), TcpAddr("ip6", "2001:db8::1", 2)]


async def test_records_that_go_in_circles_end(autojump_clock: object) -> None:
    zone = Zone({"_dnsaddr.a.example": [f"dnsaddr=/dnsaddr/a.example/p2p/{BOB}"]})
    with pytest.raises(PeerUnreachable, match="without end"):
        await Resolver(zone).resolve(DnsAddr("a.example"), BOB)
    assert len(zone.asked) <= 3


async def test_a_thousand_records_are_not_a_thousand_dials(autojump_clock: object) -> None:
    zone = Zone({"_dnsaddr.example": [f"dnsaddr=/ip4/192.0.2.1/tcp/{n}/p2p/{BOB}" for n in range(1, 1001)]})
    assert len(await Resolver(zone).resolve(DnsAddr("example"), BOB)) == MAX_RESULTS


async def test_a_name_server_that_does_not_answer_is_given_up(autojump_clock: object) -> None:
    async def mute(domain: str) -> list[str]:
        await trio.sleep_forever()
        raise AssertionError

    with pytest.raises(PeerUnreachable, match="does not resolve"):
        await Resolver(mute).resolve(DnsAddr("example"), BOB)


async def test_names_without_addresses_are_unreachable(autojump_clock: object) -> None:
    with pytest.raises(PeerUnreachable, match="no TCP address"):
        await Resolver(Zone({"_dnsaddr.example": []})).resolve(DnsAddr("example"), BOB)
    with pytest.raises(PeerUnreachable, match="no such name"):
        await Resolver(Zone({})).resolve(DnsAddr("example"), BOB)


async def test_an_ip_address_is_its_own_answer() -> None:
    addr = TcpAddr("ip4", "192.0.2.1", 1)
    assert await Resolver(Zone({})).resolve(addr, BOB) == [addr]


async def test_a_name_of_one_family_yields_that_family() -> None:
    assert await Resolver().resolve(TcpAddr("dns4", "localhost", 7), BOB) == [TcpAddr("ip4", "127.0.0.1", 7)]
    with pytest.raises(PeerUnreachable, match="does not resolve"):
        await Resolver().resolve(TcpAddr("dns4", "a..b", 7), BOB)

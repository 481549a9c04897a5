"""Names in multiaddrs: `/dns`, `/dns4`, `/dns6` through the system's resolver, `/dnsaddr` through TXT records.

The system's resolver, because names in containers are in /etc/hosts or come from the orchestrator; TXT records are
asked for with dnspython, which the system's resolver cannot do.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable

import trio

from ipfsreg.errors import PeerUnreachable
from ipfsreg.p2p.addresses import DnsAddr, TcpAddr, parse_dialable
from ipfsreg.peer_id import PeerId

MAX_RESULTS = 32
"""Addresses taken from one name."""
MAX_DEPTH = 3
"""A dnsaddr may point to another; the public bootstrappers use two levels."""
QUERY_S = 5.0

TxtLookup = Callable[[str], Awaitable[list[str]]]
"""From a domain to the texts of its TXT records; raises OSError."""

_FAMILIES = {"dns": socket.AF_UNSPEC, "dns4": socket.AF_INET, "dns6": socket.AF_INET6}


async def lookup_txt(domain: str) -> list[str]:
    """The TXT records of *domain*. Raises OSError."""
    # Imported here: it takes 0.2 s, and nodes without a dnsaddr never need it.
    import dns.asyncresolver
    import dns.exception

    try:
        answer = await dns.asyncresolver.resolve(domain, "TXT", lifetime=QUERY_S)
    except dns.exception.DNSException as error:
        raise OSError(f"{domain}: {error}") from None
    return [b"".join(record.strings).decode("utf-8", "replace") for record in answer]


class Resolver:
    """Turns what stands in a multiaddr into IP addresses and ports."""

    def __init__(self, txt: TxtLookup = lookup_txt) -> None:
        self._txt = txt

    async def resolve(self, addr: TcpAddr | DnsAddr, peer: PeerId) -> list[TcpAddr]:
        """The IP addresses behind *addr* at which *peer* may be found, at most 32.

        Raises:
            PeerUnreachable: the name does not resolve, or names other peers only.
        """
        return await self._resolve(addr, peer, MAX_DEPTH)

    async def _resolve(self, addr: TcpAddr | DnsAddr, peer: PeerId, depth: int) -> list[TcpAddr]:
        if isinstance(addr, TcpAddr):
            return [addr] if addr.is_ip else await _resolve_name(addr)
        if depth == 0:
            raise PeerUnreachable(f"{addr} points to dnsaddrs that point to dnsaddrs, without end")
        try:
            with trio.fail_after(QUERY_S):
                records = await self._txt(f"_dnsaddr.{addr.domain}")
        except (OSError, trio.TooSlowError) as error:
            raise PeerUnreachable(f"{addr} does not resolve: {error}") from None
        found: list[TcpAddr] = []
        failure: PeerUnreachable | None = None
        for inner in _for_peer(records, peer)[:MAX_RESULTS]:
            try:
                found += await self._resolve(inner, peer, depth - 1)
            except PeerUnreachable as error:
                failure = error
        if not found:
            raise failure or PeerUnreachable(f"{addr} has no TCP address of {peer}")
        return list(dict.fromkeys(found))[:MAX_RESULTS]


async def _resolve_name(addr: TcpAddr) -> list[TcpAddr]:
    try:
        with trio.fail_after(QUERY_S):
            answers = await trio.socket.getaddrinfo(
                addr.host, addr.port, family=_FAMILIES[addr.kind], type=socket.SOCK_STREAM
            )
    except (OSError, UnicodeError, trio.TooSlowError) as error:
        raise PeerUnreachable(f"{addr} does not resolve: {error or 'no answer in time'}") from None
    return list(dict.fromkeys(TcpAddr.of(sockaddr[0], addr.port) for *_, sockaddr in answers))[:MAX_RESULTS]


def _for_peer(records: list[str], peer: PeerId) -> list[TcpAddr | DnsAddr]:
    found: list[TcpAddr | DnsAddr] = []
    for record in records:
        text = record.removeprefix("dnsaddr=")
        if text == record:
            continue
        head, _, name = text.rpartition("/p2p/")
        # Compared as text: a record with a malformed peer ID is simply not this peer's.
        if head and name != str(peer):
            continue
        addr = parse_dialable(text)
        if addr is not None:
            found.append(addr)
    return found

"""PURE: who a request is from that a proxy passed on.

Each proxy adds the address of whoever it was asked by to the end of `X-Forwarded-For`. What a client wrote there
itself stands before that, so the list is read from its end, as far as it was written by proxies we know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

_MAX_HOPS = 32


class TrustedProxies:
    """Addresses and networks of proxies whose word counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        """Raises ValueError: not an address or a network."""
        self._networks = [ip_network(network, strict=False) for network in networks]

    def trust(self, address: str) -> bool:
        """Whether a proxy of ours has *address*."""
        try:
            parsed = ip_address(address)
        except ValueError:
            return False
        mapped = getattr(parsed, "ipv4_mapped", None)
        return any((mapped or parsed) in network for network in self._networks)

    def client(self, peer: str, headers: Mapping[str, str]) -> str:
        """The address of the client behind *peer*: *peer* itself where it is no proxy, or says nothing that is one."""
        if not self.trust(peer):
            return peer
        hops = headers.get("x-forwarded-for", "").rsplit(",", _MAX_HOPS)
        for hop in reversed(hops):
            address = hop.strip()
            try:
                peer = str(ip_address(address))
            except ValueError:
                return peer
            if not self.trust(peer):
                return peer
        return peer

    def is_secure(self, peer: str, headers: Mapping[str, str]) -> bool | None:
        """Whether the client of the proxy at *peer* speaks TLS; None: nobody said."""
        said = headers.get("x-forwarded-proto", "").rpartition(",")[2].strip().lower()
        if not self.trust(peer) or said not in ("http", "https"):
            return None
        return said == "https"

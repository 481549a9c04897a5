"""Where others see us. Behind NAT or in a container the addresses of our interfaces are of no use to anybody; those at
which peers did reach us are, once several that are independent of each other say the same. Pure.
"""

from __future__ import annotations

from ipfsreg.p2p.addresses import TcpAddr, parse_dialable
from ipfsreg.p2p.limits import network_of
from ipfsreg.peer_id import PeerId

WITNESSES = 2
"""Networks that must agree: one peer, or one host with many keys, could make us announce anything."""
MAX_TOLD = 4
"""Observed addresses announced at most."""


class ObservedAddrs:
    """What connected peers, that dialled us, say they dialled."""

    def __init__(self) -> None:
        self._seen: dict[PeerId, tuple[str, str]] = {}

    def saw(self, peer: PeerId, addr: str, *, seen_from: str) -> bool:
        """*peer*, itself at *seen_from*, reached us at *addr*. Return whether `addrs` gives another answer now."""
        origin = parse_dialable(seen_from)
        if not isinstance(origin, TcpAddr) or not isinstance(parse_dialable(addr), TcpAddr):
            return False
        before = self.addrs()
        self._seen[peer] = (addr, network_of(origin.host) or "loopback")
        return self.addrs() != before

    def forget(self, peer: PeerId) -> None:
        """It is gone. What it helped to prove stays told only as long as enough others say so."""
        self._seen.pop(peer, None)

    def addrs(self) -> list[str]:
        """Addresses with enough independent witnesses, the most often seen first."""
        witnesses: dict[str, set[str]] = {}
        for addr, network in self._seen.values():
            witnesses.setdefault(addr, set()).add(network)
        agreed = [addr for addr, networks in witnesses.items() if len(networks) >= WITNESSES]
        return sorted(agreed, key=lambda addr: (-len(witnesses[addr]), addr))[:MAX_TOLD]

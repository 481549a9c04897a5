"""Multiaddrs, as far as this node dials, listens on and judges them.

A multiaddr travels as bytes and is kept as text without its trailing `/p2p/…`. Only TCP over IP or a DNS name is
dialled here; every other well-formed multiaddr is passed on untouched, for peers that know more transports.
Spec: multiformats/multiaddr, libp2p/specs "addressing".
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address, ip_address

from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from ipfsreg.errors import MalformedData
from ipfsreg.peer_id import PeerId

MAX_ADDR_CHARS = 512
"""A DNS name has at most 253; relay addresses name two peers."""

_NAMES = ("dns", "dns4", "dns6")


class Scope(IntEnum):
    """From how far away an address can be reached."""

    LOOPBACK = 1
    PRIVATE = 2
    PUBLIC = 3


@dataclass(frozen=True, slots=True)
class TcpAddr:
    """An IP address, or a name for one, and a TCP port."""

    kind: str
    """`ip4`, `ip6`, `dns` (either family), `dns4` or `dns6`."""
    host: str
    port: int

    @property
    def is_ip(self) -> bool:
        """False for a name that has to be resolved first."""
        return self.kind in ("ip4", "ip6")

    @property
    def is_wildcard(self) -> bool:
        """Listening there means listening on every interface."""
        return self.is_ip and ip_address(self.host).is_unspecified

    @classmethod
    def of(cls, host: str, port: int) -> TcpAddr:
        """From what a socket tells: *host* is an IP address. A mapped IPv4 address becomes IPv4."""
        address = ip_address(host.partition("%")[0])
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return cls("ip4" if isinstance(address, IPv4Address) else "ip6", str(address), port)

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}"


@dataclass(frozen=True, slots=True)
class DnsAddr:
    """`/dnsaddr/<domain>`: the addresses are in its TXT records."""

    domain: str

    def __str__(self) -> str:
        return f"/dnsaddr/{self.domain}"


def parse_dialable(text: str) -> TcpAddr | DnsAddr | None:
    """What we would dial for the multiaddr *text* (with or without `/p2p/…`); None: no transport of ours."""
    parts = text.split("/")
    if parts[-2:-1] in (["p2p"], ["ipfs"]):
        parts = parts[:-2]
    match parts:
        case ["", "dnsaddr", domain] if domain:
            return DnsAddr(domain)
        case ["", ("ip4" | "ip6" | "dns" | "dns4" | "dns6") as kind, host, "tcp", port]:
            # Five digits: a TXT record can hold so many that Python refuses to read them.
            if not port.isascii() or not port.isdecimal() or len(port) > 5 or int(port) > 65535 or not host:
                return None
            if kind in _NAMES:
                return TcpAddr(kind, host, int(port))
            try:
                address = ip_address(host)
            except ValueError:
                return None
            return TcpAddr(kind, str(address), int(port)) if f"ip{address.version}" == kind else None
    return None


def normal_form(text: str) -> str:
    """The one spelling under which the multiaddr *text* is kept, without a trailing `/p2p/…`.

    Raises:
        MalformedData: not a multiaddr, empty, or of absurd length.
    """
    if len(text) > MAX_ADDR_CHARS:
        raise MalformedData(f"a multiaddr of {len(text)} characters")
    ours = parse_dialable(text)
    if ours is not None:
        return str(ours)
    whole = _foreign(text)
    head = _without_peer(whole)
    # Two peers one behind the other mean nothing, but are a multiaddr; what is left of it has one form as well.
    return head if head == whole else normal_form(head)


def decode_addr(raw: bytes) -> str:
    """The normal form of a binary multiaddr. Raises MalformedData."""
    # ip4/tcp and ip6/tcp by hand: they are nearly all there is, and twenty times faster so.
    if len(raw) == 8 and raw[0] == 4 and raw[5] == 6:
        return f"/ip4/{IPv4Address(raw[1:5])}/tcp/{int.from_bytes(raw[6:])}"
    if len(raw) == 20 and raw[0] == 41 and raw[17] == 6:
        return f"/ip6/{IPv6Address(raw[1:17])}/tcp/{int.from_bytes(raw[18:])}"
    if len(raw) > MAX_ADDR_CHARS:
        raise MalformedData(f"a multiaddr of {len(raw)} bytes")
    return normal_form(_foreign(raw))


def encode_addr(text: str) -> bytes:
    """The binary form of a multiaddr. Raises MalformedData."""
    try:
        raw: bytes = Multiaddr(text).to_bytes()
    except (MultiaddrError, ValueError) as error:
        raise MalformedData(f"{text!r} is not a multiaddr: {error}") from None
    return raw


def split_peer(text: str) -> tuple[str, PeerId | None]:
    """Part `…/p2p/<peer>` into the address and the peer. Raises MalformedData for a peer ID that is none."""
    head, _, name = text.rpartition("/p2p/")
    if not head or "/" in name:
        return text, None
    return head, PeerId.parse(name)


def scope_of(text: str) -> Scope | None:
    """How far *text* reaches; None for a name, which has to be resolved to tell, or a foreign transport."""
    addr = parse_dialable(text)
    return scope_of_ip(addr.host) if isinstance(addr, TcpAddr) and addr.is_ip else None


def scope_of_ip(host: str) -> Scope:
    """How far an IP address reaches."""
    address = ip_address(host)
    if address.is_loopback:
        return Scope.LOOPBACK
    # Carrier-grade NAT (100.64/10) counts as private to ipaddress only in part; nobody beyond it can dial in.
    return Scope.PUBLIC if address.is_global else Scope.PRIVATE


def claims_worth_keeping(claimed: Iterable[str], *, seen_from: str) -> list[str]:
    """Those of the addresses a peer claims for itself that make sense for where it reached us from.

    A peer across the Internet that claims 127.0.0.1 or 10.0.0.1 would have us dial into our own machine or network.
    """
    reach = scope_of(seen_from)
    if reach is None:
        return list(claimed)
    return [addr for addr in claimed if (scope_of(addr) or Scope.PUBLIC) >= reach]


def tellable(addrs: Iterable[str], *, to: str) -> list[str]:
    """Those of our own addresses that are of use to a peer at *to*: no loopback ones to other machines."""
    if scope_of(to) is Scope.LOOPBACK:
        return list(addrs)
    return [addr for addr in addrs if scope_of(addr) is not Scope.LOOPBACK]


def _foreign(source: str | bytes) -> str:
    try:
        text = str(Multiaddr(source))
    except Exception as error:  # its codecs meet strangers' bytes with any of TypeError, struct.error, IndexError
        raise MalformedData(f"not a multiaddr: {error}") from None
    if not text or len(text) > MAX_ADDR_CHARS:
        raise MalformedData("an empty or overlong multiaddr")
    return text


def _without_peer(text: str) -> str:
    head, _, name = text.rpartition("/p2p/")
    return head if head and "/" not in name else text

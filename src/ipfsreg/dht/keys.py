"""Where things lie in the keyspace, and how far apart. Pure.

A position is the sha2-256 of a peer ID, of the multihash of a CID, or of any other key, read as a number of 256 bits;
the distance of two positions is their XOR. Spec: libp2p "kad-dht"; go-libp2p hashes the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address

from ipfsreg.errors import MalformedData
from ipfsreg.p2p.addresses import Scope, TcpAddr, decode_addr, encode_addr, parse_dialable, scope_of
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId

KEY_BITS = 256

MAX_FOUND_BITS = 14
"""Finding a key with n given leading bits takes 2**n hashes: 14 take about 20 ms."""

_IP4, _IP6, _TCP, _P2P = 4, 41, b"\x06", b"\xa5\x03"
_DNS_CODES = (53, 54, 55, 56)


def position_of(key: bytes | memoryview) -> int:
    """The place of *key*: a binary peer ID, or the multihash of a CID."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


def common_bits(one: int, other: int) -> int:
    """How many leading bits two positions share, 0 to 256."""
    return KEY_BITS - (one ^ other).bit_length()


def random_key(near: int, bits: int, random_bytes: Callable[[int], bytes]) -> bytes:
    """A key, shaped like a peer ID, whose position shares at least *bits* leading bits with *near*.

    Positions are hashes, so it is found by trying: 2**bits times on average.
    """
    assert bits <= MAX_FOUND_BITS
    while True:
        key = b"\x12\x20" + random_bytes(32)
        if common_bits(position_of(key), near) >= bits:
            return key


def sibling(position: int, depth: int) -> int:
    """A position that shares exactly *depth* leading bits with *position*."""
    return position ^ (1 << (KEY_BITS - 1 - depth))


@dataclass(frozen=True, slots=True)
class Contact:
    """A peer as the DHT speaks of it: its ID, and multiaddrs in binary as they travel, dialable by us or not."""

    peer: PeerId
    addrs: tuple[bytes, ...] = ()
    position: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "position", position_of(self.peer.raw))

    @classmethod
    def of(cls, peer: PeerId, addrs: Iterable[str]) -> Contact:
        """From addresses as text; those without a binary form are left out."""
        raw = []
        for addr in addrs:
            try:
                raw.append(_encode(addr))
            except MalformedData:
                continue
        return cls(peer, tuple(raw))

    def dialable(self) -> PeerInfo:
        """The addresses that are for our transports."""
        found = (_decode_dialable(addr) for addr in self.addrs)
        return PeerInfo(self.peer, tuple(dict.fromkeys(addr for addr in found if addr is not None)))


def _encode(addr: str) -> bytes:
    known = parse_dialable(addr)
    # IP addresses by hand: the library takes fifty times as long, and every answer names dozens.
    if isinstance(known, TcpAddr) and known.is_ip:
        code = bytes((_IP4 if known.kind == "ip4" else _IP6,))
        return code + ip_address(known.host).packed + _TCP + known.port.to_bytes(2, "big")
    return encode_addr(addr)


def _decode_dialable(raw: bytes) -> str | None:
    """The address as text, or None: a transport we have not, or nonsense.

    Most addresses on the public network are QUIC or relays; these are told by their first bytes, without parsing.
    """
    if not raw:
        return None
    if raw[0] in (_IP4, _IP6):
        end = 8 if raw[0] == _IP4 else 20
        if raw[end - 3 : end - 2] != _TCP:
            return None
        rest = raw[end:]
        if rest and not (rest[:2] == _P2P and len(rest) > 3 and len(rest) == 3 + rest[2]):
            return None
        raw = raw[:end]
    elif raw[0] not in _DNS_CODES:
        return None
    try:
        addr = decode_addr(raw)
    except MalformedData:
        return None
    return addr if parse_dialable(addr) is not None else None


def is_public(addr: bytes) -> bool:
    """Whether a binary multiaddr may be on the Internet: not an IP address of this machine or of a private network."""
    if addr[:1] == bytes((_IP4,)) and len(addr) >= 5:
        return IPv4Address(addr[1:5]).is_global
    if addr[:1] == bytes((_IP6,)) and len(addr) >= 17:
        return IPv6Address(addr[1:17]).is_global
    return bool(addr)


def networks_of(contact: Contact) -> frozenset[str]:
    """The public networks the contact's addresses lie in, IPv4 /16 and IPv6 /32: one owner may hold all of such."""
    found = set()
    for addr in contact.addrs:
        if addr[:1] == bytes((_IP4,)) and len(addr) >= 5 and IPv4Address(addr[1:5]).is_global:
            found.add(f"{addr[1]}.{addr[2]}")
        elif addr[:1] == bytes((_IP6,)) and len(addr) >= 17 and IPv6Address(addr[1:17]).is_global:
            found.add(addr[1:5].hex())
    return frozenset(found)


def has_public(addrs: Iterable[str]) -> bool:
    """Whether one of *addrs* can be reached from the Internet. A DNS name counts: somebody has chosen to tell it."""
    for addr in addrs:
        known = parse_dialable(addr)
        if known is not None and scope_of(addr) in (None, Scope.PUBLIC):
            return True
    return False

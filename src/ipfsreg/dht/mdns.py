"""Peers on the same LAN, by multicast DNS: no bootstrapper, no configuration.

    async with open_mdns(network, fingerprint=fingerprint(psk)) as found:
        async for info in found: await network.connect(info)

Each node answers for one service instance with a random name, whose TXT record holds `dnsaddr=` and a multiaddr for
every address it listens at. What is found is only reported; whoever reads decides whom to dial, and the handshake
decides who it was.

A private swarm has a service of its own, named after the fingerprint of its key: nodes of other swarms, and of the
public network, are not even heard of. The fingerprint tells keys apart and gives nothing away.

Spec: libp2p "Multicast DNS" (peer discovery, DNS service discovery, private networks); RFC 6762, RFC 6763.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from ipaddress import ip_address

import ifaddr
import trio
from zeroconf import Error as ZeroconfError
from zeroconf import RecordUpdate, RecordUpdateListener, ServiceBrowser, ServiceInfo, Zeroconf

from ipfsreg.errors import MalformedData
from ipfsreg.p2p.addresses import Scope, TcpAddr, normal_form, parse_dialable, scope_of_ip, split_peer
from ipfsreg.p2p.interface import Network, PeerInfo
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

MAX_ADDRS = 16
"""In one TXT record, told or taken."""
MAX_WAITING = 64
"""Findings that wait to be read; further ones are dropped, they come again with the next announcement."""
MAX_REMEMBERED = 1024
AGAIN_S = 30.0
"""The same finding is not reported again within this time."""
LOOK_S = 30.0
"""Seconds between two looks at whether our addresses have changed."""

_PREFIX = b"dnsaddr="


def service_of(fingerprint: str | None) -> str:
    """The DNS-SD service of a swarm: *fingerprint* of its key in hex, None for the public network."""
    return f"_p2p-{fingerprint}._udp.local." if fingerprint else "_p2p._udp.local."


def encode_txt(peer: PeerId, addrs: Sequence[str]) -> bytes:
    """The TXT record that says *peer* is at *addrs*: strings, each behind a byte with its length."""
    strings = [_PREFIX + f"{addr}/p2p/{peer}".encode() for addr in addrs[:MAX_ADDRS]]
    return b"".join([bytes((len(each),)) + each for each in strings if len(each) <= 255])


def decode_txt(txt: bytes) -> PeerInfo | None:
    """The peer a TXT record tells of, with the addresses we could dial; None if there is none.

    A record may speak of one peer only: the first it names.
    """
    peer: PeerId | None = None
    addrs: dict[str, None] = {}
    position = 0
    while position < len(txt) and len(addrs) < MAX_ADDRS:
        end = position + 1 + txt[position]
        string, position = txt[position + 1 : end], end
        if not string.startswith(_PREFIX):
            continue
        try:
            addr, named = split_peer(_ascii(string[len(_PREFIX) :]))
            if named is None or (peer is not None and named != peer) or parse_dialable(addr) is None:
                continue
            addrs[normal_form(addr)] = None
            peer = named
        except MalformedData:
            continue
    return PeerInfo(peer, tuple(addrs)) if peer is not None else None


def _ascii(raw: bytes) -> str:
    """ASCII, or MalformedData."""
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError:
        raise MalformedData("a multiaddr that is not text") from None


def told_addrs(listen_addrs: Sequence[str]) -> list[TcpAddr]:
    """Those of our addresses that are of use on a LAN: no loopback, unless there is nothing else, no names."""
    known = [parse_dialable(addr) for addr in listen_addrs]
    ours = [addr for addr in known if isinstance(addr, TcpAddr) and addr.is_ip]
    beyond = [addr for addr in ours if scope_of_ip(addr.host) is not Scope.LOOPBACK]
    return (beyond or ours)[:MAX_ADDRS]


def interfaces_for(told: Sequence[TcpAddr], local: Sequence[str]) -> list[str]:
    """The interfaces to speak on, by their IPv4 addresses: those we are told to be at.

    Where none of them is this machine's (an address that was announced by hand), all but loopback.
    """
    hosts = {addr.host for addr in told}
    ours = [host for host in local if host in hosts]
    if ours or not told:
        return ours
    return [host for host in local if scope_of_ip(host) is not Scope.LOOPBACK]


def _local_addrs() -> list[str]:
    return [ip.ip for adapter in ifaddr.get_adapters() for ip in adapter.ips if isinstance(ip.ip, str)]


class Findings:
    """Peers as they are heard of."""

    def __init__(self, ours: PeerId) -> None:
        self._ours = ours
        self._send, self._receive = trio.open_memory_channel[PeerInfo](MAX_WAITING)
        self._reported: dict[PeerInfo, float] = {}

    def heard(self, txt: bytes) -> None:
        """A TXT record came by."""
        info = decode_txt(txt)
        now = trio.current_time()
        if info is None or info.peer == self._ours or now - self._reported.get(info, -AGAIN_S) < AGAIN_S:
            return
        try:
            self._send.send_nowait(info)
        except trio.WouldBlock:
            return
        self._reported.pop(info, None)
        self._reported[info] = now
        if len(self._reported) > MAX_REMEMBERED:
            del self._reported[next(iter(self._reported))]

    def __aiter__(self) -> Findings:
        return self

    # Not an async generator: cancelling one while it waits would end it for good.
    async def __anext__(self) -> PeerInfo:
        return await self._receive.receive()


class _Listener(RecordUpdateListener):
    """Hears every record of the service, in zeroconf's thread, and hands TXT records over to ours."""

    def __init__(self, service: str, findings: Findings) -> None:
        super().__init__()
        self._service = service
        self._findings = findings
        self._trio = trio.lowlevel.current_trio_token()

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        for update in records:
            txt = getattr(update.new, "text", None)  # a TXT record's alone; its class is not exported
            if isinstance(txt, bytes) and update.new.name.lower().endswith(self._service):
                try:
                    self._trio.run_sync_soon(self._findings.heard, txt)
                except trio.RunFinishedError:
                    return


def _ignore(**_: object) -> None:
    """A browser asks the network only on behalf of a handler; ours reads the records themselves."""


class _Beacon:
    """What runs in zeroconf's threads. Every method blocks, and is called in a worker thread."""

    def __init__(self, service: str, findings: Findings) -> None:
        self._service = service
        self._listener = _Listener(service, findings)
        # Not derived from the peer ID: names on a LAN are read by more than our peers.
        self._name = secrets.token_hex(16)
        self._zeroconf: Zeroconf | None = None
        self._told: list[TcpAddr] = []

    def tell(self, peer: PeerId, addrs: list[TcpAddr]) -> None:
        """Answer for *addrs*, and listen on the interfaces they are of; what was told before is taken back."""
        if addrs == self._told:
            return
        self.close()
        interfaces = interfaces_for(addrs, _local_addrs())
        if not interfaces:
            return
        self._zeroconf = Zeroconf(interfaces=interfaces)
        self._zeroconf.add_listener(self._listener, None)
        ServiceBrowser(self._zeroconf, self._service, handlers=[_ignore])
        info = ServiceInfo(
            self._service,
            f"{self._name}.{self._service}",
            port=addrs[0].port,
            properties=encode_txt(peer, [str(addr) for addr in addrs]),
            server=f"{self._name}.local.",
            addresses=[ip_address(addr.host).packed for addr in addrs],
        )
        self._zeroconf.register_service(info, strict=False)
        self._told = addrs

    def close(self) -> None:
        """Say goodbye."""
        self._told = []
        if self._zeroconf is not None:
            zeroconf, self._zeroconf = self._zeroconf, None
            zeroconf.close()


@asynccontextmanager
async def open_mdns(network: Network, *, fingerprint: str | None) -> AsyncIterator[AsyncIterator[PeerInfo]]:
    """Tell the LAN where we are, and iterate over the peers of our swarm that are there, while the block lasts.

    *fingerprint*: `p2p.pnet.fingerprint` of the swarm's key; None on the public network. A peer is reported again after
    half a minute at the earliest, when it is heard of again. Where there is no multicast nobody is found, and a warning
    says why; a node goes on without. Leaving takes up to three seconds, to say goodbye.
    """
    findings = Findings(network.peer_id)
    beacon = _Beacon(service_of(fingerprint), findings)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_telling, network, beacon)
        try:
            yield findings
        finally:
            nursery.cancel_scope.cancel()
    # Zeroconf waits three seconds at most for its own thread.
    with trio.CancelScope(shield=True):
        await trio.to_thread.run_sync(beacon.close)


async def _keep_telling(network: Network, beacon: _Beacon) -> None:
    warned = False
    while True:
        try:
            # Not abandoned when cancelled: what it opens has to be closed after it.
            await trio.to_thread.run_sync(beacon.tell, network.peer_id, told_addrs(network.listen_addrs()))
            warned = False
        except (OSError, ZeroconfError) as error:
            if not warned:
                logger.warning("peers on the LAN cannot be found by multicast: %s", error or type(error).__name__)
            warned = True
        await trio.sleep(LOOK_S)

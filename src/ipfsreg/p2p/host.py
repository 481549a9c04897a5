"""Our host: keeps the promises of `Network` on real libp2p connections.

async with open_network(identity, settings, database) as network:
    await network.connect(info)
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import trio

from ipfsreg import __version__
from ipfsreg.database import Database
from ipfsreg.errors import ConfigError, ConnectionLost, MalformedData
from ipfsreg.p2p import ping
from ipfsreg.p2p.addressbook import AddressBook, open_addressbook
from ipfsreg.p2p.addresses import normal_form
from ipfsreg.p2p.connection import ConnectionLimits, MemoryBudget
from ipfsreg.p2p.identify import Identify
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerEvent, PeerInfo, Stream
from ipfsreg.p2p.limits import Limits
from ipfsreg.p2p.listening import reachable_at
from ipfsreg.p2p.observed import ObservedAddrs
from ipfsreg.p2p.resolver import Resolver
from ipfsreg.p2p.swarm import Swarm, SwarmCounters, open_swarm
from ipfsreg.peer_id import PeerId

INTERFACES_S = 5.0
"""Seconds for which the machine's interfaces are not asked for again: that takes 0.2 ms, and many ask."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSettings:
    """How a host takes part in its swarm."""

    listen_addrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4619",)
    """TCP multiaddrs; a wildcard means every interface, port 0 a port of the system's choice. Empty: only dial."""
    announce_addrs: tuple[str, ...] = ()
    """What to tell peers instead of where we listen: for nodes behind NAT or in containers."""
    psk: bytes | None = None
    """The 32-byte key of a private swarm; None: the public network."""
    limits: Limits = field(default_factory=Limits)
    connection_limits: ConnectionLimits = field(default_factory=ConnectionLimits)
    max_buffered_bytes: int = 256 * 1024 * 1024
    """Received and not yet read, over all connections."""
    agent: str = f"ipfsreg/{__version__}"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """One connected peer, for status pages."""

    peer: PeerId
    addr: str
    dialed: bool
    agent: str
    rtt_s: float | None
    bytes_in: int
    bytes_out: int
    streams: int


class Host:
    """Keeps the promises of `Network`. Built only by `open_network`."""

    def __init__(self, swarm: Swarm, book: AddressBook, settings: NetworkSettings, observed: ObservedAddrs) -> None:
        self._swarm = swarm
        self._book = book
        self._settings = settings
        self._observed = observed
        self._interfaces: list[str] = []
        self._interfaces_until = -math.inf
        self._announced = [_announced(addr) for addr in settings.announce_addrs]

    @property
    def peer_id(self) -> PeerId:
        return self._swarm.identity.peer_id

    def sign(self, data: bytes) -> bytes:
        return self._swarm.identity.sign(data)

    @property
    def public_key(self) -> bytes:
        return self._swarm.identity.public_key

    def listen_addrs(self) -> list[str]:
        if self._announced:
            return list(self._announced)
        now = trio.current_time()
        if now >= self._interfaces_until:
            self._interfaces_until = now + INTERFACES_S
            self._interfaces = [str(addr) for addr in reachable_at(self._swarm.listeners)]
        return list(dict.fromkeys(self._interfaces + self._observed.addrs()))

    def peers(self) -> list[PeerId]:
        return self._swarm.peers()

    def protocols_of(self, peer: PeerId) -> frozenset[str] | None:
        return self._swarm.protocols_of(peer)

    def addrs_of(self, peer: PeerId) -> list[str]:
        return self._book.addrs_of(peer)

    def add_addrs(self, info: PeerInfo, *, ttl_s: float = 3600.0) -> None:
        self._book.add(info.peer, info.addrs, ttl_s=ttl_s)

    def remembered(self) -> list[PeerInfo]:
        """Peers we have reached before, the latest first, also those of former runs."""
        return self._book.remembered()

    def status(self) -> list[PeerStatus]:
        """Everybody we are connected to."""
        found = []
        for peer in self._swarm.peers():
            connection = self._swarm.connection(peer)
            assert connection is not None
            found.append(
                PeerStatus(
                    peer,
                    connection.remote_addr,
                    connection.dialer,
                    self._swarm.agent_of(peer),
                    connection.rtt_s,
                    connection.bytes_in,
                    connection.bytes_out,
                    connection.inbound_streams + connection.outbound_streams,
                )
            )
        return found

    @property
    def counters(self) -> SwarmCounters:
        """Dials and connections since the start."""
        return self._swarm.counters

    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent on all connections since the start."""
        return self._swarm.traffic()

    async def connect(self, info: PeerInfo, *, insist: bool = True) -> None:
        self.add_addrs(info)
        await self._swarm.reach(info.peer, info.addrs, insist=insist)

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await self._swarm.part(peer, reason)

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        connection = await self._swarm.reach(peer, insist=False)
        try:
            return await self._open_on(peer, protocols)
        except ConnectionLost:
            # It had died unnoticed. Nothing has been asked of the peer yet, so one more try cannot do anything twice.
            if connection.reason is None:
                raise
        await self._swarm.reach(peer, insist=False)
        return await self._open_on(peer, protocols)

    async def _open_on(self, peer: PeerId, protocols: Sequence[str]) -> Stream:
        connection = self._swarm.connection(peer)
        if connection is None:
            raise ConnectionLost(f"the connection to {peer} is gone")
        spoken = [protocol for protocol in protocols if protocol in (self._swarm.protocols_of(peer) or ())]
        if spoken:
            return await connection.open_stream(spoken[:1], lazy=True)
        # Not known to speak any of them, which may be old news: ask it.
        return await connection.open_stream(protocols)

    def accept(
        self, protocols: Sequence[str], *, max_waiting: int = 256
    ) -> AbstractAsyncContextManager[AsyncIterator[Stream]]:
        return self._swarm.offers.accept(protocols, max_waiting=max_waiting)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[PeerEvent]]:
        connected = self._swarm.peers()
        identified = [peer for peer in connected if self._swarm.protocols_of(peer) is not None]
        with self._swarm.events.read(connected, identified) as events:
            yield events

    def protect(self, peer: PeerId, reason: str) -> None:
        self._swarm.protect(peer, reason)

    def unprotect(self, peer: PeerId, reason: str) -> None:
        self._swarm.unprotect(peer, reason)


def _announced(addr: str) -> str:
    try:
        return normal_form(addr)
    except MalformedData as error:
        raise ConfigError(
            "p2p.announce_addrs", addr, f"a multiaddr, such as /dns4/node.example/tcp/4619 ({error})"
        ) from None


@asynccontextmanager
async def open_network(
    identity: Identity,
    settings: NetworkSettings,
    database: Database | None = None,
    *,
    resolver: Resolver | None = None,
) -> AsyncIterator[Host]:
    """Listen, answer identify and ping, and keep what is learned of peers' addresses in *database*.

    On leaving, every connection is closed; streams still open raise ConnectionLost.

    Raises:
        AlreadyRunning: a port is in use.
        ConfigError: an address this machine does not have.
    """
    observed = ObservedAddrs()
    async with (
        open_addressbook(identity.peer_id, database) as book,
        open_swarm(
            identity=identity,
            psk=settings.psk,
            listen_addrs=settings.listen_addrs,
            book=book,
            limits=settings.limits,
            connection_limits=settings.connection_limits,
            budget=MemoryBudget(settings.max_buffered_bytes),
            resolver=resolver,
        ) as swarm,
        swarm.offers.accept([ping.PROTOCOL], max_waiting=256) as pings,
        trio.open_nursery() as nursery,
    ):
        host = Host(swarm, book, settings, observed)
        book.set_own_addrs(host.listen_addrs())
        identify = Identify(swarm, host.listen_addrs, observed, settings.agent)
        nursery.start_soon(ping.answer_pings, pings)
        nursery.start_soon(identify.run)
        yield host
        nursery.cancel_scope.cancel()

"""The DHT at work: keeps the `Routing` promises on a network.

    async with open_dht(network, database, DhtSettings(private=True)) as dht:
        await dht.provide([cid])
        async for provider in dht.find_providers(cid): ...

Peers are learnt from the network (whoever is identified as a server), and from the answers to lookups. Others may ask
us only while they can reach us; until then we are a client, and in nobody's routing table.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ipfsreg.database import Database
from ipfsreg.dht.inbound import Reception
from ipfsreg.dht.keys import Contact, has_public, position_of, random_key, sibling
from ipfsreg.dht.messages import Message, MessageType
from ipfsreg.dht.messenger import Messenger
from ipfsreg.dht.provided import ProvidedRoots
from ipfsreg.dht.records import ProviderRecords, open_records
from ipfsreg.dht.reprovider import Reprovider
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.dht.server import Answerer
from ipfsreg.dht.settings import DhtSettings, Mode
from ipfsreg.dht.walks import Walker
from ipfsreg.errors import StoreError
from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.addresses import Scope, scope_of
from ipfsreg.p2p.interface import Network, PeerChange, PeerEvent, PeerInfo
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

CHANGING_REFRESH_S = 30.0
"""Seconds between looks at a routing table whose size changes; doubled, up to `refresh_s`, with each look that finds it
unchanged."""


@dataclass(frozen=True, slots=True)
class DhtStatus:
    """How the DHT stands, for status pages."""

    server: bool
    peers: int
    """In the routing table."""
    buckets: dict[int, int]
    """Leading bits shared with us -> peers."""
    records: int
    """Of other peers, kept here."""
    roots: int
    """Of ours, announced by us."""


class ProviderSearch:
    """Providers, as they come in. The lookup runs on by itself: whoever stops reading ends it only by its bounds."""

    def __init__(self, ours: PeerId, count: int, addrs_of: Callable[[PeerId], list[str]]) -> None:
        self._ours = ours
        self._count = count
        self._addrs_of = addrs_of
        self._seen: set[PeerId] = set()
        self._ready: deque[PeerInfo] = deque()
        self._unlocated: dict[PeerId, PeerInfo] = {}
        self._ended = False
        self._changed = trio.Event()

    def __aiter__(self) -> ProviderSearch:
        return self

    # Not an async generator: cancelling one while it waits would end it for good.
    async def __anext__(self) -> PeerInfo:
        await trio.lowlevel.checkpoint()
        while not self._ready:
            if self._ended:
                raise StopAsyncIteration
            self._changed = trio.Event()
            await self._changed.wait()
        return self._ready.popleft()

    @property
    def is_full(self) -> bool:
        """Whether enough were found."""
        return len(self._seen) >= self._count

    def found(self, provider: Contact) -> None:
        """Somebody says that *provider* has it."""
        peer = provider.peer
        if peer == self._ours or peer in self._seen or self.is_full:
            return
        info = provider.dialable()
        addrs = tuple(dict.fromkeys((*info.addrs, *self._addrs_of(peer))))
        if not addrs:
            # Somebody else may know where it is; if nobody does, it is told at the end as it is.
            self._unlocated[peer] = info
            return
        self._unlocated.pop(peer, None)
        self._tell(PeerInfo(peer, addrs))

    def end(self) -> None:
        """Nothing more will be found."""
        for info in self._unlocated.values():
            if not self.is_full:
                self._tell(info)
        self._ended = True
        self._changed.set()

    def _tell(self, info: PeerInfo) -> None:
        self._seen.add(info.peer)
        self._ready.append(info)
        self._changed.set()


class Dht:
    """Content and peer routing. Keeps the `Routing` promises; `open_dht` makes one."""

    def __init__(
        self,
        network: Network,
        settings: DhtSettings,
        records: ProviderRecords,
        roots: ProvidedRoots,
        nursery: trio.Nursery,
    ) -> None:
        self._network = network
        self._settings = settings
        self._records = records
        self._roots = roots
        self._nursery = nursery
        self.table = RoutingTable(
            Contact(network.peer_id),
            k=settings.k,
            per_network_in_table=settings.per_network_in_table,
            per_network_in_bucket=settings.per_network_in_bucket,
        )
        self._messenger = Messenger(network, settings.spoken, query_s=settings.query_s)
        self._walker = Walker(network, self._messenger, self.table, settings)
        self._answerer = Answerer(
            self.table,
            records,
            k=settings.k,
            ourselves=self._ourselves,
            provides=roots.has,
            locate=self._locate,
            believe=self._walker.believe,
        )
        self._reception = Reception(self._answerer, records, settings)
        self._reprovider = Reprovider(roots, self._walker, self._messenger, settings, self._ourselves, os.urandom)
        self._serving = False
        self._mode_known = trio.Event()
        self._met_somebody = trio.Event()
        self.bootstrapped = trio.Event()
        """Set once we have looked for ourselves, and so are known to those near us."""

    # ------------------------------------------------------------------- Routing

    async def provide(self, cids: Iterable[Cid]) -> None:
        """See `Routing.provide`. Raises StoreError."""
        await self._roots.add([cid.multihash for cid in cids])
        self._reprovider.wake()

    async def unprovide(self, cids: Iterable[Cid]) -> None:
        """See `Routing.unprovide`. Raises StoreError."""
        await self._roots.remove([cid.multihash for cid in cids])

    def find_providers(self, cid: Cid, *, count: int = 20) -> ProviderSearch:
        """See `Routing.find_providers`. What we were told ourselves comes first; the network is asked all the same."""
        search = ProviderSearch(self._network.peer_id, count, self._network.addrs_of)
        self._nursery.start_soon(self._search, cid.multihash, search)
        return search

    async def _search(self, key: bytes, search: ProviderSearch) -> None:
        def take(_contact: Contact, answer: Message) -> bool:
            for provider in answer.providers:
                search.found(self._walker.believe(provider))
            return search.is_full

        try:
            for provider in self._records.providers_of(key):
                search.found(provider)
            if not search.is_full:
                await self._walker.walk(Message(MessageType.GET_PROVIDERS, key), take)
        except StoreError as error:
            logger.warning("provider records cannot be read: %s", error)
        finally:
            search.end()

    async def find_peer(self, peer: PeerId) -> PeerInfo | None:
        """See `Routing.find_peer`. None where nobody asked knows an address we could dial."""
        if peer == self._network.peer_id:
            return PeerInfo(peer, tuple(self._network.listen_addrs()))
        if peer in self._network.peers() and (known := self._network.addrs_of(peer)):
            return PeerInfo(peer, tuple(known))
        found: dict[str, None] = {}

        def take(_contact: Contact, answer: Message) -> bool:
            for contact in answer.closer:
                if contact.peer == peer:
                    found.update(dict.fromkeys(self._walker.believe(contact).dialable().addrs))
            return bool(found)

        await self._walker.walk(Message(MessageType.FIND_NODE, peer.raw), take)
        addrs = tuple(found) or tuple(self._network.addrs_of(peer))
        return PeerInfo(peer, addrs) if addrs else None

    def status(self) -> DhtStatus:
        """How it stands now. Raises StoreError."""
        return DhtStatus(
            self._serving, len(self.table), self.table.bucket_sizes(), len(self._records), len(self._roots)
        )

    # ---------------------------------------------------------------- being asked

    def _ourselves(self) -> Contact:
        addrs = self._network.listen_addrs()
        beyond = [addr for addr in addrs if scope_of(addr) is not Scope.LOOPBACK]
        return self._walker.believe(Contact.of(self._network.peer_id, beyond or addrs))

    def _locate(self, peer: PeerId) -> Contact | None:
        """A connected peer, which may be a client and in no table."""
        if self._network.protocols_of(peer) is None:
            return None
        return self._walker.believe(self._walker.contact_of(peer))

    def _should_serve(self) -> bool:
        if self._settings.mode is not Mode.AUTO:
            return self._settings.mode is Mode.SERVER
        addrs = self._network.listen_addrs()
        # On the Internet an address counts that others reached us at, or that we were told to announce; among those
        # who share a key wherever we listen is where they are.
        return bool(addrs) if self._settings.private else has_public(addrs)

    async def _keep_serving(self) -> None:
        """Offer the protocol while others can reach us, and only then: absent servers cost everybody time."""
        while True:
            if self._should_serve():
                logger.info("DHT: server, %s", ", ".join(self._settings.spoken))
                async with self._network.accept(self._settings.spoken) as streams, trio.open_nursery() as nursery:
                    self._serving = True
                    self._mode_known.set()
                    nursery.start_soon(self._reception.receive_streams, streams)
                    while self._should_serve():  # noqa: ASYNC110 - nobody tells when our addresses change
                        await trio.sleep(self._settings.mode_check_s)
                    nursery.cancel_scope.cancel()
                self._serving = False
                logger.info("DHT: client, nobody can reach us")
            self._mode_known.set()
            await trio.sleep(self._settings.mode_check_s)

    # ------------------------------------------------------------- knowing others

    async def _follow_network(self, events: AsyncIterator[PeerEvent]) -> None:
        """Learn who is a server."""
        spoken = frozenset(self._settings.spoken)
        async for event in events:
            if event.change is not PeerChange.IDENTIFIED:
                continue
            protocols = self._network.protocols_of(event.peer)
            if protocols is None:
                continue
            if spoken & protocols:
                contact = self._walker.believe(self._walker.contact_of(event.peer))
                if self.table.alive(contact, now=trio.current_time()):
                    self._met_somebody.set()
                    self._reprovider.wake()
            else:
                self.table.remove(event.peer)

    async def _keep_table(self) -> None:
        """Look for ourselves once we know somebody; from then on see that the table stays alive."""
        settings = self._settings
        await self._met_somebody.wait()
        await trio.sleep(settings.bootstrap_delay_s)
        pause_s = CHANGING_REFRESH_S
        while True:
            started, size = trio.current_time(), len(self.table)
            await self._check_silent(started - settings.refresh_s)
            await self._walker.find_closest(self._network.peer_id.raw)
            if len(self.table):
                self.bootstrapped.set()
            await self._refresh_buckets(started - settings.refresh_s)
            pause_s = 2 * pause_s if len(self.table) == size else CHANGING_REFRESH_S
            pause_s = min(pause_s, settings.refresh_s)
            await trio.sleep(pause_s)

    async def _check_silent(self, before: float) -> None:
        async with trio.open_nursery() as nursery:
            for contact in self.table.silent_since(before):
                nursery.start_soon(
                    self._walker.query, contact, Message(MessageType.FIND_NODE, self._network.peer_id.raw)
                )

    async def _refresh_buckets(self, before: float) -> None:
        ours = position_of(self._network.peer_id.raw)
        for bits in self.table.stale_buckets(before):
            await self._walker.find_closest(random_key(sibling(ours, bits), bits + 1, os.urandom))


@asynccontextmanager
async def open_dht(
    network: Network,
    database: Database,
    settings: DhtSettings | None = None,
    *,
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[Dht]:
    """Take part in the DHT for as long as the block lasts.

    *clock*: seconds since 1970, by which records and roots are kept over restarts. Lookups still under way at the end
    end without further results.

    Raises:
        StoreError: the tables in *database* cannot be made or read.
    """
    settings = settings or DhtSettings()
    roots = ProvidedRoots(database, interval_s=settings.reprovide_s, clock=clock)
    await roots.prepare()
    async with (
        open_records(database, settings, clock) as records,
        network.events() as events,
        trio.open_nursery() as nursery,
    ):
        dht = Dht(network, settings, records, roots, nursery)
        nursery.start_soon(dht._follow_network, events)
        nursery.start_soon(dht._keep_serving)
        nursery.start_soon(dht._keep_table)
        nursery.start_soon(dht._messenger.keep_tidy)
        nursery.start_soon(dht._reprovider.run)
        await dht._mode_known.wait()
        yield dht
        nursery.cancel_scope.cancel()

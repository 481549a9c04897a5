"""Lookups at work: the engine decides whom to ask, here they are asked, side by side, with the time each may take."""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ipfsreg.dht.keys import Contact, is_public, position_of
from ipfsreg.dht.lookup import Lookup
from ipfsreg.dht.messages import Message, MessageType
from ipfsreg.dht.messenger import Messenger
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.errors import LimitReached, NetworkError
from ipfsreg.p2p.interface import Network
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

QUERIES = 128
"""Of all lookups together, under way at a time."""

OnAnswer = Callable[[Contact, Message], bool]
"""Takes in one answer; True ends the lookup."""


class Walker:
    """Makes the lookups of one node, and lets its routing table learn from them."""

    def __init__(self, network: Network, messenger: Messenger, table: RoutingTable, settings: DhtSettings) -> None:
        self._network = network
        self._messenger = messenger
        self._table = table
        self._settings = settings
        self._queries = trio.CapacityLimiter(QUERIES)

    @property
    def knows_anybody(self) -> bool:
        """Whether a lookup would have somebody to ask."""
        return bool(self._seeds(0))

    def contact_of(self, peer: PeerId) -> Contact:
        """A peer with the addresses the network knows."""
        return Contact.of(peer, self._network.addrs_of(peer))

    def believe(self, contact: Contact) -> Contact:
        """*contact* without addresses that cannot be true: others' claims about private networks, on the public one."""
        if not self._settings.private:
            return Contact(contact.peer, tuple(addr for addr in contact.addrs if is_public(addr)))
        return contact

    async def find_closest(self, key: bytes) -> list[Contact]:
        """The k peers closest to the position of *key*, the closest first; empty if nobody can be reached."""
        lookup = await self.walk(Message(MessageType.FIND_NODE, key), lambda _contact, _answer: False)
        return lookup.closest()

    async def walk(self, request: Message, on_answer: OnAnswer) -> Lookup:
        """Ask peers ever closer to the key of *request*, until there are none or *on_answer* has enough.

        Takes at most `lookup_s` seconds. Cancelled: queries under way are abandoned.
        """
        settings = self._settings
        position = position_of(request.key)
        lookup = Lookup(
            position,
            self._seeds(position),
            ours=self._network.peer_id,
            k=settings.k,
            alpha=settings.alpha,
            patience_s=settings.patience_s,
            max_queries=settings.max_queries,
            per_network=settings.per_network_in_lookup,
        )
        walk = _Walk(self, lookup, request, on_answer)
        with trio.move_on_after(settings.lookup_s):
            await walk.run()
        self._table.looked_at(position, now=trio.current_time())
        return lookup

    def _seeds(self, position: int) -> list[Contact]:
        seeds = self._table.closest(position, self._settings.k)
        if len(seeds) < self._settings.k:
            # The table may have refused or dropped peers that are all there is.
            spoken = set(self._settings.spoken)
            known = {contact.peer for contact in seeds}
            for peer in self._network.peers():
                if peer not in known and spoken & (self._network.protocols_of(peer) or set()):
                    seeds.append(self.contact_of(peer))
        return seeds

    async def query(self, contact: Contact, request: Message) -> Message | None:
        """Ask one peer; None if it fails. The routing table learns of either."""
        try:
            async with self._queries:
                answer = await self._messenger.ask(contact, request)
        except LimitReached as error:
            # Our own limits say nothing about the peer.
            logger.debug("query of %s: %s", contact.peer, error)
            return None
        except NetworkError as error:
            logger.debug("query of %s: %s", contact.peer, error)
            self._table.failed(contact.peer)
            return None
        self._table.alive(contact, now=trio.current_time())
        return answer


class _Walk:
    """One lookup under way."""

    def __init__(self, walker: Walker, lookup: Lookup, request: Message, on_answer: OnAnswer) -> None:
        self._walker = walker
        self._lookup = lookup
        self._request = request
        self._on_answer = on_answer
        self._changed = trio.Event()
        self._enough = False

    async def run(self) -> None:
        lookup = self._lookup
        async with trio.open_nursery() as nursery:
            while not self._enough and not lookup.is_finished(now=trio.current_time()):
                self._changed = trio.Event()
                for contact in lookup.begin_queries(now=trio.current_time()):
                    nursery.start_soon(self._query, contact)
                deadline = lookup.next_deadline(now=trio.current_time())
                with trio.move_on_at(float("inf") if deadline is None else deadline):
                    await self._changed.wait()
            nursery.cancel_scope.cancel()

    async def _query(self, contact: Contact) -> None:
        answer = await self._walker.query(contact, self._request)
        if answer is None:
            self._lookup.fail(contact.peer)
        else:
            self._lookup.receive(contact.peer, [self._walker.believe(closer) for closer in answer.closer])
            self._enough = self._on_answer(contact, answer) or self._enough
        self._changed.set()

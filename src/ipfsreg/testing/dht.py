"""DHTs in memory: whole nodes on a `MemorySwarm`, and bare engines by the thousand.

swarm = DhtSimulation(1000, seed=1)
swarm.fill_tables()
swarm.provide(swarm.nodes[0], key)
found = swarm.find_providers(swarm.nodes[7], key)
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

from ipfsreg.dht.keys import Contact, position_of, random_key, sibling
from ipfsreg.dht.lookup import Lookup
from ipfsreg.dht.messages import Message, MessageType, decode_message, encode_message
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.dht.server import Answerer
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm


class AddressedEndpoint(MemoryEndpoint):
    """A peer in memory that has an address with a binary form, as DHT messages carry them."""

    def listen_addrs(self) -> list[str]:
        host = position_of(self.peer_id.raw).to_bytes(32, "big")
        return [f"/ip4/10.{host[0]}.{host[1]}.{host[2]}/tcp/4001"]


def addressed_endpoint(swarm: MemorySwarm, name: str) -> AddressedEndpoint:
    """A new peer of *swarm*."""
    endpoint = AddressedEndpoint(swarm, name)
    assert endpoint.peer_id not in swarm.by_id, f"{name} exists already"
    swarm.by_id[endpoint.peer_id] = endpoint
    return endpoint


def numbered_contact(number: int, addr: bytes = b"\x04\x0a\x00\x00\x01\x06\x0f\xa1") -> Contact:
    """A server that exists only as a number."""
    return Contact(PeerId(b"\x00\x24" + number.to_bytes(36, "big")), (addr,))


class MemoryRecords:
    """Provider records of one simulated node."""

    def __init__(self) -> None:
        self._providers: dict[bytes, dict[PeerId, Contact]] = {}

    def add(self, key: bytes, provider: Contact) -> None:
        """See `server.Records`."""
        self._providers.setdefault(key, {})[provider.peer] = provider

    def providers_of(self, key: bytes) -> list[Contact]:
        """See `server.Records`."""
        return list(self._providers.get(key, {}).values())


class SimulatedNode:
    """Table and answerer of one node."""

    def __init__(self, contact: Contact, *, k: int) -> None:
        self.contact = contact
        self.table = RoutingTable(contact, k=k)
        self.records = MemoryRecords()
        self.alive = True
        self.answered = 0
        self.answerer = Answerer(
            self.table,
            self.records,
            k=k,
            ourselves=lambda: contact,
            provides=lambda _key: False,
            locate=lambda _peer: None,
            believe=lambda told: told,
        )


@dataclass(frozen=True, slots=True)
class Found:
    """How a search went."""

    lookup: Lookup
    providers: tuple[Contact, ...]
    hops: int | None
    """Queries in a row until the first provider was known."""
    took_s: float
    first_s: float | None


class DhtSimulation:
    """Many nodes and one clock. A query takes 20 to 180 ms, one to a dead node 10 s.

    *wire*: encode and decode messages on their way, which is most of the work.
    """

    def __init__(self, size: int, *, seed: int, k: int = 20, alpha: int = 10, wire: bool = False) -> None:
        self._wire = wire
        self._k = k
        self._alpha = alpha
        self.rng = random.Random(seed)
        self.now = 0.0
        self.nodes: list[SimulatedNode] = []
        self._by_peer: dict[PeerId, SimulatedNode] = {}
        for number in range(size):
            node = SimulatedNode(numbered_contact(self.rng.getrandbits(64) << 32 | number), k=k)
            self.nodes.append(node)
            self._by_peer[node.contact.peer] = node

    def fill_tables(self) -> None:
        """Every node joins through an earlier one, looks for itself, and then into each part of the keyspace."""
        for number, node in enumerate(self.nodes):
            if number:
                self._meet(node, self.nodes[self.rng.randrange(number)])
                self.find_closest(node, node.contact.peer.raw)
        for node in self.nodes:
            self.refresh(node)

    def refresh(self, node: SimulatedNode) -> None:
        """Look for itself, and into every bucket."""
        self.find_closest(node, node.contact.peer.raw)
        for bits in node.table.stale_buckets(self.now):
            self.find_closest(node, self.key_near(sibling(node.contact.position, bits), bits + 1))

    def key_near(self, position: int, bits: int) -> bytes:
        """A key whose position shares at least *bits* leading bits with *position*."""
        return random_key(position, bits, self.rng.randbytes)

    def kill(self, share: float) -> None:
        """A *share* of the nodes falls silent."""
        for node in self.rng.sample(self.nodes, round(share * len(self.nodes))):
            node.alive = False

    def living(self) -> list[SimulatedNode]:
        """Nodes that answer."""
        return [node for node in self.nodes if node.alive]

    def provide(self, node: SimulatedNode, key: bytes) -> None:
        """Announce *key* to the peers closest to it."""
        for contact in self.find_closest(node, key):
            announcement = Message(MessageType.ADD_PROVIDER, key, providers=(node.contact,))
            self._deliver(node, self._by_peer[contact.peer], announcement)

    def find_closest(self, node: SimulatedNode, key: bytes) -> list[Contact]:
        """As `Walker.find_closest`."""
        return self._walk(node, Message(MessageType.FIND_NODE, key), lambda _answer: False).lookup.closest()

    def find_providers(self, node: SimulatedNode, key: bytes, *, count: int = 1) -> Found:
        """Search until *count* providers are known."""
        return self._walk(node, Message(MessageType.GET_PROVIDERS, key), lambda answer: len(answer.providers) >= count)

    def table_sizes(self) -> list[int]:
        """Of the living nodes."""
        return sorted(len(node.table) for node in self.living())

    # -------------------------------------------------------------------- inside

    def _meet(self, node: SimulatedNode, other: SimulatedNode) -> None:
        node.table.alive(other.contact, now=self.now)
        other.table.alive(node.contact, now=self.now)

    def _deliver(self, sender: SimulatedNode, receiver: SimulatedNode, request: Message) -> Message | None:
        receiver.answered += 1
        # Whoever dials us is identified; a server it is too.
        receiver.table.alive(sender.contact, now=self.now)
        answer = receiver.answerer.answer(sender.contact.peer, self._carry(request))
        return self._carry(answer) if answer is not None else None

    def _carry(self, message: Message) -> Message:
        return decode_message(encode_message(message)) if self._wire else message

    def _walk(self, node: SimulatedNode, request: Message, is_enough: Callable[[Message], bool]) -> Found:
        position = position_of(request.key)
        lookup = Lookup(
            position, node.table.closest(position, self._k), ours=node.contact.peer, k=self._k, alpha=self._alpha
        )
        started, order = self.now, count()
        agenda: list[tuple[float, int, Contact]] = []
        providers: tuple[Contact, ...] = ()
        hops: int | None = None
        first_s: float | None = None
        enough = False
        while not enough and not lookup.is_finished(now=self.now):
            for contact in lookup.begin_queries(now=self.now):
                took = self.rng.uniform(0.02, 0.18) if self._by_peer[contact.peer].alive else 10.0
                heapq.heappush(agenda, (self.now + took, next(order), contact))
            slow_at = lookup.next_deadline(now=self.now)
            if slow_at is not None and (not agenda or slow_at < agenda[0][0]):
                self.now = slow_at
                continue
            self.now, _, contact = heapq.heappop(agenda)
            receiver = self._by_peer[contact.peer]
            answer = self._deliver(node, receiver, request) if receiver.alive else None
            if answer is None:
                lookup.fail(contact.peer)
                node.table.failed(contact.peer)
                continue
            lookup.receive(contact.peer, answer.closer)
            node.table.alive(contact, now=self.now)
            if answer.providers and hops is None:
                hops, first_s, providers = lookup.hops_of(contact.peer), self.now - started, answer.providers
            enough = is_enough(answer)
        node.table.looked_at(position, now=self.now)
        return Found(lookup, providers, hops, self.now - started, first_s)

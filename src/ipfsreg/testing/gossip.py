"""Many gossipsub routers in one process, without a network and without waiting: a simulation that can be repeated.

    swarm = GossipSwarm(50, seed=1)
    swarm.connect_randomly(degree=10)
    swarm.join_all("names"); swarm.run(5)
    swarm.publish(0, b"hello"); swarm.run(2)
    assert swarm.reached(b"hello") == set(range(50))

Every RPC is encoded, delayed, and decoded on its way, so what runs is the wire format too. Signatures are left out:
`screening` has its own tests.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from itertools import count

from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.events import Deliver, Event, Send
from ipfsreg.pubsub.messages import Message, Rpc, decode_rpc, encode_rpc
from ipfsreg.pubsub.parameters import Dialect, RouterSettings
from ipfsreg.pubsub.router import Router
from ipfsreg.pubsub.screening import Verdict


def numbered_peer(number: int) -> PeerId:
    """The peer ID of a simulated node."""
    return PeerId(b"\x00\x24" + number.to_bytes(36, "big"))


def unsigned_message(author: PeerId, seqno: int, topic: str, data: bytes) -> Message:
    """A message whose signature nobody checks."""
    return Message(author.raw, seqno.to_bytes(8, "big"), topic, data, b"unchecked")


class GossipSwarm:
    """Routers, the links between them, and one clock."""

    def __init__(
        self, size: int, *, seed: int, settings: RouterSettings | None = None, dialect: Dialect = Dialect.V1_1
    ) -> None:
        self.now = 1000.0
        self._rng = random.Random(seed)
        self._settings = settings or RouterSettings()
        self._dialect = dialect
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._seqno = count(1)
        self.links: set[frozenset[int]] = set()
        self.routers: dict[int, Router] = {}
        self.delivered: dict[int, dict[bytes, float]] = {}
        """Per node what it was given, and when."""
        self.bytes_sent = 0
        self.lose: Callable[[int, int, Rpc], bool] = lambda _sender, _receiver, _rpc: False
        """Says which RPCs are lost on the way."""
        for _ in range(size):
            self.add_node()

    def add_node(self) -> int:
        """A new node, connected to nobody."""
        number = len(self.delivered)
        rng = random.Random(self._rng.random())
        self.routers[number] = Router(
            numbered_peer(number), self._settings, judge=lambda _message, _now: Verdict.ACCEPT, rng=rng
        )
        self.delivered[number] = {}
        self._after(self._rng.random() * self._settings.heartbeat_s, lambda: self._beat(number))
        return number

    # -------------------------------------------------------------------- shape

    def connect(self, one: int, other: int) -> None:
        """Link two nodes; both notice."""
        self.links.add(frozenset((one, other)))
        self._perform(one, self.routers[one].add_peer(numbered_peer(other), self._dialect))
        self._perform(other, self.routers[other].add_peer(numbered_peer(one), self._dialect))

    def connect_randomly(self, *, degree: int) -> None:
        """Give every node at least *degree* links."""
        for number in self.routers:
            self.connect_to_some(number, degree=degree)

    def connect_to_some(self, number: int, *, degree: int) -> None:
        """Link *number* to random others until it has *degree* links."""
        others = [other for other in self.routers if other != number and frozenset((number, other)) not in self.links]
        self._rng.shuffle(others)
        for other in others[: max(0, degree - sum(number in link for link in self.links))]:
            self.connect(number, other)

    def kill(self, number: int) -> None:
        """A node is gone; those linked to it notice."""
        del self.routers[number]
        for link in [link for link in self.links if number in link]:
            self.links.discard(link)
            (other,) = link - {number}
            self._perform(other, self.routers[other].remove_peer(numbered_peer(number), now=self.now))

    # --------------------------------------------------------------------- life

    def join_all(self, topic: str) -> None:
        """Everybody enters the topic."""
        for number in self.routers:
            self.join(number, topic)

    def join(self, number: int, topic: str) -> None:
        """One node enters the topic."""
        self._perform(number, self.routers[number].join(topic, now=self.now))

    def publish(self, number: int, data: bytes, topic: str = "names") -> Message:
        """One node publishes."""
        message = unsigned_message(numbered_peer(number), next(self._seqno), topic, data)
        self.delivered[number][data] = self.now
        self._perform(number, self.routers[number].publish(message, now=self.now))
        return message

    def reached(self, data: bytes) -> set[int]:
        """The living nodes that have *data*."""
        return {number for number in self.routers if data in self.delivered[number]}

    def meshes(self, topic: str = "names") -> dict[int, list[int]]:
        """Per living node the nodes in its mesh."""
        return {
            number: [int.from_bytes(peer.raw[2:], "big") for peer in router.mesh(topic)]
            for number, router in self.routers.items()
        }

    def run(self, seconds: float) -> None:
        """Let *seconds* pass."""
        end = self.now + seconds
        while self._agenda and self._agenda[0][0] <= end:
            self.now, _, act = heapq.heappop(self._agenda)
            act()
        self.now = end

    # ------------------------------------------------------------------- inside

    def _after(self, delay_s: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + delay_s, next(self._order), act))

    def _beat(self, number: int) -> None:
        if number in self.routers:
            self._perform(number, self.routers[number].heartbeat(now=self.now))
            self._after(self._settings.heartbeat_s, lambda: self._beat(number))

    def _perform(self, number: int, events: Iterable[Event]) -> None:
        for event in events:
            if isinstance(event, Deliver):
                self.delivered[number].setdefault(event.message.data, self.now)
            elif isinstance(event, Send):
                data = encode_rpc(event.rpc)
                for peer in event.peers:
                    self._send(number, int.from_bytes(peer.raw[2:], "big"), event.rpc, data)

    def _send(self, sender: int, receiver: int, rpc: Rpc, data: bytes) -> None:
        self.bytes_sent += len(data)
        if not self.lose(sender, receiver, rpc):
            # One delay for all keeps the order of each link, as a stream does.
            self._after(0.01, lambda: self._receive(sender, receiver, data))

    def _receive(self, sender: int, receiver: int, data: bytes) -> None:
        if receiver not in self.routers or frozenset((sender, receiver)) not in self.links:
            return
        router, peer, rpc = self.routers[receiver], numbered_peer(sender), decode_rpc(data)
        self._perform(receiver, router.receive_control(peer, rpc, now=self.now))
        for message in rpc.messages:
            self._perform(receiver, router.receive_message(peer, message, now=self.now))

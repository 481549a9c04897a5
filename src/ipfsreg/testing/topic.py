"""A topic in memory: the `Topic` promises without a network, with loss and partitions.

    mesh = MemoryMesh()
    async with mesh.join("names", peer_of("alice")) as alice, mesh.join("names", peer_of("bob")) as bob:
        await alice.publish(b"...")

Everybody hears everybody who is not cut off from them; nothing is passed on by a third. `cut` and `heal` part and join
two peers, `lose` drops messages, and a reader that leaves *max_waiting* messages is told what it missed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import trio

from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, TopicEvent, TopicMessage


class MemoryTopic:
    """One peer's place in a topic. Keeps `Topic`."""

    def __init__(self, mesh: MemoryMesh, name: str, peer: PeerId, max_waiting: int) -> None:
        self.name = name
        self.peer = peer
        self._mesh = mesh
        self._max_waiting = max_waiting
        self._waiting: deque[TopicEvent] = deque()
        self._dropped = 0
        self._wake = trio.Event()
        self.published: list[bytes] = []
        """What this peer said, for tests that look."""

    async def publish(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        self.published.append(data)
        self._mesh.carry(self, data)

    async def events(self) -> AsyncIterator[TopicEvent]:
        while True:
            while not self._waiting and not self._dropped:
                self._wake = trio.Event()
                await self._wake.wait()
            if self._dropped:
                dropped, self._dropped = self._dropped, 0
                yield MessagesDropped(dropped)
            else:
                yield self._waiting.popleft()

    def peers(self) -> list[PeerId]:
        return [other.peer for other in self._mesh.others(self)]

    def push(self, event: TopicEvent) -> None:
        """Let *event* happen, as a peer would cause it."""
        if len(self._waiting) >= self._max_waiting and isinstance(event, TopicMessage):
            self._dropped += 1
        else:
            self._waiting.append(event)
        self._wake.set()


class MemoryMesh:
    """All topics, and what lies between their peers."""

    def __init__(self) -> None:
        self._topics: list[MemoryTopic] = []
        self._cut: set[frozenset[PeerId]] = set()
        self.loses: Callable[[PeerId, PeerId, bytes], bool] = lambda author, reader, data: False
        """Whether a message on its way to *reader* is lost."""

    @asynccontextmanager
    async def join(self, name: str, peer: PeerId, *, max_waiting: int = 1000) -> AsyncIterator[MemoryTopic]:
        """Let *peer* be in the topic while the block lasts."""
        topic = MemoryTopic(self, name, peer, max_waiting)
        self._topics.append(topic)
        for other in self.others(topic):
            topic.push(PeerJoined(other.peer))
            other.push(PeerJoined(peer))
        try:
            yield topic
        finally:
            self._topics.remove(topic)

    def others(self, topic: MemoryTopic) -> list[MemoryTopic]:
        """Who is in the same topic and not cut off."""
        return [
            other
            for other in self._topics
            if other is not topic and other.name == topic.name and frozenset((other.peer, topic.peer)) not in self._cut
        ]

    def carry(self, author: MemoryTopic, data: bytes) -> None:
        """Bring *data* to everybody who hears *author*."""
        for other in self.others(author):
            if not self.loses(author.peer, other.peer, data):
                other.push(TopicMessage(data, author.peer, author.peer))

    def cut(self, one: PeerId, other: PeerId) -> None:
        """They hear each other no more."""
        self._cut.add(frozenset((one, other)))

    def heal(self, one: PeerId, other: PeerId) -> None:
        """They hear each other again, and learn that they do."""
        pair = frozenset((one, other))
        if pair in self._cut:
            self._cut.remove(pair)
            for topic in self._topics:
                if topic.peer in pair:
                    for there in self.others(topic):
                        if there.peer in pair:
                            topic.push(PeerJoined(there.peer))

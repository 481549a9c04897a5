"""What waits for the reader of one topic. It is bounded, and says what it had to drop."""

from __future__ import annotations

from collections import deque

import trio

from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, TopicEvent, TopicMessage

MAX_JOINED = 4096
"""Peers that joined and wait to be told; more can only be peers that came and went, the oldest are forgotten."""

MAX_RUN = 16
"""Events the reader gets in a row before others get a turn."""


class Subscription:
    """The queue between the network and one reader. The network never waits for the reader."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._messages: deque[TopicMessage] = deque()
        self._bytes = 0
        self._dropped = 0
        self._joined: dict[PeerId, None] = {}
        self._closed = False
        self._wake = trio.Event()
        self._run_length = 0
        self.dropped_in_all = 0

    def put_message(self, message: TopicMessage) -> None:
        """Queue *message*. The oldest make room: what is newest names the most."""
        self._messages.append(message)
        self._bytes += len(message.data)
        while len(self._messages) > self._max_messages or self._bytes > self._max_bytes:
            self._bytes -= len(self._messages.popleft().data)
            self._dropped += 1
            self.dropped_in_all += 1
        self._wake.set()

    def put_joined(self, peer: PeerId) -> None:
        """Tell that *peer* is in the topic; once, however often it comes and goes before that is read."""
        self._joined[peer] = None
        if len(self._joined) > MAX_JOINED:
            del self._joined[next(iter(self._joined))]
        self._wake.set()

    def close(self) -> None:
        """The topic is left: the reader's loop ends, what waits is dropped."""
        self._closed = True
        self._wake.set()

    def _next(self) -> TopicEvent | None:
        if self._dropped:
            count, self._dropped = self._dropped, 0
            return MessagesDropped(count)
        if self._joined:
            peer = next(iter(self._joined))
            del self._joined[peer]
            return PeerJoined(peer)
        if self._messages:
            message = self._messages.popleft()
            self._bytes -= len(message.data)
            return message
        return None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> TopicEvent:
        """What happened next; the iteration ends when the topic is left. Cancelled: nothing is lost."""
        # Others get their turn while it waits for the next message, and now and then while there are many.
        self._run_length += 1
        if self._run_length < MAX_RUN:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._run_length = 0
            await trio.lowlevel.checkpoint()
        while not self._closed:
            event = self._next()
            if event is not None:
                return event
            self._wake = trio.Event()
            self._run_length = 0
            await self._wake.wait()
        raise StopAsyncIteration

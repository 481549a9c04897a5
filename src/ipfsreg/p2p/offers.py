"""The protocols we offer, and the streams that wait to be taken by whoever offers them."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager

import trio

from ipfsreg.p2p.interface import Stream


class _Queue:
    """Streams that wait for one offer's owner."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting: deque[Stream] = deque()
        self._wake = trio.Event()

    def put(self, stream: Stream) -> bool:
        """False if too many wait already."""
        if len(self._waiting) >= self._max_waiting:
            return False
        self._waiting.append(stream)
        self._wake.set()
        return True

    def __aiter__(self) -> _Queue:
        return self

    # Not an async generator: cancelling one while it waits would end it for good.
    async def __anext__(self) -> Stream:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        return self._waiting.popleft()

    def drain(self) -> list[Stream]:
        streams = list(self._waiting)
        self._waiting.clear()
        return streams


class Offers(Collection[str]):
    """What we speak: a live set of protocol names, each with a queue of the streams opened on it."""

    def __init__(self) -> None:
        self._queues: dict[str, _Queue] = {}
        self._changed = trio.Event()

    def __contains__(self, protocol: object) -> bool:
        return protocol in self._queues

    def __iter__(self) -> Iterator[str]:
        return iter(self._queues)

    def __len__(self) -> int:
        return len(self._queues)

    async def wait_changed(self) -> None:
        """Return after the next change of the set."""
        await self._changed.wait()

    async def deliver(self, stream: Stream) -> None:
        """Hand *stream*, negotiated on one of our protocols, to whoever offers it; reset it if nobody has room."""
        queue = self._queues.get(stream.protocol)
        if queue is None or not queue.put(stream):
            await stream.reset()

    @asynccontextmanager
    async def accept(self, protocols: Sequence[str], *, max_waiting: int) -> AsyncIterator[AsyncIterator[Stream]]:
        """Keeps the promise of `Network.accept`."""
        taken = [protocol for protocol in protocols if protocol in self._queues]
        assert not taken, f"{', '.join(taken)} offered twice"
        queue = _Queue(max_waiting)
        self._queues.update(dict.fromkeys(protocols, queue))
        self.tell_changed()
        try:
            yield queue
        finally:
            for protocol in protocols:
                del self._queues[protocol]
            self.tell_changed()
            for stream in queue.drain():
                await stream.reset()

    def tell_changed(self) -> None:
        """Wake those who tell peers what we are."""
        self._changed.set()
        self._changed = trio.Event()

"""Comings and goings of peers, told to any number of readers, each at its own pace.

What waits for a slow reader is folded to the last state of each peer, so that memory is bounded by the number of
peers and no reader can hold up the network.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from ipfsreg.p2p.interface import PeerChange, PeerEvent
from ipfsreg.peer_id import PeerId


class _Reader:
    """One reader, and what it has not been told yet."""

    def __init__(self) -> None:
        self._waiting: dict[PeerId, list[PeerChange]] = {}
        self._wake = trio.Event()

    def push(self, peer: PeerId, change: PeerChange) -> None:
        waiting = self._waiting.setdefault(peer, [])
        if change is PeerChange.DISCONNECTED:
            # Whatever it did before it went no longer matters.
            waiting.clear()
        if change not in waiting:
            waiting.append(change)
        self._wake.set()

    def __aiter__(self) -> _Reader:
        return self

    # Not an async generator: cancelling one while it waits would end it for good.
    async def __anext__(self) -> PeerEvent:
        await trio.lowlevel.checkpoint()
        while not self._waiting:
            self._wake = trio.Event()
            await self._wake.wait()
        peer, changes = next(iter(self._waiting.items()))
        event = PeerEvent(peer, changes.pop(0))
        if not changes:
            del self._waiting[peer]
        return event


class PeerEvents:
    """Everybody who wants to hear of peers."""

    def __init__(self) -> None:
        self._readers: list[_Reader] = []

    def tell(self, peer: PeerId, change: PeerChange) -> None:
        """Tell every reader. Never waits."""
        for reader in self._readers:
            reader.push(peer, change)

    @contextmanager
    def read(self, connected: list[PeerId], identified: list[PeerId]) -> Iterator[AsyncIterator[PeerEvent]]:
        """A new reader, that begins with who is there already."""
        reader = _Reader()
        for peer in connected:
            reader.push(peer, PeerChange.CONNECTED)
        for peer in identified:
            reader.push(peer, PeerChange.IDENTIFIED)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)

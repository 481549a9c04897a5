"""What publish/subscribe promises to the packages above it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from ipfsreg.peer_id import PeerId


@dataclass(frozen=True, slots=True)
class TopicMessage:
    """One message whose signature was checked."""

    data: bytes
    author: PeerId
    """Who signed it."""
    received_from: PeerId
    """Who passed it on to us; the author, or a peer between."""


@dataclass(frozen=True, slots=True)
class PeerJoined:
    """A peer told us that it is in the topic, also everybody who was there when the block began."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class MessagesDropped:
    """The reader was too slow: *count* messages were dropped here. Ask peers again for what they said."""

    count: int


TopicEvent = TopicMessage | PeerJoined | MessagesDropped


class Topic(Protocol):
    """A topic we are subscribed to."""

    @property
    def name(self) -> str:
        """As it stands on the wire."""

    async def publish(self, data: bytes) -> None:
        """Sign *data* and hand it to the mesh. Returns when queued to peers, also when there are none yet."""

    def events(self) -> AsyncIterator[TopicEvent]:
        """What happens in the topic, our own messages excepted. One reader."""

    def peers(self) -> list[PeerId]:
        """Connected peers known to be in the topic."""


class PubSub(Protocol):
    """Publish/subscribe over the swarm."""

    def join(self, name: str) -> AbstractAsyncContextManager[Topic]:
        """Be in the topic *name* while the block lasts. Messages above the size limit are refused in publish."""

"""What waits to be sent to one peer, and what gives way when it is too much.

Control comes first, then our own messages, then what we forward, then gossip. Control and our own messages are never
dropped: a peer that does not take them for so long that they pass the hard limit is *stuck*, and loses its stream.
Forwarded messages that find no room are dropped and named, so that the peer can be told about them later.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from ipfsreg.pubsub.events import Urgency
from ipfsreg.pubsub.messages import Message

ORDER = (Urgency.CONTROL, Urgency.OWN, Urgency.FORWARD, Urgency.GOSSIP)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutboxSettings:
    """Limits of one peer's queue; frames are shared between peers, so these are not all memory."""

    forward_frames: int = 4096
    forward_bytes: int = 8 * 1024 * 1024
    gossip_frames: int = 64
    gossip_bytes: int = 1024 * 1024
    kept_soft_frames: int = 1024
    kept_soft_bytes: int = 4 * 1024 * 1024
    """Above: publishers wait a little."""
    kept_hard_frames: int = 16_384
    kept_hard_bytes: int = 32 * 1024 * 1024
    """Above: the peer is stuck."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One RPC, encoded, with its length prefix."""

    data: bytes
    urgency: Urgency
    messages: tuple[Message, ...] = ()


class Outbox:
    """The queue of one peer."""

    def __init__(self, settings: OutboxSettings) -> None:
        self._settings = settings
        self._frames: dict[Urgency, deque[Frame]] = {urgency: deque() for urgency in ORDER}
        self._bytes = dict.fromkeys(ORDER, 0)

    def __bool__(self) -> bool:
        return any(self._frames.values())

    def put(self, frame: Frame) -> bool:
        """Queue *frame*; False if it found no room and was dropped."""
        settings, urgency = self._settings, frame.urgency
        if urgency is Urgency.FORWARD and self._is_above(urgency, settings.forward_frames, settings.forward_bytes):
            return False
        if urgency is Urgency.GOSSIP and self._is_above(urgency, settings.gossip_frames, settings.gossip_bytes):
            return False
        self._frames[urgency].append(frame)
        self._bytes[urgency] += len(frame.data)
        return True

    def _is_above(self, urgency: Urgency, frames: int, size: int) -> bool:
        return len(self._frames[urgency]) >= frames or self._bytes[urgency] >= size

    def _keeps_above(self, frames: int, size: int) -> bool:
        return any(self._is_above(urgency, frames, size) for urgency in (Urgency.CONTROL, Urgency.OWN))

    @property
    def is_crowded(self) -> bool:
        """Whether publishers should wait for this peer a little."""
        return self._keeps_above(self._settings.kept_soft_frames, self._settings.kept_soft_bytes)

    @property
    def is_stuck(self) -> bool:
        """Whether what must not be dropped has passed the hard limit."""
        return self._keeps_above(self._settings.kept_hard_frames, self._settings.kept_hard_bytes)

    def take(self, max_bytes: int) -> list[Frame]:
        """Take the most urgent frames, at least one if there is any, up to *max_bytes* in all."""
        taken: list[Frame] = []
        size = 0
        for urgency in ORDER:
            queue = self._frames[urgency]
            while queue and (not taken or size + len(queue[0].data) <= max_bytes):
                frame = queue.popleft()
                self._bytes[urgency] -= len(frame.data)
                size += len(frame.data)
                taken.append(frame)
            if queue:
                break
        return taken

    def restart(self, unsent: list[Frame]) -> None:
        """The stream broke with *unsent* in flight: keep our own messages for the next one, forget the rest.

        Control was said to a stream that is gone; what was forwarded is told about by gossip.
        """
        own = [frame for frame in unsent if frame.urgency is Urgency.OWN]
        own += self._frames[Urgency.OWN]
        # A peer that is stuck must not begin stuck again: the oldest go, they are the first its peers will tell it.
        while own and (
            len(own) > self._settings.kept_soft_frames
            or sum(len(frame.data) for frame in own) > self._settings.kept_soft_bytes
        ):
            del own[: max(1, len(own) // 4)]
        for urgency in ORDER:
            self._frames[urgency].clear()
            self._bytes[urgency] = 0
        for frame in own:
            self.put(frame)

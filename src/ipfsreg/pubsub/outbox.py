"""What waits to be sent to one peer, and what gives way when it is too much.

Control comes first, then our own messages, then what we forward, then gossip. Control and our own messages are never
dropped: a peer that does not take them for so long that they pass the hard limit is *stuck*, and loses its stream.
Forwarded messages that find no room are dropped and named, so that the peer can be told about them later; and what a
peer turns out to have while it waits here is not sent at all.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ipfsreg.ipld.varint import encode_varint
from ipfsreg.pubsub.events import Urgency
from ipfsreg.pubsub.messages import Message


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


MAX_JOINED_BYTES = 64 * 1024
"""Messages joined into one RPC: enough to spread what an RPC costs, and far below what every implementation takes."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One RPC, encoded."""

    data: bytes
    urgency: Urgency
    message: Message | None = None
    """The message in it, if that is all there is."""


def pack(frames: Iterable[Frame]) -> bytes:
    """*frames* as they travel: RPCs, each behind its length.

    Neighbours with nothing but a message become one RPC; protobuf has it that two bodies in a row are the RPC of both.
    An RPC costs its reader, here or elsewhere, as much as several messages it knows.
    """
    parts: list[bytes] = []
    run: list[bytes] = []
    size = 0
    for frame in frames:
        if run and (frame.message is None or size + len(frame.data) > MAX_JOINED_BYTES):
            parts += (encode_varint(size), *run)
            run, size = [], 0
        if frame.message is None:
            parts += (encode_varint(len(frame.data)), frame.data)
        else:
            run.append(frame.data)
            size += len(frame.data)
    if run:
        parts += (encode_varint(size), *run)
    return b"".join(parts)


class _Queue:
    """Frames of one urgency, first in, first out; those with a message can be found by its id."""

    def __init__(self) -> None:
        self.frames: OrderedDict[bytes | int, Frame] = OrderedDict()
        self._count = 0
        self.size = 0

    def __iter__(self) -> Iterator[Frame]:
        return iter(self.frames.values())

    def append(self, frame: Frame) -> None:
        self._count += 1
        key = frame.message.id if frame.message else self._count
        if key not in self.frames:
            self.frames[key] = frame
            self.size += len(frame.data)

    def first(self) -> Frame:
        return next(iter(self.frames.values()))

    def pop_first(self) -> Frame:
        _, frame = self.frames.popitem(last=False)
        self.size -= len(frame.data)
        return frame

    def cancel(self, id_: bytes) -> None:
        frame = self.frames.pop(id_, None)
        if frame is not None:
            self.size -= len(frame.data)

    def is_above(self, frames: int, size: int) -> bool:
        return len(self.frames) >= frames or self.size >= size


class Outbox:
    """The queue of one peer."""

    def __init__(self, settings: OutboxSettings) -> None:
        self._settings = settings
        self._queues = [_Queue() for _ in Urgency]

    def __bool__(self) -> bool:
        return any(queue.frames for queue in self._queues)

    def put(self, frame: Frame) -> bool:
        """Queue *frame*; False if it found no room and was dropped."""
        settings, queue = self._settings, self._queues[frame.urgency]
        if frame.urgency is Urgency.FORWARD and queue.is_above(settings.forward_frames, settings.forward_bytes):
            return False
        if frame.urgency is Urgency.GOSSIP and queue.is_above(settings.gossip_frames, settings.gossip_bytes):
            return False
        queue.append(frame)
        return True

    def cancel(self, id_: bytes) -> None:
        """The peer has the message *id_*: do not forward it, if that has not happened."""
        self._queues[Urgency.FORWARD].cancel(id_)

    def _keeps_above(self, frames: int, size: int) -> bool:
        control, own = self._queues[Urgency.CONTROL], self._queues[Urgency.OWN]
        return control.is_above(frames, size) or own.is_above(frames, size)

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
        for queue in self._queues:
            while queue.frames and (not taken or size + len(queue.first().data) <= max_bytes):
                taken.append(queue.pop_first())
                size += len(taken[-1].data)
            if queue.frames:
                break
        return taken

    def restart(self, unsent: list[Frame]) -> None:
        """The stream broke with *unsent* in flight: keep our own messages for the next one, forget the rest.

        Control was said to a stream that is gone; what was forwarded is told about by gossip.
        """
        own = [frame for frame in unsent if frame.urgency is Urgency.OWN]
        own += self._queues[Urgency.OWN]
        # A peer that is stuck must not begin stuck again: the oldest go, they are the first its peers will tell it.
        while own and (
            len(own) > self._settings.kept_soft_frames
            or sum(len(frame.data) for frame in own) > self._settings.kept_soft_bytes
        ):
            del own[: max(1, len(own) // 4)]
        self._queues = [_Queue() for _ in Urgency]
        for frame in own:
            self.put(frame)

"""What the router remembers of messages: which it has seen, and which it can still give."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.messages import Message


class SeenCache:
    """Ids of messages seen, for *ttl_s* seconds from first sight and at most *max_ids* of them, oldest out first."""

    def __init__(self, ttl_s: float, max_ids: int) -> None:
        self._ttl_s = ttl_s
        self._max_ids = max_ids
        self._seen: dict[bytes, float] = {}

    def __contains__(self, id_: bytes) -> bool:
        return id_ in self._seen

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, id_: bytes, *, now: float) -> None:
        """Remember *id_*; an id already there keeps its time."""
        self._seen.setdefault(id_, now)
        if len(self._seen) > self._max_ids:
            del self._seen[next(iter(self._seen))]

    def expire(self, *, now: float) -> None:
        """Forget what is too old."""
        while self._seen:
            oldest = next(iter(self._seen))
            if now - self._seen[oldest] < self._ttl_s:
                return
            del self._seen[oldest]


@dataclass(slots=True)
class _Entry:
    message: Message
    asked: dict[PeerId, int] = field(default_factory=dict)


class MessageCache:
    """The messages of the last *windows* heartbeats, at most *max_bytes* of them; the newest *gossip_windows* are
    worth telling about."""

    def __init__(self, windows: int, gossip_windows: int, max_bytes: int) -> None:
        self._windows: deque[dict[bytes, _Entry]] = deque([{}], maxlen=windows)
        self._gossip_windows = gossip_windows
        self._max_bytes = max_bytes
        self._bytes = 0

    def put(self, message: Message) -> None:
        """Keep *message*, a new one; the oldest make room."""
        self._windows[0][message.id] = _Entry(message)
        self._bytes += len(message.encoded)
        while self._bytes > self._max_bytes:
            window = next(window for window in reversed(self._windows) if window)
            self._drop(window.pop(next(iter(window))))

    def _drop(self, entry: _Entry) -> None:
        self._bytes -= len(entry.message.encoded)

    def _find(self, id_: bytes) -> _Entry | None:
        return next((window[id_] for window in self._windows if id_ in window), None)

    def __contains__(self, id_: bytes) -> bool:
        return self._find(id_) is not None

    def give(self, id_: bytes, peer: PeerId, *, at_most: int) -> Message | None:
        """The message *id_* for *peer*, or None if it is gone or the peer has had it *at_most* times."""
        entry = self._find(id_)
        if entry is None or entry.asked.get(peer, 0) >= at_most:
            return None
        entry.asked[peer] = entry.asked.get(peer, 0) + 1
        return entry.message

    def take_back(self, id_: bytes, peer: PeerId) -> None:
        """What was given to *peer* never left: it may ask once more."""
        entry = self._find(id_)
        if entry is not None and entry.asked.get(peer):
            entry.asked[peer] -= 1

    def recent_ids(self, topic: str) -> list[bytes]:
        """Ids worth telling about, newest window first."""
        newest = list(self._windows)[: self._gossip_windows]
        return [id_ for window in newest for id_, entry in window.items() if entry.message.topic == topic]

    def shift(self) -> None:
        """A heartbeat has passed."""
        if len(self._windows) == self._windows.maxlen:
            for entry in self._windows[-1].values():
                self._drop(entry)
        self._windows.appendleft({})

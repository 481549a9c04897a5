"""What is looked at before a message counts: its signature, its author, and how much of it there is.

Size is bounded before, by the reader of the stream. Duplicates never get here: the router knows their ids.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from enum import Enum

from ipfsreg.errors import MalformedData
from ipfsreg.p2p.identity import peer_id_of, public_key_in, verify
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.messages import Message

MAX_AUTHORS = 4096
"""Authors whose rate is remembered; past it the one longest silent is forgotten."""


class Verdict(Enum):
    """What becomes of a message."""

    ACCEPT = "accept"
    IGNORE = "ignore"
    """Neither delivered nor passed on, and nobody's fault."""
    REJECT = "reject"
    """Whoever passed it on did not check it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScreenSettings:
    """Who may speak, and how much."""

    authors: frozenset[PeerId] | None = None
    """Whose messages are taken; None: everybody's who signs."""
    author_rate_per_s: float = 1000.0
    """Messages a second of one author, as a long-term mean; more is ignored, which stops a flood at its first hop."""
    author_burst: float = 10_000.0
    """Messages one author may send at once after a silence."""


class Bucket:
    """A token bucket: *rate* units a second, at most *burst* saved up. It starts full."""

    __slots__ = ("_burst", "_filled_at", "_level", "_rate")

    def __init__(self, rate: float, burst: float, *, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._level = burst
        self._filled_at = now

    def _fill(self, now: float) -> None:
        self._level = min(self._burst, self._level + max(0.0, now - self._filled_at) * self._rate)
        self._filled_at = now

    def take(self, cost: float, *, now: float) -> bool:
        """Take *cost* units if they are there."""
        self._fill(now)
        if self._level < cost:
            return False
        self._level -= cost
        return True

    def owe(self, cost: float, *, now: float) -> float:
        """Take *cost* units, into debt if need be; return the seconds until the debt is paid."""
        self._fill(now)
        self._level -= cost
        return max(0.0, -self._level / self._rate)


class Screen:
    """Judges messages."""

    def __init__(self, settings: ScreenSettings) -> None:
        self._settings = settings
        self._buckets: OrderedDict[bytes, Bucket] = OrderedDict()

    def judge(self, message: Message, *, now: float) -> Verdict:
        """Check who signed *message* and whether its author may say it. One signature check: about 70 µs."""
        try:
            author = PeerId.decode(message.author)
        except MalformedData:
            return Verdict.REJECT
        allowed = self._settings.authors
        if allowed is not None and author not in allowed:
            return Verdict.IGNORE
        if not is_signed_by(author, message):
            return Verdict.REJECT
        # Only proved authors are charged: a forger must not be able to use up somebody else's rate.
        return Verdict.ACCEPT if self._take(message.author, now) else Verdict.IGNORE

    def _take(self, author: bytes, now: float) -> bool:
        bucket = self._buckets.get(author)
        if bucket is None:
            settings = self._settings
            bucket = self._buckets[author] = Bucket(settings.author_rate_per_s, settings.author_burst, now=now)
            if len(self._buckets) > MAX_AUTHORS:
                self._buckets.popitem(last=False)
        else:
            self._buckets.move_to_end(author)
        return bucket.take(1.0, now=now)


def is_signed_by(author: PeerId, message: Message) -> bool:
    """Whether *message* carries a signature of *author*, with a key that is the author's (StrictSign)."""
    inlined = public_key_in(author)
    key = message.key or inlined
    if key is None or (inlined is not None and key != inlined):
        return False
    try:
        if inlined is None and peer_id_of(key) != author:
            return False
    except MalformedData:
        return False
    return verify(key, message.signed_bytes, message.signature)

"""One peer as a source of blocks: what it was asked for, and how fast it has shown to be.

Everything is measured while something is asked of it: the rate from the bytes that come in, also of blocks that are
not whole yet; the patience from the longest pause seen lately, so that a peer that serves fifteen others is not taken
for dead and a quick one that stops is noticed quickly.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice

from ipfsreg.bitswap.messages import Entry
from ipfsreg.bitswap.settings import MIB
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

MAX_LISTED = 1000
"""Wants of ours on one peer's list: peers need not remember more than 1,024."""

_MESSAGE_ENTRIES = 512
_ASSUMED_RATE = 4.0 * MIB
_LEAD_S = 0.25
"""How far ahead a peer is asked beyond its latency."""
_PACE_S = 0.5
"""A block that began to come so long ago shows how fast it comes."""
_WINDOW_S = 0.25
"""Busy time after which the rate is measured anew."""
_FIRST_PATIENCE_S = 1.0
_LEAST_PATIENCE_S = 1.0
_MOST_PATIENCE_S = 15.0
_LONGEST_PENALTY_S = 60.0


class Kind(Enum):
    """What we said to a peer about one CID."""

    WANT_BLOCK = auto()
    WANT_HAVE = auto()
    CANCEL = auto()


@dataclass(slots=True)
class Ask:
    """One block asked of this peer."""

    cid: Cid
    at: float
    size: int
    """Bytes, as estimated when it was asked."""


class Source:
    """One peer as a source of blocks."""

    def __init__(self, peer: PeerId) -> None:
        self.peer = peer
        self.asks: dict[Cid, Ask] = {}
        self.listed: dict[Cid, tuple[Kind, float | None]] = {}
        """What stands on its list of our wants, and since when; None where it has answered already."""
        self.outstanding = 0
        """Bytes asked for and not here, as estimated."""
        self.rate: float | None = None
        """Bytes per second."""
        self.latency: float | None = None
        """Seconds from a question to its answer."""
        self.stalled = False
        """Nothing came for longer than it ever took before; not asked for more until something does."""
        self.blocks = 0
        """Blocks we had asked for that it delivered."""
        self.broken_promises = 0
        """Blocks it said it has and did not send in time, since the last one it did send."""
        self._broken_since = 0.0
        self._stalls = 0
        self.retry_at = 0.0
        self.offences = 0
        """Blocks that nobody here had asked for."""
        self.partial = 0
        """Bytes that came since the last whole block: of one that is on its way."""
        self._partial_since = 0.0
        self._pending: dict[Cid, tuple[Kind, int]] = {}
        self._retell = False
        self._busy_since: float | None = None
        self._busy_s = 0.0
        self._bytes = 0
        self.last_byte_at = float("-inf")
        """When the last byte of a block came that we had asked for."""
        self._quiet_since = 0.0
        self._pause = 0.0
        self._pause_at = 0.0

    # -------------------------------------------------------------- telling

    @property
    def has_news(self) -> bool:
        """Whether it has to be told something."""
        return bool(self._pending) or self._retell

    @property
    def list_room(self) -> int:
        """How many more wants may be put on its list."""
        return MAX_LISTED - len(self.listed) - len(self._pending)

    def tell(self, cid: Cid, kind: Kind, priority: int = 1) -> None:
        """Say this in the next message; the last word about a CID counts."""
        if kind is Kind.CANCEL and cid not in self.listed:
            self._pending.pop(cid, None)
        else:
            self._pending[cid] = (kind, priority)

    def tell_all_again(self) -> None:
        """What was said may not have arrived: begin the next message with the whole list."""
        for cid, (kind, _) in self.listed.items():
            self._pending.setdefault(cid, (kind, 1))
        self.listed.clear()
        self._retell = True

    def take_news(self, now: float) -> tuple[list[Entry], bool]:
        """What to tell it now, cancels first, and whether that is the whole list."""
        chosen = [cid for cid, (kind, _) in self._pending.items() if kind is Kind.CANCEL]
        chosen += [cid for cid, (kind, _) in self._pending.items() if kind is not Kind.CANCEL]
        entries = []
        for cid in islice(chosen, _MESSAGE_ENTRIES):
            kind, priority = self._pending.pop(cid)
            if kind is Kind.CANCEL:
                self.listed.pop(cid, None)
                entries.append(Entry(cid, 0, cancel=True))
            else:
                self.listed[cid] = (kind, now)
                entries.append(Entry(cid, priority, want_have=kind is Kind.WANT_HAVE, send_dont_have=True))
        full, self._retell = self._retell, False
        return entries, full

    def knows(self, cid: Cid) -> bool:
        """Whether it was or will be told that we want *cid*."""
        pending = self._pending.get(cid)
        return pending[0] is not Kind.CANCEL if pending else cid in self.listed

    def struck(self, cid: Cid) -> None:
        """It took *cid* off its list by answering."""
        self.listed.pop(cid, None)
        self._pending.pop(cid, None)

    # --------------------------------------------------------------- asking

    def ask(self, cid: Cid, size: int, priority: int, now: float) -> None:
        """Ask for the block *cid*, about *size* bytes."""
        if not self.asks:
            self._busy_since = self._quiet_since = now
        self.asks[cid] = Ask(cid, now, size)
        self.outstanding += size
        self.tell(cid, Kind.WANT_BLOCK, priority)

    def settle(self, cid: Cid, now: float) -> Ask | None:
        """The question for *cid* is answered or withdrawn."""
        ask = self.asks.pop(cid, None)
        if ask is not None:
            self.outstanding -= ask.size
            if not self.asks:
                self._rest(now)
        return ask

    def _rest(self, now: float) -> None:
        if self._busy_since is not None:
            self._busy_s += now - self._busy_since
            self._busy_since = None

    # ------------------------------------------------------------ measuring

    def receive_bytes(self, count: int, now: float) -> None:
        """*count* bytes of blocks came in, whole or not."""
        self.stalled = False
        if not self.asks:
            return
        pause = now - self._quiet_since
        self._pause = max(pause, self._pause_now(now))
        self._pause_at = self._quiet_since = self.last_byte_at = now
        self._bytes += count
        if not self.partial:
            self._partial_since = now
        self.partial += count
        busy = self._busy_s + (now - self._busy_since if self._busy_since is not None else 0.0)
        if busy >= _WINDOW_S:
            rate = self._bytes / busy
            self.rate = rate if self.rate is None else self.rate + 0.4 * (rate - self.rate)
            self._bytes, self._busy_s = 0, 0.0
            if self._busy_since is not None:
                self._busy_since = now

    def receive_answer(self, cid: Cid, now: float) -> None:
        """It said HAVE or DONT_HAVE to *cid*."""
        kind, since = self.listed.get(cid, (None, None))
        if kind is None or since is None:
            return
        # A HAVE that follows DONT_HAVE tells when the block got there, not how long an answer takes.
        self.listed[cid] = (kind, None)
        sample = now - since
        if self.latency is None or sample < self.latency:
            self.latency = sample
        elif sample < 4 * self.latency + 1.0:  # later ones were remembered until the block arrived
            self.latency += 0.1 * (sample - self.latency)

    def _pause_now(self, now: float) -> float:
        """The longest pause lately: what was seen halves every four seconds."""
        return self._pause * float(0.5 ** ((now - self._pause_at) / 4))

    def patience(self, now: float) -> float:
        """Seconds of silence after which it counts as stalled."""
        latency = self.latency or 0.0
        if self.rate is None and not self._pause:
            return _FIRST_PATIENCE_S + 4 * latency
        return min(_MOST_PATIENCE_S, max(_LEAST_PATIENCE_S + 4 * latency, 2 * self._pause_now(now) + 2 * latency))

    def check_stall(self, now: float) -> bool:
        """Notice that nothing comes any more. True when it is noticed, once."""
        if self.stalled or not self.asks or now - self._quiet_since < self.patience(now):
            return False
        self.stalled = True
        # What it kept us waiting counts as a pause, or a slow peer would be called stalled again and again.
        self._pause, self._pause_at = max(now - self._quiet_since, self._pause_now(now)), now
        self._stalls += 1
        self.retry_at = now + min(_LONGEST_PENALTY_S, 2.0**self._stalls)
        return True

    def check_recovery(self, now: float) -> bool:
        """Give a peer that stalled another chance after a while, with one block."""
        if not self.stalled or self.asks or now < self.retry_at:
            return False
        self.stalled = False
        return True

    def end_block(self) -> None:
        """The block that was on its way is here, or will not come: its stream broke."""
        self.partial = 0

    def deliver(self) -> None:
        """It sent a block we had asked for."""
        self.blocks += 1
        self._stalls = self.broken_promises = 0

    def break_promise(self, now: float) -> None:
        """It said HAVE, and the block was asked of somebody else because it did not come."""
        if not self.broken_promises:
            self._broken_since = now
        self.broken_promises += 1

    def promises_broken_for(self, now: float) -> float:
        """Seconds since the first of the promises it has broken in a row."""
        return now - self._broken_since if self.broken_promises else 0.0

    def speed(self, now: float) -> float:
        """Bytes per second to reckon with; a peer that was asked and sent nothing counts for less and less."""
        rate = _ASSUMED_RATE if self.rate is None else self.rate
        if self._busy_since is not None and not self._bytes:
            silent = now - self._busy_since + self._busy_s
            rate = min(rate, 2 * MIB / max(silent, _WINDOW_S))
        return max(rate, 1.0)

    def window(self, unmeasured: int) -> int:
        """Bytes it should be asked for at a time; *unmeasured* before anything is known of it."""
        if self._stalls:
            return 1
        if self.rate is None:
            return unmeasured
        return int(self.rate * ((self.latency or 0.0) + _LEAD_S)) + 1

    @property
    def due(self) -> int:
        """Bytes it still owes us, as estimated: what of a block is here already is not among them."""
        return max(self.outstanding - self.partial, 0)

    def eta(self, size: int, now: float) -> float:
        """Seconds until *size* more bytes asked of it now would be here."""
        return (self.latency or 0.0) + (self.due + size) / self.speed(now)

    def is_sending(self, cid: Cid) -> bool:
        """Whether the block *cid* is probably on its way: it is what was asked first, and something is coming."""
        return self.partial > 0 and not self.stalled and next(iter(self.asks), None) == cid

    def remaining(self, cid: Cid, now: float) -> float:
        """Seconds until the block *cid*, asked already, should be here. It answers in the order it was asked."""
        if self.stalled:
            return float("inf")
        ahead = 0
        for ask in self.asks.values():
            ahead += ask.size
            if ask.cid == cid:
                break
        if self.partial and ahead == ask.size:
            # On its way: the pace of this one block says more than a rate that has seen the peer's other clients.
            passed = now - self._partial_since
            pace = self.partial / passed if passed >= _PACE_S else _ASSUMED_RATE
            return max(ahead - self.partial, 0) / max(pace, self.speed(now))
        return (self.latency or 0.0) + max(ahead - self.partial, 0) / self.speed(now)

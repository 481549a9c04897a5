"""The giving side of the exchange: which block goes to which peer next.

Three ideas, each of which a swarm that pulls one layer at once depends on (docs/decisions/0026):

- A few peers at a time. A peer can pass a block on only once it has all of it; the uplink shared by fifteen peers
  gives all of them their first block fifteen times as late.
- The block we gave least often first. Peers that ask us for the same block can get it from each other.
- Late decisions. What is to be sent is chosen when it can be sent, so that cancels and new wants still count.

How much an upload burdens our link is estimated from how fast the peer takes it: a peer on a thin link holds only a
fraction of a slot. Whether more uploads would move more is found out by trying (`uplink`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from ipfsreg.bitswap.ledger import Ledger, Want
from ipfsreg.bitswap.messages import Entry
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.bitswap.uplink import MOMENT_S, MOMENTS, Slots, Uplink
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

BATCH_BYTES = 256 * 1024
BATCH_BLOCKS = 512
"""What one message carries: blocks until one of the two is reached."""

MAX_GIVES_PER_PEER = 3
"""One being sent while the next are read."""

_CANDIDATES = 16
"""Peers compared when the next upload is chosen."""

_REMEMBERED = 16384
"""Blocks whose number of uploads is known."""

_RARITY_S = 4.0
"""So long a peer waits for another that wants a block given once less."""


@dataclass(frozen=True, slots=True, eq=False)
class Give:
    """Blocks to read from the store and send to *peer* in one message."""

    peer: PeerId
    wants: tuple[Want, ...]
    size: int
    """Bytes of the blocks."""
    large: bool
    """Not to be sent ahead of what is urgent: wants, presences, small blocks."""
    at: float

    @property
    def cids(self) -> list[Cid]:
        return [want.entry.cid for want in self.wants]


class _Side:
    """One peer we give to."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.large_gives = 0
        self.small_gives = 0
        self.in_flight = 0
        self.waits_since: float | None = None


class Giving:
    """All peers that want something of us."""

    def __init__(self, size_of: Callable[[Cid], int | None], settings: BitswapSettings) -> None:
        """*size_of* answers from the store's index, without waiting: the block's bytes, or None where we lack it."""
        self._size_of = size_of
        self._settings = settings
        self._sides: dict[PeerId, _Side] = {}
        self._waiting_for: dict[bytes, dict[PeerId, None]] = {}
        self._small_turns: dict[PeerId, None] = {}
        self._large_turns: dict[PeerId, None] = {}
        self._gives: dict[Give, _Side] = {}
        self._uploads: dict[Give, tuple[int, float]] = {}
        """How much of each was taken by the peer's connection, and when last."""
        self._in_flight = 0
        self._given: dict[bytes, int] = {}
        self._uplink = Uplink()
        self._slots = Slots(self._uplink, settings.upload_slots)
        self._allowance = 0.0
        self._allowance_at: float | None = None

    def _side(self, peer: PeerId) -> _Side:
        side = self._sides.get(peer)
        if side is None:
            side = self._sides[peer] = _Side(Ledger(peer, self._waiting_for))
        return side

    def has_presences(self, peer: PeerId) -> bool:
        """Whether *peer* has to be told HAVE or DONT_HAVE."""
        side = self._sides.get(peer)
        return side is not None and side.ledger.has_presences

    def take_presences(self, peer: PeerId, limit: int) -> tuple[list[Cid], list[Cid]]:
        """Up to *limit* of HAVE and DONT_HAVE that *peer* is told now."""
        side = self._sides.get(peer)
        return side.ledger.take_presences(limit) if side is not None else ([], [])

    def lost(self, peer: PeerId) -> None:
        """*peer* is gone, and with it what it wanted."""
        side = self._sides.pop(peer, None)
        if side is not None:
            side.ledger.clear()
            self._small_turns.pop(peer, None)
            self._large_turns.pop(peer, None)

    def receive_wants(self, peer: PeerId, entries: Iterable[Entry], full: bool, now: float) -> None:
        """Take in a wantlist, at most MAX_ENTRIES long."""
        side = self._side(peer)
        if full:
            side.ledger.clear()
        for entry in entries:
            if entry.cancel:
                side.ledger.cancel(entry.cid)
            else:
                side.ledger.receive_want(entry, self._size_of(entry.cid))
        self._queue(side, now)

    def waiting_for(self, multihash: bytes) -> Iterable[PeerId]:
        """Who wants the block *multihash*, which we lack."""
        return self._waiting_for.get(multihash, ())

    def receive_arrivals(self, multihashes: Iterable[bytes], now: float) -> list[PeerId]:
        """Blocks are here now; return the peers that wait for one of them."""
        peers: dict[PeerId, None] = {}
        for multihash in multihashes:
            waiting = self._waiting_for.get(multihash)
            if not waiting:
                continue
            size = self._size_of(Cid(1, 0x55, multihash))
            if size is None:
                continue
            for peer in list(waiting):
                self._sides[peer].ledger.receive_arrival(multihash, size)
                peers[peer] = None
        for peer in peers:
            self._queue(self._sides[peer], now)
        return list(peers)

    def _queue(self, side: _Side, now: float) -> None:
        peer = side.ledger.peer
        if side.ledger.small:
            self._small_turns.setdefault(peer)
        if side.ledger.large:
            self._large_turns.setdefault(peer)
            if side.waits_since is None:
                side.waits_since = now
        else:
            self._large_turns.pop(peer, None)
            side.waits_since = None

    # ------------------------------------------------------------- choosing

    def grants(self, now: float) -> list[Give]:
        """What is to be sent now. Ask again after `given`, after new wants, and at `next_deadline`."""
        gives = [give for give in map(self._give_small, list(self._small_turns)) if give is not None]
        while self._large_turns and self._may_upload(now):
            side = self._next_side(now)
            if side is None:
                break
            gives.append(self._give_large(side, now))
        return gives

    def _give_small(self, peer: PeerId) -> Give | None:
        side = self._sides[peer]
        if side.small_gives or self._in_flight >= self._settings.total_in_flight_bytes:
            return None
        wants: list[Want] = []
        size = 0
        for want in islice(side.ledger.small.in_order(), BATCH_BLOCKS):
            wants.append(want)
            size += want.size
            if size >= BATCH_BYTES:
                break
        for want in wants:
            side.ledger.begin(want)
        if not side.ledger.small:
            del self._small_turns[peer]
        if not wants:
            return None
        side.small_gives += 1
        side.in_flight += size
        self._in_flight += size
        give = Give(peer, tuple(wants), size, False, 0.0)
        self._gives[give] = side
        return give

    def _may_upload(self, now: float) -> bool:
        if self._in_flight >= self._settings.total_in_flight_bytes:
            return False
        limit = self._settings.upload_bytes_per_s
        if limit is not None:
            since = now if self._allowance_at is None else self._allowance_at
            self._allowance = min(self._allowance + (now - since) * limit, float(limit))
            self._allowance_at = now
            if self._allowance < 0:
                return False
        busy = self._busy_slots(now)
        self._slots.pass_to(now, busy=busy, stuck=self._is_stuck(now))
        return busy < self._slots.allowed

    def _is_stuck(self, now: float) -> bool:
        """Whether nobody has taken anything for a second."""
        return not self._uplink.rate and any(now - give.at > MOMENTS * MOMENT_S for give in self._uploads)

    def _busy_slots(self, now: float) -> int:
        """How many uploads count: not those of peers that take next to nothing."""
        least = 0.1 * self._uplink.rate / max(1, len(self._uploads))
        return sum(
            now - give.at < 2 * MOMENT_S or ((taken + BATCH_BYTES) / (now - give.at) >= least and now - at < 1.0)
            for give, (taken, at) in self._uploads.items()
        )

    def _next_side(self, now: float) -> _Side | None:
        """Whose turn it is: who wants what was given least often, but nobody waits long for others' rarities."""
        best: tuple[int, float, int] | None = None
        chosen: _Side | None = None
        for turn, peer in enumerate(islice(self._large_turns, _CANDIDATES)):
            side = self._sides[peer]
            if side.large_gives >= MAX_GIVES_PER_PEER or side.in_flight >= self._settings.in_flight_bytes:
                continue
            want = side.ledger.large.best(self._times_given)
            if want is None:
                continue
            waited = now - side.waits_since if side.waits_since is not None else 0.0
            key = (side.large_gives, self._times_given(want.entry.cid) - waited / _RARITY_S, turn)
            if best is None or key < best:
                best, chosen = key, side
        return chosen

    def _times_given(self, cid: Cid) -> int:
        return self._given.get(cid.multihash, 0)

    def _give_large(self, side: _Side, now: float) -> Give:
        peer, ledger = side.ledger.peer, side.ledger
        wants: list[Want] = []
        size = 0
        while size < BATCH_BYTES:
            want = ledger.large.best(self._times_given)
            if want is None:
                break
            ledger.begin(want)
            wants.append(want)
            size += want.size
            self._count(want.entry.cid)
        del self._large_turns[peer]
        side.waits_since = None
        self._queue(side, now)
        give = Give(peer, tuple(wants), size, True, now)
        side.large_gives += 1
        side.in_flight += size
        self._in_flight += size
        self._allowance -= size
        self._gives[give] = side
        self._uploads[give] = (0, now)
        return give

    def _count(self, cid: Cid) -> None:
        times = self._given.pop(cid.multihash, 0)
        self._given[cid.multihash] = times + 1
        if len(self._given) > _REMEMBERED:
            del self._given[next(iter(self._given))]

    # -------------------------------------------------------------- sending

    def is_wanted(self, give: Give, cid: Cid) -> bool:
        """Whether the peer still wants *cid* of *give*: ask just before sending it."""
        return self._gives[give].ledger.under_way.get(cid, False)

    def took(self, give: Give, size: int, now: float) -> None:
        """The connection to the peer took *size* more bytes of *give*."""
        taken = self._uploads.get(give)
        if taken is not None:
            self._uploads[give] = (taken[0] + size, now)
            self._uplink.record(size, now)

    def given(self, give: Give, now: float, *, missing: Sequence[Cid] = ()) -> None:
        """*give* is over, sent or not; *missing* blocks were not in the store after all."""
        side = self._gives.pop(give)
        self._in_flight -= give.size
        side.in_flight -= give.size
        if give.large:
            del self._uploads[give]
            side.large_gives -= 1
        else:
            side.small_gives -= 1
        for want in give.wants:
            side.ledger.finish(want, missing=want.entry.cid in missing)
        if self._sides.get(give.peer) is side:
            self._queue(side, now)

    def next_deadline(self, now: float) -> float | None:
        """When `grants` may have more to say although nothing else happened."""
        return now + 0.1 if self._large_turns else None

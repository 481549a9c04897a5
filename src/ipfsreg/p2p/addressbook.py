"""Where peers may be found: kept in memory, and on disk so that a restarted node finds its swarm again.

An address is *confirmed* once a dial to it reached the peer, and *claimed* before: the peer or somebody else said so.
Confirmed ones are tried first, live longer, and are not pushed out by any flood of claims.

On disk: table `addresses(peer, addr, confirmed, expires)`, times in seconds since 1970, `confirmed` NULL for a claim.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ipfsreg.database import Database
from ipfsreg.errors import MalformedData, StoreError
from ipfsreg.p2p.addresses import normal_form
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

MAX_CONFIRMED_PEERS = 2048
MAX_CLAIMED_PEERS = 2048
MAX_ADDRS_PER_PEER = 32
CONFIRMED_TTL_S = 14 * 86400.0
"""How long an address that worked is worth trying again."""
MAX_TTL_S = 14 * 86400.0
FAILURES_TO_DOUBT = 3
"""Failed dials in a row after which an address comes behind all others. It is not forgotten: a node that was cut off
from everybody for a day has seen all of its addresses fail, and needs them when it is back."""
WRITE_EVERY_S = 10.0

_STEPS = [
    """
    CREATE TABLE addresses (
        peer BLOB NOT NULL, addr TEXT NOT NULL, confirmed REAL, expires REAL NOT NULL,
        PRIMARY KEY (peer, addr)
    ) WITHOUT ROWID
    """
]


@dataclass(slots=True)
class _Entry:
    expires: float
    confirmed: float | None = None
    failures: int = 0


class AddressBook:
    """The addresses of peers. Bounded per peer and in all. Times are in seconds of the clock it is given."""

    def __init__(self, ours: PeerId, clock: Callable[[], float] = time.time) -> None:
        self._ours = ours
        self._clock = clock
        # Two maps, each in order of last use, so that claims can push out only claims.
        self._confirmed: dict[PeerId, dict[str, _Entry]] = {}
        self._claimed: dict[PeerId, dict[str, _Entry]] = {}
        self._own_addrs: frozenset[str] = frozenset()
        self._unsaved: set[PeerId] = set()

    def set_own_addrs(self, addrs: Iterable[str]) -> None:
        """Where we listen ourselves: whoever claims to be found there is mistaken."""
        self._own_addrs = frozenset(addrs)

    def add(self, peer: PeerId, addrs: Iterable[str], *, ttl_s: float) -> None:
        """Remember claimed addresses. Malformed ones, our own, and what exceeds the limits are left out."""
        if peer == self._ours:
            return
        expires = self._clock() + min(ttl_s, MAX_TTL_S)
        entries = self._entries(peer)
        for addr in addrs:
            try:
                addr = normal_form(addr)
            except MalformedData as error:
                logger.debug("address of %s left out: %s", peer.short, error)
                continue
            if addr in self._own_addrs:
                continue
            entry = entries.get(addr)
            if entry is not None:
                entry.expires = max(entry.expires, expires)
            elif len(entries) < MAX_ADDRS_PER_PEER or self._make_room(entries):
                entries[addr] = _Entry(expires)
        if entries:
            self._file(peer, entries)

    def confirm(self, peer: PeerId, addr: str) -> None:
        """A dial to *addr* reached *peer*."""
        now = self._clock()
        entries = self._entries(peer)
        entry = entries.get(addr)
        if entry is None:
            if len(entries) >= MAX_ADDRS_PER_PEER:
                self._make_room(entries)
            entry = entries[addr] = _Entry(0.0)
        entry.confirmed, entry.failures = now, 0
        entry.expires = max(entry.expires, now + CONFIRMED_TTL_S)
        self._file(peer, entries)

    def doubt(self, peer: PeerId, addr: str) -> None:
        """A dial to *addr* failed."""
        entries = self._entries(peer)
        entry = entries.get(addr)
        if entry is not None:
            entry.failures += 1

    def addrs_of(self, peer: PeerId) -> list[str]:
        """What is known and not expired; confirmed first, the latest confirmed at the very front, doubted last."""
        now = self._clock()
        alive = [(addr, entry) for addr, entry in self._entries(peer).items() if entry.expires > now]
        alive.sort(key=lambda known: (known[1].failures >= FAILURES_TO_DOUBT, -(known[1].confirmed or 0.0)))
        return [addr for addr, _ in alive]

    def remembered(self) -> list[PeerInfo]:
        """Peers with an address that has worked, the latest used first."""
        peers = [PeerInfo(peer, tuple(self.addrs_of(peer))) for peer in reversed(self._confirmed)]
        return [info for info in peers if info.addrs]

    def _entries(self, peer: PeerId) -> dict[str, _Entry]:
        return self._confirmed.get(peer) or self._claimed.get(peer) or {}

    def _make_room(self, entries: dict[str, _Entry]) -> bool:
        """Drop an expired address, or the claim that expires first; False if all are confirmed."""
        claims = [addr for addr, entry in entries.items() if entry.confirmed is None]
        if not claims:
            return False
        del entries[min(claims, key=lambda addr: entries[addr].expires)]
        return True

    def _file(self, peer: PeerId, entries: dict[str, _Entry]) -> None:
        self._confirmed.pop(peer, None)
        self._claimed.pop(peer, None)
        proven = any(entry.confirmed is not None for entry in entries.values())
        shelf, room = (self._confirmed, MAX_CONFIRMED_PEERS) if proven else (self._claimed, MAX_CLAIMED_PEERS)
        shelf[peer] = entries
        self._unsaved.add(peer)
        if len(shelf) > room:
            oldest = next(iter(shelf))
            del shelf[oldest]
            self._unsaved.add(oldest)

    def now(self) -> float:
        """The time on the book's clock."""
        return self._clock()

    def load(self, rows: Iterable[tuple[bytes, str, float | None, float]]) -> None:
        """Take in what was saved, without what has expired."""
        now = self._clock()
        for raw, addr, confirmed, expires in rows:
            try:
                peer = PeerId.decode(raw)
            except MalformedData:
                continue
            if expires > now and peer != self._ours:
                entries = self._entries(peer)
                # A clock that stood wrong when this was written must not keep an address for ever.
                entries[addr] = _Entry(min(expires, now + MAX_TTL_S), confirmed)
                self._file(peer, entries)
        self._unsaved.clear()

    def take_unsaved(self) -> dict[PeerId, list[tuple[bytes, str, float | None, float]]]:
        """The rows of every peer changed since the last call; an empty list for a peer that was dropped."""
        changed, self._unsaved = self._unsaved, set()
        return {
            peer: [(peer.raw, addr, entry.confirmed, entry.expires) for addr, entry in self._entries(peer).items()]
            for peer in changed
        }


@asynccontextmanager
async def open_addressbook(
    ours: PeerId, database: Database | None, clock: Callable[[], float] = time.time
) -> AsyncIterator[AddressBook]:
    """An address book that is read from *database*, and written back every ten seconds and at the end.

    A database that cannot be written costs the memory of addresses and nothing else. None: in memory only.

    Raises:
        StoreError: the table cannot be read.
    """
    book = AddressBook(ours, clock)
    if database is None:
        yield book
        return
    await database.prepare("p2p.addressbook", _STEPS)
    book.load(database.read("SELECT peer, addr, confirmed, expires FROM addresses ORDER BY confirmed").fetchall())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_keep_saved, book, database)
        try:
            yield book
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
                await _save(book, database)


async def _keep_saved(book: AddressBook, database: Database) -> None:
    while True:
        await trio.sleep(WRITE_EVERY_S)
        await _save(book, database)


async def _save(book: AddressBook, database: Database) -> None:
    changed = book.take_unsaved()
    if not changed:
        return

    def write(db: sqlite3.Connection) -> None:
        for peer, rows in changed.items():
            db.execute("DELETE FROM addresses WHERE peer = ?", (peer.raw,))
            db.executemany("INSERT INTO addresses VALUES (?, ?, ?, ?)", rows)
        db.execute("DELETE FROM addresses WHERE expires < ?", (book.now(),))

    try:
        await database.write(write)
    except StoreError as error:
        logger.warning("the addresses of %d peers could not be saved: %s", len(changed), error)

"""Who provides what, as providers have told us: kept on disk until it runs out.

A record is a wish, renewed by its provider every day; so it is written behind, once a second in one transaction, and a
crash may cost the last second. What waits to be written is in memory and bounded: whoever brings more has to wait.

Bounds: records in all, of one provider, and of one key. A provider that has its share, and anybody once all are used,
gets no further ones in; for one key the record that runs out first makes way for the new one.

On disk: `dht_providers(id, peer, addrs, records)`, `addrs` being binary multiaddrs each behind a varint with its
length and `records` how many rows name it; `dht_records(key, provider, expires)`, `key` the multihash, `expires` in
seconds since 1970.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import islice

import trio

from ipfsreg.database import Database
from ipfsreg.dht.keys import Contact
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.errors import StoreError
from ipfsreg.ipld.varint import decode_varint, encode_varint
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

WRITE_EVERY_S = 1.0
MAX_UNWRITTEN = 20_000
EXPIRE_EVERY_S = 600.0
WRITTEN_AT_ONCE = 2000
EXPIRE_AT_ONCE = 5000
"""Rows written or deleted in one transaction, so that no other write waits long."""

_STEPS = [
    """
    CREATE TABLE dht_providers (
        id INTEGER PRIMARY KEY, peer BLOB NOT NULL UNIQUE, addrs BLOB NOT NULL, records INTEGER NOT NULL
    );
    CREATE TABLE dht_records (
        key BLOB NOT NULL, provider INTEGER NOT NULL, expires REAL NOT NULL, PRIMARY KEY (key, provider)
    ) WITHOUT ROWID;
    CREATE INDEX dht_records_expires ON dht_records (expires);
    """
]


class ProviderRecords:
    """The records of other peers. Built only by `open_records`."""

    def __init__(self, database: Database, settings: DhtSettings, clock: Callable[[], float]) -> None:
        self._database = database
        self._settings = settings
        self._clock = clock
        self._unwritten: dict[tuple[bytes, PeerId], tuple[Contact, float]] = {}
        self._by_key: dict[bytes, set[PeerId]] = {}
        self._total = 0
        self._added = trio.Event()
        self._written = trio.Event()

    def __len__(self) -> int:
        return self._total + len(self._unwritten)

    def add(self, key: bytes, provider: Contact) -> None:
        """*provider* says that it has *key*. Renews the record there is. Left out where too many wait to be written."""
        if len(self._unwritten) < MAX_UNWRITTEN:
            # Put at the end anew: rows are written in the order of the last word.
            self._unwritten.pop((key, provider.peer), None)
            self._unwritten[key, provider.peer] = provider, self._clock() + self._settings.record_ttl_s
            self._by_key.setdefault(key, set()).add(provider.peer)
            self._added.set()

    async def wait_room(self) -> None:
        """Return once not too many records wait to be written."""
        while len(self._unwritten) >= MAX_UNWRITTEN:
            await self._written.wait()

    def providers_of(self, key: bytes) -> list[Contact]:
        """Who provides *key*, the latest word first. Raises StoreError."""
        fresh = [self._unwritten[key, peer][0] for peer in self._by_key.get(key, ())]
        rows = self._database.read(
            "SELECT peer, addrs FROM dht_records JOIN dht_providers ON id = provider"
            " WHERE key = ? AND expires > ? ORDER BY expires DESC",
            (key, self._clock()),
        )
        said = {contact.peer for contact in fresh}
        kept = [Contact(PeerId(raw), _split(addrs)) for raw, addrs in rows if PeerId(raw) not in said]
        return fresh + kept

    async def flush(self) -> None:
        """Write what waits now. Raises StoreError; the records are kept then, to be written later."""
        for _ in range(0, len(self._unwritten), WRITTEN_AT_ONCE):
            await self._flush_some()

    async def _flush_some(self) -> None:
        batch = dict(islice(self._unwritten.items(), WRITTEN_AT_ONCE))
        rows = [(key, contact, expires) for (key, _), (contact, expires) in batch.items()]
        self._total = await self._database.write(lambda db: _write(db, rows, self._settings))
        for each, record in batch.items():
            if self._unwritten.get(each) is record:
                del self._unwritten[each]
                peers = self._by_key[each[0]]
                peers.discard(each[1])
                if not peers:
                    del self._by_key[each[0]]
        self._written.set()
        self._written = trio.Event()

    async def expire(self) -> None:
        """Delete what has run out. Raises StoreError."""
        now = self._clock()
        latest = now + self._settings.record_ttl_s
        deleted = EXPIRE_AT_ONCE
        while deleted == EXPIRE_AT_ONCE:
            deleted, self._total = await self._database.write(lambda db: _expire(db, now, latest))

    async def _keep_written(self) -> None:
        expire_at = trio.current_time() + EXPIRE_EVERY_S
        told = ""
        while True:
            with trio.move_on_at(expire_at):
                await self._added.wait()
                # What comes within a second is written with it.
                await trio.sleep(WRITE_EVERY_S)
            self._added = trio.Event()
            try:
                await self.flush()
                told = ""
                if trio.current_time() >= expire_at:
                    expire_at = trio.current_time() + EXPIRE_EVERY_S
                    await self.expire()
            except StoreError as error:
                if str(error) != told:
                    told = str(error)
                    logger.warning("%d provider records could not be saved: %s", len(self._unwritten), told)
                self._added.set()
                # A disk that is full for good must not hold peers up: they will tell us again tomorrow.
                if len(self._unwritten) >= MAX_UNWRITTEN:
                    self._unwritten.clear()
                    self._by_key.clear()
                    self._written.set()
                    self._written = trio.Event()


@asynccontextmanager
async def open_records(
    database: Database, settings: DhtSettings, clock: Callable[[], float] = time.time
) -> AsyncIterator[ProviderRecords]:
    """The provider records in *database*, written every second while the block lasts and at its end.

    Raises:
        StoreError: the tables cannot be read.
    """
    await database.prepare("dht.records", _STEPS)
    records = ProviderRecords(database, settings, clock)
    await records.expire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(records._keep_written)
        try:
            yield records
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
                try:
                    await records.flush()
                except StoreError as error:
                    logger.warning("the last provider records could not be saved: %s", error)


def _total(db: sqlite3.Connection) -> int:
    (total,) = db.execute("SELECT COALESCE(SUM(records), 0) FROM dht_providers").fetchone()
    return int(total)


def _write(db: sqlite3.Connection, rows: list[tuple[bytes, Contact, float]], settings: DhtSettings) -> int:
    """Put in *rows* within the bounds; return how many records there are."""
    total = _total(db)
    known: dict[PeerId, tuple[int, int]] = {}
    for key, contact, expires in rows:
        provider, count = known.get(contact.peer) or _introduce(db, contact)
        renewed = db.execute(
            "UPDATE dht_records SET expires = ? WHERE key = ? AND provider = ?", (expires, key, provider)
        ).rowcount
        if not renewed and count < settings.max_records_per_provider and total < settings.max_records:
            total += 1 - _make_room(db, key, settings.max_records_per_key, known)
            db.execute("INSERT INTO dht_records VALUES (?, ?, ?)", (key, provider, expires))
            db.execute("UPDATE dht_providers SET records = records + 1 WHERE id = ?", (provider,))
            count += 1
        known[contact.peer] = provider, count
    db.execute("DELETE FROM dht_providers WHERE records = 0")
    return total


def _introduce(db: sqlite3.Connection, contact: Contact) -> tuple[int, int]:
    """The row of a provider, with its addresses as last told, and how many records it has."""
    db.execute(
        "INSERT INTO dht_providers (peer, addrs, records) VALUES (?, ?, 0)"
        " ON CONFLICT (peer) DO UPDATE SET addrs = excluded.addrs",
        (contact.peer.raw, _join(contact.addrs)),
    )
    row: tuple[int, int] = db.execute(
        "SELECT id, records FROM dht_providers WHERE peer = ?", (contact.peer.raw,)
    ).fetchone()
    return row


def _make_room(db: sqlite3.Connection, key: bytes, most: int, known: dict[PeerId, tuple[int, int]]) -> int:
    """Delete the record of *key* that runs out first if there are *most* already; return how many were deleted."""
    (count,) = db.execute("SELECT COUNT(*) FROM dht_records WHERE key = ?", (key,)).fetchone()
    if count < most:
        return 0
    provider, peer = db.execute(
        "SELECT provider, peer FROM dht_records JOIN dht_providers ON id = provider WHERE key = ?"
        " ORDER BY expires LIMIT 1",
        (key,),
    ).fetchone()
    db.execute("DELETE FROM dht_records WHERE key = ? AND provider = ?", (key, provider))
    db.execute("UPDATE dht_providers SET records = records - 1 WHERE id = ?", (provider,))
    known.pop(PeerId(peer), None)
    return 1


def _expire(db: sqlite3.Connection, now: float, latest: float) -> tuple[int, int]:
    """Delete some of what has run out; return how many, and how many records there are still.

    *latest*: what claims to live longer was written under a clock that stood wrong, and goes too.
    """
    rows = db.execute(
        "SELECT key, provider FROM dht_records WHERE expires < ? OR expires > ? LIMIT ?", (now, latest, EXPIRE_AT_ONCE)
    ).fetchall()
    db.executemany("DELETE FROM dht_records WHERE key = ? AND provider = ?", rows)
    db.executemany("UPDATE dht_providers SET records = records - 1 WHERE id = ?", [(row[1],) for row in rows])
    db.execute("DELETE FROM dht_providers WHERE records = 0")
    return len(rows), _total(db)


def _join(addrs: tuple[bytes, ...]) -> bytes:
    return b"".join([encode_varint(len(addr)) + addr for addr in addrs])


def _split(joined: bytes) -> tuple[bytes, ...]:
    addrs, position = [], 0
    while position < len(joined):
        length, position = decode_varint(joined, position)
        addrs.append(joined[position : position + length])
        position += length
    return tuple(addrs)

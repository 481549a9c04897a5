"""Which blobs a repository may serve.

A blob belongs to a repository once a manifest of it has been pushed there: that link is replicated. Between the push
of a blob and of its manifest the link is pending: local, durable, and gone when the manifest makes it real. So upload
state never enters the name store, and a blob of one repository stays invisible in another.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio
import trio.lowlevel

from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.database import Database
from ipfsreg.errors import TooManyRequests
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.records import Records

MAX_PENDING = 100_000
"""Pending links of one node: about 20 MB of its database."""

RETRY_AFTER_S = 600.0
"""Manifests come any time, the collector every hour or so."""

TOLD_AT_ONCE = 100
"""Changes that watchers are told of before other tasks get their turn."""

_TABLES = (
    """
    CREATE TABLE pending_links (
        repository TEXT NOT NULL,
        digest TEXT NOT NULL,
        size INTEGER NOT NULL,
        root BLOB NOT NULL,
        since INTEGER NOT NULL,
        PRIMARY KEY (repository, digest)
    ) WITHOUT ROWID
    """,
    "CREATE INDEX pending_by_digest ON pending_links (digest)",
)


@dataclass(frozen=True, slots=True)
class PendingLink:
    """A blob that waits for its manifest."""

    repository: RepositoryName
    digest: Digest
    size: int
    since: int
    """Seconds since 1970."""


class Links:
    """Links of all repositories, replicated and pending."""

    def __init__(self, database: Database, records: Records, holds: Holds, pending: int) -> None:
        """*pending*: how many links are."""
        self._database = database
        self._records = records
        self._holds = holds
        self._count = pending
        self._watchers: list[Callable[[RepositoryName, Digest, int | None], None]] = []

    @classmethod
    async def open(cls, database: Database, records: Records, holds: Holds) -> Links:
        """Bring the table up to date and return the links."""
        await database.prepare("registry", _TABLES)
        ((pending,),) = await database.count("SELECT COUNT(*) FROM pending_links")
        return cls(database, records, holds, pending)

    def find(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """What *repository* may serve under *digest*: a linked blob, one of its manifests, or a pending blob."""
        return self.replicated(repository, digest) or self.pending(repository, digest)

    def find_for_push(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """What a manifest may name: also what its client was told a while ago, and was deleted elsewhere since."""
        return self.find(repository, digest) or self._holds.told(repository, digest)

    def replicated(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """The link that every node sees, or None."""
        link = self._records.link(repository, digest)
        if link is not None:
            return link
        manifest = self._records.manifest(repository, digest)
        return None if manifest is None else LinkRecord(manifest.size, manifest.root)

    def pending(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """The link of a blob that was pushed or mounted here and no manifest has named yet, or None."""
        row = self._database.read(
            "SELECT size, root FROM pending_links WHERE repository = ? AND digest = ?", (repository, str(digest))
        ).fetchone()
        return row and LinkRecord(row[0], Cid.decode(row[1]))

    def is_pending(self, digest: Digest, db: sqlite3.Connection | None = None) -> bool:
        """Whether any repository has the blob pending. *db*: as the transaction in it sees it."""
        sql = "SELECT 1 FROM pending_links WHERE digest = ? LIMIT 1"
        rows = self._database.read(sql, (str(digest),)) if db is None else db.execute(sql, (str(digest),))
        return rows.fetchone() is not None

    def pending_page(self, after: PendingLink | None, limit: int) -> list[PendingLink]:
        """Up to *limit* pending links, those behind *after*, by repository and digest."""
        place = ("", "") if after is None else (after.repository, str(after.digest))
        rows = self._database.read(
            "SELECT repository, digest, size, since FROM pending_links WHERE (repository, digest) > (?, ?) "
            "ORDER BY repository, digest LIMIT ?",
            (*place, limit),
        )
        return [PendingLink(RepositoryName(one), Digest.parse(digest), *rest) for one, digest, *rest in rows]

    def watch(self, watcher: Callable[[RepositoryName, Digest, int | None], None]) -> None:
        """From now on tell *watcher* of each pending link that changed what there is now: its bytes, or None."""
        self._watchers.append(watcher)

    def check_room(self) -> None:
        """Raises TooManyRequests: too many blobs wait for their manifests."""
        if self._count >= MAX_PENDING:
            raise TooManyRequests(
                f"{MAX_PENDING} blobs wait here for their manifests: push these, or wait until they have expired",
                RETRY_AFTER_S,
            )

    async def _tell(self, repository: RepositoryName, digests: Iterable[Digest]) -> None:
        # What is there is read again: changes of the same link that one commit held come here in any order.
        if self._watchers:
            for number, digest in enumerate(digests, 1):
                link = self.pending(repository, digest)
                for watcher in self._watchers:
                    watcher(repository, digest, None if link is None else link.size)
                if number % TOLD_AT_ONCE == 0:
                    await trio.lowlevel.checkpoint()

    async def expire_pending(self, repository: RepositoryName, digest: Digest, since: int) -> bool:
        """Forget a pending link, unless it was made anew after *since*; return whether it was forgotten."""

        def expire(db: sqlite3.Connection) -> bool:
            sql = "DELETE FROM pending_links WHERE repository = ? AND digest = ? AND since = ?"
            return db.execute(sql, (repository, str(digest), since)).rowcount > 0

        with trio.CancelScope(shield=True):  # What is counted must be what is there.
            expired = await self._database.write(expire)
            self._count -= expired
            await self._tell(repository, [digest])
        return expired

    def has_pending(self, repository: RepositoryName) -> bool:
        """Whether anything was pushed to *repository* that no manifest has named yet."""
        row = self._database.read("SELECT 1 FROM pending_links WHERE repository = ? LIMIT 1", (repository,)).fetchone()
        return row is not None

    async def add_pending(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> None:
        """Let *repository* serve the blob here until a manifest names it; durable on return.

        Raises TooManyRequests, StoreError.
        """
        if self.pending(repository, digest) is None:
            self.check_room()
        row = (repository, str(digest), link.size, bytes(link.root), int(time.time()))

        def add(db: sqlite3.Connection) -> int:
            sql = "DELETE FROM pending_links WHERE repository = ? AND digest = ?"
            replaced = db.execute(sql, row[:2]).rowcount
            db.execute("INSERT INTO pending_links VALUES (?, ?, ?, ?, ?)", row)
            return replaced

        with trio.CancelScope(shield=True):
            self._count += 1  # Before the write, so that those who come at the same time see it.
            replaced = 1
            try:
                replaced = await self._database.write(add)
            finally:
                self._count -= replaced
            await self._tell(repository, [digest])

    async def drop_pending(self, repository: RepositoryName, digests: list[Digest]) -> None:
        """Forget pending links: a manifest has made them real, or the blob was deleted."""
        rows = [(repository, str(digest)) for digest in digests]

        def drop(db: sqlite3.Connection) -> int:
            return db.executemany("DELETE FROM pending_links WHERE repository = ? AND digest = ?", rows).rowcount

        with trio.CancelScope(shield=True):
            self._count -= await self._database.write(drop)
            await self._tell(repository, digests)


def link_of(info: BlobInfo) -> LinkRecord:
    """The link record of a blob in the store."""
    return LinkRecord(info.size, info.root)

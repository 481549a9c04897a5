"""Which blobs a repository may serve.

A blob belongs to a repository once a manifest of it has been pushed there: that link is replicated. Between the push
of a blob and of its manifest the link is pending: local, durable, and gone when the manifest makes it real. So upload
state never enters the name store, and a blob of one repository stays invisible in another.
"""

from __future__ import annotations

import sqlite3
import time

from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.database import Database
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.records import Records

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


class Links:
    """Links of all repositories, replicated and pending."""

    def __init__(self, database: Database, records: Records, holds: Holds) -> None:
        self._database = database
        self._records = records
        self._holds = holds

    @classmethod
    async def open(cls, database: Database, records: Records, holds: Holds) -> Links:
        """Bring the table up to date and return the links."""
        await database.prepare("registry", _TABLES)
        return cls(database, records, holds)

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

    def all_pending(self) -> list[tuple[RepositoryName, Digest, int]]:
        """Each pending link: repository, blob, and when it was made, in seconds since 1970."""
        rows = self._database.read("SELECT repository, digest, since FROM pending_links")
        return [(RepositoryName(repository), Digest.parse(digest), since) for repository, digest, since in rows]

    def pending_sizes(self) -> list[tuple[RepositoryName, Digest, int]]:
        """Each pending link: repository, blob, bytes."""
        rows = self._database.read("SELECT repository, digest, size FROM pending_links")
        return [(RepositoryName(repository), Digest.parse(digest), size) for repository, digest, size in rows]

    async def expire_pending(self, repository: RepositoryName, digest: Digest, since: int) -> bool:
        """Forget a pending link, unless it was made anew after *since*; return whether it was forgotten."""

        def expire(db: sqlite3.Connection) -> bool:
            sql = "DELETE FROM pending_links WHERE repository = ? AND digest = ? AND since = ?"
            return db.execute(sql, (repository, str(digest), since)).rowcount > 0

        return await self._database.write(expire)

    def has_pending(self, repository: RepositoryName) -> bool:
        """Whether anything was pushed to *repository* that no manifest has named yet."""
        row = self._database.read("SELECT 1 FROM pending_links WHERE repository = ? LIMIT 1", (repository,)).fetchone()
        return row is not None

    async def add_pending(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> None:
        """Let *repository* serve the blob here until a manifest names it; durable on return."""
        row = (repository, str(digest), link.size, bytes(link.root), int(time.time()))

        def add(db: sqlite3.Connection) -> None:
            db.execute("INSERT OR REPLACE INTO pending_links VALUES (?, ?, ?, ?, ?)", row)

        await self._database.write(add)

    async def drop_pending(self, repository: RepositoryName, digests: list[Digest]) -> None:
        """Forget pending links: a manifest has made them real, or the blob was deleted."""
        rows = [(repository, str(digest)) for digest in digests]

        def drop(db: sqlite3.Connection) -> None:
            db.executemany("DELETE FROM pending_links WHERE repository = ? AND digest = ?", rows)

        await self._database.write(drop)


def link_of(info: BlobInfo) -> LinkRecord:
    """The link record of a blob in the store."""
    return LinkRecord(info.size, info.root)

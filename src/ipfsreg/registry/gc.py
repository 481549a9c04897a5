"""Online garbage collection: beside pushes and pulls, on every node, asking nobody.

Two kinds of garbage, and one look at each:

- *Names*, which all nodes share. A link whose blob no manifest of the repository names any more; by policy a manifest
  that no tag reaches. They are deleted in the name store, and whichever node is first spares the others the work.
- *Bytes*, which are this node's own. A blob that no name of any repository speaks of.

Why no acknowledged push is lost (docs/decisions/0088-collecting-without-coordination.md):

- What is deleted of a name are the writes that this node had read before it looked at the manifests, and which were
  garbage at every look of the grace. A push writes again all it relies on (`reliance`), so it is not among them.
- A blob goes in the transaction that finds it unnamed: names that arrive, pushes, mounts come before it or after it.
  A push holds what it relies on, lets the transactions that were under way end, and only then looks whether it is here.
- Who acknowledges a push has its bytes. So a name that arrives later can be served by whoever took it.

A look never holds up the node: after `SLICE_S` of it everybody else has as long.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from random import Random
from typing import Literal, TypeVar

import trio

from ipfsreg.blockstore.interface import BlobInfo, BlobStore
from ipfsreg.crdt.interface import Change, Delete, Names
from ipfsreg.database import Database
from ipfsreg.errors import Denied, DigestInvalid, StoreError, StoreFull
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry import catalog
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.links import Links, PendingLink
from ipfsreg.registry.local import LocalBlobs
from ipfsreg.registry.marking import References, Sentence, judge, reached, references_of, unnamed
from ipfsreg.registry.providing import Providing
from ipfsreg.registry.records import Records
from ipfsreg.registry.reliance import load_manifest

logger = logging.getLogger(__name__)

T = TypeVar("T")

SLICE_S = 0.002
"""Of the loop at a time."""

PAGE = 200
"""Names read at a time, well under a millisecond."""

BLOBS_AT_ONCE = 500
"""Looked at and judged together."""

DELETED_AT_ONCE = 128
"""Blobs whose transactions may meet in one commit."""

CHANGES_AT_ONCE = 500
"""Names deleted in one delta."""

MAX_TOLD = 10_000
"""Items that a report names; others it counts."""

_TABLES = (
    """
    CREATE TABLE gc_condemned (item TEXT PRIMARY KEY, version BLOB NOT NULL, since REAL NOT NULL) WITHOUT ROWID;
    CREATE TABLE gc_clock (watched REAL NOT NULL);
    INSERT INTO gc_clock VALUES (0)
    """,
)

_BLOB, _BLOBS_END, _PENDING, _PENDING_END = "blob ", "blob!", "pending ", "pending!"
"""What items begin with that are no keys of names: those begin with a slash."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GcSettings:
    """When what is collected."""

    interval_s: float = 3600.0
    """Between two looks, on average; 0: only when told to."""
    grace_s: float = 24 * 3600.0
    """So long a name must have been garbage, counted while the node runs."""
    blob_grace_s: float = 3600.0
    """So long a blob must have had no name at any look."""
    untagged: Literal["keep", "delete"] = "keep"
    """What becomes of manifests that no tag reaches."""


@dataclass(frozen=True, slots=True)
class Item:
    """One thing a report tells of."""

    what: Literal["blob", "link", "manifest", "pending"]
    digest: Digest
    size: int
    """Bytes; of a name those of what it names, which are not freed with it."""
    repository: RepositoryName | None
    why: str
    left_s: float
    """Of the grace; 0: it goes, or went."""


@dataclass(slots=True)
class Report:
    """What one look found and did."""

    dry_run: bool
    items: list[Item] = field(default_factory=list)
    """At most `MAX_TOLD`."""
    found: int = 0
    deleted_blobs: int = 0
    deleted_bytes: int = 0
    deleted_names: int = 0
    waiting: int = 0
    """Garbage within its grace."""
    skipped: str = ""
    """Why nothing was looked at; empty: it was."""
    names_skipped: str = ""
    """Why no names, or not all of them, were looked at."""
    kept_repositories: list[tuple[RepositoryName, str]] = field(default_factory=list)
    """Whose names were left alone, and why."""
    took_s: float = 0.0

    def tell(self, item: Item) -> None:
        """Note *item*."""
        self.found += 1
        self.waiting += item.left_s > 0
        if len(self.items) < MAX_TOLD:
            self.items.append(item)


class _Pace:
    """Gives the loop to others as often, and as long, as it takes it."""

    def __init__(self) -> None:
        self._began = trio.current_time()

    async def rest(self) -> None:
        """To be awaited every few dozen microseconds of work."""
        took = trio.current_time() - self._began
        if took >= SLICE_S:
            # Waiting for a thread counts as work too: that is when this should get out of the way.
            await trio.sleep(min(took, 10 * SLICE_S))
            self._began = trio.current_time()


class Collector:
    """The garbage collector of one node."""

    def __init__(
        self,
        database: Database,
        names: Names,
        records: Records,
        blobs: BlobStore,
        links: Links,
        local: LocalBlobs,
        holds: Holds,
        providing: Providing,
        settings: GcSettings,
        has_caught_up: Callable[[], bool],
    ) -> None:
        """*has_caught_up*: whether all names this node has heard of are here. Until then nothing is deleted."""
        self._database = database
        self._names = names
        self._records = records
        self._blobs = blobs
        self._links = links
        self._local = local
        self._holds = holds
        self._providing = providing
        self._settings = settings
        self._has_caught_up = has_caught_up
        self._turn = trio.Lock()
        self._seen_at: float | None = None
        self.last: Report | None = None
        """Of the last look that was no dry run."""

    async def prepare(self) -> None:
        """Make the tables. Raises StoreError."""
        await self._database.prepare("gc", _TABLES)
        self._seen_at = trio.current_time()

    async def run(self, rng: Random) -> None:
        """Look again and again, for ever."""
        if not self._settings.interval_s:
            await trio.sleep_forever()
        while True:
            # Not at the same time as others: what one node has deleted, others need not.
            await trio.sleep(self._settings.interval_s * rng.uniform(0.75, 1.25))
            report = await self.collect()
            if report.deleted_blobs or report.deleted_names:
                logger.info(
                    "collected %d blobs of %d bytes and %d names in %.1f s; %d more within their grace",
                    report.deleted_blobs,
                    report.deleted_bytes,
                    report.deleted_names,
                    report.took_s,
                    report.waiting,
                )

    async def collect(self, *, dry_run: bool = False, grace_s: float | None = None) -> Report:
        """Look once, and delete what may go. *dry_run*: only tell, and leave no trace.

        *grace_s* in place of those configured. However short, what is garbage goes at the second look at the soonest.

        Raises StoreError. Cancelled: some of it is deleted.
        """
        async with self._turn:
            began = trio.current_time()
            report = Report(dry_run)
            now_s = await self._watch(dry_run)
            look = _Look(self, report, grace_s, now_s)
            report.skipped = self._reason_to_skip()
            if not report.skipped:
                await look.at_names()
                await look.at_pending()
                await look.at_blobs()
            report.took_s = trio.current_time() - began
            if not dry_run:
                self.last = report
            return report

    def _reason_to_skip(self) -> str:
        if not self._has_caught_up():
            return "some names that were announced are not here yet"
        if not self._names.scan(catalog.ROOT, limit=1):
            # They may be lost here and be with nodes that are not in reach.
            return "there are no names at all"
        return ""

    async def _watch(self, dry_run: bool) -> float:
        """The collector's clock: seconds that nodes on this datastore have run, as far as it was noted."""
        now = trio.current_time()
        passed = now - (now if self._seen_at is None else self._seen_at)
        (watched,) = self._database.read("SELECT watched FROM gc_clock").fetchone()
        if not dry_run:
            await self._database.write(
                lambda db: db.execute("UPDATE gc_clock SET watched = watched + ?", (passed,)).rowcount
            )
            self._seen_at = now
        return float(watched) + passed


class _Look:
    """One look at everything."""

    def __init__(self, collector: Collector, report: Report, grace_s: float | None, now_s: float) -> None:
        self._c = collector
        self._report = report
        self._grace_s = collector._settings.grace_s if grace_s is None else grace_s
        self._blob_grace_s = collector._settings.blob_grace_s if grace_s is None else grace_s
        if now_s < self._grace_s:
            # A new database: it may stand in for a damaged one, and the names it lacks be out of reach for a while.
            self._blob_grace_s = max(self._blob_grace_s, self._grace_s)
        self._now_s = now_s
        self._pace = _Pace()

    # ----------------------------------------------------------------- names

    async def at_names(self) -> None:
        """Links and manifests, a repository at a time."""
        seen: set[str] = set()
        name: str | None = ""
        while (name := await self._next_repository(name or "")) is not None:
            repository = RepositoryName(name)
            seen.add(catalog.repository_prefix(repository))
            try:
                await self._at_repository(repository)
            except Denied as error:
                self._report.kept_repositories.append((repository, str(error)))
            except StoreFull as error:
                # A deletion of names is a write. That of blobs makes room.
                self._report.names_skipped = str(error)
                return
        if not self._report.dry_run:
            await self._forget_repositories(seen)

    async def _next_repository(self, last: str) -> str | None:
        """The first repository behind *last* that has any key."""
        after = catalog.end_of_repository(last) if last else ""
        while rows := self._c._names.scan(catalog.ROOT, after=after, limit=1):
            name = catalog.repository_of(rows[0][0])
            if name is not None:
                return name
            after = rows[0][0]
            await self._pace.rest()
        return None

    async def _forget_repositories(self, seen: Collection[str]) -> None:
        """Pardon what was condemned in repositories that are gone."""
        items = [item for (item,) in self._c._database.read("SELECT item FROM gc_condemned WHERE item LIKE '/%'")]
        gone = [item for item in items if item[: item.find("/_") + 2] not in seen]
        if gone:
            await self._c._database.write(partial(_note, {}, gone))

    async def _at_repository(self, repository: RepositoryName) -> None:
        prefix = catalog.repository_prefix(repository)
        known = self._known(prefix)
        # Read before the manifests are: what is written from here on is not among it.
        seen = {key: self._versions(repository, key) for key in known}
        manifests = await self._manifests(repository)
        if manifests is None:
            if known and not self._report.dry_run:
                await self._c._database.write(partial(_note, {}, list(known)))
            return
        tagged = [record.digest for _, record in self._c._records.tags(repository)]
        found: dict[str, _Garbage] = {}
        if self._c._settings.untagged == "delete":
            live = reached(tagged, manifests)
            for digest in manifests.keys() - live:
                found[catalog.manifest_key(repository, digest)] = _Garbage(digest, "manifest", "no tag reaches it")
        for digest in unnamed(await self._digests(catalog.link_key_prefix(repository)), manifests):
            found[catalog.link_key(repository, digest)] = _Garbage(digest, "link", "no manifest names it")
        held = {key for key, garbage in found.items() if self._c._holds.told(repository, garbage.digest) is not None}
        now = {key: _version((seen.get(key) or self._versions(repository, key))[key]) for key in found}
        due = await self._judge(known, found, now, held, repository, self._grace_s)
        # Whatever is due was condemned before this look, so it is among those seen.
        changes = [Delete(one, versions) for key in due for one, versions in seen[key].items()]
        self._report.deleted_names += len(due)
        if not self._report.dry_run:
            await self._commit(changes, due)

    def _versions(self, repository: RepositoryName, key: str) -> dict[str, frozenset[bytes]]:
        """What there is of the record at *key*, and of a manifest's place among referrers."""
        versions = {key: self._c._names.versions(key)}
        prefix = catalog.manifests_prefix(repository)
        if key.startswith(prefix):
            digest = Digest.parse(key[len(prefix) :])
            record = self._c._records.manifest(repository, digest)
            if record is not None and record.subject is not None:
                beside = catalog.referrer_key(repository, record.subject, digest)
                versions[beside] = self._c._names.versions(beside)
        return versions

    async def _commit(self, changes: Sequence[Change], due: list[str]) -> None:
        for start in range(0, len(changes), CHANGES_AT_ONCE):
            await self._c._names.commit(changes[start : start + CHANGES_AT_ONCE])
            await self._pace.rest()
        if due:
            await self._c._database.write(partial(_note, {}, due))

    async def _manifests(self, repository: RepositoryName) -> dict[Digest, References] | None:
        """What each manifest of the repository names; None if that cannot be told of each."""
        found: dict[Digest, References] = {}
        prefix = catalog.manifests_prefix(repository)
        for digest in await self._digests(prefix):
            key = catalog.manifest_key(repository, digest)
            record = self._c._records.manifest(repository, digest)
            if record is None:
                # Gone by now, or a record that cannot be read: a later version may know what it says.
                if self._c._names.get(key) is None:
                    continue
                self._report.kept_repositories.append((repository, f"the record of manifest {digest} cannot be read"))
                return None
            manifest = await load_manifest(self._c._local, digest, record.media_type)
            if manifest is None:
                self._report.kept_repositories.append((repository, f"manifest {digest} is not here"))
                return None
            found[digest] = references_of(manifest)
            await self._pace.rest()
        return found

    async def _digests(self, prefix: str) -> list[Digest]:
        """The digests that stand behind *prefix* in keys; others are none of ours."""
        found: list[Digest] = []
        after = ""
        while rows := self._c._names.scan(prefix, after=after, limit=PAGE):
            for key, _ in rows:
                with suppress(DigestInvalid):
                    found.append(Digest.parse(key[len(prefix) :]))
            after = rows[-1][0]
            await self._pace.rest()
        return found

    # ----------------------------------------------------------- pending links

    async def at_pending(self) -> None:
        """Blobs that were pushed or mounted and that no manifest has named since."""
        after, last = _PENDING, None
        while page := self._c._links.pending_page(last, PAGE):
            last = page[-1]
            after = await self._at_pending_page(page, after, f"{_PENDING}{last.repository} {last.digest}")
            await self._pace.rest()
        await self._at_pending_page([], after, _PENDING_END)

    async def _at_pending_page(self, page: list[PendingLink], after: str, last: str) -> str:
        """Look at the pending links whose items lie behind *after* and up to *last*; return *last*."""
        found: dict[str, _Garbage] = {}
        versions: dict[str, bytes] = {}
        held: set[str] = set()
        for link in page:
            item = f"{_PENDING}{link.repository} {link.digest}"
            found[item] = _Garbage(link.digest, "pending", "it was pushed, and no manifest has named it since")
            versions[item] = str(link.since).encode()
            if self._c._holds.told(link.repository, link.digest) is not None:
                held.add(item)
            await self._pace.rest()
        due = await self._judge(self._read(after, last), found, versions, held, None, self._grace_s)
        for item in due:
            _, repository_name, text = item.split(" ")
            if not self._report.dry_run:
                await self._c._links.expire_pending(
                    RepositoryName(repository_name), Digest.parse(text), int(versions[item])
                )
        if due and not self._report.dry_run:
            await self._c._database.write(partial(_note, {}, due))
        return last

    # ------------------------------------------------------------------ bytes

    def is_needed(self, digest: Digest, db: sqlite3.Connection | None = None) -> bool:
        """Whether the blob must stay; with *db* from within the transaction that would delete it."""
        text = str(digest)
        return (
            self._c._holds.is_held(digest)
            or self._c._holds.is_told(digest)
            or any(self._c._names.ends_in(mark, text, db) for mark in catalog.BLOB_MARKS)
            or self._c._links.is_pending(digest, db)
        )

    async def at_blobs(self) -> None:
        """The whole blobs that lie here, some at a time: their number must hold nobody up."""
        while self._c._holds.forget_old():
            await self._pace.rest()
        page: list[BlobInfo] = []
        after = _BLOB
        for info in self._c._blobs.blobs():
            page.append(info)
            await self._pace.rest()
            if len(page) == BLOBS_AT_ONCE:
                after = await self._at_page(page, after, f"{_BLOB}{info.digest}")
                page = []
        await self._at_page(page, after, _BLOBS_END)

    async def _at_page(self, page: list[BlobInfo], after: str, last: str) -> str:
        """Look at the blobs whose items lie behind *after* and up to *last*; return *last*."""
        found: dict[str, _Garbage] = {}
        infos: dict[str, BlobInfo] = {}
        for info in page:
            if not self.is_needed(info.digest):
                item = f"{_BLOB}{info.digest}"
                found[item] = _Garbage(info.digest, "blob", "no repository refers to it")
                infos[item] = info
            await self._pace.rest()
        known = self._read(after, last)
        due = await self._judge(known, found, dict.fromkeys(found, b""), (), None, self._blob_grace_s)
        if self._report.dry_run:
            self._report.deleted_blobs += len(due)
            self._report.deleted_bytes += sum(infos[item].size for item in due)
            return last
        for batch in _batches(due, DELETED_AT_ONCE):
            await self._c._providing.withdraw([infos[item].root for item in batch])
            async with trio.open_nursery() as nursery:
                for item in batch:
                    nursery.start_soon(self._delete, infos[item])
            await self._c._database.write(partial(_note, {}, batch))
            await self._pace.rest()
        return last

    async def _delete(self, info: BlobInfo) -> None:
        try:
            deleted = await self._c._blobs.collect(info.digest, partial(self.is_needed, info.digest))
        except StoreError as error:
            logger.warning("blob %s was not deleted: %s", info.digest, error)
            deleted = False
        if deleted:
            logger.debug("deleted blob %s, %d bytes", info.digest, info.size)
            self._report.deleted_blobs += 1
            self._report.deleted_bytes += info.size
        elif self._c._blobs.stat(info.digest) is not None:
            self._c._providing.add(info.root)

    # --------------------------------------------------------------- sentences

    def _known(self, prefix: str) -> dict[str, Sentence]:
        return self._read(prefix, prefix[:-1] + chr(ord(prefix[-1]) + 1))

    def _read(self, after: str, last: str) -> dict[str, Sentence]:
        """The sentences of items behind *after*, up to *last*."""
        rows = self._c._database.read(
            "SELECT item, version, since FROM gc_condemned WHERE item > ? AND item <= ?", (after, last)
        )
        return {item: Sentence(version, since) for item, version, since in rows}

    async def _judge(
        self,
        known: Mapping[str, Sentence],
        found: Mapping[str, _Garbage],
        versions: Mapping[str, bytes],
        held: Collection[str],
        repository: RepositoryName | None,
        grace_s: float,
    ) -> list[str]:
        """What of *found* may go. The rest is noted for later."""
        verdict = judge(known, versions, held, now_s=self._now_s, grace_s=grace_s)
        due = set(verdict.due)
        for item, garbage in found.items():
            if item not in held:
                since_s = known[item].since_s if item in known and item not in verdict.condemned else self._now_s
                # What is new goes at the next look at the soonest.
                left_s = 0.0 if item in due else max(grace_s - (self._now_s - since_s), 1.0)
                self._report.tell(self._item(garbage, repository, left_s))
                await self._pace.rest()
        if not self._report.dry_run and (verdict.condemned or verdict.pardoned):
            await self._c._database.write(partial(_note, verdict.condemned, verdict.pardoned))
        return verdict.due

    def _item(self, garbage: _Garbage, repository: RepositoryName | None, left_s: float) -> Item:
        info = self._c._blobs.stat(garbage.digest)
        return Item(garbage.what, garbage.digest, 0 if info is None else info.size, repository, garbage.why, left_s)


@dataclass(frozen=True, slots=True)
class _Garbage:
    digest: Digest
    what: Literal["blob", "link", "manifest", "pending"]
    why: str


def _version(versions: frozenset[bytes]) -> bytes:
    """*versions* in 32 bytes."""
    return hashlib.sha256(b"".join(sorted(versions))).digest()


def _note(condemned: Mapping[str, Sentence], gone: Iterable[str], db: sqlite3.Connection) -> None:
    db.executemany("DELETE FROM gc_condemned WHERE item = ?", [(item,) for item in gone])
    db.executemany(
        "INSERT OR REPLACE INTO gc_condemned VALUES (?, ?, ?)",
        [(item, sentence.version, sentence.since_s) for item, sentence in condemned.items()],
    )


def _batches(items: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch

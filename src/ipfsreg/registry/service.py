"""One node's registry: the parts put together behind `Registry`."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from random import Random

import trio

from ipfsreg.bitswap.service import Bitswap
from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.crdt.interface import Delete, Names
from ipfsreg.database import Database
from ipfsreg.dht.interface import Routing
from ipfsreg.errors import BlobUnknown, NameUnknown, NotReady, StoreError, Unsupported
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import Descriptor
from ipfsreg.oci.names import Reference, RepositoryName, Tag
from ipfsreg.p2p.interface import Network
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.evicting import EvictionSettings, Evictor
from ipfsreg.registry.fetching import Fetches
from ipfsreg.registry.following import follow_manifests
from ipfsreg.registry.gc import Collector, GcSettings
from ipfsreg.registry.history import Move
from ipfsreg.registry.holders import Holders, answer_all
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import (
    BlobContent,
    BlobStat,
    ManifestContent,
    ManifestPushed,
    ManifestStat,
    Page,
    UploadSession,
)
from ipfsreg.registry.links import Links
from ipfsreg.registry.local import LocalBlobs
from ipfsreg.registry.lookups import Lookups
from ipfsreg.registry.manifests import Manifests
from ipfsreg.registry.providing import Providing
from ipfsreg.registry.pushers import Pushers
from ipfsreg.registry.quota import Quota, Quotas
from ipfsreg.registry.records import Records
from ipfsreg.registry.reliance import Reliance
from ipfsreg.registry.uploads import Upload, Uploads

logger = logging.getLogger(__name__)

PARTIALS_EXPIRE_S = 7 * 24 * 3600.0
"""What has arrived of a blob is kept for a week for whoever pulls it again."""

EXPIRY_INTERVAL_S = 3600.0

MAX_LINKED = 4096
"""Links remembered while nothing is committed."""

MAX_PAGES, MAX_PAGE_NAMES = 64, 1000
"""Pages of tags remembered so, and the largest of them: a few mebibytes at the most."""

TRY_AGAIN_S = 60.0
"""After a failure of the store in work that nobody waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistrySettings:
    """How long pulls of missing content may take."""

    give_up_s: float = 30.0
    """Seconds without progress after which a fetch fails."""
    finish_without_client: bool = True
    """Go on with a fetch when its last reader has gone."""
    wait_heads_s: float = 10.0
    """How long a request waits for heads that it says it has seen elsewhere."""
    upload_expiry_s: float = 24 * 3600.0
    """After its last byte an upload goes."""
    fetch_pushed: bool = True
    """Before a manifest push is answered, fetch what it names and this node lacks."""
    quotas: tuple[Quota, ...] = ()
    gc: GcSettings = field(default_factory=GcSettings)
    eviction: EvictionSettings = field(default_factory=EvictionSettings)
    immutable_tags: tuple[str, ...] = ()
    """Patterns of `repository:tag`: such a tag is set once and neither moved nor deleted through this node."""


class LocalRegistry:
    """Keeps the `Registry` promises."""

    def __init__(
        self,
        database: Database,
        names: Names,
        records: Records,
        local: LocalBlobs,
        links: Links,
        uploads: Uploads,
        manifests: Manifests,
        fetches: Fetches,
        blobs: BlobStore,
        holds: Holds,
        collector: Collector,
        evictor: Evictor,
        quotas: Quotas,
        wait_heads_s: float,
    ) -> None:
        self._database = database
        self._names = names
        self._wait_heads_s = wait_heads_s
        self._records = records
        self._local = local
        self._links = links
        self._uploads = uploads
        self._manifests = manifests
        self._fetches = fetches
        self._blobs = blobs
        self._holds = holds
        self._linked: Lookups[tuple[RepositoryName, Digest], LinkRecord] = Lookups(MAX_LINKED)
        self._pages: Lookups[tuple[RepositoryName, int, str], Page] = Lookups(MAX_PAGES)
        self.collector = collector
        self.evictor = evictor
        self._quotas = quotas

    @property
    def version(self) -> int | None:
        names, rest = self._names.generation, self._database.generation
        # Each only grows, so an equal sum means that all are the same.
        return None if names is None or rest is None else names + rest + self._holds.doubts

    # ------------------------------------------------------------------ blobs

    async def stat_blob(self, repository: RepositoryName, digest: Digest) -> BlobStat:
        link = self._link(repository, digest)
        if self._holds.is_doubted(digest) and self._blobs.stat(digest) is None:
            raise BlobUnknown(f"blob {digest} of {repository} is with no peer in reach: push it here")
        self._holds.tell(repository, digest, link)
        return BlobStat(digest, link.size, link.root)

    def blob_size(self, repository: RepositoryName, digest: Digest) -> int:
        return self._link(repository, digest).size

    def _link(self, repository: RepositoryName, digest: Digest) -> LinkRecord:
        version = self.version
        link = self._linked.get(version, (repository, digest))
        if link is None:
            link = self._links.find(repository, digest)
            if link is None:
                raise BlobUnknown(f"{repository} has no blob {digest}")
            self._linked.put(version, (repository, digest), link)
        return link

    async def open_blob(self, repository: RepositoryName, digest: Digest) -> BlobContent:
        link = self._link(repository, digest)
        return await self._local.open(digest) or await self._fetches.open(repository, digest, link)

    async def delete_blob(self, repository: RepositoryName, digest: Digest) -> None:
        self._link(repository, digest)
        if self._records.manifest(repository, digest) is not None:
            raise Unsupported(f"{digest} is a manifest: delete it as one")
        if self._records.link(repository, digest) is not None:
            await self._names.commit([Delete(catalog.link_key(repository, digest))])
        await self._links.drop_pending(repository, [digest])
        self._holds.take_back(repository, digest)

    async def mount_blob(self, repository: RepositoryName, digest: Digest, source: RepositoryName | None) -> BlobStat:
        if source is None:
            raise BlobUnknown("a mount names the repository it comes from")
        link = self._link(source, digest)
        if self._holds.is_doubted(digest) and self._blobs.stat(digest) is None:
            raise BlobUnknown(f"blob {digest} of {source} is with no peer in reach: push it here")
        await self._quotas.wait_ready()
        self._quotas.check(repository, link.size, digest)
        if self._links.replicated(repository, digest) is None:
            await self._links.add_pending(repository, digest, link)
        return BlobStat(digest, link.size, link.root)

    # ---------------------------------------------------------------- uploads

    async def start_upload(self, repository: RepositoryName, algorithm: str = "sha256", *, owner: str = "") -> Upload:
        return await self._uploads.start(repository, algorithm, owner)

    async def resume_upload(self, repository: RepositoryName, upload_id: str, *, owner: str = "") -> Upload:
        return await self._uploads.resume(repository, upload_id, owner)

    def release_upload(self, session: UploadSession) -> None:
        self._uploads.release(session)

    # -------------------------------------------------------------- manifests

    async def stat_manifest(self, repository: RepositoryName, reference: Reference) -> ManifestStat:
        return self._manifests.stat(repository, reference)

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> ManifestContent:
        return await self._manifests.get(repository, reference)

    async def put_manifest(
        self,
        repository: RepositoryName,
        reference: Reference,
        media_type: str,
        data: bytes,
        tags: Sequence[Tag] = (),
        *,
        overwrite: bool = True,
    ) -> ManifestPushed:
        return await self._manifests.put(repository, reference, media_type, data, tags, overwrite=overwrite)

    async def delete_manifest(self, repository: RepositoryName, reference: Reference) -> tuple[Cid, ...]:
        return await self._manifests.delete(repository, reference)

    async def wait_heads(self, heads: Sequence[Cid]) -> None:
        with trio.move_on_after(self._wait_heads_s):
            await self._names.wait_merged(heads)
            return
        raise NotReady(
            f"this node does not have all of the heads asked for after {self._wait_heads_s:g} s; what was written with "
            "them is not here yet"
        )

    def history(self, repository: RepositoryName, tag: Tag) -> list[Move]:
        """Every move of *tag*, the latest first, the losers of conflicts too. Raises NameUnknown, ManifestUnknown."""
        moves = self._manifests.history(repository, tag)
        if not moves:
            self._manifests.resolve(repository, tag)
        return moves

    async def roll_back(self, repository: RepositoryName, tag: Tag, to: Digest | int) -> Move:
        """See `Manifests.roll_back`."""
        return await self._manifests.roll_back(repository, tag, to)

    # ---------------------------------------------------------------- listing

    async def tags(self, repository: RepositoryName, *, limit: int, last: str = "") -> Page:
        version = self.version
        page = self._pages.get(version, (repository, limit, last))
        if page is None:
            page = self._page_of_tags(repository, limit, last)
            if len(page.names) <= MAX_PAGE_NAMES:
                self._pages.put(version, (repository, limit, last), page)
        return page

    def _page_of_tags(self, repository: RepositoryName, limit: int, last: str) -> Page:
        prefix = catalog.tags_prefix(repository)
        found = self._names.scan(prefix, after=prefix + last if last else "", limit=limit + 1)
        if not found and not self._manifests.exists(repository):
            raise NameUnknown(f"no repository {repository}")
        return _page([key[len(prefix) :] for key, _ in found], limit)

    async def repositories(self, *, limit: int, last: str = "") -> Page:
        return _page(self._walk_repositories(limit + 1, last), limit)

    def _walk_repositories(self, limit: int, last: str) -> list[str]:
        """Repositories that have a manifest, a step of the index for each and not a scan of all its keys."""
        found: list[str] = []
        after = catalog.end_of_repository(last) if last else ""
        while len(found) < limit:
            rows = self._names.scan(catalog.ROOT, after=after, limit=1)
            if not rows:
                break
            key = rows[0][0]
            name = catalog.repository_of(key)
            if name is None:
                after = key
                continue
            after = catalog.end_of_repository(name)
            if self._names.scan(catalog.manifests_prefix(RepositoryName(name)), limit=1):
                found.append(name)
        return found

    async def referrers(
        self, repository: RepositoryName, subject: Digest, artifact_type: str | None = None
    ) -> list[Descriptor]:
        return self._manifests.referrers(repository, subject, artifact_type)

    @property
    def fetches_under_way(self) -> int:
        """Blobs that are being fetched from peers."""
        return len(self._fetches)


def _page(names: list[str], limit: int) -> Page:
    return Page(tuple(names[:limit]), more=len(names) > limit)


def derive_upload_secret(private_key: bytes) -> bytes:
    """The key that seals upload IDs: the same after a restart, and of no use for anything else."""
    return hmac.new(private_key, b"ipfsreg upload seal", hashlib.sha256).digest()


@asynccontextmanager
async def open_registry(
    *,
    database: Database,
    names: Names,
    blobs: BlobStore,
    bitswap: Bitswap,
    routing: Routing | None,
    peer: PeerId,
    upload_secret: bytes,
    settings: RegistrySettings,
    has_caught_up: Callable[[], bool] = lambda: True,
    network: Network | None = None,
    trusted_peers: frozenset[PeerId] | None = None,
) -> AsyncIterator[LocalRegistry]:
    """Run the registry for as long as the block lasts. Fetches under way are kept for the next start.

    *has_caught_up*: whether *names* has all that was announced to it. *trusted_peers*: whose word counts on what they
    have, when room is to be made; None: everybody's on *network*.
    """
    async with trio.open_nursery() as nursery:
        records = Records(names)
        holds = Holds()
        links = await Links.open(database, records, holds)
        quotas = Quotas(names, links, settings.quotas)
        providing = Providing(routing)
        local = LocalBlobs(nursery, blobs, holds)
        pushers = Pushers(names, records)
        holders = None if network is None else Holders(network, blobs, routing, trusted_peers)
        evictor = Evictor(names, blobs, links, holds, providing, holders, settings.eviction)
        fetches = Fetches(
            nursery,
            blobs,
            local,
            bitswap,
            providing,
            pushers,
            holds,
            evictor,
            settings.give_up_s,
            settings.finish_without_client,
        )
        reliance = Reliance(database, names, records, blobs, links, local, fetches, holds, settings.fetch_pushed)
        manifests = Manifests(
            names,
            records,
            blobs,
            links,
            local,
            fetches,
            providing,
            reliance,
            holds,
            quotas,
            peer,
            settings.immutable_tags,
        )
        uploads = Uploads(blobs, local, links, providing, holds, quotas, evictor, upload_secret)
        collector = Collector(
            database, names, records, blobs, links, local, holds, providing, settings.gc, has_caught_up
        )
        await collector.prepare()
        registry = LocalRegistry(
            database,
            names,
            records,
            local,
            links,
            uploads,
            manifests,
            fetches,
            blobs,
            holds,
            collector,
            evictor,
            quotas,
            settings.wait_heads_s,
        )
        for task in (
            partial(_expire, blobs, settings.upload_expiry_s),
            partial(providing.run, blobs),
            partial(follow_manifests, names, blobs, fetches),
            quotas.run,
            evictor.run,
            partial(collector.run, Random()),  # noqa: S311 (spreads work, guards nothing)
        ):
            nursery.start_soon(_keep_going, task)
        if network is not None:
            nursery.start_soon(answer_all, network, blobs, evictor.will_stay)
        yield registry
        nursery.cancel_scope.cancel()


async def _keep_going(task: Callable[[], Awaitable[None]]) -> None:
    """Run *task* again when the store failed it: what lies behind the requests must not end them."""
    while True:
        try:
            await task()
        except StoreError:
            logger.warning("work behind the registry failed, it begins anew in %g s", TRY_AGAIN_S, exc_info=True)
            await trio.sleep(TRY_AGAIN_S)
        else:
            return


async def _expire(blobs: BlobStore, upload_expiry_s: float) -> None:
    while True:
        await blobs.expire_uploads(upload_expiry_s)
        await blobs.expire_partials(PARTIALS_EXPIRE_S)
        await trio.sleep(min(EXPIRY_INTERVAL_S, upload_expiry_s))

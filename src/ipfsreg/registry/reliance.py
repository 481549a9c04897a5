"""What a manifest push relies on: all that it names, in this repository, directly or by the manifests of an index.

Whoever acknowledges a push answers for it. So before it is acknowledged,

- every blob it relies on is here. A client that finds a blob in the swarm skips its upload; then this node fetches it.
  Nothing that other nodes throw away, who may not know of the push yet, can take it back.
- all the names it relies on are written again with it, also those that stand. A deletion removes the writes its node
  has seen. One that is made elsewhere at the same time, by hand or by the collector, has not seen these.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass

import trio

from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.crdt.interface import Names, Put
from ipfsreg.database import Database
from ipfsreg.errors import ContentUnavailable, IpfsregError, ManifestBlobUnknown, ManifestInvalid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES, Manifest, parse_manifest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.fetching import Fetches
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.links import Links
from ipfsreg.registry.local import LocalBlobs
from ipfsreg.registry.marking import references_of
from ipfsreg.registry.records import Records

PARSED_INLINE_BYTES = 64 * 1024

FETCHED_AT_ONCE = 8

_PARSING = trio.CapacityLimiter(2)
"""Of large ones. Each may take 60 MiB for a moment, and more at a time would only be slower, all in one interpreter."""


async def parse_pushed(data: bytes, media_type: str | None) -> Manifest:
    """`parse_manifest`, without holding up everybody else. Raises ManifestInvalid."""
    if len(data) <= PARSED_INLINE_BYTES:
        return parse_manifest(data, media_type)
    # Four hostile mebibytes take half a second.
    return await trio.to_thread.run_sync(parse_manifest, data, media_type, limiter=_PARSING)


async def load_manifest(local: LocalBlobs, digest: Digest, media_type: str) -> Manifest | None:
    """A manifest that lies here; None if it does not, or cannot be read. Raises StoreError."""
    data = await local.read(digest, MAX_MANIFEST_BYTES)
    try:
        return None if data is None else await parse_pushed(data, media_type)
    except ManifestInvalid:
        return None


@dataclass(frozen=True, slots=True)
class Relied:
    """A manifest and those below it."""

    manifest: Manifest
    below: dict[Digest, Manifest]
    """The manifests an index lists, and what these list."""

    def all(self) -> Iterator[Manifest]:
        """Each once."""
        yield self.manifest
        yield from self.below.values()

    def content(self) -> set[Digest]:
        """All that these name."""
        return {digest for manifest in self.all() for digest in references_of(manifest).content}


class Reliance:
    """Gathers it and writes it down."""

    def __init__(
        self,
        database: Database,
        names: Names,
        records: Records,
        blobs: BlobStore,
        links: Links,
        local: LocalBlobs,
        fetches: Fetches,
        holds: Holds,
        fetch_pushed: bool,
    ) -> None:
        """*fetch_pushed*: fetch what is not here; without it an acknowledged push may rest on others."""
        self._database = database
        self._names = names
        self._records = records
        self._blobs = blobs
        self._links = links
        self._local = local
        self._fetches = fetches
        self._holds = holds
        self._fetch_pushed = fetch_pushed

    @asynccontextmanager
    async def kept(self, repository: RepositoryName, digest: Digest, manifest: Manifest) -> AsyncIterator[Relied]:
        """All that *manifest*, which is *digest* and lies here, relies on: here, and safe while the block lasts.

        Raises as `gather`, and ContentUnavailable: the manifest itself was deleted here just now.
        """
        with ExitStack() as holds:
            holds.enter_context(self._holds.hold(digest))
            while True:
                relied = await self.gather(repository, manifest)
                holds.enter_context(self._holds.hold(*relied.content()))
                # A deletion that was decided before these holds may be with the writer, and does not show yet. Writes
                # are ordered: after this one it does.
                await self._database.write(_nothing)
                if self._blobs.stat(digest) is None:
                    raise ContentUnavailable(f"manifest {digest} was deleted here just now; try again")
                if self.is_here(repository, relied):
                    break
            # From here on this node answers for them, so they stay also where they came from peers.
            await self._blobs.keep([digest, *relied.content()])
            yield relied

    async def gather(self, repository: RepositoryName, manifest: Manifest) -> Relied:
        """Read the manifests below *manifest*, and fetch what is not here.

        Raises:
            ManifestBlobUnknown: the repository lacks something.
            ContentUnavailable: no peer in reach has it either.
            StoreFull: there is no room for it.
        """
        relied = Relied(manifest, {})
        ahead = [manifest]
        while ahead:
            for child in ahead.pop().manifests:
                if child.digest not in relied.below:
                    below = await self._load(repository, child.digest)
                    relied.below[child.digest] = below
                    ahead.append(below)
        if self._fetch_pushed:
            await self._fetch_missing(repository, relied)
        return relied

    async def _load(self, repository: RepositoryName, digest: Digest) -> Manifest:
        record = self._records.manifest(repository, digest)
        if record is None:
            raise ManifestBlobUnknown(f"{repository} has no manifest {digest}")
        found = await load_manifest(self._local, digest, record.media_type)
        if found is None:
            await self._fetch(repository, digest, LinkRecord(record.size, record.root))
            found = await load_manifest(self._local, digest, record.media_type)
        if found is None:
            raise ContentUnavailable(f"manifest {digest}, which this one lists, cannot be read here")
        return found

    async def _fetch_missing(self, repository: RepositoryName, relied: Relied) -> None:
        slots = trio.Semaphore(FETCHED_AT_ONCE)
        failures: list[IpfsregError] = []

        async def fetch(digest: Digest, link: LinkRecord) -> None:
            async with slots:
                if not failures:
                    try:
                        await self._fetch(repository, digest, link)
                    except IpfsregError as error:  # raised from within the nursery it would come out wrapped
                        failures.append(error)

        async with trio.open_nursery() as nursery:
            for digest, link in self._missing(repository, relied).items():
                nursery.start_soon(fetch, digest, link)
        if failures:
            raise failures[0]

    async def _fetch(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> None:
        try:
            await self._fetches.fetch_whole(repository, digest, link)
        except ContentUnavailable as error:
            self._holds.doubt(digest)
            raise ContentUnavailable(
                f"blob {digest} is known by name only, and no peer in reach gives it: push it to this node ({error})"
            ) from error

    def is_here(self, repository: RepositoryName, relied: Relied) -> bool:
        """Whether all that can be served lies here; always, where it need not."""
        return not self._fetch_pushed or not self._missing(repository, relied)

    def _missing(self, repository: RepositoryName, relied: Relied) -> dict[Digest, LinkRecord]:
        wanted = {blob.digest for manifest in relied.all() for blob in manifest.blobs} | relied.below.keys()
        links = {
            digest: self._links.find_for_push(repository, digest)
            for digest in wanted
            if self._blobs.stat(digest) is None
        }
        return {digest: link for digest, link in links.items() if link is not None}

    def states(self, repository: RepositoryName, relied: Relied) -> tuple[list[Put], dict[Digest, Put]]:
        """The records of the manifests below, and the links of all blobs, to be written.

        Raises:
            ManifestBlobUnknown: the repository lacks something that the manifest itself names.
        """
        records: list[Put] = []
        links: dict[Digest, Put] = {}
        for blob in relied.manifest.blobs:
            if self._links.find_for_push(repository, blob.digest) is None:
                raise ManifestBlobUnknown(f"{repository} has no blob {blob.digest}")
        for child in relied.manifest.manifests:
            if self._records.manifest(repository, child.digest) is None:
                raise ManifestBlobUnknown(f"{repository} has no manifest {child.digest}")
        for digest in relied.below:
            record = self._records.manifest(repository, digest)
            if record is not None:
                records.append(Put(catalog.manifest_key(repository, digest), record.encode(digest)))
                if record.subject is not None:
                    records += self._standing(catalog.referrer_key(repository, record.subject, digest))
        for manifest in relied.all():
            for digest in references_of(manifest).content - relied.below.keys():
                link = self._links.find_for_push(repository, digest)
                if link is not None:  # what may be had from elsewhere, or was deleted under a manifest that stands
                    links[digest] = Put(catalog.link_key(repository, digest), link.encode(digest))
        return records, links

    def _standing(self, key: str) -> list[Put]:
        value = self._names.get(key)
        return [] if value is None else [Put(key, value)]


def _nothing(db: sqlite3.Connection) -> None:
    """Only to be waited for."""

"""Manifests and tags: what one push writes, and what one delete takes away.

One manifest push is one delta: the manifest, the links of its blobs, its tags, their history and its place among the
referrers of its subject travel together, so no node ever sees a tag without what it names.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase

import trio

from ipfsreg.blockstore.interface import BlobInfo, BlobStore
from ipfsreg.crdt.interface import Change, Delete, Names, Put
from ipfsreg.errors import (
    ContentUnavailable,
    Denied,
    DigestMismatch,
    ManifestUnknown,
    NameUnknown,
)
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from ipfsreg.oci.names import Reference, RepositoryName, Tag
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import ManifestRecord, MoveRecord, ReferrerRecord, TagRecord
from ipfsreg.registry.fetching import Fetches
from ipfsreg.registry.history import Move, parse_past, state_at, trace
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import ManifestContent, ManifestPushed, ManifestStat
from ipfsreg.registry.links import Links
from ipfsreg.registry.local import LocalBlobs
from ipfsreg.registry.lookups import Lookups
from ipfsreg.registry.providing import Providing
from ipfsreg.registry.quota import Quotas
from ipfsreg.registry.recent import RecentContent
from ipfsreg.registry.records import Records
from ipfsreg.registry.reliance import Reliance, Relied, load_manifest, parse_pushed

MAX_CHANGES_PER_DELTA = 2000
"""A link is at most 410 bytes with its key, the record of a manifest 600, and a delta has to fit a block."""

MAX_RESOLVED = 4096
"""References whose meaning is remembered while nobody writes a name: two lookups were a fifth of what a GET costs."""

RECENT_BYTES = 8 << 20
"""Of manifests kept in memory: reading and hashing one again was a quarter of what a GET costs."""

UNCOUNTED_BYTES = 64 * 1024
"""Manifests up to this are read for as many as ask."""

READ_AT_ONCE = 4
"""Of larger ones: whoever asks for one holds all of it from its reading on, and hundreds may ask at once."""

MAX_ANNOTATION_BYTES = 16 * 1024
"""Annotations above this are left out of a referrers index (they stay in the manifest): every node keeps the index."""


class Manifests:
    """The manifests and tags of all repositories."""

    def __init__(
        self,
        names: Names,
        records: Records,
        blobs: BlobStore,
        links: Links,
        local: LocalBlobs,
        fetches: Fetches,
        providing: Providing,
        reliance: Reliance,
        holds: Holds,
        quotas: Quotas,
        peer: PeerId,
        immutable_tags: Sequence[str] = (),
    ) -> None:
        self._names = names
        self._records = records
        self._blobs = blobs
        self._links = links
        self._local = local
        self._fetches = fetches
        self._providing = providing
        self._reliance = reliance
        self._holds = holds
        self._quotas = quotas
        self._peer = peer
        self._immutable_tags = tuple(immutable_tags)
        self._last_us = 0
        self._being_set: dict[tuple[RepositoryName, Tag], list[Digest]] = {}
        self._recent = RecentContent(RECENT_BYTES)
        self._reading = trio.CapacityLimiter(READ_AT_ONCE)
        self._resolved: Lookups[tuple[RepositoryName, Reference], tuple[Digest, ManifestRecord]] = Lookups(MAX_RESOLVED)

    def resolve(self, repository: RepositoryName, reference: Reference) -> tuple[Digest, ManifestRecord]:
        """What *reference* stands for now. Raises NameUnknown, ManifestUnknown."""
        generation = self._names.generation
        found = self._resolved.get(generation, (repository, reference))
        if found is None:
            found = self._look_up(repository, reference)
            self._resolved.put(generation, (repository, reference), found)
        return found

    def _look_up(self, repository: RepositoryName, reference: Reference) -> tuple[Digest, ManifestRecord]:
        if isinstance(reference, Digest):
            digest: Digest | None = reference
        else:
            digest = self.tag_target(repository, reference) or self._past_target(repository, reference)
        record = digest and self._records.manifest(repository, digest)
        if not digest or not record:
            raise self._unknown(repository, reference)
        return digest, record

    def tag_target(self, repository: RepositoryName, tag: Tag) -> Digest | None:
        """What *tag* points at, or None."""
        record = self._records.tag(repository, tag)
        return None if record is None else record.digest

    def _past_target(self, repository: RepositoryName, reference: Tag) -> Digest | None:
        """What `tag--time` pointed at, where no tag of that very name exists."""
        past = parse_past(reference)
        return None if past is None else state_at(self.history(repository, past[0]), past[1])

    def history(self, repository: RepositoryName, tag: Tag) -> list[Move]:
        """Every move of *tag*, the latest first; see `history.trace`."""
        return trace(self._records.moves(repository, tag), self._records.tag(repository, tag))

    async def roll_back(self, repository: RepositoryName, tag: Tag, to: Digest | int) -> Move:
        """Move *tag* to a manifest of the repository, or to where it pointed *to* moves ago; return the new move.

        Raises:
            NameUnknown, ManifestUnknown: there is no such move, or its manifest is gone.
            Denied: the tag is immutable, or this node may not write there.
        """
        if isinstance(to, int):
            digest = next((move.to for move in self.history(repository, tag) if move.step == to), None)
            if digest is None:
                raise ManifestUnknown(f"{repository}:{tag} pointed at nothing {to} moves ago")
        else:
            digest = to
        _, record = self.resolve(repository, digest)
        manifest = await load_manifest(self._local, digest, record.media_type)
        if manifest is None:
            raise ContentUnavailable(f"manifest {digest} is not here now; pull it, then try again")
        async with self._reliance.kept(repository, digest, manifest) as relied:
            records, links = self._reliance.states(repository, relied)
            stands = Put(catalog.manifest_key(repository, digest), record.encode(digest))
            moved = self._move(repository, tag, digest, self._now_us()) or self._again(repository, tag)
            await self._commit([stands, *records, *links.values()], moved)
        return next(move for move in self.history(repository, tag) if move.to == digest)

    def exists(self, repository: RepositoryName) -> bool:
        """Whether the repository has anything in it, here or anywhere in the swarm."""
        prefix = catalog.repository_prefix(repository)
        return bool(self._names.scan(prefix, limit=1)) or self._links.has_pending(repository)

    def _unknown(self, repository: RepositoryName, reference: Reference) -> NameUnknown | ManifestUnknown:
        if not self.exists(repository):
            return NameUnknown(f"no repository {repository}")
        return ManifestUnknown(f"{repository} has no {reference}")

    def stat(self, repository: RepositoryName, reference: Reference) -> ManifestStat:
        """Raises NameUnknown, ManifestUnknown."""
        digest, record = self.resolve(repository, reference)
        return ManifestStat(digest, record.media_type, record.size)

    async def get(self, repository: RepositoryName, reference: Reference) -> ManifestContent:
        """Raises NameUnknown, ManifestUnknown, ContentUnavailable."""
        digest, record = self.resolve(repository, reference)
        data = self._recent.get(digest)
        if data is None:
            data = await self._read(repository, digest, record)
            self._recent.put(digest, data)
        return ManifestContent(ManifestStat(digest, record.media_type, record.size), data)

    async def _read(self, repository: RepositoryName, digest: Digest, record: ManifestRecord) -> bytes:
        """Raises ContentUnavailable."""
        data = await self._read_local(digest, record.size)
        if data is None:
            await self._fetches.fetch_whole(repository, digest, catalog.LinkRecord(record.size, record.root))
            data = await self._read_local(digest, record.size)
        if data is None:
            raise ContentUnavailable(f"manifest {digest} is not here any more; try again")
        return data

    async def _read_local(self, digest: Digest, size: int) -> bytes | None:
        if size <= UNCOUNTED_BYTES:
            return await self._local.read(digest, MAX_MANIFEST_BYTES)
        async with self._reading:
            # Somebody who waited before may have brought it.
            return self._recent.get(digest) or await self._local.read(digest, MAX_MANIFEST_BYTES)

    async def put(
        self,
        repository: RepositoryName,
        reference: Reference,
        media_type: str,
        data: bytes,
        tags: Sequence[Tag],
        *,
        overwrite: bool = True,
    ) -> ManifestPushed:
        """See `Registry.put_manifest`."""
        manifest = await parse_pushed(data, media_type or None)
        if isinstance(reference, Digest):
            digest = Digest.of(data, reference.algorithm)
            if digest != reference:
                raise DigestMismatch(f"the manifest is {digest}, it was pushed as {reference}")
        else:
            digest = Digest.of(data)
            tags = (reference, *tags)
        # What is denied or lacking is answered before anything is stored.
        self._reliance.states(repository, Relied(manifest, {}))
        self._check_tags(repository, tags, digest, overwrite=overwrite)
        await self._quotas.wait_ready()
        self._quotas.check(repository, len(data), digest)
        with self._holds.hold(digest):
            info = await self._blobs.put_whole(data, digest)
            self._providing.add(info.root)
            async with self._reliance.kept(repository, digest, manifest) as relied:
                # Again, and from here on without a pause: what it names may have been deleted meanwhile, its tags set.
                self._check_tags(repository, tags, digest, overwrite=overwrite)
                records, links = self._reliance.states(repository, relied)
                with self._setting(repository, tags, digest):
                    heads = await self._commit(
                        [self._record(repository, digest, info, manifest), *records, *links.values()],
                        self._rest(repository, digest, info, manifest, dict.fromkeys(tags)),
                    )
        if links:
            await self._links.drop_pending(repository, list(links))
        return ManifestPushed(digest, _subject_of(manifest), tuple(tags), heads)

    def _check_tags(self, repository: RepositoryName, tags: Iterable[Tag], to: Digest, *, overwrite: bool) -> None:
        """Raises Denied: a tag may not be moved to *to*."""
        for tag in tags:
            moves = bool(self._move(repository, tag, to, self._last_us))
            if overwrite and not self._is_immutable(repository, tag):
                continue
            before = self.tag_target(repository, tag)
            if moves and before is not None:
                raise Denied(f"{repository}:{tag} is at {before}, and you may not move a tag that there is")
            # What is being written does not show yet, and comes before what we would write.
            if any(other != to for other in self._being_set.get((repository, tag), ())):
                raise Denied(f"{repository}:{tag} is being set by another push")

    @contextmanager
    def _setting(self, repository: RepositoryName, tags: Iterable[Tag], to: Digest) -> Iterator[None]:
        """While the block lasts others know that *tags* will be moved to *to*."""
        names = [(repository, tag) for tag in dict.fromkeys(tags)]
        for name in names:
            self._being_set.setdefault(name, []).append(to)
        try:
            yield
        finally:
            for name in names:
                self._being_set[name].remove(to)
                if not self._being_set[name]:
                    del self._being_set[name]

    async def _commit(self, first: list[Change], rest: list[Change]) -> tuple[Cid, ...]:
        """Write *first* and *rest* as one delta. Where they do not fit into one block, *rest* comes last.

        The manifest comes before its links, because links that no manifest names are collected, and before its tags,
        because whoever sees a tag must find everything below it.
        """
        while len(first) > MAX_CHANGES_PER_DELTA:
            await self._names.commit(first[:MAX_CHANGES_PER_DELTA])
            first = first[MAX_CHANGES_PER_DELTA:]
        return await self._names.commit([*first, *rest])

    def _record(self, repository: RepositoryName, digest: Digest, info: BlobInfo, manifest: Manifest) -> Put:
        record = ManifestRecord(manifest.media_type, info.size, info.root, _subject_of(manifest))
        return Put(catalog.manifest_key(repository, digest), record.encode(digest))

    def _rest(
        self, repository: RepositoryName, digest: Digest, info: BlobInfo, manifest: Manifest, tags: Iterable[Tag]
    ) -> list[Change]:
        """What makes a manifest findable: its place among referrers, its tags."""
        now_us = self._now_us()
        subject = _subject_of(manifest)
        changes: list[Change] = []
        if subject is not None:
            annotations = dict(manifest.annotations)
            if sum(len(name) + len(value) for name, value in annotations.items()) > MAX_ANNOTATION_BYTES:
                annotations = {}
            referrer = ReferrerRecord(manifest.media_type, info.size, manifest.artifact_type, annotations)
            changes.append(Put(catalog.referrer_key(repository, subject, digest), referrer.encode()))
        for tag in tags:
            changes += self._move(repository, tag, digest, now_us) or self._again(repository, tag)
        return changes

    def _again(self, repository: RepositoryName, tag: Tag) -> list[Change]:
        """Where *tag* points already, written once more: it is no move, but a deletion beside it must not win."""
        key = catalog.tag_key(repository, tag)
        value = self._names.get(key)
        return [] if value is None else [Put(key, value)]

    def _now_us(self) -> int:
        """Microseconds since 1970, each once and never back: they are part of the keys of the history."""
        self._last_us = max(self._last_us + 1, time.time_ns() // 1000)
        return self._last_us

    def _move(self, repository: RepositoryName, tag: Tag, to: Digest | None, now_us: int) -> list[Change]:
        before = self.tag_target(repository, tag)
        if before == to:
            return []
        if before is not None and self._is_immutable(repository, tag):
            raise Denied(f"{repository}:{tag} is immutable: it stays at {before}")
        key = catalog.tag_key(repository, tag)
        move = MoveRecord(to, before, self._peer)
        return [
            Delete(key) if to is None else Put(key, TagRecord(to, now_us, self._peer).encode()),
            Put(catalog.history_key(repository, tag, now_us, self._peer), move.encode()),
        ]

    def _is_immutable(self, repository: RepositoryName, tag: Tag) -> bool:
        return any(fnmatchcase(f"{repository}:{tag}", pattern) for pattern in self._immutable_tags)

    async def delete(self, repository: RepositoryName, reference: Reference) -> tuple[Cid, ...]:
        """A tag alone, or a manifest with all its tags. Raises NameUnknown, ManifestUnknown, Denied."""
        now_us = self._now_us()
        if not isinstance(reference, Digest):
            changes = self._move(repository, reference, None, now_us)
            if not changes:
                raise self._unknown(repository, reference)
            return await self._names.commit(changes)
        digest, record = self.resolve(repository, reference)
        changes = [Delete(catalog.manifest_key(repository, digest))]
        if record.subject is not None:
            changes.append(Delete(catalog.referrer_key(repository, record.subject, digest)))
        for tag, pointed in self._records.tags(repository):
            if pointed.digest == digest:
                changes += self._move(repository, tag, None, now_us)
        return await self._names.commit(changes)

    def referrers(self, repository: RepositoryName, subject: Digest, artifact_type: str | None) -> list[Descriptor]:
        """Manifests whose subject is *subject*."""
        return [
            Descriptor(record.media_type, digest, record.size, record.artifact_type, record.annotations)
            for digest, record in self._records.referrers(repository, subject)
            if artifact_type is None or record.artifact_type == artifact_type
        ]


def _subject_of(manifest: Manifest) -> Digest | None:
    return None if manifest.subject is None else manifest.subject.digest

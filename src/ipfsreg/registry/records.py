"""Reading the name store as records. What a peer wrote that is no record counts as absent, and is told once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from functools import partial
from typing import TypeVar

from ipfsreg.crdt.interface import Names
from ipfsreg.errors import DigestInvalid, MalformedData
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, ReferrerRecord, TagRecord
from ipfsreg.registry.history import Move, read_move

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_TOLD = 1000
"""Keys of damaged records remembered, so that each is logged once."""


class Records:
    """The typed view of `Names`."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._told: set[str] = set()

    def tag(self, repository: RepositoryName, tag: Tag) -> TagRecord | None:
        """Where *tag* points."""
        return self._get(catalog.tag_key(repository, tag), TagRecord.decode)

    def manifest(self, repository: RepositoryName, digest: Digest) -> ManifestRecord | None:
        """The manifest *digest* of the repository."""
        return self._get(catalog.manifest_key(repository, digest), lambda data: ManifestRecord.decode(digest, data))

    def link(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """The blob *digest* of the repository."""
        return self._get(catalog.link_key(repository, digest), lambda data: LinkRecord.decode(digest, data))

    def tags(self, repository: RepositoryName, limit: int | None = None) -> Iterator[tuple[Tag, TagRecord]]:
        """Every tag of the repository, or those among the first *limit*."""
        prefix = catalog.tags_prefix(repository)
        for key, value in self._names.scan(prefix, limit=limit):
            record = self._decode(key, value, TagRecord.decode)
            if record is not None:
                yield Tag(key[len(prefix) :]), record

    def moves(self, repository: RepositoryName, tag: Tag) -> Iterator[Move]:
        """Every move of *tag*, in the order of their times."""
        prefix = catalog.history_prefix(repository, tag)
        for key, value in self._names.scan(prefix):
            move = self._decode(key, value, partial(read_move, key[len(prefix) :]))
            if move is not None:
                yield move

    def referrers(self, repository: RepositoryName, subject: Digest) -> Iterator[tuple[Digest, ReferrerRecord]]:
        """Every manifest that refers to *subject*."""
        prefix = catalog.referrers_prefix(repository, subject)
        for key, value in self._names.scan(prefix):
            record = self._decode(key, value, ReferrerRecord.decode)
            try:
                digest = Digest.parse(key[len(prefix) :])
            except DigestInvalid:
                continue
            if record is not None:
                yield digest, record

    def _get(self, key: str, decode: Callable[[bytes], T]) -> T | None:
        data = self._names.get(key)
        return None if data is None else self._decode(key, data, decode)

    def _decode(self, key: str, data: bytes, decode: Callable[[bytes], T]) -> T | None:
        try:
            return decode(data)
        except MalformedData as error:
            if key not in self._told and len(self._told) < MAX_TOLD:
                self._told.add(key)
                logger.warning("the record at %s cannot be read and counts as absent: %s", key, error)
            return None

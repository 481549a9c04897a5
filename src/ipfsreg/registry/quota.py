"""How much some repositories may hold together.

A quota counts what is named in the swarm, each blob and manifest once however many of its repositories have it; what
was pushed here and waits for its manifest; and what is coming in now. It is asked before bytes are taken. Every node
asks for itself: two nodes that take pushes at the same time can go beyond a quota by what each of them took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

import trio
import trio.lowlevel

from ipfsreg.crdt.interface import Names
from ipfsreg.errors import DigestInvalid, MalformedData, QuotaExceeded
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord
from ipfsreg.registry.links import Links, PendingLink

PAGE = 200


@dataclass(frozen=True, slots=True)
class Quota:
    """Repositories that share a quota."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too."""
    max_bytes: int


@dataclass(slots=True)
class _Usage:
    """What is named in the repositories of one quota, or waits for its manifest."""

    quota: Quota
    sizes: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key of a name, or what stands for a pending link -> digest, bytes."""
    names: Counter[str] = field(default_factory=Counter)
    """Digest -> how many of these speak of it."""
    counted: dict[str, int] = field(default_factory=dict)
    """Digest -> bytes, as the first said that spoke of it: names of peers may say different things."""
    total: int = 0

    def covers(self, repository: str) -> bool:
        return fnmatchcase(repository, self.quota.repositories)

    def apply(self, key: str, named: tuple[str, int] | None) -> None:
        """The name at *key* is another now; None: there is none."""
        before = self.sizes.pop(key, None)
        if before is not None:
            self.names[before[0]] -= 1
            if not self.names[before[0]]:
                del self.names[before[0]]
                self.total -= self.counted.pop(before[0])
        if named is not None:
            self.sizes[key] = named
            self.names[named[0]] += 1
            if self.names[named[0]] == 1:
                self.counted[named[0]] = named[1]
                self.total += named[1]


class Quotas:
    """All of them, on one node."""

    def __init__(self, names: Names, links: Links, quotas: Sequence[Quota]) -> None:
        self._names = names
        self._links = links
        self._usages = [_Usage(quota) for quota in quotas]
        self._next: list[_Usage] = []
        """Those that are being counted."""
        self._coming: dict[str, tuple[RepositoryName, int]] = {}
        self._ready = trio.Event()
        if quotas:
            links.watch(self._on_pending)
        else:
            self._ready.set()

    async def run(self) -> None:
        """Count what is named and what is pending, then follow it, for ever.

        Begun again after a StoreError it counts anew: it did not hear of what was deleted meanwhile. Until it has, who
        takes bytes already goes by what was counted before.
        """
        if not self._usages:
            return
        if self._ready.is_set():
            self._ready = trio.Event()
        self._next = [_Usage(usage.quota) for usage in self._usages]
        async with self._names.changes([catalog.ROOT]) as changes:
            after = ""
            while rows := self._names.scan(catalog.ROOT, after=after, limit=PAGE):
                for key, value in rows:
                    _apply(self._next, key, value)
                after = rows[-1][0]
                await trio.lowlevel.checkpoint()
            last: PendingLink | None = None
            while page := self._links.pending_page(last, PAGE):
                for last in page:
                    _apply_pending(self._next, last.repository, last.digest, last.size)
                await trio.lowlevel.checkpoint()
            self._usages, self._next = self._next, []
            self._ready.set()
            async for change in changes:
                _apply(self._usages, change.key, change.new)

    async def wait_ready(self) -> None:
        """Return when everything was counted once."""
        await self._ready.wait()

    def _on_pending(self, repository: RepositoryName, digest: Digest, size: int | None) -> None:
        _apply_pending(self._usages, repository, digest, size)
        _apply_pending(self._next, repository, digest, size)

    def check(self, repository: RepositoryName, more: int, digest: Digest | None = None) -> None:
        """Whether *more* bytes fit into *repository*, unless they are those of *digest* and counted already.

        Raises:
            QuotaExceeded.
        """
        for usage in self._usages:
            if not usage.covers(repository) or (digest is not None and str(digest) in usage.names):
                continue
            used = usage.total + sum(size for where, size in self._coming.values() if usage.covers(where))
            if used + more > usage.quota.max_bytes:
                raise QuotaExceeded(
                    f"{usage.quota.repositories} may hold {usage.quota.max_bytes} bytes and has {used} with what is on "
                    f"its way: {more} more do not fit"
                )

    def coming(self, key: str, repository: RepositoryName, size: int) -> None:
        """By the upload *key*, *size* bytes are here or on their way."""
        if self._usages:
            self._coming[key] = (repository, size)

    def of(self, key: str) -> int:
        """What was said of the upload last; 0: nothing. Beyond any size where there are no quotas."""
        return self._coming.get(key, ("", 0))[1] if self._usages else 1 << 62

    def came(self, key: str) -> None:
        """That upload is over, or rests."""
        self._coming.pop(key, None)


def _apply(usages: Iterable[_Usage], key: str, value: bytes | None) -> None:
    """The name at *key* has *value* now; None: it is gone."""
    repository = catalog.repository_of(key)
    if repository is not None:
        for usage in usages:
            if usage.covers(repository):
                usage.apply(key, None if value is None else _named(key, value))


def _apply_pending(usages: Iterable[_Usage], repository: RepositoryName, digest: Digest, size: int | None) -> None:
    """*repository* has *digest* pending now, of *size* bytes; None: it has not. No key of a name begins like this."""
    for usage in usages:
        if usage.covers(repository):
            usage.apply(f"pending {repository} {digest}", None if size is None else (str(digest), size))


def _named(key: str, value: bytes) -> tuple[str, int] | None:
    """The digest and the size of what the name at *key* speaks of; None if it speaks of no bytes."""
    for mark, decode in (("/_l/", LinkRecord.decode), ("/_m/", ManifestRecord.decode)):
        _, found, text = key.partition(mark)
        if found:
            try:
                digest = Digest.parse(text)
                return text, decode(digest, value).size
            except (DigestInvalid, MalformedData):
                return None
    return None

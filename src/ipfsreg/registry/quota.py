"""How much some repositories may hold together.

A quota counts what is named in the swarm, each blob and manifest once however many of its repositories have it; what
was pushed here and waits for its manifest; and what is coming in now. It is asked before bytes are taken. Every node
asks for itself: two nodes that take pushes at the same time can go beyond a quota by what each of them took.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
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
from ipfsreg.registry.links import Links

PAGE = 200


@dataclass(frozen=True, slots=True)
class Quota:
    """Repositories that share a quota."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too."""
    max_bytes: int


@dataclass(slots=True)
class _Usage:
    """What is named in the repositories of one quota."""

    quota: Quota
    sizes: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Key of a name -> digest, bytes."""
    names: Counter[str] = field(default_factory=Counter)
    """Digest -> how many names speak of it."""
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
                self.total -= before[1]
        if named is not None:
            self.sizes[key] = named
            self.names[named[0]] += 1
            if self.names[named[0]] == 1:
                self.total += named[1]


class Quotas:
    """All of them, on one node."""

    def __init__(self, names: Names, links: Links, quotas: Sequence[Quota]) -> None:
        self._names = names
        self._links = links
        self._usages = [_Usage(quota) for quota in quotas]
        self._coming: dict[str, tuple[RepositoryName, int]] = {}
        self._ready = trio.Event()
        if not quotas:
            self._ready.set()

    async def run(self) -> None:
        """Count what is named, then follow it, for ever."""
        if not self._usages:
            return
        async with self._names.changes([catalog.ROOT]) as changes:
            after = ""
            while rows := self._names.scan(catalog.ROOT, after=after, limit=PAGE):
                for key, value in rows:
                    self._apply(key, value)
                after = rows[-1][0]
                await trio.lowlevel.checkpoint()
            self._ready.set()
            async for change in changes:
                self._apply(change.key, change.new)

    async def wait_ready(self) -> None:
        """Return when everything was counted once."""
        await self._ready.wait()

    def _apply(self, key: str, value: bytes | None) -> None:
        repository = catalog.repository_of(key)
        if repository is not None:
            for usage in self._usages:
                if usage.covers(repository):
                    usage.apply(key, None if value is None else _named(key, value))

    def check(self, repository: RepositoryName, more: int, digest: Digest | None = None) -> None:
        """Whether *more* bytes fit into *repository*, unless they are those of *digest* and counted already.

        Raises:
            QuotaExceeded.
        """
        for usage in self._usages:
            if not usage.covers(repository) or (digest is not None and str(digest) in usage.names):
                continue
            used = (
                usage.total
                + self._pending(usage)
                + sum(size for where, size in self._coming.values() if usage.covers(where))
            )
            if used + more > usage.quota.max_bytes:
                raise QuotaExceeded(
                    f"{usage.quota.repositories} may hold {usage.quota.max_bytes} bytes and has {used} with what is on "
                    f"its way: {more} more do not fit"
                )

    def _pending(self, usage: _Usage) -> int:
        waiting = {
            str(digest): size
            for repository, digest, size in self._links.pending_sizes()
            if usage.covers(repository) and str(digest) not in usage.names
        }
        return sum(waiting.values())

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

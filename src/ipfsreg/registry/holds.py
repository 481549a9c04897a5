"""What must stay although no name speaks of it at this moment, and what clients were told. In memory.

A client that was told "this blob is here" skips its upload and names it in a manifest a moment later. What it was told
counts for a while, also when the last manifest that named the blob is deleted meanwhile, and keeps the bytes too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager

import trio

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry.catalog import LinkRecord

TOLD_S = 3600.0
"""So long a client may take from its question to its manifest; seconds less where its question was answered from
memory (`http/answers`)."""

MAX_TOLD = 65_536

FORGOTTEN_AT_ONCE = 256
"""Old answers thrown away in one go, a fraction of a millisecond."""

DOUBTED_S = 600.0
"""So long a blob that no peer gave is asked of clients again."""


class Holds:
    """All of them, of one node."""

    def __init__(self) -> None:
        self._held: Counter[Digest] = Counter()
        self._told: OrderedDict[tuple[RepositoryName, Digest], tuple[float, LinkRecord]] = OrderedDict()
        self._tellings: Counter[Digest] = Counter()
        """Blob -> in how many repositories somebody was told of it."""
        self._doubted: dict[Digest, float] = {}
        self.doubts = 0
        """How often a blob came to be doubted."""
        self._closing: dict[Digest, trio.Event] = {}

    @contextmanager
    def hold(self, *digests: Digest) -> Iterator[None]:
        """Keep the blobs while the block lasts: their bytes come first, what names them comes after."""
        self._held.update(digests)
        try:
            yield
        finally:
            for digest in digests:
                _take_one(self._held, digest)

    @contextmanager
    def closing(self, digest: Digest) -> Iterator[None]:
        """While the block lasts, who would begin to read the blob waits: its file is about to go."""
        over = self._closing[digest] = trio.Event()
        try:
            yield
        finally:
            del self._closing[digest]
            over.set()

    async def wait_decided(self, digest: Digest) -> None:
        """Return once the blob stays, or has gone; at once where neither is being done now."""
        while (over := self._closing.get(digest)) is not None:
            await over.wait()

    def is_held(self, digest: Digest) -> bool:
        """Whether somebody holds it now. May be asked from another thread."""
        return digest in self._held

    def tell(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> None:
        """A client was told that *repository* has the blob."""
        self.forget_old()
        if (repository, digest) not in self._told:
            self._tellings[digest] += 1
        self._told[repository, digest] = (trio.current_time(), link)
        self._told.move_to_end((repository, digest))
        if len(self._told) > MAX_TOLD:
            self._forget(*next(iter(self._told)))

    def told(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """What a client was told within `TOLD_S`."""
        when, link = self._told.get((repository, digest), (0.0, None))
        return link if link is not None and trio.current_time() < when + TOLD_S else None

    def is_told(self, digest: Digest) -> bool:
        """Whether a client was told of the blob in any repository. May be asked from another thread.

        True for longer than `TOLD_S`, until `forget_old` has come by: that thread has no clock of ours.
        """
        return digest in self._tellings

    def take_back(self, repository: RepositoryName, digest: Digest) -> None:
        """The blob was deleted from *repository* here."""
        if (repository, digest) in self._told:
            self._forget(repository, digest)

    def forget_old(self) -> bool:
        """Throw away some of what is older than `TOLD_S`; return whether there may be more."""
        now = trio.current_time()
        for _ in range(FORGOTTEN_AT_ONCE):
            oldest = next(iter(self._told), None)
            if oldest is None or now < self._told[oldest][0] + TOLD_S:
                return False
            self._forget(*oldest)
        return True

    def _forget(self, repository: RepositoryName, digest: Digest) -> None:
        del self._told[repository, digest]
        _take_one(self._tellings, digest)

    def doubt(self, digest: Digest) -> None:
        """No peer gave the blob. Clients that ask whether it is here had better push it."""
        now = trio.current_time()
        self._doubted = {one: until for one, until in self._doubted.items() if until > now}
        self._doubted[digest] = now + DOUBTED_S
        self.doubts += 1

    def is_doubted(self, digest: Digest) -> bool:
        """Whether that was within `DOUBTED_S`."""
        return trio.current_time() < self._doubted.get(digest, 0.0)


def _take_one(counts: Counter[Digest], digest: Digest) -> None:
    counts[digest] -= 1
    if not counts[digest]:
        del counts[digest]

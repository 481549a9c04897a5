"""What must stay although no name speaks of it at this moment, and what clients were told. In memory.

A client that was told "this blob is here" skips its upload and names it in a manifest a moment later. What it was told
counts for a while, also when the last manifest that named the blob is deleted meanwhile.
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
"""So long a client may take from its question to its manifest."""

MAX_TOLD = 65_536

DOUBTED_S = 600.0
"""So long a blob that no peer gave is asked of clients again."""


class Holds:
    """All of them, of one node."""

    def __init__(self) -> None:
        self._held: Counter[Digest] = Counter()
        self._told: OrderedDict[tuple[RepositoryName, Digest], tuple[float, LinkRecord]] = OrderedDict()
        self._doubted: dict[Digest, float] = {}

    @contextmanager
    def hold(self, digest: Digest) -> Iterator[None]:
        """Keep the blob while the block lasts: its bytes come first, what names them comes after."""
        self._held[digest] += 1
        try:
            yield
        finally:
            self._held[digest] -= 1
            if not self._held[digest]:
                del self._held[digest]

    def is_held(self, digest: Digest) -> bool:
        """Whether somebody holds it now. May be asked from another thread."""
        return digest in self._held

    def tell(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> None:
        """A client was told that *repository* has the blob."""
        self._told[repository, digest] = (trio.current_time(), link)
        self._told.move_to_end((repository, digest))
        if len(self._told) > MAX_TOLD:
            self._told.popitem(last=False)

    def told(self, repository: RepositoryName, digest: Digest) -> LinkRecord | None:
        """What a client was told within `TOLD_S`."""
        when, link = self._told.get((repository, digest), (0.0, None))
        return link if link is not None and trio.current_time() < when + TOLD_S else None

    def take_back(self, repository: RepositoryName, digest: Digest) -> None:
        """The blob was deleted from *repository* here."""
        self._told.pop((repository, digest), None)

    def doubt(self, digest: Digest) -> None:
        """No peer gave the blob. Clients that ask whether it is here had better push it."""
        now = trio.current_time()
        self._doubted = {one: until for one, until in self._doubted.items() if until > now}
        self._doubted[digest] = now + DOUBTED_S

    def is_doubted(self, digest: Digest) -> bool:
        """Whether that was within `DOUBTED_S`."""
        return trio.current_time() < self._doubted.get(digest, 0.0)

"""Telling content routing what is here: the root of every whole blob, and of no leaf.

Announcing must never hold up a push: roots are gathered and handed over in batches behind it. What a crash cuts off in
between is made up for at the next start, when all roots are handed over again.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.dht.interface import Routing
from ipfsreg.errors import StoreError
from ipfsreg.ipld.cid import Cid

logger = logging.getLogger(__name__)

BATCH = 1000


class Providing:
    """Roots on their way to content routing."""

    def __init__(self, routing: Routing | None) -> None:
        """*routing*: None on a network where nobody is asked."""
        self._routing = routing
        self._waiting: dict[Cid, None] = {}
        self._wake = trio.Event()

    def add(self, root: Cid) -> None:
        """The blob below *root* is here whole."""
        if self._routing is not None:
            self._waiting[root] = None
            self._wake.set()

    async def withdraw(self, roots: Sequence[Cid]) -> None:
        """The blobs below *roots* are about to go. Raises StoreError."""
        if self._routing is not None:
            for root in roots:
                self._waiting.pop(root, None)
            await self._routing.unprovide(roots)

    async def run(self, blobs: BlobStore) -> None:
        """Hand over what is here already, then whatever is added, for ever."""
        if self._routing is None:
            return
        for info in blobs.blobs():
            self._waiting[info.root] = None
            if len(self._waiting) >= BATCH:
                await self._hand_over(self._routing)
        while True:
            await self._hand_over(self._routing)
            self._wake = trio.Event()
            if not self._waiting:
                await self._wake.wait()

    async def _hand_over(self, routing: Routing) -> None:
        batch = list(self._waiting)[:BATCH]
        for root in batch:
            del self._waiting[root]
        if not batch:
            return
        try:
            await routing.provide(batch)
        except StoreError as error:
            logger.warning("%d roots are not announced before the next start: %s", len(batch), error)

"""A store that makes room by itself: what was only pulled through this node goes when its room is needed.

The least recently used goes first, and only what other nodes prove to have at this moment (`holders`). Never: what was
pushed here or what an acknowledged push relies on (`BlobStore.keep`), manifests, blobs that wait for their manifest,
what is being read or pushed now, and blobs of repositories that the configuration keeps. What has arrived of a blob
that nobody fetches any more goes without a question.

Why one copy stays wherever many nodes make room at once, asking nobody in particular: while a node decides about a blob
it tells whoever asks that it has it not. So whoever lets a blob go relies on a node that had it and that begins to
decide later, if ever, and so on; the last of them is still there (docs/decisions/0108-a-store-that-makes-room.md).

Crash rules are those of every deletion (`blockstore.shelf`): the row goes first, durably, and then the file.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from typing import Literal

import trio

from ipfsreg.blockstore.interface import BlobInfo, BlobStore, Pulled
from ipfsreg.crdt.interface import Names
from ipfsreg.errors import StoreError
from ipfsreg.oci.digest import Digest
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.holders import MAX_PIECES, Holders
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.links import Links
from ipfsreg.registry.providing import Providing

logger = logging.getLogger(__name__)

SLACK_PART = 20
"""Of a store with a limit this part is kept free, where it can be, so that few pulls have to wait for room."""

LOOK_S = 10.0
"""Between two looks whether that much is free."""

NOTE_S = 60.0
"""Between two times that uses are written down. What a crash forgets of them changes an order and nothing else."""

TRY_AGAIN_S = 120.0
"""After nothing could go."""

MAKE_ROOM_S = 20.0
"""So long a pull or push waits for room."""

PAGE = 64

MAX_LOOKED_AT = 4096
"""Blobs looked at for one pull or push."""

NAMES_LOOKED_AT = 200
"""Repositories of one blob that are held against the patterns; where there are more the blob is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvictionSettings:
    """What may go, and when."""

    evict: Literal["pulled", "nothing"] = "pulled"
    copies: int = 1
    """So many other nodes must have it."""
    keep: tuple[str, ...] = ()
    """Patterns of repositories whose blobs stay."""


@dataclass(slots=True)
class Evictions:
    """What was done since the start."""

    blobs: int = 0
    bytes: int = 0
    partials: int = 0
    """Beginnings of blobs that nobody fetched any more."""
    spared: int = 0
    """Times that a blob stayed, because not enough others had it, or it was needed here."""
    refused: int = 0
    """Times that not enough room could be made."""


class Evictor:
    """Makes room in the store of one node."""

    def __init__(
        self,
        names: Names,
        blobs: BlobStore,
        links: Links,
        holds: Holds,
        providing: Providing,
        holders: Holders | None,
        settings: EvictionSettings,
    ) -> None:
        """*holders*: None where there is no network to ask."""
        self._names = names
        self._blobs = blobs
        self._links = links
        self._holds = holds
        self._providing = providing
        self._holders = holders
        self.settings = settings
        self._turn = trio.Lock()
        self._leaving: set[Digest] = set()
        self.done = Evictions()

    def will_stay(self, digest: Digest) -> bool:
        """Whether others may rely on the blob: nobody decides now whether it goes, and no collector will take it."""
        return digest not in self._leaving and any(
            self._names.ends_in(mark, str(digest)) for mark in catalog.BLOB_MARKS
        )

    async def run(self) -> None:
        """Keep some room free, for ever. Raises StoreError."""
        noted_at = trio.current_time()
        while True:
            await trio.sleep(LOOK_S)
            if trio.current_time() >= noted_at + NOTE_S:
                await self._blobs.note_uses()
                noted_at = trio.current_time()
            slack = self._blobs.usage().limit // SLACK_PART
            if self._blobs.shortage(slack) and not await self.make_room(slack, waited_for=False):
                await trio.sleep(TRY_AGAIN_S)

    async def make_room(self, more: int, *, waited_for: bool = True) -> bool:
        """Let blobs go until *more* bytes fit; return whether they do now. *waited_for*: by a pull or push.

        Raises StoreError. Cancelled: some have gone.
        """
        if not self._blobs.shortage(more):
            await trio.lowlevel.checkpoint()
            return True
        with trio.move_on_after(MAKE_ROOM_S):
            async with self._turn:
                if self.settings.evict == "pulled" and self._blobs.shortage(more) <= self._blobs.usage().pulled:
                    await self._free(more)
        fits = not self._blobs.shortage(more)
        if not fits and waited_for:
            self.done.refused += 1
        return fits

    async def _free(self, more: int) -> None:
        await self._blobs.note_uses()
        # Somewhat more at once, because asking others takes its time. But nothing goes in vain for that alone.
        enough = more + self._blobs.usage().limit // SLACK_PART
        after = (-1, -1)
        seen: set[Digest] = set()
        while self._blobs.shortage(enough) and len(seen) < MAX_LOOKED_AT:
            page = [one for one in self._blobs.least_used(after, PAGE) if one.info.digest not in seen]
            if not page:
                return
            after = page[-1].place
            seen.update(one.info.digest for one in page)
            await self._drop_beginnings(page, enough)
            for batch in _batches([one.info for one in page if one.is_whole], self._blobs.shortage(enough)):
                if not self._blobs.shortage(enough):
                    return
                if not await self._decide(batch, enough):
                    return

    async def _drop_beginnings(self, page: Sequence[Pulled], enough: int) -> None:
        for one in page:
            if one.is_whole or not self._blobs.shortage(enough):
                continue
            if await self._blobs.drop_idle_partial(one.info.digest):
                logger.info("what had arrived of blob %s went to make room", one.info.digest)
                self.done.partials += 1

    async def _decide(self, batch: Sequence[BlobInfo], enough: int) -> bool:
        """Let those of *batch* go that may, as long as there is not enough room. False: there is nobody to ask."""
        free = [info for info in batch if not self._is_needed(info.digest) and not self._is_configured(info.digest)]
        if self._holders is None:
            return False
        if not free:
            await self._blobs.spare([info.digest for info in batch])
            return True
        self._leaving.update(info.digest for info in free)
        try:
            found, answers = await self._holders.find(free, self.settings.copies)
            going: list[tuple[BlobInfo, list[PeerId]]] = []
            short = self._blobs.shortage(enough)
            for info in free:
                peers = found.get(info.digest, [])
                if len(peers) >= self.settings.copies and short > 0:
                    going.append((info, peers))
                    short -= info.size
            await self._let_go(going)
        finally:
            self._leaving.difference_update(info.digest for info in free)
        staying = [info.digest for info in batch if self._blobs.stat(info.digest) is not None]
        self.done.spared += len(staying)
        if answers:
            # They have their turn again when all others have had theirs. With nobody in reach nothing was learned.
            await self._blobs.spare([digest for digest in staying if len(found.get(digest, [])) < self.settings.copies])
        return answers > 0

    async def _let_go(self, going: Sequence[tuple[BlobInfo, list[PeerId]]]) -> None:
        if not going:
            return
        await self._providing.withdraw([info.root for info, _ in going])
        async with trio.open_nursery() as nursery:
            for info, peers in going:
                nursery.start_soon(self._evict, info, peers)

    async def _evict(self, info: BlobInfo, peers: Sequence[PeerId]) -> None:
        try:
            with self._holds.closing(info.digest):
                gone = await self._blobs.evict(info.digest, partial(self._is_needed, info.digest))
        except StoreError as error:
            logger.warning("blob %s was to make room and did not: %s", info.digest, error)
            gone = False
        if gone:
            names = ", ".join(map(str, peers))
            logger.info("blob %s of %d bytes went to make room; %s has it", info.digest, info.size, names)
            self.done.blobs += 1
            self.done.bytes += info.size
        elif self._blobs.stat(info.digest) is not None:
            self._providing.add(info.root)

    def _is_needed(self, digest: Digest, db: sqlite3.Connection | None = None) -> bool:
        """Whether the blob must stay; with *db* from within the transaction that would delete it."""
        return (
            self._holds.is_held(digest)
            or self._names.ends_in(catalog.MANIFEST_MARK, str(digest), db)
            or self._links.is_pending(digest, db)
        )

    def _is_configured(self, digest: Digest) -> bool:
        """Whether a repository that the configuration keeps has the blob."""
        if not self.settings.keep:
            return False
        keys = self._names.ending_in(catalog.LINK_MARK, str(digest), NAMES_LOOKED_AT)
        return len(keys) == NAMES_LOOKED_AT or any(
            fnmatchcase(catalog.repository_of(key) or "", pattern) for key in keys for pattern in self.settings.keep
        )


def _batches(infos: Sequence[BlobInfo], short: int) -> list[list[BlobInfo]]:
    """*infos* in groups that are asked about together: enough for *short* bytes, as half of them may have to stay."""
    batches: list[list[BlobInfo]] = [[]]
    size = 0
    for info in infos:
        if batches[-1] and (size >= 2 * short or len(batches[-1]) == MAX_PIECES):
            batches.append([])
            size = 0
        batches[-1].append(info)
        size += info.size
    return batches if batches[0] else []

"""The whole blobs on disk, with their index: how one is put there, found to be damaged, and taken away.

What holds after a crash at any point:

- Published is what has a row, and the row is the last step: bytes fsynced, renamed to their place, directory fsynced,
  then one durable transaction with blob, leaves and inner nodes. Before it there is at most a file nobody knows,
  which the sweep after the next start deletes.
- Deletion begins with the row. A crash before the file is gone leaves such a file too.
- A blob found damaged loses its row's state first and its place afterwards.
- A fetch that was cut off between rename and row lies in its place with the row of an arriving blob. It is moved back,
  and nothing has to be fetched again.

So a row without a file can only come from outside. It is noticed when the file is needed, and the blob is then counted
as arriving: whoever wants it fetches what is missing.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import trio

from ipfsreg.blockstore.arrivals import ArrivalFeed
from ipfsreg.blockstore.checked import Checked
from ipfsreg.blockstore.crew import Crew
from ipfsreg.blockstore.disk import Disk, naming_errors
from ipfsreg.blockstore.hashing import Follower, Hasher
from ipfsreg.blockstore.index import FILE, INLINE, Index
from ipfsreg.blockstore.intake import Buffers
from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.blockstore.outline import Leaf
from ipfsreg.blockstore.room import Room
from ipfsreg.blockstore.waiting import Turns
from ipfsreg.errors import StoreError
from ipfsreg.ipld.block import Block
from ipfsreg.oci.digest import Digest

logger = logging.getLogger(__name__)

NOTED_AT_ONCE = 500
"""Uses of blobs written down in one transaction."""

STRAY_FILES = 64
"""A crash leaves few files of pushes under way. Where more are unknown, the database is missing something."""


class Shelf:
    """Shared by everything in the store that begins or ends a blob."""

    def __init__(self, disk: Disk, index: Index, room: Room, nursery: trio.Nursery) -> None:
        self.disk = disk
        self.room = room
        self.index = index
        self.feed = ArrivalFeed()
        self.checked = Checked()
        """Digests of whole blobs, and (digest, multihash) of single leaves."""
        self._nursery = nursery
        self._hash_threads = trio.CapacityLimiter(max(2, os.cpu_count() or 1))
        self.crew = Crew(max(3, (os.cpu_count() or 1) + 1))
        """Threads for what is being pushed."""
        self.buffers = Buffers()
        self._turns: Turns[Digest] = Turns()
        self.leaving: set[str] = set()
        """Uploads that are published, and whose files are still to be removed."""
        self._placing: set[Digest] = set()
        self._materialized: set[Digest] = set()
        self._used: dict[Digest, int] = {}
        room.stored = lambda: index.totals()[0]

    def spawn(self, task: Callable[[], Awaitable[None]]) -> None:
        """Run *task* beside everything else; it is cancelled when the store closes. What fails in it is logged."""
        self._nursery.start_soon(_contained, task)

    @property
    def hash_threads(self) -> trio.CapacityLimiter:
        """Slots for jobs that keep a core busy."""
        return self._hash_threads

    def follower(self, path: Path, algorithm: str, *, leaves: bool) -> Follower:
        """A hasher that follows the file at *path* while it grows."""
        return Follower(path, Hasher(algorithm, leaves=leaves), self.spawn, self._hash_threads)

    def alone(self, digest: Digest) -> AbstractAsyncContextManager[None]:
        """Hold the blob's place: between a file and its row nobody else changes either."""
        return self._turns.alone(digest)

    # ---------------------------------------------------------- publishing

    async def publish_file(
        self,
        source: Path,
        info: BlobInfo,
        leaves: Sequence[tuple[bytes, Leaf]],
        nodes: Sequence[Block],
        *,
        keep: bool = True,
    ) -> BlobInfo:
        """Make the bytes of *source*, already checked, the blob; on return it survives a power cut.

        Without *keep* it may go again when room is needed.

        Raises:
            StoreFull, StoreError: *source* is where it was, and nothing is published.

        Once begun it is not cancelled.
        """
        async with self.alone(info.digest):
            with trio.CancelScope(shield=True):
                info = await self._place(source, info, leaves, nodes, keep=keep)
        self.feed.publish([multihash for multihash, _ in leaves] + [block.cid.multihash for block in nodes])
        return info

    async def _place(
        self,
        source: Path,
        info: BlobInfo,
        leaves: Sequence[tuple[bytes, Leaf]],
        nodes: Sequence[Block],
        *,
        keep: bool,
    ) -> BlobInfo:
        self._placing.add(info.digest)
        try:
            stamp = await trio.to_thread.run_sync(self.disk.publish, source, info.digest)
            self._materialized.discard(info.digest)
            self.checked.add(info.digest, stamp)
            try:
                return await self.index.publish(info, FILE, leaves, nodes, keep=keep)
            except StoreError:
                await self._take_back(source, info.digest)
                raise
        finally:
            self._placing.discard(info.digest)

    async def _take_back(self, source: Path, digest: Digest) -> None:
        """The row could not be written: the file is not published, unless the blob was here before."""
        row = self.index.blob(digest)
        if row is None or row.state != FILE:
            with naming_errors():
                await trio.to_thread.run_sync(os.rename, self.disk.blob_path(digest), source)

    async def publish_inline(self, info: BlobInfo, content: Block, *, keep: bool = True) -> BlobInfo:
        """Make *content*, the only leaf and already checked, the blob; on return it survives a power cut."""
        async with self.alone(info.digest):
            with trio.CancelScope(shield=True):
                row = self.index.blob(info.digest)
                if row is not None and row.state == FILE and row.info.root != info.root:
                    # It came from peers in another layout. The root stays, and names no block with all the bytes.
                    leaf = (content.cid.multihash, Leaf(0, info.size, framed=False))
                    scratch = await trio.to_thread.run_sync(self.disk.write_scratch, content.data)
                    try:
                        info = await self._place(scratch, info, [leaf], [], keep=keep)
                    finally:
                        await self.remove_file(scratch)  # where it was not moved
                else:
                    info = await self.index.publish(info, INLINE, [], [content], keep=keep)
        self.feed.publish([content.cid.multihash])
        return info

    # ------------------------------------------------------------- reading

    def materialize(self, info: BlobInfo) -> Path | None:
        """A file with the bytes of an inline blob; None if they are gone. Blocks, for a few dozen microseconds.

        Files of earlier runs are not trusted: they were never fsynced.
        """
        path = self.disk.blob_path(info.digest)
        if info.digest in self._materialized and path.exists():
            return path
        data = self.index.small_block(info.root.multihash)
        if data is None:
            return None
        self.disk.materialize(info.digest, data)
        self._materialized.add(info.digest)
        return path

    def used(self, digest: Digest) -> None:
        """The blob was asked for."""
        self._used[digest] = time.time_ns() // 1_000_000

    async def note_uses(self) -> None:
        """Write down which blobs were asked for since the last time. Raises StoreError."""
        used, self._used = self._used, {}
        rows = list(used.items())
        for start in range(0, len(rows), NOTED_AT_ONCE):
            await self.index.used(rows[start : start + NOTED_AT_ONCE])

    # -------------------------------------------------------- taking away

    async def remove(
        self, digest: Digest, unless: Callable[[sqlite3.Connection | None], bool] = lambda db: False
    ) -> bool:
        """Delete a whole blob. False: there is none, or *unless*, asked in the transaction, forbids it."""
        async with self.alone(digest):
            row = self.index.blob(digest)
            if row is None or not row.is_whole:
                return False
            with trio.CancelScope(shield=True):
                if not await self.index.forget(digest, unless):
                    return False
                if row.state == FILE or digest in self._materialized:
                    self._materialized.discard(digest)
                    await trio.to_thread.run_sync(self.disk.remove, self.disk.blob_path(digest))
        return True

    async def demote(self, digest: Digest, is_damaged: Callable[[], Awaitable[bool]]) -> None:
        """Count a whole blob as arriving, if it is damaged still. Its file becomes what has arrived of it.

        *is_damaged* is asked once more, because a good copy may have come since the discovery.
        """
        async with self.alone(digest):
            row = self.index.blob(digest)
            if row is None or not row.is_whole or not await is_damaged():
                return
            logger.error("blob %s is damaged; what is missing of it has to be fetched again", digest)
            with trio.CancelScope(shield=True):
                await self.index.demote(digest)
                self._materialized.discard(digest)
                await trio.to_thread.run_sync(self._set_aside, digest, row.state == FILE)

    def _set_aside(self, digest: Digest, keep: bool) -> None:
        place, aside = self.disk.blob_path(digest), self.disk.arriving_path(digest)
        with naming_errors():
            if keep and place.exists() and not aside.exists():
                os.rename(place, aside)
            else:
                place.unlink(missing_ok=True)

    async def remove_file(self, path: Path) -> None:
        """Delete a file whose bytes are published already. If it cannot be, the sweep or the expiry will."""
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(self.disk.remove, path)
            except StoreError as error:
                logger.warning("%s was not removed: %s", path, error)

    # ------------------------------------------------------------ sweeping

    def recall(self, digest: Digest) -> None:
        """Move the file of an arriving blob back from where a crash near its end left it. Raises StoreError."""
        row = self.index.blob(digest)
        if row is not None and not row.is_whole and digest not in self._placing:
            self._set_aside(digest, keep=True)

    async def sweep(self) -> None:
        """Delete files that no row knows, left by a crash. May run beside everything else."""
        # Files beside a database that knows no blob at all are what an operator still has, not what a crash left.
        is_used = any(True for whole in (True, False) for _ in self.index.blobs(whole=whole))
        for files, is_known in (
            (self.disk.blob_files, self._is_blob),
            (self.disk.arriving_files, self._is_arriving),
        ):
            found = await trio.to_thread.run_sync(lambda files=files: list(files()))
            unknown = sum(digest is None or not is_known(digest) for _, digest in found)
            if unknown > STRAY_FILES or (unknown and not is_used):
                logger.error(
                    "the database knows nothing of %d files in %s: was node.db lost? They are left alone; "
                    "`ipfsreg repair` takes them in",
                    unknown,
                    self.disk.directory,
                )
                continue
            for path, digest in found:
                # Looked up and deleted without a pause: whoever publishes is either in `_placing` or has a row.
                if digest is not None:
                    self.recall(digest)
                if digest is None or not is_known(digest):
                    self.disk.remove(path)
                    logger.info("removed %s, left over from an interrupted write", path)
                await trio.lowlevel.checkpoint()

    def _is_blob(self, digest: Digest) -> bool:
        if digest in self._placing or digest in self._materialized:
            return True
        row = self.index.blob(digest)
        return row is not None and row.state == FILE

    def _is_arriving(self, digest: Digest) -> bool:
        row = self.index.blob(digest)
        return row is not None and not row.is_whole


async def _contained(task: Callable[[], Awaitable[None]]) -> None:
    try:
        await task()
    except StoreError:
        logger.warning("work in the background of the store failed", exc_info=True)

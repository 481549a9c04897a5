"""A blob that is arriving: a sparse file, and the outline of its DAG.

The file in `arriving/` has the blob's full size from the start; what has not come is a hole. There is no bitmap to keep
in step with it: after a restart the file system says which parts were ever written, and only leaves whose bytes there
hash to their CID are counted. So it does not matter what a crash or a power cut left in the file. Inner nodes are
written to the database behind the arrival, in groups; one that was lost is fetched again.

The OCI digest is computed along the file's beginning as it fills, so that at the end only the rest has to be hashed.
"""

from __future__ import annotations

import logging
import os
import time
import weakref
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from operator import itemgetter
from pathlib import Path
from typing import Protocol

import trio

from ipfsreg.blockstore.disk import named, read_all, written_ranges
from ipfsreg.blockstore.filling import Filling
from ipfsreg.blockstore.index import INLINE_BYTES
from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.blockstore.outline import Leaf, Outline, Placement
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.blockstore.waiting import RangeWaiters, Turns
from ipfsreg.errors import (
    BlockNotFound,
    DigestMismatch,
    IpfsregError,
    MalformedData,
    StoreDamaged,
    StoreError,
)
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.ipld.unixfs import leaf_frame
from ipfsreg.oci.digest import Digest

logger = logging.getLogger(__name__)

SYNC_BYTES = 64 * 1024 * 1024
"""So much is written before the disk is told to begin with it: what is left at the end, all readers wait for."""

_BATCH = 8
"""Leaves looked for on disk at one time: bounds what is in memory."""


class _Owner(Protocol):
    """Who keeps the partial blobs."""

    def is_over(self, partial: DiskPartial) -> None:
        """It is published or thrown away."""


class DiskPartial:
    """Keeps `PartialBlob`."""

    def __init__(self, info: BlobInfo, shelf: Shelf, owner: _Owner) -> None:
        """Raises MalformedData: the root cannot be a file of that size."""
        self.info = info
        self.path = shelf.disk.arriving_path(info.digest)
        self._shelf = shelf
        self._owner = owner
        self._row_id = 0
        self._file = -1
        """Open as long as this object lives, so that readers go on when the blob is published, or deleted."""
        self._outline = Outline(info.root, info.size)
        self._waiters = RangeWaiters(self._outline.has_range)
        self._follower = shelf.follower(self.path, info.digest.algorithm, leaves=False)
        self._filling = Filling(self._follower, lambda: self._outline.prefix)
        self._closing: Callable[[], object] | None = None
        self._unsaved: list[Block] = []
        self._saving = False
        self._unsynced = 0
        self._syncing = False
        self._completing = trio.Lock()
        self._published: BlobInfo | None = None

    @property
    def digest(self) -> Digest:
        return self.info.digest

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def root(self) -> Cid:
        return self.info.root

    @property
    def missing_bytes(self) -> int:
        return self._outline.missing_bytes

    def wanted(self, start: int = 0, end: int | None = None, limit: int | None = None) -> list[Cid]:
        return self._outline.wanted(start, self.size if end is None else end, limit)

    def has_range(self, start: int, end: int) -> bool:
        return self._outline.has_range(start, end)

    async def wait_range(self, start: int, end: int) -> None:
        await self._waiters.wait(start, end)

    # ------------------------------------------------------------- opening

    async def prepare(self) -> None:
        """Make the file, or find out what it already has. Raises StoreFull, StoreError."""
        row = await self._shelf.index.begin(self.info)
        self._row_id = row.id
        self._shelf.recall(self.digest)
        try:
            self._file, is_new = await trio.to_thread.run_sync(_open_file, self.path, self.size)
            self._closing = weakref.finalize(self, os.close, self._file)
            if not is_new:
                await self._recover()
        except OSError as error:
            raise named(error) from error
        await self._place_known()
        self._filling.settled()

    async def _recover(self) -> None:
        """Count what an earlier run left: inner nodes from the database, leaves from the file. Raises OSError."""
        ranges = await trio.to_thread.run_sync(written_ranges, self._file)
        tried: set[bytes] = set()
        while True:
            spans = [span for span in self._outline.missing() if span.cid.multihash not in tried]
            if not spans:
                return
            for start in range(0, len(spans), _BATCH):
                batch = spans[start : start + _BATCH]
                tried.update(span.cid.multihash for span in batch)
                stored = {span.cid.multihash: self._shelf.index.small_block(span.cid.multihash) for span in batch}
                asked = [
                    (span.cid, span.start, span.end)
                    for span in batch
                    if stored[span.cid.multihash] is None and _covers(ranges, span.start, span.end)
                ]
                found = await trio.to_thread.run_sync(_find_leaves, self._file, asked, limiter=self._shelf.hash_threads)
                for span in batch:
                    data = stored[span.cid.multihash]
                    if data is not None and span.cid.matches(data):
                        await self._take(Block(span.cid, data))
                for block, offset in found:
                    placement = self._outline.place(block)
                    # The bytes are known to lie at this one place; a run of equal leaves is written again.
                    await self._write(placement, skip=offset)
                    self._settle(placement)

    def close(self) -> None:
        """The store is closing: nothing can be read or written any more."""
        self._file = -1
        if self._closing is not None:
            self._closing()

    def take_up(self) -> None:
        """Somebody fetches again: readers may wait again."""
        self._waiters.failure = None

    @property
    def is_abandoned(self) -> bool:
        """Whether nobody fetches it now."""
        return self._waiters.failure is not None

    # ------------------------------------------------------------ arriving

    async def put(self, block: Block) -> None:
        await trio.lowlevel.checkpoint()
        self._check_usable()
        try:
            await self._take(block)
            await self._place_known()
        except MalformedData as error:
            raise await self._throw_away(
                DigestMismatch(f"root {self.root} does not lead to {self.digest}: {error}")
            ) from None

    async def _place_known(self) -> None:
        """Put what need not be fetched: blocks that their CID holds, and leaves that are here at another place."""
        outline = self._outline
        # Taken off the lists only when placed: a cancelled `put` must not lose what nobody else would bring.
        while outline.inline or outline.again:
            if outline.inline:
                block = outline.inline[-1]
                await self._take(block)
                outline.inline[:] = [other for other in outline.inline if other is not block]
            else:
                cid = outline.again[-1]
                leaf = outline.leaves[cid.multihash]
                content = await self.read(leaf.offset, leaf.offset + leaf.length)
                await self._take(Block(cid, leaf.block_data(content)))
                outline.again[:] = [other for other in outline.again if other is not cid]

    async def _take(self, block: Block) -> None:
        placement = self._outline.place(block)
        if placement.spans:
            await self._write(placement)
            self._settle(placement)

    async def _write(self, placement: Placement, skip: int | None = None) -> None:
        """Put the block's content wherever it belongs, except at offset *skip*. Raises StoreFull."""
        offsets = [span.start for span in placement.spans if span.start != skip]
        if placement.content and offsets:
            await self._filling.write(self._file, placement.content, offsets)

    def _settle(self, placement: Placement) -> None:
        self._outline.settle(placement)
        if placement.is_node and placement.block.cid.multihash in self._outline.nodes:
            self._save(placement.block)
        self._filling.settled()
        self._unsynced += len(placement.content) * len(placement.spans)
        if self._unsynced >= SYNC_BYTES:
            self._sync_behind()
        for span in placement.spans:
            self._waiters.arrived(span.start, span.end)
        if self.find(placement.block.cid.multihash) is not None:
            self._shelf.feed.publish([placement.block.cid.multihash])

    def _sync_behind(self) -> None:
        """Let the disk begin with what was written. Durable is only what was published."""
        self._unsynced = 0
        if not self._syncing:
            self._syncing = True
            self._shelf.spawn(self._sync)

    async def _sync(self) -> None:
        try:
            await trio.to_thread.run_sync(os.fdatasync, self._file)
        except OSError as error:
            # Publishing syncs again, and fails if it must.
            logger.warning("the file of arriving blob %s cannot be synced: %s", self.digest, error)
        finally:
            self._syncing = False

    def _save(self, node: Block) -> None:
        """Write the node to the database, behind the arrival: a reader need not wait for the disk to hold it."""
        self._unsaved.append(Block(node.cid, bytes(node.data)))
        if not self._saving:
            self._saving = True
            self._shelf.spawn(self._save_all)

    async def _save_all(self) -> None:
        try:
            while self._unsaved:
                nodes, self._unsaved = self._unsaved, []
                await self._shelf.index.add_nodes(self._row_id, nodes)
        except StoreError as error:
            # They are in memory. If the store is still full at the end, `complete` says so.
            logger.warning("nodes of arriving blob %s were not written down: %s", self.digest, error)
        finally:
            self._saving = False

    # ------------------------------------------------------------- reading

    async def read(self, start: int, end: int) -> bytes:
        if not self.has_range(start, end):
            raise ValueError(f"bytes [{start}, {end}) of {self.digest} are not all here")
        try:
            data = await trio.to_thread.run_sync(read_all, self._file, end - start, start)
        except OSError as error:
            raise named(error) from error
        if len(data) != end - start:
            raise StoreDamaged(f"the file of {self.digest} has become shorter")
        return data

    def open_file(self) -> int | None:
        try:
            return os.dup(self._file)
        except OSError as error:
            raise named(error) from error

    def find(self, multihash: bytes) -> Leaf | Block | None:
        """A block of the DAG that is here: where its content lies, or itself."""
        return self._outline.leaves.get(multihash) or self._outline.nodes.get(multihash)

    # -------------------------------------------------------------- ending

    async def complete(self) -> BlobInfo:
        async with self._completing:
            if self._published is not None:
                return self._published
            self._check_usable()
            if not self._outline.is_whole:
                raise ValueError(f"{self.missing_bytes} bytes of {self.digest} have not come yet")
            if self.size >= SYNC_BYTES:
                # While the rest is hashed, so that publishing finds little left to do.
                self._sync_behind()
            await self._follower.finish(self.size)
            if self._follower.hasher.hex != self.digest.hex:
                raise await self._throw_away(DigestMismatch(f"what root {self.root} leads to is not {self.digest}"))
            if self.size <= INLINE_BYTES and self.root.codec == RAW:
                data = await self.read(0, self.size)
                content = Block.verified(self.root, data)
                self._published = await self._shelf.publish_inline(self.info, content, keep=False)
                await self._shelf.remove_file(self.path)
            else:
                leaves, nodes = list(self._outline.leaves.items()), list(self._outline.nodes.values())
                self._published = await self._shelf.publish_file(self.path, self.info, leaves, nodes, keep=False)
            self._owner.is_over(self)
            return self._published

    async def abandon(self) -> None:
        if self._published is None and self._waiters.failure is None:
            self._waiters.fail(BlockNotFound(f"the fetch of {self.digest} was given up"))
            row = self._shelf.index.blob(self.digest)
            if row is not None and row.is_whole:
                await self.drop()  # somebody pushed it meanwhile

    async def drop(self) -> None:
        """Throw away what has come; waiting readers fail."""
        if self._published is None:
            await self._throw_away(BlockNotFound(f"the fetch of {self.digest} was given up"))

    async def _throw_away(self, failure: IpfsregError) -> IpfsregError:
        self._waiters.fail(failure)
        self._owner.is_over(self)
        with trio.CancelScope(shield=True):
            await discard(self._shelf, self.digest)
        return failure

    def _check_usable(self) -> None:
        failure = self._waiters.failure
        if isinstance(failure, DigestMismatch):
            raise DigestMismatch(*failure.args)


async def discard(shelf: Shelf, digest: Digest) -> None:
    """Throw away what has arrived of a blob, on disk and in the database. Raises StoreError."""
    async with shelf.alone(digest):
        row = shelf.index.blob(digest)
        if row is not None and not row.is_whole:
            await shelf.index.forget(digest)
        await trio.to_thread.run_sync(shelf.disk.remove, shelf.disk.arriving_path(digest))


def _open_file(path: Path, size: int) -> tuple[int, bool]:
    """Open a file of that size, all hole if it was not there. Returns it, and whether it was not. Raises OSError."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        before = os.fstat(file).st_size
        if before != size:
            os.ftruncate(file, size)
    except OSError:
        os.close(file)
        raise
    return file, before == 0


def _last_written(path: Path) -> float:
    """Seconds since the epoch; 0 for a file that is not there."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0
    except OSError as error:
        raise named(error) from error


def _covers(ranges: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    """Whether one of the sorted *ranges* has all of [start, end)."""
    index = bisect_right(ranges, start, key=itemgetter(0))
    return index > 0 and end <= ranges[index - 1][1]


def _find_leaves(file: int, asked: Sequence[tuple[Cid, int, int]]) -> list[tuple[Block, int]]:
    """Those of the blocks that the file has at their place, and where. Raises OSError."""
    found: list[tuple[Block, int]] = []
    for cid, start, end in asked:
        data = _as_block(cid, read_all(file, end - start, start))
        if data is not None and cid.matches(data):
            found.append((Block(cid, data), start))
    return found


def _as_block(cid: Cid, content: bytes) -> bytes | None:
    """The block *cid*, if it is a leaf with that content."""
    if cid.codec == RAW:
        return content
    if cid.codec == DAG_PB:
        head, tail = leaf_frame(len(content))
        return b"".join((head, content, tail))
    return None


class PartialBook:
    """All blobs of the store that are arriving."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._open: dict[Digest, DiskPartial] = {}
        self._living: weakref.WeakSet[DiskPartial] = weakref.WeakSet()
        """Those with an open file: also what is published or thrown away, as long as somebody reads it."""
        self._turns: Turns[Digest] = Turns()
        shelf.room.arriving = self._to_come

    def _to_come(self) -> int:
        """Bytes that fetches under way will still bring. What nobody fetches is promised no room."""
        return sum(partial.missing_bytes for partial in self._open.values() if not partial.is_abandoned)

    async def open(self, info: BlobInfo) -> DiskPartial:
        """Begin or take up again. Raises StoreFull, StoreError, DigestMismatch."""
        async with self._turns.alone(info.digest):
            partial = self._open.get(info.digest)
            if partial is not None and partial.info != info:
                if not partial.is_abandoned:
                    raise StoreError(f"blob {info.digest} is arriving by root {partial.root} now")
                await partial.drop()
                partial = None
            if partial is None:
                partial = await self._begin(info)
            elif partial.is_abandoned:
                with self._room_for(partial):
                    partial.take_up()
            partial.take_up()
            return partial

    async def _begin(self, info: BlobInfo) -> DiskPartial:
        try:
            partial = DiskPartial(info, self._shelf, self)
            self._living.add(partial)
        except MalformedData as error:
            raise DigestMismatch(f"root {info.root} does not lead to {info.digest}: {error}") from None
        row = self._shelf.index.blob(info.digest)
        if row is not None and not row.is_whole and row.info != info:
            await discard(self._shelf, info.digest)
        with self._room_for(partial):
            try:
                await partial.prepare()
            except MalformedData as error:
                # Nodes from an earlier run that do not fit; nothing of it is worth keeping.
                await discard(self._shelf, info.digest)
                raise DigestMismatch(f"root {info.root} does not lead to {info.digest}: {error}") from None
            self._open[info.digest] = partial
        return partial

    @contextmanager
    def _room_for(self, partial: DiskPartial) -> Iterator[None]:
        """Refuse what will not fit beside all that is arriving already, before anything is fetched. Raises StoreFull.

        Inside the block nobody else is promised its room; after it the blob has a row, and counts with that.
        """
        room, key = self._shelf.room, f"arrival {partial.digest}"
        try:
            held = partial.path.stat().st_blocks * 512
        except OSError:
            held = 0
        is_counted = self._shelf.index.blob(partial.digest) is not None
        room.promise_arrival(key, partial.size - held, is_counted=is_counted)
        try:
            yield
        finally:
            room.forget(key)

    def is_over(self, partial: DiskPartial) -> None:
        """It is published or thrown away."""
        if self._open.get(partial.digest) is partial:
            del self._open[partial.digest]

    async def drop(self, digest: Digest) -> None:
        """Throw away what has arrived of a blob, also before a restart."""
        partial = self._open.get(digest)
        if partial is not None:
            await partial.drop()
        else:
            await discard(self._shelf, digest)

    async def drop_idle(self, digest: Digest) -> bool:
        """Throw away what has arrived of a blob, unless it is kept or somebody works on it; return whether it went."""
        async with self._turns.alone(digest):
            partial = self._open.get(digest)
            row = self._shelf.index.blob(digest)
            is_idle = partial is None or partial.is_abandoned
            if row is None or row.is_whole or not is_idle or self._shelf.index.is_kept(digest):
                return False
            await self.drop(digest)
            return True

    async def expire(self, older_than_s: float) -> int:
        """Throw away those nobody works on and nothing has come for in *older_than_s* seconds; return how many."""
        written_before = time.time() - older_than_s
        expired = 0
        # Of those that were pushed after they were given up, no row says that they are arriving.
        for digest in {*self._open, *(info.digest for info in self._shelf.index.blobs(whole=False))}:
            async with self._turns.alone(digest):
                partial = self._open.get(digest)
                is_idle = partial is None or partial.is_abandoned
                if is_idle and self._is_useless(digest, written_before):
                    await self.drop(digest)
                    expired += 1
        return expired

    def _is_useless(self, digest: Digest, written_before: float) -> bool:
        row = self._shelf.index.blob(digest)
        if row is None or row.is_whole:
            return digest in self._open
        return _last_written(self._shelf.disk.arriving_path(digest)) < written_before

    def close(self) -> None:
        """The store is closing. What has come is kept."""
        self._open.clear()
        for partial in list(self._living):
            partial.close()

    def find(self, multihash: bytes) -> tuple[DiskPartial, Leaf | Block] | None:
        """A block of any arriving blob."""
        for partial in self._open.values():
            found = partial.find(multihash)
            if found is not None:
                return partial, found
        return None

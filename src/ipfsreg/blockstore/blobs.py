"""`DiskBlobStore`: whole blobs, one contiguous file each, and everything that becomes one.

What is promised after a crash: `shelf`. Pushes: `uploads`. Fetches: `partial`. Where what lies: `disk` and `index`.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from ipfsreg.blockstore.disk import named, naming_errors, read_at
from ipfsreg.blockstore.index import INLINE, INLINE_BYTES, BlobRow, Census, is_kept_in
from ipfsreg.blockstore.interface import BlobFile, BlobInfo, Pulled, Usage
from ipfsreg.blockstore.partial import DiskPartial, PartialBook
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.blockstore.uploads import DiskUpload, UploadBook, leaves_of
from ipfsreg.errors import BlobUnknown, DigestMismatch, SizeInvalid, StoreDamaged
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.metrics import Histogram
from ipfsreg.oci.digest import Digest


class DiskBlobStore:
    """Keeps `BlobStore`."""

    def __init__(self, shelf: Shelf, uploads: UploadBook, partials: PartialBook) -> None:
        self._shelf = shelf
        self._uploads = uploads
        self._partials = partials

    # --------------------------------------------------------- whole blobs

    def stat(self, digest: Digest) -> BlobInfo | None:
        row = self._shelf.index.blob(digest)
        return row.info if row is not None and row.is_whole else None

    def _row(self, digest: Digest) -> BlobRow:
        row = self._shelf.index.blob(digest)
        if row is None or not row.is_whole:
            raise BlobUnknown(f"blob {digest} is not in this store")
        return row

    def open(self, digest: Digest) -> BlobFile:
        row = self._row(digest)
        path = self._shelf.materialize(row.info) if row.state == INLINE else self._shelf.disk.blob_path(digest)
        if path is None or _size_of(path) != row.info.size:
            self._shelf.spawn(partial(self._shelf.demote, digest, partial(self._is_gone, row)))
            raise BlobUnknown(f"the bytes of blob {digest} are gone")
        return BlobFile(row.info, path)

    async def _is_gone(self, row: BlobRow) -> bool:
        if row.state == INLINE:
            return self._shelf.index.small_block(row.info.root.multihash) is None
        path = self._shelf.disk.blob_path(row.info.digest)
        return await trio.to_thread.run_sync(_size_of, path) != row.info.size

    async def read_whole(self, digest: Digest, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        row = self._row(digest)
        if row.info.size > max_bytes:
            raise SizeInvalid(f"blob {digest} has {row.info.size} bytes, {max_bytes} are allowed")
        if row.state == INLINE:
            data = self._shelf.index.small_block(row.info.root.multihash)
            if data is not None:
                return data
        else:
            with naming_errors(), suppress(FileNotFoundError):
                data = await trio.to_thread.run_sync(read_at, self._shelf.disk.blob_path(digest), row.info.size, 0)
                if len(data) == row.info.size:
                    return data
        await self._shelf.demote(digest, partial(self._is_gone, row))
        raise BlobUnknown(f"the bytes of blob {digest} are gone")

    async def put_whole(self, data: bytes, digest: Digest | None = None) -> BlobInfo:
        digest = digest or Digest.of(data)
        if len(data) <= INLINE_BYTES:
            if Digest.of(data, digest.algorithm) != digest:
                raise DigestMismatch(f"{len(data)} bytes do not hash to {digest}")
            block = Block.of(data)
            return await self._shelf.publish_inline(BlobInfo(digest, len(data), block.cid), block)
        upload = await self._uploads.create(digest.algorithm)
        try:
            await upload.write(data)
            return await upload.commit(digest)
        finally:
            await upload.abort()

    async def delete(self, digest: Digest) -> None:
        if not await self._shelf.remove(digest):
            raise BlobUnknown(f"blob {digest} is not in this store")

    async def collect(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        return await self._shelf.remove(digest, is_needed)

    # ------------------------------------------------------- making room

    async def keep(self, digests: Sequence[Digest]) -> None:
        loose = [digest for digest in digests if not self._shelf.index.is_kept(digest)]
        if loose:
            await self._shelf.index.keep(loose)

    def used(self, digest: Digest) -> None:
        self._shelf.used(digest)

    async def note_uses(self) -> None:
        await self._shelf.note_uses()

    async def spare(self, digests: Sequence[Digest]) -> None:
        now = time.time_ns() // 1_000_000
        await self._shelf.index.used([(digest, now) for digest in digests])

    def least_used(self, after: tuple[int, int], limit: int) -> list[Pulled]:
        return self._shelf.index.least_used(after, limit)

    async def evict(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        def must_stay(db: sqlite3.Connection | None) -> bool:
            return db is None or is_kept_in(db, digest) or is_needed(db)

        return await self._shelf.remove(digest, must_stay)

    async def drop_idle_partial(self, digest: Digest) -> bool:
        return await self._partials.drop_idle(digest)

    def shortage(self, more: int) -> int:
        return self._shelf.room.shortage(more)

    def usage(self) -> Usage:
        _, pulled = self._shelf.index.totals()
        return Usage(self._shelf.room.max_bytes, self._shelf.room.used, pulled)

    # ------------------------------------------------------------ checking

    async def verify(self, digest: Digest) -> None:
        row = self._row(digest)
        if not await self._is_good(row):
            await self._shelf.demote(digest, partial(self._is_bad, row))
            raise StoreDamaged(f"what is stored as blob {digest} does not hash to it")

    async def _is_bad(self, row: BlobRow) -> bool:
        return not await self._is_good(row)

    async def _is_good(self, row: BlobRow) -> bool:
        """Hash all of the blob again, and record again what of its DAG the index may have lost."""
        info = row.info
        if row.state == INLINE:
            data = self._shelf.index.small_block(info.root.multihash)
            return data is not None and Digest.of(data, info.digest.algorithm) == info.digest
        if await self._is_gone(row):
            return False
        follower = self._shelf.follower(self._shelf.disk.blob_path(info.digest), info.digest.algorithm, leaves=True)
        try:
            await follower.finish(info.size)
        except StoreDamaged:
            return False
        if follower.hasher.hex != info.digest.hex:
            return False
        layout = follower.hasher.layout()
        if layout.root == info.root:
            # Hashing takes its time, and meanwhile the blob may have been deleted.
            await self._shelf.index.restore(row, leaves_of(layout), layout.inner)
        return True

    def blobs(self) -> Iterator[BlobInfo]:
        return self._shelf.index.blobs(whole=True)

    # ---------------------------------------------------- for the operator

    async def census(self) -> Census:
        """Count what is here, beside the event loop. Raises StoreError."""
        return await self._shelf.index.census()

    async def room(self) -> tuple[int, int]:
        """Bytes that can still be written, and bytes the file system holds in all. Raises StoreError."""
        return await trio.to_thread.run_sync(self._shelf.disk.space)

    def kept_free(self, total: int) -> int:
        """How many bytes of a disk of *total* nobody may fill."""
        return self._shelf.room.kept_free(total)

    async def try_to_write(self) -> None:
        """Write a small file and take it away. Raises StoreFull, StoreError."""
        await trio.to_thread.run_sync(self._shelf.disk.try_to_write)

    @property
    def publish_seconds(self) -> Histogram:
        """How long it took to make files of blobs survive a power cut."""
        return self._shelf.disk.publish_seconds

    @property
    def open_uploads(self) -> int:
        """Pushes under way that somebody has written to since the start."""
        return len(self._uploads)

    # ---------------------------------------------------- becoming a blob

    async def create_upload(self, algorithm: str = "sha256") -> DiskUpload:
        return await self._uploads.create(algorithm)

    async def resume_upload(self, upload_id: str) -> DiskUpload:
        return await self._uploads.resume(upload_id)

    async def expire_uploads(self, older_than_s: float) -> int:
        return await self._uploads.expire(older_than_s)

    async def open_partial(self, digest: Digest, size: int, root: Cid) -> DiskPartial:
        return await self._partials.open(BlobInfo(digest, size, root))

    def partials(self) -> Iterator[BlobInfo]:
        return self._shelf.index.blobs(whole=False)

    async def drop_partial(self, digest: Digest) -> None:
        await self._partials.drop(digest)

    async def expire_partials(self, older_than_s: float) -> int:
        return await self._partials.expire(older_than_s)


def _size_of(path: Path) -> int | None:
    """Length of the file; None if there is none. Raises StoreError."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return None
    except OSError as error:
        raise named(error) from error

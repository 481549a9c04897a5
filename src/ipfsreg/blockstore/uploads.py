"""Pushes under way: bytes appended to a file, hashed behind the writer.

An upload is its file in `uploads/`, named by the upload's ID, and nothing else: what is written down is what counts,
so it goes on after a restart at the length of the file. Bytes survive the end of the process at once and a power
cut only when the upload is committed; bytes a power cut damaged do not hash to the digest, and the client pushes again.
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import trio

from ipfsreg.blockstore.disk import named, naming_errors, read_at
from ipfsreg.blockstore.hashing import digest_of_file
from ipfsreg.blockstore.index import INLINE_BYTES
from ipfsreg.blockstore.intake import Intake
from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.blockstore.outline import Leaf
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.errors import DigestMismatch, UploadUnknown
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import Layout
from ipfsreg.oci.digest import Digest

MAX_BEHIND_BYTES = 32 * 1024 * 1024
"""A writer waits when this much is not hashed yet. It costs no memory of ours, the bytes are in the page cache."""

_ID = re.compile(r"[0-9a-f]{32}")


class DiskUpload:
    """Keeps `BlobUpload`."""

    def __init__(
        self, upload_id: str, offset: int, algorithm: str, shelf: Shelf, over: Callable[[DiskUpload], None]
    ) -> None:
        """*over* is called when there is nothing to resume any more."""
        self.id = upload_id
        self._is_committing = False
        self._path = shelf.disk.uploads / upload_id
        self._algorithm = algorithm
        self._shelf = shelf
        self._over = over
        self._is_over = False
        self._follower = shelf.follower(self._path, algorithm, leaves=True)
        self._intake = Intake(self._path, offset, self._follower.hasher, shelf.crew, shelf.buffers)
        self._layout: Layout | None = None
        self._follower.extend(offset)

    @property
    def offset(self) -> int:
        return self._intake.offset

    @property
    def busy(self) -> bool:
        """Bytes are being written or published now."""
        return self._is_committing or self._intake.is_busy

    def expect(self, size: int) -> None:
        self._check_open()
        self._shelf.room.promise(self.id, size)

    async def buffer(self) -> memoryview:
        self._check_open()
        await self._wait_behind()
        while (buffer := await self._intake.buffer()) is None:
            await self.settle()  # raises what went wrong
        return buffer

    async def _wait_behind(self) -> None:
        self._follow()
        await self._follower.wait_behind(MAX_BEHIND_BYTES)

    def _follow(self) -> None:
        if self._intake.is_followed:
            self._follower.extend(self._intake.written)

    def append(self, size: int) -> None:
        self._check_open()
        self._shelf.room.check_upload(self.id, size, self.offset - self._intake.written)
        self._intake.append(size)
        self._shelf.room.took(self.id, self.offset, size)

    async def settle(self) -> None:
        try:
            await self._intake.settle()
        except Exception:
            # The hasher may have seen what does not count: from the start, out of the file.
            self._follower = self._shelf.follower(self._path, self._algorithm, leaves=True)
            self._intake.hasher = self._follower.hasher
            if not self._is_over:
                self._shelf.room.took(self.id, self.offset, 0)
            raise
        finally:
            if not self._is_over:
                self._follow()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        await self._wait_behind()
        await trio.lowlevel.checkpoint()
        view = memoryview(data).cast("B")
        self._shelf.room.check_upload(self.id, len(view))
        self._intake.append_data(view)
        self._shelf.room.took(self.id, self.offset, len(view))
        await self.settle()

    async def commit(self, digest: Digest) -> BlobInfo:
        self._check_open()
        await self.settle()
        self._is_committing = True
        try:
            if self.offset <= INLINE_BYTES:
                info = await self._commit_inline(digest)
            else:
                info = await self._commit_file(digest)
        finally:
            self._is_committing = False
        self._end()
        return info

    async def _commit_inline(self, digest: Digest) -> BlobInfo:
        with naming_errors():
            data = await trio.to_thread.run_sync(read_at, self._path, self.offset, 0)
        if Digest.of(data, digest.algorithm) != digest:
            await self._refuse(digest)
        block = Block.of(data)
        info = await self._shelf.publish_inline(BlobInfo(digest, len(data), block.cid), block)
        # Published already: the answer need not wait for this, and what a crash leaves here expires.
        self._shelf.leaving.add(self.id)
        self._shelf.spawn(self._leave)
        return info

    async def _leave(self) -> None:
        try:
            await self._shelf.remove_file(self._path)
        finally:
            self._shelf.leaving.discard(self.id)

    async def _commit_file(self, digest: Digest) -> BlobInfo:
        await self._follower.finish(self.offset)
        hasher = self._follower.hasher
        digits = hasher.hex
        if digest.algorithm != hasher.algorithm:
            digits = await digest_of_file(self._path, self.offset, digest.algorithm, self._shelf.hash_threads)
        if digits != digest.hex:
            await self._refuse(digest)
        layout = self._layout = self._layout or hasher.layout()
        info = BlobInfo(digest, layout.size, layout.root)
        return await self._shelf.publish_file(self._path, info, leaves_of(layout), layout.inner)

    async def _refuse(self, digest: Digest) -> None:
        await self.abort()
        raise DigestMismatch(f"the {self.offset} bytes of upload {self.id} do not hash to {digest}")

    async def abort(self) -> None:
        if not self._is_over:
            self._end()
            await self._intake.idle()
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._shelf.disk.remove, self._path)

    def _end(self) -> None:
        self._is_over = True
        self._over(self)

    def _check_open(self) -> None:
        if self._is_over:
            raise UploadUnknown(f"upload {self.id} is over")


class UploadBook:
    """All uploads of the store."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf
        self._open: dict[str, DiskUpload] = {}

    def __len__(self) -> int:
        return len(self._open)

    async def create(self, algorithm: str) -> DiskUpload:
        """Begin one. Raises StoreFull, TooManyRequests."""
        upload_id = secrets.token_hex(16)
        room = self._shelf.room
        room.check_upload(upload_id, 0)
        room.took(upload_id, 0, 0)
        try:
            with naming_errors():
                await trio.to_thread.run_sync(partial((self._shelf.disk.uploads / upload_id).touch, exist_ok=False))
        except BaseException:  # cancelled too: nobody knows of it, and what may be left of it expires
            room.forget(upload_id)
            raise
        return self._add(upload_id, 0, algorithm)

    async def resume(self, upload_id: str) -> DiskUpload:
        """Find one. Raises UploadUnknown."""
        if not _ID.fullmatch(upload_id) or upload_id in self._shelf.leaving:
            raise UploadUnknown(f"no upload {upload_id[:100]!r}")
        if upload_id not in self._open:
            path = self._shelf.disk.uploads / upload_id
            try:
                size = (await trio.to_thread.run_sync(path.stat)).st_size
            except FileNotFoundError:
                raise UploadUnknown(f"no upload {upload_id}") from None
            except OSError as error:
                raise named(error) from error
            if upload_id not in self._open:
                self._add(upload_id, size, "sha256")
        return self._open[upload_id]

    def _add(self, upload_id: str, offset: int, algorithm: str) -> DiskUpload:
        upload = DiskUpload(upload_id, offset, algorithm, self._shelf, self._forget)
        self._shelf.room.took(upload_id, offset, 0)
        self._open[upload_id] = upload
        return upload

    def _forget(self, upload: DiskUpload) -> None:
        self._open.pop(upload.id, None)
        self._shelf.room.forget(upload.id)

    async def expire(self, older_than_s: float) -> int:
        """Throw away those that nobody has written to for *older_than_s* seconds; return how many."""
        written_before = time.time() - older_than_s
        with naming_errors():
            candidates = await trio.to_thread.run_sync(_last_written, self._shelf.disk.uploads)
        expired = 0
        for upload_id, written in candidates:
            if written >= written_before:
                continue
            upload = self._open.get(upload_id)
            if upload is None:
                await trio.to_thread.run_sync(self._shelf.disk.remove, self._shelf.disk.uploads / upload_id)
                self._shelf.room.forget(upload_id)
            elif not upload.busy:
                await upload.abort()
            else:
                continue
            expired += 1
        return expired


def _last_written(directory: Path) -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # committed or aborted meanwhile
                found.append((entry.name, entry.stat().st_mtime))
    return found


def leaves_of(layout: Layout) -> list[tuple[bytes, Leaf]]:
    """The leaves as the index takes them: they lie in the file as they are."""
    ranges = map(layout.leaf_range, range(len(layout.leaves)))
    return [
        (cid.multihash, Leaf(start, end - start, framed=False))
        for cid, (start, end) in zip(layout.leaves, ranges, strict=True)
    ]

"""Blobs that lie here whole, opened for reading, and hashed again so that rot does not go out for long.

A file goes to the client from kernel to kernel, which no hash can stand in the way of. So:

- what was written to since it was last hashed (another inode, length or time of the last write) is hashed before it is
  served;
- what was not hashed since the start of the node, or not for a day, is served at once and hashed behind;
- what is small is hashed every time.

A blob found damaged counts as missing from then on: what is good of it is kept, and the rest fetched from peers.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from ipfsreg.blockstore.checked import Stamp, stamp_of
from ipfsreg.blockstore.interface import BlobFile, BlobInfo, BlobStore
from ipfsreg.errors import BlobUnknown, ContentUnavailable, StoreDamaged, StoreError
from ipfsreg.oci.digest import Digest
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import BlobStat, Piece

logger = logging.getLogger(__name__)

SMALL_BYTES = 64 * 1024
"""Up to this size a blob is read and hashed in less time than a file is opened twice."""

CHECK_AGAIN_S = 24 * 3600.0

MAX_SEEN = 16_384
"""Blobs whose last check is remembered; others are checked again."""

_READ_BYTES = 256 * 1024
_HASHED_INLINE_BYTES = 256 * 1024


class LocalBlob:
    """A file with exactly the blob's bytes. Keeps `BlobContent`."""

    def __init__(self, file: BlobFile, holds: Holds) -> None:
        self.stat = _stat_of(file.info)
        self.path: Path | None = file.path
        self.data: bytes | None = None
        self._hold = holds.hold(file.info.digest)

    async def stream(self, start: int, end: int) -> AsyncIterator[Piece]:
        """Yield [start, end) for a connection that cannot take the file itself."""
        assert self.path is not None
        descriptor = await trio.to_thread.run_sync(os.open, self.path, os.O_RDONLY)
        try:
            while start < end:
                data = await trio.to_thread.run_sync(os.pread, descriptor, min(_READ_BYTES, end - start), start)
                if not data:
                    raise ContentUnavailable(f"blob {self.stat.digest} is shorter on disk than it should be")
                start += len(data)
                yield data
                del data  # not to be held beside the next one
        finally:
            os.close(descriptor)

    async def __aenter__(self) -> LocalBlob:
        self._hold.__enter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._hold.__exit__(None, None, None)


class SmallBlob:
    """A blob in memory, its digest checked. Keeps `BlobContent`."""

    path: Path | None = None

    def __init__(self, info: BlobInfo, data: bytes) -> None:
        self.stat = _stat_of(info)
        self.data: bytes | None = data

    async def stream(self, start: int, end: int) -> AsyncIterator[Piece]:
        """Yield [start, end)."""
        await trio.lowlevel.checkpoint()
        assert self.data is not None
        yield memoryview(self.data)[start:end]

    async def __aenter__(self) -> SmallBlob:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None


def _stat_of(info: BlobInfo) -> BlobStat:
    return BlobStat(info.digest, info.size, info.root)


class LocalBlobs:
    """The whole blobs of this node, as far as they can be trusted."""

    def __init__(self, nursery: trio.Nursery, blobs: BlobStore, holds: Holds) -> None:
        """*nursery* runs the checks behind."""
        self._nursery = nursery
        self._blobs = blobs
        self._holds = holds
        self._seen: OrderedDict[Digest, tuple[float, Stamp]] = OrderedDict()
        self._due: set[Digest] = set()
        self._turn_before = trio.Lock()
        self._turn_behind = trio.Lock()

    async def open(self, digest: Digest) -> LocalBlob | SmallBlob | None:
        """The blob, or None where it is not here, or not any more. To be entered at once: then its file stays.

        Raises StoreError.
        """
        await self._holds.wait_decided(digest)
        info = self._blobs.stat(digest)
        if info is None:
            return None
        self._blobs.used(digest)
        with self._holds.hold(digest):
            return await self._open(info)

    async def _open(self, info: BlobInfo) -> LocalBlob | SmallBlob | None:
        digest = info.digest
        if info.size <= SMALL_BYTES:
            data = await self.read(digest, SMALL_BYTES)
            return None if data is None else SmallBlob(info, data)
        try:
            file = self._blobs.open(digest)
            if await self._is_trusted(file):
                return LocalBlob(file, self._holds)
        except BlobUnknown:
            # Its file is gone. The check makes that known to everybody.
            await self._check(digest)
        except FileNotFoundError:
            await self._check(digest)
        return None

    async def read(self, digest: Digest, max_bytes: int) -> bytes | None:
        """All bytes of a blob, hashed; None where it is not here, or not any more.

        Raises:
            SizeInvalid: it has more than *max_bytes*.
            StoreError.
        """
        try:
            data = await self._blobs.read_whole(digest, max_bytes)
        except BlobUnknown:
            return None
        if len(data) <= _HASHED_INLINE_BYTES:
            found = Digest.of(data, digest.algorithm)
        else:
            found = await trio.to_thread.run_sync(Digest.of, data, digest.algorithm)
        if found == digest:
            return data
        await self._check(digest)
        return None

    def hashed(self, digest: Digest) -> None:
        """The blob has just been hashed: it was pushed, or fetched."""
        info = self._blobs.stat(digest)
        if info is None or info.size <= SMALL_BYTES:
            return
        try:
            stamp = stamp_of(self._blobs.open(digest).path.stat())
        except (BlobUnknown, OSError) as error:
            logger.debug("blob %s is gone already: %s", digest, error)
            return
        self._seen[digest] = (trio.current_time(), stamp)
        self._seen.move_to_end(digest)
        if len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)

    async def _is_trusted(self, file: BlobFile) -> bool:
        """Whether the file can be served. Raises StoreError, FileNotFoundError."""
        digest = file.info.digest
        if not self._was_written_to(file):
            when, _ = self._seen.get(digest, (float("-inf"), None))
            if trio.current_time() >= when + CHECK_AGAIN_S and digest not in self._due:
                self._due.add(digest)
                self._nursery.start_soon(self._check_behind, digest)
            return True
        async with self._turn_before:
            # Somebody else may have waited for the same.
            return not self._was_written_to(file) or await self._check(digest)

    def _was_written_to(self, file: BlobFile) -> bool:
        seen = self._seen.get(file.info.digest)
        return seen is not None and seen[1] != stamp_of(file.path.stat())

    async def _check(self, digest: Digest) -> bool:
        """Hash the blob's bytes. False: they are not the blob, which counts as missing now. Raises StoreError."""
        try:
            await self._blobs.verify(digest)
        except (BlobUnknown, StoreDamaged) as error:
            self._seen.pop(digest, None)
            logger.warning("%s", error)
            return False
        self.hashed(digest)
        return True

    async def _check_behind(self, digest: Digest) -> None:
        async with self._turn_behind:
            began = trio.current_time()
            try:
                await self._check(digest)
            except StoreError as error:
                logger.warning("blob %s could not be checked: %s", digest, error)
            finally:
                self._due.discard(digest)
            # After a start much may be due at once: half a core for it at the most.
            await trio.sleep(trio.current_time() - began)

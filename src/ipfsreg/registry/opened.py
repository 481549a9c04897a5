"""Blobs that lie here whole, opened for reading."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path

import trio

from ipfsreg.blockstore.interface import BlobFile
from ipfsreg.errors import ContentUnavailable
from ipfsreg.registry.interface import BlobStat

READ_BYTES = 1024 * 1024


class LocalBlob:
    """A file with exactly the blob's bytes. Keeps `BlobContent`."""

    def __init__(self, file: BlobFile) -> None:
        self.stat = BlobStat(file.info.digest, file.info.size, file.info.root)
        self.path: Path | None = file.path

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        """Yield [start, end) for a connection that cannot take the file itself."""
        assert self.path is not None
        descriptor = await trio.to_thread.run_sync(os.open, self.path, os.O_RDONLY)
        try:
            while start < end:
                data = await trio.to_thread.run_sync(os.pread, descriptor, min(READ_BYTES, end - start), start)
                if not data:
                    raise ContentUnavailable(f"blob {self.stat.digest} is shorter on disk than it should be")
                start += len(data)
                yield data
        finally:
            os.close(descriptor)

    async def __aenter__(self) -> LocalBlob:
        return self

    async def __aexit__(self, *exc: object) -> None:
        return None

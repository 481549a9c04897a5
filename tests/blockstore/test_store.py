from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.testing.blockstore_checks import check_blobstore, check_blockstore


class Stores:
    """Opens stores below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[tuple[DiskBlockstore, DiskBlobStore]]:
        directory = self._directory / name.replace(" ", "-")
        directory.mkdir(exist_ok=True)
        async with (
            open_database(directory / "db") as database,
            open_blobstore(directory / "store", database) as stores,
        ):
            yield stores


async def test_it_keeps_the_promises_of_a_blockstore(tmp_path: Path) -> None:
    await check_blockstore(Stores(tmp_path).open)


async def test_it_keeps_the_promises_of_a_blob_store(tmp_path: Path) -> None:
    await check_blobstore(Stores(tmp_path).open)

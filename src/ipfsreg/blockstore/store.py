"""The store of a node, opened on a directory and the node's database."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.disk import Disk
from ipfsreg.blockstore.index import Index
from ipfsreg.blockstore.partial import PartialBook
from ipfsreg.blockstore.room import Room, StoreLimits
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.blockstore.uploads import UploadBook
from ipfsreg.database import Database


@asynccontextmanager
async def open_blobstore(
    directory: Path, database: Database, limits: StoreLimits | None = None
) -> AsyncIterator[tuple[DiskBlockstore, DiskBlobStore]]:
    """Open or create the store in *directory*, for as long as the block lasts. One process at a time.

    What an interrupted run left behind is cleaned up beside the first requests, and never keeps the store from opening.

    Raises:
        StoreFull, StoreError: the directory cannot be used.
    """
    disk = Disk(directory)
    await trio.to_thread.run_sync(disk.prepare)
    room = Room(disk, limits or StoreLimits())
    await trio.to_thread.run_sync(room.load)
    index = await Index.open(database)
    async with trio.open_nursery() as nursery:
        shelf = Shelf(disk, index, room, nursery)
        partials = PartialBook(shelf)
        shelf.spawn(shelf.sweep)
        try:
            yield DiskBlockstore(shelf, partials), DiskBlobStore(shelf, UploadBook(shelf), partials)
        finally:
            nursery.cancel_scope.cancel()
            partials.close()

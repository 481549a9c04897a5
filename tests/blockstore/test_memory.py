from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from ipfsreg.blockstore.memory import MemoryBlobStore, MemoryBlockstore
from ipfsreg.errors import StoreDamaged
from ipfsreg.ipld.block import Block
from ipfsreg.testing.blockstore_checks import check_blobstore, check_blockstore

Stores = tuple[MemoryBlockstore, MemoryBlobStore]


class Shelves:
    """Opens stores that stay as they are between openings."""

    def __init__(self) -> None:
        self._stores: dict[str, Stores] = {}

    @asynccontextmanager
    async def open(self, name: str) -> AsyncIterator[Stores]:
        if name not in self._stores:
            blocks = MemoryBlockstore()
            self._stores[name] = blocks, MemoryBlobStore(blocks)
        yield self._stores[name]


async def test_it_keeps_the_promises_of_a_blockstore() -> None:
    await check_blockstore(Shelves().open)


async def test_it_keeps_the_promises_of_a_blob_store() -> None:
    await check_blobstore(Shelves().open)


async def test_a_damaged_block_is_reported_and_gone() -> None:
    block = Block.of(b"data")
    blocks = MemoryBlockstore([block])
    blocks.damage(block.cid)
    with pytest.raises(StoreDamaged):
        await blocks.get(block.cid)
    assert not blocks.has(block.cid)
    await blocks.put(block)
    assert await blocks.get(block.cid) == block

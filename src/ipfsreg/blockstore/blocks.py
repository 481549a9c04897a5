"""`DiskBlockstore`: blocks out of the database, out of the files of whole blobs, and out of blobs that are arriving.

A leaf is hashed when it is read, unless it, or its blob, was within the last hour and the file has not been written to
since (`checked`).
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import trio

from ipfsreg.blockstore.checked import Stamp, stamp_of
from ipfsreg.blockstore.disk import named, read_all
from ipfsreg.blockstore.index import LeafPlace, put_blocks_in
from ipfsreg.blockstore.outline import Leaf
from ipfsreg.blockstore.partial import PartialBook
from ipfsreg.blockstore.shelf import Shelf
from ipfsreg.errors import BlockNotFound, StoreDamaged
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import IDENTITY, Cid

logger = logging.getLogger(__name__)

_NO_WAIT: int = getattr(os, "RWF_NOWAIT", 0)
"""Linux: read what is in memory, and do not wait for the disk."""

_SMALL = 64 * 1024
"""Up to this size a hash takes no longer than the change to a worker thread."""


class DiskBlockstore:
    """Keeps `DatabaseBlockstore`."""

    def __init__(self, shelf: Shelf, partials: PartialBook) -> None:
        self._shelf = shelf
        self._index = shelf.index
        self._partials = partials

    def has(self, cid: Cid) -> bool:
        return self.size_of(cid) is not None

    def size_of(self, cid: Cid) -> int | None:
        if cid.hash_code == IDENTITY:
            return len(cid.digest)
        arriving = self._partials.find(cid.multihash)
        if arriving is not None:
            found = arriving[1]
            return found.block_bytes if isinstance(found, Leaf) else len(found.data)
        try:
            leaf = self._index.leaf(cid.multihash)
            return self._index.small_size(cid.multihash) if leaf is None else leaf.block_bytes
        except StoreDamaged:
            return None  # what cannot be found is not here; the database has said why

    async def get(self, cid: Cid) -> Block:
        await trio.lowlevel.checkpoint()
        if cid.hash_code == IDENTITY:
            return Block.verified(cid, cid.digest)
        damaged: StoreDamaged | None = None
        for find in (self._get_arriving, self._get_small, self._get_leaf):
            try:
                block = await find(cid)
            except StoreDamaged as error:
                damaged = error
            else:
                if block is not None:
                    return block
        raise damaged or BlockNotFound(f"block {cid} is not in this store")

    async def _get_arriving(self, cid: Cid) -> Block | None:
        arriving = self._partials.find(cid.multihash)
        if arriving is None:
            return None
        blob, found = arriving
        if isinstance(found, Block):
            return Block(cid, found.data)
        # Not hashed again: it was on its way into the file, moments ago.
        content = await blob.read(found.offset, found.offset + found.length)
        return Block(cid, found.block_data(content))

    async def _get_small(self, cid: Cid) -> Block | None:
        data = self._index.small_block(cid.multihash)
        if data is None:
            return None
        is_good = cid.matches(data) if len(data) <= _SMALL else await trio.to_thread.run_sync(cid.matches, data)
        if not is_good:
            logger.error("block %s in the database is damaged; it is dropped", cid)
            await self._index.drop_damaged(cid.multihash)
            raise StoreDamaged(f"what is stored as block {cid} does not hash to it")
        return Block(cid, data)

    async def _get_leaf(self, cid: Cid) -> Block | None:
        checked = self._shelf.checked
        damaged: StoreDamaged | None = None
        for place in self._index.leaf_places(cid.multihash):
            key = (place.digest, cid.multihash)
            trusted = checked.stamp(place.digest) or checked.stamp(key)
            if trusted is not None and _NO_WAIT:
                in_memory = self._read_now(cid, place, trusted)
                if in_memory is not None:
                    return in_memory
            try:
                block, stamp = await trio.to_thread.run_sync(self._read_leaf, cid, place, trusted)
            except StoreDamaged as error:
                damaged = error
                await self._shelf.demote(place.digest, partial(self._is_damaged, cid, place))
            else:
                if stamp != trusted:
                    checked.add(key, stamp)
                self._shelf.used(place.digest)
                return block
        if damaged is not None:
            raise damaged
        return None

    def _read_now(self, cid: Cid, place: LeafPlace, trusted: Stamp) -> Block | None:
        """The leaf, where its file has the stamp *trusted* and all of it is in memory; else None, without waiting."""
        try:
            file = os.open(self._shelf.disk.blob_path(place.digest), os.O_RDONLY)
        except OSError:
            return None  # the thread will say why
        try:
            if stamp_of(os.fstat(file)) != trusted:
                return None
            content = bytearray(place.leaf.length)
            if os.preadv(file, (content,), place.leaf.offset, _NO_WAIT) < len(content):
                return None
        except OSError:  # BlockingIOError above all
            return None
        finally:
            os.close(file)
        return Block(cid, place.leaf.block_data(memoryview(content)))

    def _read_leaf(self, cid: Cid, place: LeafPlace, trusted: Stamp | None) -> tuple[Block, Stamp]:
        """In a thread: the leaf, hashed unless the file has the stamp *trusted*. Raises StoreDamaged, StoreError."""
        try:
            file = os.open(self._shelf.disk.blob_path(place.digest), os.O_RDONLY)
            try:
                stamp = stamp_of(os.fstat(file))
                content = read_all(file, place.leaf.length, place.leaf.offset)
            finally:
                os.close(file)
        except FileNotFoundError:
            raise StoreDamaged(f"the file of blob {place.digest} is gone") from None
        except OSError as error:
            raise named(error) from error
        data = place.leaf.block_data(content)
        if len(content) != place.leaf.length or (stamp != trusted and not cid.matches(data)):
            raise StoreDamaged(f"block {cid} in blob {place.digest} does not hash to it")
        return Block(cid, data), stamp

    async def _is_damaged(self, cid: Cid, place: LeafPlace) -> bool:
        try:
            await trio.to_thread.run_sync(self._read_leaf, cid, place, None)
        except StoreDamaged:
            return True
        return False

    async def put(self, block: Block) -> None:
        await self.put_many([block])

    async def put_many(self, blocks: Sequence[Block]) -> None:
        await trio.lowlevel.checkpoint()
        for block in blocks:
            if len(block.data) > MAX_BLOCK_BYTES:
                raise ValueError(f"block {block.cid} has {len(block.data)} bytes, {MAX_BLOCK_BYTES} are allowed")
        new = [
            block for block in blocks if block.cid.hash_code != IDENTITY and not self._index.owns(block.cid.multihash)
        ]
        if not new:
            return
        arrived = [block.cid.multihash for block in new if not self.has(block.cid)]
        await self._index.put_blocks(new)
        self._shelf.feed.publish(arrived)

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        put_blocks_in(db, blocks)

    def committed(self, blocks: Sequence[Block]) -> None:
        self._shelf.feed.publish([block.cid.multihash for block in blocks])

    async def delete(self, cids: Iterable[Cid]) -> None:
        await self._index.delete_blocks([cid.multihash for cid in cids])

    @asynccontextmanager
    async def arrivals(self) -> AsyncIterator[AsyncIterator[frozenset[bytes]]]:
        with self._shelf.feed.reader() as reader:
            yield reader

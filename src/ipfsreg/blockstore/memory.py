"""`MemoryBlockstore` and `MemoryBlobStore`: the promises of the store in dictionaries, for tests and as the reference.

Nothing is hashed in threads and nothing is written, except that `MemoryBlobStore.open` puts a copy of the blob into a
temporary directory, which goes when the store does.
"""

from __future__ import annotations

import secrets
import shutil
import sqlite3
import tempfile
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import count
from operator import itemgetter
from pathlib import Path

import trio

from ipfsreg.blockstore.arrivals import ArrivalFeed
from ipfsreg.blockstore.interface import BlobFile, BlobInfo, Pulled, Usage
from ipfsreg.blockstore.outline import Outline
from ipfsreg.blockstore.waiting import RangeWaiters
from ipfsreg.errors import (
    BlobUnknown,
    BlockNotFound,
    DigestMismatch,
    IpfsregError,
    MalformedData,
    SizeInvalid,
    StoreDamaged,
    StoreError,
    UploadUnknown,
)
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import V1_2025, build, cut
from ipfsreg.ipld.cid import IDENTITY, Cid
from ipfsreg.oci.digest import Digest

_BUFFER_BYTES = 64 * 1024

_OWN = "put"
"""Who holds a block that was put by itself; other holders are digests of blobs."""


class MemoryBlockstore:
    """Keeps `Blockstore` as long as the process lives."""

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self._held: dict[bytes, dict[str, bytes | memoryview]] = {}
        self._feed = ArrivalFeed()
        self.hold(_OWN, blocks)

    def hold(self, holder: str, blocks: Iterable[Block]) -> None:
        """Keep *blocks* until *holder* lets go of them."""
        arrived: list[bytes] = []
        for block in blocks:
            if block.cid.multihash not in self._held:
                arrived.append(block.cid.multihash)
            self._held.setdefault(block.cid.multihash, {})[holder] = block.data
        self._feed.publish(arrived)

    def let_go(self, holder: str) -> None:
        """Forget what only *holder* keeps."""
        for key in [key for key, holders in self._held.items() if holder in holders]:
            self._drop(key, holder)

    def _drop(self, key: bytes, holder: str) -> None:
        holders = self._held.get(key, {})
        holders.pop(holder, None)
        if not holders:
            self._held.pop(key, None)

    def _find(self, cid: Cid) -> bytes | memoryview | None:
        if cid.multihash[:1] == bytes((IDENTITY,)):
            return cid.digest
        return next(iter(self._held.get(cid.multihash, {}).values()), None)

    def has(self, cid: Cid) -> bool:
        return self._find(cid) is not None

    def size_of(self, cid: Cid) -> int | None:
        data = self._find(cid)
        return None if data is None else len(data)

    async def get(self, cid: Cid) -> Block:
        await trio.lowlevel.checkpoint()
        data = self._find(cid)
        if data is None:
            raise BlockNotFound(f"block {cid} is not in this store")
        if not cid.matches(data):
            del self._held[cid.multihash]
            raise StoreDamaged(f"what is stored as block {cid} does not hash to it")
        return Block(cid, data)

    def damage(self, cid: Cid) -> None:
        """Let the stored bytes of *cid* rot."""
        holders = self._held[cid.multihash]
        for holder, data in holders.items():
            holders[holder] = bytes(data[:-1]) + bytes((data[-1] ^ 1,))

    async def put(self, block: Block) -> None:
        await self.put_many([block])

    async def put_many(self, blocks: Sequence[Block]) -> None:
        await trio.lowlevel.checkpoint()
        self.hold(_OWN, blocks)

    async def delete(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()
        for cid in cids:
            self._drop(cid.multihash, _OWN)

    @asynccontextmanager
    async def arrivals(self) -> AsyncIterator[AsyncIterator[frozenset[bytes]]]:
        with self._feed.reader() as reader:
            yield reader

    def __len__(self) -> int:
        return len(self._held)


class MemoryUpload:
    """Keeps `BlobUpload`."""

    def __init__(self, store: MemoryBlobStore) -> None:
        self.id = secrets.token_hex(16)
        self.touched = time.monotonic()
        self._store = store
        self._data = bytearray()
        self._buffer = memoryview(bytearray(_BUFFER_BYTES))

    @property
    def offset(self) -> int:
        return len(self._data)

    def _check_open(self) -> None:
        if self._store._uploads.get(self.id) is not self:
            raise UploadUnknown(f"upload {self.id} is over")

    def expect(self, size: int) -> None:
        self._check_open()

    async def buffer(self) -> memoryview:
        self._check_open()
        await trio.lowlevel.checkpoint()
        return self._buffer

    def append(self, size: int) -> None:
        self._check_open()
        self._data += self._buffer[:size]
        self.touched = time.monotonic()

    async def settle(self) -> None:
        await trio.lowlevel.checkpoint()

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        self._check_open()
        await trio.lowlevel.checkpoint()
        self._data += data
        self.touched = time.monotonic()

    async def commit(self, digest: Digest) -> BlobInfo:
        self._check_open()
        await trio.lowlevel.checkpoint()
        del self._store._uploads[self.id]
        return self._store._publish(bytes(self._data), digest)

    async def abort(self) -> None:
        self._store._uploads.pop(self.id, None)


class MemoryPartial:
    """Keeps `PartialBlob`."""

    def __init__(self, store: MemoryBlobStore, digest: Digest, size: int, root: Cid) -> None:
        self.digest = digest
        self.size = size
        self.root = root
        self._store = store
        self._outline = Outline(root, size)
        self._data = bytearray(size)
        self._waiters = RangeWaiters(self._outline.has_range)
        self._done: BlobInfo | None = None
        self.touched = time.monotonic()

    @property
    def missing_bytes(self) -> int:
        return self._outline.missing_bytes

    def wanted(self, start: int = 0, end: int | None = None, limit: int | None = None) -> list[Cid]:
        return self._outline.wanted(start, self.size if end is None else end, limit)

    def has_range(self, start: int, end: int) -> bool:
        return self._outline.has_range(start, end)

    async def put(self, block: Block) -> None:
        await trio.lowlevel.checkpoint()
        if isinstance(self._waiters.failure, DigestMismatch):
            raise DigestMismatch(*self._waiters.failure.args)
        self._put(block)
        self.place_known()
        self.touched = time.monotonic()

    def _put(self, block: Block) -> None:
        try:
            placement = self._outline.place(block)
            for span in placement.spans:
                self._data[span.start : span.start + len(placement.content)] = placement.content
            self._outline.settle(placement)
        except MalformedData as error:
            raise self._fail(DigestMismatch(f"root {self.root} does not lead to {self.digest}: {error}")) from None
        if placement.spans and (placement.leaf or placement.is_node):
            self._store._blocks.hold(str(self.digest), [Block(block.cid, bytes(block.data))])
        for span in placement.spans:
            self._waiters.arrived(span.start, span.end)

    def place_known(self) -> None:
        """Put what need not be fetched."""
        outline = self._outline
        while outline.inline or outline.again:
            if outline.inline:
                self._put(outline.inline.pop())
            else:
                cid = outline.again.pop()
                leaf = outline.leaves[cid.multihash]
                content = bytes(self._data[leaf.offset : leaf.offset + leaf.length])
                self._put(Block(cid, leaf.block_data(content)))

    async def wait_range(self, start: int, end: int) -> None:
        await self._waiters.wait(start, end)

    async def read(self, start: int, end: int) -> bytes:
        await trio.lowlevel.checkpoint()
        assert self.has_range(start, end)
        return bytes(self._data[start:end])

    def open_file(self) -> int | None:
        return None

    async def complete(self) -> BlobInfo:
        await trio.lowlevel.checkpoint()
        if self._done is not None:
            return self._done
        assert self._outline.is_whole
        if Digest.of(bytes(self._data), self.digest.algorithm) != self.digest:
            raise self._fail(DigestMismatch(f"what root {self.root} leads to is not {self.digest}"))
        del self._store._partials[self.digest]
        info = self._store._blobs.get(self.digest, (BlobInfo(self.digest, self.size, self.root), b""))[0]
        self._store._blobs[self.digest] = (info, bytes(self._data))
        self._done = info
        return info

    def _fail(self, failure: IpfsregError) -> IpfsregError:
        """Throw everything away."""
        self._waiters.fail(failure)
        self._store._forget_partial(self)
        return failure

    async def abandon(self) -> None:
        if self._done is None and self._waiters.failure is None:
            self._waiters.fail(BlockNotFound(f"the fetch of {self.digest} was given up"))

    @property
    def is_abandoned(self) -> bool:
        return self._waiters.failure is not None

    def take_up(self) -> None:
        self._waiters.failure = None


class MemoryBlobStore:
    """Keeps `BlobStore` as long as the process lives."""

    def __init__(self, blocks: MemoryBlockstore | None = None) -> None:
        self._blocks = blocks if blocks is not None else MemoryBlockstore()
        self._blobs: dict[Digest, tuple[BlobInfo, bytes]] = {}
        self._uploads: dict[str, MemoryUpload] = {}
        self._partials: dict[Digest, MemoryPartial] = {}
        self._uses: dict[Digest, int] = {}
        """Of blobs that are not kept: when they were last asked for, as a count."""
        self._count = count(1)
        self._directory: Path | None = None

    def stat(self, digest: Digest) -> BlobInfo | None:
        entry = self._blobs.get(digest)
        return entry and entry[0]

    def _entry(self, digest: Digest) -> tuple[BlobInfo, bytes]:
        entry = self._blobs.get(digest)
        if entry is None:
            raise BlobUnknown(f"blob {digest} is not in this store")
        return entry

    def open(self, digest: Digest) -> BlobFile:
        info, data = self._entry(digest)
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="ipfsreg-"))
            weakref.finalize(self, shutil.rmtree, self._directory, ignore_errors=True)
        path = self._directory / f"{digest.algorithm}-{digest.hex}"
        if not path.exists():
            path.write_bytes(data)
        return BlobFile(info, path)

    async def read_whole(self, digest: Digest, max_bytes: int) -> bytes:
        await trio.lowlevel.checkpoint()
        info, data = self._entry(digest)
        if info.size > max_bytes:
            raise SizeInvalid(f"blob {digest} has {info.size} bytes, {max_bytes} are allowed")
        return data

    async def create_upload(self, algorithm: str = "sha256") -> MemoryUpload:
        await trio.lowlevel.checkpoint()
        upload = MemoryUpload(self)
        self._uploads[upload.id] = upload
        return upload

    async def resume_upload(self, upload_id: str) -> MemoryUpload:
        await trio.lowlevel.checkpoint()
        upload = self._uploads.get(upload_id)
        if upload is None:
            raise UploadUnknown(f"no upload {upload_id[:100]!r}")
        return upload

    async def expire_uploads(self, older_than_s: float) -> int:
        await trio.lowlevel.checkpoint()
        limit = time.monotonic() - older_than_s
        expired = [upload_id for upload_id, upload in self._uploads.items() if upload.touched < limit]
        for upload_id in expired:
            del self._uploads[upload_id]
        return len(expired)

    async def put_whole(self, data: bytes, digest: Digest | None = None) -> BlobInfo:
        await trio.lowlevel.checkpoint()
        return self._publish(data, digest or Digest.of(data))

    def _publish(self, data: bytes, digest: Digest) -> BlobInfo:
        if Digest.of(data, digest.algorithm) != digest:
            raise DigestMismatch(f"{len(data)} bytes do not hash to {digest}")
        self._uses.pop(digest, None)
        if digest not in self._blobs:
            layout = build(data)
            self._blobs[digest] = (BlobInfo(digest, len(data), layout.root), data)
            leaves = [Block(cid, chunk) for cid, chunk in zip(layout.leaves, cut(data, V1_2025), strict=True)]
            self._blocks.hold(str(digest), leaves + list(layout.inner))
        return self._blobs[digest][0]

    async def open_partial(self, digest: Digest, size: int, root: Cid) -> MemoryPartial:
        await trio.lowlevel.checkpoint()
        partial = self._partials.get(digest)
        if partial is not None and (partial.root, partial.size) != (root, size):
            if not partial.is_abandoned:
                raise StoreError(f"blob {digest} is arriving by root {partial.root} now")
            self._forget_partial(partial)
            partial = None
        if partial is None:
            try:
                partial = MemoryPartial(self, digest, size, root)
            except MalformedData as error:
                raise DigestMismatch(f"root {root} does not lead to {digest}: {error}") from None
            self._partials[digest] = partial
            if digest not in self._blobs:
                self._uses[digest] = next(self._count)
            partial.place_known()
        partial.take_up()
        return partial

    def partials(self) -> Iterator[BlobInfo]:
        for partial in list(self._partials.values()):
            yield BlobInfo(partial.digest, partial.size, partial.root)

    async def drop_partial(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        partial = self._partials.get(digest)
        if partial is not None:
            partial._fail(BlockNotFound(f"the fetch of {digest} was given up"))

    async def expire_partials(self, older_than_s: float) -> int:
        limit = time.monotonic() - older_than_s
        idle = [partial for partial in self._partials.values() if partial.is_abandoned and partial.touched < limit]
        for partial in idle:
            await self.drop_partial(partial.digest)
        return len(idle)

    def _forget_partial(self, partial: MemoryPartial) -> None:
        if self._partials.get(partial.digest) is partial:
            del self._partials[partial.digest]
            if partial.digest not in self._blobs:
                self._uses.pop(partial.digest, None)
                self._blocks.let_go(str(partial.digest))

    async def delete(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        self._entry(digest)
        del self._blobs[digest]
        self._uses.pop(digest, None)
        self._blocks.let_go(str(digest))
        if self._directory is not None:
            (self._directory / f"{digest.algorithm}-{digest.hex}").unlink(missing_ok=True)

    async def collect(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        await trio.lowlevel.checkpoint()
        if digest not in self._blobs or is_needed(None):
            return False
        await self.delete(digest)
        return True

    async def keep(self, digests: Sequence[Digest]) -> None:
        await trio.lowlevel.checkpoint()
        for digest in digests:
            self._uses.pop(digest, None)

    def used(self, digest: Digest) -> None:
        self._use(digest)

    async def note_uses(self) -> None:
        await trio.lowlevel.checkpoint()

    async def spare(self, digests: Sequence[Digest]) -> None:
        await trio.lowlevel.checkpoint()
        for digest in digests:
            self._use(digest)

    def _use(self, digest: Digest) -> None:
        if digest in self._uses:
            self._uses[digest] = next(self._count)

    def least_used(self, after: tuple[int, int], limit: int) -> list[Pulled]:
        found = []
        for digest, use in sorted(self._uses.items(), key=itemgetter(1)):
            if (use, 0) > after and digest in self._blobs:
                found.append(Pulled(self._blobs[digest][0], True, (use, 0)))
            elif (use, 0) > after:
                partial = self._partials[digest]
                found.append(Pulled(BlobInfo(digest, partial.size, partial.root), False, (use, 0)))
        return found[:limit]

    async def evict(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        return digest in self._uses and await self.collect(digest, is_needed)

    async def drop_idle_partial(self, digest: Digest) -> bool:
        partial = self._partials.get(digest)
        if partial is None or not partial.is_abandoned or digest not in self._uses:
            return False
        await self.drop_partial(digest)
        return True

    def shortage(self, more: int) -> int:
        return 0

    def usage(self) -> Usage:
        sizes = {info.digest: info.size for info, _ in self._blobs.values()}
        sizes |= {digest: partial.size for digest, partial in self._partials.items()}
        return Usage(0, sum(sizes.values()), sum(sizes[digest] for digest in self._uses))

    async def verify(self, digest: Digest) -> None:
        await trio.lowlevel.checkpoint()
        _, data = self._entry(digest)
        assert Digest.of(data, digest.algorithm) == digest

    def blobs(self) -> Iterator[BlobInfo]:
        for digest in sorted(self._blobs):
            yield self._blobs[digest][0]

"""What the store promises: blocks by CID, blobs by OCI digest, and blocks that may come from the network.

A blob is one contiguous file; each leaf of its UnixFS DAG is served as a block out of that file. Small blocks (inner
nodes, CRDT nodes) lie in the embedded database. A blob that is still arriving already serves the leaves it has.

Every implementation passes the checks in `testing/blockstore_checks.py`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.peer_id import PeerId


class Blockstore(Protocol):
    """Durable map from CID to bytes. Keyed by multihash: the codec does not matter. Safe from many tasks at once."""

    def has(self, cid: Cid) -> bool:
        """Whether the block is here, whole or as a leaf of a blob. Answers from the index, without waiting."""

    def size_of(self, cid: Cid) -> int | None:
        """The block's length in bytes, or None. Answers from the index, without waiting."""

    async def get(self, cid: Cid) -> Block:
        """Return the block.

        Raises:
            BlockNotFound: it is not here.
            StoreDamaged: what is here does not hash to *cid*; the copy is no longer counted as present.
        """

    async def put(self, block: Block) -> None:
        """Store *block*, at most 2 MiB; on return it survives a power cut.

        Raises:
            StoreFull: nothing was written.

        Cancelled: all or nothing.
        """

    async def put_many(self, blocks: Sequence[Block]) -> None:
        """Store all of *blocks* in one durable step."""

    async def delete(self, cids: Iterable[Cid]) -> None:
        """Forget blocks that were put. Leaves of blobs go with their blob and are left alone here."""

    def arrivals(self) -> AbstractAsyncContextManager[AsyncIterator[frozenset[bytes]]]:
        """While the block lasts, iterate over the multihashes of blocks that became available.

        What a slow reader has not taken yet is folded into one set.
        """


class DatabaseBlockstore(Blockstore, Protocol):
    """A block store in a database that others keep tables in too: their rows and a block reach the disk together."""

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        """Store small *blocks* in the transaction *db* is in: part of work given to `write` of the same `Database`."""

    def committed(self, blocks: Sequence[Block]) -> None:
        """The transaction of a `put_in` is durable: tell the readers of `arrivals`. On the trio thread."""


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """A whole blob in this store."""

    digest: Digest
    size: int
    """Bytes."""
    root: Cid
    """Root of its UnixFS DAG (profile v1-2025 for what was made here)."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """A blob that came from peers and that nothing here has been promised by: it may go when its room is needed."""

    info: BlobInfo
    is_whole: bool
    place: tuple[int, int]
    """Where it stands among the others, the least recently used first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """How full a store is. In bytes; of blobs that are arriving those they will have."""

    limit: int
    """0: what the disk holds."""
    used: int
    """By blobs and uploads, and promised."""
    pulled: int
    """By blobs that may go, as far as others have them."""


@dataclass(frozen=True, slots=True)
class BlobFile:
    """A whole blob's file, for sendfile and range reads. Stays readable while open, also if the blob is deleted."""

    info: BlobInfo
    path: Path


class BlobUpload(Protocol):
    """Bytes of a blob being pushed, appended in order. One task at a time."""

    @property
    def id(self) -> str:
        """Names the upload; unguessable."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""

    def expect(self, size: int) -> None:
        """So many bytes will be written now; others are not promised this room meanwhile. 0: no more of them come.

        Raises:
            StoreFull: they do not fit.
            TooManyRequests: too many bytes are unfinished.
        """

    async def buffer(self) -> memoryview:
        """Where to receive the next bytes, for `append`: the same one until that is called.

        Waits while the disk is behind. Raises what an earlier piece failed with, as `settle`.
        """

    def append(self, size: int) -> None:
        """Append the first *size* bytes of the buffer that was given last. It is written and hashed in the background.

        Raises:
            StoreFull: they do not count, but are still in the buffer, and may be appended again.
        """

    async def settle(self) -> None:
        """Return when all that was appended is written, and give the buffer back. Not cancelled, soon over.

        To be called before the upload is left to others, whatever has happened.

        Raises:
            StoreFull, UploadUnknown: `offset` is the end of what is written. The upload can go on from there.
        """

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append *data*, and settle. Returns when the buffer is the caller's again; waits while the disk is behind.

        Raises:
            StoreFull: nothing of *data* counts; the upload stays at its offset.

        Cancelled: *data* counts wholly or not at all.
        """

    async def commit(self, digest: Digest) -> BlobInfo:
        """Publish the bytes as the blob *digest*; on return it survives a power cut. The upload is over.

        Raises:
            DigestMismatch: nothing is published and the bytes are gone.
        """

    async def abort(self) -> None:
        """Throw the bytes away. Idempotent."""


class PartialBlob(Protocol):
    """A blob whose blocks are arriving from peers, in any order. Its DAG becomes known as inner nodes come in.

    What has come is served through the Blockstore at once, leaves and inner nodes alike. The one who fetches asks
    `wanted`, gives each block to `put`, and calls `complete` when nothing is wanted any more; any number of readers
    use `wait_range` and `read` meanwhile. Roots of every UnixFS profile are taken.
    """

    @property
    def digest(self) -> Digest:
        """What the whole must hash to."""

    @property
    def size(self) -> int:
        """Bytes of the whole blob."""

    @property
    def root(self) -> Cid:
        """The root of the DAG it arrives by."""

    @property
    def missing_bytes(self) -> int:
        """Content bytes that are not here yet."""

    def wanted(self, start: int = 0, end: int | None = None, limit: int | None = None) -> list[Cid]:
        """The blocks still needed for the bytes [start, end), in file order, each once, at most *limit*.

        Leaves that are missing, and inner nodes below which nothing is known yet: ask again when they have come.
        Empty exactly when every byte of the range is here.
        """

    async def put(self, block: Block) -> None:
        """Take one verified block; its bytes can be read and served from now on. Durable only with `complete`.

        A block that is not wanted (any more) changes nothing.

        Raises:
            DigestMismatch: the block does not fit the DAG of a file of `size` bytes, so the root is not that of the
                blob. All of it is thrown away.
            StoreFull: the block is still wanted.
        """

    def has_range(self, start: int, end: int) -> bool:
        """Whether every byte of [start, end) is here."""

    async def wait_range(self, start: int, end: int) -> None:
        """Return when every byte of [start, end) is here.

        Raises:
            BlockNotFound, DigestMismatch: the fetch failed for good; it will not come.
        """

    async def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), all of them here already."""

    def open_file(self) -> int | None:
        """A descriptor of the file the bytes come into, each at its place, the caller's to close; None: there is none.

        It stays good when the blob is published or thrown away. Raises StoreError.
        """

    async def complete(self) -> BlobInfo:
        """With nothing wanted any more: check the OCI digest and publish the blob, durably. May be called again.

        Raises:
            DigestMismatch: the DAG is not the blob; all of it is thrown away, and waiting readers fail with the same.
        """

    async def abandon(self) -> None:
        """Keep what is here for a later `open_partial`, go on serving it, and let waiting readers fail. Idempotent."""


class BlobStore(Protocol):
    """Whole blobs by OCI digest, uploads, and blobs that are arriving. Safe from many tasks at once."""

    def stat(self, digest: Digest) -> BlobInfo | None:
        """The blob, if it is here whole. Answers from the index, without waiting."""

    def open(self, digest: Digest) -> BlobFile:
        """The blob's file. Raises BlobUnknown."""

    async def read_whole(self, digest: Digest, max_bytes: int) -> bytes:
        """All bytes of a small blob (a manifest, a config).

        Raises:
            BlobUnknown, or SizeInvalid where it is larger than *max_bytes*.
        """

    async def create_upload(self, algorithm: str = "sha256") -> BlobUpload:
        """Begin an upload. *algorithm* is that of the digest expected at `commit`; another one costs a second pass.

        Raises:
            StoreFull, TooManyRequests: too many are unfinished.
        """

    async def resume_upload(self, upload_id: str) -> BlobUpload:
        """An upload begun before, also before a restart, at the offset its bytes have. Raises UploadUnknown."""

    async def expire_uploads(self, older_than_s: float) -> int:
        """Throw away uploads that nobody has written to for *older_than_s* seconds; return how many."""

    async def open_partial(self, digest: Digest, size: int, root: Cid) -> PartialBlob:
        """Begin the arrival of a blob that is not here, or take it up again where it stopped, also after a restart.

        While it arrives, every caller gets the same object. What lies on disk from before a restart is hashed again
        first, a second or two for each GiB. A blob that was under way by another root begins anew once it is abandoned.

        Raises:
            StoreFull: *size* bytes do not fit.
            StoreError: it is arriving by another root now.
            DigestMismatch: no file of that size can have that root.
        """

    def partials(self) -> Iterable[BlobInfo]:
        """Every blob that has begun to arrive and is not whole, also from before a restart."""

    async def drop_partial(self, digest: Digest) -> None:
        """Throw away what has arrived of a blob; waiting readers fail. Unknown digests are fine."""

    async def expire_partials(self, older_than_s: float) -> int:
        """Throw away arrivals that nobody works on and that nothing has come for in *older_than_s* seconds.

        Returns how many.
        """

    async def put_whole(self, data: bytes, digest: Digest | None = None) -> BlobInfo:
        """Store a small blob in one durable step. Raises DigestMismatch if *digest* is given and does not fit."""

    async def delete(self, digest: Digest) -> None:
        """Delete the blob, its file and its leaves. Raises BlobUnknown."""

    async def collect(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        """Delete a whole blob unless it is needed; return whether it was deleted. An unknown one is not.

        *is_needed* decides in the transaction that deletes: nothing that is written to the database can come in
        between. It is given that transaction (None: this store has no database), and runs in the writer's thread.
        """

    # What came from peers is not kept: it may go when room is needed (`registry.evicting`). What was pushed is.

    async def keep(self, digests: Sequence[Digest]) -> None:
        """Let those of *digests* that are here stay for good, as what is pushed does; durable on return."""

    def used(self, digest: Digest) -> None:
        """The blob was asked for. Written down a while later."""

    async def note_uses(self) -> None:
        """Write down what `used` was told. Raises StoreError."""

    async def spare(self, digests: Sequence[Digest]) -> None:
        """Let blobs that cannot go now stand behind all others that may."""

    def least_used(self, after: tuple[int, int], limit: int) -> list[Pulled]:
        """Up to *limit* blobs that are not kept, the least recently used first, those behind the place *after*."""

    async def evict(self, digest: Digest, is_needed: Callable[[sqlite3.Connection | None], bool]) -> bool:
        """`collect`, for a blob that is not kept; False where it is."""

    async def drop_idle_partial(self, digest: Digest) -> bool:
        """Throw away what has arrived of a blob, unless it is kept or somebody fetches it; return whether it went."""

    def shortage(self, more: int) -> int:
        """How many bytes would have to go for *more* to fit."""

    def usage(self) -> Usage:
        """How full the store is."""

    async def verify(self, digest: Digest) -> None:
        """Hash the blob's file again.

        Raises:
            BlobUnknown.
            StoreDamaged: the blob is not counted as whole any more; `open_partial` keeps what is still good of it.
        """

    def blobs(self) -> Iterable[BlobInfo]:
        """Every whole blob, by digest."""


class BlockService(Protocol):
    """Blocks from here or from peers."""

    def fetch(
        self, cids: Sequence[Cid], *, first: Sequence[PeerId] = (), deadline_s: float | None = None
    ) -> AsyncIterator[Block]:
        """Yield the verified blocks of *cids* as they come, local ones at once, in no promised order.

        *first* are peers believed to have them; they are asked before others. Blocks that come from peers are NOT
        stored: the caller knows where they belong.

        Raises:
            BlockNotFound: *deadline_s* seconds went by without progress on any of them; None waits for ever.

        Stopping the iteration cancels what is still wanted. Use `aclosing`.
        """

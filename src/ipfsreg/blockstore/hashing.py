"""Hashing content while it is still coming: a worker thread follows the file that is being written.

Bytes go to the file first, and the hasher reads them back out of the page cache. That costs one more copy, a tenth of
what a hash costs, and buys much: whoever brings bytes never waits for a hash and gets the buffer back at once; no
upload holds buffers of its own, however many there are; and taking up a file from before a restart is the same code,
starting at zero.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from ipfsreg.blockstore.disk import named
from ipfsreg.errors import StoreDamaged, StoreError
from ipfsreg.ipld.builder import V1_2025, Builder, Layout
from ipfsreg.ipld.cid import RAW, Cid

LEAF_BYTES = V1_2025.chunk_bytes

JOB_BYTES = 8 * LEAF_BYTES
"""What one thread job hashes at the most: some milliseconds, so that many files share few threads fairly."""

PIECE_BYTES = 256 * 1024
"""Read at a time; small enough to lie in a core's own cache while two hashes go over it."""

Spawn = Callable[[Callable[[], Awaitable[None]]], None]
"""Starts a task that outlives the caller, as `nursery.start_soon`."""

_local = threading.local()


def _piece() -> memoryview:
    """This thread's buffer."""
    view: memoryview | None = getattr(_local, "piece", None)
    if view is None:
        view = _local.piece = memoryview(bytearray(PIECE_BYTES))
    return view


class Hasher:
    """The OCI digest and the leaves of the first `position` bytes of a file.

    Two threads may work on it at once: one on the digest, one on the leaves.
    """

    def __init__(self, algorithm: str, *, leaves: bool) -> None:
        """*leaves*: build the UnixFS DAG too."""
        self.algorithm = algorithm
        self._content = hashlib.new(algorithm)
        self._content_position = 0
        self._leaf = hashlib.sha256()
        self._leaves_position = 0
        self._builder = Builder() if leaves else None

    @property
    def position(self) -> int:
        """How far both are."""
        if self._builder is None:
            return self._content_position
        return min(self._content_position, self._leaves_position)

    def advance(self, path: Path, end: int) -> None:
        """Hash on to *end*.

        Raises:
            StoreDamaged: the file is shorter.
            OSError.
        """
        file = os.open(path, os.O_RDONLY)
        try:
            self.advance_in(file, end, path.name)
        finally:
            os.close(file)

    def advance_in(self, file: int, end: int, name: str) -> None:
        """The same in an open file, called *name* where it is too short."""
        while (position := self.position) < end:
            piece = _piece()[: end - position]
            size = os.preadv(file, [piece], position)
            if not size:
                raise StoreDamaged(f"{name} ends at byte {position} of {end}")
            self.take_content(piece[:size])
            self.take_leaves(piece[:size])

    def take_content(self, data: bytes | memoryview) -> None:
        """*data* follow: on with the digest."""
        self._content.update(data)
        self._content_position += len(data)

    def take_leaves(self, data: memoryview) -> None:
        """*data* follow: on with the leaves, if there are any."""
        if self._builder is None:
            return
        position = self._leaves_position
        while data:
            piece = data[: LEAF_BYTES - position % LEAF_BYTES]
            data = data[len(piece) :]
            self._leaf.update(piece)
            position += len(piece)
            if position % LEAF_BYTES == 0:
                self._close_leaf(self._builder, position)
        # Last: who sees it from another thread, and finds the end reached, takes digest and layout at once.
        self._leaves_position = position

    def _close_leaf(self, builder: Builder, end: int) -> None:
        builder.add_leaf(Cid.from_sha256(RAW, self._leaf.digest()), end - builder.size)
        self._leaf = hashlib.sha256()

    @property
    def hex(self) -> str:
        """The OCI digest's digits."""
        return self._content.hexdigest()

    def layout(self) -> Layout:
        """The DAG, of a file that ends here. The hasher is used up."""
        assert self._builder is not None
        if self._builder.size < self._leaves_position:
            self._close_leaf(self._builder, self._leaves_position)
        return self._builder.finish()


class Follower:
    """Hashes a growing file in the background, as far behind the writer as threads are busy."""

    def __init__(self, path: Path, hasher: Hasher, spawn: Spawn, threads: trio.CapacityLimiter) -> None:
        self.hasher = hasher
        self._path = path
        self._spawn = spawn
        self._threads = threads
        self._end = 0
        self._turn = trio.Lock()
        self._running = False
        self._moved = trio.Event()
        self._failure: StoreError | None = None

    def extend(self, end: int) -> None:
        """The file is written up to *end*, and is hashed up to there in the background."""
        self._end = max(self._end, end)
        if self._end > self.hasher.position and not self._running and self._failure is None:
            self._running = True
            self._spawn(self._run)

    async def _run(self) -> None:
        try:
            while self.hasher.position < self._end:
                await self._advance(self._end)
        except StoreError as error:
            self._failure = error
        finally:
            self._running = False
            self._wake()

    @contextmanager
    def borrowed(self) -> Iterator[Hasher | None]:
        """The hasher, for a job in a thread; None while it is in use."""
        if self._turn.locked():
            yield None
            return
        self._turn.acquire_nowait()
        try:
            yield self.hasher
        finally:
            self._turn.release()

    async def _advance(self, end: int) -> None:
        """One job. Raises StoreError."""
        async with self._turn:
            position = self.hasher.position
            step = min(end, position - position % LEAF_BYTES + JOB_BYTES)
            if step <= position:
                return
            try:
                await trio.to_thread.run_sync(self.hasher.advance, self._path, step, limiter=self._threads)
            except OSError as error:
                raise named(error) from error
        self._wake()

    def _wake(self) -> None:
        self._moved.set()
        self._moved = trio.Event()

    async def wait_behind(self, most: int) -> None:
        """Return when at most *most* bytes of what was written are not hashed yet. Raises StoreError."""
        while self._failure is None and self._running and self._end - self.hasher.position > most:
            await self._moved.wait()
        self._check()

    async def finish(self, end: int) -> None:
        """Hash all bytes up to *end*, the end of the file. Raises StoreError. Cancelled: may be called again."""
        while self.hasher.position < end:
            self._check()
            await self._advance(end)

    def _check(self) -> None:
        if self._failure is not None:
            raise type(self._failure)(*self._failure.args)


async def digest_of_file(path: Path, size: int, algorithm: str, threads: trio.CapacityLimiter) -> str:
    """The hex digest of the first *size* bytes of a file. Raises StoreError."""
    follower = Follower(path, Hasher(algorithm, leaves=False), _never, threads)
    await follower.finish(size)
    return follower.hasher.hex


def _never(task: object) -> None:
    raise AssertionError("nothing to follow")

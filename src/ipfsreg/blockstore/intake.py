"""From the socket into the file and the hashes: the buffers of pushes, and who works on them.

A buffer is filled by the event loop, and then looked at by three lanes of the `Crew` at once: one writes it to the
file, one goes on with the OCI digest, one with the leaves. The next one is being filled meanwhile. So one push keeps
several cores busy, no byte is read back, and nobody waits for a thread to wake as long as there is a piece more
(docs/decisions/0100).

What a push may hold is bounded: one buffer always, and others as long as all pushes together hold few.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from pathlib import Path

import trio

from ipfsreg.blockstore.crew import Crew, Lane
from ipfsreg.blockstore.disk import named, write_at
from ipfsreg.blockstore.hashing import Hasher
from ipfsreg.errors import UploadUnknown

BUFFER_BYTES = 1024 * 1024
"""Filled at a time, as far as the client is that fast."""

MAX_EACH = 4
"""Buffers of one push."""

MAX_SHARED = 32
"""Once so many buffers are lent, every push has one."""

KEPT = 8
"""Buffers that are not given back to the system. A new one costs 256 page faults."""

APART_BYTES = 128 * 1024
"""From this size on a piece is worth three threads."""


class Buffers:
    """The memory of all pushes."""

    def __init__(self) -> None:
        self._idle: list[memoryview] = []
        self._lent = 0

    def take(self, held: int) -> memoryview | None:
        """A buffer for a push that has *held* already; None: it has to wait until it gives one back."""
        if held and (held >= MAX_EACH or self._lent >= MAX_SHARED):
            return None
        self._lent += 1
        # Pages of their own: what is not touched is not there, and what is not kept leaves no hole in the heap.
        return self._idle.pop() if self._idle else memoryview(mmap.mmap(-1, BUFFER_BYTES))

    def give_back(self, buffer: memoryview) -> None:
        """It is nobody's any more."""
        self._lent -= 1
        if len(self._idle) < KEPT:
            self._idle.append(buffer)


class Way(Enum):
    """How pieces are hashed, as long as any is under way."""

    APART = auto()
    """Each hash in its own lane."""
    TOGETHER = auto()
    """By the thread that writes: small pieces are not worth more."""
    LATER = auto()
    """Not here: what is in the file was not hashed up to its end, and somebody follows."""


class Piece:
    """Bytes under way."""

    __slots__ = ("buffer", "data", "parts", "start")

    def __init__(self, data: memoryview, start: int, buffer: memoryview | None) -> None:
        self.data = data
        self.start = start
        self.buffer = buffer
        """What to give back afterwards."""
        self.parts: list[int] = []
        """Counts down, from several threads: whoever takes the 0 was the last."""


class Intake:
    """The bytes of one upload on their way. For one task; `idle` may be awaited by others."""

    def __init__(self, path: Path, offset: int, hasher: Hasher, crew: Crew, buffers: Buffers) -> None:
        """The file has *offset* bytes. *hasher* is asked for its position when nothing is under way."""
        self.offset = offset
        """Bytes taken, those under way too."""
        self.written = offset
        """Bytes in the file."""
        self.hasher = hasher
        self._path = path
        self._crew = crew
        self._buffers = buffers
        self._writing, self._content, self._leaves = Lane(), Lane(), Lane()
        self._token = trio.lowlevel.current_trio_token()
        self._under_way = 0
        self._open: memoryview | None = None
        self._way = Way.TOGETHER
        self._failure: Exception | None = None
        self._moved = trio.Event()

    @property
    def is_followed(self) -> bool:
        """Whether somebody else may hash what is written: the lanes do not."""
        return self._way is Way.LATER or not self._under_way

    @property
    def is_busy(self) -> bool:
        """Whether pieces are under way."""
        return self._under_way > 0

    async def buffer(self) -> memoryview | None:
        """Where to put the next bytes: for `append`, or to be asked for again. None: a piece failed, see `settle`."""
        await trio.lowlevel.checkpoint()
        while self._failure is None:
            if self._open is not None:
                return self._open
            if self._way is not Way.TOGETHER or not self._under_way:
                self._open = self._buffers.take(self._under_way)
            if self._open is None:
                await self._moved.wait()
        return None

    def append(self, size: int) -> None:
        """The first *size* bytes of the open buffer are the next ones."""
        assert self._open is not None
        buffer, self._open = self._open, None
        self._start(Piece(buffer[:size], self.offset, buffer))

    def append_data(self, data: memoryview) -> None:
        """*data* are the next bytes; they have to stay as they are until `settle`."""
        self._start(Piece(data, self.offset, None))

    async def settle(self) -> None:
        """Return when all that was appended is in the file, and hashed if it is hashed here. Not cancelled.

        Raises what a piece failed with: it does not count, nor does any after it. `hasher` may have seen them all the
        same and has to be replaced.
        """
        await self.idle()
        if self._open is not None:
            self._buffers.give_back(self._open)
            self._open = None
        if self._failure is not None:
            failure, self._failure = self._failure, None
            self.offset = self.written
            raise failure

    async def idle(self) -> None:
        """Return when nothing is under way. Not cancelled: no thread can be."""
        with trio.CancelScope(shield=True):
            while self._under_way:
                await self._moved.wait()

    # ------------------------------------------------------------- the pieces

    def _start(self, piece: Piece) -> None:
        if not self._under_way:
            size = len(piece.data)
            is_hashed = self.hasher.position == self.offset
            self._way = Way.LATER if not is_hashed else Way.APART if size >= APART_BYTES else Way.TOGETHER
        self._under_way += 1
        self.offset += len(piece.data)
        if self._way is Way.APART:
            piece.parts = [0, 1, 2]
            self._crew.add(self._content, partial(self._do, self._hash_content, piece))
            self._crew.add(self._leaves, partial(self._do, self._hash_leaves, piece))
            self._crew.add(self._writing, partial(self._do, self._write, piece))
        else:
            piece.parts = [0]
            step = self._write if self._way is Way.LATER else self._write_and_hash
            self._crew.add(self._writing, partial(self._do, step, piece))

    def _do(self, step: Callable[[Piece], None], piece: Piece) -> None:
        try:
            if self._failure is None:
                step(piece)
        except Exception as error:  # Whatever it is, it belongs to the task that waits, and ends no thread.
            self._failure = self._failure or error
        finally:
            if piece.parts.pop() == 0:
                with suppress(trio.RunFinishedError):  # nobody waits any more
                    self._token.run_sync_soon(self._done, piece)

    def _write(self, piece: Piece) -> None:
        append(self._path, piece.data, piece.start)
        self.written = piece.start + len(piece.data)

    def _write_and_hash(self, piece: Piece) -> None:
        self._write(piece)
        self._hash_content(piece)
        self._hash_leaves(piece)

    def _hash_content(self, piece: Piece) -> None:
        self.hasher.take_content(piece.data)

    def _hash_leaves(self, piece: Piece) -> None:
        self.hasher.take_leaves(piece.data)

    def _done(self, piece: Piece) -> None:
        self._under_way -= 1
        if piece.buffer is not None:
            self._buffers.give_back(piece.buffer)
        self._moved.set()
        self._moved = trio.Event()


def append(path: Path, data: memoryview, offset: int) -> None:
    """Write *data* at the end of the file, wholly or not at all. Raises UploadUnknown, StoreFull, StoreError."""
    try:
        write_at(path, data, offset)
    except FileNotFoundError:
        raise UploadUnknown(f"upload {path.name} has expired") from None
    except OSError as error:
        os.truncate(path, offset)
        raise named(error) from error

"""How blocks get into the file of an arriving blob: written and hashed in one visit of a worker thread.

A visit costs as much as a tenth of a block's hash, and every return of a thread to Python takes the interpreter away
from the event loop. So all blocks that wait are written in one visit, one visit at a time, and what stands where the
OCI digest has come to is hashed at once, from memory, while it is in the processor's cache. What came out of order is
read back when the gap closes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

import trio

from ipfsreg.blockstore.disk import named, write_all
from ipfsreg.blockstore.hashing import JOB_BYTES, Follower, Hasher
from ipfsreg.errors import StoreDamaged


@dataclass(slots=True, eq=False)
class _Piece:
    """Bytes to be written."""

    content: bytes | memoryview
    offsets: Sequence[int]
    """In order."""
    is_done: bool = False
    error: OSError | None = None

    @property
    def first(self) -> int:
        return self.offsets[0]


class Filling:
    """Fills one file, and lets a follower know what it need not read back."""

    def __init__(self, follower: Follower, prefix: Callable[[], int]) -> None:
        """*prefix*: up to where the file is known to be whole."""
        self._follower = follower
        self._prefix = prefix
        self._turn = trio.Lock()
        self._waiting: list[_Piece] = []

    async def write(self, file: int, content: bytes | memoryview, offsets: Sequence[int]) -> None:
        """Put *content* at each of *offsets*, at least one, in order.

        Raises:
            StoreFull, StoreError.

        Cancelled: it may be written or not.
        """
        piece = _Piece(content, offsets)
        self._waiting.append(piece)
        try:
            async with self._turn:
                if not piece.is_done:
                    pieces, self._waiting = self._waiting, []
                    await self._visit(file, pieces)
        except trio.Cancelled:
            if piece in self._waiting:
                self._waiting.remove(piece)
            raise
        if piece.error is not None:
            raise named(piece.error) from piece.error

    async def _visit(self, file: int, pieces: Sequence[_Piece]) -> None:
        prefix = self._prefix()
        with self._follower.borrowed() as hasher:
            await trio.to_thread.run_sync(_fill, file, pieces, hasher, prefix)

    def settled(self) -> None:
        """The prefix may have grown. A long way behind it the follower hashes beside everything else."""
        prefix = self._prefix()
        if prefix - self._follower.hasher.position > JOB_BYTES:
            self._follower.extend(prefix)


def _fill(file: int, pieces: Sequence[_Piece], hasher: Hasher | None, prefix: int) -> None:
    for piece in pieces:
        try:
            for offset in piece.offsets:
                write_all(file, piece.content, offset)
        except OSError as error:
            piece.error = error
        piece.is_done = True
    if hasher is None:
        return
    try:
        if prefix - hasher.position <= JOB_BYTES:
            hasher.advance_in(file, prefix, "the arriving file")
    except (OSError, StoreDamaged):
        return  # whoever waits for the digest reads there again, and says so
    for piece in sorted(pieces, key=attrgetter("first")):
        if piece.error is None:
            for offset in piece.offsets:
                if offset == hasher.position:
                    hasher.take_content(piece.content)

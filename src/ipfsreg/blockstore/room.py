"""What still fits: asked before bytes are taken, so that the disk is never full of what cannot be finished.

Kept free, or spoken for: the reserve, which the database needs for deletions and for collecting garbage; what bodies in
flight will still bring, as far as they say; what is still to come of blobs that are arriving. The file system is
asked each time, because others write to it too.

An unfinished upload is its file in `uploads/`; so are its bytes, and they are counted from there at the start.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ipfsreg.blockstore.disk import Disk, naming_errors
from ipfsreg.errors import StoreFull, TooManyRequests

RESERVED_PART = 20
"""Of a small disk at most this part is kept free."""

FINISH_FIRST_S = 60.0
"""When a client is to come again where too much is unfinished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreLimits:
    """How much is taken. 0: no limit."""

    reserve_bytes: int = 0
    """Kept free on the disk, of a small one a twentieth at most."""
    max_bytes: int = 0
    """Of blobs, whole, arriving and being pushed."""
    max_uploads: int = 0
    """Unfinished at a time."""
    max_upload_bytes: int = 0
    """Of all unfinished uploads."""


class Room:
    """The room of one store."""

    def __init__(self, disk: Disk, limits: StoreLimits) -> None:
        self._disk = disk
        self._limits = limits
        self._uploads: dict[str, int] = {}
        self._unfinished = 0
        """The sum of these."""
        self._promises: dict[str, int] = {}
        self._promised = 0
        """The sum of these."""
        self._uncounted = 0
        """Of the promises, those for blobs that count as stored already."""
        self._counted: dict[str, int] = {}
        self.arriving: Callable[[], int] = lambda: 0
        """Bytes still to come of blobs that are arriving."""
        self.stored: Callable[[], int] = lambda: 0
        """Bytes of all blobs, of arriving ones those they will have."""

    def load(self) -> None:
        """Count the uploads of earlier runs. Blocks. Raises StoreError."""
        with naming_errors():
            self._uploads = dict(_sizes(self._disk.uploads))
        self._unfinished = sum(self._uploads.values())

    # ---------------------------------------------------------------- asking

    def kept_free(self, total: int) -> int:
        """How many bytes of a disk of *total* nobody may fill."""
        return min(self._limits.reserve_bytes, total // RESERVED_PART)

    def check_upload(self, key: str, more: int, unwritten: int = 0) -> None:
        """Whether *more* bytes of the upload *key* fit, *unwritten* ones of it being on their way to the disk.

        Raises:
            StoreFull: they do not.
            TooManyRequests: too much is unfinished already.
        """
        limits = self._limits
        if limits.max_uploads and key not in self._uploads and len(self._uploads) >= limits.max_uploads:
            raise TooManyRequests(
                f"{len(self._uploads)} uploads are unfinished, {limits.max_uploads} may be (store.max_uploads)",
                FINISH_FIRST_S,
            )
        unfinished = self._unfinished + self._promised_beside(key)
        if limits.max_upload_bytes and unfinished + more > limits.max_upload_bytes:
            raise TooManyRequests(
                f"{unfinished} bytes of unfinished uploads are here or on their way, {limits.max_upload_bytes} may be "
                "(store.max_upload_bytes)",
                FINISH_FIRST_S,
            )
        self._check(more, self._promised_beside(key), "of the upload", unwritten=unwritten)

    def promise_arrival(self, key: str, more: int, *, is_counted: bool) -> None:
        """*more* bytes of a blob are to be fetched, until `forget`. *is_counted*: all of it counts as stored already.

        Raises StoreFull.
        """
        self._check(more, self._promised, "that are to be fetched", is_counted=is_counted)
        self._set_promise(key, more)
        if is_counted:
            self._counted[key] = more
            self._uncounted += more

    def _check(self, more: int, promised: int, what: str, *, is_counted: bool = False, unwritten: int = 0) -> None:
        to_come = promised + self.arriving() + unwritten
        free, total = self._disk.space()
        kept = self.kept_free(total)
        if more + to_come + kept > free:
            raise StoreFull(
                f"no room left on the disk of the store for {more} bytes {what}: {free} are free, {kept} are kept so "
                f"(store.reserve_bytes), and {to_come} are promised to others"
            )
        if self._limits.max_bytes and not is_counted:
            used = self.stored() + self._unfinished + promised - self._uncounted
            if used + more > self._limits.max_bytes:
                raise StoreFull(
                    f"no room left in the store for {more} bytes {what}: {used} of {self._limits.max_bytes} are in use "
                    "or promised (store.max_bytes)"
                )

    def shortage(self, more: int) -> int:
        """How many bytes would have to go for *more* to fit; 0: it fits. Raises StoreError."""
        free, total = self._disk.space()
        short = more + self._promised + self.arriving() + self.kept_free(total) - free
        if self._limits.max_bytes:
            short = max(short, self.used + more - self._limits.max_bytes)
        return max(0, short)

    @property
    def max_bytes(self) -> int:
        """Of all blobs and uploads; 0: no limit."""
        return self._limits.max_bytes

    @property
    def used(self) -> int:
        """Of these: what is stored, unfinished and promised."""
        return self.stored() + self._unfinished + self._promised - self._uncounted

    def _promised_beside(self, key: str) -> int:
        return self._promised - self._promises.get(key, 0)

    # --------------------------------------------------------------- counting

    @property
    def uploads(self) -> tuple[int, int]:
        """How many are unfinished, and their bytes."""
        return len(self._uploads), self._unfinished

    def promise(self, key: str, size: int) -> None:
        """*size* more bytes of the upload *key* are on their way. Raises as `check_upload`."""
        if size:
            self.check_upload(key, size)
        self._set_promise(key, size)

    def _set_promise(self, key: str, size: int) -> None:
        self._promised += size - self._promises.pop(key, 0)
        if size:
            self._promises[key] = size

    def took(self, key: str, offset: int, size: int) -> None:
        """The upload has *offset* bytes, the last *size* of them new."""
        self._unfinished += offset - self._uploads.get(key, 0)
        self._uploads[key] = offset
        self._set_promise(key, max(0, self._promises.get(key, 0) - size))

    def forget(self, key: str) -> None:
        """The upload is over, or the arrival has begun."""
        self._unfinished -= self._uploads.pop(key, 0)
        self._uncounted -= self._counted.pop(key, 0)
        self._set_promise(key, 0)


def _sizes(directory: Path) -> list[tuple[str, int]]:
    found: list[tuple[str, int]] = []
    with os.scandir(directory) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                found.append((entry.name, entry.stat().st_size))
    return found

"""Where the files of the store lie, and how they are written so that they stay.

    blobs/<algorithm>/<first two hex digits>/<hex>     whole blobs, exactly their bytes
    uploads/<id>                                       bytes of pushes under way
    arriving/<algorithm>-<hex>                         blobs of which some bytes are here; the others are holes
    scratch/                                           emptied at every start

Everything here blocks and is meant for worker threads, where nothing else is said. Errors of the operating system leave
as StoreFull or StoreError.
"""

from __future__ import annotations

import errno
import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipfsreg.blockstore.checked import Stamp, stamp_of
from ipfsreg.errors import DigestInvalid, StoreDamaged, StoreError, StoreFull
from ipfsreg.metrics import Histogram
from ipfsreg.oci.digest import Digest

PUBLISH_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)
"""Bounds of the time to make one blob's file survive a power cut: three fsyncs at most."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def naming_errors() -> Iterator[None]:
    """Rename errors of the operating system. Raises StoreFull, StoreError."""
    try:
        yield
    except OSError as error:
        raise named(error) from error


def named(error: OSError) -> StoreError:
    """*error* in our words."""
    if error.errno in _FULL:
        return StoreFull(f"no room left on the disk of the store ({error.strerror})")
    if error.errno == errno.EIO:
        return StoreDamaged(f"the store's disk cannot read or write: {error}")
    return StoreError(f"the store's disk: {error}")


class Disk:
    """The directory of the store."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.blobs = directory / "blobs"
        self.uploads = directory / "uploads"
        self.arriving = directory / "arriving"
        self.scratch = directory / "scratch"
        self.publish_seconds = Histogram(PUBLISH_SECONDS)
        self._observing = threading.Lock()

    def prepare(self) -> None:
        """Make the directories, and empty the scratch one."""
        with naming_errors():
            for path in (self.blobs, self.uploads, self.arriving, self.scratch):
                path.mkdir(parents=True, exist_ok=True)
            for path in self.scratch.iterdir():
                path.unlink()
            sync_directory(self.directory)

    def blob_path(self, digest: Digest) -> Path:
        """Where the whole blob lies."""
        return self.blobs / digest.algorithm / digest.hex[:2] / digest.hex

    def arriving_path(self, digest: Digest) -> Path:
        """Where the blob lies while it is not whole."""
        return self.arriving / f"{digest.algorithm}-{digest.hex}"

    def publish(self, source: Path, digest: Digest) -> Stamp:
        """Make the bytes of *source* the file of the blob; on return they and its name survive a power cut.

        Raises:
            StoreFull, StoreError: *source* is still where it was.
        """
        target = self.blob_path(digest)
        began = time.perf_counter()
        with naming_errors():
            sync_file(source)
            if not target.parent.is_dir():
                target.parent.mkdir(parents=True, exist_ok=True)
                sync_directory(self.blobs)
                sync_directory(target.parent.parent)
            os.rename(source, target)
            sync_directory(target.parent)
            stamp = stamp_of(target.stat())
        with self._observing:
            self.publish_seconds.observe(time.perf_counter() - began)
        return stamp

    def write_scratch(self, data: bytes | memoryview) -> Path:
        """A file with *data*, of the caller's. Raises StoreFull, StoreError: there is none."""
        path = self.scratch / secrets.token_hex(8)
        with naming_errors():
            try:
                path.write_bytes(data)
            except OSError:
                with suppress(OSError):
                    path.unlink()
                raise
        return path

    def materialize(self, digest: Digest, data: bytes) -> Path:
        """Write a file of the blob that need not survive anything, because its bytes are in the database."""
        target = self.blob_path(digest)
        scratch = self.write_scratch(data)
        with naming_errors():
            try:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.rename(scratch, target)
            except OSError:
                with suppress(OSError):
                    scratch.unlink()
                raise
        return target

    def remove(self, path: Path) -> None:
        """Delete a file that may be gone already."""
        with naming_errors():
            path.unlink(missing_ok=True)

    def blob_files(self) -> Iterator[tuple[Path, Digest | None]]:
        """Every file under `blobs/`, with the digest its place stands for."""
        for path in self.blobs.glob("*/*/*"):
            yield path, _digest_of(path.parent.parent.name, path.name)

    def arriving_files(self) -> Iterator[tuple[Path, Digest | None]]:
        """Every file under `arriving/`, with the digest its name stands for."""
        for path in self.arriving.iterdir():
            algorithm, _, digits = path.name.partition("-")
            yield path, _digest_of(algorithm, digits)

    def space(self) -> tuple[int, int]:
        """Bytes that an unprivileged process can still write, and bytes that the file system can hold."""
        with naming_errors():
            status = os.statvfs(self.directory)
        return status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize

    def try_to_write(self) -> None:
        """Write a small file and take it away again. Raises StoreFull, StoreError."""
        path = self.scratch / secrets.token_hex(8)
        with naming_errors():
            try:
                path.write_bytes(bytes(4096))
            finally:
                path.unlink(missing_ok=True)


def _digest_of(algorithm: str, digits: str) -> Digest | None:
    try:
        return Digest.parse(f"{algorithm}:{digits}")
    except DigestInvalid:
        return None


def write_at(path: Path, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of *data* at *offset* of a file that exists. May have written some of it when it raises OSError."""
    file = os.open(path, os.O_WRONLY)
    try:
        write_all(file, data, offset)
    finally:
        os.close(file)


def write_all(file: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """The same for an open file."""
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(file, view, offset)
        view = view[written:]
        offset += written


def read_at(path: Path, length: int, offset: int) -> bytes:
    """Up to *length* bytes from *offset*; fewer only at the end of the file. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        return read_all(file, length, offset)
    finally:
        os.close(file)


def read_all(file: int, length: int, offset: int) -> bytes:
    """The same for an open file."""
    data = os.pread(file, length, offset)
    while len(data) < length:
        more = os.pread(file, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def written_ranges(file: int) -> list[tuple[int, int]]:
    """The ranges of the file that were ever written, in order; all of it where the file system cannot tell.

    Raises OSError.
    """
    ranges: list[tuple[int, int]] = []
    size = os.fstat(file).st_size
    end = 0
    while end < size:
        try:
            start = os.lseek(file, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # only a hole is left
                break
            if error.errno == errno.EINVAL:
                return [(0, size)]
            raise
        end = os.lseek(file, start, os.SEEK_HOLE)
        ranges.append((start, end))
    return ranges


def sync_file(path: Path) -> None:
    """Make the file's bytes survive a power cut. Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive a power cut. Raises OSError."""
    file = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)

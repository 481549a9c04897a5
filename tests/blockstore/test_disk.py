from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ipfsreg.blockstore.disk import Disk, named, read_at, write_at, written_ranges
from ipfsreg.errors import StoreDamaged, StoreError, StoreFull
from ipfsreg.oci.digest import Digest

DIGEST = Digest.of(b"data")


def disk(tmp_path: Path) -> Disk:
    opened = Disk(tmp_path / "store")
    opened.prepare()
    return opened


def test_preparing_again_keeps_everything_but_scratch(tmp_path: Path) -> None:
    first = disk(tmp_path)
    (first.uploads / "upload").write_bytes(b"1")
    (first.scratch / "half").write_bytes(b"2")
    disk(tmp_path)
    assert os.listdir(first.uploads) == ["upload"]
    assert os.listdir(first.scratch) == []


def test_publishing_moves_the_file_to_its_place(tmp_path: Path) -> None:
    opened = disk(tmp_path)
    source = opened.uploads / "upload"
    source.write_bytes(b"data")
    opened.publish(source, DIGEST)
    assert not source.exists()
    assert opened.blob_path(DIGEST).read_bytes() == b"data"
    assert opened.blob_path(DIGEST).relative_to(opened.directory) == Path("blobs", "sha256", DIGEST.hex[:2], DIGEST.hex)
    assert list(opened.blob_files()) == [(opened.blob_path(DIGEST), DIGEST)]


def test_what_cannot_be_published_stays_where_it_is(tmp_path: Path) -> None:
    opened = disk(tmp_path)
    source = opened.uploads / "upload"
    source.write_bytes(b"data")
    (opened.blobs / "sha256").write_bytes(b"a file where a directory has to be")
    with pytest.raises(StoreError):
        opened.publish(source, DIGEST)
    assert source.read_bytes() == b"data"


def test_names_that_stand_for_no_digest_are_told_apart(tmp_path: Path) -> None:
    opened = disk(tmp_path)
    for name in (f"sha256-{DIGEST.hex}", "sha256-short", "md5-d41d8cd98f00b204e9800998ecf8427e", "note"):
        (opened.arriving / name).write_bytes(b"")
    found = {path.name: digest for path, digest in opened.arriving_files()}
    assert found.pop(f"sha256-{DIGEST.hex}") == DIGEST
    assert set(found.values()) == {None}


def test_writing_and_reading_at_an_offset(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    write_at(path, memoryview(b"abc"), 8)
    assert read_at(path, 100, 6) == b"67abc"
    assert read_at(path, 2, 0) == b"01"
    assert read_at(path, 5, 50) == b""
    with pytest.raises(FileNotFoundError):
        write_at(tmp_path / "other", b"never creates one", 0)


def test_the_file_system_says_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(10 << 20)
        assert written_ranges(os.open(path, os.O_RDONLY)) == []
        os.pwrite(file.fileno(), b"x" * 4096, 1 << 20)
        os.pwrite(file.fileno(), b"x" * (1 << 20), 9 << 20)
    ranges = written_ranges(os.open(path, os.O_RDONLY))
    assert ranges == [(1 << 20, (1 << 20) + 4096), (9 << 20, 10 << 20)]


def test_errors_of_the_system_get_our_names() -> None:
    assert type(named(OSError(errno.ENOSPC, "no space"))) is StoreFull
    assert type(named(OSError(errno.EDQUOT, "quota"))) is StoreFull
    assert type(named(OSError(errno.EIO, "input/output error"))) is StoreDamaged
    assert type(named(OSError(errno.EROFS, "read-only"))) is StoreError

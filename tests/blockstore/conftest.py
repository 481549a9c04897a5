from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, ExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Opened = AbstractAsyncContextManager[tuple[DiskBlockstore, DiskBlobStore]]


@pytest.fixture
def open_store(tmp_path: Path) -> Callable[[], Opened]:
    """Opens the store in `tmp_path`, also again."""

    @asynccontextmanager
    async def open_it() -> AsyncIterator[tuple[DiskBlockstore, DiskBlobStore]]:
        async with (
            open_database(tmp_path / "db") as database,
            open_blobstore(tmp_path / "store", database) as stores,
        ):
            yield stores

    return open_it


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], None]]:
    """Puts a file system of so many bytes under `tmp_path / "store"`; a real one, so that it is really full."""
    with ExitStack() as stack:

        def mount(size: int) -> None:
            place = tmp_path / "store"
            place.mkdir()
            options = ["-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
            if subprocess.run(["mount", *options], capture_output=True).returncode:
                pytest.skip("mounting a small disk needs root")
            stack.callback(subprocess.run, ["umount", str(place)], check=True)

        yield mount

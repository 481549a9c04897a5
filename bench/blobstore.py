"""What the store takes in and gives out: one blob pushed durably, read back whole, block by block, and fetched.

    .venv/bin/python bench/blobstore.py [--mib 1024] [--piece-kib 256] [--dir DIR | --tmpfs] [--rounds 3]

Prints MB/s (10^6 bytes), CPU seconds of this process and its peak memory, beside what the machine itself does: sha256
of one core, and writing the same bytes with one fsync. Bytes come from memory, as they would from a socket.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import trio

from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.blocks import DiskBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.builder import V1_2025, Builder
from ipfsreg.oci.digest import Digest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--piece-kib", type=int, default=256, help="bytes of one write to the upload")
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--tmpfs", action="store_true", help="use /dev/shm: the disk costs nothing")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    base = Path("/dev/shm") if args.tmpfs else args.dir
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=base))
    try:
        print(f"{args.mib} MiB, pieces of {args.piece_kib} KiB, {os.cpu_count()} cores, in {directory}")
        machine(directory, args.mib)
        trio.run(measure, directory, args.mib, args.piece_kib * 1024, args.rounds)
    finally:
        shutil.rmtree(directory)


def machine(directory: Path, mib: int) -> None:
    block = os.urandom(1 << 20)
    start = time.perf_counter()
    digest = hashlib.sha256()
    for _ in range(256):
        digest.update(block)
    print(f"{'sha256, one core':34}{256 * (1 << 20) / (time.perf_counter() - start) / 1e6:8.0f} MB/s")
    start = time.perf_counter()
    with (directory / "plain").open("wb", buffering=0) as file:
        for _ in range(mib):
            file.write(block)
        os.fsync(file.fileno())
    print(f"{'plain write and fsync':34}{mib * (1 << 20) / (time.perf_counter() - start) / 1e6:8.0f} MB/s")
    (directory / "plain").unlink()


class Content:
    """A blob of which no two leaves are equal, out of 64 MiB of memory."""

    def __init__(self, mib: int) -> None:
        self.size = mib << 20
        self._random = bytearray(os.urandom(64 << 20))
        content, builder = hashlib.sha256(), Builder()
        for index in range(mib):
            leaf = self.leaf(index)
            content.update(leaf)
            builder.add_leaf(V1_2025.leaf_block(leaf).cid, len(leaf))
        self.digest = Digest("sha256", content.hexdigest())
        self.layout = builder.finish()

    def leaf(self, index: int) -> memoryview:
        """Leaf *index*; good until another one is asked for."""
        start = index % 64 << 20
        self._random[start : start + 8] = index.to_bytes(8, "big")
        return memoryview(self._random)[start : start + (1 << 20)]


async def measure(directory: Path, mib: int, piece: int, rounds: int) -> None:
    content = Content(mib)
    results: dict[str, list[tuple[float, float]]] = {}
    peaks: list[str] = []

    async def timed(what: str, run: Callable[[], Awaitable[object]]) -> None:
        cpu, start = time.process_time(), time.perf_counter()
        await run()
        results.setdefault(what, []).append((time.perf_counter() - start, time.process_time() - cpu))
        peaks.append(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB after {what!r}")

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    async with open_database(directory / "db") as db, open_blobstore(directory / "store", db) as (blocks, blobs):
        for _ in range(rounds):
            await timed("push, durable", lambda: push(blobs, content, piece))
            await timed("read as one file", lambda: trio.to_thread.run_sync(read_file, blobs.open(content.digest).path))
            await timed("read leaf by leaf", lambda: read_leaves(blocks, content))
            await blobs.delete(content.digest)
            await timed("fetch, durable", lambda: fetch(blobs, content))
            await blobs.delete(content.digest)
        small = [os.urandom(2000) for _ in range(256)]
        await timed("256 small blobs, one by one", lambda: put_each(blobs, small))
        other = [os.urandom(2000) for _ in range(256)]
        await timed("256 small blobs, 16 at a time", lambda: put_many(blobs, other))
    for what, times in results.items():
        wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
        if "small" in what:
            print(f"{what:34}{wall / 256 * 1e3:8.2f} ms each")
        else:
            rate = content.size / wall / 1e6
            print(f"{what:34}{rate:8.0f} MB/s  {cpu:6.2f} CPU-s  {cpu / content.size * 1e9:5.2f} ns/B")
    print(f"peak memory: {before:.0f} MiB before, {peaks[0]}, {peaks[-1]}")


async def push(blobs: DiskBlobStore, content: Content, piece: int) -> None:
    upload = await blobs.create_upload()
    for index in range(content.size >> 20):
        leaf = content.leaf(index)
        for start in range(0, len(leaf), piece):
            await upload.write(leaf[start : start + piece])
    await upload.commit(content.digest)


def read_file(path: Path) -> None:
    buffer = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


async def read_leaves(blocks: DiskBlockstore, content: Content) -> None:
    for cid in content.layout.leaves:
        await blocks.get(cid)


async def fetch(blobs: DiskBlobStore, content: Content) -> None:
    """As if blocks came from peers, verified already."""
    layout = content.layout
    nodes = {block.cid: block for block in layout.inner}
    number = {cid: index for index, cid in enumerate(layout.leaves)}
    partial = await blobs.open_partial(content.digest, content.size, layout.root)
    while wanted := partial.wanted(limit=16):
        for cid in wanted:
            await partial.put(nodes.get(cid) or Block(cid, content.leaf(number[cid])))
    await partial.complete()


async def put_each(blobs: DiskBlobStore, small: list[bytes]) -> None:
    for data in small:
        await blobs.put_whole(data)


async def put_many(blobs: DiskBlobStore, small: list[bytes]) -> None:
    async def put_some(start: int) -> None:
        for data in small[start::16]:
            await blobs.put_whole(data)

    async with trio.open_nursery() as nursery:
        for start in range(16):
            nursery.start_soon(put_some, start)


if __name__ == "__main__":
    main()

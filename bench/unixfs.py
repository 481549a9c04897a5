"""How fast content is named: the OCI digest and every leaf of the UnixFS DAG, over the same bytes in memory.

    python bench/unixfs.py [--size 1GiB]

Prints MB/s and process seconds, best of three: one hash alone (the floor), both in one thread, both with the leaves in
worker threads beside the digest (hashlib lets go of the interpreter lock), and the layout without hashing any content.
Ratios count; the figures are the machine's.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ipfsreg.ipld.builder import LITE, V1_2025, Builder, Profile
from ipfsreg.ipld.reader import Gap, Reader
from ipfsreg.testing.oci_images import parse_size

BUFFER = os.urandom(64 << 20)
"""Larger than the caches; a gigabyte is this again and again."""


def digest_only(size: int, profile: Profile) -> None:
    digest = hashlib.sha256()
    for start in range(0, size, profile.chunk_bytes):
        digest.update(chunk(start, profile))


def one_thread(size: int, profile: Profile) -> None:
    digest, builder = hashlib.sha256(), Builder(profile)
    for start in range(0, size, profile.chunk_bytes):
        piece = chunk(start, profile)
        digest.update(piece)
        builder.add_leaf(profile.leaf_block(piece).cid, len(piece))
    builder.finish()


def worker_threads(size: int, profile: Profile) -> None:
    """Leaves in up to two workers; the digest, which has to follow the order, in this thread."""
    digest, builder = hashlib.sha256(), Builder(profile)
    with ThreadPoolExecutor(2) as workers:
        for start in range(0, size, 8 * profile.chunk_bytes):
            pieces = [
                chunk(at, profile)
                for at in range(start, min(size, start + 8 * profile.chunk_bytes), profile.chunk_bytes)
            ]
            leaves = [workers.submit(profile.leaf_block, piece) for piece in pieces]
            for piece in pieces:
                digest.update(piece)
            for leaf, piece in zip(leaves, pieces, strict=True):
                builder.add_leaf(leaf.result().cid, len(piece))
    builder.finish()


def build_only(size: int, profile: Profile) -> None:
    """The layout without any hashing of content."""
    leaf = profile.leaf_block(BUFFER[: profile.chunk_bytes]).cid
    builder = Builder(profile)
    for _ in range(0, size, profile.chunk_bytes):
        builder.add_leaf(leaf, profile.chunk_bytes)
    layout = builder.finish()
    inner = {block.cid: block for block in layout.inner}
    reader = Reader(layout.root, size=layout.size)
    for span in reader.cover():
        if isinstance(span, Gap) and span.cid in inner:
            reader.receive(inner[span.cid])


def chunk(start: int, profile: Profile) -> memoryview:
    offset = start % len(BUFFER)
    return memoryview(BUFFER)[offset : offset + profile.chunk_bytes]


def best(run: Callable[[int, Profile], None], size: int, profile: Profile) -> tuple[float, float]:
    """Seconds and process seconds of the fastest of three."""
    times = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        run(size, profile)
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=parse_size, default="1GiB")
    size = parser.parse_args().size // (1 << 20) << 20
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}, {size >> 20} MiB")
    for profile in (V1_2025, LITE):
        floor = best(digest_only, size, profile)[0]
        for run in (digest_only, one_thread, worker_threads, build_only):
            wall, cpu = best(run, size, profile)
            name = run.__name__.replace("_", " ")
            speed = f"{size / wall / 1e6:8.0f} MB/s  {cpu:6.2f} CPU-s"
            print(f"{profile.name:8} {name:15} {speed}  {floor / wall:6.2f} of digest only")


if __name__ == "__main__":
    main()

"""Garbage collection beside pulls: how long a look takes, and what it does to the latency of manifest GETs.

    python bench/gc.py --manifests 10000 --layers 9

A node's store and names on disk, its HTTP front on loopback, and a client process with a few connections that asks
for manifests by tag all the time. Shown for: nothing else going on, a look that finds nothing, and looks that delete
half of everything. `longest stretch` is the longest time that the event loop gave to one task.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import trio

from ipfsreg.crdt.interface import Change, Put
from ipfsreg.http.app import make_app
from ipfsreg.http.server import open_server
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, TagRecord
from ipfsreg.registry.gc import GcSettings, Report
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import IMAGE, Site, image_of, open_site

CONNECTIONS = 4
REPOSITORIES = 100
AT_ONCE = 256


def ask(port: int, paths: list[str], until: Connection, answers: Connection) -> None:
    """The client process: GETs until told to end, then all latencies."""
    stop = threading.Event()
    took: list[float] = []

    def loop(number: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        place = number
        while not stop.is_set():
            place = (place + 7) % len(paths)
            began = time.perf_counter()
            connection.request("GET", paths[place])
            answer = connection.getresponse()
            answer.read()
            took.append(time.perf_counter() - began)
            if answer.status != 200:
                raise RuntimeError(f"{paths[place]}: {answer.status}")
            time.sleep(0.002)

    threads = [threading.Thread(target=loop, args=(number,), daemon=True) for number in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    until.recv()
    stop.set()
    for thread in threads:
        thread.join()
    answers.send(took)


@asynccontextmanager
async def asking(port: int, paths: list[str], what: str) -> AsyncIterator[None]:
    """Ask while the block lasts, then tell what it was like."""
    until, said = multiprocessing.Pipe()
    heard, answers = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=ask, args=(port, paths, said, answers))
    process.start()
    await trio.sleep(0.5)
    async with trio.open_nursery() as nursery:
        gaps: list[float] = []
        nursery.start_soon(watch, gaps)
        yield
        nursery.cancel_scope.cancel()
    until.send(None)
    took = sorted(await trio.to_thread.run_sync(heard.recv))
    process.join()
    print(
        f"{what:<34} {len(took):>6} GETs: median {1000 * statistics.median(took):.1f} ms, "
        f"p99 {1000 * took[len(took) * 99 // 100]:.1f} ms, max {1000 * took[-1]:.1f} ms; "
        f"longest stretch {1000 * max(gaps):.1f} ms",
        flush=True,
    )


async def watch(gaps: list[float]) -> None:
    """How late a task is woken that wants to run every millisecond."""
    while True:
        began = trio.current_time()
        await trio.sleep(0.001)
        gaps.append(trio.current_time() - began - 0.001)


async def fill(site: Site, manifests: int, layers: int) -> list[tuple[RepositoryName, Tag, Digest]]:
    """Images of unique layers, written past the front door."""
    slots = trio.Semaphore(AT_ONCE)
    config = LinkRecord(2, (await site.blobs.put_whole(b"{}")).root)
    images: list[tuple[RepositoryName, Tag, Digest]] = []

    async def one(number: int) -> None:
        try:
            contents = [b"%d %d" % (number, layer) * 20 for layer in range(layers)]
            repository = RepositoryName(f"team/app-{number % REPOSITORIES:03}")
            tag = Tag(f"v{number}")
            changes: list[Change] = []
            for content in contents:
                info = await site.blobs.put_whole(content)
                link = LinkRecord(info.size, info.root).encode(info.digest)
                changes.append(Put(catalog.link_key(repository, info.digest), link))
            shared = Digest.of(b"{}")
            changes.append(Put(catalog.link_key(repository, shared), config.encode(shared)))
            info = await site.blobs.put_whole(image_of(*contents))
            record = ManifestRecord(IMAGE, info.size, info.root)
            changes.append(Put(catalog.manifest_key(repository, info.digest), record.encode(info.digest)))
            pointed = TagRecord(info.digest, 1, site.endpoint.peer_id)
            changes.append(Put(catalog.tag_key(repository, tag), pointed.encode()))
            await site.replica.commit(changes)
            images.append((repository, tag, info.digest))
        finally:
            slots.release()

    async with trio.open_nursery() as nursery:
        for number in range(manifests):
            await slots.acquire()
            nursery.start_soon(one, number)
    return images


def tell(report: Report, what: str, blobs: int) -> None:
    print(
        f"  {what}: {report.took_s:.1f} s for {blobs} blobs; deleted {report.deleted_blobs} blobs and "
        f"{report.deleted_names} names, {report.waiting} wait",
        flush=True,
    )


async def main(manifests: int, layers: int, directory: Path) -> None:
    settings = RegistrySettings(gc=GcSettings(interval_s=0))
    async with (
        open_site(MemorySwarm(), directory, "alice", settings=settings) as site,
        open_server(make_app(site.registry), listen=["127.0.0.1:0"]) as server,
    ):
        port = int(server.places[0].rpartition(":")[2])
        began = time.perf_counter()
        images = await fill(site, manifests, layers)
        blobs = sum(1 for _ in site.blobs.blobs())
        print(f"{blobs} blobs, {len(images)} manifests in {time.perf_counter() - began:.0f} s", flush=True)
        kept, deleted = images[::2], images[1::2]
        paths = [f"/v2/{repository}/manifests/{tag}" for repository, tag, _ in kept]
        collector = site.registry.collector
        async with asking(port, paths, "nothing else going on"):
            await trio.sleep(5)
        async with asking(port, paths, "a look that finds nothing"):
            report = await collector.collect(grace_s=0)
        tell(report, "look", blobs)
        for repository, _, digest in deleted:
            await site.registry.delete_manifest(repository, digest)
        async with asking(port, paths, "half of everything is deleted"):
            while True:
                report = await collector.collect(grace_s=0)
                tell(report, "look", sum(1 for _ in site.blobs.blobs()))
                if not report.found:
                    break
        for repository, tag, _ in kept[:: max(1, len(kept) // 100)]:
            document = json.loads((await site.registry.get_manifest(repository, tag)).data)
            assert all(site.blobs.stat(Digest.parse(layer["digest"])) for layer in document["layers"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifests", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        trio.run(main, options.manifests, options.layers, Path(place))

"""Memory of a daemon while many blobs are pushed to it at once.

    python bench/push_memory.py --pushes 64 --mib 256

Needs that much room in the directory for temporary files. Prints the resident memory idle, at its peak and afterwards.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import psutil
import trio

from ipfsreg.oci.digest import Digest
from ipfsreg.testing.daemons import Cluster
from ipfsreg.testing.http_client import connect_http

PIECE = bytes(1 << 20)


async def push(address: str, number: int, mib: int) -> None:
    """One blob by POST, one PATCH, PUT; its first bytes are its own."""
    host, _, port = address.rpartition(":")
    async with connect_http(f"{host}:{port}") as client:
        place = (await client.request("POST", "/v2/bench/app/blobs/uploads/")).headers["location"]
    stream = await trio.open_tcp_stream(host, int(port))
    hasher = Digest.of(b"").hasher()
    first = number.to_bytes(8, "big") + PIECE[8:]
    async with stream:
        head = f"PATCH {place} HTTP/1.1\r\nHost: bench\r\nContent-Length: {mib << 20}\r\n\r\n"
        await stream.send_all(head.encode())
        for piece in [first] + [PIECE] * (mib - 1):
            await trio.to_thread.run_sync(hasher.update, piece)
            await stream.send_all(piece)
        answer = bytes(await stream.receive_some(4096))
        assert answer.startswith(b"HTTP/1.1 202"), answer
    async with connect_http(f"{host}:{port}") as client:
        answered = await client.request("PUT", f"{place}?digest=sha256:{hasher.hexdigest()}")
        assert answered.status == 201, answered


async def main(address: str, pid: int, pushes: int, mib: int, most_s: float) -> None:
    process = psutil.Process(pid)
    peaks = [process.memory_info().rss]
    print(f"idle {peaks[0] >> 20} MiB", flush=True)
    began = time.perf_counter()

    async def watch() -> None:
        while True:
            await trio.sleep(0.1)
            peaks.append(process.memory_info().rss)

    with trio.move_on_after(most_s) as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            async with trio.open_nursery() as pushing:
                for number in range(pushes):
                    pushing.start_soon(push, address, number, mib)
            nursery.cancel_scope.cancel()
    if scope.cancelled_caught:
        print(f"broken off after {most_s:.0f} s")
    took = time.perf_counter() - began
    print(f"{pushes} pushes of {mib} MiB at once in {took:.1f} s; peak {max(peaks) >> 20} MiB", flush=True)
    await trio.sleep(2)
    print(f"afterwards {process.memory_info().rss >> 20} MiB", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pushes", type=int, default=64)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--most-s", type=float, default=600.0, help="Break off after so many seconds.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, Cluster(Path(place)) as cluster:
        alice = cluster.start("alice")
        assert alice.process is not None
        trio.run(main, alice.http, alice.process.pid, options.pushes, options.mib, options.most_s)
    os.sync()

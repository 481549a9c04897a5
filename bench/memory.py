"""How much memory two nodes take while they move 10 GiB: pushed to one, pulled through the other.

    python bench/memory.py                          # 10 layers of 1 GiB, one after the other; some minutes
    python bench/memory.py --layers 4 --at-once 4   # side by side

Each round's layers are deleted, and collected (`ipfsreg gc`), at both nodes before the next: the disk never holds more
than two copies of --at-once layers and what clients send. Figures are the kernel's peaks (VmHWM) and what is resident
at the end.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
from cold_pull import write_content
from ideal import MIB

from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.pushing import Client


def move(alice: Daemon, bob: Daemon, directory: Path, tag: str, mib: int) -> str:
    """Push a new layer to alice, pull it through bob; return its digest."""
    layer = write_content(directory / f"layer-{tag}", mib)
    with Client(alice.http) as client:
        digest = client.push_image("bench/memory", tag, [layer]).layers[0]
    layer.unlink()
    bob.wait_manifest("bench/memory", tag, 60)
    with Client(bob.http) as client:
        assert client.pull_blob("bench/memory", digest) == mib * MIB
    return digest


def forget(node: Daemon, digests: list[str], tags: list[str]) -> None:
    """Let *node* have nothing of it any more, nor name it."""
    with httpx.Client(base_url=f"http://{node.http}", timeout=60) as client:
        for tag in tags:
            manifest = client.head(f"/v2/bench/memory/manifests/{tag}").headers.get("Docker-Content-Digest")
            if manifest is not None:
                client.delete(f"/v2/bench/memory/manifests/{manifest}")
        for digest in digests:
            client.delete(f"/v2/bench/memory/blobs/{digest}")
    command = [sys.executable, "-m", "ipfsreg", "gc", "--grace", "0", "--config", str(node.config_path)]
    subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=10)
    parser.add_argument("--at-once", type=int, default=1)
    parser.add_argument("--dir", type=Path, default=None, help="where the stores lie [the system's temporary folder]")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-memory.", dir=options.dir))
    most = 0
    try:
        with Cluster(directory / "nodes") as cluster, ThreadPoolExecutor(options.at_once) as pool:
            alice = cluster.start("alice")
            bob = cluster.start("bob", [alice])
            began = time.monotonic()
            for first in range(0, options.layers, options.at_once):
                tags = [f"v{number}" for number in range(first, min(first + options.at_once, options.layers))]
                pulls = [pool.submit(move, alice, bob, directory, tag, options.mib) for tag in tags]
                digests = [pull.result() for pull in pulls]
                most = max(most, sum(file.stat().st_blocks * 512 for file in directory.rglob("*") if file.is_file()))
                for node in (alice, bob):
                    forget(node, digests, tags)
                peaks = ", ".join(f"{node.name} {node.peak_rss() // MIB}" for node in (alice, bob))
                print(f"{first + len(tags)} layers: at most {peaks} MiB", flush=True)
            took = time.monotonic() - began
            print(f"{options.layers} layers of {options.mib} MiB, {options.at_once} at a time, in {took:.0f} s")
            for node in (alice, bob):
                peak, now = node.peak_rss() // MIB, node.rss() // MIB
                print(f"{node.name:5} resident at most {peak} MiB, at the end {now} MiB")
            print(f"on disk at most {most / 2**30:.1f} GiB")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

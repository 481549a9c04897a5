"""Pages of the catalog and of tags where there are many: 1,000 repositories with 100 tags each.

    .venv/bin/python bench/http_many.py [--repositories 1000] [--tags 100] [--asks 50] [--dir /dev/shm]

Pushes a small image into every repository of a daemon of ours, tags it, and times pages of 100 and of 1,000 entries
asked for from random places on one connection. Milliseconds: median and worst.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from ipfsreg.testing.daemons import Cluster
from ipfsreg.testing.pushing import Client

PUSHERS = 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repositories", type=int, default=1000)
    parser.add_argument("--tags", type=int, default=100)
    parser.add_argument("--asks", type=int, default=50)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where the node keeps its files")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=args.dir))
    names = [f"team-{number % 10}/app-{number:05}" for number in range(args.repositories)]
    try:
        with Cluster(directory) as cluster:
            node = cluster.start("node", IPFSREG_ACCESS_LOG_FORMAT="off")
            began = time.perf_counter()
            with ThreadPoolExecutor(PUSHERS) as pushers:
                for _ in pushers.map(lambda name: push(node.http, name, args.tags), names):
                    pass
            took = time.perf_counter() - began
            print(f"{args.repositories} repositories x {args.tags} tags pushed in {took:.0f} s")
            with httpx.Client(base_url=f"http://{node.http}") as client:
                dice = random.Random(1)
                places = [dice.choice(names) for _ in range(args.asks)]
                for size in (100, 1000):
                    told("catalog", size, [ask(client, f"/v2/_catalog?n={size}&last={name}") for name in places])
                told("catalog, the beginning", 1000, [ask(client, "/v2/_catalog?n=1000") for _ in places])
                told("tags", 100, [ask(client, f"/v2/{name}/tags/list?n=100") for name in places])
    finally:
        shutil.rmtree(directory)


def push(address: str, name: str, tags: int) -> None:
    """One image, under so many tags."""
    with Client(address) as client:
        client.push_image(name, "t0", [name.encode()])
        manifest = json.dumps(client.manifest(name, "t0")).encode()
        for number in range(1, tags):
            client.push_manifest(name, f"t{number}", manifest)


def ask(client: httpx.Client, path: str) -> float:
    """Milliseconds of one page."""
    began = time.perf_counter()
    client.get(path).raise_for_status()
    return (time.perf_counter() - began) * 1000


def told(what: str, size: int, times: list[float]) -> None:
    print(f"{what}, pages of {size}: median {statistics.median(times):.1f} ms, worst {max(times):.1f} ms")


if __name__ == "__main__":
    main()

"""The main job in figures: start-up, memory, how soon a push is seen elsewhere, a large layer through a second node.

    .venv/bin/python bench/main_job.py [--mib 1024] [--rounds 3] [--pushes 40] [--dir DIR]

Two daemons of a private swarm on loopback, and Debian's docker-registry beside them in the same run. Each round makes a
layer, pushes it to alice and to docker-registry, and pulls it cold through bob, warm through bob, and from
docker-registry, in turn. Medians and ratios; the sink hashes with hashlib, so it is part of every figure alike.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ipfsreg.testing.daemons import Cluster, Daemon, free_port, wait_until
from ipfsreg.testing.pushing import Client

MIB = 1024 * 1024

DOCKER_REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""


@contextmanager
def docker_registry(directory: Path) -> Iterator[str]:
    """Debian's docker-registry; yields its address."""
    directory.mkdir()
    port = free_port()
    config = directory / "config.yml"
    config.write_text(DOCKER_REGISTRY.format(directory=directory / "data", port=port))
    with subprocess.Popen(
        ["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as one:
        try:
            wait_until(lambda: _answers(port), "docker-registry answers")
            yield f"127.0.0.1:{port}"
        finally:
            one.terminate()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/").status_code == 200
    except httpx.TransportError:
        return False


def timed(work: object, *arguments: object) -> float:
    """Seconds that *work* takes."""
    began = time.perf_counter()
    work(*arguments)  # type: ignore[operator]
    return time.perf_counter() - began


def make_layer(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(0, mib, 16):
            file.write(os.urandom(min(16, mib) * MIB))


def measure_start(node: Daemon) -> tuple[float, float]:
    """Seconds from exec to serving, and idle resident MiB after."""
    seconds = timed(node.start)
    time.sleep(3)
    return seconds, node.rss() / MIB


def measure_lag(alice: Daemon, bob: Daemon, pushes: int) -> list[float]:
    """Seconds from 201 on alice to 200 for HEAD on bob, asked without a pause."""
    lags = []
    with Client(alice.http) as at_alice, httpx.Client(base_url=f"http://{bob.http}") as at_bob:
        for number in range(pushes):
            at_alice.push_image("bench/lag", f"v{number}", [os.urandom(100)])
            began = time.perf_counter()
            while at_bob.head(f"/v2/bench/lag/manifests/v{number}").status_code != 200:
                pass
            lags.append(time.perf_counter() - began)
    return sorted(lags)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pushes", type=int, default=40)
    parser.add_argument("--dir", type=Path, default=None, help="where the stores lie [the system's temporary folder]")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench.", dir=options.dir))
    try:
        with Cluster(directory) as cluster, docker_registry(directory / "reference") as reference:
            alice = cluster.add("alice")
            alone, idle = measure_start(alice)
            print(f"start-up, first node of a swarm      {alone:6.2f} s     RSS idle {idle:.0f} MiB")
            bob = cluster.add("bob", join=[alice])
            joining, idle = measure_start(bob)
            print(f"start-up, joining an empty swarm     {joining:6.2f} s     RSS idle {idle:.0f} MiB")
            bob.wait_peers(1)
            lags = measure_lag(alice, bob, options.pushes)
            print(
                f"201 on alice -> HEAD 200 on bob      median {statistics.median(lags) * 1000:.0f} ms, "
                f"p95 {lags[int(len(lags) * 0.95)] * 1000:.0f} ms, max {lags[-1] * 1000:.0f} ms, {len(lags)} pushes"
            )
            bob.stop()
            with_names = timed(bob.start)
            print(f"start-up, rejoining with names       {with_names:6.2f} s")
            bob.wait_peers(1)
            figures: dict[str, list[float]] = {}
            layer = directory / "layer"
            with Client(alice.http) as at_alice, Client(bob.http) as at_bob, Client(reference) as at_reference:
                for number in range(options.rounds):
                    make_layer(layer, options.mib)
                    began = time.perf_counter()
                    image = at_alice.push_image("bench/big", f"v{number}", [layer])
                    figures.setdefault("push to alice", []).append(time.perf_counter() - began)
                    figures.setdefault("push to docker-registry", []).append(
                        timed(at_reference.push_image, "bench/big", f"v{number}", [layer])
                    )
                    layer.unlink()
                    bob.wait_manifest("bench/big", f"v{number}")
                    for name, client in (
                        ("cold pull through bob", at_bob),
                        ("warm pull from bob", at_bob),
                        ("pull from docker-registry", at_reference),
                    ):
                        seconds = timed(client.pull_blob, "bench/big", image.layers[0])
                        figures.setdefault(name, []).append(seconds)
            for name, seconds_each in figures.items():
                rates = sorted(options.mib * MIB / 1e6 / seconds for seconds in seconds_each)
                print(f"{name:36} {statistics.median(rates):6.0f} MB/s   ({rates[0]:.0f} to {rates[-1]:.0f})")
            against = "pull from docker-registry"
            for name in ("cold pull through bob", "warm pull from bob"):
                ratios = [b / a for a, b in zip(figures[name], figures[against], strict=True)]
                print(f"{name} / {against}: {statistics.median(ratios):.2f}")
            for node in (alice, bob):
                print(f"peak RSS of {node.name:5} {node.peak_rss() / MIB:.0f} MiB")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

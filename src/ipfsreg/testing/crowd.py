"""A crowd that pulls one image at the same moment, each from the node on its own machine.

    with open_lan(names, mbit_per_s=50) as lan, Cluster(directory) as cluster:
        nodes = start_crowd(cluster, lan)
        image = push_layers(lan.machines[0], make_layers(50_000_000), "crowd/app", "1.0", HTTP_PORT)
        for node in nodes: node.wait_manifest("crowd/app", "1.0")
        seconds = pull_at_once([Pull(machine, image) for machine in lan.machines[1:]])

Pulls as docker does: three layers at a time, each checked against its digest. The clients are threads of this process,
each inside its machine; they read with `http.client` and hash with hashlib, which cost little beside what is measured.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

import psutil

from ipfsreg.testing.daemons import HTTP_PORT, Cluster, Daemon
from ipfsreg.testing.namespaces import Lan, Machine
from ipfsreg.testing.pushing import Client, PushedImage

LAYERS_AT_ONCE = 3
"""What docker pulls at a time."""

SHARES = (0.4, 0.3, 0.2, 0.08, 0.02)
"""How an image's bytes are divided among its layers: a big one or two and some small ones."""

_PIECE_BYTES = 256 * 1024
_CLIENT_TIMEOUT_S = 600.0


def make_layers(size: int) -> list[bytes]:
    """Incompressible layers of *size* bytes together."""
    sizes = [int(size * share) for share in SHARES[1:]]
    return [os.urandom(one) for one in (size - sum(sizes), *sizes)]


def start_crowd(cluster: Cluster, lan: Lan, *, neighbours: int | None = None, **environment: str) -> list[Daemon]:
    """A node on every machine. Each joins the *neighbours* nodes before it (None: all of them), the first among them.

    Nodes that meet only at one bootstrapper have nobody to give to but the holder.
    """
    nodes: list[Daemon] = []
    for machine in lan.machines:
        known = nodes if neighbours is None else [*nodes[:1], *nodes[1:][-max(0, neighbours - 1) :]]
        nodes.append(cluster.add(machine.name, known, machine, **environment))
    nodes[0].start()
    for node in nodes[1:]:
        node.start(wait=False)
    for number, node in enumerate(nodes):
        node.wait_line("registry at http://")
        node.wait_peers(number if neighbours is None else min(number, neighbours))
    return nodes


def push_layers(machine: Machine, layers: Sequence[bytes], repository: str, tag: str, port: int) -> PushedImage:
    """Push an image of *layers* to the registry at *port* of *machine*."""
    with machine.entered(), Client(f"127.0.0.1:{port}") as client:
        return client.push_image(repository, tag, layers)


@dataclass(frozen=True)
class Pull:
    """One client's pull of an image."""

    machine: Machine
    """Where the client is."""
    image: PushedImage
    address: str = "127.0.0.1"
    port: int = HTTP_PORT

    def __call__(self) -> None:
        """Pull all layers. Raises AssertionError where an answer is not what it should be."""
        with self.machine.entered(), ThreadPoolExecutor(LAYERS_AT_ONCE) as layers:
            # Threads start where the one is that starts them.
            list(layers.map(self._pull, self.image.layers))

    def _pull(self, digest: str) -> None:
        connection = http.client.HTTPConnection(self.address, self.port, timeout=_CLIENT_TIMEOUT_S)
        hasher, buffer = hashlib.sha256(), memoryview(bytearray(_PIECE_BYTES))
        try:
            connection.request("GET", f"/v2/{self.image.repository}/blobs/{digest}")
            answer = connection.getresponse()
            assert answer.status == 200, f"{self.machine.name}: {answer.status} {answer.read()[:500]!r}"
            expected, received = int(answer.headers["Content-Length"]), 0
            while count := answer.readinto(buffer):
                hasher.update(buffer[:count])
                received += count
        finally:
            connection.close()
        assert received == expected, f"{self.machine.name}: {digest} broke off after {received} of {expected} bytes"
        assert f"sha256:{hasher.hexdigest()}" == digest, f"{self.machine.name}: {digest} came wrong"


def pull_at_once(pulls: Sequence[Callable[[], None]]) -> list[float]:
    """Begin all *pulls* at the same moment; return the seconds each took. Raises what one of them raised."""
    start = threading.Barrier(len(pulls) + 1)

    def run(pull: Callable[[], None]) -> float:
        start.wait()
        began = time.monotonic()
        pull()
        return time.monotonic() - began

    with ThreadPoolExecutor(len(pulls)) as pool:
        running = [pool.submit(run, pull) for pull in pulls]
        start.wait()
        return [one.result() for one in running]


class Usage:
    """What the processors did since this was made."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._busy = self._busy_seconds()

    @staticmethod
    def _busy_seconds() -> float:
        times = psutil.cpu_times()
        return float(sum(times) - times.idle - times.iowait)

    def share(self) -> float:
        """Which part of all processors was at work, whoever's work it was."""
        passed = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return (self._busy_seconds() - self._busy) / passed


def cpu_seconds(machines: Sequence[Machine]) -> float:
    """User and system time of what runs on *machines*, until now."""
    total = 0.0
    for machine in machines:
        for pid in machine.pids():
            with suppress(psutil.NoSuchProcess):
                times = psutil.Process(pid).cpu_times()
                total += times.user + times.system
    return total

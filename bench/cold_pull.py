"""A cold pull over bitswap, verified and on disk: ours beside Kubo's, and beside what cipher and hash alone allow.

    python bench/cold_pull.py                         # 1 GiB, 3 rounds, all kinds: several minutes
    python bench/cold_pull.py --kinds ours --rounds 5
    python bench/cold_pull.py --kubo-mib 256          # Kubo by a quarter: it takes half a minute for a gibibyte

Every round makes new content and new nodes, two of each kind on loopback, and deletes them. What is measured is one
node getting from the other, until all of it is durable here:

    ours              two daemons; bob is asked over HTTP for the last byte of the layer, which he gives when the layer
                      is whole, its digest checked, fsynced and published. So no client takes part with more than that
    ours+psk          the same in a private swarm: XSalsa20 under everything
    kubo-0.22 get     what `ipfs get` does with what `ipfs add` made at the other node: a file read in order while its
                      blocks come, and written; default settings, Kubo as a library (scripts/setup-interop)
    kubo-0.22 pin     what `ipfs pin add` does: only the blocks, in any order, which is Kubo at its best
    kubo-newest get   the same with the newest Kubo's command line (scripts/setup-kubo)
    kubo-newest pin

CPU is user and system time of each process while it lasted.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import httpx
import psutil
import trio
from ideal import MIB, measure_ideal

from ipfsreg.testing.daemons import Cluster, free_port, wait_until
from ipfsreg.testing.kubo_peer import open_kubo_peer
from ipfsreg.testing.peer_process import INSTALLED
from ipfsreg.testing.pushing import Client

KUBO = INSTALLED / "kubo-newest" / "ipfs"


@dataclass(frozen=True)
class Measured:
    """One pull."""

    rate: float
    """Bytes per second."""
    giver: float
    """CPU seconds per byte."""
    taker: float
    peak: int
    """Resident bytes of the taker at most."""


def measure(size: int, giver: int, taker: int, pull: Callable[[], object]) -> Measured:
    """Do *pull* and see what it costs the two processes."""
    processes = [psutil.Process(giver), psutil.Process(taker)]
    before = [sum(process.cpu_times()[:2]) for process in processes]
    began = time.perf_counter()
    pull()
    took = time.perf_counter() - began
    costs = [(sum(process.cpu_times()[:2]) - was) / size for process, was in zip(processes, before, strict=True)]
    status = Path(f"/proc/{taker}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    return Measured(size / took, *costs, peak)


def write_content(path: Path, mib: int) -> Path:
    with path.open("wb") as file:
        for _ in range(0, mib, 16):
            file.write(os.urandom(min(16, mib) * MIB))
    return path


# ------------------------------------------------------------------------------------------------------------ ours


def pull_ours(directory: Path, mib: int, *, private: bool) -> Measured:
    public = {"IPFSREG_P2P_PROTECTOR_KEY": "", "IPFSREG_CRDT_PUBSUB_TOPIC": "bench-cold-pull"}
    environment = {} if private else public
    with Cluster(directory) as cluster:
        alice = cluster.start("alice", **environment)
        bob = cluster.start("bob", [alice], **environment)
        with Client(alice.http) as client:
            content = write_content(directory / "layer", mib)
            layer = client.push_image("bench/layer", "1.0", [content]).layers[0]
            content.unlink()
        bob.wait_manifest("bench/layer", "1.0")
        assert alice.process is not None
        assert bob.process is not None

        def pull() -> None:
            answer = httpx.get(bob.url(f"/v2/bench/layer/blobs/{layer}"), headers={"Range": "bytes=-1"}, timeout=300)
            assert (answer.status_code, len(answer.content)) == (206, 1), answer.text

        return measure(mib * MIB, alice.process.pid, bob.process.pid, pull)


# ------------------------------------------------------------------------------------------------------------ Kubo


def pull_library(directory: Path, mib: int, *, pin: bool) -> Measured:
    async def run() -> Measured:
        async with (
            open_kubo_peer(directory / "a", name="a") as a,
            open_kubo_peer(directory / "b", name="b", durable=True) as b,
        ):
            content = write_content(directory / "content", mib)
            root = await a.add(content)
            content.unlink()
            await b.dial(a.info)

            def pull() -> None:
                trio.from_thread.run(partial(b.pin if pin else b.get, root, timeout_s=600))

            return await trio.to_thread.run_sync(measure, mib * MIB, a.process.pid, b.process.pid, pull)

    return trio.run(run)


class KuboDaemon:
    """The newest Kubo with a repository of its own, as `ipfs init` makes it but for loopback and no public peers."""

    def __init__(self, directory: Path) -> None:
        self._environment = {**os.environ, "IPFS_PATH": str(directory), "IPFS_TELEMETRY": "off"}
        self("init")
        self("bootstrap", "rm", "--all")
        port, api = free_port(), free_port()
        for key, value in {
            "Addresses.Swarm": [f"/ip4/127.0.0.1/tcp/{port}"],
            "Addresses.API": f"/ip4/127.0.0.1/tcp/{api}",
            "Addresses.Gateway": [],
            "AutoConf.Enabled": False,
            "Discovery.MDNS.Enabled": False,
            "DNS.Resolvers": {},
            "Routing.DelegatedRouters": [],
            "Ipns.DelegatedPublishers": [],
            "Bootstrap": [],
        }.items():
            self("config", "--json", key, json.dumps(value))
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen([KUBO, "daemon"], env=self._environment, stdout=log, stderr=log)
        wait_until(self._is_ready, "Kubo is ready")
        self.multiaddr = f"/ip4/127.0.0.1/tcp/{port}/p2p/{self('id', '-f', '<id>')}"

    def __call__(self, *arguments: str) -> str:
        done = subprocess.run(
            [str(KUBO), *arguments], env=self._environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"ipfs {' '.join(arguments)}: {done.stderr}"
        return done.stdout.strip()

    def _is_ready(self) -> bool:
        # Not by asking it: before it has locked its repository, the question itself would.
        assert self.process.poll() is None, self._log.read_text()
        return "Daemon is ready" in self._log.read_text()


@contextmanager
def kubo_daemon(directory: Path) -> Iterator[KuboDaemon]:
    directory.mkdir(parents=True)
    daemon = KuboDaemon(directory)
    try:
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.wait()


def pull_newest(directory: Path, mib: int, *, pin: bool) -> Measured:
    with kubo_daemon(directory / "a") as a, kubo_daemon(directory / "b") as b:
        content = write_content(directory / "content", mib)
        root = a("add", "-Q", str(content))
        content.unlink()
        b("swarm", "connect", a.multiaddr)
        command = ("pin", "add", root) if pin else ("get", root, "-o", str(directory / "got"))
        return measure(mib * MIB, a.process.pid, b.process.pid, partial(b, *command))


# ------------------------------------------------------------------------------------------------------------ main

KINDS: dict[str, Callable[[Path, int], Measured]] = {
    "ours": partial(pull_ours, private=False),
    "ours+psk": partial(pull_ours, private=True),
    "kubo-0.22 get": partial(pull_library, pin=False),
    "kubo-0.22 pin": partial(pull_library, pin=True),
    "kubo-newest get": partial(pull_newest, pin=False),
    "kubo-newest pin": partial(pull_newest, pin=True),
}


def missing(kind: str) -> str | None:
    """Why it cannot be measured here."""
    if kind.startswith("kubo-0.22") and not (INSTALLED / "kubo").exists():
        return "scripts/setup-interop installs it"
    if kind.startswith("kubo-newest") and not KUBO.exists():
        return "scripts/setup-kubo builds it"
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--kubo-mib", type=int, default=None, help="for Kubo [as --mib]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--dir", type=Path, default=None, help="where the stores lie [the system's temporary folder]")
    options = parser.parse_args()
    kinds = [kind for kind in options.kinds if not missing(kind)]
    for kind in options.kinds:
        if kind not in kinds:
            print(f"{kind} is left out: {missing(kind)}")
    results: dict[str, list[Measured]] = {kind: [] for kind in kinds}
    ideals = [measure_ideal()]
    for round_ in range(options.rounds):
        for kind in kinds:
            mib = options.kubo_mib or options.mib if kind.startswith("kubo") else options.mib
            directory = Path(tempfile.mkdtemp(prefix="ipfsreg-cold-pull.", dir=options.dir))
            try:
                one = KINDS[kind](directory, mib)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
            results[kind].append(one)
            print(
                f"round {round_ + 1} {kind:15} {mib:5} MiB {one.rate / 1e6:7.1f} MB/s  CPU ms/MiB: giver "
                f"{one.giver * MIB * 1000:5.2f}, taker {one.taker * MIB * 1000:5.2f}  peak {one.peak // MIB} MiB",
                flush=True,
            )
        ideals.append(measure_ideal())
    ideal = sorted(ideals, key=lambda one: one.in_turn)[len(ideals) // 2]
    print(f"on one core: {ideal}")
    for kind, measured in results.items():
        rate = statistics.median(one.rate for one in measured)
        print(f"{kind:15} {rate / 1e6:7.1f} MB/s, {rate / ideal.in_turn:.2f} of cipher and hash in turn")
    for ours in ("ours", "ours+psk"):
        for other in (kind for kind in KINDS if kind.startswith("kubo")):
            if ours in kinds and other in kinds:
                ratios = [a.rate / b.rate for a, b in zip(results[ours], results[other], strict=True)]
                print(f"{ours} / {other}: {statistics.median(ratios):.1f}, round by round")


if __name__ == "__main__":
    main()

"""A flash crowd: everybody pulls, at the same moment, an image that one of them holds.

    python bench/flash_crowd.py                            # 16 nodes, 50 Mbit/s each way, 50 MB; some two minutes
    python bench/flash_crowd.py --sweep                    # 4, 8, 16, 32 nodes, 20 Mbit/s, 20 MB
    python bench/flash_crowd.py --only ipfsreg --rounds 3

Every node is a machine of the test network (ipfsreg.testing.namespaces; needs root) with a link of its own. Beside
ipfsreg, on the same links with the same bytes: docker-registry on the holder's machine with all others pulling from it,
and libtorrent with the holder as seed. `x link` is seconds by (bytes of the image / width of a link), the least anybody
can take; holder's bytes are what left its machine, with all headers. Docker-registry needs n - 1 of both.

Nodes of ipfsreg join each other by bootstrappers (--neighbours), torrent peers are told of each other when they start,
as a tracker would. The processors are shared by all machines: what they were busy with is printed beside each result,
and figures taken above 80 % say little about the links.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ipfsreg.testing.crowd import Pull, Usage, cpu_seconds, make_layers, pull_at_once, push_layers, start_crowd
from ipfsreg.testing.daemons import HTTP_PORT, Cluster, wait_until
from ipfsreg.testing.namespaces import Lan, Machine, open_lan

REGISTRY_PORT = 5001
DOCKER_REGISTRY = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}}}}}
http: {{addr: "0.0.0.0:{port}"}}
"""
TORRENT_PEER = Path(__file__).with_name("torrent_peer.py")


@dataclass
class Setup:
    """What everybody gets alike."""

    lan: Lan
    directory: Path
    layers: list[bytes]
    mbit_per_s: float
    neighbours: int | None
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(map(len, self.layers))

    @property
    def ideal_s(self) -> float:
        return self.size * 8 / (self.mbit_per_s * 1e6)

    @property
    def holder(self) -> Machine:
        return self.lan.machines[0]

    @property
    def others(self) -> list[Machine]:
        return self.lan.machines[1:]


@dataclass(frozen=True)
class Result:
    """How it went for everybody."""

    last: float
    """Seconds of the last one, by the ideal."""
    median: float
    holder: float
    """Bytes that left the first holder, by the image's."""
    received: float
    """Bytes that reached a node, by the image's: the mean of all but the holder."""
    duplicates: float | None
    """Share of the blocks received that had come already; None where nobody counts."""
    busy: float
    cpu_s: float


class Measured:
    """Takes the counters around a run."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._usage = Usage()
        self._cpu = cpu_seconds(setup.lan.machines)
        self._traffic = [machine.traffic() for machine in setup.lan.machines]

    def result(self, seconds: list[float], duplicates: float | None = None) -> Result:
        busy, cpu = self._usage.share(), cpu_seconds(self._setup.lan.machines) - self._cpu
        moved = [
            (after[0] - before[0], after[1] - before[1])
            for before, after in zip(
                self._traffic, [machine.traffic() for machine in self._setup.lan.machines], strict=True
            )
        ]
        size, ideal = self._setup.size, self._setup.ideal_s
        return Result(
            max(seconds) / ideal,
            statistics.median(seconds) / ideal,
            moved[0][1] / size,
            statistics.mean(received for received, _ in moved[1:]) / size,
            duplicates,
            busy,
            cpu,
        )


def run_ipfsreg(setup: Setup) -> Result:
    with Cluster(setup.directory / "ipfsreg") as cluster:
        nodes = start_crowd(cluster, setup.lan, neighbours=setup.neighbours, **setup.environment)
        image = push_layers(setup.holder, setup.layers, "crowd/app", "1.0", HTTP_PORT)
        for node in nodes:
            node.wait_manifest("crowd/app", "1.0", 60)
        before = [node.status()["bitswap"] for node in nodes]
        measured = Measured(setup)
        seconds = pull_at_once([Pull(machine, image) for machine in setup.others])
        result = measured.result(seconds)
        after = [node.status()["bitswap"] for node in nodes]
        received, twice = (
            sum(new[key] - old[key] for old, new in zip(before, after, strict=True))
            for key in ("blocks_received", "duplicate_blocks")
        )
        return Result(**{**vars(result), "duplicates": twice / max(1, received + twice)})


def run_docker_registry(setup: Setup) -> Result:
    directory = setup.directory / "docker-registry"
    directory.mkdir()
    config = directory / "config.yml"
    config.write_text(DOCKER_REGISTRY.format(directory=directory / "data", port=REGISTRY_PORT))
    command = [*setup.holder.prefix, "docker-registry", "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as registry:
        try:
            wait_until(lambda: _listens(setup.holder, REGISTRY_PORT), "docker-registry answers")
            image = push_layers(setup.holder, setup.layers, "crowd/app", "1.0", REGISTRY_PORT)
            measured = Measured(setup)
            pulls = [Pull(machine, image, setup.holder.address, REGISTRY_PORT) for machine in setup.others]
            return measured.result(pull_at_once(pulls))
        finally:
            registry.terminate()


def _listens(machine: Machine, port: int) -> bool:
    with machine.entered():
        return (
            f":{port:04X} "
            in Path("/proc/thread-self/net/tcp6").read_text() + Path("/proc/thread-self/net/tcp").read_text()
        )


def run_libtorrent(setup: Setup) -> Result:
    directory = setup.directory / "libtorrent"
    with TorrentPeers() as peers:
        places = [directory / machine.name for machine in setup.lan.machines]
        for place in places:
            place.mkdir(parents=True)
        (places[0] / "image").write_bytes(b"".join(setup.layers))
        peers.start(setup.holder, "seed", places[0])
        torrent = str(places[0] / "image.torrent")
        addresses = [machine.address for machine in setup.lan.machines]
        for machine, place in zip(setup.others, places[1:], strict=True):
            peers.start(machine, "leech", place, torrent, *(one for one in addresses if one != machine.address))
        measured = Measured(setup)
        seconds = pull_at_once([one.fetch for one in peers.running[1:]])
        result = measured.result(seconds)
        facts = [one.finish() for one in peers.running]
        received, wasted = (sum(one[key] for one in facts) for key in ("received", "wasted"))
        return Result(**{**vars(result), "duplicates": wasted / max(1, received)})


class TorrentPeers:
    """Processes of bench/torrent_peer.py."""

    def __init__(self) -> None:
        self.running: list[TorrentPeer] = []

    def start(self, machine: Machine, *arguments: object) -> None:
        self.running.append(TorrentPeer(machine, *arguments))
        self.running[-1].read()

    def __enter__(self) -> TorrentPeers:
        return self

    def __exit__(self, *exc: object) -> None:
        for one in self.running:
            one.process.kill()
            one.process.wait()


class TorrentPeer:
    def __init__(self, machine: Machine, role: object, directory: object, *arguments: object) -> None:
        command = [*machine.prefix, "/usr/bin/python3", TORRENT_PEER, role, directory, machine.address, *arguments]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def read(self) -> dict[str, float]:
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def go_on(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def fetch(self) -> None:
        self.go_on()
        self.read()

    def finish(self) -> dict[str, float]:
        self.go_on()
        return self.read()


CONTESTANTS: dict[str, Callable[[Setup], Result]] = {
    "ipfsreg": run_ipfsreg,
    "libtorrent": run_libtorrent,
    "docker-registry": run_docker_registry,
}


@contextmanager
def open_setup(options: argparse.Namespace, nodes: int, mbit_per_s: float, mb: float) -> Iterator[Setup]:
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-crowd.", dir=options.dir))
    try:
        names = [f"n{number}" for number in range(nodes)]
        with open_lan(names, mbit_per_s=mbit_per_s, congestion_control=options.congestion_control) as lan:
            yield Setup(lan, directory, make_layers(int(mb * 1e6)), mbit_per_s, options.neighbours)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def measure(options: argparse.Namespace, nodes: int, mbit_per_s: float, mb: float) -> None:
    print(f"{nodes} nodes, {mbit_per_s:g} Mbit/s each way, {mb:g} MB: {mb * 8 / mbit_per_s:.1f} s are the least")
    print(f"  {'':16} last x link  median x  holder sends  received x  duplicates  processors  CPU s")
    for name in options.only:
        results = []
        for _ in range(options.rounds):
            with open_setup(options, nodes, mbit_per_s, mb) as setup:
                results.append(CONTESTANTS[name](setup))
        print(f"  {name:16} {describe(results)}", flush=True)


def describe(results: list[Result]) -> str:
    """Medians."""
    last, median, holder, received, busy, cpu = (
        statistics.median(getattr(one, key) for one in results)
        for key in ("last", "median", "holder", "received", "busy", "cpu_s")
    )
    counted = [one.duplicates for one in results if one.duplicates is not None]
    twice = f"{statistics.median(counted):10.1%}" if counted else f"{'-':>10}"
    spread = f"  (last {min(one.last for one in results):.2f} to {max(one.last for one in results):.2f})"
    return (
        f"{last:11.2f} {median:9.2f} {holder:13.2f} {received:11.2f}  {twice} {busy:11.0%} {cpu:6.1f}"
        f"{spread if len(results) > 1 else ''}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--mbit", type=float, default=50)
    parser.add_argument("--mb", type=float, default=50)
    parser.add_argument("--sweep", action="store_true", help="4, 8, 16 and 32 nodes, 20 Mbit/s, 20 MB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--neighbours", type=int, default=None, help="nodes each one joins [all before it]")
    parser.add_argument("--only", action="append", choices=list(CONTESTANTS), help="may be repeated [all]")
    parser.add_argument("--congestion-control", help="of TCP [the system's]")
    parser.add_argument("--dir", type=Path, default=None, help="where the stores lie [the system's temporary folder]")
    options = parser.parse_args()
    options.only = options.only or list(CONTESTANTS)
    algorithm = options.congestion_control or Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    print(f"TCP {algorithm}; medians of {options.rounds}")
    for nodes in (4, 8, 16, 32) if options.sweep else (options.nodes,):
        measure(options, nodes, 20 if options.sweep else options.mbit, 20 if options.sweep else options.mb)


if __name__ == "__main__":
    main()

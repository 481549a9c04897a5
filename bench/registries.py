"""Registries to measure beside ours, each started as its users start it, with stores under one directory.

- ipfsreg: `ipfsreg daemon` of this checkout, a private swarm of one node.
- distribution: distribution v3, `registry serve` with its file system driver. Needs a binary called `distribution`:
  `scripts/setup-distribution` builds it from the published module.
- olareg: `olareg serve`. Needs a binary called `olareg`: `go install github.com/olareg/olareg/cmd/olareg@latest`.
- docker-registry: Debian's package, distribution 2.8.
- nginx: Debian's, one worker, files alone: what a GET costs where nothing is looked up.

Binaries are taken from PATH and from `.cache/peers`. One that is missing is left out, and said.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from ipfsreg.testing.daemons import Cluster, free_port, wait_until

PEERS = ("distribution", "olareg", "docker-registry", "nginx")

DISTRIBUTION_V3 = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {directory}/data}}
  delete: {{enabled: true}}
  maintenance: {{uploadpurging: {{enabled: false}}}}
catalog: {{maxentries: 10000}}
http: {{addr: "127.0.0.1:{port}"}}
"""
DISTRIBUTION_V2 = """
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}"}}
"""
NGINX = """
daemon off; user root; worker_processes 1; error_log {directory}/error.log crit; pid {directory}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/json;
  client_body_temp_path {directory}/body; proxy_temp_path {directory}/p; fastcgi_temp_path {directory}/f;
  uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
  server {{ listen 127.0.0.1:{port}; root {directory}/root; }}
}}
"""


@dataclass(frozen=True, slots=True)
class Registry:
    """A server under test."""

    name: str
    address: str
    """`HOST:PORT`."""
    process: subprocess.Popen[bytes] | subprocess.Popen[str]
    directory: Path

    @property
    def is_registry(self) -> bool:
        """Whether it takes pushes: nginx does not."""
        return self.name != "nginx"

    def url(self, path: str) -> str:
        """Where *path* is."""
        return f"http://{self.address}{path}"

    def memory_mib(self, field: str = "VmRSS") -> int:
        """Resident memory of its process now, or with "VmHWM" at its peak."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(rf"{field}:\s+(\d+)", status)
        return int(found[1]) // 1024 if found else 0


@contextmanager
def open_registries(directory: Path, names: Sequence[str] = PEERS) -> Iterator[list[Registry]]:
    """Ours first, then those of *names* that are installed; all end with the block."""
    with ExitStack() as stack:
        cluster = stack.enter_context(Cluster(directory))
        # None of the others writes a line for each request either.
        ours = cluster.start("ipfsreg", IPFSREG_ACCESS_LOG_FORMAT="off")
        assert ours.process is not None
        running = [Registry("ipfsreg", ours.http, ours.process, directory / "ipfsreg")]
        for name in names:
            place = directory / name
            place.mkdir()
            port = free_port()
            command = _command(name, place, port)
            if command is None:
                print(f"{name} is not installed and left out")
                continue
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            stack.callback(_end, process)
            running.append(Registry(name, f"127.0.0.1:{port}", process, place))
        for registry in running:
            wait_until(lambda registry=registry: _answers(registry), f"{registry.name} answers")
        time.sleep(1)
        yield running


def _find(name: str) -> str | None:
    own = Path(__file__).parent.parent / ".cache" / "peers"
    return shutil.which(name, path=f"{own}{os.pathsep}{os.environ['PATH']}")


def _command(name: str, place: Path, port: int) -> list[str] | None:
    binary = _find(name)
    if binary is None:
        return None
    if name == "olareg":
        return [
            binary, "serve", "--addr", "127.0.0.1", "--port", str(port), "--dir", str(place), "--store-type", "dir",
            "--api-delete", "--api-blob-delete", "--gc-frequency", "-1s",
        ]  # fmt: skip
    config = place / "config"
    text = {"distribution": DISTRIBUTION_V3, "docker-registry": DISTRIBUTION_V2, "nginx": NGINX}[name]
    config.write_text(text.format(directory=place, port=port))
    return [binary, "-c", str(config)] if name == "nginx" else [binary, "serve", str(config)]


def _answers(registry: Registry) -> bool:
    if registry.process.poll() is not None:
        raise RuntimeError(f"{registry.name} ended with {registry.process.returncode}")
    try:
        return httpx.get(registry.url("/v2/")).status_code < 500
    except httpx.TransportError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def take_turns(
    registries: Sequence[Registry], rounds: int, test: object, *, lower_is_better: bool = False
) -> tuple[dict[str, float], list[str]]:
    """Run *test* of each registry *rounds* times in turn.

    Returns the medians by name, and how many times better ours is than each other ("-": the other does not do it).
    """
    figures: dict[str, list[float]] = {registry.name: [] for registry in registries}
    for _ in range(rounds):
        for registry in registries:
            figure = test(registry)  # type: ignore[operator]
            if figure is not None:
                figures[registry.name].append(figure)
    medians = {name: sorted(values)[len(values) // 2] for name, values in figures.items() if values}
    ours = medians.get(registries[0].name)
    ratios = []
    for registry in registries[1:]:
        other = medians.get(registry.name)
        if not other or not ours:
            ratios.append("-")
        else:
            ratios.append(f"{other / ours if lower_is_better else ours / other:.2f}")
    return medians, ratios


def show_heading(registries: Sequence[Registry]) -> None:
    """The line above what `show` prints."""
    print(f"{'':40}" + "".join(f"{registry.name:>17}" for registry in registries) + "    ours to each", flush=True)


def show(name: str, registries: Sequence[Registry], medians: dict[str, float], ratios: Sequence[str]) -> None:
    """One line of figures."""
    cells = (f"{medians[r.name]:17.1f}" if r.name in medians else f"{'-':>17}" for r in registries)
    print(f"{name:40}" + "".join(cells) + "    " + " ".join(ratios), flush=True)

"""Real nodes in processes of their own, for journeys, client tests and benchmarks.

    with Cluster(directory) as cluster:
        alice = cluster.start("alice")
        bob = cluster.start("bob", join=[alice])
        ...
        alice.kill()

Every node listens on loopback, on ports the system chose, or in a network namespace of its own (`namespaces`); all of
a cluster share one swarm key. Leaving the block ends every process it started.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from ipfsreg.cli.status import ask
from ipfsreg.config import Config, load_config
from ipfsreg.datastore import identity_of
from ipfsreg.testing.namespaces import Machine

START_S = 60.0
STOP_S = 40.0
POLL_S = 0.02
PEER_PORT, HTTP_PORT = 4619, 5000
"""In a namespace of its own a node has all ports for itself."""


class DaemonFailed(AssertionError):
    """A node did not do what it was waited for; its log is in the message."""


def wait_until(condition: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    """Return the first true value of *condition*, asked again and again. Raises DaemonFailed after *timeout_s*."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise DaemonFailed(f"not within {timeout_s:.0f} s: {what}")
        time.sleep(POLL_S)


def free_port() -> int:
    """A TCP port on loopback that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Daemon:
    """One node: its directory stays, its process may come and go."""

    def __init__(self, name: str, directory: Path, environment: dict[str, str], machine: Machine | None = None) -> None:
        self.name = name
        self.directory = directory
        self.machine = machine
        self.config_path = directory / "node.toml"
        self.environment = environment
        self.process: subprocess.Popen[str] | None = None
        self.lines: list[str] = []
        self._news = threading.Condition()

    @property
    def config(self) -> Config:
        """What the process reads."""
        return load_config(self.config_path, self.environment)

    @property
    def swarm_key(self) -> Path:
        """The file other nodes need to be let in."""
        return self.directory / "swarm.key"

    def start(self, *, wait: bool = True) -> Daemon:
        """Start the process; return when it serves HTTP."""
        assert self.process is None or self.process.poll() is not None, f"{self.name} runs already"
        self.lines = []
        prefix = self.machine.prefix if self.machine else []
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "ipfsreg", "daemon", "--config", str(self.config_path)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, **self.environment},
        )
        threading.Thread(target=self._read, args=(self.process, self.lines), daemon=True).start()
        if wait:
            self.wait_line(r"registry at https?://")
        return self

    def _read(self, process: subprocess.Popen[str], lines: list[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        process.wait()
        with self._news:
            self._news.notify_all()

    def wait_line(self, pattern: str, timeout_s: float = START_S, *, after: int = 0) -> re.Match[str]:
        """Wait for a line of the log, not one of the first *after*, in which *pattern* is found.

        Raises:
            DaemonFailed: none came in time, or the process ended without it.
        """
        deadline = time.monotonic() + timeout_s
        seen = after
        process = self.process
        assert process is not None
        with self._news:
            while True:
                for line in self.lines[seen:]:
                    match = re.search(pattern, line)
                    if match:
                        return match
                seen = len(self.lines)
                ended = process.returncode is not None
                if ended or not self._news.wait(max(0.0, deadline - time.monotonic())):
                    how = f"ended with {process.returncode}" if ended else f"waited {timeout_s:.0f} s"
                    log = "\n".join(self.lines[-60:])
                    raise DaemonFailed(f"{self.name}: no line with {pattern!r} ({how}):\n{log}")

    def inside(self) -> AbstractContextManager[None]:
        """While the block lasts this thread is where the node's HTTP address means the node."""
        return self.machine.entered() if self.machine else nullcontext()

    @property
    def http(self) -> str:
        """`127.0.0.1:PORT`, where clients reach it; in a namespace only from there."""
        return self.wait_line(r"registry at https?://(\S+)")[1]

    @property
    def multiaddr(self) -> str:
        """Its multiaddr with the peer ID, which is what another node joins by. Known before it runs."""
        config = self.config
        return f"{config.p2p.listen_addrs[0]}/p2p/{identity_of(config).peer_id}"

    def url(self, path: str) -> str:
        """The URL of *path* at this node."""
        return self.wait_line(r"registry at (\S+)")[1] + path

    def status(self) -> dict[str, Any]:
        """What `ipfsreg status --json` says."""
        return ask(self.config)

    def wait_peers(self, count: int) -> None:
        """Return when it is connected to *count* peers."""
        wait_until(lambda: len(self.status()["peers"]) >= count, f"{self.name} has {count} peers")

    def wait_manifest(self, repository: str, reference: str, timeout_s: float = 30.0) -> str:
        """Return the digest of a manifest as soon as this node answers HEAD for it."""

        def head() -> str | None:
            with self.inside():
                answer = httpx.head(self.url(f"/v2/{repository}/manifests/{reference}"))
            return answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None

        return str(wait_until(head, f"{self.name} has {repository}:{reference}", timeout_s))

    def rss(self) -> int:
        """Resident bytes of the process now."""
        assert self.process is not None
        return int(psutil.Process(self.process.pid).memory_info().rss)

    def peak_rss(self) -> int:
        """The most it has had since it started, in bytes."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        match = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    def stop(self) -> int:
        """SIGTERM; return the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise DaemonFailed(f"{self.name} did not stop:\n" + "\n".join(self.lines[-60:])) from None

    def kill(self) -> None:
        """`kill -9`."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """Let it sleep, as a machine whose lid was closed."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        """Let it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Cluster:
    """Nodes of one private swarm."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.nodes: dict[str, Daemon] = {}

    def add(self, name: str, join: Sequence[Daemon] = (), machine: Machine | None = None, **environment: str) -> Daemon:
        """Write a node's directory without starting it. *environment*: configuration as `IPFSREG_…` variables."""
        directory = self.directory / name
        command = [sys.executable, "-m", "ipfsreg", "init", "--dir", str(directory)]
        if machine is not None:
            command += ["--listen", f"/ip4/{machine.address}/tcp/{PEER_PORT}", "--http", f"127.0.0.1:{HTTP_PORT}"]
        else:
            # Ports of its own from the start, so that a node which comes back is where the others look for it.
            command += ["--listen", f"/ip4/127.0.0.1/tcp/{free_port()}", "--http", f"127.0.0.1:{free_port()}"]
        for node in join:
            command += ["--join", node.multiaddr]
        first = next(iter(self.nodes.values()), None)
        if first is not None:
            command += ["--swarm-key", str(first.swarm_key)]
        subprocess.run(command, check=True, capture_output=True, text=True)
        node = Daemon(name, directory, environment, machine)
        self.nodes[name] = node
        return node

    def start(
        self, name: str, join: Sequence[Daemon] = (), machine: Machine | None = None, **environment: str
    ) -> Daemon:
        """Write a node's directory and start it; return when it serves and, if it joins, has a peer."""
        node = self.add(name, join, machine, **environment).start()
        if join:
            node.wait_peers(1)
        return node

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for node in self.nodes.values():
            process = node.process
            if process is None or process.poll() is not None:
                continue
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        if error is not None and hasattr(error, "add_note"):
            for node in self.nodes.values():
                error.add_note(f"---- the last of {node.name}'s log\n" + "\n".join(node.lines[-40:]))

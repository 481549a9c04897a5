"""Machines of our own on one machine: network namespaces joined by a bridge, with links as thin and as bad as wanted.

    with open_lan(["alice", "bob"], mbit_per_s=50) as lan:
        alice, bob = lan.machines
        subprocess.run([*alice.prefix, "ping", "-c1", bob.address])
        with bob.entered():          # this thread only: sockets opened here are bob's
            httpx.get(f"http://{alice.address}:5000/v2/")

Every machine is a namespace with loopback and `eth0`, whose other end is a port of a bridge in a namespace of its own:
nothing here touches the network of the system we run on, and addresses (10.77.0.0/16) mean nothing outside. Needs root,
`ip`, `tc` and `iptables`. The kernel may lack netem: delay is for `delay_proxy`.

Names carry the process that made them, `ipfsreg-PID-N-NAME`, so the next run removes what a killed one left behind.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

PREFIX = "ipfsreg"
_OURS = re.compile(rf"^{PREFIX}-(\d+)-\d+-\S+")
_NAMESPACES = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_numbers = count()


class NamespaceError(Exception):
    """The system refused a command; its answer is in the message."""


def unavailable() -> str | None:
    """Why there can be no namespaces here, or None."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [program for program in ("ip", "tc", "iptables") if shutil.which(program) is None]
    if missing:
        return f"network namespaces need {', '.join(missing)}: scripts/setup --dev installs them"
    return None


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise NamespaceError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


class Machine:
    """One namespace with one link."""

    def __init__(self, lan: Lan, name: str, number: int) -> None:
        self.name = name
        self.address = f"10.77.{number // 250}.{number % 250 + 1}"
        self.namespace = f"{lan.name}-{name}"
        self._lan = lan
        self._port = f"port{number}"

    @property
    def prefix(self) -> list[str]:
        """What to put in front of a command so that it runs here. The process is then the command itself."""
        return ["ip", "netns", "exec", self.namespace]

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While the block lasts the calling thread is here, and what it starts; sockets it opens stay here for good."""
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            there = os.open(_NAMESPACES / self.namespace, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _setns(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _setns(home)
        finally:
            os.close(home)

    def shape(self, mbit_per_s: float | None) -> None:
        """Let the link carry so much each way; None: whatever the processors can."""
        for namespace, device in ((self.namespace, "eth0"), (self._lan.switch, self._port)):
            if mbit_per_s is None:
                with suppress(NamespaceError):  # there was no limit
                    _run("tc", "-n", namespace, "qdisc", "del", "dev", device, "root")
            else:
                limit = ["tbf", "rate", f"{mbit_per_s}mbit", "burst", "64kb", "latency", "50ms"]
                _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *limit)

    def lose(self, share: float) -> None:
        """Lose this share of what comes in, at random; 0 ends it."""
        self._iptables("-F", "LOSS")
        if share:
            self._iptables(
                "-A", "LOSS", "-m", "statistic", "--mode", "random", "--probability", f"{share}", "-j", "DROP"
            )

    def cut_off(self, others: Sequence[Machine]) -> None:
        """Hear nothing from *others*, and they nothing from here, without either being told."""
        for near, far in [(self, other) for other in others] + [(other, self) for other in others]:
            near._iptables("-A", "CUT", "-s", far.address, "-j", "DROP")

    def reconnect(self, others: Sequence[Machine]) -> None:
        """Undo `cut_off`."""
        for near, far in [(self, other) for other in others] + [(other, self) for other in others]:
            near._iptables("-D", "CUT", "-s", far.address, "-j", "DROP")

    def traffic(self) -> tuple[int, int]:
        """Bytes that came in and went out over the link, with all headers."""
        with self.entered():
            text = Path("/proc/thread-self/net/dev").read_text()
        match = re.search(r"eth0:\s*(.*)", text)
        assert match is not None
        columns = match[1].split()
        return int(columns[0]), int(columns[8])

    def pids(self) -> list[int]:
        """The processes that run here."""
        return [int(pid) for pid in _run("ip", "netns", "pids", self.namespace).split()]

    def _iptables(self, *arguments: str) -> None:
        _run(*self.prefix, "iptables", "-w", *arguments)

    def _build(self, congestion_control: str | None) -> None:
        _run("ip", "netns", "add", self.namespace)
        port = ["name", self._port, "type", "veth", "peer", "name", "eth0", "netns", self.namespace]
        _run("ip", "-n", self._lan.switch, "link", "add", *port)
        _run("ip", "-n", self._lan.switch, "link", "set", self._port, "master", "bridge", "up")
        _run("ip", "-n", self.namespace, "addr", "add", f"{self.address}/16", "dev", "eth0")
        for device in ("lo", "eth0"):
            _run("ip", "-n", self.namespace, "link", "set", device, "up")
        for chain in ("LOSS", "CUT"):
            self._iptables("-N", chain)
            self._iptables("-A", "INPUT", "-i", "eth0", "-j", chain)
        if congestion_control is not None:
            _run(*self.prefix, "sysctl", "-qw", f"net.ipv4.tcp_congestion_control={congestion_control}")


class Lan:
    """Some machines on one bridge. Built only by `open_lan`."""

    def __init__(self, name: str, machines: Sequence[str]) -> None:
        self.name = name
        self.switch = f"{name}-switch"
        self.machines = [Machine(self, machine, number) for number, machine in enumerate(machines)]

    def __getitem__(self, name: str) -> Machine:
        return next(machine for machine in self.machines if machine.name == name)

    def partition(self, *groups: Sequence[Machine]) -> None:
        """Let machines of different *groups* hear nothing of each other; `heal` with the same ends it."""
        for number, group in enumerate(groups):
            for machine in group:
                machine.cut_off([other for later in groups[number + 1 :] for other in later])

    def heal(self, *groups: Sequence[Machine]) -> None:
        """Undo `partition`."""
        for number, group in enumerate(groups):
            for machine in group:
                machine.reconnect([other for later in groups[number + 1 :] for other in later])

    def _build(self, mbit_per_s: float | None, congestion_control: str | None) -> None:
        _run("ip", "netns", "add", self.switch)
        _run("ip", "-n", self.switch, "link", "add", "bridge", "type", "bridge")
        _run("ip", "-n", self.switch, "link", "set", "bridge", "up")
        for machine in self.machines:
            machine._build(congestion_control)
            if mbit_per_s is not None:
                machine.shape(mbit_per_s)


@contextmanager
def open_lan(
    names: Sequence[str], *, mbit_per_s: float | None = None, congestion_control: str | None = None
) -> Iterator[Lan]:
    """Machines of these names while the block lasts. Leaving it ends what still runs in them, and removes them.

    *congestion_control*: of TCP; None is what the system we run on has chosen for itself. Others than that and "reno"
    may be refused: a namespace can use only what the system allows to everybody.

    Raises:
        NamespaceError: the system refused; nothing is left behind.
    """
    remove_leftovers()
    lan = Lan(f"{PREFIX}-{os.getpid()}-{next(_numbers)}", names)
    try:
        lan._build(mbit_per_s, congestion_control)
        yield lan
    finally:
        for namespace in _namespaces():
            if namespace.startswith(f"{lan.name}-"):
                _remove(namespace)


def remove_leftovers() -> list[str]:
    """Remove the namespaces of processes that are no more, with what still runs in them; return their names."""
    gone = []
    for namespace in _namespaces():
        match = _OURS.match(namespace)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(namespace)
            gone.append(namespace)
    return gone


def _namespaces() -> list[str]:
    return sorted(path.name for path in _NAMESPACES.iterdir()) if _NAMESPACES.exists() else []


def _remove(namespace: str) -> None:
    """Another run may remove leftovers at the same moment, so all of it may be gone already."""
    with suppress(NamespaceError):
        deadline = time.monotonic() + 5
        while (pids := _run("ip", "netns", "pids", namespace).split()) and time.monotonic() < deadline:
            for pid in pids:
                # A thread of ours that is inside counts as we ourselves.
                if int(pid) != os.getpid():
                    with suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            time.sleep(0.02)
        _run("ip", "netns", "del", namespace)


def _setns(descriptor: int) -> None:
    # os.setns came with Python 3.12.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

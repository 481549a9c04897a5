"""Two nodes of one swarm and every client, started once for all tests here."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest

from ipfsreg.testing.clients.interface import RegistryClient
from ipfsreg.testing.clients.known import KNOWN, Known
from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.clients.table import PAGE, Column, render, unproved, with_table
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.oci_images import ImageLayout, write_layout

C = TypeVar("C", bound=RegistryClient)


@dataclass(frozen=True)
class Swarm:
    """Where images are pushed to and pulled from."""

    alice: Daemon
    bob: Daemon


def complaints(*nodes: Daemon) -> list[str]:
    """What the nodes' logs have of errors and of requests that they could not serve: no client gives reason for any."""
    bad = re.compile(r" (ERROR|CRITICAL) |Traceback| -> 5\d\d,")
    return [line for node in nodes for line in node.lines if bad.search(line)]


@pytest.fixture(scope="session")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Cluster(tmp_path_factory.mktemp("swarm")) as cluster:
        alice = cluster.start("alice")
        bob = cluster.start("bob", join=[alice])
        yield Swarm(alice, bob)
        assert complaints(alice, bob) == []


SHOWN = pytest.StashKey[list[tuple[str, str, str]]]()
"""Client, version and column, of what tests have shown."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients-table", action="store_true", help="write what the run shows into docs/clients.md")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[SHOWN] = []


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if not session.config.getoption("--clients-table", False) or exitstatus:
        return
    shown = session.config.stash[SHOWN]
    proved: dict[str, set[str]] = {}
    for name, _, column in shown:
        proved.setdefault(name, set()).add(column)
    if missing := unproved(KNOWN, proved):
        raise pytest.UsageError(f"docs/clients.md stays as it was, because this run did not show {missing}")
    versions = {name: version for name, version, _ in shown}
    PAGE.write_text(with_table(PAGE.read_text(), render(KNOWN, versions)))


class Clients:
    """Clients, each opened when first asked for."""

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        readable: tuple[Path, ...],
        shown: list[tuple[str, str, str]],
        **place: Any,
    ) -> None:
        """*place*: what else a `Place` is told."""
        self._stack = stack
        self._directory = directory
        self._readable = readable
        self._shown = shown
        self._place = place
        self._open: dict[str, RegistryClient] = {}

    def shown(self, known: Known[RegistryClient], column: Column) -> None:
        """The test has shown this of a client."""
        self._shown.append((known.name, self[known].version(), column))

    def __getitem__(self, known: Known[C]) -> C:
        if known.name not in self._open:
            if absent := known.missing():
                pytest.skip(absent)
            directory = Path(tempfile.mkdtemp(dir=self._directory))
            place = Place(known.origin, directory, readable=self._readable, **self._place)
            self._open[known.name] = self._stack.enter_context(known.open(place))
        return cast(C, self._open[known.name])


@contextmanager
def state_directory() -> Iterator[Path]:
    """A folder for what clients keep: in memory if there is room, because they write to disk layer by layer."""
    memory = Path("/dev/shm")
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 4 << 30
    # Not below pytest's own folder: podman takes no path of more than 50 characters for its state.
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-", dir=memory if roomy else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def clients(images: dict[str, ImageLayout], pytestconfig: pytest.Config) -> Iterator[Clients]:
    readable = next(iter(images.values())).path.parent
    with state_directory() as directory, ExitStack() as stack:
        yield Clients(stack, directory, (readable,), pytestconfig.stash[SHOWN])


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageLayout]:
    directory = tmp_path_factory.mktemp("images")
    return {
        "multi-layer": write_layout(directory / "layers", [3_000_000, 1_500_000, 20, 700_000], seed=1),
        "multi-arch": write_layout(
            directory / "arch", [1_200_000, 2_000_000], architectures=("amd64", "arm64", "s390x"), seed=2
        ),
        "100 layers": write_layout(directory / "many", [300] * 100, seed=3),
        "one large": write_layout(directory / "large", [20, 12_000_000, 20], seed=4),
    }

"""Two nodes of one swarm and every client, started once for all tests of a file."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import pytest

from ipfsreg.testing.clients.interface import RegistryClient
from ipfsreg.testing.clients.known import Known
from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.oci_images import ImageLayout, write_layout

C = TypeVar("C", bound=RegistryClient)


@dataclass(frozen=True)
class Swarm:
    """Where images are pushed to and pulled from."""

    alice: Daemon
    bob: Daemon


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Cluster(tmp_path_factory.mktemp("swarm")) as cluster:
        alice = cluster.start("alice")
        yield Swarm(alice, cluster.start("bob", join=[alice]))


class Clients:
    """Clients, each opened when first asked for."""

    def __init__(self, stack: ExitStack, directory: Path, readable: Path) -> None:
        self._stack = stack
        self._directory = directory
        self._readable = readable
        self._open: dict[str, RegistryClient] = {}

    def __getitem__(self, known: Known[C]) -> C:
        if known.name not in self._open:
            if absent := known.missing():
                pytest.skip(absent)
            directory = self._directory / str(len(self._open))
            directory.mkdir()
            place = Place(known.origin, directory, readable=(self._readable,))
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


@pytest.fixture(scope="module")
def clients(images: dict[str, ImageLayout]) -> Iterator[Clients]:
    readable = next(iter(images.values())).path.parent
    with state_directory() as directory, ExitStack() as stack:
        yield Clients(stack, directory, readable)


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

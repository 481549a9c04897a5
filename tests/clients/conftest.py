"""Two nodes of one swarm and every client, started once for all tests here."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from ipfsreg.testing.clients import ContainerClient, open_client
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.oci_images import ImageLayout, write_layout

PROGRAMS = {"docker": "dockerd", "containerd": "containerd", "podman": "podman", "skopeo": "skopeo"}


@dataclass(frozen=True)
class Swarm:
    """Where images are pushed to and pulled from."""

    alice: Daemon
    bob: Daemon


@pytest.fixture(scope="session")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    with Cluster(tmp_path_factory.mktemp("swarm")) as cluster:
        alice = cluster.start("alice")
        yield Swarm(alice, cluster.start("bob", join=[alice]))


@pytest.fixture(scope="session")
def clients() -> Iterator[dict[str, ContainerClient]]:
    """Opened when first asked for, closed at the end."""
    # Not below pytest's own folder: podman takes no path of more than 50 characters for its state.
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-"))
    try:
        with ExitStack() as stack:
            yield _Clients(stack, directory)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


class _Clients(dict[str, ContainerClient]):
    def __init__(self, stack: ExitStack, directory: Path) -> None:
        super().__init__()
        self._stack = stack
        self._directory = directory

    def __missing__(self, name: str) -> ContainerClient:
        if os.geteuid() != 0 or shutil.which(PROGRAMS[name]) is None:
            pytest.skip(f"{name} needs root and its Debian package: scripts/setup --dev installs it")
        self[name] = self._stack.enter_context(open_client(name, self._directory / name))
        return self[name]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ImageLayout]:
    directory = tmp_path_factory.mktemp("images")
    return {
        "multi-layer": write_layout(directory / "layers", [3_000_000, 1_500_000, 20, 700_000], seed=1),
        "multi-arch": write_layout(
            directory / "arch", [1_200_000, 2_000_000], architectures=("amd64", "arm64", "s390x"), seed=2
        ),
        "100 layers": write_layout(directory / "many", [300] * 100, seed=3),
    }

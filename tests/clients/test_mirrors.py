"""containerd as hosts.toml tells it where a registry is."""

from __future__ import annotations

import pytest

from ipfsreg.testing.clients.containerd import Containerd
from ipfsreg.testing.clients.known import CONTAINERDS, Known
from ipfsreg.testing.clients.table import Column
from ipfsreg.testing.daemons import free_port
from ipfsreg.testing.oci_images import ImageLayout

from .conftest import Clients, Swarm

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


@pytest.mark.parametrize("known", CONTAINERDS, ids=lambda known: known.name)
def test_an_image_of_a_registry_by_name_comes_from_the_next_node_when_one_is_down(
    known: Known[Containerd], swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    containerd, repository = clients[known], f"mirrored/{CONTAINERDS.index(known)}"
    reference = f"registry.example/{repository}:1.0"
    containerd.mirror("registry.example", swarm.alice.http)
    pushed = containerd.push(images["multi-arch"], reference)
    assert swarm.bob.wait_manifest(repository, "1.0") == pushed

    nobody = f"127.0.0.1:{free_port()}"
    containerd.mirror("registry.example", nobody, swarm.bob.http)
    assert pushed in containerd.pull(reference)
    containerd.forget(reference)
    clients.shown(known, Column.MORE)

"""Every client pushes to one node and pulls from another: what arrives is what was pushed."""

from __future__ import annotations

import pytest

from ipfsreg.testing.clients import ContainerClient, Docker, remote_digest
from ipfsreg.testing.oci_images import ImageLayout
from ipfsreg.testing.pushing import Client

from .conftest import Swarm

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

CLIENTS = ("docker", "containerd", "podman", "skopeo")


def repository_for(client: str, image: str) -> str:
    return f"clients/{client}/{image.replace(' ', '-')}"


@pytest.mark.parametrize("image", ["multi-layer", "multi-arch", "100 layers"])
@pytest.mark.parametrize("client", CLIENTS)
def test_push_to_alice_pull_from_bob(
    client: str, image: str, swarm: Swarm, clients: dict[str, ContainerClient], images: dict[str, ImageLayout]
) -> None:
    tool, layout = clients[client], images[image]
    pusher = tool if tool.pushes_indexes or len(layout.manifests) == 1 else clients["skopeo"]
    repository = repository_for(client, image)
    pushed = pusher.push(layout, f"{swarm.alice.http}/{repository}:1.0")
    assert swarm.bob.wait_manifest(repository, "1.0") == pushed
    at_bob = f"{swarm.bob.http}/{repository}:1.0"
    assert remote_digest(at_bob) == pushed
    assert tool.pull(at_bob) == pushed
    tool.forget(at_bob)


@pytest.mark.parametrize("puller", CLIENTS)
@pytest.mark.parametrize("pusher", CLIENTS)
def test_what_one_client_pushed_any_other_pulls(
    pusher: str, puller: str, swarm: Swarm, clients: dict[str, ContainerClient], images: dict[str, ImageLayout]
) -> None:
    repository = f"clients/{pusher}-to-{puller}"
    pushed = clients[pusher].push(images["multi-layer"], f"{swarm.bob.http}/{repository}:1.0")
    assert swarm.alice.wait_manifest(repository, "1.0") == pushed
    at_alice = f"{swarm.alice.http}/{repository}:1.0"
    assert clients[puller].pull(at_alice) == pushed
    clients[puller].forget(at_alice)


def test_an_image_pulled_from_another_node_runs(
    swarm: Swarm, clients: dict[str, ContainerClient], images: dict[str, ImageLayout]
) -> None:
    docker = clients["docker"]
    assert isinstance(docker, Docker)
    docker.push(images["multi-layer"], f"{swarm.alice.http}/clients/runs:1.0")
    swarm.bob.wait_manifest("clients/runs", "1.0")
    assert "Hello" in docker.run_image(f"{swarm.bob.http}/clients/runs:1.0")


def test_skopeo_brings_every_byte_of_an_index(
    swarm: Swarm, clients: dict[str, ContainerClient], images: dict[str, ImageLayout]
) -> None:
    layout = images["multi-arch"]
    clients["skopeo"].push(layout, f"{swarm.alice.http}/clients/bytes:1.0")
    swarm.bob.wait_manifest("clients/bytes", "1.0")
    with Client(swarm.bob.http) as bob:
        for manifest in layout.manifests:
            document = bob.manifest("clients/bytes", str(manifest))
            for blob in (document["config"], *document["layers"]):
                assert bob.pull_blob("clients/bytes", blob["digest"]) == blob["size"]

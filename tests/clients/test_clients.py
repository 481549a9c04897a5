"""Every client pushes to one node and pulls from another: what arrives is what was pushed."""

from __future__ import annotations

import pytest

from ipfsreg.testing.clients.docker import Docker
from ipfsreg.testing.clients.interface import ContainerClient
from ipfsreg.testing.clients.known import DOCKERS, IMAGE_CLIENTS, MANY_LAYERS, Known
from ipfsreg.testing.clients.table import Column
from ipfsreg.testing.oci_images import ImageLayout
from ipfsreg.testing.pushing import Client

from .conftest import Clients, Swarm

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

KnownImageClient = Known[ContainerClient]
SKOPEO = next(known for known in IMAGE_CLIENTS if known.program == "skopeo")


def repository_for(known: KnownImageClient, image: str) -> str:
    return f"clients/{IMAGE_CLIENTS.index(known)}/{image.replace(' ', '-')}"


CASES = [(known, image) for known in IMAGE_CLIENTS for image in ("multi-layer", "multi-arch")] + [
    (known, "100 layers") for known in MANY_LAYERS
]


@pytest.mark.parametrize(("known", "image"), CASES, ids=lambda part: part if isinstance(part, str) else part.name)
def test_push_to_alice_pull_from_bob(
    known: KnownImageClient, image: str, swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    tool, layout = clients[known], images[image]
    pusher = tool if known.pushes_indexes or len(layout.manifests) == 1 else clients[SKOPEO]
    repository = repository_for(known, image)
    pushed = pusher.push(layout, f"{swarm.alice.http}/{repository}:1.0")
    assert swarm.bob.wait_manifest(repository, "1.0") == pushed
    at_bob = f"{swarm.bob.http}/{repository}:1.0"
    assert pushed in tool.pull(at_bob)
    clients.shown(known, {"multi-arch": Column.INDEX, "100 layers": Column.MANY}.get(image, Column.IMAGE))
    tool.forget(at_bob)


@pytest.mark.parametrize("step", [1, 4])
@pytest.mark.parametrize("known", IMAGE_CLIENTS, ids=lambda known: known.name)
def test_what_one_client_pushed_another_pulls(
    known: KnownImageClient, step: int, swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    number = IMAGE_CLIENTS.index(known)
    other = IMAGE_CLIENTS[(number + step) % len(IMAGE_CLIENTS)]
    repository = f"clients/{number}-plus-{step}"
    pushed = clients[known].push(images["multi-layer"], f"{swarm.bob.http}/{repository}:1.0")
    assert swarm.alice.wait_manifest(repository, "1.0") == pushed
    at_alice = f"{swarm.alice.http}/{repository}:1.0"
    assert pushed in clients[other].pull(at_alice)
    clients[other].forget(at_alice)


# The newest one's containerd would need a shim of its own version to run anything.
@pytest.mark.parametrize(
    "known", [known for known in DOCKERS if "runc" in known.programs], ids=lambda known: known.name
)
def test_an_image_pulled_from_another_node_runs(
    known: Known[Docker], swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    docker = clients[known]
    repository = f"clients/runs{DOCKERS.index(known)}"
    docker.push(images["multi-layer"], f"{swarm.alice.http}/{repository}:1.0")
    swarm.bob.wait_manifest(repository, "1.0")
    assert "Hello" in docker.run_image(f"{swarm.bob.http}/{repository}:1.0")


def test_skopeo_brings_every_byte_of_an_index(swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]) -> None:
    layout = images["multi-arch"]
    clients[SKOPEO].push(layout, f"{swarm.alice.http}/clients/bytes:1.0")
    swarm.bob.wait_manifest("clients/bytes", "1.0")
    with Client(swarm.bob.http) as bob:
        for manifest in layout.manifests:
            document = bob.manifest("clients/bytes", str(manifest))
            for blob in (document["config"], *document["layers"]):
                assert bob.pull_blob("clients/bytes", blob["digest"]) == blob["size"]

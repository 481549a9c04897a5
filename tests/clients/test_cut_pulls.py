"""A pull whose connection breaks in the middle of a layer: the client ends up with the right bytes."""

from __future__ import annotations

import pytest

from ipfsreg.testing.clients.interface import ContainerClient
from ipfsreg.testing.clients.known import IMAGE_CLIENTS, Known
from ipfsreg.testing.clients.programs import ClientFailed
from ipfsreg.testing.clients.table import Column
from ipfsreg.testing.cut_proxy import CutProxy, open_cut_proxy
from ipfsreg.testing.oci_images import ImageLayout

from .conftest import Clients, Swarm

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

LAYER_BYTES = 12_000_000
CUT_AFTER_BYTES = 4_000_000


@pytest.mark.parametrize("known", IMAGE_CLIENTS, ids=lambda known: known.name)
def test_a_pull_cut_in_the_middle_of_a_layer_ends_with_the_right_bytes(
    known: Known[ContainerClient], swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    tool, repository = clients[known], f"cut/{IMAGE_CLIENTS.index(known)}"
    pushed = tool.push(images["one large"], f"{swarm.alice.http}/{repository}:1.0")
    swarm.bob.wait_manifest(repository, "1.0")
    host, _, port = swarm.bob.http.partition(":")
    with open_cut_proxy((host, int(port)), after_bytes=CUT_AFTER_BYTES) as proxy:
        reference = f"{proxy.http}/{repository}:1.0"
        digests = _pull_and_pull_again(tool, reference, proxy)
    assert pushed in digests
    assert proxy.cuts == 1
    rest = [asked for asked in proxy.asked if asked.start]
    if known.resumes:
        assert [asked.method for asked in rest] == ["GET"]
        assert CUT_AFTER_BYTES // 2 < rest[0].start < LAYER_BYTES
    clients.shown(known, Column.CUT)
    tool.forget(reference)


def _pull_and_pull_again(tool: ContainerClient, reference: str, proxy: CutProxy) -> frozenset[str]:
    """As a person does whose pull has failed."""
    try:
        return tool.pull(reference)
    except ClientFailed:
        assert proxy.cuts == 1
        return tool.pull(reference)

"""What is no image: charts, what is attached to an image, signatures."""

from __future__ import annotations

import httpx
import pytest

from ipfsreg.oci.media_types import OCI_INDEX
from ipfsreg.testing.clients.copying import Oras
from ipfsreg.testing.clients.known import COSIGN, HELM, ORAS
from ipfsreg.testing.clients.table import Column
from ipfsreg.testing.daemons import wait_until
from ipfsreg.testing.oci_images import ImageLayout

from .conftest import Clients, Swarm

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]


def test_helm_pulls_from_bob_the_chart_it_pushed_to_alice(swarm: Swarm, clients: Clients) -> None:
    helm = clients[HELM]
    chart = helm.package("demo", "0.1.0")
    pushed = helm.push(chart, f"{swarm.alice.http}/charts")
    assert swarm.bob.wait_manifest("charts/demo", "0.1.0") == pushed
    assert helm.pull(f"{swarm.bob.http}/charts", "demo", "0.1.0") == chart.read_bytes()
    assert "description: A chart for tests." in helm.show(f"{swarm.bob.http}/charts", "demo", "0.1.0")


def test_helm_finds_the_newest_version_by_the_tags(swarm: Swarm, clients: Clients) -> None:
    helm = clients[HELM]
    for version in ("1.2.0", "1.10.0", "2.0.0"):
        helm.push(helm.package("many", version), f"{swarm.alice.http}/charts")
        swarm.bob.wait_manifest("charts/many", version)
    assert "version: 1.10.0" in helm.show(f"{swarm.bob.http}/charts", "many", "^1")
    clients.shown(HELM, Column.MORE)


def attached(oras: Oras, reference: str, digest: str) -> dict[str, str]:
    """What *oras* discovers, as soon as *digest* is among it: it comes to another node a moment later."""

    def found() -> dict[str, str] | None:
        artifacts = oras.discover(reference)
        return artifacts if digest in artifacts else None

    artifacts: dict[str, str] = wait_until(found, f"{digest} is attached to {reference}")
    return artifacts


def test_oras_discovers_at_bob_what_was_attached_at_alice(
    swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    oras = clients[ORAS]
    oras.push(images["multi-layer"], f"{swarm.alice.http}/artifacts/app:1.0")
    sbom = oras.attach(f"{swarm.alice.http}/artifacts/app:1.0", "application/vnd.example.sbom", b"what is inside\n")
    swarm.bob.wait_manifest("artifacts/app", "1.0")
    at_bob = f"{swarm.bob.http}/artifacts/app"
    assert attached(oras, f"{at_bob}:1.0", sbom) == {sbom: "application/vnd.example.sbom"}
    assert oras.pull_file(f"{at_bob}@{sbom}") == b"what is inside\n"

    note = oras.attach(f"{at_bob}:1.0", "text/x-note", b"a note\n")
    assert set(attached(oras, f"{swarm.alice.http}/artifacts/app:1.0", note)) == {sbom, note}
    assert set(oras.discover(f"{at_bob}:1.0", "text/x-note")) == {note}
    # Referrers as the specification has them, not the tag that clients make where a registry lacks them.
    assert httpx.get(swarm.bob.url("/v2/artifacts/app/tags/list")).json()["tags"] == ["1.0"]
    clients.shown(ORAS, Column.MORE)


def test_cosign_verifies_at_bob_what_was_signed_at_alice(
    swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    cosign = clients[COSIGN]
    pushed = clients[ORAS].push(images["multi-layer"], f"{swarm.alice.http}/signed/app:1.0")
    swarm.bob.wait_manifest("signed/app", "1.0")
    cosign.make_keys("ours")
    cosign.make_keys("others")
    at_bob = f"{swarm.bob.http}/signed/app@{pushed}"
    assert not cosign.verify(at_bob, "ours")

    cosign.sign(f"{swarm.alice.http}/signed/app@{pushed}", "ours")
    wait_until(lambda: clients[ORAS].discover(at_bob), "the signature is at bob")
    assert cosign.verify(at_bob, "ours")
    assert not cosign.verify(at_bob, "others")

    referrers = httpx.get(swarm.bob.url(f"/v2/signed/app/referrers/{pushed}"), headers={"Accept": OCI_INDEX}).json()
    assert len(referrers["manifests"]) == 1
    assert httpx.get(swarm.bob.url("/v2/signed/app/tags/list")).json()["tags"] == ["1.0"]
    clients.shown(COSIGN, Column.MORE)


def test_a_signature_does_not_hold_for_another_image(
    swarm: Swarm, clients: Clients, images: dict[str, ImageLayout]
) -> None:
    cosign, oras = clients[COSIGN], clients[ORAS]
    oras.push(images["multi-layer"], f"{swarm.alice.http}/signed/two:1.0")
    other = oras.push(images["multi-arch"], f"{swarm.alice.http}/signed/two:2.0")
    cosign.make_keys("theirs")
    cosign.sign(f"{swarm.alice.http}/signed/two:2.0@{other}", "theirs")
    assert cosign.verify(f"{swarm.alice.http}/signed/two:2.0", "theirs")
    assert not cosign.verify(f"{swarm.alice.http}/signed/two:1.0", "theirs")

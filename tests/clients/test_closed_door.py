"""Every client at nodes with a certificate of a private authority that let nobody in without a login.

Nodes and clients are on machines of their own: clients treat loopback as a place where nothing need be checked. One
node asks for the password with every request, the other for a token of its token service.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import httpx
import pytest

from ipfsreg.testing.clients.interface import ContainerClient, RegistryClient
from ipfsreg.testing.clients.known import COSIGN, HELM, IMAGE_CLIENTS, ORAS, Known
from ipfsreg.testing.clients.programs import ClientFailed
from ipfsreg.testing.clients.table import Column
from ipfsreg.testing.closed import ClosedDoor, make_closed_door
from ipfsreg.testing.daemons import HTTP_PORT, Cluster, Daemon, wait_until
from ipfsreg.testing.namespaces import Machine, open_lan, unavailable
from ipfsreg.testing.oci_images import ImageLayout

from .conftest import SHOWN, Clients, complaints, state_directory

pytestmark = [pytest.mark.clients, pytest.mark.timeout(300)]

USER = "alice"


@dataclass(frozen=True)
class ClosedSwarm:
    """Where images are pushed to and pulled from."""

    by_password: Daemon
    by_token: Daemon
    door: ClosedDoor
    clients: Clients

    @property
    def password(self) -> str:
        """Of the user who may push."""
        return self.door.users[USER]

    def login(self, client: RegistryClient) -> None:
        """At both nodes."""
        for node in (self.by_password, self.by_token):
            client.login(node.http, USER, self.password)

    def wait_manifest(self, node: Daemon, repository: str, reference: str) -> str:
        """The digest of a manifest, as soon as *node* has it."""

        def head() -> str | None:
            with node.inside():
                answer = httpx.head(
                    node.url(f"/v2/{repository}/manifests/{reference}"),
                    auth=(USER, self.password),
                    verify=self.door.authority.client_context(),
                )
            return answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None

        return str(wait_until(head, f"{node.name} has {repository}:{reference}"))


def start(cluster: Cluster, machine: Machine, door: ClosedDoor, *, tokens: bool, join: list[Daemon]) -> Daemon:
    settings = door.environment(tokens=tokens, anonymous_pull=False) | {
        "IPFSREG_HTTP_LISTEN": f"{machine.address}:{HTTP_PORT}",
        # Wrong passwords are what some of these tests are about.
        "IPFSREG_AUTH_FAILED_LOGINS_PER_MIN": "0",
    }
    return cluster.start(machine.name, join, machine, **settings)


@pytest.fixture(scope="module")
def closed(
    tmp_path_factory: pytest.TempPathFactory, images: dict[str, ImageLayout], pytestconfig: pytest.Config
) -> Iterator[ClosedSwarm]:
    if why := unavailable():
        pytest.skip(why)
    door = make_closed_door(tmp_path_factory.mktemp("door"))
    with (
        open_lan(["alice", "bob", "client"]) as lan,
        Cluster(tmp_path_factory.mktemp("swarm")) as cluster,
        state_directory() as directory,
        ExitStack() as stack,
    ):
        door.authority.issue("server", [machine.address for machine in lan.machines])
        by_password = start(cluster, lan["alice"], door, tokens=False, join=[])
        by_token = start(cluster, lan["bob"], door, tokens=True, join=[by_password])
        certificates = tmp_path_factory.mktemp("certs.d")
        for node in (by_password, by_token):
            trusted = door.trust_directories(node.http, certificates)
        place = {
            "machine": lan["client"],
            "authority": trusted / "ca.crt",
            "mounts": {certificates: "/etc/docker/certs.d"},
        }
        readable = next(iter(images.values())).path.parent
        clients = Clients(stack, directory, (readable, certificates), pytestconfig.stash[SHOWN], **place)
        yield ClosedSwarm(by_password, by_token, door, clients)
        assert complaints(by_password, by_token) == []


def login_and_pull(client: ContainerClient, reference: str, password: str) -> None:
    """Some ask the registry when they log in, some not before they pull."""
    client.login(reference.partition("/")[0], USER, password)
    client.pull(reference)


@pytest.mark.parametrize("known", IMAGE_CLIENTS, ids=lambda known: known.name)
def test_a_client_that_has_logged_in_pushes_and_pulls_with_password_and_token(
    known: Known[ContainerClient], closed: ClosedSwarm, images: dict[str, ImageLayout]
) -> None:
    client, image = closed.clients[known], images["multi-layer"]
    one, other = (f"closed/{IMAGE_CLIENTS.index(known)}/{name}" for name in ("one", "other"))
    for node in (closed.by_password, closed.by_token):
        with pytest.raises(ClientFailed):
            client.push(image, f"{node.http}/{one}:1.0")
    closed.login(client)
    pushed = client.push(image, f"{closed.by_password.http}/{one}:1.0")
    assert closed.wait_manifest(closed.by_token, one, "1.0") == pushed
    assert pushed in client.pull(f"{closed.by_token.http}/{one}:1.0")
    client.forget(f"{closed.by_token.http}/{one}:1.0")

    pushed = client.push(image, f"{closed.by_token.http}/{other}:1.0")
    assert closed.wait_manifest(closed.by_password, other, "1.0") == pushed
    assert pushed in client.pull(f"{closed.by_password.http}/{other}:1.0")
    client.forget(f"{closed.by_password.http}/{other}:1.0")

    for node in (closed.by_password, closed.by_token):
        with pytest.raises(ClientFailed):
            login_and_pull(client, f"{node.http}/{one}:1.0", "a wrong password")
    closed.clients.shown(known, Column.PASSWORD)
    closed.clients.shown(known, Column.TOKEN)


def test_helm_pushes_and_pulls_charts_with_password_and_token(closed: ClosedSwarm) -> None:
    helm = closed.clients[HELM]
    chart = helm.package("demo", "0.1.0")
    with pytest.raises(ClientFailed):
        helm.push(chart, f"{closed.by_password.http}/charts")
    closed.login(helm)
    for version, node, other in (
        ("1.0.0", closed.by_password, closed.by_token),
        ("2.0.0", closed.by_token, closed.by_password),
    ):
        chart = helm.package("demo", version)
        pushed = helm.push(chart, f"{node.http}/charts")
        assert closed.wait_manifest(other, "charts/demo", version) == pushed
        assert helm.pull(f"{other.http}/charts", "demo", version) == chart.read_bytes()
    closed.clients.shown(HELM, Column.PASSWORD)
    closed.clients.shown(HELM, Column.TOKEN)


def test_cosign_signs_and_verifies_with_password_and_token(closed: ClosedSwarm, images: dict[str, ImageLayout]) -> None:
    cosign, oras = closed.clients[COSIGN], closed.clients[ORAS]
    closed.login(oras)
    pushed = oras.push(images["multi-layer"], f"{closed.by_password.http}/closed/signed:1.0")
    closed.wait_manifest(closed.by_token, "closed/signed", "1.0")
    at_one, at_other = (f"{node.http}/closed/signed@{pushed}" for node in (closed.by_password, closed.by_token))
    for keys in ("first", "second"):
        cosign.make_keys(keys)
    with pytest.raises(ClientFailed):
        cosign.sign(at_one, "first")
    closed.login(cosign)
    cosign.sign(at_one, "first")
    wait_until(lambda: len(oras.discover(at_other)) == 1, "the signature has come")
    assert cosign.verify(at_other, "first")
    assert not cosign.verify(at_other, "second")
    cosign.sign(at_other, "second")
    wait_until(lambda: len(oras.discover(at_one)) == 2, "the other signature has come")
    assert cosign.verify(at_one, "second")
    closed.clients.shown(COSIGN, Column.PASSWORD)
    closed.clients.shown(COSIGN, Column.TOKEN)

"""Every client the tests know: what it is, where it comes from, how it is opened."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from ipfsreg.testing.clients.artifacts import Cosign, Helm
from ipfsreg.testing.clients.containerd import Containerd, open_containerd
from ipfsreg.testing.clients.copying import Crane, Oras, Regctl
from ipfsreg.testing.clients.daemonless import Buildah, Podman, Skopeo
from ipfsreg.testing.clients.docker import Docker, open_docker
from ipfsreg.testing.clients.interface import ContainerClient, RegistryClient
from ipfsreg.testing.clients.programs import DEBIAN_12, GO_MODULES, NEWER_DEBIAN, Origin, Place

C = TypeVar("C", bound=RegistryClient, covariant=True)


@dataclass(frozen=True, slots=True)
class Known(Generic[C]):
    """A client in one version."""

    program: str
    origin: Origin
    programs: tuple[str, ...]
    open: Callable[[Place], AbstractContextManager[C]]
    variant: str = ""
    """What tells it from another one of the same program and origin."""
    pushes_indexes: bool = True
    """Whether it can push an image of several architectures as one."""
    resumes: bool = True
    """Whether it asks for the rest of a layer whose connection broke; others fetch it anew, some only when told to."""

    @property
    def name(self) -> str:
        """As the table has it, and the IDs of tests. Without the version: what Debian has changes from day to day."""
        return " ".join(filter(None, (self.program, self.variant, f"({self.origin.name})")))

    def missing(self) -> str | None:
        """Why it cannot run here, or None."""
        if os.geteuid() != 0:
            return "container clients need root"
        absent = self.origin.missing(self.programs)
        return f"{self.name} needs {', '.join(absent)}: scripts/setup --dev installs it" if absent else None


def _plain(make: Callable[[Place], C]) -> Callable[[Place], AbstractContextManager[C]]:
    """Of a client without a daemon."""
    return lambda place: nullcontext(make(place))


_graphdriver = partial(open_docker, containerd_store=False)
# docker 28 asks the token service, unlike the registry, with the system's authorities alone; 29 does not.
_containerd_store = partial(open_docker, containerd_store=True, needs_system_trust=True)
# The client's module cannot be built by itself.
_newest = partial(open_docker, containerd_store=True, cli=NEWER_DEBIAN)
_DOCKER = ("docker", "dockerd", "containerd", "runc")

DOCKERS: tuple[Known[Docker], ...] = (
    Known("docker", DEBIAN_12, _DOCKER, _graphdriver, "graphdriver", pushes_indexes=False),
    Known("docker", NEWER_DEBIAN, _DOCKER, _graphdriver, "graphdriver", pushes_indexes=False),
    Known("docker", NEWER_DEBIAN, _DOCKER, _containerd_store, "containerd store"),
    Known("docker", GO_MODULES, ("dockerd", "containerd"), _newest, "containerd store"),
)
CONTAINERDS: tuple[Known[Containerd], ...] = tuple(
    Known("containerd", origin, ("containerd", "ctr"), open_containerd)
    for origin in (DEBIAN_12, NEWER_DEBIAN, GO_MODULES)
)
ORAS = Known("oras", GO_MODULES, ("oras",), _plain(Oras), resumes=False)
IMAGE_CLIENTS: tuple[Known[ContainerClient], ...] = (
    *DOCKERS,
    *CONTAINERDS,
    Known("podman", DEBIAN_12, ("podman",), _plain(Podman), resumes=False),
    Known("podman", NEWER_DEBIAN, ("podman",), _plain(Podman)),
    Known("buildah", DEBIAN_12, ("buildah",), _plain(Buildah), resumes=False),
    Known("buildah", NEWER_DEBIAN, ("buildah",), _plain(Buildah)),
    Known("skopeo", DEBIAN_12, ("skopeo",), _plain(Skopeo), resumes=False),
    Known("skopeo", NEWER_DEBIAN, ("skopeo",), _plain(Skopeo)),
    Known("crane", GO_MODULES, ("crane",), _plain(Crane), resumes=False),
    Known("regctl", GO_MODULES, ("regctl",), _plain(Regctl)),
    ORAS,
)
# podman and buildah start a process or two for every layer, ten seconds for a hundred; they copy as skopeo does.
MANY_LAYERS: tuple[Known[ContainerClient], ...] = tuple(
    known
    for known in IMAGE_CLIENTS
    if known.program not in ("podman", "buildah") and (known.program, known.origin) != ("docker", DEBIAN_12)
)
"""Those that push and pull an image of a hundred layers in the tests."""
HELM: Known[Helm] = Known("helm", GO_MODULES, ("helm",), _plain(Helm))
COSIGN: Known[Cosign] = Known("cosign", NEWER_DEBIAN, ("cosign",), _plain(Cosign))
KNOWN: tuple[Known[RegistryClient], ...] = (*IMAGE_CLIENTS, HELM, COSIGN)
"""All of them, in the order of the table."""

"""What every client can do for a test."""

from __future__ import annotations

import re
from typing import Protocol

from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.oci_images import ImageLayout

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_NUMBER = re.compile(r"\bv?(\d+\.\d+\.\d+)\b")


class RegistryClient(Protocol):
    """A tool that talks to registries."""

    place: Place

    def version(self) -> str:
        """As `1.2.3`."""

    def login(self, address: str, user: str, password: str) -> None:
        """Give these whenever the registry at *address* asks for them. Raises ClientFailed, some not before a push."""


class ContainerClient(RegistryClient, Protocol):
    """A tool that pushes and pulls images. References are `ADDRESS:PORT/repository:tag`."""

    def push(self, image: ImageLayout, reference: str) -> str:
        """Push *image*; return the digest the tool names it by in the registry."""

    def pull(self, reference: str) -> frozenset[str]:
        """Pull the image and, where the tool does so, unpack it; return the digests it names it by.

        Of an index it takes what it takes without being told: everything, or what fits this machine. Some then name
        the index and the manifest.
        """

    def forget(self, reference: str) -> None:
        """Remove the image with its layers, so that the next pull asks for all of them."""


def number_in(output: str) -> str:
    """The first version number in what a tool says of itself."""
    found = _NUMBER.search(output)
    assert found, f"no version in {output!r}"
    return found[1]


def last_digest(output: str) -> str:
    """The last digest in what a tool prints."""
    found = _DIGEST.findall(output)
    assert found, f"no digest in {output!r}"
    return str(found[-1])

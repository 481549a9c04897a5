"""crane, regctl and oras, which copy images between a layout and a registry: whole indexes, nothing unpacked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ipfsreg.testing.clients.interface import number_in
from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.oci_images import ImageLayout


def _digest_of_layout(layout: Path, name: str | None = None) -> str:
    """Of what a layout has under this name; of the one thing it has."""
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    named = [one for one in entries if one.get("annotations", {}).get("org.opencontainers.image.ref.name") == name]
    assert len(named) == 1, entries
    return str(named[0]["digest"])


class _Copier:
    """Pulls into an OCI image layout."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._pulled = place.directory / "pulled"

    def _emptied(self) -> Path:
        shutil.rmtree(self._pulled, ignore_errors=True)
        return self._pulled

    def forget(self, reference: str) -> None:
        shutil.rmtree(self._pulled, ignore_errors=True)


class Crane(_Copier):
    """crane, of go-containerregistry."""

    def version(self) -> str:
        return number_in(self.place.run("crane", "version"))

    def _crane(self, *arguments: str | Path) -> str:
        # The library takes loopback and private addresses for plain HTTP ones by itself, and TLS where it is spoken.
        # It has no option for an authority.
        trust = {"SSL_CERT_FILE": str(self.place.authority)} if self.place.authority else {}
        return self.place.run("crane", *arguments, environment=trust)

    def login(self, address: str, user: str, password: str) -> None:
        self.place.run("crane", "auth", "login", address, "-u", user, "--password-stdin", stdin=password)

    def push(self, image: ImageLayout, reference: str) -> str:
        if len(image.manifests) > 1:
            # What it pushes is the layout's own index.json, which names ours.
            self._crane("push", "--index", image.path, f"{reference}-layout")
            self._crane("tag", f"{reference.rpartition(':')[0]}@{image.digest}", reference.rpartition(":")[2])
            return str(image.digest)
        pushed = self._crane("push", image.path, reference)
        return pushed.strip().rpartition("@")[2]

    def pull(self, reference: str) -> frozenset[str]:
        self._crane("pull", "--format=oci", reference, self._emptied())
        self._crane("validate", "--remote", reference)
        return frozenset({_digest_of_layout(self._pulled)})


class Regctl(_Copier):
    """regctl, of regclient."""

    def version(self) -> str:
        return number_in(self.place.run("regctl", "version", "--format", "{{.VCSTag}}"))

    def _regctl(self, *arguments: str | Path, stdin: str | None = None) -> str:
        settings = {"REGCTL_CONFIG": str(self.place.directory / "regctl.json")}
        return self.place.run("regctl", *arguments, stdin=stdin, environment=settings)

    def _introduce(self, address: str) -> None:
        authority = self.place.authority
        how = ["--cacert", authority.read_text()] if authority else ["--tls=disabled"]
        self._regctl("registry", "set", address, "--skip-check", *how)

    def login(self, address: str, user: str, password: str) -> None:
        self._introduce(address)
        self._regctl("registry", "login", address, "-u", user, "--pass-stdin", stdin=password)

    def push(self, image: ImageLayout, reference: str) -> str:
        self._introduce(reference.partition("/")[0])
        self._regctl("image", "copy", f"ocidir://{image.path}:{image.tag}", reference)
        return self._regctl("image", "digest", reference).strip()

    def pull(self, reference: str) -> frozenset[str]:
        self._introduce(reference.partition("/")[0])
        self._regctl("image", "copy", reference, f"ocidir://{self._emptied()}:pulled")
        return frozenset({_digest_of_layout(self._pulled, "pulled")})


class Oras(_Copier):
    """oras: images, and what is attached to them."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._auth = place.directory / "oras.json"

    def version(self) -> str:
        return number_in(self.place.run("oras", "version"))

    def _trust(self, side: str = "") -> list[str]:
        authority = self.place.authority
        auth = [f"--{side}registry-config={self._auth}"]
        return [*auth, f"--{side}ca-file={authority}"] if authority else [*auth, f"--{side}plain-http"]

    def login(self, address: str, user: str, password: str) -> None:
        self.place.run("oras", "login", *self._trust(), "-u", user, "--password-stdin", address, stdin=password)

    def push(self, image: ImageLayout, reference: str) -> str:
        source = f"{image.path}:{image.tag}"
        self.place.run("oras", "cp", "--no-tty", "--from-oci-layout", *self._trust("to-"), source, reference)
        return self.place.run("oras", "resolve", *self._trust(), reference).strip()

    def pull(self, reference: str) -> frozenset[str]:
        target = f"{self._emptied()}:pulled"
        self.place.run("oras", "cp", "--no-tty", *self._trust("from-"), "--to-oci-layout", reference, target)
        return frozenset({_digest_of_layout(self._pulled, "pulled")})

    def attach(self, reference: str, artifact_type: str, content: bytes) -> str:
        """Attach a file of *content* to what *reference* names; return the digest of the artifact."""
        # oras refuses a path outside of where it runs.
        file = self.place.directory / "attached.txt"
        file.write_bytes(content)
        how = ["--no-tty", "--disable-path-validation", "--artifact-type", artifact_type, "--format", "json"]
        answer = self.place.run("oras", "attach", *self._trust(), *how, reference, f"{file}:text/plain")
        return str(json.loads(answer)["digest"])

    def discover(self, reference: str, artifact_type: str | None = None) -> dict[str, str]:
        """The artifacts attached to it: their digests, with their types."""
        kind = ["--artifact-type", artifact_type] if artifact_type else []
        answer = self.place.run("oras", "discover", *self._trust(), *kind, "--format", "json", reference)
        return {one["digest"]: one["artifactType"] for one in json.loads(answer).get("referrers") or []}

    def pull_file(self, reference: str) -> bytes:
        """The content of an artifact of one file."""
        target = self._emptied()
        target.mkdir()
        self.place.run("oras", "pull", "--no-tty", "--allow-path-traversal", *self._trust(), "-o", target, reference)
        return (self.place.directory / "attached.txt").read_bytes()

"""skopeo, podman and buildah, which share their way of talking to a registry."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ipfsreg.oci.digest import Digest
from ipfsreg.testing.clients.interface import number_in
from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.oci_images import ImageLayout


class Skopeo:
    """skopeo: copies whole indexes, unpacks nothing."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self._auth = place.directory / "auth.json"

    def version(self) -> str:
        return number_in(self.place.run("skopeo", "--version"))

    def _trust(self, side: str) -> list[str]:
        authority = self.place.authority
        return [f"--{side}cert-dir={authority.parent}"] if authority else [f"--{side}tls-verify=false"]

    def login(self, address: str, user: str, password: str) -> None:
        command = ["skopeo", "login", "--authfile", str(self._auth), *self._trust(""), "-u", user]
        self.place.run(*command, "--password-stdin", address, stdin=password)

    def _copy(self, *arguments: str) -> None:
        auth = [f"--authfile={self._auth}"] if self._auth.exists() else []
        # The first times it waits for one, two and four seconds.
        self.place.run("skopeo", "copy", "--all", "--retry-times=3", *auth, *arguments)

    def push(self, image: ImageLayout, reference: str) -> str:
        # It may push a layer it remembers under another compression, and with it another manifest: ask it what it did.
        pushed = self.place.directory / "pushed"
        source = f"oci:{image.path}:{image.tag}"
        self._copy(f"--digestfile={pushed}", *self._trust("dest-"), source, f"docker://{reference}")
        return pushed.read_text().strip()

    def pull(self, reference: str) -> frozenset[str]:
        target = self.place.directory / "pulled"
        shutil.rmtree(target, ignore_errors=True)
        # A directory keeps a Docker manifest as it is; an OCI layout would hold a converted one.
        self._copy(*self._trust("src-"), f"docker://{reference}", f"dir:{target}")
        return frozenset({str(Digest.of((target / "manifest.json").read_bytes()))})

    def forget(self, reference: str) -> None:
        shutil.rmtree(self.place.directory / "pulled", ignore_errors=True)


class _WithStorage:
    """podman and buildah: images in a storage of theirs, unpacked by the vfs driver."""

    _program: str

    def __init__(self, place: Place) -> None:
        self.place = place
        storage = ("--root", place.directory / "root", "--runroot", place.directory / "run", "--storage-driver", "vfs")
        self._command: tuple[str | Path, ...] = (self._program, *storage)
        self._auth = place.directory / "auth.json"

    def version(self) -> str:
        return number_in(self.place.run(self._program, "--version"))

    def _trust(self) -> list[str]:
        authority = self.place.authority
        trust = [f"--cert-dir={authority.parent}"] if authority else ["--tls-verify=false"]
        return [*trust, f"--authfile={self._auth}"] if self._auth.exists() else trust

    def login(self, address: str, user: str, password: str) -> None:
        if not self._auth.exists():
            self._auth.write_text("{}")
        command = [*self._command, "login", *self._trust(), "-u", user, "--password-stdin", address]
        self.place.run(*command, stdin=password)

    def push(self, image: ImageLayout, reference: str) -> str:
        source, target = f"oci:{image.path}:{image.tag}", f"docker://{reference}"
        digest_file = self.place.directory / "pushed"
        note = ("--digestfile", digest_file)
        if len(image.manifests) > 1:
            self.place.run(*self._command, "manifest", "create", "several")
            try:
                self.place.run(*self._command, "manifest", "add", "--all", "several", source)
                self.place.run(*self._command, "manifest", "push", "--all", *self._trust(), *note, "several", target)
            finally:
                self.place.run(*self._command, "manifest", "rm", "several")
        else:
            loaded = self.place.run(*self._command, "pull", "-q", source).split()[-1]
            try:
                self.place.run(*self._command, "push", *self._trust(), *note, loaded, target)
            finally:
                self.place.run(*self._command, "rmi", "-f", loaded)
        return digest_file.read_text().strip()

    def forget(self, reference: str) -> None:
        self.place.run(*self._command, "rmi", "-f", reference)


class Podman(_WithStorage):
    """podman."""

    _program = "podman"

    def pull(self, reference: str) -> frozenset[str]:
        self.place.run(*self._command, "pull", "-q", *self._trust(), reference)
        listed = json.loads(self.place.run(*self._command, "image", "inspect", reference))
        return frozenset(str(one).rpartition("@")[2] for one in listed[0]["RepoDigests"])


class Buildah(_WithStorage):
    """buildah."""

    _program = "buildah"

    def pull(self, reference: str) -> frozenset[str]:
        self.place.run(*self._command, "pull", "-q", *self._trust(), reference)
        listed = json.loads(self.place.run(*self._command, "images", "--json", reference))
        return frozenset({str(listed[0]["digest"])})

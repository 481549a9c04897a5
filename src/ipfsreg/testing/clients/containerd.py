"""containerd and its `ctr`, told by hosts.toml where a registry is."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ipfsreg.testing.clients.interface import last_digest, number_in
from ipfsreg.testing.clients.programs import Place
from ipfsreg.testing.oci_images import ImageLayout


class Containerd:
    """containerd and `ctr`."""

    def __init__(self, place: Place, socket: Path) -> None:
        self.place = place
        self._ctr = ("ctr", "-a", socket)
        self._hosts = place.directory / "certs.d"
        self._users: dict[str, str] = {}

    def version(self) -> str:
        return number_in(self.place.run("containerd", "--version"))

    def login(self, address: str, user: str, password: str) -> None:
        self._users[address] = f"{user}:{password}"

    def mirror(self, name: str, *addresses: str) -> None:
        """From now on images of the registry *name* are asked for at *addresses*, one after the other."""
        scheme = "https" if self.place.authority else "http"
        trust = f'  ca = "{self.place.authority}"\n' if self.place.authority else ""
        hosts = [
            f'[host."{scheme}://{address}"]\n  capabilities = ["pull", "resolve", "push"]\n{trust}'
            for address in addresses
        ]
        (self._hosts / name).mkdir(parents=True, exist_ok=True)
        (self._hosts / name / "hosts.toml").write_text(f'server = "{scheme}://{name}"\n\n' + "\n".join(hosts))

    def _how(self, reference: str) -> list[str]:
        address = reference.partition("/")[0]
        if not (self._hosts / address).exists():
            self.mirror(address, address)
        user = ["--user", self._users[address]] if address in self._users else []
        return ["--hosts-dir", str(self._hosts), *user]

    def push(self, image: ImageLayout, reference: str) -> str:
        archive = self.place.directory / "import.tar"
        subprocess.run(["tar", "-C", image.path, "-cf", archive, "--exclude", "./manifest.json", "."], check=True)
        several = ["--all-platforms"] if len(image.manifests) > 1 else []
        imported = self.place.run(
            *self._ctr, "image", "import", *several, "--index-name", reference, "--digests=false", archive
        )
        archive.unlink()
        names = [line.split()[0] for line in self.place.run(*self._ctr, "image", "ls").splitlines()[1:]]
        try:
            named = next((name for name in names if name.endswith(f":{image.tag}") and name != reference), None)
            assert named is not None, f"ctr imported {imported!r} and lists {names}"
            self.place.run(*self._ctr, "image", "push", *self._how(reference), reference, named)
        finally:
            self.place.run(*self._ctr, "image", "rm", "--sync", *names)
        return str(image.digest)

    def pull(self, reference: str) -> frozenset[str]:
        self.place.run(*self._ctr, "image", "pull", *self._how(reference), reference)
        lines = self.place.run(*self._ctr, "image", "ls", f"name=={reference}").splitlines()[1:]
        return frozenset({last_digest(lines[0])})

    def forget(self, reference: str) -> None:
        self.place.run(*self._ctr, "image", "rm", "--sync", reference)


@contextmanager
def open_containerd(place: Place) -> Iterator[Containerd]:
    """A containerd for as long as the block lasts."""
    directory = place.directory
    config, socket = directory / "config.toml", directory / "c.sock"
    # CRI wants a network and opt a writable /opt; tests need neither.
    config.write_text(
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
    )
    command: list[str | Path] = ["containerd", "--config", config, "--root", directory / "root"]
    command += ["--state", directory / "state", "--address", socket]
    with place.daemon(*command, ready=socket):
        yield Containerd(place, socket)

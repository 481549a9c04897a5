"""docker with a dockerd of its own, in both of its stores."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from ipfsreg.testing.clients.interface import last_digest, number_in
from ipfsreg.testing.clients.programs import TIMEOUT_S, ClientFailed, Origin, Place
from ipfsreg.testing.daemons import wait_until
from ipfsreg.testing.oci_images import ImageLayout


class Docker:
    """docker and its daemon."""

    def __init__(self, place: Place, cli: Place, socket: Path) -> None:
        """*place*: the daemon's; *cli*: where `docker` runs."""
        self.place = place
        self._cli = cli
        self._docker = ("docker", "-H", f"unix://{socket}")

    def version(self) -> str:
        if self.place.origin.folder:
            return self.place.origin.module_version("dockerd")
        return number_in(self.ask_version())

    def ask_version(self) -> str:
        """What the daemon says. Raises ClientFailed."""
        return self._cli.run(*self._docker, "version", "--format", "{{.Server.Version}}")

    def login(self, address: str, user: str, password: str) -> None:
        self._cli.run(*self._docker, "login", "-u", user, "--password-stdin", address, stdin=password)

    def push(self, image: ImageLayout, reference: str) -> str:
        archive = subprocess.Popen(["tar", "-C", image.path, "-c", "."], stdout=subprocess.PIPE)
        with archive:
            loaded = subprocess.run(
                self._cli.command(*self._docker, "load", "-q"),
                stdin=archive.stdout,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                env=self._cli.environment(),
            )
        if loaded.returncode:
            raise ClientFailed(f"docker load: {loaded.stderr}")
        source = loaded.stdout.strip().split()[-1]
        self._cli.run(*self._docker, "tag", source, reference)
        try:
            return last_digest(self._cli.run(*self._docker, "push", reference))
        finally:
            self._cli.run(*self._docker, "rmi", "-f", source, reference)

    def pull(self, reference: str) -> frozenset[str]:
        return frozenset({last_digest(self._cli.run(*self._docker, "pull", reference))})

    def run_image(self, reference: str) -> str:
        """Run the image's command; return what it prints."""
        return self._cli.run(*self._docker, "run", "--rm", "--network", "none", reference)

    def forget(self, reference: str) -> None:
        self._cli.run(*self._docker, "rmi", "-f", reference)


@contextmanager
def open_docker(
    place: Place, *, containerd_store: bool, needs_system_trust: bool = False, cli: Origin | None = None
) -> Iterator[Docker]:
    """A dockerd for as long as the block lasts, without any network of its own.

    *needs_system_trust*: `certs.d` is not enough for it. *cli*: of `docker`, if another one.
    """
    directory = place.directory
    socket, config = directory / "d.sock", directory / "daemon.json"
    driver = {} if containerd_store else {"storage-driver": "overlay2"}
    if needs_system_trust and place.authority:
        place = replace(place, variables={"SSL_CERT_FILE": str(place.authority)})
    config.write_text(json.dumps({"features": {"containerd-snapshotter": containerd_store}} | driver))
    command: list[str | Path] = ["dockerd", "--config-file", config, "-H", f"unix://{socket}"]
    command += ["--data-root", directory / "data", "--exec-root", directory / "exec", "--pidfile", directory / "pid"]
    command += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
    with place.daemon(*command, ready=socket):
        docker = Docker(place, replace(place, origin=cli or place.origin), socket)
        wait_until(lambda: _answers(docker), "dockerd answers", 60)
        yield docker


def _answers(docker: Docker) -> bool:
    try:
        docker.ask_version()
    except ClientFailed:
        return False
    return True

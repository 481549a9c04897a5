"""Real container tools, each with state of its own, behind one small interface: push a layout, pull a reference.

Debian 12 packages them: `apt-get install docker.io containerd podman skopeo runc crun`. They need root.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from ipfsreg.oci.digest import Digest
from ipfsreg.testing.daemons import wait_until
from ipfsreg.testing.oci_images import ImageLayout

TIMEOUT_S = 300
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class ClientFailed(AssertionError):
    """A tool said no; what it said is in the message."""


class ContainerClient(Protocol):
    """A tool that pushes and pulls images. References are `127.0.0.1:PORT/repository:tag`."""

    name: str
    pushes_indexes: bool
    """Whether it can push an image of several architectures as one."""

    def push(self, image: ImageLayout, reference: str) -> str:
        """Push *image*; return the digest the tool names it by in the registry."""

    def pull(self, reference: str) -> str:
        """Pull and unpack the image (of an index, this machine's architecture); return the digest it was pulled by."""

    def forget(self, reference: str) -> None:
        """Remove the image with its layers, so that the next pull asks for all of them."""


def run(*command: str | Path, environment: Mapping[str, str] | None = None) -> str:
    """Run a tool; return its output. Raises ClientFailed."""
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        env=environment,
    )
    if done.returncode:
        raise ClientFailed(f"{' '.join(map(str, command))}: {done.returncode}\n{done.stdout[-4000:]}")
    return done.stdout


def remote_digest(reference: str) -> str:
    """What the registry says *reference* is, asked with skopeo."""
    answer = json.loads(run("skopeo", "inspect", "--tls-verify=false", "--no-tags", f"docker://{reference}"))
    return str(answer["Digest"])


def _last_digest(output: str) -> str:
    found = _DIGEST.findall(output)
    assert found, f"no digest in {output!r}"
    return str(found[-1])


class Skopeo:
    """skopeo: copies whole indexes, unpacks nothing."""

    name = "skopeo"
    pushes_indexes = True

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def push(self, image: ImageLayout, reference: str) -> str:
        # It may push a layer it remembers under another compression, and with it another manifest: ask it what it did.
        pushed = self._directory / "pushed"
        command = ("skopeo", "copy", "--all", "--dest-tls-verify=false", "--digestfile", pushed)
        run(*command, f"oci:{image.path}:{image.tag}", f"docker://{reference}")
        return pushed.read_text().strip()

    def pull(self, reference: str) -> str:
        target = self._directory / "pulled"
        shutil.rmtree(target, ignore_errors=True)
        # A directory keeps a Docker manifest as it is; an OCI layout would hold a converted one.
        run("skopeo", "copy", "--all", "--src-tls-verify=false", f"docker://{reference}", f"dir:{target}")
        return str(Digest.of((target / "manifest.json").read_bytes()))

    def forget(self, reference: str) -> None:
        shutil.rmtree(self._directory / "pulled", ignore_errors=True)


class Podman:
    """podman with the vfs driver."""

    name = "podman"
    pushes_indexes = True

    def __init__(self, directory: Path) -> None:
        storage = ("--root", directory / "root", "--runroot", directory / "run", "--storage-driver", "vfs")
        self._podman = ("podman", *storage)

    def push(self, image: ImageLayout, reference: str) -> str:
        if len(image.manifests) > 1:
            run(*self._podman, "manifest", "create", "several")
            run(*self._podman, "manifest", "add", "--all", "several", f"oci:{image.path}:{image.tag}")
            target = f"docker://{reference}"
            run(*self._podman, "manifest", "push", "--all", "--tls-verify=false", "several", target)
            run(*self._podman, "manifest", "rm", "several")
            return remote_digest(reference)
        loaded = run(*self._podman, "pull", "-q", f"oci:{image.path}:{image.tag}").split()[-1]
        digest_file = Path(str(self._podman[2])) / "pushed"
        run(*self._podman, "push", "--tls-verify=false", "--digestfile", digest_file, loaded, f"docker://{reference}")
        run(*self._podman, "rmi", "-f", loaded)
        return digest_file.read_text().strip()

    def pull(self, reference: str) -> str:
        run(*self._podman, "pull", "-q", "--tls-verify=false", reference)
        listed = json.loads(run(*self._podman, "image", "inspect", reference))
        # Of an index podman names both it and the platform's manifest.
        wanted = remote_digest(reference)
        repo_digests = [one.rpartition("@")[2] for one in listed[0]["RepoDigests"]]
        return wanted if wanted in repo_digests else repo_digests[0]

    def forget(self, reference: str) -> None:
        run(*self._podman, "rmi", "-f", reference)


class Docker:
    """docker with a dockerd of its own (graphdriver overlay2)."""

    name = "docker"
    pushes_indexes = False

    def __init__(self, socket: Path) -> None:
        # Debian's client beside Debian's daemon: another one on PATH may be too new for it.
        self._docker = ("/usr/bin/docker", "-H", f"unix://{socket}")

    def push(self, image: ImageLayout, reference: str) -> str:
        archive = subprocess.Popen(["tar", "-C", image.path, "-c", "."], stdout=subprocess.PIPE)
        with archive:
            loaded = subprocess.run(
                [*self._docker, "load", "-q"], stdin=archive.stdout, capture_output=True, text=True, timeout=TIMEOUT_S
            )
        if loaded.returncode:
            raise ClientFailed(f"docker load: {loaded.stderr}")
        source = loaded.stdout.strip().split()[-1]
        run(*self._docker, "tag", source, reference)
        pushed = _last_digest(run(*self._docker, "push", reference))
        run(*self._docker, "rmi", "-f", source, reference)
        return pushed

    def pull(self, reference: str) -> str:
        return _last_digest(run(*self._docker, "pull", reference))

    def run_image(self, reference: str) -> str:
        """Run the image's command; return what it prints."""
        return run(*self._docker, "run", "--rm", "--network", "none", reference)

    def forget(self, reference: str) -> None:
        run(*self._docker, "rmi", "-f", reference)


class Containerd:
    """containerd and its `ctr`."""

    name = "containerd"
    pushes_indexes = True

    def __init__(self, socket: Path, directory: Path) -> None:
        self._ctr = ("ctr", "-a", socket)
        self._directory = directory

    def push(self, image: ImageLayout, reference: str) -> str:
        archive = self._directory / "import.tar"
        run("tar", "-C", image.path, "-cf", archive, "--exclude", "./manifest.json", ".")
        several = ["--all-platforms"] if len(image.manifests) > 1 else []
        imported = run(*self._ctr, "image", "import", *several, "--index-name", reference, "--digests=false", archive)
        archive.unlink()
        names = [line.split()[0] for line in run(*self._ctr, "image", "ls").splitlines()[1:]]
        named = next((name for name in names if name.endswith(f":{image.tag}") and name != reference), None)
        assert named is not None, f"ctr imported {imported!r} and lists {names}"
        run(*self._ctr, "image", "push", "--plain-http", reference, named)
        run(*self._ctr, "image", "rm", "--sync", *names)
        return str(image.digest)

    def pull(self, reference: str) -> str:
        run(*self._ctr, "image", "pull", "--plain-http", reference)
        lines = run(*self._ctr, "image", "ls", f"name=={reference}").splitlines()[1:]
        return _last_digest(lines[0])

    def forget(self, reference: str) -> None:
        run(*self._ctr, "image", "rm", "--sync", reference)


@contextmanager
def _process(command: list[str | Path], log: Path, ready: Path) -> Iterator[None]:
    """Run a daemon until the block ends; it is up when *ready* exists and answers."""
    with log.open("w") as output, subprocess.Popen(list(map(str, command)), stdout=output, stderr=output) as process:
        try:
            wait_until(lambda: ready.exists() or process.poll() is not None, f"{command[0]} is up", 60)
            if process.poll() is not None:
                raise ClientFailed(f"{command[0]} ended:\n{log.read_text()[-4000:]}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def open_containerd(directory: Path) -> Iterator[Containerd]:
    """A containerd for as long as the block lasts."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "config.toml"
    # CRI wants a network and opt a writable /opt; tests need neither.
    config.write_text(
        'version = 2\ndisabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
    )
    socket = directory / "c.sock"
    command: list[str | Path] = ["containerd", "--config", config, "--root", directory / "root"]
    command += ["--state", directory / "state", "--address", socket]
    with _process(command, directory / "log", socket):
        yield Containerd(socket, directory)


@contextmanager
def open_docker(directory: Path) -> Iterator[Docker]:
    """A dockerd for as long as the block lasts, without any network of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    socket = directory / "d.sock"
    command: list[str | Path] = ["dockerd", "--data-root", directory / "data", "--exec-root", directory / "exec"]
    command += ["--pidfile", directory / "pid", "-H", f"unix://{socket}", "--storage-driver=overlay2"]
    command += ["--iptables=false", "--ip6tables=false", "--bridge=none", "--ip-forward=false", "--ip-masq=false"]
    with _process(command, directory / "log", socket):
        docker = Docker(socket)
        wait_until(lambda: _answers("/usr/bin/docker", "-H", f"unix://{socket}", "version"), "dockerd answers", 60)
        yield docker


def _answers(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=TIMEOUT_S).returncode == 0


@contextmanager
def open_client(name: str, directory: Path) -> Iterator[ContainerClient]:
    """The client of that name, with state below *directory*."""
    directory.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        if name == "docker":
            yield stack.enter_context(open_docker(directory))
        elif name == "containerd":
            yield stack.enter_context(open_containerd(directory))
        elif name == "podman":
            yield Podman(directory)
        else:
            yield Skopeo(directory)

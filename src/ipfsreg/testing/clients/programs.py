"""Where the programs of a client are, and how they are started there.

A newer Debian's programs lie in a folder with their libraries and run with that folder as root directory. Whatever is
mounted for a program is mounted in a namespace of that process: nothing is left behind when it ends, however it ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from ipfsreg.testing.daemons import wait_until
from ipfsreg.testing.namespaces import Machine

TIMEOUT_S = 300
CACHE = Path(__file__).parents[4] / ".cache" / "clients"

# $1: the root directory, "" for the system's own; then pairs of a folder and the place where the program wants it.
# Also for programs of this system: what dockerd mounts goes when it is killed.
# The bind of the root onto itself makes it a mount point, which pivot_root asks for: dockerd unpacks layers with that.
_ENTER = """
set -e
root=$1
shift
if [ -n "$root" ]; then
    mount --rbind "$root" "$root"
    for place in dev proc sys; do mount --rbind "/$place" "$root/$place"; done
    for place in run tmp var/tmp; do mount -t tmpfs tmpfs "$root/$place"; done
fi
while [ "$1" != -- ]; do
    mkdir -p "$root$2"
    mount --rbind "$1" "$root$2"
    shift 2
done
shift
if [ -n "$root" ]; then cd "$root"; exec chroot . "$@"; fi
exec "$@"
"""


class ClientFailed(AssertionError):
    """A tool said no; what it said is in the message."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Programs of one provenance."""

    name: str
    root: Path | None = None
    """Their root directory, where it is not the system's."""
    folder: Path | None = None
    """Where they are, if not on PATH: they need no libraries."""

    def missing(self, programs: Sequence[str]) -> list[str]:
        """Those of *programs* that are not there."""
        return [program for program in programs if shutil.which(program, path=self._path()) is None]

    def _path(self) -> str:
        # Debian's own programs: what somebody put before them on PATH may be of another version.
        system = [Path("/usr/sbin"), Path("/usr/bin")]
        places = [self.root / place.relative_to("/") for place in system] if self.root else system
        return os.pathsep.join(map(str, [self.folder, *places] if self.folder else places))

    def module_version(self, program: str) -> str:
        """The version of the Go module that *program* was built from."""
        assert self.folder is not None
        return (self.folder.parent / f"{program}.installed").read_text().strip().rpartition("@v")[2]

    def package_version(self, package: str) -> str:
        """The version of a package of a newer Debian, without Debian's part."""
        assert self.root is not None
        packages = dict(line.split("\t") for line in (self.root / ".packages").read_text().splitlines())
        return packages[package].partition("+")[0].partition("-")[0]

    def inner_path(self) -> str:
        """PATH as the programs see it."""
        return f"{self.folder}:/usr/sbin:/usr/bin" if self.folder else "/usr/sbin:/usr/bin"


DEBIAN_12 = Origin("Debian 12")
NEWER_DEBIAN = Origin("Debian testing", root=CACHE / "debian")
GO_MODULES = Origin("Go module", folder=CACHE / "go" / "bin")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one client lives: its programs, a folder of its own, what it may read, the machine it is on."""

    origin: Origin
    directory: Path
    readable: tuple[Path, ...] = ()
    machine: Machine | None = None
    authority: Path | None = None
    """The certificate it trusts, as the file `ca.crt`; without one it speaks plain HTTP."""
    mounts: Mapping[Path, str] = field(default_factory=dict)
    """Folders of ours, and where the programs look for them."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """More for the environment."""

    def command(self, *command: str | Path) -> list[str]:
        """The arguments that start a program here. The process is the program itself: signals reach it."""
        words = list(map(str, command))
        # Not the machine's own prefix: `ip netns exec` mounts another /sys, in which dockerd looks for cgroups in vain.
        prefix = ["nsenter", f"--net=/run/netns/{self.machine.namespace}"] if self.machine else []
        shown = [(path, path) for path in (self.directory, *self.readable)] if self.origin.root else []
        pairs = [str(part) for pair in (*shown, *self.mounts.items()) for part in pair]
        enter = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _ENTER, "sh"]
        root = str(self.origin.root) if self.origin.root else ""
        return [*prefix, *enter, root, *pairs, "--", *words]

    def environment(self) -> dict[str, str]:
        """No settings of whoever runs the tests, and a home of its own."""
        return {"HOME": str(self.directory), "PATH": self.origin.inner_path(), **self.variables}

    def run(self, *command: str | Path, stdin: str | None = None, environment: Mapping[str, str] | None = None) -> str:
        """Run a program; return what it prints. Raises ClientFailed."""
        done = subprocess.run(
            self.command(*command),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            env={**self.environment(), **(environment or {})},
            cwd="/",
        )
        if done.returncode:
            said = done.stdout[-4000:] + done.stderr[-4000:]
            raise ClientFailed(f"{' '.join(map(str, command))}: {done.returncode}\n{said}")
        return done.stdout if done.stdout.strip() else done.stderr

    @contextmanager
    def daemon(self, *command: str | Path, ready: Path) -> Iterator[None]:
        """Run a daemon until the block ends; it is up when the socket *ready* exists."""
        log = self.directory / "log"
        arguments = self.command(*command)
        with (
            log.open("w") as output,
            subprocess.Popen(arguments, stdout=output, stderr=output, env=self.environment(), cwd="/") as process,
        ):
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

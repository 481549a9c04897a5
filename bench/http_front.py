"""The registry's front door beside distribution v3, olareg, Debian's docker-registry and nginx, in one run.

    .venv/bin/python bench/http_front.py [--mib 1024] [--seconds 3] [--rounds 3] [--dir /dev/shm] [--only TEXT]

Ours is the whole daemon. Prints medians of rounds that take turns, and how many times better ours is than each peer;
figures of one machine and one minute mean little, ratios more. Where the peers come from: bench/registries.py. Needs
wrk, ab and curl.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from registries import Registry, open_registries, show, show_heading, take_turns

IMAGE = "application/vnd.oci.image.manifest.v1+json"

UNLIKE = """
local number = 0
function request()
  number = number + 1
  return wrk.format("GET", nil, {["Accept"] = "IMAGE", ["X-Number"] = tostring(number)})
end
""".replace("IMAGE", IMAGE)
"""For wrk: no request is the same as another, so that nobody can answer by what it has said before."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where all of them keep their files")
    parser.add_argument("--only", default="", help="measure the rows with this text alone")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=args.dir))
    try:
        with open_registries(directory) as registries:
            idle = {registry.name: float(registry.memory_mib()) for registry in registries}
            content = Content(args.mib, directory)
            for registry in registries:
                content.push(registry)
            print(f"{os.cpu_count()} cores, files in {args.dir}, medians of {args.rounds}")
            show_heading(registries)
            show("RSS idle, MiB", registries, idle, [])
            for name, (test, lower) in tests(content, args).items():
                if args.only in name:
                    show(name, registries, *take_turns(registries, args.rounds, test, lower_is_better=lower))
            peaks = {registry.name: float(registry.memory_mib("VmHWM")) for registry in registries}
            show("RSS at its peak, MiB", registries, peaks, [])
    finally:
        shutil.rmtree(directory)


def tests(content: Content, args: argparse.Namespace) -> dict[str, tuple[Callable[[Registry], float | None], bool]]:
    """Name -> what measures it, and whether less is better."""
    blob, small = f"/v2/team/app/blobs/{content.digest}", f"/v2/team/app/blobs/{content.small_digest}"
    tag = "/v2/team/app/manifests/t1"
    found: dict[str, tuple[Callable[[Registry], float | None], bool]] = {}
    for connections in (1, 16, 64):
        found[f"manifest GET by tag, {connections}, 1/s"] = (
            (lambda peer, connections=connections: wrk(peer, tag, connections, args.seconds)),
            False,
        )
    found["manifest HEAD, 16, 1/s"] = (lambda peer: ab_head(peer, tag, 16)), False
    found["blob HEAD, 16, 1/s"] = (lambda peer: ab_head(peer, small, 16)), False
    found["blob GET 4 KiB, 16, 1/s"] = (lambda peer: wrk(peer, small, 16, args.seconds)), False
    tags = "/v2/team/app/tags/list"
    found["tags list of 100, 16, 1/s"] = (
        (lambda peer: wrk(peer, tags, 16, args.seconds) if peer.is_registry else None),
        False,
    )
    script = content.directory / "unlike.lua"
    script.write_text(UNLIKE)
    for what, path in (("manifest GET by tag", tag), ("blob GET 4 KiB", small), ("tags list of 100", tags)):
        found[f"{what}, 16, all unlike, 1/s"] = (
            (
                lambda peer, path=path: (
                    wrk(peer, path, 16, args.seconds, script) if peer.is_registry or path != tags else None
                )
            ),
            False,
        )
    found[f"blob GET {args.mib} MiB, 1, MB/s"] = (lambda peer: get(peer, blob, content, 1)), False
    found[f"blob GET {args.mib} MiB, 8 at once, MB/s"] = (lambda peer: get(peer, blob, content, 8)), False
    found[f"blob GET {args.mib} MiB, 8 ranges, MB/s"] = (lambda peer: get(peer, blob, content, 8, parts=True)), False
    found[f"blob PUT {args.mib} MiB, MB/s"] = (lambda peer: put(peer, content)), False
    found[f"blob PUT {args.mib} MiB, chunked, MB/s"] = (lambda peer: put(peer, content, chunked=True)), False
    found["manifest GET beside a push, 64, p99 ms"] = (lambda peer: p99_beside_push(peer, tag, content, args)), True
    return found


class Content:
    """What all of them serve."""

    def __init__(self, mib: int, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "blob"
        self.size = mib << 20
        hasher = hashlib.sha256()
        block = os.urandom(1 << 20)
        with self.file.open("wb") as file:
            for number in range(mib):
                piece = number.to_bytes(4, "big") + block[4:]
                hasher.update(piece)
                file.write(piece)
        self.digest = f"sha256:{hasher.hexdigest()}"
        self.small = os.urandom(4096)
        self.small_digest = f"sha256:{hashlib.sha256(self.small).hexdigest()}"
        described = {"mediaType": "application/octet-stream", "digest": self.small_digest, "size": len(self.small)}
        self.manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": IMAGE, "config": described, "layers": [described] * 3}
        ).encode()

    def push(self, registry: Registry) -> None:
        """Put it there, by HTTP where it is taken."""
        if not registry.is_registry:
            root = registry.directory / "root" / "v2/team/app"
            (root / "blobs").mkdir(parents=True)
            (root / "manifests").mkdir()
            shutil.copy(self.file, root / "blobs" / self.digest)
            (root / "blobs" / self.small_digest).write_bytes(self.small)
            (root / "manifests" / "t1").write_bytes(self.manifest)
            return
        upload(registry, self.file, self.digest)
        location = upload_location(registry)
        request = urllib.request.Request(f"{location}digest={self.small_digest}", data=self.small, method="PUT")
        request.add_header("Content-Type", "application/octet-stream")
        urllib.request.urlopen(request)
        for number in range(100):
            request = urllib.request.Request(
                registry.url(f"/v2/team/app/manifests/t{number}"), data=self.manifest, method="PUT"
            )
            request.add_header("Content-Type", IMAGE)
            urllib.request.urlopen(request)


def upload_location(registry: Registry) -> str:
    """A new upload, as a URL to append parameters to."""
    request = urllib.request.Request(registry.url("/v2/team/app/blobs/uploads/"), data=b"", method="POST")
    return _absolute(registry, str(urllib.request.urlopen(request).headers["Location"]))


def _absolute(registry: Registry, location: str) -> str:
    location = location if location.startswith("http") else registry.url(location)
    return location + ("&" if "?" in location else "?")


def upload(registry: Registry, file: Path, digest: str, *, chunked: bool = False) -> None:
    """Push a blob as clients do it: monolithic, or docker's one chunked PATCH."""
    location = upload_location(registry)
    kind = ["-H", "Content-Type: application/octet-stream"]
    if chunked:
        headers = subprocess.run(
            ["curl", "-sf", "-D-", "-X", "PATCH", "-H", "Transfer-Encoding: chunked", *kind, "-T", file, location[:-1]],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        location = _absolute(registry, re.search(r"(?i)^location: (\S+)", headers, re.MULTILINE)[1])  # type: ignore[index]
        subprocess.run(["curl", "-sf", "-X", "PUT", "-d", "", f"{location}digest={digest}"], check=True)
    else:
        subprocess.run(["curl", "-sf", *kind, "-T", file, f"{location}digest={digest}"], check=True)


def wrk(registry: Registry, path: str, connections: int, seconds: int, script: Path | None = None) -> float:
    """Requests a second."""
    text = _wrk(registry, path, connections, seconds, script)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]


def _wrk(registry: Registry, path: str, connections: int, seconds: int, script: Path | None = None) -> str:
    ask = ["-s", str(script)] if script is not None else ["-H", f"Accept: {IMAGE}"]
    text = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "--latency", *ask, registry.url(path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in text:
        raise RuntimeError(f"{registry.name} {path}: {text}")
    return text


def ab_head(registry: Registry, path: str, connections: int) -> float:
    """Requests a second."""
    text = subprocess.run(
        ["ab", "-q", "-k", "-i", "-n", "20000", "-c", f"{connections}", "-H", f"Accept: {IMAGE}", registry.url(path)],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    if "Non-2xx" in text:
        raise RuntimeError(f"{registry.name} {path}: {text}")
    return float(re.search(r"Requests per second:\s+([\d.]+)", text)[1])  # type: ignore[index]


def get(registry: Registry, path: str, content: Content, connections: int, *, parts: bool = False) -> float:
    """MB/s over all connections, each with the whole blob or a part."""
    step = content.size // connections
    ranges = [["-r", f"{i * step}-{(i + 1) * step - 1}"] if parts else [] for i in range(connections)]
    began = time.perf_counter()
    running = [subprocess.Popen(["curl", "-sf", "-o", "/dev/null", *part, registry.url(path)]) for part in ranges]
    if [process for process in running if process.wait()]:
        raise RuntimeError(f"{registry.name}: a download failed")
    return content.size * (1 if parts else connections) / (time.perf_counter() - began) / 1e6


def put(registry: Registry, content: Content, *, chunked: bool = False) -> float | None:
    """MB/s of a push of what is not there."""
    if not registry.is_registry:
        return None
    forget(registry, content)
    began = time.perf_counter()
    upload(registry, content.file, content.digest, chunked=chunked)
    return content.size / (time.perf_counter() - began) / 1e6


def forget(registry: Registry, content: Content) -> None:
    """Delete the large blob."""
    request = urllib.request.Request(registry.url(f"/v2/team/app/blobs/{content.digest}"), method="DELETE")
    urllib.request.urlopen(request)


def p99_beside_push(registry: Registry, path: str, content: Content, args: argparse.Namespace) -> float | None:
    """Milliseconds that 99 of 100 manifest GETs stay below while the large blob is pushed."""
    if not registry.is_registry:
        return None
    forget(registry, content)
    location = upload_location(registry)
    kind = ["-H", "Content-Type: application/octet-stream"]
    pushing = subprocess.Popen(["curl", "-sf", *kind, "-T", content.file, f"{location}digest={content.digest}"])
    try:
        text = _wrk(registry, path, 64, args.seconds)
    finally:
        if pushing.wait():
            raise RuntimeError(f"{registry.name}: the push failed")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()  # type: ignore[union-attr]
    return float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


if __name__ == "__main__":
    main()

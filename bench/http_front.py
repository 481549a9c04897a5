"""The registry's front door beside Debian's docker-registry and nginx, in one run.

    .venv/bin/python bench/http_front.py [--mib 1024] [--seconds 3] [--rounds 3] [--dir /dev/shm]

Prints medians of rounds that take turns, and the ratio to each peer; figures of one machine and one minute mean little,
ratios more. Needs wrk, ab, curl and, as peers, /usr/bin/docker-registry and nginx; a peer that is missing is left out.
Ours is the HTTP front, the registry and the blob store on disk, with the name store in memory.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

IMAGE = "application/vnd.oci.image.manifest.v1+json"
DOCKER_REGISTRY = """
version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {filesystem: {rootdirectory: DIR}, delete: {enabled: true}}
http: {addr: "127.0.0.1:PORT"}
"""
NGINX = """
daemon off; user root; worker_processes 1; error_log DIR/error.log crit; pid DIR/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/json;
  client_body_temp_path DIR/body; proxy_temp_path DIR/p; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u;
  scgi_temp_path DIR/s; client_max_body_size 0;
  server { listen 127.0.0.1:PORT; root DIR/root; location / { WRITE } }
}
"""


@dataclass
class Peer:
    """A server under test."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where all of them keep their files")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        trio.run(serve, args.dir, args.serve)
        return
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=args.dir))
    peers: list[Peer] = []
    try:
        peers = start(directory)
        content = Content(args.mib)
        (directory / "blob").write_bytes(content.blob)
        for peer in peers:
            content.push(peer, directory)
        report(peers, content, directory, args)
    finally:
        for peer in peers:
            peer.process.send_signal(signal.SIGTERM)
            peer.process.wait()
        shutil.rmtree(directory)


def report(peers: list[Peer], content: Content, directory: Path, args: argparse.Namespace) -> None:
    blob, small = f"/v2/team/app/blobs/{content.digest}", f"/v2/team/app/blobs/{content.small_digest}"
    tag = "/v2/team/app/manifests/t1"
    tests: dict[str, Callable[[Peer], float | None]] = {}
    for connections in (1, 16, 64):
        tests[f"manifest GET by tag, {connections}, 1/s"] = lambda p, c=connections: wrk(p, tag, c, args.seconds)
    tests["manifest HEAD, 16, 1/s"] = lambda p: ab_head(p, tag, 16)
    tests["blob HEAD, 16, 1/s"] = lambda p: ab_head(p, small, 16)
    tests["blob GET 4 KiB, 16, 1/s"] = lambda p: wrk(p, small, 16, args.seconds)
    tests["tags list of 100, 16, 1/s"] = lambda p: (
        None if p.name == "nginx" else wrk(p, "/v2/team/app/tags/list", 16, args.seconds)
    )
    tests[f"blob GET {args.mib} MiB, 1, MB/s"] = lambda p: get(p, blob, content, 1)
    tests[f"blob GET {args.mib} MiB, 8 ranges, MB/s"] = lambda p: get(p, blob, content, 8)
    tests[f"blob PUT {args.mib} MiB, MB/s"] = lambda p: put(p, directory / "blob", content)
    tests[f"blob PUT {args.mib} MiB, chunked, MB/s"] = lambda p: put(p, directory / "blob", content, chunked=True)
    print(f"{os.cpu_count()} cores, files in {args.dir}, medians of {args.rounds}")
    print(f"{'':36}" + "".join(f"{peer.name:>18}" for peer in peers) + "    ours to each")
    for name, test in tests.items():
        figures: dict[str, list[float]] = {peer.name: [] for peer in peers}
        for _ in range(args.rounds):
            for peer in peers:
                figure = test(peer)
                if figure is not None:
                    figures[peer.name].append(figure)
        medians = [statistics.median(figures[peer.name]) if figures[peer.name] else None for peer in peers]
        ratios = [f"{medians[0] / other:.2f}" if other and medians[0] else "-" for other in medians[1:]]
        print(
            f"{name:36}"
            + "".join(f"{m:18.0f}" if m is not None else f"{'-':>18}" for m in medians)
            + "    "
            + " ".join(ratios)
        )
    for peer in peers:
        status = Path(f"/proc/{peer.process.pid}/status").read_text()
        peak = re.search(r"VmHWM:\s+(\d+)", status)
        print(f"{peer.name}: peak RSS {int(peak[1]) // 1024 if peak else 0} MB")


async def serve(directory: Path, port: int) -> None:
    """Ours, in a process of its own."""
    from ipfsreg.testing.front_door import open_front_door

    async with open_front_door(directory, f"127.0.0.1:{port}", on_disk=True):
        with trio.open_signal_receiver(signal.SIGTERM) as signals:
            async for _ in signals:
                break


def start(directory: Path) -> list[Peer]:
    def run(name: str, port: int, *command: str) -> Peer:
        return Peer(name, port, subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))

    peers = []
    for name in ("ipfsreg", "docker-registry", "nginx"):
        (directory / name).mkdir()
    peers.append(
        run("ipfsreg", 18101, sys.executable, __file__, "--serve", "18101", "--dir", str(directory / "ipfsreg"))
    )
    if registry := shutil.which("docker-registry"):
        text = DOCKER_REGISTRY.replace("DIR", str(directory / "docker-registry")).replace("PORT", "18102")
        (directory / "registry.yml").write_text(text)
        peers.append(run("docker-registry", 18102, registry, "serve", str(directory / "registry.yml")))
    if nginx := shutil.which("nginx"):
        text = NGINX.replace("DIR", str(directory / "nginx")).replace("PORT", "18103").replace("WRITE", "")
        (directory / "nginx.conf").write_text(text)
        peers.append(run("nginx", 18103, nginx, "-c", str(directory / "nginx.conf")))
    for peer in peers:
        for _ in range(100):
            try:
                urllib.request.urlopen(peer.url("/v2/"))
            except urllib.error.HTTPError:
                break
            except OSError:
                time.sleep(0.1)
            else:
                break
    return peers


class Content:
    """What all of them serve."""

    def __init__(self, mib: int) -> None:
        block = os.urandom(1 << 20)
        self.blob = b"".join(i.to_bytes(4, "big") + block[4:] for i in range(mib))
        self.digest = f"sha256:{hashlib.sha256(self.blob).hexdigest()}"
        self.small = os.urandom(4096)
        self.small_digest = f"sha256:{hashlib.sha256(self.small).hexdigest()}"
        described = {"mediaType": "application/octet-stream", "digest": self.small_digest, "size": len(self.small)}
        self.manifest = json.dumps(
            {"schemaVersion": 2, "mediaType": IMAGE, "config": described, "layers": [described] * 3}
        ).encode()

    def push(self, peer: Peer, directory: Path) -> None:
        if peer.name == "nginx":
            for path, data in (
                (f"blobs/{self.digest}", self.blob),
                (f"blobs/{self.small_digest}", self.small),
                ("manifests/t1", self.manifest),
            ):
                file = directory / "nginx" / "root" / "v2/team/app" / path
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(data)
            return
        for data, digest in ((self.small, self.small_digest), (self.blob, self.digest)):
            location = upload_location(peer)
            request = urllib.request.Request(f"{location}digest={digest}", data=data, method="PUT")
            request.add_header("Content-Type", "application/octet-stream")
            urllib.request.urlopen(request)
        for i in range(100):
            request = urllib.request.Request(peer.url(f"/v2/team/app/manifests/t{i}"), data=self.manifest, method="PUT")
            request.add_header("Content-Type", IMAGE)
            urllib.request.urlopen(request)


def upload_location(peer: Peer) -> str:
    request = urllib.request.Request(peer.url("/v2/team/app/blobs/uploads/"), data=b"", method="POST")
    location = str(urllib.request.urlopen(request).headers["Location"])
    location = location if location.startswith("http") else peer.url(location)
    return location + ("&" if "?" in location else "?")


def wrk(peer: Peer, path: str, connections: int, seconds: int) -> float:
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", "-H", f"Accept: {IMAGE}", peer.url(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(f"{peer.name} {path}: {text}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]


def ab_head(peer: Peer, path: str, connections: int) -> float:
    command = ["ab", "-q", "-k", "-i", "-n", "20000", "-c", str(connections), "-H", f"Accept: {IMAGE}", peer.url(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(f"{peer.name} {path}: {text}")
    return float(re.search(r"Requests per second:\s+([\d.]+)", text)[1])  # type: ignore[index]


def get(peer: Peer, path: str, content: Content, ranges: int) -> float:
    size = len(content.blob)
    step = size // ranges
    began = time.perf_counter()
    running = [
        subprocess.Popen(["curl", "-sf", "-o", "/dev/null", "-r", f"{i * step}-{(i + 1) * step - 1}", peer.url(path)])
        for i in range(ranges)
    ]
    if any(process.wait() for process in running):
        raise RuntimeError(f"{peer.name}: a download failed")
    return size / (time.perf_counter() - began) / 1e6


def put(peer: Peer, file: Path, content: Content, *, chunked: bool = False) -> float | None:
    """One push of the blob, as the clients do it: monolithic, or docker's one chunked PATCH."""
    if peer.name == "nginx":
        return None
    request = urllib.request.Request(peer.url(f"/v2/team/app/blobs/{content.digest}"), method="DELETE")
    urllib.request.urlopen(request)
    location = upload_location(peer)
    began = time.perf_counter()
    if chunked:
        headers = subprocess.run(
            ["curl", "-sf", "-D-", "-X", "PATCH", "-H", "Transfer-Encoding: chunked", "-T", str(file), location[:-1]],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        location = re.search(r"(?i)^location: (\S+)", headers, re.MULTILINE)[1]  # type: ignore[index]
        location = location if location.startswith("http") else peer.url(location)
        location += "&" if "?" in location else "?"
        subprocess.run(["curl", "-sf", "-X", "PUT", "-d", "", f"{location}digest={content.digest}"], check=True)
    else:
        subprocess.run(["curl", "-sf", "-T", str(file), f"{location}digest={content.digest}"], check=True)
    return len(content.blob) / (time.perf_counter() - began) / 1e6


if __name__ == "__main__":
    main()

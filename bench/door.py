"""What the door costs: the same node open, with a closed door, and with TLS, beside nginx with TLS, in one run.

    .venv/bin/python bench/door.py [--mib 512] [--seconds 3] [--rounds 3] [--only TEXT]

Every node is a whole daemon with its files in memory; rounds take turns. Needs wrk, curl and nginx.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ipfsreg.testing.closed import ClosedDoor, make_closed_door
from ipfsreg.testing.daemons import Cluster, free_port

IMAGE = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = "team/app"
NGINX = """
daemon off; user root; worker_processes 1; error_log DIR/error.log crit; pid DIR/nginx.pid;
events { worker_connections 1024; }
http {
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000; default_type application/json;
  client_body_temp_path DIR/t1; proxy_temp_path DIR/t2; fastcgi_temp_path DIR/t3; uwsgi_temp_path DIR/t4;
  scgi_temp_path DIR/t5; ssl_certificate DOOR/server.crt; ssl_certificate_key DOOR/server.key;
  server { listen 127.0.0.1:PORT ssl; root DIR/root; }
}
"""


class Way:
    """One way to ask one server."""

    def __init__(self, name: str, url: str, authorization: str = "") -> None:
        self.name = name
        self.url = url
        self.authorization = authorization

    def headers(self) -> list[str]:
        found = ["-H", f"Accept: {IMAGE}"]
        return [*found, "-H", f"Authorization: {self.authorization}"] if self.authorization else found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="measure the rows with this text alone")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir="/dev/shm"))
    try:
        door = make_closed_door(directory / "door")
        content = Content(args.mib, directory)
        with Cluster(directory) as cluster:
            ways = open_nodes(cluster, door, content)
            with nginx(directory, door, content) as peer:
                report([*ways, peer], content, args)
    finally:
        shutil.rmtree(directory)


class Content:
    """What all of them serve."""

    def __init__(self, mib: int, directory: Path) -> None:
        block = os.urandom(1 << 20)
        self.file = directory / "blob"
        with self.file.open("wb") as file:
            for number in range(mib):
                file.write(number.to_bytes(4, "big") + block[4:])
        self.size = mib << 20
        with self.file.open("rb") as file:
            self.digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        self.small = os.urandom(4096)
        self.small_digest = f"sha256:{hashlib.sha256(self.small).hexdigest()}"
        described = {"mediaType": "application/octet-stream", "digest": self.small_digest, "size": len(self.small)}
        document = {"schemaVersion": 2, "mediaType": IMAGE, "config": described, "layers": [described] * 3}
        self.manifest = json.dumps(document).encode()

    def push(self, client: httpx.Client) -> None:
        for digest, data in ((self.small_digest, self.small), (self.digest, self.file.read_bytes())):
            location = client.post(f"/v2/{REPOSITORY}/blobs/uploads/").headers["Location"]
            client.put(location, params={"digest": digest}, content=data).raise_for_status()
        headers = {"Content-Type": IMAGE}
        client.put(f"/v2/{REPOSITORY}/manifests/t1", content=self.manifest, headers=headers).raise_for_status()


def open_nodes(cluster: Cluster, door: ClosedDoor, content: Content) -> list[Way]:
    quiet = {"IPFSREG_NODE_LOG_LEVEL": "info", "IPFSREG_ACCESS_LOG_FORMAT": "off"}
    plain = cluster.start("open", **quiet)
    closed = cluster.start("closed", **quiet, **door.environment(tls=False))
    secure = cluster.start("secure", **quiet, **door.environment())
    basic = ("alice", door.users["alice"])
    ways = [Way("open", plain.url(""))]
    for node, name in ((plain, ""), (closed, "closed"), (secure, "TLS")):
        login = basic if name else None
        verify = door.authority.client_context()
        with httpx.Client(base_url=node.url(""), auth=login, verify=verify, timeout=120) as client:
            content.push(client)
            if not name:
                continue
            scope = f"repository:{REPOSITORY}:pull,push"
            token = client.get("/token", params={"service": "ipfsreg", "scope": scope}).json()["token"]
        if name == "closed":
            header = httpx.BasicAuth(*basic)._auth_header
            ways += [Way("nobody", node.url("")), Way("password", node.url(""), header)]
            ways.append(Way("token", node.url(""), f"Bearer {token}"))
        else:
            ways.append(Way("TLS, token", node.url(""), f"Bearer {token}"))
    return ways


@contextmanager
def nginx(directory: Path, door: ClosedDoor, content: Content) -> Iterator[Way]:
    """Files with the same names, over TLS."""
    place, port = directory / "nginx", free_port()
    for name, data in (
        (f"blobs/{content.digest}", None),
        (f"blobs/{content.small_digest}", content.small),
        ("manifests/t1", content.manifest),
    ):
        path = place / "root" / "v2" / REPOSITORY / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if data is None:
            os.link(content.file, path)
            path.chmod(0o644)
        else:
            path.write_bytes(data)
    for folder in (directory, place):
        folder.chmod(0o755)
    text = NGINX.replace("DIR", str(place)).replace("PORT", str(port)).replace("DOOR", str(door.directory))
    (place / "nginx.conf").write_text(text)
    process = subprocess.Popen(["nginx", "-c", str(place / "nginx.conf")])
    try:
        time.sleep(0.5)
        yield Way("nginx, TLS", f"https://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait()


def report(ways: list[Way], content: Content, args: argparse.Namespace) -> None:
    manifest, blob = f"/v2/{REPOSITORY}/manifests/t1", f"/v2/{REPOSITORY}/blobs/{content.digest}"
    rows: dict[str, Callable[[Way], float | None]] = {
        "manifest GET, 16 connections, 1/s": lambda way: wrk(way, manifest, 16, args.seconds),
        "manifest GET, one connection each, 1/s": lambda way: wrk(way, manifest, 16, args.seconds, "Connection: close"),
        f"blob GET {args.mib} MiB, 1, MB/s": lambda way: get(way, blob, content, 1),
        f"blob GET {args.mib} MiB, 8 ranges, MB/s": lambda way: get(way, blob, content, 8),
        f"blob PUT {args.mib} MiB, MB/s": lambda way: put(way, content),
    }
    print(f"{os.cpu_count()} cores, medians of {args.rounds}")
    print(f"{'':42}" + "".join(f"{way.name:>14}" for way in ways))
    for name, measure in rows.items():
        if args.only not in name:
            continue
        figures: dict[str, list[float]] = {way.name: [] for way in ways}
        for _ in range(args.rounds):
            for way in ways:
                figure = measure(way)
                if figure is not None:
                    figures[way.name].append(figure)
        medians = [statistics.median(found) if found else None for found in figures.values()]
        print(f"{name:42}" + "".join(f"{m:14.0f}" if m is not None else f"{'-':>14}" for m in medians), flush=True)


def wrk(way: Way, path: str, connections: int, seconds: int, *headers: str) -> float:
    extra = [part for header in headers for part in ("-H", header)]
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}", *way.headers(), *extra, way.url + path]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(f"{way.name} {path}: {text}")
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]


def get(way: Way, path: str, content: Content, ranges: int) -> float:
    step = content.size // ranges
    began = time.perf_counter()
    command = ["curl", "-skf", "-o", "/dev/null", *way.headers(), way.url + path]
    running = [subprocess.Popen([*command, "-r", f"{n * step}-{(n + 1) * step - 1}"]) for n in range(ranges)]
    if any(process.wait() for process in running):
        raise RuntimeError(f"{way.name}: a download failed")
    return content.size / (time.perf_counter() - began) / 1e6


def put(way: Way, content: Content) -> float | None:
    """A push of the blob to where it already is: all of it is sent and hashed."""
    if way.name in ("nobody", "nginx, TLS"):
        return None
    headers = {"Authorization": way.authorization} if way.authorization else {}
    start = httpx.post(f"{way.url}/v2/{REPOSITORY}/blobs/uploads/", headers=headers, verify=False)
    location = start.headers["Location"]
    began = time.perf_counter()
    target = f"{way.url}{location}?digest={content.digest}"
    subprocess.run(["curl", "-skf", *way.headers(), "-T", str(content.file), target], check=True)
    return content.size / (time.perf_counter() - began) / 1e6


if __name__ == "__main__":
    main()

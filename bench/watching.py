"""What it costs to be watched: manifest GETs by tag with each way of watching, in one run.

    .venv/bin/python bench/watching.py [--seconds 2] [--rounds 3] [--connections 16]

Ours is the HTTP front with registry and store in memory, as `bench/http_front.py` has it. "nothing" is the same server
with its books taken away. Prints medians of rounds that take turns, and what a request takes more than with nothing.
The collector of the spans is not there, which is the worst case. Needs wrk.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import trio

IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
MODES = ("nothing", "metrics", "metrics, text log", "metrics, json log", "metrics, 1 % traced", "metrics, all traced")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where they keep their files")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=18200, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        trio.run(serve, args.serve, args.port, args.dir)
        return
    with tempfile.TemporaryDirectory(prefix="ipfsreg-watching-", dir=args.dir) as directory:
        measure(args, Path(directory))


def measure(args: argparse.Namespace, directory: Path) -> None:
    rates: dict[str, list[float]] = {mode: [] for mode in MODES}
    for _ in range(args.rounds):
        for mode in MODES:
            with tempfile.TemporaryDirectory(dir=directory) as own:
                command = [sys.executable, __file__, "--serve", mode, "--port", str(args.port), "--dir", own]
                server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
                try:
                    push(args.port)
                    rates[mode].append(wrk(args.port, args))
                finally:
                    server.kill()
                    server.wait()
    base = statistics.median(rates["nothing"])
    print(f"manifest GET by tag, {args.connections} connections, medians of {args.rounds}")
    for mode in MODES:
        rate = statistics.median(rates[mode])
        print(f"{mode:24} {rate:8.0f}/s  {1e6 / rate - 1e6 / base:+6.1f} us  {rate / base:5.2f}")


async def serve(mode: str, port: int, directory: Path) -> None:
    from ipfsreg.config import TracingConfig
    from ipfsreg.http.accesslog import open_access_log
    from ipfsreg.http.server import Server
    from ipfsreg.monitoring.spans import open_tracing
    from ipfsreg.testing.front_door import open_front_door

    if mode == "nothing":
        Server.note_answered = lambda self, *what: None  # type: ignore[method-assign]
    ratio = 1.0 if "all" in mode else 0.01
    tracing = TracingConfig(endpoint="http://127.0.0.1:9/v1/traces" if "traced" in mode else "", sample_ratio=ratio)
    async with AsyncExitStack() as stack:
        form = next((form for form in ("json", "text") if form in mode), "off")
        log = await stack.enter_async_context(open_access_log(form, directory / "access.log"))
        traced = await stack.enter_async_context(open_tracing(tracing, instance="bench"))
        options: Any = {"access_log": log, "wrap": traced}
        await stack.enter_async_context(open_front_door(directory, f"127.0.0.1:{port}", **options))
        await trio.sleep(600)


def push(port: int) -> None:
    url = f"http://127.0.0.1:{port}/v2/team/app/"
    for _ in range(200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/").read()
            break
        except OSError:
            time.sleep(0.1)
    described = {"mediaType": "application/octet-stream", "digest": EMPTY, "size": 2}
    manifest = {"schemaVersion": 2, "mediaType": IMAGE, "config": described, "layers": [described] * 3}
    for path, method, data in (
        (f"blobs/uploads/?digest={EMPTY}", "POST", b"{}"),
        ("manifests/t1", "PUT", json.dumps(manifest).encode()),
    ):
        request = urllib.request.Request(url + path, data=data, method=method)
        request.add_header("Content-Type", IMAGE)
        urllib.request.urlopen(request).read()


def wrk(port: int, args: argparse.Namespace) -> float:
    url = f"http://127.0.0.1:{port}/v2/team/app/manifests/t1"
    command = ["wrk", "-t1", f"-c{args.connections}", f"-d{args.seconds}", url]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in text:
        raise RuntimeError(text)
    return float(re.search(r"Requests/sec:\s+([\d.]+)", text)[1])  # type: ignore[index]


if __name__ == "__main__":
    main()

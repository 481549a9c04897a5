"""Can people trust their images to it? Real daemons, images pushed and pulled by many, and everything that goes wrong.

    .venv/bin/python bench/soak.py [--seconds 60] [--rounds 1] [--nodes 4] [--clients 6] [--seed N] [--dir DIR]

Root, on machines made out of network namespaces. Clients push images of shared layers, indexes of them and referrers
(in one piece, in chunks, cut off and resumed, mounted), move and delete tags, manifests and blobs, and pull from
whichever node, checking every byte. Meanwhile nodes are killed, stopped, paused, cut off and repaired, links lose
packets, the disk of one is filled to the last byte, files of blobs rot, and all collect garbage without pause.

Then all is mended, and what clients were told is held against what each node serves (ipfsreg.testing.soak); against
`ipfsreg verify`; against what it holds open. Last of all everything is deleted: nothing may be left on any disk.

Ends with status 1 and the findings if a promise was broken. The seed repeats what is done, not the moments it hits.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil

from ipfsreg.cli.status import NotRunning, Refused, ask, tell
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.heartbeat import Heartbeat, wait_beats
from ipfsreg.testing.namespaces import Lan, open_lan
from ipfsreg.testing.soak import GONE, WHOLE, Image, Ledger, Push, Removal, Shown, due_of, judge

REPOSITORIES = ("soak/a", "soak/b", "soak/c")
TAGS = ("latest", "1.0", "1.1", "edge")
SHARED_LAYERS = 40
LAYER_BYTES = (300, 3_000, 40_000, 70_000, 100_000, 200_000, 400_000, 1_200_000, 2_500_000)

ANSWER_S = 75.0
"""More than any trouble but a kill lasts: who gets no answer for so long has found something."""

START_S = 120.0
STOP_S = 60.0
AGREE_S = 240.0
SMALL_DISK_BYTES = 96 << 20
RESERVE_BYTES = 6 << 20

MAX_RSS = 250 << 20
MAX_MORE_FILES = 25
"""Open files beyond what a node had when it was idle; connections to peers and a few of clients come and go."""

SETTINGS = {
    "IPFSREG_NODE_LOG_LEVEL": "info",
    "IPFSREG_NODE_DRAIN_S": "5",
    "IPFSREG_ACCESS_LOG_FORMAT": "off",
    "IPFSREG_FETCH_GIVE_UP_S": "6",
    "IPFSREG_REGISTRY_WAIT_HEADS_S": "3",
    "IPFSREG_STORE_RESERVE_BYTES": str(RESERVE_BYTES),
    "IPFSREG_GC_INTERVAL_S": "8",
    "IPFSREG_GC_GRACE_S": "4",
    "IPFSREG_GC_BLOB_GRACE_S": "3",
}

SERIOUS = (" CRITICAL ", " ERROR ", "Traceback")


class Contents:
    """The bytes of every blob, by digest."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._lock = threading.Lock()
        self._made: dict[str, bytes] = {}
        self.shared = [self.make(f"shared {number}", random.Random(seed + number)) for number in range(SHARED_LAYERS)]

    def make(self, name: str, rng: random.Random) -> str:
        """A layer that is like no other; its digest."""
        size = rng.choice(LAYER_BYTES) + rng.randrange(200)
        return self.add(random.Random(f"{self._seed} {name}").randbytes(size))

    def add(self, data: bytes) -> str:
        digest = str(Digest.of(data))
        with self._lock:
            self._made[digest] = data
        return digest

    def __getitem__(self, digest: str) -> bytes:
        return self._made[digest]


class Swarm:
    """The daemons, and what happens to them."""

    def __init__(self, cluster: Cluster, lan: Lan, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.lan = lan
        self.nodes: dict[str, Daemon] = {}
        self.troubles: Counter[str] = Counter()
        self.findings: list[str] = []
        self.answers: Counter[str] = Counter()
        self.rotten: set[tuple[str, str]] = set()
        self.logs: dict[str, list[str]] = {}
        self.heartbeat = Heartbeat()
        self.heartbeat.start()
        for machine in lan.machines:
            node = cluster.add(machine.name, list(self.nodes.values()), machine, **SETTINGS)
            self.nodes[node.name] = node
            self.logs[node.name] = []
            self.start(node.name)
        self.small = lan.machines[-1].name

    def find(self, what: str) -> None:
        """A promise was broken."""
        if what not in self.findings:
            self.findings.append(what)
            print(f"FINDING {what}", flush=True)

    def start(self, name: str) -> None:
        node = self.nodes[name]
        self._keep_log(name)
        node.start(wait=False)

    def _keep_log(self, name: str) -> None:
        node = self.nodes[name]
        if node.process is not None:
            self.logs[name] += [*node.lines, f"---- ended with {node.process.poll()}"]
            node.lines = []

    def wait_up(self) -> None:
        """Return when all nodes answer."""
        for node in self.nodes.values():
            if not wait_beats(partial(is_up, node), START_S):
                self.find(f"{node.name} does not answer {START_S:.0f} s after its start")

    def check_logs(self) -> None:
        """Find what ended by itself, and what the logs complain of."""
        for name, node in self.nodes.items():
            assert node.process is not None
            if node.process.poll() is not None:
                self.find(f"{name} ended by itself with {node.process.returncode}")
            self._keep_log_of_running(name)
            for line in self.logs[name]:
                if any(word in line for word in SERIOUS) and not self._is_expected(name, line):
                    self.find(f"{name} says: {line}")

    def _keep_log_of_running(self, name: str) -> None:
        lines = self.nodes[name].lines
        self.logs[name] += lines[:]
        del lines[: len(lines)]

    def _is_expected(self, name: str, line: str) -> bool:
        return any(node == name and f"blob {digest} is damaged" in line for node, digest in self.rotten)

    def stop(self, name: str) -> None:
        """SIGTERM, and wait for the end."""
        node = self.nodes[name]
        process = node.process
        assert process is not None
        process.terminate()
        if not wait_beats(lambda: process.poll() is not None, STOP_S):
            self.find(f"{name} did not stop within {STOP_S:.0f} s")
            node.kill()
        elif process.returncode:
            self.find(f"{name} ended with {process.returncode} after SIGTERM")

    # -------------------------------------------------------------- trouble

    def trouble(self) -> None:
        """One trouble, from its beginning to its end."""
        kinds: dict[str, Callable[[], None]] = {
            "partition": self._partition,
            "kill": partial(self._kill, some=True),
            "kill all": partial(self._kill, some=False),
            "stop": self._stop_and_start,
            "pause": self._pause,
            "loss": self._loss,
            "fill": self._fill,
            "rot": self._rot,
            "rot while stopped": self._rot_stopped,
            "repair": self._repair,
        }
        weights = {"partition": 4, "kill": 4, "kill all": 1, "stop": 2, "pause": 1, "loss": 1, "fill": 3, "rot": 3}
        kind = self.rng.choices(list(kinds), [weights.get(kind, 1) for kind in kinds])[0]
        self.troubles[kind] += 1
        self.note(f"trouble: {kind}")
        kinds[kind]()
        self._sleep(0, 3)

    def note(self, what: str) -> None:
        """Write into all logs what happens now."""
        for name, node in self.nodes.items():
            (node.lines if node.process is not None else self.logs[name]).append(f"==== {time.time():.2f} {what}")

    def _some(self) -> list[str]:
        names = list(self.nodes)
        return self.rng.sample(names, self.rng.randrange(1, len(names)))

    def _partition(self) -> None:
        groups: list[list[Any]] = [[], []]
        for name in self.rng.sample(list(self.nodes), len(self.nodes)):
            self.rng.choice(groups).append(self.lan[name])
        groups = [group for group in groups if group]
        self.lan.partition(*groups)
        self._sleep(1, 12)
        self.lan.heal(*groups)

    def _kill(self, some: bool) -> None:
        names = self._some() if some else list(self.nodes)
        for name in names:
            self.nodes[name].kill()
        self._sleep(0, 2)
        for name in names:
            self.start(name)
        self._sleep(1, 4)

    def _stop_and_start(self) -> None:
        name = self.rng.choice(list(self.nodes))
        self.stop(name)
        self.start(name)
        self._sleep(1, 3)

    def _pause(self) -> None:
        names = self._some()
        for name in names:
            self.nodes[name].pause()
        self._sleep(1, 8)
        for name in names:
            self.nodes[name].wake()

    def _loss(self) -> None:
        names = self._some()
        for name in names:
            self.lan[name].lose(self.rng.choice([0.02, 0.1]))
        self._sleep(2, 8)
        for name in names:
            self.lan[name].lose(0)

    def _fill(self) -> None:
        """Leave next to nothing of the small disk, sometimes a kill on top."""
        filler = self.nodes[self.small].directory / "filler"
        left = self.rng.choice([0, 0, 40_000, 500_000, 3_000_000])
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while free_bytes(filler.parent) > left:
                file.write(bytes(min(1 << 20, max(4096, free_bytes(filler.parent) - left))))
        self._sleep(1, 6)
        if self.rng.random() < 0.4:
            self.nodes[self.small].kill()
            self.start(self.small)
            self._sleep(2, 5)
        filler.unlink()

    def _rot(self) -> None:
        """Damage the file of a blob that another node has too, under the running node."""
        found = self._victim()
        if found is not None:
            self._spoil(*found, keep_time=False)

    def _rot_stopped(self) -> None:
        found = self._victim()
        if found is not None:
            self.stop(found[0])
            self._spoil(*found, keep_time=True)
            self.start(found[0])

    def _victim(self) -> tuple[str, str] | None:
        names = self.rng.sample(list(self.nodes), 2)
        have = [{path.name for path in blobs_of(self.nodes[name]).glob("*/*")} for name in names]
        both = sorted(have[0] & have[1])
        for digits in self.rng.sample(both, len(both)):
            digest = f"sha256:{digits}"
            if not any(digest == other for _, other in self.rotten) and is_intact(self.nodes[names[1]], digest):
                return names[0], digest
        return None

    def _spoil(self, name: str, digest: str, keep_time: bool) -> None:
        path = file_of(self.nodes[name], digest)
        with suppress(FileNotFoundError):  # collected just now
            before = path.stat()
            self.rotten.add((name, digest))
            how = self.rng.choice(["byte", "cut", "unlink"])
            self.note(f"{how} of {digest} at {name}")
            if how == "unlink":
                path.unlink()
                return
            with path.open("r+b") as file:
                if how == "cut":
                    file.truncate(before.st_size // 2)
                else:
                    file.seek(self.rng.randrange(before.st_size))
                    old = file.read(1)
                    file.seek(-1, os.SEEK_CUR)
                    file.write(bytes([old[0] ^ 1]))
            if keep_time:
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def _repair(self) -> None:
        name = self.rng.choice(list(self.nodes))
        self.stop(name)
        done = run_ipfsreg(self.nodes[name], "repair")
        if done.returncode and not (name == self.small and "no room" in done.stdout):
            self.find(f"repair of {name} ended with {done.returncode}: {done.stdout}")
        for aside in self.nodes[name].directory.glob("data/node.db.damaged-*"):
            aside.unlink()
        self.start(name)
        self._sleep(1, 3)

    def collect(self, rng: random.Random) -> None:
        """Collect at one of the nodes, with hardly any grace."""
        node = self.nodes[rng.choice(list(self.nodes))]
        with suppress(NotRunning, Refused, httpx.HTTPError):
            tell(node.config, "/gc", {"dry_run": "false", "grace_s": str(rng.choice([0, 1, 3]))}, timeout_s=ANSWER_S)

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self.rng.uniform(least, most))


def run_ipfsreg(node: Daemon, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of the node's own, on its datastore."""
    command = [sys.executable, "-m", "ipfsreg", *arguments, "--config", str(node.config_path)]
    return subprocess.run(
        command,
        env={**os.environ, **node.environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=120,
    )


def is_up(node: Daemon) -> bool:
    try:
        with node.inside():
            return httpx.get("http://127.0.0.1:5000/v2/", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


def free_bytes(directory: Path) -> int:
    status = os.statvfs(directory)
    return status.f_bavail * status.f_frsize


def blobs_of(node: Daemon) -> Path:
    return node.directory / "data" / "blobs" / "sha256"


def file_of(node: Daemon, digest: str) -> Path:
    digits = digest.removeprefix("sha256:")
    return blobs_of(node) / digits[:2] / digits


def is_intact(node: Daemon, digest: str) -> bool:
    """Whether the node has a file with the right bytes."""
    try:
        return f"sha256:{hashlib.sha256(file_of(node, digest).read_bytes()).hexdigest()}" == digest
    except FileNotFoundError:
        return False


# --------------------------------------------------------------------------------------------- clients


class GaveUp(Exception):
    """The node did not do what was asked; the client goes on with something else."""


class Client(threading.Thread):
    """One client: random requests, one after the other, until it is told to stop."""

    def __init__(self, number: int, swarm: Swarm, ledger: Ledger, contents: Contents, seed: int) -> None:
        super().__init__(name=f"client-{number}")
        self._number = number
        self._swarm = swarm
        self._ledger = ledger
        self._contents = contents
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._made = 0
        self._https: dict[str, httpx.Client] = {}
        self._heads: dict[str, str] = {}
        """The heads that an image's push was answered with."""

    def stop(self) -> None:
        """Begin nothing more."""
        self._stopping.set()

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stopping.is_set():
                try:
                    self._step()
                except GaveUp:
                    self._swarm.answers["gave up"] += 1
                self._stopping.wait(self._rng.choice([0, 0.02, 0.1, 0.3]))
        except Exception as error:  # a bug of the bench must not pass for silence
            self._swarm.find(f"{self.name} failed: {error!r}")
            raise
        finally:
            for http in self._https.values():
                http.close()

    def _step(self) -> None:
        steps: list[tuple[float, Callable[[], None]]] = [
            (5, self._push_image),
            (1.5, self._push_index),
            (1.5, self._push_referrer),
            (1, self._move_tag),
            (6, self._pull),
            (1, partial(self._remove, "tag")),
            (1.5, partial(self._remove, "manifest")),
            (0.4, partial(self._remove, "blob")),
        ]
        self._rng.choices([step for _, step in steps], [weight for weight, _ in steps])[0]()

    def _node(self) -> str:
        return self._rng.choice(list(self._swarm.nodes))

    # ------------------------------------------------------------- requests

    def _ask(self, node: str, method: str, path: str, **content: Any) -> httpx.Response | None:
        """None: no answer came, or not all of it, and what was asked may have been done. 599: nobody was there."""
        began = time.monotonic()
        with self._swarm.nodes[node].inside():
            http = self._https.get(node)
            if http is None:
                http = self._https[node] = httpx.Client(base_url="http://127.0.0.1:5000", timeout=ANSWER_S)
            try:
                answer = http.request(method, path, **content)
            except httpx.ConnectError:
                time.sleep(0.2)
                return httpx.Response(599)
            except httpx.TimeoutException:
                if not self._swarm.heartbeat.stood_still_since(began):
                    self._swarm.find(f"{method} {path} at {node} had no answer for {ANSWER_S:.0f} s")
                return None
            except httpx.TransportError:
                return None
        self._swarm.answers[f"{method} {what_is(path)} {answer.status_code}"] += 1
        if answer.status_code >= 500 and answer.status_code not in (503, 507):
            self._swarm.find(f"{method} {path} at {node} was answered {answer.status_code}: {answer.text[:300]}")
        return answer

    def _again(self, node: str, method: str, path: str, **content: Any) -> httpx.Response:
        """For what can be asked twice: until there is an answer. Raises GaveUp."""
        for _ in range(60):
            answer = self._ask(node, method, path, **content)
            if answer is not None and answer.status_code != 599:
                return answer
            if self._stopping.wait(0.2):
                break
        raise GaveUp

    # ---------------------------------------------------------------- pushes

    def _push_blob(self, node: str, repository: str, digest: str, *, surely: bool) -> None:
        """Make *repository* at *node* have the blob; *surely*: by its bytes. Raises GaveUp."""
        uploads = f"/v2/{repository}/blobs/uploads/"
        asks = not surely and self._rng.random() < 0.35
        if asks and self._again(node, "HEAD", f"/v2/{repository}/blobs/{digest}").status_code == 200:
            return
        if not surely and self._rng.random() < 0.3:
            source = self._rng.choice(REPOSITORIES)
            answer = self._again(node, "POST", f"{uploads}?mount={digest}&from={source}", content=b"")
            if answer.status_code == 201:
                return
        data = self._contents[digest]
        how = self._rng.choice(["post", "put", "chunks", "cut"])
        if how == "post":
            answer = self._again(node, "POST", f"{uploads}?digest={digest}", content=data)
            if answer.status_code != 201:
                raise GaveUp
            return
        answer = self._again(node, "POST", uploads, content=b"")
        if answer.status_code != 202:
            raise GaveUp
        self._send(node, answer.headers["Location"], digest, data, how)

    def _send(self, node: str, location: str, digest: str, data: bytes, how: str) -> None:
        """All of *data* to an upload, as often as it takes. Raises GaveUp."""
        acknowledged = sent = 0
        finishing = False
        if how == "chunks":
            step = max(1, len(data) // self._rng.randrange(2, 5))
            while acknowledged + step < len(data):
                end = acknowledged + step
                sent = max(sent, end)
                answer = self._ask(node, "PATCH", location, content=data[acknowledged:end])
                if answer is None or answer.status_code != 202:
                    break
                if answer.headers["Range"] != f"0-{end - 1}":
                    self._swarm.find(
                        f"PATCH at {node} of [{acknowledged}, {end}) was answered {answer.headers['Range']}"
                    )
                acknowledged = end
        elif how == "cut":
            sent = self._cut(node, location, data)
        for _ in range(60):
            if sent > acknowledged or finishing:
                offset = self._offset(node, location, finishing)
                if offset is None:
                    break  # it may be published already
                if not acknowledged <= offset <= max(sent, acknowledged):
                    self._swarm.find(
                        f"upload {location} at {node} is at {offset}; {acknowledged} were acknowledged and {sent} sent"
                    )
                acknowledged = offset
            finishing, sent = True, len(data)
            # What was cut off may still be on its way: the range says where this belongs.
            place = {"Content-Range": f"{acknowledged}-{len(data) - 1}"} if acknowledged < len(data) else {}
            path = f"{location}?digest={digest}"
            answer = self._ask(node, "PUT", path, content=data[acknowledged:], headers=place)
            if answer is not None:
                if answer.status_code == 201:
                    return
                if answer.status_code in (507, 429, 404):
                    raise GaveUp
                if answer.status_code not in (409, 416, 503, 599):
                    self._swarm.find(f"PUT {location} at {node}: {answer.status_code} {answer.text}")
                    raise GaveUp
            if self._stopping.wait(0.2):
                break
        raise GaveUp

    def _cut(self, node: str, location: str, data: bytes) -> int:
        """Send a part of *data* by a PATCH that breaks off; return how much was sent at the most."""
        part = self._rng.choice([0, self._rng.randrange(2, len(data) + 1)])  # one byte is told as none
        head = f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
        with (
            self._swarm.nodes[node].inside(),
            suppress(OSError),
            socket.create_connection(("127.0.0.1", 5000), timeout=5) as raw,
        ):
            raw.sendall(head.encode() + data[:part])
        return part

    def _offset(self, node: str, location: str, finishing: bool) -> int | None:
        """How far the node is with an upload. Raises GaveUp."""
        for _ in range(60):
            answer = self._again(node, "GET", location)
            if answer.status_code == 204:
                # "0-0" is no byte or one.
                end = int(answer.headers["Range"].partition("-")[2])
                return end + 1 if end else 0
            if answer.status_code == 404:
                if not finishing:
                    self._swarm.find(f"upload {location} at {node} is not known any more: {answer.text}")
                    raise GaveUp
                return None
            if answer.status_code != 409:  # another request is at it
                break
            if self._stopping.wait(0.2):
                break
        raise GaveUp

    def _push_manifest(self, node: str, image: Image, tag: str | None, document: bytes, media_type: str) -> str:
        """Push it and write down what became of it; return the outcome, or `lacks` where something was not there."""
        began = time.monotonic()
        path = f"/v2/{image.repository}/manifests/{tag or image.digest}"
        answer = self._ask(node, "PUT", path, content=document, headers={"Content-Type": media_type})
        lacks = False
        if answer is None:
            outcome = "unknown"
        elif answer.status_code == 201:
            outcome = "done"
            self._heads[image.digest] = answer.headers["Ipfsreg-Heads"]
        elif answer.status_code in (500, 507, 503):
            outcome = "unknown"
        else:
            outcome = "refused"
            lacks = "MANIFEST_BLOB_UNKNOWN" in answer.text
            if not lacks and answer.status_code != 599:
                self._swarm.find(f"PUT {path} at {node} was answered {answer.status_code}: {answer.text}")
        ended = time.monotonic() if outcome != "unknown" else float("inf")
        self._ledger.add(Push(node, image, tag, began, ended, outcome))
        return "lacks" if lacks else outcome

    def _make(self, repository: str, subject: str | None = None) -> tuple[Image, bytes]:
        """An image like no other."""
        self._made += 1
        name = f"{self._swarm.seed}/{self._number}/{self._made}"
        layers = [
            self._rng.choice(self._contents.shared)
            if self._rng.random() < 0.75
            else self._contents.make(f"{name}/{number}", self._rng)
            for number in range(self._rng.randrange(1, 4))
        ]
        config = self._contents.add(json.dumps({"architecture": "amd64", "os": "linux", "name": name}).encode())
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self._descriptor(OCI_CONFIG, config),
            "layers": [self._descriptor(OCI_LAYER, layer) for layer in layers],
        }
        if subject is not None:
            document["artifactType"] = "application/x-soak"
            document["subject"] = self._descriptor(OCI_MANIFEST, subject)
        data = json.dumps(document).encode()
        return Image(repository, self._contents.add(data), frozenset([config, *layers]), (), subject), data

    def _descriptor(self, media_type: str, digest: str) -> dict[str, Any]:
        return {"mediaType": media_type, "digest": digest, "size": len(self._contents[digest])}

    def _push(self, node: str, image: Image, tag: str | None, data: bytes, media_type: str = OCI_MANIFEST) -> bool:
        """Blobs, manifests below, manifest; once more where something had gone meanwhile. Raises GaveUp."""
        for surely in (False, True):
            for below in image.below:
                if not self._push(node, below, None, self._contents[below.digest]):
                    return False
            for blob in sorted(image.blobs):
                self._push_blob(node, image.repository, blob, surely=surely)
            outcome = self._push_manifest(node, image, tag, data, media_type)
            if outcome != "lacks":
                break
        return outcome == "done"

    def _push_image(self) -> None:
        node, repository = self._node(), self._rng.choice(REPOSITORIES)
        image, data = self._make(repository)
        tag = self._rng.choice([*TAGS, *TAGS, f"t{self._number}-{self._made}", None])
        if self._push(node, image, tag, data):
            self._read_elsewhere(image)

    def _push_index(self) -> None:
        node, repository = self._node(), self._rng.choice(REPOSITORIES)
        below = tuple(self._make(repository)[0] for _ in range(2))
        document = {
            "schemaVersion": 2,
            "mediaType": OCI_INDEX,
            "manifests": [self._descriptor(OCI_MANIFEST, image.digest) for image in below],
        }
        data = json.dumps(document).encode()
        image = Image(repository, self._contents.add(data), frozenset(), below)
        if self._push(node, image, self._rng.choice(TAGS), data, OCI_INDEX):
            self._read_elsewhere(image)

    def _push_referrer(self) -> None:
        push = self._some_push()
        if push is not None and not push.image.below:
            image, data = self._make(push.image.repository, push.image.digest)
            self._push(self._node(), image, None, data)

    def _some_push(self) -> Push | None:
        done = [push for push in list(self._ledger.pushes) if push.outcome == "done"]
        return self._rng.choice(done[-60:]) if done else None

    def _move_tag(self) -> None:
        """Push again what is there, under another tag."""
        push = self._some_push()
        if push is not None:
            media_type = OCI_INDEX if push.image.below else OCI_MANIFEST
            data = self._contents[push.image.digest]
            self._push_manifest(self._node(), push.image, self._rng.choice(TAGS), data, media_type)

    def _remove(self, kind: str) -> None:
        push = self._some_push()
        if push is None:
            return
        image, what = push.image, push.image.digest
        if kind == "tag":
            if push.tag is None:
                return
            what = push.tag
        elif kind == "blob":
            if not image.blobs:
                return
            what = self._rng.choice(sorted(image.blobs))
        node = self._node()
        place = "blobs" if kind == "blob" else "manifests"
        asked = Removal(node, image.repository, kind, what, time.monotonic(), float("inf"), "unknown")
        self._ledger.add(asked)  # before it is done: others must not wonder where it went
        answer = self._ask(node, "DELETE", f"/v2/{image.repository}/{place}/{what}")
        if answer is not None and answer.status_code not in (500, 503, 507):
            outcome = "done" if answer.status_code == 202 else "refused"
            self._ledger.settle(asked, replace(asked, ended=time.monotonic(), outcome=outcome))

    # ----------------------------------------------------------------- pulls

    def _pull(self) -> None:
        push = self._some_push()
        if push is not None:
            self._pull_image(self._node(), push)

    def _read_elsewhere(self, image: Image) -> None:
        push = next(push for push in reversed(list(self._ledger.pushes)) if push.image is image)
        if self._rng.random() < 0.3:
            self._pull_image(self._node(), push)

    def _pull_image(self, node: str, push: Push) -> None:
        """Manifest, those below, blobs: whatever is answered 200 must be right."""
        image = push.image
        headers = {"Ipfsreg-Heads": self._heads[image.digest]} if image.digest in self._heads else {}
        for one in image.all():
            path = f"/v2/{one.repository}/manifests/{one.digest}"
            answer = self._ask(node, "GET", path, headers=headers)
            if answer is None:
                return
            if answer.status_code == 200:
                self._check(node, one.digest, answer)
            elif answer.status_code == 404 and (headers or node == push.node) and not self._is_removed(one, push):
                self._swarm.find(f"GET {path} at {node} was answered 404; pushed at {push.node} at {push.began}")
            for blob in sorted(one.blobs):
                if self._rng.random() < 0.5:
                    self._pull_blob(node, one.repository, blob)

    def _is_removed(self, image: Image, push: Push) -> bool:
        return self._ledger.removed_since(image.repository, "manifest", image.digest, push.began)

    def _pull_blob(self, node: str, repository: str, digest: str) -> None:
        path = f"/v2/{repository}/blobs/{digest}"
        data = self._contents[digest]
        if len(data) > 10 and self._rng.random() < 0.2:
            start = self._rng.randrange(len(data))
            end = self._rng.randrange(start, len(data))
            answer = self._ask(node, "GET", path, headers={"Range": f"bytes={start}-{end}"})
            if answer is not None and answer.status_code == 206 and answer.content != data[start : end + 1]:
                self._wrong(node, digest, f"bytes {start}-{end}")
            return
        answer = self._ask(node, "GET", path)
        if answer is not None and answer.status_code == 200:
            self._check(node, digest, answer)

    def _check(self, node: str, digest: str, answer: httpx.Response) -> None:
        if f"sha256:{hashlib.sha256(answer.content).hexdigest()}" != digest:
            self._wrong(node, digest, f"{len(answer.content)} bytes")

    def _wrong(self, node: str, digest: str, what: str) -> None:
        if (node, digest) in self._swarm.rotten:
            self._swarm.answers["wrong bytes of a damaged file"] += 1
        else:
            self._swarm.find(f"{what} of {digest} from {node} are wrong")


def what_is(path: str) -> str:
    """Which kind of thing a request was about."""
    return next(word for word in ("uploads", "blobs", "manifests", "v2") if word in path)


# ----------------------------------------------------------------------------------- looking afterwards


def have_agreed(swarm: Swarm) -> bool:
    """Whether all nodes have the same heads and miss nothing."""
    try:
        replicas = [ask(node.config)["replica"] for node in swarm.nodes.values()]
    except NotRunning:
        return False  # it stood still
    heads = {tuple(replica["heads"]) for replica in replicas}
    return len(heads) == 1 and not any(replica["tips_wanted"] or replica["nodes_wanted"] for replica in replicas)


class Viewer:
    """Looks at all that a node serves."""

    def __init__(self, swarm: Swarm, ledger: Ledger, name: str) -> None:
        self._swarm = swarm
        self._ledger = ledger
        self._name = name
        self._node = swarm.nodes[name]

    def look(self) -> Shown:
        """Ask for everything that is due."""
        due = due_of(self._ledger)
        tags: dict[tuple[str, str], str | None] = {}
        referrers: dict[tuple[str, str], frozenset[str]] = {}
        with self._node.inside(), httpx.Client(base_url="http://127.0.0.1:5000", timeout=ANSWER_S) as self._http:
            for push in self._ledger.pushes:
                place = push.image.repository
                if push.tag is not None and (place, push.tag) not in tags:
                    answer = self._get(f"/v2/{place}/manifests/{push.tag}", "HEAD")
                    tags[place, push.tag] = answer.headers.get("Docker-Content-Digest")
                subject = push.image.subject
                if subject is not None and (place, subject) not in referrers:
                    listed = self._get(f"/v2/{place}/referrers/{subject}").json()["manifests"]
                    referrers[place, subject] = frozenset(entry["digest"] for entry in listed)
            wanted = [*due.manifests, *due.gone, *((place, value) for (place, _), value in tags.items() if value)]
            manifests = {(place, digest): self._state(place, "manifests", digest) for place, digest in wanted}
            blobs = {(place, digest): self._state(place, "blobs", digest) for place, digest in due.blobs}
        return Shown(tags, manifests, blobs, referrers)

    def _state(self, repository: str, kind: str, digest: str) -> str:
        # What rotted may go out once, and what nobody in reach has is answered 503 until the node has asked.
        for attempt in range(4):
            answer = self._get(f"/v2/{repository}/{kind}/{digest}")
            if answer.status_code == 404:
                return GONE
            found = answer.status_code == 200
            if found and f"sha256:{hashlib.sha256(answer.content).hexdigest()}" == digest:
                return WHOLE
            time.sleep(attempt)
        return "200 with wrong bytes" if found else f"{answer.status_code} {answer.text[:300]}"

    def _get(self, path: str, method: str = "GET") -> httpx.Response:
        while True:
            began = time.monotonic()
            try:
                return self._http.request(method, path)
            except httpx.TransportError as error:
                if not self._swarm.heartbeat.stood_still_since(began):
                    self._swarm.find(f"{method} {path} at {self._name} in peace: {error!r}")
                    return httpx.Response(599)


def lost(swarm: Swarm) -> set[str]:
    """Damaged blobs of which no node has a good copy."""
    digests = {digest for _, digest in swarm.rotten}
    return {digest for digest in digests if not any(is_intact(node, digest) for node in swarm.nodes.values())}


@contextmanager
def read_tables(node: Daemon) -> Iterator[sqlite3.Connection]:
    db = sqlite3.connect(f"file:{node.directory / 'data' / 'node.db'}?mode=ro", uri=True)
    try:
        yield db
    finally:
        db.close()


def files_of(node: Daemon) -> int:
    assert node.process is not None
    return psutil.Process(node.process.pid).num_fds()


def check_rest(swarm: Swarm, idle_files: dict[str, int]) -> None:
    """What nodes hold and complain of when there is peace."""
    for name, node in swarm.nodes.items():
        if not wait_beats(lambda node=node: not ask(node.config).get("fetches", 0), 30):  # type: ignore[misc]
            swarm.find(f"{name} fetches blobs still, long after the last request")
        if not wait_beats(lambda node=node, name=name: files_of(node) <= idle_files[name] + MAX_MORE_FILES, 20):  # type: ignore[misc]
            swarm.find(f"{name} has {files_of(node)} files open, {idle_files[name]} when it was idle")
        if node.rss() > MAX_RSS:
            swarm.find(f"{name} has {node.rss() >> 20} MiB resident")
        said = run_ipfsreg(node, "verify")
        wrong = [line for line in said.stdout.splitlines() if not any(one in line for _, one in swarm.rotten)]
        if said.returncode and wrong:
            swarm.find(f"verify at {name}: {said.stdout[:600]}")


def delete_all(swarm: Swarm, ledger: Ledger) -> None:
    """Take everything away: nothing may be left."""
    first = next(iter(swarm.nodes.values()))
    deleted = set()
    with first.inside(), httpx.Client(base_url="http://127.0.0.1:5000", timeout=ANSWER_S) as http:
        for push in ledger.pushes:
            for image in push.image.all():
                if (image.repository, image.digest) not in deleted:
                    deleted.add((image.repository, image.digest))
                    answer = http.delete(f"/v2/{image.repository}/manifests/{image.digest}")
                    if answer.status_code not in (202, 404):
                        swarm.find(f"deletion in the end: {answer.status_code} {answer.text}")
    if not wait_beats(partial(have_agreed, swarm), AGREE_S):
        swarm.find("the nodes did not agree on the deletions")
    for name in swarm.nodes:  # what clients were told is forgotten by a restart
        swarm.stop(name)
        node = swarm.nodes[name]
        node.environment |= {"IPFSREG_STORE_UPLOAD_EXPIRY_S": "60", "IPFSREG_GC_INTERVAL_S": "0"}
        for path in (node.directory / "data" / "uploads").iterdir():
            os.utime(path, (0, 0))  # all of them were left behind long ago
        swarm.start(name)
    swarm.wait_up()
    if not wait_beats(partial(have_agreed, swarm), AGREE_S):
        swarm.find("the nodes did not agree after the restart")
    for _ in range(3):
        for name, node in swarm.nodes.items():
            report = tell(node.config, "/gc", {"dry_run": "false", "grace_s": "0"}, timeout_s=ANSWER_S)
            if report["skipped"] and "no names" not in report["skipped"]:
                swarm.find(f"{name} collects nothing: {report['skipped']}")
    for name, node in swarm.nodes.items():
        data = node.directory / "data"
        if not wait_beats(lambda data=data: not any((data / "uploads").iterdir()), 20):  # type: ignore[misc]
            swarm.find(f"{name} has uploads left: {[path.name for path in (data / 'uploads').iterdir()]}")
        with read_tables(node) as db:
            for what, query in LEFT.items():
                rows = db.execute(query).fetchall()
                if rows:
                    swarm.find(f"{name} has {len(rows)} {what} left: {rows[:3]}")
            known = {row[0] for row in db.execute("SELECT digest FROM blobs")}
        files = [path for path in (data / "blobs").glob("*/*/*") if f"{path.parts[-3]}:{path.name}" not in known]
        files += [path for path in (data / "arriving").iterdir() if path.name.replace("-", ":") not in known]
        if files:
            swarm.find(f"{name} has files that no row knows: {files[:3]}")


LEFT = {
    "whole blobs": "SELECT digest FROM blobs WHERE state != 0",
    "pending links": "SELECT repository, digest FROM pending_links",
    "blocks that belong to nothing": (
        "SELECT hex(hash) FROM small_blocks WHERE own = 0 AND hash NOT IN (SELECT hash FROM blob_blocks)"
    ),
    "leaves that belong to nothing": "SELECT hex(hash) FROM leaves WHERE blob NOT IN (SELECT id FROM blobs)",
}


def turn(swarm: Swarm, ledger: Ledger, contents: Contents, clients: int, length_s: float) -> None:
    """Trouble for *length_s*, then peace, then judgement."""
    idle_files = {name: files_of(node) for name, node in swarm.nodes.items()}
    callers = [Client(number, swarm, ledger, contents, swarm.rng.randrange(1 << 30)) for number in range(clients)]
    collecting = threading.Event()
    rng = random.Random(swarm.seed)

    def collect() -> None:
        while not collecting.wait(rng.uniform(0.3, 2)):
            swarm.collect(rng)

    collector = threading.Thread(target=collect)
    for caller in [*callers, collector]:
        caller.start()
    until = time.monotonic() + length_s
    try:
        while time.monotonic() < until:
            swarm.trouble()
    finally:
        for caller in callers:
            caller.stop()
        collecting.set()
        for caller in [*callers, collector]:
            caller.join()
    swarm.note("peace")
    remount = ["mount", "-o", f"remount,size={10 * SMALL_DISK_BYTES}", str(swarm.nodes[swarm.small].directory)]
    subprocess.run(remount, check=True)
    swarm.wait_up()
    began = time.monotonic()
    if not wait_beats(partial(have_agreed, swarm), AGREE_S):
        swarm.find(f"the nodes did not agree within {AGREE_S:.0f} s")
        return
    agreed_s = time.monotonic() - began
    with ThreadPoolExecutor(len(swarm.nodes)) as pool:
        views = list(pool.map(lambda name: Viewer(swarm, ledger, name).look(), swarm.nodes))
    due = due_of(ledger)
    damaged = lost(swarm)
    for finding in judge(ledger, dict(zip(swarm.nodes, views, strict=True)), damaged):
        swarm.find(finding)
    check_rest(swarm, idle_files)
    swarm.check_logs()
    outcomes = Counter(push.outcome for push in ledger.pushes)
    removed = Counter(removal.kind for removal in ledger.removals if removal.outcome == "done")
    print(
        f"pushes {dict(outcomes)}, deletions {dict(removed)}, due {len(due.manifests)} manifests and {len(due.blobs)} "
        f"blobs, agreed after {agreed_s:.1f} s, {len(swarm.rotten)} files damaged, {len(damaged)} lost by it",
        flush=True,
    )


@contextmanager
def small_disk(directory: Path) -> Iterator[None]:
    """A file system of its own, for one node."""
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "soak", str(directory)]
    subprocess.run(mount, check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


def soak(options: argparse.Namespace, seed: int) -> list[str]:
    """One swarm from its first start to its last deletion; return the findings."""
    began = time.monotonic()
    print(f"seed {seed}, {options.nodes} nodes, {options.clients} clients", flush=True)
    directory = Path(tempfile.mkdtemp(dir=options.dir, prefix=f"soak-{seed}-"))
    names = [f"n{number}" for number in range(options.nodes)]
    with open_lan(names) as lan, small_disk(directory / names[-1]), Cluster(directory) as cluster:
        swarm = Swarm(cluster, lan, seed)
        try:
            swarm.wait_up()
            for name, node in swarm.nodes.items():
                if not wait_beats(lambda node=node: len(ask(node.config)["peers"]) > 0, 60):  # type: ignore[misc]
                    swarm.find(f"{name} found nobody")
            ledger = Ledger()
            turn(swarm, ledger, Contents(seed), options.clients, options.seconds)
            if not swarm.findings:
                delete_all(swarm, ledger)
                swarm.check_logs()
            for name in swarm.nodes:
                swarm.stop(name)
        finally:
            for name, node in swarm.nodes.items():
                swarm._keep_log_of_running(name)
                (directory / f"{name}.log").write_text("\n".join(swarm.logs[name]) + "\n")
                if swarm.findings:
                    shutil.copytree(
                        node.directory,
                        directory / f"{name}-kept",
                        symlinks=True,
                        dirs_exist_ok=True,
                        ignore=shutil.ignore_patterns("admin.sock", "filler"),
                    )
        print(f"troubles {dict(swarm.troubles)}; answers {dict(sorted(swarm.answers.items()))}")
        if swarm.findings:
            (directory / "ledger.txt").write_text("\n".join(map(repr, [*ledger.pushes, *ledger.removals])))
    if swarm.findings:
        print(f"seed {seed}: {len(swarm.findings)} findings, what was there is in {directory}")
    else:
        shutil.rmtree(directory)
        print(f"seed {seed}: every promise kept; {time.monotonic() - began:.0f} s", flush=True)
    return swarm.findings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60, help="of trouble in each round")
    parser.add_argument("--rounds", type=int, default=1, help="each with the next seed")
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--dir", type=Path, default=None, help="where the nodes lie; kept if something was found")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes end with us
    found = [bool(soak(options, options.seed + number)) for number in range(options.rounds)]
    sys.exit(any(found))


if __name__ == "__main__":
    main()

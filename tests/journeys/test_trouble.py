"""What goes wrong on real machines: crashes under load, full disks, damaged files, crowds, and clients that stall."""

from __future__ import annotations

import os
import random
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import httpx
import pytest

from ipfsreg.oci.digest import Digest
from ipfsreg.testing.daemons import Cluster, Daemon, DaemonFailed, wait_until
from ipfsreg.testing.pushing import Client, PushedImage

pytestmark = pytest.mark.journey

MIB = 1024 * 1024
INDEX = "application/vnd.oci.image.index.v1+json"
KILLS = 3


def layer(size: int) -> bytes:
    """Incompressible content that no other call returns."""
    return os.urandom(size)


def file_of(node: Daemon, digest: str) -> Path:
    digits = digest.removeprefix("sha256:")
    return node.directory / "data" / "blobs" / "sha256" / digits[:2] / digits


def get_blob(node: Daemon, repository: str, digest: str) -> httpx.Response:
    return httpx.get(node.url(f"/v2/{repository}/blobs/{digest}"), timeout=30)


def push_blob(node: Daemon, repository: str, content: bytes) -> httpx.Response:
    params = {"digest": str(Digest.of(content))}
    return httpx.post(node.url(f"/v2/{repository}/blobs/uploads/"), params=params, content=content, timeout=30)


def is_thrown_away(url: str) -> bool:
    return httpx.delete(url).status_code in (204, 404)


class Pushers:
    """Threads that push images to a node until it goes away; remembers what was acknowledged."""

    def __init__(self, address: str) -> None:
        self.acknowledged: list[PushedImage] = []
        self._address = address
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._push, args=(f"team/app{n}",)) for n in range(4)]
        for thread in self._threads:
            thread.start()

    def _push(self, repository: str) -> None:
        while not self._stop.is_set():
            sizes = random.choices([10, 70_000, 3 * MIB + 5], k=2)
            try:
                with Client(self._address) as client:
                    tag = f"t{random.randrange(1 << 60)}"
                    self.acknowledged.append(client.push_image(repository, tag, [layer(size) for size in sizes]))
            except (httpx.HTTPError, AssertionError):
                return

    def wait_acknowledged(self) -> None:
        wait_until(lambda: self.acknowledged, "something is pushed")

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


def test_kill_9_at_any_moment_under_load_loses_nothing_acknowledged(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    everything: list[PushedImage] = []
    for _ in range(KILLS):
        pushers = Pushers(alice.http)
        pushers.wait_acknowledged()
        time.sleep(random.uniform(0, 0.7))
        alice.kill()
        pushers.stop()
        everything += pushers.acknowledged
        alice.start()
    with Client(alice.http) as client:
        for image in everything:
            assert alice.wait_manifest(image.repository, image.tag, 0) == image.digest
            client.pull_image(image.repository, image.tag)
    assert "ERROR" not in "\n".join(alice.lines)


def test_two_hundred_pulls_of_one_cold_blob_cost_one_fetch_and_little_memory(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    with Client(alice.http) as client:
        image = client.push_image("team/app", "1.0", [layer(4 * MIB)])
    bob.wait_manifest("team/app", "1.0")

    def pull() -> int:
        with Client(bob.http) as client:
            return client.pull_blob("team/app", image.layers[0])

    with ThreadPoolExecutor(200) as crowd:
        pulls = [crowd.submit(pull) for _ in range(200)]
    assert {pulled.result() for pulled in pulls} == {4 * MIB}
    (peer,) = bob.status()["peers"]
    assert peer["bytes_in"] < 1.5 * 4 * MIB
    assert bob.peak_rss() < 150 * MIB, f"{bob.peak_rss() / MIB:.0f} MiB"


def test_damaged_files_are_noticed_and_mended_by_a_peer(cluster: Cluster) -> None:
    alice = cluster.start("alice", IPFSREG_FETCH_GIVE_UP_S="2")
    bob = cluster.start("bob", join=[alice])
    with Client(alice.http) as client:
        image = client.push_image("team/app", "1.0", [layer(3 * MIB), layer(2 * MIB)])
    bob.wait_manifest("team/app", "1.0")
    with Client(bob.http) as client:
        client.pull_image("team/app", "1.0")
    rotten, gone = image.layers
    with file_of(alice, rotten).open("r+b") as file:
        file.seek(MIB + 1)
        file.write(b"rot")
    file_of(alice, gone).unlink()
    with Client(alice.http) as client:
        assert client.pull_image("team/app", "1.0") > 5 * MIB
    assert Digest.of(file_of(alice, rotten).read_bytes()) == Digest.parse(rotten)
    bob.kill()
    file_of(alice, gone).unlink()
    for _ in range(2):
        answer = get_blob(alice, "team/app", gone)
        assert (answer.status_code, answer.json()["errors"][0]["code"]) == (503, "UNAVAILABLE")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_refuses_pushes_and_goes_on_serving(tmp_path: Path, small_disk: Path) -> None:
    with Cluster(small_disk) as cluster:
        alice = cluster.start("alice")
        with Client(alice.http) as client:
            image = client.push_image("team/app", "1.0", [layer(2 * MIB)])
        free = shutil.disk_usage(small_disk).free
        answer = push_blob(alice, "team/app", layer(30 * MIB))
        assert (answer.status_code, "no room left" in answer.text) == (507, True)
        wait_until(lambda: shutil.disk_usage(small_disk).free > free - MIB, "the refused push left nothing")
        with (small_disk / "ballast").open("wb", buffering=0) as file:
            while free := shutil.disk_usage(small_disk).free:
                file.write(bytes(min(free, MIB)))
        assert push_blob(alice, "team/app", b"small").status_code == 507
        for restart in (alice.kill, alice.stop):
            with Client(alice.http) as client:
                client.pull_image("team/app", "1.0")
            restart()
            alice.start()
        (small_disk / "ballast").unlink()
        with Client(alice.http) as client:
            client.pull_image("team/app", image.digest)
            client.push_image("team/app", "2.0", [layer(MIB)])


def test_clients_that_stall_do_not_hold_up_the_stop(cluster: Cluster) -> None:
    alice = cluster.start("alice", IPFSREG_NODE_DRAIN_S="1")
    with Client(alice.http) as client:
        image = client.push_image("team/app", "1.0", [layer(32 * MIB)])
    location = httpx.post(alice.url("/v2/team/app/blobs/uploads/")).headers["Location"]
    host, _, port = alice.http.rpartition(":")
    requests = [f"GET /v2/team/app/blobs/{image.layers[0]} HTTP/1.1\r\nHost: x\r\n\r\n"] * 5
    requests.append(f"PATCH {location} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nnot all of it")
    stalled = []
    for request in requests:
        stalled.append(socket.create_connection((host, int(port))))
        stalled[-1].sendall(request.encode())
    wait_until(lambda: stalled[0].recv(1, socket.MSG_PEEK), "the pull has begun")
    began = time.monotonic()
    assert alice.stop() == 0
    assert 0.5 < time.monotonic() - began < 6
    for connection in stalled:
        connection.close()
    alice.start()
    assert httpx.get(alice.url(location)).headers["Range"] == f"0-{len('not all of it') - 1}"


def test_a_stop_during_the_start_does_not_wait_for_its_end(cluster: Cluster) -> None:
    alice = cluster.add("alice").start(wait=False)
    alice.wait_line("swarm private")
    assert alice.process is not None
    began = time.monotonic()
    alice.process.terminate()
    assert alice.process.wait(10) == 0
    assert time.monotonic() - began < 2
    assert "registry at" not in "\n".join(alice.lines)


def test_a_bootstrapper_that_comes_later_is_found_without_a_restart(cluster: Cluster) -> None:
    alice = cluster.add("alice")
    bob = cluster.add("bob", join=[alice]).start()
    bob.wait_line(rf"bootstrapper {alice.multiaddr.rpartition('/')[2]}: not reached")
    (told,) = bob.status()["bootstrappers"]
    assert "not reached" in told["state"]
    with Client(bob.http) as client:
        image = client.push_image("team/app", "1.0", [layer(MIB)])
    alice.start()
    assert alice.wait_manifest("team/app", "1.0", 60) == image.digest
    assert bob.status()["bootstrappers"][0]["state"] == "connected"


def test_uploads_that_are_given_up_take_what_has_arrived_and_no_more(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    host, _, port = alice.http.rpartition(":")
    locations = []
    for _ in range(5):
        locations.append(httpx.post(alice.url("/v2/team/app/blobs/uploads/")).headers["Location"])
        with socket.create_connection((host, int(port))) as connection:
            head = f"PATCH {locations[-1]} HTTP/1.1\r\nHost: x\r\nContent-Length: {1 << 28}\r\n\r\n"
            connection.sendall(head.encode() + layer(MIB))

    def stored() -> int:
        return sum(path.stat().st_size for path in (alice.directory / "data" / "uploads").iterdir())

    wait_until(lambda: stored() == 5 * MIB, "what arrived is kept for whoever goes on")
    for location in locations:
        # The node may not have noticed yet that the client that was writing is gone.
        wait_until(partial(is_thrown_away, alice.url(location)), "the upload is thrown away")
    assert stored() == 0


@pytest.mark.parametrize("name", ["node.db", "identity.key"])
def test_a_damaged_datastore_is_named_and_not_touched(cluster: Cluster, name: str) -> None:
    alice = cluster.start("alice")
    alice.stop()
    path = alice.directory / "data" / name
    path.write_bytes(b"garbage" * 1000)
    with pytest.raises(DaemonFailed, match="ended with 65" if name == "node.db" else "ended with 1"):
        alice.start()
    told = "\n".join(alice.lines)
    assert str(path) in told
    assert "Traceback" not in told
    assert path.read_bytes() == b"garbage" * 1000


def push_tag(node: Daemon, tag: str) -> int:
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"tag": tag}}
    url = node.url(f"/v2/team/app/manifests/{tag}")
    return httpx.put(url, json=document, headers={"Content-Type": INDEX}, timeout=30).status_code


def test_a_damaged_database_ends_nothing_is_named_and_mended(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    assert push_tag(alice, "only-here") == 201
    content = layer(200_000)
    assert push_blob(alice, "team/app", content).status_code == 201
    bob = cluster.start("bob", join=[alice])
    alice.stop()
    database = alice.directory / "data" / "node.db"
    with closing(sqlite3.connect(database)) as db:
        (page,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'crdt_links'").fetchone()
        (page_bytes,) = db.execute("PRAGMA page_size").fetchone()
    with database.open("r+b") as file:
        file.seek((page - 1) * page_bytes)
        file.write(b"\xff" * page_bytes)
    alice.start()
    alice.wait_peers(1)
    assert push_tag(bob, "from-bob") == 201, "gossip of it meets the damage"
    told = alice.wait_line(r"CRITICAL .*: (.*node\.db) is damaged .*ipfsreg repair")
    assert told[1] == str(database)
    assert push_tag(alice, "refused") == 503
    assert alice.wait_manifest("team/app", "only-here")
    assert "is damaged" in alice.status()["damage"]
    assert alice.stop() == 0
    repaired = subprocess.run(command_of(alice, "repair"), capture_output=True, text=True)
    assert repaired.returncode == 0, repaired.stderr
    verified = subprocess.run(command_of(alice, "verify"), capture_output=True, text=True)
    assert (verified.returncode, verified.stdout) == (0, "nothing is wrong\n")
    alice.start()
    assert alice.wait_manifest("team/app", "from-bob")
    assert alice.wait_manifest("team/app", "only-here")
    assert push_tag(alice, "taken-again") == 201


def command_of(node: Daemon, name: str) -> list[str]:
    return [sys.executable, "-m", "ipfsreg", name, "--config", str(node.config_path)]

"""Pulls over links that lose and delay, from providers that go away, to disks that fill up: real nodes, real wires."""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from ipfsreg.p2p.addresses import split_peer
from ipfsreg.testing.crowd import Pull, pull_at_once, push_layers, start_crowd
from ipfsreg.testing.daemons import HTTP_PORT, Cluster, Daemon, wait_until
from ipfsreg.testing.delay_proxy import delay_proxy_process
from ipfsreg.testing.namespaces import Lan, open_lan, unavailable
from ipfsreg.testing.pushing import Client, PushedImage

pytestmark = pytest.mark.journey
needs_namespaces = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

MIB = 1024 * 1024
SIZE = 8 * MIB


@pytest.fixture
def lan() -> Iterator[Lan]:
    with open_lan(["alice", "bob", "carol"], mbit_per_s=40) as lan:
        yield lan


def push(cluster: Cluster, lan: Lan, **environment: str) -> tuple[list[Daemon], PushedImage]:
    """A node on every machine, and an image of one layer that the first has and the others know of."""
    nodes = start_crowd(cluster, lan, neighbours=None, **environment)
    image = push_layers(lan.machines[0], [os.urandom(SIZE)], "team/app", "1.0", HTTP_PORT)
    for node in nodes[1:]:
        node.wait_manifest("team/app", "1.0")
    return nodes, image


class Reading:
    """A pull that can be looked at in the middle. Made and used inside the client's machine."""

    def __init__(self, address: str, image: PushedImage) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)
        self._connection.request("GET", f"/v2/team/app/blobs/{image.layers[0]}")
        self._answer = self._connection.getresponse()
        self._digest = image.layers[0]
        self._hasher = hashlib.sha256()
        self._left = SIZE
        self.status = self._answer.status

    def read(self, size: int) -> None:
        """Read *size* bytes. Raises IncompleteRead."""
        data = self._answer.read(size)
        self._hasher.update(data)
        self._left -= len(data)
        if len(data) < size:
            raise http.client.IncompleteRead(data, self._left)

    def read_all(self) -> None:
        """Read to the end. Raises AssertionError where it is not the layer, IncompleteRead where it breaks off."""
        self.read(self._left)
        assert f"sha256:{self._hasher.hexdigest()}" == self._digest

    def close(self) -> None:
        self._connection.close()


@needs_namespaces
def test_a_link_that_loses_two_of_a_hundred_packets_only_slows_a_pull(tmp_path: Path, lan: Lan) -> None:
    with Cluster(tmp_path) as cluster:
        _, image = push(cluster, lan)
        for machine in lan.machines[:2]:
            machine.lose(0.02)
        (seconds,) = pull_at_once([Pull(lan["bob"], image)])
        assert seconds < 30, "the link needs 1.7 s for it"


def test_a_tenth_of_a_second_of_delay_only_slows_a_pull(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        alice = cluster.start("alice")
        with Client(alice.http) as client:
            image = client.push_image("team/app", "1.0", [os.urandom(SIZE)])
        addr, peer = split_peer(alice.multiaddr)
        with delay_proxy_process(("127.0.0.1", int(addr.split("/")[4])), rtt_s=0.1) as proxy:
            host, port = proxy.address
            bob = cluster.add("bob", IPFSREG_P2P_BOOTSTRAPPERS=f"/ip4/{host}/tcp/{port}/p2p/{peer}").start()
            bob.wait_manifest("team/app", "1.0")
            began = time.monotonic()
            with Client(bob.http) as client:
                assert client.pull_blob("team/app", image.layers[0]) == SIZE
            # Five round trips until windows are wide, and some for a machine that is busy with other tests.
            assert time.monotonic() - began < 5


@needs_namespaces
def test_a_provider_that_is_killed_in_the_middle_is_made_up_for_by_another(tmp_path: Path, lan: Lan) -> None:
    with Cluster(tmp_path) as cluster:
        (alice, _, carol), image = push(cluster, lan)
        pull_at_once([Pull(lan["bob"], image)])
        with lan["carol"].entered(), closing(Reading(carol.http, image)) as reading:
            reading.read(SIZE // 4)
            alice.kill()
            reading.read_all()
        assert carol.status()["bitswap"]["bytes_received"] < 1.5 * SIZE


@needs_namespaces
def test_when_all_providers_are_gone_what_came_is_kept_for_when_one_returns(tmp_path: Path, lan: Lan) -> None:
    with Cluster(tmp_path) as cluster:
        (alice, _, carol), image = push(cluster, lan, IPFSREG_FETCH_GIVE_UP_S="2")
        with lan["carol"].entered(), closing(Reading(carol.http, image)) as reading:
            reading.read(SIZE // 2)
            alice.kill()
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                reading.read_all()
        wait_until(lambda: any("did not arrive" in line for line in carol.lines), "the pull was given up")
        with lan["carol"].entered(), closing(Reading(carol.http, image)) as refused:
            assert refused.status == 503
        carol.kill()
        alice.start()
        carol.start().wait_peers(1)
        pull_at_once([Pull(lan["carol"], image)])
        received = carol.status()["bitswap"]["bytes_received"]
        assert 0 < received < SIZE // 2 + MIB, "what had come before the crash did not come again"


@needs_namespaces
def test_what_a_range_needs_comes_first(tmp_path: Path, lan: Lan) -> None:
    with Cluster(tmp_path) as cluster:
        (_, _, carol), image = push(cluster, lan)
        lan["carol"].shape(8)
        start = SIZE - 2 * MIB
        with lan["carol"].entered():
            answer = httpx.get(
                carol.url(f"/v2/team/app/blobs/{image.layers[0]}"),
                headers={"Range": f"bytes={start}-{start + MIB - 1}"},
                timeout=60,
            )
        received = carol.status()["bitswap"]["bytes_received"]
        assert (answer.status_code, len(answer.content)) == (206, MIB)
        # A mebibyte takes a second.
        assert received < 5 * MIB, "all that lies before the range did not come before it"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("cannot mount a small disk here")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@needs_namespaces
def test_a_disk_that_fills_up_in_the_middle_of_a_pull_ends_it_and_keeps_the_node(
    tmp_path: Path, lan: Lan, small_disk: Path
) -> None:
    # Carol's directory is on the small disk.
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "carol").symlink_to(small_disk, target_is_directory=True)
    with Cluster(tmp_path / "nodes") as cluster:
        (_, _, carol), image = push(cluster, lan)
        ballast = small_disk / "ballast"
        with lan["carol"].entered(), closing(Reading(carol.http, image)) as reading:
            reading.read(MIB)
            with ballast.open("wb", buffering=0) as file:
                while free := shutil.disk_usage(small_disk).free:
                    file.write(bytes(min(free, MIB)))
            with pytest.raises((http.client.IncompleteRead, ConnectionError)):
                reading.read_all()
        wait_until(lambda: any("did not arrive: no room left" in line for line in carol.lines), "the log says why")
        with lan["carol"].entered(), closing(Reading(carol.http, image)) as refused:
            assert refused.status == 507
        ballast.unlink()
        pull_at_once([Pull(lan["carol"], image)])
        assert "Traceback" not in "\n".join(carol.lines)

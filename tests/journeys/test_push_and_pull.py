"""Whole stories with real daemon processes: what a user does, and what happens to his machines meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from ipfsreg.oci.digest import Digest
from ipfsreg.testing.daemons import Cluster, Daemon, DaemonFailed, wait_until
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.journey

MIB = 1024 * 1024


def layer(size: int) -> bytes:
    """Incompressible content that no other call returns."""
    return os.urandom(size)


def test_three_nodes_share_what_is_pushed_to_one(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    carol = cluster.start("carol", join=[alice])
    with Client(alice.http) as at_alice:
        image = at_alice.push_image("team/app", "1.0", [layer(3 * MIB), layer(100), layer(MIB)])
    for node in (bob, carol):
        assert node.wait_manifest("team/app", "1.0") == image.digest
        with Client(node.http) as client:
            assert client.pull_image("team/app", "1.0") > 4 * MIB


def test_a_node_that_joins_late_learns_all_tags(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    with Client(alice.http) as client:
        for number in range(40):
            client.push_image("team/app", f"v{number}", [layer(100)])
    bob = cluster.start("bob", join=[alice])
    with Client(bob.http) as client:
        expected = sorted(f"v{number}" for number in range(40))
        wait_until(lambda: client.tags("team/app") == expected, "bob knows all tags")
        for number in (0, 20, 39):
            client.pull_image("team/app", f"v{number}")


def test_what_was_acknowledged_survives_kill_9(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    for round_ in range(3):
        with Client(alice.http) as client:
            image = client.push_image("team/app", f"v{round_}", [layer(5 * MIB), layer(10)])
        alice.kill()
        alice.start()
        with Client(alice.http) as client:
            assert client.manifest("team/app", f"v{round_}")
            client.pull_image("team/app", image.digest)
    with Client(alice.http) as client:
        assert client.tags("team/app") == ["v0", "v1", "v2"]


def test_an_upload_goes_on_after_kill_9(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    first, second = layer(3 * MIB), layer(MIB)
    location = httpx.post(alice.url("/v2/team/app/blobs/uploads/")).headers["Location"]
    answer = httpx.patch(alice.url(location), content=first)
    assert answer.status_code == 202
    location = answer.headers["Location"]
    alice.kill()
    alice.start()
    answer = httpx.get(alice.url(location))
    assert (answer.status_code, answer.headers["Range"]) == (204, f"0-{len(first) - 1}")
    digest = str(Digest.of(first + second))
    answer = httpx.put(alice.url(location), params={"digest": digest}, content=second)
    assert answer.status_code == 201, answer.text
    with Client(alice.http) as client:
        assert client.pull_blob("team/app", digest) == 4 * MIB


def test_bob_pulls_from_carol_when_alice_is_gone(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    carol = cluster.start("carol", join=[alice])
    bob = cluster.start("bob", join=[alice, carol])
    with Client(alice.http) as client:
        client.push_image("team/app", "1.0", [layer(4 * MIB)])
    carol.wait_manifest("team/app", "1.0")
    with Client(carol.http) as client:
        client.pull_image("team/app", "1.0")
    alice.kill()
    bob.wait_manifest("team/app", "1.0")
    with Client(bob.http) as client:
        assert client.pull_image("team/app", "1.0") > 4 * MIB


def test_a_layer_nobody_in_reach_has_is_a_clear_error_and_no_hang(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice], IPFSREG_FETCH_GIVE_UP_S="2")
    with Client(alice.http) as client:
        image = client.push_image("team/app", "1.0", [layer(4 * MIB)])
    bob.wait_manifest("team/app", "1.0")
    alice.kill()
    began = time.monotonic()
    answer = httpx.get(bob.url(f"/v2/team/app/blobs/{image.layers[0]}"), timeout=30)
    assert time.monotonic() - began < 10
    assert answer.status_code == 503
    assert "no peer in reach" in answer.text
    alice.start()
    bob.wait_peers(1)
    with Client(bob.http) as client:
        assert client.pull_blob("team/app", image.layers[0]) == 4 * MIB


def test_two_nodes_that_were_cut_off_merge_what_each_took(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    with Client(alice.http) as client:
        client.push_image("team/app", "base", [layer(100)])
    bob.wait_manifest("team/app", "base")
    # Cut off: neither can see the other, each goes on taking pushes.
    alice.pause()
    wait_until(lambda: not bob.status()["peers"], "bob noticed that alice is gone", 60)
    with Client(bob.http) as client:
        bobs = client.push_image("team/app", "from-bob", [layer(MIB)])
        bobs_latest = client.push_image("team/app", "latest", [layer(200)])
    bob.pause()
    alice.wake()
    wait_until(lambda: not alice.status()["peers"], "alice noticed that bob is gone", 60)
    with Client(alice.http) as client:
        alices = client.push_image("team/app", "from-alice", [layer(MIB)])
        alices_latest = client.push_image("team/app", "latest", [layer(300)])
    bob.wake()
    assert alice.wait_manifest("team/app", "from-bob", 60) == bobs.digest
    assert bob.wait_manifest("team/app", "from-alice", 60) == alices.digest
    winner = alice.wait_manifest("team/app", "latest")
    assert winner in (alices_latest.digest, bobs_latest.digest)
    wait_until(lambda: bob.wait_manifest("team/app", "latest") == winner, "one winner on both")
    for node in (alice, bob):
        with Client(node.http) as client:
            assert client.tags("team/app") == ["base", "from-alice", "from-bob", "latest"]
            for tag in client.tags("team/app"):
                client.pull_image("team/app", tag)


def test_a_layer_of_a_gibibyte_goes_through_in_little_memory(cluster: Cluster, tmp_path: Path) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    big = tmp_path / "layer"
    with big.open("wb") as file:
        for _ in range(64):
            file.write(layer(16 * MIB))
    with Client(alice.http) as client:
        client.push_image("team/app", "big", [big])
    big.unlink()
    bob.wait_manifest("team/app", "big")
    with Client(bob.http) as client:
        assert client.pull_image("team/app", "big") > 1024 * MIB
    for node in (alice, bob):
        assert node.peak_rss() < 250 * MIB, f"{node.name} had {node.peak_rss() / MIB:.0f} MiB"


def test_the_start_tells_what_people_and_scripts_wait_for_in_order(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    told = "\n".join(alice.lines)
    places = [
        told.index(piece)
        for piece in (
            f"datastore {alice.directory / 'data'}",
            "peer ID 12D3KooW",
            "listening on /ip4/127.0.0.1/tcp/",
            "topic ipfs-registry",
            "swarm private",
            "bootstrappers none",
            "replica ready",
            "registry at http://127.0.0.1:",
        )
    ]
    assert places == sorted(places)


def test_sigterm_finishes_what_is_in_flight_and_exits_0(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    location = httpx.post(alice.url("/v2/team/app/blobs/uploads/")).headers["Location"]

    def slowly() -> Iterator[bytes]:
        yield layer(1000)
        assert alice.process is not None
        alice.process.terminate()
        alice.wait_line("stopping")
        yield layer(1000)

    answer = httpx.patch(alice.url(location), content=slowly())
    assert answer.status_code == 202
    assert answer.headers["Range"] == "0-1999"
    assert alice.process is not None
    assert alice.process.wait(30) == 0


def test_a_second_daemon_on_the_same_datastore_is_refused(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    second = Daemon("second", alice.directory, {})
    second.start(wait=False)
    assert second.process is not None
    assert second.process.wait(30) == 1
    assert "another ipfsreg" in "\n".join(second.lines)


def test_a_second_daemon_on_the_same_port_is_refused(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    for key, value in (
        ("IPFSREG_HTTP_LISTEN", alice.http),
        ("IPFSREG_P2P_LISTEN_ADDRS", alice.multiaddr.split("/p2p/")[0]),
    ):
        bob = cluster.add(f"bob-{key.lower()}")
        bob.environment[key] = value
        bob.start(wait=False)
        assert bob.process is not None
        assert bob.process.wait(30) == 1
        bob.wait_line("in use|listens on")


def test_a_wrong_key_in_the_configuration_stops_the_start(cluster: Cluster) -> None:
    alice = cluster.add("alice", IPFSREG_NODE_LOG_LEVEL="loud")
    with pytest.raises(DaemonFailed, match="ended with"):
        Daemon.start(alice)


def test_a_node_without_the_swarm_key_is_kept_out(cluster: Cluster, tmp_path: Path) -> None:
    alice = cluster.start("alice")
    with Cluster(tmp_path / "elsewhere") as elsewhere:
        elsewhere.add("eve")  # whose swarm key mallory has
        mallory = elsewhere.add("mallory", join=[alice]).start()
        alice.wait_line("PSK|swarm key|pre-shared")
        assert mallory.status()["peers"] == []
        assert alice.status()["peers"] == []


def test_status_and_id_can_be_asked_of_a_running_node(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    with Client(alice.http) as client:
        client.push_image("team/app", "1.0", [layer(MIB)])
    bob.wait_manifest("team/app", "1.0")
    for node in (alice, bob):
        command = [sys.executable, "-m", "ipfsreg"]
        shown = subprocess.run(
            [*command, "status", "--config", str(node.config_path)], capture_output=True, text=True, check=True
        ).stdout
        assert "peers         1" in shown
        assert "tags          1" in shown
        peer_id = subprocess.run(
            [*command, "id", "--config", str(node.config_path)], capture_output=True, text=True, check=True
        ).stdout.strip()
        node.wait_line(rf"listening on {node.multiaddr}$")
        assert node.multiaddr.endswith(peer_id)
    assert alice.status()["replica"]["heads"] == bob.status()["replica"]["heads"]


def test_a_blob_tells_the_root_any_ipfs_tool_fetches_it_by(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    with Client(alice.http) as client:
        digest = client.push_blob("team/app", bytes(MIB))
    answer = httpx.head(alice.url(f"/v2/team/app/blobs/{digest}"))
    assert answer.headers["X-Ipfs-Roots"] == "bafkreibq4fevl27rgurgnxbp7adh42aqiyd6ouflxhj3gzmcxcxzbh6lla"

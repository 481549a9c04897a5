"""`ipfsreg epoch` against real daemons: sealed, compared, rotated one after the other, open again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from ipfsreg.cli.main import main
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.journey


def run(daemon: Daemon, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["epoch", command, "--config", str(daemon.config_path), *arguments])


def next_head(daemon: Daemon) -> str:
    head: str = json.loads(run(daemon, "status", "--json").output)["next_head"]
    return head


def test_a_swarm_goes_to_the_next_epoch_node_by_node(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_text("one")
    with Cluster(tmp_path / "nodes") as cluster:
        alice = cluster.start("alice")
        bob = cluster.start("bob", join=[alice])
        with Client(alice.http) as client:
            for number in range(4):
                layer.write_text(f"{number}")
                client.push_image("team/app", "latest", [layer])
            client.push_image("team/app", "1.0", [layer])
        digest = alice.wait_manifest("team/app", "1.0")
        bob.wait_manifest("team/app", "1.0")

        assert "open" in run(alice, "status").output
        for daemon in (alice, bob):
            assert "epoch         1, sealed" in run(daemon, "seal").output
        refused = httpx.delete(bob.url("/v2/team/app/manifests/1.0"))
        assert refused.status_code == 503
        assert refused.json()["errors"][0]["code"] == "UNAVAILABLE"
        deadline = time.monotonic() + 20
        while next_head(alice) != next_head(bob) and time.monotonic() < deadline:
            time.sleep(0.1)
        head = next_head(alice)
        assert run(alice, "next", "--head", head).exit_code == 1, "it runs"

        bob.stop()
        assert run(bob, "next", "--head", head).exit_code == 0
        alice.stop()
        wrong = run(alice, "next", "--head", "bafybeid5l73nflwwosmcnffli3grm4bdrkuqtv3ukfbk3v6xc57h62euci")
        assert wrong.exit_code == 1
        assert "wait until all nodes have the same names" in wrong.output
        done = run(alice, "next", "--head", head)
        assert done.exit_code == 0, done.output
        assert "epoch      2, in the topic" in done.output
        alice.start()
        bob.start()
        for daemon in (alice, bob):
            assert daemon.wait_manifest("team/app", "1.0") == digest
            status = json.loads(run(daemon, "status", "--json").output)
            assert (status["epoch"], status["sealed"], status["heads"]) == (2, False, [head])
            assert status["topic"].endswith(".e2")
            moves = CliRunner().invoke(main, ["log", "--config", str(daemon.config_path), "--json", "team/app:latest"])
            assert len(json.loads(moves.output)) == 4, "the history of tags is names, and stays"
        alice.wait_peers(1)
        with Client(bob.http) as client:
            layer.write_text("new")
            client.push_image("team/app", "2.0", [layer])
        alice.wait_manifest("team/app", "2.0")

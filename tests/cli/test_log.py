"""`ipfsreg log` and `ipfsreg rollback` against a real daemon."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner, Result

from ipfsreg.cli.main import main
from ipfsreg.testing.daemons import Cluster
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.journey


def test_a_tag_is_rolled_back_from_the_command_line(tmp_path: Path) -> None:
    with Cluster(tmp_path / "nodes") as cluster:
        alice = cluster.start("alice")
        digests = []
        with Client(alice.http) as client:
            for content in ("one", "two"):
                layer = tmp_path / content
                layer.write_text(content)
                client.push_image("team/app", "latest", [layer])
                answer = httpx.head(alice.url("/v2/team/app/manifests/latest"))
                digests.append(answer.headers["Docker-Content-Digest"])
        first, second = digests
        assert first != second

        def run(*arguments: str) -> Result:
            command, *rest = arguments
            return CliRunner().invoke(main, [command, "--config", str(alice.config_path), *rest])

        log = run("log", "team/app:latest").output.splitlines()
        assert [line.split()[0] for line in log] == ["0", "1"]
        assert log[0].endswith(f"{first} -> {second}")
        assert log[1].endswith(f"nothing -> {first}")
        assert run("rollback", "team/app:latest", "--to", "1").output.endswith(f"{second} -> {first}\n")
        assert httpx.head(alice.url("/v2/team/app/manifests/latest")).headers["Docker-Content-Digest"] == first
        moves = json.loads(run("log", "--json", "team/app:latest").output)
        assert [(move["step"], move["from"], move["to"]) for move in moves] == [
            (0, second, first),
            (1, first, second),
            (2, None, first),
        ]
        refused = run("rollback", "team/app:latest", "--to", "9")
        assert refused.exit_code == 1
        assert refused.output == "Error: team/app:latest pointed at nothing 9 moves ago\n"
        assert run("log", "team/app").exit_code == run("log", "none:none").exit_code == 1

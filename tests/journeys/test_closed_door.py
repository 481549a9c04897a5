"""A node with a closed door, and what changes while it runs."""

from __future__ import annotations

import json
import signal
import ssl
from pathlib import Path

import httpx
import pytest

from ipfsreg.cli.passwd import remove_user, set_password
from ipfsreg.testing.closed import ClosedDoor, make_closed_door
from ipfsreg.testing.daemons import Cluster, Daemon

pytestmark = [pytest.mark.journey, pytest.mark.timeout(120)]


@pytest.fixture
def closed(tmp_path: Path) -> ClosedDoor:
    return make_closed_door(tmp_path / "door")


def connect(node: Daemon, door: ClosedDoor, user: str | None = None) -> httpx.Client:
    auth = (user, door.users[user]) if user else None
    return httpx.Client(base_url=node.url(""), auth=auth, verify=door.authority.client_context(), timeout=30)


def hang_up(node: Daemon, line: str) -> None:
    """SIGHUP; return when *line* is logged after it."""
    assert node.process is not None
    before = len(node.lines)
    node.process.send_signal(signal.SIGHUP)
    node.wait_line(line, after=before)


def certificate(node: Daemon, door: ClosedDoor) -> str:
    """What a new connection is shown."""
    host, _, port = node.http.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), ca_certs=str(door.authority.certificate))


def test_certificates_passwords_and_the_audit_log_change_while_a_node_runs(tmp_path: Path, closed: ClosedDoor) -> None:
    with Cluster(tmp_path) as cluster:
        alice = cluster.start("alice", (), None, **closed.environment())
        with connect(alice, closed, "alice") as old:
            assert old.get("/v2/").status_code == 200
            first = certificate(alice, closed)

            # A broken certificate is refused and told, and nothing else happens.
            (closed.directory / "server.crt").write_text("broken")
            hang_up(alice, r"not reloaded, .* http\.tls_certificate")
            assert certificate(alice, closed) == first

            closed.authority.issue("server")
            set_password(closed.htpasswd, "dave", "dave's")
            remove_user(closed.htpasswd, "bob")
            closed.audit.rename(closed.audit.with_suffix(".1"))
            hang_up(alice, r"reloaded .*audit\.jsonl")
            assert certificate(alice, closed) != first
            assert old.get("/v2/").status_code == 200, "on the connection that was there before"
        with connect(alice, closed) as new:
            assert new.get("/token", auth=("dave", "dave's")).status_code == 200
            assert new.get("/token", auth=("bob", closed.users["bob"])).status_code == 401
        told = [json.loads(line) for line in closed.audit.read_text().splitlines()]
        assert [(line["event"], line.get("user") or line.get("tried")) for line in told] == [
            ("login", "dave"),
            ("refused", "bob"),
        ]
        assert alice.stop() == 0

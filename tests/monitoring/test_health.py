"""Whether a node lives, and whether it should be sent requests."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.blockstore import disk
from ipfsreg.blockstore.room import StoreLimits
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.errors import StoreError
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import open_server
from ipfsreg.monitoring import health as health_module
from ipfsreg.monitoring.health import Health, open_health
from ipfsreg.monitoring.parts import Parts
from ipfsreg.testing.http_client import connect_http


class Synced:
    """As much of a replica as its readiness needs."""

    synced = True


@asynccontextmanager
async def running(directory: Path, limits: StoreLimits | None = None) -> AsyncIterator[tuple[Parts, Health]]:
    """A node's store, with a replica that has caught up."""
    async with (
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database, limits) as (_, blobs),
    ):
        parts = Parts(database=database, blobs=blobs)
        parts.replica = cast("Any", Synced())
        parts.registry = cast("Any", object())
        async with open_health(parts) as health:
            yield parts, health


async def faults_of(health: Health) -> dict[str, str]:
    return {check.name: check.fault for check in await health.checks() if check.fault}


async def test_a_node_that_runs_is_ready(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, health):
        assert [(check.name, check.fault) for check in await health.checks()] == [
            ("running", ""),
            ("replica", ""),
            ("store", ""),
            ("disk", ""),
        ]
    assert list((tmp_path / "scratch").iterdir()) == []


async def test_a_node_that_starts_says_what_it_waits_for(tmp_path: Path) -> None:
    async with open_health(Parts()) as health:
        assert await faults_of(health) == {
            "running": "the node is starting",
            "replica": "not open yet",
            "store": "not open yet",
        }
    async with running(tmp_path) as (parts, health):
        catching_up = Synced()
        catching_up.synced = False
        parts.replica = cast("Any", catching_up)
        assert await faults_of(health) == {"replica": "catching up with the names of the swarm"}


async def test_a_node_that_stops_is_not_ready(tmp_path: Path) -> None:
    async with running(tmp_path) as (parts, health):
        parts.stopping = True
        assert await faults_of(health) == {"running": "the node is stopping"}


async def test_a_disk_that_is_nearly_full_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk.Disk, "space", lambda self: (5 << 20, 1 << 40))
    async with running(tmp_path, StoreLimits(reserve_bytes=64 << 20)) as (_, health):
        assert await faults_of(health) == {"disk": "5 MiB are free, 64 MiB are kept so"}
    # Of a small disk less is kept, as for pushes.
    monkeypatch.setattr(disk.Disk, "space", lambda self: (5 << 20, 40 << 20))
    async with running(tmp_path, StoreLimits(reserve_bytes=64 << 20)) as (_, health):
        assert await faults_of(health) == {}


async def test_a_store_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    async with running(tmp_path) as (_, health):
        (tmp_path / "scratch").rmdir()
        (fault,) = (await faults_of(health)).items()
        assert fault[0] == "store"
        assert "No such file" in fault[1]


async def test_a_database_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running(tmp_path) as (parts, health):
        assert parts.database is not None

        async def write(work: object) -> None:
            raise StoreError("database: disk I/O error")

        monkeypatch.setattr(parts.database, "write", write)
        assert await faults_of(health) == {"store": "database: disk I/O error"}
        monkeypatch.undo()


async def test_a_disk_that_hangs_hangs_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "PATIENCE_S", 0.05)
    async with running(tmp_path) as (parts, health):
        assert parts.database is not None

        async def hang(work: object) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(parts.database, "write", hang)
        for _ in range(2):
            assert await faults_of(health) == {"store": "the disk does not answer within 0.05 s"}


async def test_many_questions_are_one_look_at_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    try_to_write = disk.Disk.try_to_write

    def count(self: disk.Disk) -> None:
        nonlocal looks
        looks += 1
        try_to_write(self)

    monkeypatch.setattr(disk.Disk, "try_to_write", count)
    async with running(tmp_path) as (_, health), trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(health.checks)
    assert looks == 1


async def test_probes_are_answered_before_the_handler_sees_them(tmp_path: Path) -> None:
    async def handler(request: Request) -> Response:
        return Response(418)

    async with (
        running(tmp_path) as (parts, health),
        open_server(health.answering(handler), listen=["127.0.0.1:0"]) as server,
        connect_http(server.places[0]) as client,
    ):
        alive = await client.request("GET", "/healthz")
        assert (alive.status, json.loads(alive.body)) == (200, {"alive": True})
        ready = await client.request("GET", "/readyz?verbose")
        assert (ready.status, ready.headers["content-type"]) == (200, "application/json")
        assert ready.headers["cache-control"] == "no-store"
        assert json.loads(ready.body) == {
            "ready": True,
            "checks": {"running": "ok", "replica": "ok", "store": "ok", "disk": "ok"},
        }
        parts.stopping = True
        stopping = await client.request("GET", "/readyz")
        assert stopping.status == 503
        assert json.loads(stopping.body) == {"ready": False, "checks": {"running": "the node is stopping"}}
        assert (await client.request("HEAD", "/readyz")).status == 503
        assert (await client.request("GET", "/healthz")).status == 200
        assert (await client.request("POST", "/healthz")).status == 405
        assert (await client.request("GET", "/v2/")).status == 418


async def test_the_lag_of_the_loop_is_measured_four_times_a_second(autojump_clock: MockClock) -> None:
    parts = Parts()
    async with open_health(parts):
        await trio.sleep(1.1)
    assert parts.lag_seconds.counts[0] == 4

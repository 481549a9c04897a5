"""What a node tells in numbers, asked of one that runs."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

from ipfsreg.config import load_config
from ipfsreg.crdt.interface import Put
from ipfsreg.monitoring import door
from ipfsreg.node import Node, open_node
from ipfsreg.testing.certificates import Authority
from ipfsreg.testing.http_client import Answer, HttpClient, connect_http

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def watched_node(
    directory: Path, caplog: pytest.LogCaptureFixture, **environment: str
) -> AsyncIterator[tuple[Node, HttpClient, HttpClient]]:
    """A node, a client at its front door, and one at its metrics."""
    caplog.set_level(logging.INFO, "ipfsreg")
    values = {
        "NODE_DATASTORE_PATH": str(directory),
        "P2P_PROTECTOR_KEY": "ab" * 32,
        "P2P_LISTEN_ADDRS": "/ip4/127.0.0.1/tcp/0",
        "HTTP_LISTEN": "127.0.0.1:0",
        "METRICS_LISTEN": "127.0.0.1:0",
        **environment,
    }
    config = load_config(None, {f"IPFSREG_{name}": value for name, value in values.items()})
    async with open_node(config) as node:
        log = "\n".join(record.getMessage() for record in caplog.records)
        front = re.findall(r"registry at http://(\S+)", log)[-1]
        metrics = re.findall(r"metrics at http://(\S+)/metrics", log)[-1]
        async with connect_http(front) as client, connect_http(metrics) as watcher:
            yield node, client, watcher


def families_of(answer: Answer) -> dict[str, tuple[str, frozenset[str]]]:
    """Name -> type and labels."""
    found: dict[str, tuple[str, frozenset[str]]] = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        labels = {label for sample in family.samples for label in sample.labels if label != "le"}
        found[family.name] = (family.type, frozenset(labels))
    return found


def samples_of(answer: Answer) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.body.decode())
        for sample in family.samples
    }


async def push_image(client: HttpClient) -> None:
    blob = await client.request("POST", f"/v2/team/app/blobs/uploads/?digest={EMPTY_JSON}", body=b"{}")
    assert blob.status == 201
    described = f'{{"mediaType":"application/vnd.oci.empty.v1+json","digest":"{EMPTY_JSON}","size":2}}'
    manifest = f'{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{described},"layers":[]}}'.encode()
    assert (await client.request("PUT", "/v2/team/app/manifests/1.0", {"Content-Type": IMAGE}, manifest)).status == 201


IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_JSON = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"


async def test_the_manual_lists_what_is_exported_and_nothing_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    issued = Authority(tmp_path / "ca").issue()
    everything = {
        "NOTIFICATIONS_ENDPOINTS": '[{"name": "ci", "url": "http://127.0.0.1:1/"}]',
        "HTTP_LISTEN": "http://127.0.0.1:0,https://127.0.0.1:0",
        "HTTP_TLS_CERTIFICATE": str(issued.certificate),
        "HTTP_TLS_KEY": str(issued.key),
    }
    async with watched_node(tmp_path, caplog, **everything) as (_, client, watcher):
        await push_image(client)
        answer = await watcher.request("GET", "/metrics")
    exported = {name: kind for name, kind in families_of(answer).items() if name.startswith("ipfsreg_")}
    text = (ROOT / "docs" / "operations.md").read_text()
    rows = re.findall(r"^\| `(ipfsreg_\w+)`(?: \{([^}]*)\})? \| (\w+) \|", text, re.MULTILINE)
    told = {
        # The parser leaves the suffix of counters away, people need it.
        name.removesuffix("_total"): (kind, frozenset(label.strip() for label in labels.split(",") if label))
        for name, labels, kind in rows
    }
    assert exported == told


async def test_what_clients_did_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched_node(tmp_path, caplog) as (_, client, watcher):
        await push_image(client)
        for _ in range(3):
            assert (await client.request("GET", "/v2/team/app/manifests/1.0")).status == 200
        assert (await client.request("GET", "/v2/team/app/manifests/2.0")).status == 404
        assert (await client.request("GET", "/no/such/path")).status == 404
        answer = await watcher.request("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples = samples_of(answer)

    def requests(method: str, route: str, code: int) -> float:
        labels = (("code", str(code)), ("method", method), ("route", route))
        return samples["ipfsreg_http_requests_total", labels]

    assert requests("GET", "manifest", 200) == 3
    assert requests("GET", "manifest", 404) == 1
    assert requests("PUT", "manifest", 201) == 1
    assert requests("POST", "uploads", 201) == 1
    assert requests("GET", "none", 404) == 1
    assert samples["ipfsreg_http_request_seconds_count", (("method", "GET"), ("route", "manifest"))] == 4
    assert samples["ipfsreg_http_connections", ()] == 1
    assert samples["ipfsreg_blobs", (("state", "inline"),)] == 2
    assert samples["ipfsreg_replica_ready", ()] == 1
    assert samples["ipfsreg_names", ()] == 4
    assert samples["ipfsreg_database_commit_seconds_count", ()] > 0
    assert samples["ipfsreg_disk_free_bytes", ()] > 0
    assert samples["process_resident_memory_bytes", ()] > 1 << 20


async def test_openmetrics_is_given_to_who_asks_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched_node(tmp_path, caplog) as (_, _, watcher):
        answer = await watcher.request("GET", "/metrics", {"Accept": "application/openmetrics-text; version=1.0.0"})
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.body.endswith(b"# EOF\n")
        assert (await watcher.request("GET", "/")).status == 404
        assert (await watcher.request("POST", "/metrics")).status == 405
        assert (await watcher.request("GET", "/readyz")).status == 200


async def test_the_front_door_has_probes_and_no_metrics(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with watched_node(tmp_path, caplog) as (_, client, _):
        assert (await client.request("GET", "/healthz")).status == 200
        assert (await client.request("GET", "/readyz")).status == 200
        assert (await client.request("GET", "/metrics")).status == 404


def test_by_default_metrics_are_told_nowhere() -> None:
    assert load_config(None, {"IPFSREG_P2P_PROTECTOR_KEY": "ab" * 32}).metrics.listen == ()


async def test_a_stopping_node_says_so_while_it_still_answers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said: list[int] = []

    async def ask(places: list[str]) -> None:
        for place in places:
            async with connect_http(place) as late:
                said.append((await late.request("GET", "/readyz")).status)
                said.append((await late.request("GET", "/healthz")).status)

    async with (
        trio.open_nursery() as nursery,
        watched_node(tmp_path, caplog, NODE_UNREADY_S="1.0") as (_, client, watcher),
    ):
        assert (await client.request("GET", "/readyz")).status == 200
        places = ["{}:{}".format(*one.stream.socket.getpeername()) for one in (client, watcher)]
        nursery.start_soon(ask, places)
    assert said == [503, 200, 503, 200]


async def test_scrapes_of_a_large_store_do_not_hold_up_the_loop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "COUNT_EVERY_S", 0.0)
    async with watched_node(tmp_path, caplog) as (node, _, watcher):
        for start in range(0, 20_000, 2000):
            await node.replica.commit([Put(f"/r/a/_t/{n}", b"x" * 40) for n in range(start, start + 2000)])
        worst = 0.0
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal worst
                while True:
                    began = time.thread_time()
                    await trio.lowlevel.checkpoint()
                    worst = max(worst, time.thread_time() - began)

            nursery.start_soon(watch)
            for _ in range(5):
                answer = await watcher.request("GET", "/metrics")
            nursery.cancel_scope.cancel()
        assert samples_of(answer)["ipfsreg_names", ()] == 20_000
    # CPU time of the loop's thread, so that a busy machine does not count. A walk over the names takes 20 ms.
    assert worst < 0.015

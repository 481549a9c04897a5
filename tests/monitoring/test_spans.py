"""Spans, as a collector gets them."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from ipfsreg import tracing
from ipfsreg.config import TracingConfig, load_config
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.errors import ConfigError
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import ServerSettings, open_server
from ipfsreg.monitoring import spans as module
from ipfsreg.monitoring.spans import open_tracing
from ipfsreg.node import Node, open_node
from ipfsreg.oci.digest import Digest
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import HttpClient, connect_http
from ipfsreg.testing.network import MemorySwarm

IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_JSON = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
MANIFEST = (
    f'{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"application/vnd.oci.empty.v1+json",'
    f'"digest":"{EMPTY_JSON}","size":2}},"layers":[]}}'
).encode()
SERVER = 2


class Collector:
    """Takes OTLP over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.headers: dict[str, str] = {}

    async def __call__(self, request: Request) -> Response:
        assert request.target == "/v1/traces"
        assert request.headers["content-type"] == "application/x-protobuf"
        self.headers = request.headers
        message = ExportTraceServiceRequest.FromString(await request.body.read_all(1 << 24))
        for group in message.resource_spans:
            self.resources.append({one.key: one.value.string_value for one in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]
        return Response(200, (("Content-Type", "application/x-protobuf"),))

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]


def attributes_of(span: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in span.attributes}


@asynccontextmanager
async def traced_node(
    directory: Path, caplog: pytest.LogCaptureFixture, collector: str, **environment: str
) -> AsyncIterator[tuple[Node, HttpClient]]:
    caplog.set_level(logging.INFO, "ipfsreg")
    values = {
        "NODE_DATASTORE_PATH": str(directory),
        "P2P_PROTECTOR_KEY": "ab" * 32,
        "P2P_LISTEN_ADDRS": "/ip4/127.0.0.1/tcp/0",
        "HTTP_LISTEN": "127.0.0.1:0",
        "TRACING_ENDPOINT": f"http://{collector}/v1/traces",
        **environment,
    }
    config = load_config(None, {f"IPFSREG_{name}": value for name, value in values.items()})
    async with open_node(config) as node:
        front = re.findall(r"registry at http://(\S+)", caplog.text)[-1]
        async with connect_http(front) as client:
            yield node, client


async def test_requests_and_merges_are_spans(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    async with open_server(collector, listen=["127.0.0.1:0"]) as server:
        async with traced_node(
            tmp_path, caplog, server.places[0], TRACING_HEADERS='{"Authorization": "Bearer s3cret"}'
        ) as (node, client):
            peer = str(node.host.peer_id)
            blobs = "/v2/team/app/blobs/uploads/"
            assert (await client.request("POST", f"{blobs}?digest={EMPTY_JSON}", body=b"{}")).status == 201
            headers = {"Content-Type": IMAGE, "User-Agent": "crane/0.20", "traceparent": f"00-{'a' * 32}-{'b' * 16}-01"}
            path = "/v2/team/app/manifests/1.0"
            assert (await client.request("PUT", path, headers, MANIFEST)).status == 201
            for _ in range(2):
                assert (await client.request("GET", f"{path}?token=s3cret")).status == 200
            assert (await client.request("GET", "/v2/team/app/manifests/none")).status == 404
            assert (await client.request("GET", "/readyz")).status == 200
        assert not tracing.is_on()
    assert collector.headers["authorization"] == "Bearer s3cret"
    assert collector.resources[0]["service.name"] == "ipfsreg"
    assert collector.resources[0]["service.instance.id"] == peer
    (push,) = collector.named("PUT manifest")
    assert push.kind == SERVER
    assert attributes_of(push) == {
        "http.request.method": "PUT",
        "url.path": "/v2/team/app/manifests/1.0",
        "client.address": "127.0.0.1",
        "user_agent.original": "crane/0.20",
        "http.response.status_code": 201,
        "http.route": "manifest",
    }
    assert push.end_time_unix_nano > push.start_time_unix_nano
    assert push.trace_id.hex() != "a" * 32
    assert push.parent_span_id == b""
    assert [attributes_of(span)["http.response.status_code"] for span in collector.named("GET manifest")] == [
        200,
        200,
        404,
    ]
    assert "s3cret" not in str(collector.spans)
    assert not collector.named("GET health")
    commits = [span for span in collector.named("crdt.merge") if attributes_of(span)["ipfsreg.commits"]]
    assert attributes_of(commits[0])["ipfsreg.changes"] > 0
    assert commits[0].parent_span_id == b""


async def test_a_clients_traceparent_is_heeded_where_the_operator_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    collector = Collector()
    async with (
        open_server(collector, listen=["127.0.0.1:0"]) as server,
        traced_node(tmp_path, caplog, server.places[0], TRACING_HEED_TRACEPARENT="true", TRACING_SAMPLE_RATIO="0") as (
            _,
            client,
        ),
    ):
        await client.request("GET", "/v2/", {"traceparent": f"00-{'a' * 32}-{'b' * 16}-01"})
        await client.request("GET", "/v2/", {"traceparent": "nonsense"})
        await client.request("GET", "/v2/")
    (span,) = collector.spans
    assert (span.name, span.trace_id.hex(), span.parent_span_id.hex()) == ("GET ping", "a" * 32, "b" * 16)


async def test_a_fetch_is_a_span_with_its_stages(tmp_path: Path) -> None:
    collector, names, swarm = Collector(), MemoryNames(), MemorySwarm()
    blob = bytes(range(256)) * 4096
    digest = Digest.of(blob)
    alices, bobs = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with (
        open_server(collector, listen=["127.0.0.1:0"]) as server,
        open_front_door(tmp_path, names=names, endpoint=alices) as alice,
        connect_http(alice.places[0]) as pusher,
    ):
        answer = await pusher.request("POST", f"/v2/a/blobs/uploads/?digest={digest}", body=blob)
        assert answer.status == 201
        described = f'{{"mediaType":"application/x-layer","digest":"{digest}","size":{len(blob)}}}'
        manifest = f'{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{described},"layers":[]}}'.encode()
        assert (await pusher.request("PUT", "/v2/a/manifests/1", {"Content-Type": IMAGE}, manifest)).status == 201
        settings = TracingConfig(endpoint=f"http://{server.places[0]}/v1/traces")
        async with (
            open_tracing(settings, instance="bob"),
            open_front_door(tmp_path, names=names, endpoint=bobs) as bob,
            connect_http(bob.places[0]) as puller,
        ):
            await bobs.connect(PeerInfo(alices.peer_id, ()))
            assert (await puller.request("GET", f"/v2/a/blobs/{digest}")).body == blob
    fetch = next(span for span in collector.named("fetch") if attributes_of(span)["ipfsreg.digest"] == str(digest))
    assert attributes_of(fetch)["ipfsreg.size"] == len(blob)
    assert attributes_of(fetch)["ipfsreg.whole"] is True
    stages = [span for span in collector.spans if span.parent_span_id == fetch.span_id]
    assert [span.name for span in sorted(stages, key=lambda span: span.start_time_unix_nano)] == [
        "fetch.find",
        "fetch.transfer",
    ]
    assert {span.trace_id for span in stages} == {fetch.trace_id}


async def test_a_collector_that_hangs_holds_up_neither_requests_nor_the_stop(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_S", 0.2)
    monkeypatch.setattr(module, "SEND_TIMEOUT_S", 1.0)
    monkeypatch.setattr(module, "SEND_EVERY_S", 0.05)
    asked = trio.Event()

    async def hang(request: Request) -> Response:
        asked.set()
        await trio.sleep_forever()

    settings = ServerSettings(drain_s=0.0)
    async with (
        open_server(hang, listen=["127.0.0.1:0"], settings=settings) as server,
        traced_node(tmp_path, caplog, server.places[0]) as (_, client),
    ):
        with trio.fail_after(20):
            await client.request("GET", "/v2/")
            await asked.wait()
            for _ in range(50):
                assert (await client.request("GET", "/v2/")).status == 200
    assert "does not take the last ones in time" in caplog.text


async def test_without_the_packages_the_start_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ConfigError, match=r"pip install ipfsreg\[otel\]"):
        async with open_tracing(TracingConfig(endpoint="http://127.0.0.1:1/v1/traces"), instance="x"):
            pass

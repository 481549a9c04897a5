"""What happens at a node, as its endpoints hear of it."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from ipfsreg.config import load_config
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.database import open_database
from ipfsreg.errors import ManifestUnknown, StoreDamaged, StoreFull
from ipfsreg.http.paths import FinishUpload, PutManifest
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import open_server
from ipfsreg.node import Node, open_node
from ipfsreg.notifications.delivery import Endpoint
from ipfsreg.notifications.queue import Queue
from ipfsreg.notifications.service import Subscription, open_notifications
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.p2p.identity import Identity
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import MoveRecord, TagRecord
from ipfsreg.testing.http_client import HttpClient, connect_http

IMAGE = "application/vnd.oci.image.manifest.v1+json"
EMPTY_JSON = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
MANIFEST = (
    f'{{"schemaVersion":2,"mediaType":"{IMAGE}","config":{{"mediaType":"application/vnd.oci.empty.v1+json",'
    f'"digest":"{EMPTY_JSON}","size":2}},"layers":[]}}'
).encode()
MANIFEST_DIGEST = str(Digest.of(MANIFEST))


class NoBody:
    length: int | None = 0

    async def read(self) -> memoryview:
        return memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        return 0

    async def read_all(self, limit: int) -> bytes:
        return b""


class Listener:
    """An endpoint that takes everything."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.changed = trio.Event()

    async def __call__(self, request: Request) -> Response:
        self.events += json.loads(await request.body.read_all(1 << 20))["events"]
        self.changed.set()
        self.changed = trio.Event()
        return Response(200)

    async def wait_for(self, count: int) -> list[dict[str, Any]]:
        with trio.fail_after(20):
            while len(self.events) < count:
                await self.changed.wait()
        return self.events


@asynccontextmanager
async def notifying_node(
    directory: Path, caplog: pytest.LogCaptureFixture, *endpoints: dict[str, Any]
) -> AsyncIterator[tuple[Node, HttpClient, HttpClient]]:
    caplog.set_level(logging.INFO, "ipfsreg")
    config = load_config(
        None,
        {
            "IPFSREG_NODE_DATASTORE_PATH": str(directory),
            "IPFSREG_P2P_PROTECTOR_KEY": "ab" * 32,
            "IPFSREG_P2P_LISTEN_ADDRS": "/ip4/127.0.0.1/tcp/0",
            "IPFSREG_HTTP_LISTEN": "127.0.0.1:0",
            "IPFSREG_METRICS_LISTEN": "127.0.0.1:0",
            "IPFSREG_NOTIFICATIONS_ENDPOINTS": json.dumps(endpoints),
        },
    )
    async with open_node(config) as node:
        front = re.findall(r"registry at http://(\S+)", caplog.text)[-1]
        metrics = re.findall(r"metrics at http://(\S+)/metrics", caplog.text)[-1]
        async with connect_http(front) as client, connect_http(metrics) as watcher:
            yield node, client, watcher


async def push(client: HttpClient, repository: str, tag: str) -> None:
    agent = {"User-Agent": "crane/0.20"}
    blob = await client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={EMPTY_JSON}", agent, b"{}")
    assert blob.status == 201
    headers = {"Content-Type": IMAGE, **agent}
    assert (await client.request("PUT", f"/v2/{repository}/manifests/{tag}", headers, MANIFEST)).status == 201


async def test_what_clients_of_the_node_do_is_told_in_order(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener()
    async with (
        open_server(listener, listen=["127.0.0.1:0"]) as server,
        notifying_node(tmp_path, caplog, {"name": "ci", "url": f"http://{server.places[0]}/hook"}) as (
            _,
            client,
            watcher,
        ),
    ):
        await push(client, "team/app", "1.0")
        assert (
            await client.request("POST", f"/v2/team/two/blobs/uploads/?mount={EMPTY_JSON}&from=team/app")
        ).status == 201
        assert (await client.request("DELETE", "/v2/team/app/manifests/1.0")).status == 202
        assert (await client.request("DELETE", f"/v2/team/app/manifests/{MANIFEST_DIGEST}")).status == 202
        assert (await client.request("DELETE", f"/v2/team/two/blobs/{EMPTY_JSON}")).status == 202
        events = await listener.wait_for(6)
        with trio.fail_after(10):
            while True:
                answer = (await watcher.request("GET", "/metrics")).body
                if b'ipfsreg_notifications_waiting{endpoint="ci"} 0.0' in answer:
                    break
                await trio.sleep(0.01)  # a whole node is never quite at rest
    assert b'ipfsreg_notifications_delivered_total{endpoint="ci"} 6.0' in answer
    assert [event["action"] for event in events] == ["push", "push", "mount", "delete", "delete", "delete"]
    blob, manifest, mount, tag_gone, manifest_gone, blob_gone = [event["target"] for event in events]
    assert blob["digest"] == EMPTY_JSON
    assert (blob["size"], blob["length"], blob["mediaType"]) == (2, 2, "application/octet-stream")
    assert re.fullmatch(rf"http://registry\.test/v2/team/app/blobs/{EMPTY_JSON}", blob["url"])
    assert manifest == {
        "mediaType": IMAGE,
        "digest": MANIFEST_DIGEST,
        "size": len(MANIFEST),
        "length": len(MANIFEST),
        "repository": "team/app",
        "url": f"http://registry.test/v2/team/app/manifests/{MANIFEST_DIGEST}",
        "tag": "1.0",
    }
    assert (mount["repository"], mount["fromRepository"]) == ("team/two", "team/app")
    assert tag_gone == {"repository": "team/app", "tag": "1.0"}
    assert manifest_gone == {"repository": "team/app", "digest": MANIFEST_DIGEST}
    assert blob_gone == {"repository": "team/two", "digest": EMPTY_JSON}
    assert len({event["id"] for event in events}) == 6
    request = events[1]["request"]
    assert (request["method"], request["useragent"], request["addr"]) == ("PUT", "crane/0.20", "127.0.0.1")
    assert re.fullmatch(r"[0-9a-f-]{36}", request["id"])
    assert events[0]["source"] == events[5]["source"]
    assert re.fullmatch(r".+:0", events[0]["source"]["addr"])


async def test_an_endpoint_hears_only_what_it_does_not_ignore(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    one, other = Listener(), Listener()
    async with (
        open_server(one, listen=["127.0.0.1:0"]) as first,
        open_server(other, listen=["127.0.0.1:0"]) as second,
        notifying_node(
            tmp_path,
            caplog,
            {
                "name": "manifests",
                "url": f"http://{first.places[0]}",
                "ignore_media_types": ["application/octet-stream"],
                "ignore_actions": ["pull"],
            },
            {"name": "pulls", "url": f"http://{second.places[0]}", "ignore_actions": ["push"]},
        ) as (_, client, _),
    ):
        await push(client, "team/app", "1.0")
        assert (await client.request("GET", "/v2/team/app/manifests/1.0")).status == 200
        assert (await client.request("HEAD", "/v2/team/app/manifests/1.0")).status == 200
        assert (await client.request("GET", f"/v2/team/app/blobs/{EMPTY_JSON}")).status == 200
        await push(client, "team/app", "2.0")
        told, pulls = await one.wait_for(2), await other.wait_for(2)
    assert [(event["action"], event["target"]["tag"]) for event in told] == [("push", "1.0"), ("push", "2.0")]
    assert [(event["action"], event["target"]["digest"]) for event in pulls] == [
        ("pull", MANIFEST_DIGEST),
        ("pull", EMPTY_JSON),
    ]
    assert pulls[0]["target"]["tag"] == "1.0"


async def test_what_was_acknowledged_is_told_after_a_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with notifying_node(tmp_path, caplog, {"name": "ci", "url": "http://127.0.0.1:1/"}) as (_, client, _):
        await push(client, "team/app", "1.0")
    listener = Listener()
    async with (
        open_server(listener, listen=["127.0.0.1:0"]) as server,
        notifying_node(tmp_path, caplog, {"name": "ci", "url": f"http://{server.places[0]}"}),
    ):
        events = await listener.wait_for(2)
    assert [event["target"]["repository"] for event in events] == ["team/app"] * 2


async def test_a_full_disk_costs_the_event_and_not_the_push(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(self: Queue, events: object) -> None:
        raise StoreFull("no room left for the database")

    monkeypatch.setattr(Queue, "put", full)
    async with notifying_node(tmp_path, caplog, {"name": "ci", "url": "http://127.0.0.1:1/"}) as (_, client, watcher):
        await push(client, "team/app", "1.0")
        answer = await watcher.request("GET", "/metrics")
    assert b"ipfsreg_notifications_lost_total 2.0" in answer.body
    assert "1 notifications are lost: no room left" in caplog.text


OURS, THEIRS = Identity.generate().peer_id, Identity.generate().peer_id
REPOSITORY, TAG = RepositoryName("team/app"), Tag("1.0")
DIGEST = Digest("sha256", "ab" * 32)


class Unreadable:
    """As much of a registry as is asked: it holds what it cannot read any more."""

    async def stat_manifest(self, repository: object, reference: object) -> None:
        raise StoreDamaged("unreadable")

    def blob_size(self, repository: object, digest: object) -> int:
        raise StoreDamaged("unreadable")


@pytest.mark.parametrize(
    "action", [PutManifest(REPOSITORY, TAG, ()), FinishUpload(REPOSITORY, "upload", DIGEST)], ids=["manifest", "blob"]
)
async def test_a_store_that_cannot_be_read_costs_the_size_and_not_the_push(
    tmp_path: Path, action: PutManifest | FinishUpload
) -> None:
    listener = Listener()
    async with (
        open_server(listener, listen=["127.0.0.1:0"]) as server,
        open_database(tmp_path / "node.db") as database,
        open_notifications(
            database,
            Unreadable(),  # type: ignore[arg-type]
            MemoryNames(),
            [Subscription(endpoint=Endpoint(name="a", url=f"http://{server.places[0]}"))],
            peer=OURS,
            addr="r:5000",
        ) as notifications,
    ):
        request = Request("PUT", "/v2/team/app", {}, NoBody(), "192.0.2.1")
        await notifications.note(request, action, Response(201, (("Docker-Content-Digest", str(DIGEST)),)))
        (event,) = await listener.wait_for(1)
    assert (event["action"], event["target"]["digest"]) == ("push", str(DIGEST))
    assert "size" not in event["target"]


async def test_a_push_is_not_measured_as_if_a_client_had_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    digest = Digest.parse(EMPTY_JSON)
    async with notifying_node(tmp_path, caplog, {"name": "ci", "url": "http://127.0.0.1:1/"}) as (node, client, _):
        await push(client, "team/app", "1.0")
        assert not node.registry._holds.is_told(digest)
        assert (await client.request("HEAD", f"/v2/team/app/blobs/{EMPTY_JSON}")).status == 200
        assert node.registry._holds.is_told(digest)


class NoManifests:
    """As much of a registry as is asked: the manifest is not here."""

    async def stat_manifest(self, repository: object, reference: object) -> None:
        raise ManifestUnknown("not here")


def moved(to: Digest | None, when_us: int, by: Any) -> list[Change]:
    key = catalog.tag_key(REPOSITORY, TAG)
    return [
        Delete(key) if to is None else Put(key, TagRecord(to, when_us, by).encode()),
        Put(catalog.history_key(REPOSITORY, TAG, when_us, by), MoveRecord(to, None, by).encode()),
    ]


@pytest.mark.parametrize("merged", [True, False])
async def test_who_asks_for_it_hears_of_tags_that_other_nodes_moved(tmp_path: Path, merged: bool) -> None:
    listener, names = Listener(), MemoryNames()
    async with (
        open_server(listener, listen=["127.0.0.1:0"]) as server,
        open_database(tmp_path / "node.db") as database,
        open_notifications(
            database,
            NoManifests(),  # type: ignore[arg-type]
            names,
            [Subscription(endpoint=Endpoint(name="a", url=f"http://{server.places[0]}"), merged=merged)],
            peer=OURS,
            addr="r:5000",
        ) as notifications,
    ):
        await trio.testing.wait_all_tasks_blocked()
        await names.commit(moved(DIGEST, 1_764_024_361_000_000, OURS))
        await names.commit([Put("/r/team/app/_h/1.0/nonsense", b"x"), Put("/r/NOT/_h/1/0", b"x")])
        await names.commit(moved(DIGEST, 1_764_024_362_000_000, THEIRS))
        # One that lost: the tag is somewhere else.
        await names.commit(moved(Digest("sha256", "cd" * 32), 1_764_024_361_500_000, THEIRS)[1:])
        if merged:
            await listener.wait_for(1)
        await names.commit(moved(None, 1_764_024_363_000_000, THEIRS))
        if merged:
            await listener.wait_for(2)
        else:
            await trio.testing.wait_all_tasks_blocked(0.05)
        assert notifications.lost == 0
    if not merged:
        assert listener.events == []
        return
    push_, delete = listener.events
    assert push_["action"] == "push"
    assert push_["target"] == {"repository": "team/app", "digest": str(DIGEST), "tag": "1.0"}
    assert push_["timestamp"] == "2025-11-24T22:46:02Z"
    assert (push_["actor"], push_["request"]) == ({"name": str(THEIRS)}, {})
    assert (delete["action"], delete["target"]) == ("delete", {"repository": "team/app", "tag": "1.0"})

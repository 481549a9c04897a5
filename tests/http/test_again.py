"""What the registry answered a moment ago, and what must not be answered so any more."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipfsreg.http.app import Witness, make_app
from ipfsreg.http.paths import Action
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import open_server
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository, parse_tag
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.http_client import Answer, HttpClient, connect_http
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import IMAGE, Site, image_of, open_site

REPOSITORY = parse_repository("team/app")
LAYER = b"layer" * 100
BLOB = f"/v2/team/app/blobs/{Digest.of(LAYER)}"
MANIFEST = "/v2/team/app/manifests/1.0"
REFERRERS = f"/v2/team/app/referrers/{Digest.of(LAYER)}"
TAGS = "/v2/team/app/tags/list"


@dataclass
class Front:
    """A node with an image at 1.0, and a client of it."""

    site: Site
    client: HttpClient
    handled: list[str] = field(default_factory=list)
    """Requests that were not answered from memory."""

    async def ask(self, target: str, method: str = "GET", **headers: str) -> Answer:
        return await self.client.request(method, target, headers)

    async def collect(self) -> None:
        """Until nothing is left to do: what is deleted at one look is judged again at the next."""
        for _ in range(3):
            await self.site.registry.collector.collect(grace_s=0.0)

    async def ask_again(self, target: str, method: str = "GET", status: int = 200) -> Answer:
        """Until it is answered from memory."""
        await self.ask(target, method)
        first = await self.ask(target, method)
        before = len(self.handled)
        second = await self.ask(target, method)
        assert len(self.handled) == before, "it was remembered"
        assert first.status == second.status == status
        assert {**first.headers, "date": ""} == {**second.headers, "date": ""}
        assert first.body == second.body
        return second


@asynccontextmanager
async def open_front(directory: Path, *, witness: Witness | None = None) -> AsyncIterator[Front]:
    async with open_site(MemorySwarm(), directory, "alice", settings=RegistrySettings(give_up_s=0.2)) as site:
        await site.push_image(REPOSITORY, "1.0", LAYER)
        front: Front

        async def handler(request: Request) -> Response:
            front.handled.append(f"{request.method} {request.path}")
            return await app(request)

        app = make_app(site.registry, witness=witness)
        async with (
            open_server(handler, listen=["127.0.0.1:0"]) as server,
            connect_http(server.places[0]) as client,
        ):
            front = Front(site, client)
            yield front


@pytest.fixture
async def front(tmp_path: Path) -> AsyncIterator[Front]:
    async with open_front(tmp_path) as front:
        yield front


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "target", ["/v2/", MANIFEST, BLOB, TAGS, "/v2/_catalog", f"/v2/team/app/referrers/{Digest.of(LAYER)}"]
)
async def test_what_clients_ask_for_most_is_remembered(front: Front, target: str, method: str) -> None:
    await front.ask_again(target, method)


async def test_conditions_and_ranges_are_remembered_each_for_themselves(front: Front) -> None:
    etag = (await front.ask_again(BLOB)).headers["etag"]
    for _ in range(3):
        assert (await front.ask(BLOB, **{"If-None-Match": etag})).status == 304
        assert (await front.ask(MANIFEST, **{"If-None-Match": '"other"'})).status == 200
        part = await front.ask(BLOB, Range="bytes=3-6")
        assert (part.status, part.body) == (206, LAYER[3:7])
        assert (await front.ask(BLOB)).body == LAYER
    assert len(front.handled) == 8


async def test_a_tag_that_moved_is_answered_as_it_is_now(front: Front) -> None:
    for method in ("GET", "HEAD"):
        await front.ask_again(MANIFEST, method)
    await front.site.push_image(REPOSITORY, "1.0", b"another layer")
    now = str(Digest.of(image_of(b"another layer")))
    for method in ("GET", "HEAD"):
        assert (await front.ask_again(MANIFEST, method)).headers["docker-content-digest"] == now


async def test_a_tag_that_was_deleted_is_gone_at_once(front: Front) -> None:
    await front.ask_again(MANIFEST)
    await front.ask_again(TAGS)
    assert (await front.ask(MANIFEST, "DELETE")).status == 202
    assert (await front.ask(MANIFEST)).status == 404
    assert json.loads((await front.ask(TAGS)).body)["tags"] == []


async def test_a_tag_list_has_each_tag_from_its_push_on(front: Front) -> None:
    for number in range(5):
        await front.ask_again(TAGS)
        await front.site.push_manifest(REPOSITORY, f"more-{number}", image_of(LAYER))
        assert f"more-{number}" in json.loads((await front.ask(TAGS)).body)["tags"]


async def test_a_blob_that_was_deleted_is_gone_at_once(front: Front) -> None:
    for method in ("GET", "HEAD"):
        await front.ask_again(BLOB, method)
    assert (await front.ask(BLOB, "DELETE")).status == 202
    for method in ("GET", "HEAD"):
        assert (await front.ask(BLOB, method)).status == 404


async def test_what_was_collected_is_gone_at_once(front: Front) -> None:
    by_digest = f"/v2/team/app/manifests/{Digest.of(image_of(LAYER))}"
    await front.ask_again(BLOB)
    await front.ask_again(by_digest)
    await front.site.registry.delete_manifest(REPOSITORY, Digest.of(image_of(LAYER)))
    assert (await front.ask(by_digest)).status == 404
    await front.ask_again(BLOB)
    await front.collect()
    assert front.site.blobs.stat(Digest.of(LAYER)) is None
    assert (await front.ask(BLOB)).status == 404


async def test_a_blob_whose_bytes_went_is_not_served_from_memory(front: Front) -> None:
    await front.ask_again(BLOB)
    await front.site.blobs.delete(Digest.of(LAYER))
    assert (await front.ask(BLOB)).status == 503, "known by name, and nobody has it"
    # Whoever asks whether it has to be pushed is told that.
    assert (await front.ask(BLOB, "HEAD")).status == 200


async def test_a_blob_that_nobody_gives_is_asked_for_at_once_though_it_was_there(front: Front) -> None:
    await front.site.blobs.delete(Digest.of(LAYER))
    await front.ask_again(BLOB, "HEAD")
    version = front.site.registry.version
    again = await front.client.request("PUT", "/v2/team/app/manifests/2.0", {"Content-Type": IMAGE}, image_of(LAYER))
    assert again.status == 503
    assert front.site.registry.version != version
    assert (await front.ask(BLOB, "HEAD")).status == 404, "push it here"


async def test_what_was_not_there_is_found_as_soon_as_it_is(front: Front) -> None:
    target = f"/v2/team/app/blobs/{Digest.of(b'new')}"
    for _ in range(2):
        assert (await front.ask(target, "HEAD")).status == 404
    await front.site.push_blob(REPOSITORY, b"new")
    assert (await front.ask(target, "HEAD")).status == 200
    assert (await front.ask("/v2/team/app/manifests/2.0")).status == 404
    await front.site.push_manifest(REPOSITORY, "2.0", image_of(LAYER))
    assert (await front.ask("/v2/team/app/manifests/2.0")).status == 200


async def test_what_was_read_while_something_is_committed_is_good_for_once(front: Front) -> None:
    assert front.site.registry.version is not None
    front.site.database._generation += 1
    try:
        assert front.site.registry.version is None
        for number in range(1, 4):
            assert (await front.ask(MANIFEST)).status == 200
            assert len(front.handled) == number
    finally:
        front.site.database._generation += 1
    await front.ask_again(MANIFEST)


async def test_a_read_that_carries_heads_always_waits_for_them(front: Front) -> None:
    heads = ", ".join(map(str, front.site.replica.heads()))
    for number in range(1, 4):
        assert (await front.ask(MANIFEST, **{"Ipfsreg-Heads": heads})).status == 200
        assert len(front.handled) == number


async def test_clients_were_told_of_a_blob_until_long_after_they_asked(front: Front) -> None:
    await front.ask_again(BLOB, "HEAD")
    await front.site.registry.delete_manifest(REPOSITORY, parse_tag("1.0"))
    await front.site.registry.delete_manifest(REPOSITORY, Digest.of(image_of(LAYER)))
    await front.collect()
    assert front.site.blobs.stat(Digest.of(LAYER)) is not None


async def test_who_is_told_of_pulls_is_told_of_each(tmp_path: Path) -> None:
    told: list[str] = []

    async def witness(request: Request, action: Action, response: Response) -> None:
        told.append(f"{request.method} {type(action).__name__}")

    async with open_front(tmp_path, witness=witness) as front:
        for _ in range(3):
            assert (await front.ask(MANIFEST)).status == 200
            assert (await front.ask(BLOB)).status == 200
        assert told == ["GET GetManifest", "GET GetBlob"] * 3
        await front.ask_again(MANIFEST, "HEAD")
        await front.ask_again(TAGS)

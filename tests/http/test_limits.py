"""What a client is told when there is no room, before it has sent its bytes."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from ipfsreg.blockstore.room import StoreLimits
from ipfsreg.http.app import make_app
from ipfsreg.http.server import open_server
from ipfsreg.oci.digest import Digest
from ipfsreg.registry.quota import Quota
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import open_site

KIB = 1024


@asynccontextmanager
async def open_client(
    directory: Path, limits: StoreLimits | None = None, quotas: tuple[Quota, ...] = ()
) -> AsyncIterator[httpx.AsyncClient]:
    settings = RegistrySettings(quotas=quotas)
    async with (
        open_site(MemorySwarm(), directory, "alice", settings=settings, limits=limits) as site,
        open_server(make_app(site.registry), listen=["127.0.0.1:0"]) as server,
        httpx.AsyncClient(base_url=f"http://{server.places[0]}", timeout=20) as client,
    ):
        yield client


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, json.loads(answer.text)["errors"][0]["code"]


async def push(client: httpx.AsyncClient, data: bytes, repository: str = "team/app") -> httpx.Response:
    return await client.post(f"/v2/{repository}/blobs/uploads/?digest={Digest.of(data)}", content=data)


async def begin(client: httpx.AsyncClient) -> str:
    answer = await client.post("/v2/team/app/blobs/uploads/")
    assert answer.status_code == 202
    return str(answer.headers["Location"])


async def test_a_store_that_is_full_says_so_and_serves_and_deletes(tmp_path: Path) -> None:
    async with open_client(tmp_path, StoreLimits(max_bytes=100 * KIB)) as client:
        data = bytes(80 * KIB)
        assert (await push(client, data)).status_code == 201
        answer = await push(client, bytes(80 * KIB - 1))
        assert code_of(answer) == (507, "UNKNOWN")
        assert "store.max_bytes" in answer.text
        place = f"/v2/team/app/blobs/{Digest.of(data)}"
        assert (await client.get(place)).content == data
        assert (await client.delete(place)).status_code == 202
        assert (await client.get(place)).status_code == 404


async def test_too_many_unfinished_uploads_are_answered_429(tmp_path: Path) -> None:
    async with open_client(tmp_path, StoreLimits(max_uploads=2)) as client:
        first = await begin(client)
        await begin(client)
        answer = await client.post("/v2/team/app/blobs/uploads/")
        assert code_of(answer) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["Retry-After"]) > 0
        assert (await client.delete(first)).status_code == 204
        await begin(client)


async def test_too_many_bytes_of_unfinished_uploads_are_answered_429(tmp_path: Path) -> None:
    async with open_client(tmp_path, StoreLimits(max_upload_bytes=100 * KIB)) as client:
        place = await begin(client)
        assert (await client.patch(place, content=bytes(90 * KIB))).status_code == 202
        other = await begin(client)
        assert code_of(await client.patch(other, content=bytes(20 * KIB))) == (429, "TOOMANYREQUESTS")
        digest = Digest.of(bytes(90 * KIB))
        assert (await client.put(f"{place}?digest={digest}")).status_code == 201
        assert (await client.patch(other, content=bytes(20 * KIB))).status_code == 202


async def test_what_goes_beyond_a_quota_is_denied(tmp_path: Path) -> None:
    async with open_client(tmp_path, quotas=(Quota("team/*", 100 * KIB),)) as client:
        assert (await push(client, bytes(90 * KIB))).status_code == 201
        answer = await push(client, bytes(20 * KIB))
        assert code_of(answer) == (403, "DENIED")
        assert "may hold 102400 bytes" in answer.text
        assert (await push(client, bytes(20 * KIB), "elsewhere")).status_code == 201


async def test_a_client_that_asks_before_it_sends_is_spared_its_body(tmp_path: Path) -> None:
    async with open_client(tmp_path, quotas=(Quota("team/*", 100 * KIB),)) as client:
        place = await begin(client)
        target = httpx.URL(str(client.base_url)).copy_with(path="/")

        stream = await trio.open_tcp_stream(str(target.host), int(target.port or 0))
        async with stream:
            head = f"PATCH {place} HTTP/1.1\r\nHost: x\r\nContent-Length: 200000\r\nExpect: 100-continue\r\n\r\n"
            await stream.send_all(head.encode())
            with trio.fail_after(10):
                answer = await stream.receive_some(4096)
        assert answer.startswith(b"HTTP/1.1 403 "), answer

"""The server over TLS: what a connection does on a plain socket, it does on this one."""

from __future__ import annotations

import hashlib
import os
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import rsa
from trio.testing import MockClock

from ipfsreg.errors import ConfigError
from ipfsreg.http.request import Request
from ipfsreg.http.responses import FileBody, Response, StreamBody
from ipfsreg.http.server import Handler, Server, ServerSettings, open_server
from ipfsreg.http.tls import Tls
from ipfsreg.testing.certificates import Authority
from ipfsreg.testing.http_client import HttpClient, connect_http

HERE = ["127.0.0.1:0"]
LARGE_BYTES = 40_000_000


async def echo(request: Request) -> Response:
    body = await request.body.read_all(1 << 20)
    return Response(200, (), f"{request.method} {request.target} ".encode() + body)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def tls(authority: Authority) -> Tls:
    issued = authority.issue()
    return Tls(issued.certificate, issued.key)


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("wire") / "large"
    path.write_bytes(os.urandom(LARGE_BYTES))
    return path


def bytes_of(path: Path) -> bytes:
    return path.read_bytes()


@asynccontextmanager
async def serving(
    tls: Tls, authority: Authority, handler: Handler = echo, settings: ServerSettings | None = None
) -> AsyncIterator[tuple[Server, HttpClient]]:
    async with (
        open_server(handler, listen=HERE, settings=settings, tls=tls) as server,
        connect_http(server.places[0], authority.client_context()) as client,
    ):
        yield server, client


async def test_a_connection_carries_many_requests(tls: Tls, authority: Authority) -> None:
    async with serving(tls, authority) as (server, client):
        assert server.urls == (f"https://{server.places[0]}",)
        for i in range(5):
            assert (await client.request("GET", f"/{i}")).body == b"GET /%d " % i
        assert (await client.request("PUT", "/x", body=b"hello")).body == b"PUT /x hello"


async def test_a_long_rsa_key_shakes_hands_in_a_thread(authority: Authority) -> None:
    issued = authority.issue(key=rsa.generate_private_key(65537, 3072))
    async with serving(Tls(issued.certificate, issued.key), authority) as (_, client):
        assert (await client.request("GET", "/x")).status == 200


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_tls_1_2_and_1_3_are_spoken_and_http_2_is_not_promised(
    tls: Tls, authority: Authority, version: ssl.TLSVersion
) -> None:
    context = authority.client_context()
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with open_server(echo, listen=HERE, tls=tls) as server, connect_http(server.places[0], context) as client:
        assert (await client.request("GET", "/x")).status == 200
        assert client.secured is not None
        assert client.secured.selected_alpn_protocol() == "http/1.1"


async def test_older_versions_are_refused(tls: Tls, authority: Authority) -> None:
    async with open_server(echo, listen=HERE, tls=tls) as server, connect_http(server.places[0]) as client:
        # A hello of TLS 1.1, which Python's own ssl no longer says.
        hello = b"\x03\x02" + bytes(32) + b"\x00" + b"\x00\x04\xc0\x09\xc0\x13" + b"\x01\x00"
        handshake = b"\x01" + len(hello).to_bytes(3, "big") + hello
        await client.send(b"\x16\x03\x01" + len(handshake).to_bytes(2, "big") + handshake)
        assert await client.receive_exactly(7) == b"\x15\x03\x02\x00\x02\x02\x46"  # alert: protocol_version


async def test_a_file_is_sent_whole_and_in_parts_and_the_connection_kept(
    tls: Tls, authority: Authority, large_file: Path
) -> None:
    async def handler(request: Request) -> Response:
        start, _, end = request.query.partition("-")
        return Response(200, (), FileBody(large_file, int(start), int(end)))

    data = bytes_of(large_file)
    async with serving(tls, authority, handler) as (_, client):
        assert (await client.request("GET", f"/?0-{LARGE_BYTES}")).body == data
        for start, end in ((0, 1), (5, 5), (999_999, 4_000_001), (LARGE_BYTES - 70_000, LARGE_BYTES)):
            assert (await client.request("GET", f"/?{start}-{end}")).body == data[start:end]


async def test_a_file_goes_on_after_a_client_that_paused(tls: Tls, authority: Authority, large_file: Path) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (), FileBody(large_file, 0, LARGE_BYTES))

    hasher = hashlib.sha256()
    async with serving(tls, authority, handler) as (_, client):
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await client.receive_head()
        for _ in range(20):
            hasher.update(await client.receive_exactly(LARGE_BYTES // 20))
            # Until the server has filled every buffer between us and waits.
            await trio.testing.wait_all_tasks_blocked(0.005)
    with large_file.open("rb") as file:
        assert hasher.digest() == hashlib.file_digest(file, "sha256").digest()


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_of_40_mb_arrives_whole(tls: Tls, authority: Authority, large_file: Path, chunked: bool) -> None:
    async def handler(request: Request) -> Response:
        hasher = hashlib.sha256()
        while piece := await request.body.read():
            hasher.update(piece)
        return Response(200, (), hasher.hexdigest().encode())

    data = bytes_of(large_file)
    async with serving(tls, authority, handler) as (_, client):
        if chunked:
            await client.send(b"PATCH / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, LARGE_BYTES, 1_000_000):
                piece = data[start : start + 1_000_000]
                await client.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
            await client.send(b"0\r\n\r\n")
            answer = await client.receive()
        else:
            answer = await client.request("PUT", "/", body=data)
        assert answer.body == hashlib.sha256(data).hexdigest().encode()


async def receive_all(stream: trio.abc.ReceiveStream) -> bytes:
    received = b""
    while piece := await stream.receive_some():
        received += piece
    return received


async def test_a_stream_that_breaks_off_does_not_end_as_if_it_were_whole(tls: Tls, authority: Authority) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"a" * 100

    async def handler(request: Request) -> Response:
        return Response(200, (), StreamBody(500, pieces()))

    async with open_server(handler, listen=HERE, tls=tls) as server:
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", int(server.places[0].rpartition(":")[2]), ssl_context=authority.client_context()
        )
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):  # and not an end that the server vouches for
            await receive_all(stream)
        await trio.aclose_forcefully(stream)


async def test_an_answer_that_ends_its_connection_ends_it_in_order(tls: Tls, authority: Authority) -> None:
    async with open_server(echo, listen=HERE, tls=tls) as server:
        stream = await trio.open_ssl_over_tcp_stream(
            "127.0.0.1", int(server.places[0].rpartition(":")[2]), ssl_context=authority.client_context()
        )
        await stream.send_all(b"GET /x HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        assert (await receive_all(stream)).endswith(b"GET /x ")
        await trio.aclose_forcefully(stream)


async def test_plain_http_is_told_that_this_is_tls(tls: Tls) -> None:
    async with open_server(echo, listen=HERE, tls=tls) as server, connect_http(server.places[0]) as client:
        answer = await client.request("GET", "/v2/")
        assert answer.status == 400
        assert b"use https://" in answer.body


async def test_garbage_in_place_of_a_handshake_costs_the_client_its_connection_alone(
    tls: Tls, authority: Authority
) -> None:
    async with serving(tls, authority) as (server, client):
        for junk in (b"\x16\x03\x01\x00\xc8" + os.urandom(200), os.urandom(500), b"\x00" * 100):
            async with connect_http(server.places[0]) as broken:
                await broken.send(junk)
                with trio.fail_after(5), suppress(trio.BrokenResourceError):
                    await broken.receive_end()
        assert (await client.request("GET", "/x")).status == 200
        with trio.fail_after(5):
            while server.connections > 1:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_handshake_that_never_ends_is_cut_off(tls: Tls, autojump_clock: MockClock) -> None:
    async with open_server(echo, listen=HERE, tls=tls) as server, connect_http(server.places[0]) as client:
        began = trio.current_time()
        assert await client.receive_end() == b""
        assert trio.current_time() - began == pytest.approx(ServerSettings().handshake_timeout_s)


async def test_handshakes_under_way_are_bounded_and_the_newcomer_gets_through(tls: Tls, authority: Authority) -> None:
    settings = ServerSettings(max_handshakes=3)
    async with AsyncExitStack() as stack, open_server(echo, listen=HERE, tls=tls, settings=settings) as server:
        silent = [await stack.enter_async_context(connect_http(server.places[0])) for _ in range(3)]
        while server.connections < 3:
            await trio.testing.wait_all_tasks_blocked()
        async with connect_http(server.places[0], authority.client_context()) as client:
            assert (await client.request("GET", "/x")).status == 200
            with trio.fail_after(5):
                assert await silent[0].receive_end() == b""
            assert server.connections == 3


async def test_a_new_certificate_is_for_new_connections_and_old_ones_go_on(authority: Authority) -> None:
    issued = authority.issue("first")
    tls = Tls(issued.certificate, issued.key)

    def subject(client: HttpClient) -> object:
        assert client.secured is not None
        certificate: Any = client.secured.getpeercert()
        return certificate["subject"][0][0][1]

    async with serving(tls, authority) as (server, before):
        await before.request("GET", "/x")
        second = authority.issue("second")
        second.certificate.rename(issued.certificate)
        second.key.rename(issued.key)
        tls.reload()
        async with connect_http(server.places[0], authority.client_context()) as after:
            await after.request("GET", "/x")
            assert (subject(before), subject(after)) == ("first", "second")
        assert (await before.request("GET", "/again")).body == b"GET /again "


async def test_plain_and_tls_listeners_stand_side_by_side(tls: Tls, authority: Authority) -> None:
    listen = ["http://127.0.0.1:0", "127.0.0.1:0", "https://127.0.0.1:0"]
    async with open_server(echo, listen=listen, tls=tls) as server:
        assert [url.partition(":")[0] for url in server.urls] == ["http", "https", "https"]
        for place, context in zip(server.places, [None, *[authority.client_context()] * 2], strict=True):
            async with connect_http(place, context) as client:
                assert (await client.request("GET", "/x")).status == 200


async def test_tls_without_a_certificate_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs a certificate"):
        async with open_server(echo, listen=["127.0.0.1:0", "https://127.0.0.1:0"]):
            pass


async def test_stopping_does_not_wait_for_handshakes(tls: Tls) -> None:
    with trio.fail_after(5):
        async with AsyncExitStack() as stack, open_server(echo, listen=HERE, tls=tls) as server:
            await stack.enter_async_context(connect_http(server.places[0]))
            while not server.connections:
                await trio.testing.wait_all_tasks_blocked()


async def test_a_client_that_resets_at_once_costs_nothing(tls: Tls, authority: Authority) -> None:
    async with serving(tls, authority) as (server, client):
        host, _, port = server.places[0].rpartition(":")
        for _ in range(20):
            sock = socket.create_connection((host, int(port)))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
            sock.close()
        assert (await client.request("GET", "/x")).status == 200

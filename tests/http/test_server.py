"""The server over real sockets: framing, limits, timeouts, truncation, stopping."""

from __future__ import annotations

import hashlib
import logging
import os
import random
import resource
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ipfsreg.errors import LimitReached
from ipfsreg.http.errors import error_response
from ipfsreg.http.request import Request
from ipfsreg.http.responses import FileBody, NoBody, Response, StreamBody
from ipfsreg.http.server import Handler, ServerSettings, open_server
from ipfsreg.testing.http_client import HttpClient, connect_http

HERE = ["127.0.0.1:0"]


async def echo(request: Request) -> Response:
    """Say what was asked."""
    body = await request.body.read_all(1 << 20)
    return Response(200, (), f"{request.method} {request.target} ".encode() + body)


async def ignore_body(request: Request) -> Response:
    return Response(200, (), b"ok")


def answering_limits(handler: Handler) -> Handler:
    """As the app does."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except LimitReached as error:
            return error_response(error)

    return answer


@asynccontextmanager
async def serving(
    handler: Handler = echo, settings: ServerSettings | None = None
) -> AsyncIterator[tuple[str, HttpClient]]:
    async with (
        open_server(handler, listen=HERE, settings=settings) as server,
        connect_http(server.places[0]) as client,
    ):
        yield server.places[0], client


async def test_a_connection_carries_many_requests() -> None:
    async with serving() as (_, client):
        for i in range(5):
            assert (await client.request("GET", f"/{i}")).body == b"GET /%d " % i
        assert (await client.request("PUT", "/x", body=b"hello")).body == b"PUT /x hello"


REQUESTS = (
    b"PUT /a HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
    b"PATCH /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\n\r\n"
    b"\r\nGET /c HTTP/1.1\r\nHost: h\r\n\r\n"
)


async def test_every_cut_of_a_pipeline_is_answered_the_same() -> None:
    async with open_server(echo, listen=HERE) as server:
        for cut in range(1, len(REQUESTS)):
            async with connect_http(server.places[0]) as client:
                await client.send(REQUESTS[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await client.send(REQUESTS[cut:])
                answers = [(await client.receive()).body for _ in range(3)]
                assert answers == [b"PUT /a abc", b"PATCH /b def", b"GET /c "]


async def test_one_byte_at_a_time_is_answered_the_same() -> None:
    async with serving() as (_, client):
        for i in range(len(REQUESTS)):
            await client.send(REQUESTS[i : i + 1])
            await trio.testing.wait_all_tasks_blocked()
        assert [(await client.receive()).body for _ in range(3)] == [b"PUT /a abc", b"PATCH /b def", b"GET /c "]


async def test_a_head_request_is_answered_with_the_length_alone() -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (), NoBody(12345) if request.method == "HEAD" else b"body")

    async with serving(handler) as (_, client):
        answer = await client.request("HEAD", "/")
        assert answer.headers["content-length"] == "12345"
        assert (await client.request("GET", "/")).body == b"body"


@pytest.mark.parametrize(
    ("request_head", "option"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", "close"),
        (b"GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "close"),
    ],
)
async def test_a_client_that_wants_one_answer_gets_one(request_head: bytes, option: str) -> None:
    async with serving() as (_, client):
        await client.send(request_head)
        answer = await client.receive()
        assert answer.headers["connection"] == option
        assert await client.receive_end() == b""


async def test_http_1_0_keeps_alive_when_asked() -> None:
    async with serving() as (_, client):
        for _ in range(2):
            await client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.receive()).headers["connection"] == "keep-alive"


async def test_a_client_that_expects_100_is_invited_when_its_body_is_read() -> None:
    async with serving() as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        assert (await client.receive_head()).status == 100
        await client.send(b"hi")
        assert (await client.receive()).body == b"PUT / hi"


async def test_a_client_that_expects_100_gets_the_final_answer_where_its_body_is_not_wanted() -> None:
    async with serving(ignore_body) as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n")
        answer = await client.receive()
        assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_a_small_body_left_unread_does_not_cost_the_connection() -> None:
    async with serving(ignore_body) as (_, client):
        assert (await client.request("PUT", "/", body=b"x" * 1000)).body == b"ok"
        assert (await client.request("GET", "/")).body == b"ok"


async def test_a_large_body_left_unread_costs_the_connection_but_not_the_answer() -> None:
    async with serving(ignore_body) as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_until_refused, client, 50_000_000)
            answer = await client.receive()
            assert (answer.body, answer.headers["connection"]) == (b"ok", "close")
            assert await client.receive_end() == b""


async def send_until_refused(client: HttpClient, count: int) -> None:
    try:
        for _ in range(count // 100_000):
            await client.send(bytes(100_000))
    except trio.BrokenResourceError:
        pass


async def test_a_tls_hello_is_told_that_this_is_http() -> None:
    async with serving() as (_, client):
        await client.send(bytes.fromhex("1603010200010001fc0303") + bytes(100))
        assert (await client.receive_end()).startswith(b"HTTP/1.0 400 ")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"400"),
        (b"\x00\x01\x02\x03", b"400"),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 200, b"431"),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, b"431"),
        (b"GET /" + b"y" * 100_000, b"431"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"400"),
    ],
)
async def test_what_is_no_request_is_refused_and_the_next_client_served(data: bytes, status: bytes) -> None:
    async with serving() as (place, client):
        await client.send(data)
        assert (await client.receive_end()).startswith(b"HTTP/1.0 " + status)
        async with connect_http(place) as other:
            assert (await other.request("GET", "/")).status == 200


async def test_a_smuggled_request_is_never_answered() -> None:
    seen = []

    async def handler(request: Request) -> Response:
        seen.append(request.target)
        return await echo(request)

    async with serving(handler) as (_, client):
        await client.send(
            b"POST /front HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"
        )
        assert (await client.receive_end()).count(b"HTTP/1.0 400") == 1
    assert seen == []


async def test_a_failing_handler_is_one_answer_500_and_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> Response:
        if request.path == "/bad":
            raise KeyError("what nobody thought of")
        return await echo(request)

    async with serving(handler) as (_, client):
        answer = await client.request("GET", "/bad")
        assert (answer.status, answer.body) == (500, b"internal error\n")
        assert (await client.request("GET", "/good")).status == 200
    assert "what nobody thought of" in caplog.text


async def test_a_header_that_would_split_the_response_is_not_sent(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (("Content-Type", "a\r\nX-Evil: 1"),), b"")

    async with serving(handler) as (_, client):
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        assert await client.receive_end() == b""
    assert "cannot be sent" in caplog.text


# ---------------------------------------------------------------- bodies out


async def test_a_stream_of_known_length_is_sent() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for i in range(100):
            yield bytes([i]) * 50_000

    async def handler(request: Request) -> Response:
        return Response(200, (), StreamBody(5_000_000, pieces()))

    async with serving(handler) as (_, client):
        for _ in range(2):
            assert (await client.request("GET", "/")).body == b"".join(bytes([i]) * 50_000 for i in range(100))


@pytest.mark.parametrize("fault", ["raises", "short", "long"])
async def test_a_stream_that_fails_is_seen_as_truncated(fault: str) -> None:
    closed = trio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            yield b"a" * 100
            if fault == "raises":
                raise OSError("the source is gone")
            if fault == "long":
                yield b"b" * 500
                yield b"c"
        finally:
            closed.set()

    async def handler(request: Request) -> Response:
        return Response(200, (), StreamBody(500, pieces()))

    async with serving(handler) as (_, client):
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(EOFError):
            await client.receive()
        await closed.wait()


def bytes_of(path: Path, start: int, end: int) -> bytes:
    return path.read_bytes()[start:end]


@pytest.fixture(scope="module")
def large_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 MB, no two megabytes alike."""
    path = tmp_path_factory.mktemp("http") / "large"
    block = os.urandom(1_000_000)
    with path.open("wb") as file:
        for i in range(200):
            file.write(i.to_bytes(4, "big") + block[4:])
    return path


def file_handler(path: Path) -> Handler:
    size = path.stat().st_size

    async def handler(request: Request) -> Response:
        start, _, end = request.query.partition("-")
        return Response(200, (), FileBody(path, int(start or 0), int(end) if end else size))

    return handler


async def receive_and_hash(client: HttpClient, count: int) -> str:
    hasher = hashlib.sha256()
    while count:
        piece = await client.receive_exactly(min(count, 1_000_000))
        hasher.update(piece)
        count -= len(piece)
    return hasher.hexdigest()


async def test_a_file_of_200_mb_is_sent_whole(large_file: Path) -> None:
    async with serving(file_handler(large_file)) as (_, client):
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        head = await client.receive_head()
        assert head.headers["content-length"] == "200000000"
        with large_file.open("rb") as file:
            assert await receive_and_hash(client, 200_000_000) == hashlib.file_digest(file, "sha256").hexdigest()
        assert (await client.request("GET", "/?199999990-200000000")).body == bytes_of(
            large_file, 199_999_990, 200_000_000
        )


async def test_a_part_of_a_file_is_sent_and_the_connection_kept(large_file: Path) -> None:
    data = bytes_of(large_file, 0, 6_000_000)
    async with serving(file_handler(large_file)) as (_, client):
        for start, end in ((0, 1), (5_000_000, 5_000_000), (999_999, 4_000_001), (0, 0)):
            assert (await client.request("GET", f"/?{start}-{end}")).body == data[start:end]


async def test_a_file_goes_out_over_a_unix_socket_too(large_file: Path, tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/http.sock"
    handler = file_handler(large_file)
    async with open_server(handler, listen=[place]), connect_http(place) as client:
        assert (await client.request("GET", "/?0-3000000")).body == bytes_of(large_file, 0, 3_000_000)


async def test_a_file_that_is_not_there_is_500(tmp_path: Path) -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (), FileBody(tmp_path / "gone", 0, 10))

    async with serving(handler) as (_, client):
        for _ in range(2):
            assert (await client.request("GET", "/")).status == 500


async def test_a_file_shorter_than_announced_is_seen_as_truncated(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    async with serving(file_handler(tmp_path / "short")) as (_, client):
        await client.send(b"GET /?0-10 HTTP/1.1\r\nHost: h\r\n\r\n")
        with pytest.raises(EOFError):
            await client.receive()


async def test_a_client_that_leaves_in_the_middle_of_a_file_costs_nothing(large_file: Path) -> None:
    released = trio.Event()

    @asynccontextmanager
    async def share() -> AsyncIterator[None]:
        try:
            yield
        finally:
            released.set()

    async def handler(request: Request) -> Response:
        await request.keep(share())
        return Response(200, (), FileBody(large_file, 0, 200_000_000))

    async with open_server(handler, listen=HERE) as server:
        async with connect_http(server.places[0]) as client:
            await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await client.receive_exactly(1000)
            assert not released.is_set()
        await released.wait()
        while server.connections:
            await trio.testing.wait_all_tasks_blocked()


async def test_what_a_request_keeps_is_left_after_the_last_byte() -> None:
    events = []

    @asynccontextmanager
    async def share() -> AsyncIterator[str]:
        events.append("open")
        yield "share"
        events.append("left")

    async def pieces() -> AsyncIterator[bytes]:
        events.append("sent")
        yield b"12345"

    async def handler(request: Request) -> Response:
        assert await request.keep(share()) == "share"
        return Response(200, (), StreamBody(5, pieces()))

    async with serving(handler) as (_, client):
        await client.request("GET", "/")
        await trio.testing.wait_all_tasks_blocked()
    assert events == ["open", "sent", "left"]


# ---------------------------------------------------------------- bodies in


async def test_a_body_of_50_mb_arrives_whole_by_length_and_chunked() -> None:
    block = os.urandom(1_000_000)
    expected = hashlib.sha256(block * 50).hexdigest()

    async def handler(request: Request) -> Response:
        hasher = hashlib.sha256()
        while piece := await request.body.read():
            hasher.update(piece)
        return Response(201, (), hasher.hexdigest().encode())

    async with serving(handler) as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 50000000\r\n\r\n")
        for _ in range(50):
            await client.send(block)
        assert (await client.receive()).body == expected.encode()
        await client.send(b"PATCH / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(50):
            for start in range(0, 1_000_000, 32_768):
                piece = block[start : start + 32_768]
                await client.send(b"%x\r\n" % len(piece) + piece + b"\r\n")
        await client.send(b"0\r\n\r\n")
        assert (await client.receive()).body == expected.encode()


async def test_a_handler_that_does_not_read_holds_the_client_back() -> None:
    go_on = trio.Event()

    async def handler(request: Request) -> Response:
        await go_on.wait()
        return await echo(request)

    async with serving(handler) as (_, client):
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000000\r\n\r\n")
        with trio.move_on_after(0.3) as scope:
            for _ in range(1000):
                await client.send(bytes(100_000))
        assert scope.cancelled_caught
        go_on.set()


async def test_a_client_that_leaves_in_the_middle_of_its_body_ends_the_handler() -> None:
    gone = trio.Event()

    async def handler(request: Request) -> Response:
        try:
            return await echo(request)
        finally:
            gone.set()

    async with open_server(handler, listen=HERE) as server:
        async with connect_http(server.places[0]) as client:
            await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
        await gone.wait()


# ---------------------------------------------------------------- time


async def test_a_head_that_never_ends_is_cut_off(autojump_clock: MockClock) -> None:
    async with serving() as (_, client):
        await client.send(b"GET / HTTP/1.1\r\n")
        began = trio.current_time()
        for _ in range(100):
            try:
                await client.send(b"X: y\r\n")
            except trio.BrokenResourceError:
                break
            await trio.sleep(1)
        assert trio.current_time() - began < 20
        assert (await client.receive_end()).startswith(b"HTTP/1.0 408")


async def test_an_idle_connection_is_closed_without_a_word(autojump_clock: MockClock) -> None:
    async with serving() as (_, client):
        await client.request("GET", "/")
        began = trio.current_time()
        assert await client.receive_end() == b""
        assert 119 < trio.current_time() - began < 121


async def test_a_body_that_stops_is_told_so(autojump_clock: MockClock) -> None:
    async with serving() as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
        assert (await client.receive_end()).startswith(b"HTTP/1.0 408")
        assert trio.current_time() > 59


async def test_a_body_that_crawls_is_cut_off(autojump_clock: MockClock) -> None:
    async with serving() as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n")
        try:
            for _ in range(1000):
                await client.send(b"x")
                await trio.sleep(1)
        except trio.BrokenResourceError:
            pass
        assert trio.current_time() < 100


async def test_a_slow_body_is_taken_as_long_as_it_moves(autojump_clock: MockClock) -> None:
    async with serving() as (_, client):
        await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 40000\r\n\r\n")
        for _ in range(40):
            await client.send(b"x" * 1000)
            await trio.sleep(20)
        assert (await client.receive()).status == 200


async def test_a_client_that_does_not_read_its_answer_is_let_go(autojump_clock: MockClock, large_file: Path) -> None:
    async with open_server(file_handler(large_file), listen=HERE) as server, connect_http(server.places[0]) as client:
        await client.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.sleep(130)
        assert server.connections == 0


async def test_the_time_of_the_handler_is_not_the_clients(autojump_clock: MockClock) -> None:
    async def handler(request: Request) -> Response:
        await trio.sleep(1000)
        first = await request.body.read()
        await trio.sleep(1000)
        return Response(200, (), bytes(first))

    async with serving(handler) as (_, client):
        assert (await client.request("PUT", "/", body=b"abc")).body == b"abc"


# ---------------------------------------------------------------- many


async def test_a_thousand_idle_connections_do_not_keep_the_next_client_waiting() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("not enough file descriptors allowed")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    async with open_server(echo, listen=HERE) as server, AsyncExitStack() as stack:
        for _ in range(1000):
            await stack.enter_async_context(connect_http(server.places[0]))
        async with connect_http(server.places[0]) as client:
            assert (await client.request("GET", "/")).status == 200
            assert server.connections == 1001


async def test_beyond_the_limit_the_longest_idle_connection_makes_room() -> None:
    settings = ServerSettings(max_connections=2)
    async with (
        open_server(echo, listen=HERE, settings=settings) as server,
        connect_http(server.places[0]) as first,
        connect_http(server.places[0]) as second,
    ):
        assert (await first.request("GET", "/1")).status == 200
        assert (await second.request("GET", "/2")).status == 200
        async with connect_http(server.places[0]) as third:
            assert (await third.request("GET", "/3")).status == 200
            assert await first.receive_end() == b""
            assert (await second.request("GET", "/4")).status == 200


async def test_heads_that_never_end_do_not_keep_out_who_comes_with_a_whole_one() -> None:
    async with (
        open_server(echo, listen=HERE, settings=ServerSettings(max_connections=20)) as server,
        AsyncExitStack() as stack,
    ):
        slow = []
        for _ in range(20):
            slow.append(await stack.enter_async_context(connect_http(server.places[0])))
            await slow[-1].send(b"GET / HTTP/1.1\r\nHost: ")
        await trio.testing.wait_all_tasks_blocked()
        for number in range(5):
            async with connect_http(server.places[0]) as client:
                assert (await client.request("GET", f"/{number}")).status == 200
        assert (await slow[0].receive()).status == 408
        await slow[19].send(b"h\r\n\r\n")
        assert (await slow[19].receive()).status == 200, "the last of them was only slow"


async def test_beyond_the_limit_and_all_busy_the_newcomer_is_told_to_come_back() -> None:
    go_on = trio.Event()

    async def handler(request: Request) -> Response:
        await go_on.wait()
        return await echo(request)

    async with serving(handler, ServerSettings(max_connections=1)) as (place, first):
        await first.send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
        async with connect_http(place) as second:
            answer = await second.receive()
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        go_on.set()
        assert (await first.receive()).status == 200


async def test_bodies_that_never_become_whole_do_not_fill_the_memory_nor_keep_out_who_sends_one() -> None:
    settings = ServerSettings(max_held_bytes=4_000_000)
    async with open_server(echo, listen=HERE, settings=settings) as server, AsyncExitStack() as stack:
        slow = []
        for _ in range(20):
            slow.append(await stack.enter_async_context(connect_http(server.places[0])))
            await slow[-1].send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 999_999)
            await trio.testing.wait_all_tasks_blocked()
            assert server.holdings.bytes_held <= 4_000_000
        async with connect_http(server.places[0]) as client:
            assert (await client.request("PUT", "/new", body=b"y" * 1_000_000)).status == 200
        assert await slow[0].receive_end() == b"", "who was waited for longest made room"
        await slow[19].send(b"z")
        assert (await slow[19].receive()).status == 200, "the last of them was only slow"
    assert server.holdings.bytes_held == 0


async def test_answers_that_nobody_takes_do_not_fill_the_memory_nor_keep_out_who_takes_his() -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (), bytes(8_000_000))

    settings = ServerSettings(max_held_bytes=24_000_000)
    async with open_server(handler, listen=HERE, settings=settings) as server, AsyncExitStack() as stack:
        slow = []
        for _ in range(10):
            slow.append(await stack.enter_async_context(connect_http(server.places[0])))
            await slow[-1].send(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked()
            assert server.holdings.bytes_held <= 24_000_000
        async with connect_http(server.places[0]) as client:
            assert (await client.request("GET", "/")).body == bytes(8_000_000)
        with pytest.raises(EOFError):
            await slow[0].receive()
        assert (await slow[9].receive()).body == bytes(8_000_000)


async def test_whole_bodies_that_are_worked_on_are_not_cut_off_and_the_next_is_told_to_come_back() -> None:
    go_on = trio.Event()

    async def handler(request: Request) -> Response:
        body = await request.body.read_all(1 << 20)
        await go_on.wait()
        return Response(200, (), b"%d" % len(body))

    app = answering_limits(handler)
    async with serving(app, ServerSettings(max_held_bytes=1_500_000)) as (place, first):
        await first.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 1_000_000)
        await trio.testing.wait_all_tasks_blocked()
        async with connect_http(place) as second:
            assert (await second.request("PUT", "/", body=b"x" * 1_000_000)).status == 503
        async with connect_http(place) as third:
            await third.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 10000\r\n\r\n" + b"x" * 10_000)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            assert (await third.receive()).body == b"10000", "a small one needs no room"
        assert (await first.receive()).body == b"1000000"


# ---------------------------------------------------------------- stopping


async def test_stopping_closes_what_is_idle_and_finishes_what_is_not() -> None:
    go_on = trio.Event()
    begun = trio.Event()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            begun.set()
            await go_on.wait()
        return Response(200, (), b"done")

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        stop = trio.Event()
        say_place, hear_place = trio.open_memory_channel[str](1)

        async def run() -> None:
            async with open_server(handler, listen=HERE) as server:
                say_place.send_nowait(server.places[0])
                await stop.wait()

        nursery.start_soon(run)
        place = await hear_place.receive()
        idle = await stack.enter_async_context(connect_http(place))
        assert (await idle.request("GET", "/")).status == 200
        busy = await stack.enter_async_context(connect_http(place))
        await busy.send(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n")
        await begun.wait()
        stop.set()
        assert await idle.receive_end() == b""
        with pytest.raises(OSError):
            async with connect_http(place):
                pass
        go_on.set()
        answer = await busy.receive()
        assert (answer.body, answer.headers["connection"]) == (b"done", "close")


async def test_stopping_does_not_wait_for_ever(autojump_clock: MockClock) -> None:
    async def handler(request: Request) -> Response:
        await trio.sleep_forever()

    async with open_server(handler, listen=HERE) as server:
        stream = await trio.open_tcp_stream("127.0.0.1", int(server.places[0].rpartition(":")[2]))
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked()
    assert 29 < trio.current_time() < 31
    await stream.aclose()


async def test_the_tally_counts_requests_and_their_bytes_by_method_route_and_status() -> None:
    async def handler(request: Request) -> Response:
        request.route = "thing"
        return await echo(request)

    async with open_server(handler, listen=HERE) as server, connect_http(server.places[0]) as client:
        sent = b"PUT /x HTTP/1.1\r\nHost: h\r\nContent-Length: 100000\r\n\r\n" + bytes(100_000)
        await client.send(sent)
        assert (await client.receive()).status == 200
        await client.request("GET", "/y")
        await trio.testing.wait_all_tasks_blocked()
        rows = {(method, route, status): row for method, route, status, row in server.tally.rows()}
    assert set(rows) == {("PUT", "thing", 200), ("GET", "thing", 200)}
    put = rows["PUT", "thing", 200]
    assert (put.count, put.received, sum(put.seconds.counts)) == (1, len(sent), 1)
    assert 100_000 < put.sent < 101_000
    assert rows["GET", "thing", 200].received < 100


async def test_what_is_no_request_and_whoever_goes_away_is_tallied_too() -> None:
    async def handler(request: Request) -> Response:
        return Response(200, (), str(len(await request.body.read_all(100))).encode())

    async with open_server(handler, listen=HERE) as server:
        for nonsense in (b"GET / HTTP/1.1\r\n\r\n", b"\x00\x01\r\n\r\n", b"\x16\x03\x01"):
            async with connect_http(server.places[0]) as client:
                await client.send(nonsense)
                await client.receive_end()
        async with connect_http(server.places[0]) as client:
            await client.send(b"PROPFIND / HTTP/1.1\r\nHost: h\r\n\r\n")
            await client.receive()
        async with connect_http(server.places[0]) as client:
            await client.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\nabc")
        await server.drain()
        counts = {(method, route, status): row.count for method, route, status, row in server.tally.rows()}
    assert counts == {("other", "none", 400): 3, ("other", "none", 200): 1, ("PUT", "none", 499): 1}


async def test_connections_without_room_are_tallied() -> None:
    async def read_all(request: Request) -> Response:
        await request.body.read_all(5)
        return Response(200)

    async with open_server(read_all, listen=HERE, settings=ServerSettings(max_connections=1)) as server:
        async with connect_http(server.places[0]) as busy:
            await busy.send(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\n")
            await trio.testing.wait_all_tasks_blocked(0.01)
            async with connect_http(server.places[0]) as client:
                assert (await client.receive()).status == 503
        assert server.tally.turned_away == 1


async def test_mangled_requests_never_trouble_the_server(caplog: pytest.LogCaptureFixture) -> None:
    rng = random.Random(7)
    settings = ServerSettings(linger_s=0.0)
    async with open_server(echo, listen=HERE, settings=settings) as server:
        for _ in range(300):
            data = bytearray(REQUESTS)
            for _ in range(rng.randrange(1, 6)):
                at = rng.randrange(len(data))
                match rng.randrange(3):
                    case 0:
                        data[at] = rng.randrange(256)
                    case 1:
                        del data[at : at + rng.randrange(20)]
                    case _:
                        data[at:at] = rng.randbytes(rng.randrange(8))
            async with connect_http(server.places[0]) as client:
                with suppress(trio.BrokenResourceError):
                    await client.send(bytes(data))
                    await client.stream.send_eof()
                    await client.receive_end()
        async with connect_http(server.places[0]) as client:
            assert (await client.request("GET", "/")).status == 200
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]

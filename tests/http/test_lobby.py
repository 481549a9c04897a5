"""Connections that wait, and answers that are given again, over real sockets."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ipfsreg.http.accesslog import open_access_log
from ipfsreg.http.answers import MAX_AGE_S
from ipfsreg.http.request import Request
from ipfsreg.http.responses import FileBody, NoBody, Response
from ipfsreg.http.server import Server, ServerSettings, open_server
from ipfsreg.http.tls import Tls
from ipfsreg.testing.certificates import Authority
from ipfsreg.testing.http_client import HttpClient, connect_http

HERE = ["127.0.0.1:0"]
HEAD = b"GET /a HTTP/1.1\r\nHost: h\r\n\r\n"


class Oracle:
    """A handler whose answers stand as long as it says so, and are numbered from 0 on."""

    def __init__(self, body: bytes = b"") -> None:
        self.asked = 0
        self.stands = True
        self._body = body

    async def __call__(self, request: Request) -> Response:
        number, self.asked = self.asked, self.asked + 1
        request.route = "oracle"
        if request.path == "/once":
            return Response(200, (), b"once")
        body = self._body or f"{request.method} {request.target} {number}".encode()
        if request.method == "HEAD":
            return Response(200, (), NoBody(len(body)), lambda peer: self.stands)
        return Response(200, (), body, lambda peer: self.stands)


async def learn(client: HttpClient, head: bytes = HEAD) -> None:
    """Ask twice: the second answer is remembered."""
    for _ in range(2):
        await client.send(head)
        await client.receive(is_head=head.startswith(b"HEAD"))


async def ask(client: HttpClient, head: bytes = HEAD) -> bytes:
    await client.send(head)
    return (await client.receive()).body


@asynccontextmanager
async def serving(oracle: Oracle, settings: ServerSettings | None = None) -> AsyncIterator[tuple[Server, HttpClient]]:
    async with (
        open_server(oracle, listen=HERE, settings=settings) as server,
        connect_http(server.places[0]) as client,
    ):
        yield server, client


async def test_who_asks_the_same_has_the_same_answer_and_nobody_else_is_asked() -> None:
    oracle = Oracle()
    async with serving(oracle) as (server, client), connect_http(server.places[0]) as other:
        assert [await ask(client), await ask(other)] == [b"GET /a 0", b"GET /a 1"]
        for _ in range(3):
            assert await ask(client) == b"GET /a 1"
            assert await ask(other) == b"GET /a 1"
        assert oracle.asked == 2
        assert await ask(client, HEAD.replace(b"/a", b"/b")) == b"GET /b 2"
        assert await ask(client, HEAD.replace(b"Host", b"host")) == b"GET /a 3"


async def test_an_answer_that_does_not_stand_any_more_is_not_given_again() -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        await learn(client)
        assert await ask(client) == b"GET /a 1"
        oracle.stands = False
        assert await ask(client) == b"GET /a 2"


async def test_an_answer_that_says_nothing_of_it_is_given_once() -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        for number in range(3):
            assert (await client.request("GET", "/once")).body == b"once"
            assert oracle.asked == number + 1


async def test_after_a_while_the_handler_is_asked_again_however_long_the_answer_stands(
    autojump_clock: MockClock,
) -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        await learn(client)
        await trio.sleep(MAX_AGE_S - 0.1)
        assert await ask(client) == b"GET /a 1"
        await trio.sleep(0.2)
        assert [await ask(client), await ask(client)] == [b"GET /a 2"] * 2


async def test_a_head_has_no_body_the_second_time_either() -> None:
    async with serving(Oracle()) as (_, client):
        for _ in range(4):
            assert (await client.request("HEAD", "/a")).headers["content-length"] == "9"
        assert (await client.request("GET", "/a")).body == b"GET /a 2"


@pytest.mark.parametrize(
    ("head", "connection"),
    [
        (b"GET /a HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n", "close"),
        (b"GET /a HTTP/1.0\r\n\r\n", "close"),
    ],
)
async def test_who_wants_one_answer_gets_one_and_the_end(head: bytes, connection: str) -> None:
    async with serving(Oracle()) as (server, _):
        for _ in range(3):
            async with connect_http(server.places[0]) as client:
                await client.send(head)
                assert (await client.receive()).headers["connection"] == connection
                assert await client.receive_end() == b""


async def test_http_1_0_is_kept_alive_in_its_own_words() -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        for _ in range(4):
            await client.send(b"GET /a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
            assert (await client.receive()).headers["connection"] == "keep-alive"
    assert oracle.asked == 2


async def test_a_request_with_a_body_is_always_the_handlers() -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        for number in range(4):
            assert (await client.request("GET", "/a", body=b"xyz")).body == b"GET /a %d" % number
        await client.send(b"GET /a HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + HEAD)
        assert (await client.receive()).body == b"GET /a 4", "what looks like a request is a body"
        await client.send(HEAD)
        assert (await client.receive()).body == b"GET /a 5"


async def test_a_pipeline_is_answered_in_order_whatever_is_remembered_of_it() -> None:
    oracle = Oracle()
    async with serving(oracle) as (_, client):
        await learn(client)
        put = b"PUT /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc"
        await client.send(HEAD + HEAD + put + HEAD + HEAD.replace(b"/a", b"/b") + HEAD)
        bodies = [(await client.receive()).body for _ in range(6)]
        assert bodies == [b"GET /a 1", b"GET /a 1", b"PUT /p 2", b"GET /a 1", b"GET /b 3", b"GET /a 1"]


async def test_every_cut_of_what_is_remembered_is_answered_the_same() -> None:
    async with serving(Oracle(b"the same")) as (server, client):
        await learn(client)
        for cut in range(1, 2 * len(HEAD)):
            async with connect_http(server.places[0]) as other:
                await other.send((HEAD + HEAD)[:cut])
                await trio.testing.wait_all_tasks_blocked()
                await other.send((HEAD + HEAD)[cut:])
                assert [(await other.receive()).body for _ in range(2)] == [b"the same"] * 2


async def test_a_head_that_trickles_is_cut_off_though_its_answer_is_remembered(autojump_clock: MockClock) -> None:
    async with serving(Oracle()) as (_, client):
        await learn(client)
        began = trio.current_time()
        await client.send(HEAD[:-1])
        assert (await client.receive_end()).startswith(b"HTTP/1.0 408")
        assert 14 < trio.current_time() - began < 16


async def test_the_time_to_be_idle_begins_anew_with_each_answer(autojump_clock: MockClock) -> None:
    oracle = Oracle()
    async with serving(oracle, ServerSettings(idle_timeout_s=4.0)) as (server, client):
        async with connect_http(server.places[0]) as silent:
            await learn(client)
            await trio.sleep(3)
            assert await ask(client) == b"GET /a 1"
            await trio.sleep(3)
            assert await silent.receive_end() == b""
            assert server.connections == 1
        assert await client.receive_end() == b""
        assert 6.9 < trio.current_time() < 7.2


async def test_who_has_been_idle_for_longest_makes_room_also_among_those_who_are_answered_again() -> None:
    async with (
        open_server(Oracle(), listen=HERE, settings=ServerSettings(max_connections=2)) as server,
        connect_http(server.places[0]) as first,
        connect_http(server.places[0]) as second,
    ):
        await learn(first)
        for client in (first, second, first):
            await ask(client)
        async with connect_http(server.places[0]) as third:
            await third.send(HEAD)
            assert (await third.receive()).status == 200
            assert await second.receive_end() == b""
            await first.send(HEAD)
            assert (await first.receive()).status == 200


async def test_a_client_that_does_not_take_its_answers_gets_all_of_them_whole_in_the_end() -> None:
    body = bytes(range(256)) * 200
    async with serving(Oracle(body)) as (server, client):
        await learn(client)
        count = 400  # 20 MB: more than the kernel keeps for both sides
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                for _ in range(count):
                    await client.send(HEAD)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(ask)
            async with connect_http(server.places[0]) as other:
                for _ in range(20):
                    await other.send(HEAD)
                    assert (await other.receive()).body == body, "nobody waits for who does not read"
            for _ in range(count):
                assert (await client.receive()).body == body


async def ask_for_ten_minutes(client: HttpClient) -> None:
    with trio.move_on_after(600):
        while True:
            await client.send(HEAD)
            await trio.sleep(0.1)


async def test_a_client_that_takes_nothing_at_all_is_given_up(autojump_clock: MockClock) -> None:
    async with serving(Oracle(bytes(60_000))) as (server, client):
        client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with pytest.raises(trio.BrokenResourceError):
            await ask_for_ten_minutes(client)
        await trio.testing.wait_all_tasks_blocked()
        assert server.connections == 0
        counts = {(method, route, status): row.count for method, route, status, row in server.tally.rows()}
        assert counts["GET", "oracle", 499] == 1


async def test_who_goes_away_costs_nothing() -> None:
    oracle = Oracle()
    async with serving(oracle) as (server, client):
        await learn(client)
        for data in (b"", HEAD, HEAD[:-1], HEAD * 3):
            async with connect_http(server.places[0]) as other:
                await other.send(data)
        while server.connections > 1:
            await trio.testing.wait_all_tasks_blocked(0.001)
        await client.send(HEAD)
        assert (await client.receive()).body == b"GET /a 1"


async def test_a_failure_in_what_says_whether_it_stands_costs_one_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fails = True

    def stands(peer: str) -> bool:
        if fails:
            raise KeyError("what nobody thought of")
        return True

    async def handler(request: Request) -> Response:
        return Response(200, (), b"ok", stands)

    async with open_server(handler, listen=HERE) as server, connect_http(server.places[0]) as client:
        await learn(client)
        async with connect_http(server.places[0]) as other:
            await other.send(HEAD)
            assert await other.receive_end() == b""
        fails = False
        await client.send(HEAD)
        assert (await client.receive()).body == b"ok"
    assert "what nobody thought of" in caplog.text


async def test_answers_given_again_are_in_the_books_and_in_the_log(tmp_path: Path) -> None:
    place = tmp_path / "access.log"
    async with (
        open_access_log("json", place) as log,
        open_server(Oracle(), listen=HERE, access_log=log) as server,
        connect_http(server.places[0]) as client,
    ):
        for _ in range(5):
            await client.send(HEAD)
            answer = await client.receive()
        await trio.testing.wait_all_tasks_blocked()
        ((method, route, status, row),) = server.tally.rows()
        assert (method, route, status, row.count, row.received) == ("GET", "oracle", 200, 5, 5 * len(HEAD))
        assert sum(row.seconds.counts) == 5
        sent = row.sent
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert len(lines) == 5
    for line in lines:
        assert (line["remote"], line["method"], line["path"], line["status"]) == ("127.0.0.1", "GET", "/a", 200)
        assert (line["route"], line["host"], line["received_bytes"]) == ("oracle", "h", len(HEAD))
    assert sum(line["sent_bytes"] for line in lines) == sent > 5 * len(answer.body)


async def test_stopping_answers_who_has_asked_and_closes_who_has_not() -> None:
    oracle = Oracle()
    async with AsyncExitStack() as stack:
        async with open_server(oracle, listen=HERE) as server:
            idle, asking = [await stack.enter_async_context(connect_http(server.places[0])) for _ in range(2)]
            for client in (idle, asking):
                await ask(client)
            await trio.testing.wait_all_tasks_blocked()
            await asking.send(HEAD)
        assert (await asking.receive()).body == b"GET /a 1"
        assert await asking.receive_end() == b""
        assert await idle.receive_end() == b""


async def test_while_it_stops_the_answer_says_that_it_is_the_last() -> None:
    go_on = trio.Event()
    oracle = Oracle()

    async def handler(request: Request) -> Response:
        if request.path == "/slow":
            await go_on.wait()
        return await oracle(request)

    async with trio.open_nursery() as nursery:
        stop, hear = trio.Event(), trio.open_memory_channel[str](1)

        async def run() -> None:
            async with open_server(handler, listen=HERE) as server:
                hear[0].send_nowait(server.places[0])
                await stop.wait()

        nursery.start_soon(run)
        async with connect_http(await hear[1].receive()) as client:
            await learn(client)
            await client.send(HEAD.replace(b"/a", b"/slow") + HEAD)
            await trio.testing.wait_all_tasks_blocked()
            stop.set()
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
            answer = await client.receive()
            assert (answer.body, answer.headers["connection"]) == (b"GET /slow 2", "close")
            assert await client.receive_end() == b""


async def test_a_push_between_two_waits_arrives_whole() -> None:
    async def handler(request: Request) -> Response:
        data = await request.body.read_all(1 << 24)
        return Response(200, (), b"%d" % len(data), (lambda peer: True) if request.method == "GET" else None)

    async with open_server(handler, listen=HERE) as server, connect_http(server.places[0]) as client:
        for _ in range(4):
            assert await ask(client) == b"0"
            await client.send(b"PUT /p HTTP/1.1\r\nHost: h\r\nContent-Length: 3000000\r\n\r\n")
            for _ in range(30):
                await client.send(bytes(100_000))
                await trio.lowlevel.checkpoint()
            assert (await client.receive()).body == b"3000000"


async def test_files_are_never_remembered(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    async def handler(request: Request) -> Response:
        return Response(200, (), FileBody(path, 0, path.stat().st_size), lambda peer: True)

    async with open_server(handler, listen=HERE) as server, connect_http(server.places[0]) as client:
        for _ in range(3):
            assert (await client.request("GET", "/a")).body == b"before"
        path.write_bytes(b"after")
        assert (await client.request("GET", "/a")).body == b"after"


async def test_over_tls_too_the_handler_is_asked_once_and_not_for_what_came_in_the_clear(tmp_path: Path) -> None:
    authority = Authority(tmp_path / "ca")
    issued = authority.issue()
    tls = Tls(issued.certificate, issued.key)
    oracle = Oracle()
    places = ["https://127.0.0.1:0", "http://127.0.0.1:0"]
    async with (
        open_server(oracle, listen=places, tls=tls) as server,
        connect_http(server.places[0], authority.client_context()) as secret,
        connect_http(server.places[1]) as plain,
    ):
        await learn(secret)
        await learn(plain)
        for _ in range(3):
            assert [await ask(secret), await ask(plain)] == [b"GET /a 1", b"GET /a 3"]
        await secret.send(HEAD * 3 + HEAD[:9])
        assert [(await secret.receive()).body for _ in range(3)] == [b"GET /a 1"] * 3
        await secret.send(HEAD[9:])
        assert (await secret.receive()).body == b"GET /a 4", "a head in pieces is the handler's"

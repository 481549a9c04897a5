"""Answers given again behind a closed door: to whom they would be given by the door itself, and to nobody else."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from ipfsreg.cli.passwd import remove_user
from ipfsreg.http.accesslog import open_access_log
from ipfsreg.http.connection import Handler
from ipfsreg.http.door.opening import OpenedDoor
from ipfsreg.http.paths import parse_action
from ipfsreg.http.request import NoBytes, Request
from ipfsreg.http.responses import Response
from ipfsreg.testing.closed import ClosedDoor
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import HttpClient, connect_http

from .conftest import opened
from .test_service import basic, push, token

MANIFEST = "/v2/team/app/manifests/1"
SECRET = "/v2/secret/app/manifests/1"


@dataclass
class Front:
    door: OpenedDoor
    place: str = ""
    client: HttpClient = field(init=False)
    handled: int = 0

    def counting(self, handler: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            self.handled += 1
            return await handler(request)

        return answer

    async def learn(self, who: Mapping[str, str], target: str = MANIFEST) -> None:
        """Ask until it is remembered."""
        for _ in range(2):
            assert await self.ask(who, target) == (200, False)

    async def ask(self, who: Mapping[str, str], target: str = MANIFEST) -> tuple[int, bool]:
        """Status, and whether it came from memory."""
        before = self.handled
        answer = await self.client.request("GET", target, who)
        return answer.status, self.handled == before

    def reload(self, path: Path) -> None:
        for one in self.door.reloaded:
            if path in one.paths:
                one.reload()


@asynccontextmanager
async def open_front(closed: ClosedDoor, **changes: str) -> AsyncIterator[Front]:
    """With the same image in team/app and secret/app."""
    with opened(closed, **changes) as door:
        front = Front(door)
        async with (
            open_front_door(closed.directory, door=door.door, wrap=front.counting) as server,
            connect_http(server.places[0]) as client,
        ):
            front.client, front.place = client, server.places[0]
            for where in ("team/app:1", "secret/app:1"):
                await push(client, where, basic("alice"))
            yield front


async def test_each_who_was_let_in_is_let_in_again(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        bob = await token(front.client, "bob", "repository:team/app:pull")
        for who in ({}, basic("bob"), bob, basic("alice")):
            for target in (MANIFEST, "/v2/team/app/tags/list"):
                await front.learn(who, target)
                assert await front.ask(who, target) == (200, True)


async def test_nobody_has_what_another_was_answered(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        await front.learn(basic("alice"), SECRET)
        for who in ({}, basic("bob"), basic("alice", "guess"), await token(front.client, "bob")):
            for _ in range(2):
                assert await front.ask(who, SECRET) in ((401, False), (403, False))
        assert await front.ask(basic("alice"), SECRET) == (200, True)


async def test_a_user_taken_out_of_the_file_is_answered_nothing_again(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        bearer = await token(front.client, "bob", "repository:team/app:pull")
        for who in (basic("bob"), bearer):
            await front.learn(who)
            assert await front.ask(who) == (200, True)
        remove_user(closed.htpasswd, "bob")
        front.reload(closed.htpasswd)
        for who in (basic("bob"), bearer):
            assert await front.ask(who) == (401, False)


async def test_after_its_proof_has_ended_a_request_is_proved_again(
    closed: ClosedDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_front(closed) as front:
        who = await token(front.client, "bob", "repository:team/app:pull")
        await front.learn(who)
        assert await front.ask(who) == (200, True)
        now = time.time
        monkeypatch.setattr(time, "time", lambda: now() + 100_000)
        assert (await front.ask(who))[1] is False


async def test_the_rules_of_the_moment_are_asked(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        await front.learn(basic("bob"))
        assert await front.ask(basic("bob")) == (200, True)
        door = front.door.door
        assert door is not None
        assert door._keeper is not None
        door._keeper.rules._rules.clear()
        door._keeper.rules._found.clear()
        assert await front.ask(basic("bob")) == (403, False)


async def test_answers_given_again_count_among_what_a_client_may_ask_for(closed: ClosedDoor) -> None:
    async with open_front(closed, HTTP_REQUESTS_PER_S="0.01", HTTP_REQUESTS_BURST="8") as front:
        assert [await front.ask({}) for _ in range(9)] == [*[(200, False)] * 2, *[(200, True)] * 6, (429, False)]
        # Alice has pushed, which were six.
        assert [(await front.ask(basic("alice")))[0] for _ in range(3)] == [200, 200, 429]


async def test_who_has_too_much_under_way_is_answered_nothing_from_memory(closed: ClosedDoor) -> None:
    async with open_front(closed, HTTP_REQUESTS_AT_ONCE="1") as front:
        await front.learn(basic("alice"))
        assert await front.ask(basic("alice")) == (200, True)
        location = (await front.client.request("POST", "/v2/team/app/blobs/uploads/", basic("alice"))).headers[
            "location"
        ]
        await front.ask(basic("alice"))
        async with connect_http(front.place) as other:
            head = f"PATCH {location} HTTP/1.1\r\nHost: h\r\nAuthorization: {basic('alice')['Authorization']}\r\n"
            await other.send(f"{head}Content-Length: 10\r\nExpect: 100-continue\r\n\r\n".encode())
            assert (await other.receive()).status == 100
            assert await front.ask(basic("alice")) == (429, False)
            await other.send(b"0123456789")
            assert (await other.receive()).status == 202
        assert (await front.ask(basic("alice")))[0] == 200
        assert await front.ask(basic("alice")) == (200, True)


async def test_pulls_that_are_written_down_are_each_written_down(closed: ClosedDoor) -> None:
    async with open_front(closed, AUDIT_PULLS="true") as front:
        for _ in range(3):
            assert await front.ask({}) == (200, False)
        await front.learn({}, "/v2/team/app/tags/list")
        assert await front.ask({}, "/v2/team/app/tags/list") == (200, True)
    events = [json.loads(line)["event"] for line in closed.audit.read_text().splitlines()]
    assert events.count("pull") == 3


async def test_the_audit_log_has_what_it_would_have_without_memory(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        before = len(closed.audit.read_text().splitlines())
        for _ in range(3):
            await front.ask(basic("alice"), SECRET)
            await front.ask(basic("bob"), SECRET)
    lines = [json.loads(line) for line in closed.audit.read_text().splitlines()[before:]]
    assert [(line["event"], line["user"]) for line in lines] == [("refused", "bob")] * 3


async def test_behind_a_trusted_proxy_each_client_has_its_own_answers(closed: ClosedDoor) -> None:
    limits = {"HTTP_REQUESTS_PER_S": "0.01", "HTTP_REQUESTS_BURST": "8"}
    async with open_front(closed, HTTP_TRUSTED_PROXIES="127.0.0.1", **limits) as front:
        for client in ("192.0.2.7", "192.0.2.8"):
            await front.learn({"X-Forwarded-For": client})
            answers = [await front.ask({"X-Forwarded-For": client}) for _ in range(7)]
            assert answers == [*[(200, True)] * 6, (429, False)]


def test_what_a_proxy_was_answered_is_for_nobody_who_says_the_same(closed: ClosedDoor) -> None:
    with opened(closed, HTTP_TRUSTED_PROXIES="192.0.2.1,192.0.2.2") as opened_door:
        door = opened_door.door
        assert door is not None
        request = Request("GET", MANIFEST, {}, NoBytes(), "198.51.100.7")
        action = parse_action("GET", MANIFEST, "")
        request.via = "192.0.2.1"
        lets_in = door.again(request, action)
        assert lets_in is not None
        assert [lets_in(f"192.0.2.{number}") for number in (1, 2, 3)] == [True, False, False]
        # And what somebody was answered who is no proxy is for no proxy.
        request.via = ""
        lets_in = door.again(request, action)
        assert lets_in is not None
        assert [lets_in(peer) for peer in ("198.51.100.7", "192.0.2.1")] == [True, False]


async def test_the_access_log_names_the_client_behind_the_proxy_each_time(closed: ClosedDoor, tmp_path: Path) -> None:
    place = tmp_path / "access.log"
    with opened(closed, HTTP_TRUSTED_PROXIES="127.0.0.1") as door:
        async with (
            open_access_log("json", place) as log,
            open_front_door(tmp_path, door=door.door, access_log=log) as server,
            connect_http(server.places[0]) as client,
        ):
            await push(client, "team/app:1", basic("alice"))
            for _ in range(4):
                await client.request("GET", MANIFEST, {"X-Forwarded-For": "192.0.2.7"})
                await client.request("GET", MANIFEST)
    lines = [json.loads(line) for line in place.read_text().splitlines()]
    assert [line["remote"] for line in lines if line["method"] == "GET"] == ["192.0.2.7", "127.0.0.1"] * 4


async def test_a_catalog_that_shows_a_part_is_made_for_each(closed: ClosedDoor) -> None:
    async with open_front(closed) as front:
        for _ in range(3):
            assert await front.ask(basic("bob"), "/v2/_catalog") == (200, False)
        await front.learn(basic("root"), "/v2/_catalog")
        assert await front.ask(basic("root"), "/v2/_catalog") == (200, True)

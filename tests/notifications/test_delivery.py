"""Delivering to endpoints of every temper."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from ipfsreg.database import open_database
from ipfsreg.errors import ConfigError
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response, StreamBody
from ipfsreg.http.server import ServerSettings, open_server
from ipfsreg.notifications import delivery as module
from ipfsreg.notifications.delivery import Delivery, Endpoint, trust_of
from ipfsreg.notifications.queue import Queue


class Listener:
    """An endpoint that answers as it is told to, and remembers what it took."""

    def __init__(self, *answers: Callable[[], Awaitable[Response]]) -> None:
        self.answers = list(answers)
        self.taken: list[list[str]] = []
        self.attempts: list[list[str]] = []
        self.headers: dict[str, str] = {}
        self.paths: list[str] = []
        self.changed = trio.Event()

    async def __call__(self, request: Request) -> Response:
        self.headers = request.headers
        self.paths.append(request.target)
        events = [event["id"] for event in json.loads(await request.body.read_all(1 << 20))["events"]]
        self.attempts.append(events)
        response = await self.answers.pop(0)() if self.answers else Response(200)
        if 200 <= response.status < 300:
            self.taken.append(events)
        self.changed.set()
        self.changed = trio.Event()
        return response

    async def wait_taken(self, *ids: str) -> None:
        with trio.fail_after(20):
            while [one for taken in self.taken for one in taken] != list(ids):
                await self.changed.wait()


def answering(status: int, *headers: tuple[str, str]) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        await trio.lowlevel.checkpoint()
        return Response(status, headers)

    return answer


async def never() -> Response:
    await trio.sleep_forever()


async def endless() -> Response:
    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield bytes(65536)

    return Response(200, (), StreamBody(1 << 40, pieces()))


async def wait_delivered(delivery: Delivery, count: int) -> None:
    with trio.fail_after(20):
        while delivery.counts.events < count:
            await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def delivering(
    directory: Path, listener: Listener, *, threshold: int = 5, backoff_s: float = 0.01, timeout_s: float = 5.0
) -> AsyncIterator[tuple[Queue, Delivery]]:
    async with (
        open_database(directory / "node.db") as database,
        open_server(listener, listen=["127.0.0.1:0"], settings=ServerSettings(drain_s=0.0)) as server,
        trio.open_nursery() as nursery,
    ):
        queue = await Queue.open(database, {"a": 100})
        endpoint = Endpoint(
            name="a",
            url=f"http://{server.places[0]}/hook?x=1",
            headers=(("Authorization", "Bearer s3cret"),),
            threshold=threshold,
            backoff_s=backoff_s,
            timeout_s=timeout_s,
        )
        delivery = Delivery(endpoint, queue, random.Random(1))
        nursery.start_soon(delivery.run)
        yield queue, delivery
        nursery.cancel_scope.cancel()


def events(*ids: str) -> list[tuple[str, bytes]]:
    return [("a", json.dumps({"id": id_}).encode()) for id_ in ids]


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_S", 0.01)


async def test_what_waits_is_delivered_together_with_the_configured_headers(tmp_path: Path) -> None:
    listener = Listener()
    async with delivering(tmp_path, listener) as (queue, delivery):
        await queue.put(events("1", "2", "3"))
        await wait_delivered(delivery, 3)
        assert len(queue.waiting["a"]) == 0
    assert listener.taken == [["1", "2", "3"]]
    assert listener.paths == ["/hook?x=1"]
    assert listener.headers["content-type"] == "application/vnd.docker.distribution.events.v2+json"
    assert listener.headers["authorization"] == "Bearer s3cret"
    assert (delivery.counts.events, delivery.counts.failures) == (3, 0)


async def test_what_is_refused_is_tried_again_in_order_and_one_by_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ipfsreg")
    listener = Listener(answering(500), answering(503), answering(404))
    async with delivering(tmp_path, listener, threshold=2) as (queue, delivery):
        await queue.put(events("1", "2", "3"))
        await wait_delivered(delivery, 3)
    assert listener.attempts == [["1", "2", "3"], ["1"], ["1"], ["1"], ["2", "3"]]
    assert (delivery.counts.events, delivery.counts.failures) == (3, 3)
    told = [record.getMessage() for record in caplog.records if "notifications" in record.name]
    assert next(line for line in told if "fail" in line).endswith("answered 500")
    assert len(told) == 3
    assert told[2] == "notifications to a are taken again"
    assert "s3cret" not in caplog.text
    assert "x=1" not in "".join(told)


async def test_redirects_are_not_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    listener = Listener(answering(307, ("Location", "/elsewhere")), answering(302, ("Location", "http://127.0.0.1:1/")))
    async with delivering(tmp_path, listener) as (queue, _):
        await queue.put(events("1"))
        await listener.wait_taken("1")
    assert listener.paths == ["/hook?x=1"] * 3
    assert "answered 307: redirects are not followed" in caplog.text


async def test_an_endpoint_that_never_answers_costs_its_timeout(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Listener(never)
    async with delivering(tmp_path, listener, timeout_s=0.2) as (queue, _):
        await queue.put(events("1"))
        await listener.wait_taken("1")
    assert "no answer within 0.2 s" in caplog.text or "ReadTimeout" in caplog.text


async def test_of_an_endless_answer_little_is_read(tmp_path: Path) -> None:
    listener = Listener(endless)
    async with delivering(tmp_path, listener) as (queue, _):
        await queue.put(events("1"))
        await listener.wait_taken("1")
        await queue.put(events("2"))
        await listener.wait_taken("1", "2")


async def test_nobody_listening_is_a_failure_like_others(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with open_database(tmp_path / "node.db") as database, trio.open_nursery() as nursery:
        queue = await Queue.open(database, {"a": 100})
        delivery = Delivery(
            Endpoint(name="a", url="http://127.0.0.1:1/", backoff_s=0.01, threshold=1), queue, random.Random(1)
        )
        nursery.start_soon(delivery.run)
        await queue.put(events("1"))
        with trio.fail_after(10):
            while delivery.counts.failures < 3:
                await trio.testing.wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()
    assert len(queue.waiting["a"]) == 1
    assert caplog.text.count("notifications to a fail") == 1


async def test_a_queue_goes_on_where_the_last_run_of_the_node_stopped(tmp_path: Path) -> None:
    deaf = Listener(*[answering(500)] * 1000)
    async with delivering(tmp_path, deaf) as (queue, delivery):
        await queue.put(events("1", "2"))
        with trio.fail_after(10):
            while not delivery.counts.failures:
                await trio.testing.wait_all_tasks_blocked(0.01)
    listener = Listener()
    async with delivering(tmp_path, listener) as (queue, _):
        await queue.put(events("3"))
        await listener.wait_taken("1", "2", "3")


def test_an_endpoint_that_fails_on_is_left_alone_longer_and_longer() -> None:
    endpoint = Endpoint(name="a", url="http://x", threshold=3, backoff_s=10.0)
    delivery = Delivery(endpoint, Queue.__new__(Queue), random.Random(1))
    pauses = [delivery._failed("") for _ in range(2000)]
    assert all(pause < 0.02 for pause in pauses[:2])
    for pause, expected in zip(pauses[2:], [10, 20, 40, 80, 160, 300, 300], strict=False):
        assert 0.8 * expected <= pause <= 1.2 * expected
    assert max(pauses) <= 360


async def test_trust_comes_from_the_file_that_is_named(tmp_path: Path) -> None:
    assert await trust_of(Endpoint(name="a", url="http://x")) is False
    (tmp_path / "ca.pem").write_text("nothing")
    for ca in (tmp_path / "ca.pem", tmp_path / "none.pem"):
        with pytest.raises(ConfigError, match=r"notifications\.endpoints a: ca = "):
            await trust_of(Endpoint(name="a", url="https://x", ca=str(ca)))

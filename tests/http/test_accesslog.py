"""The access log: its lines, and what becomes of them."""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path

import pytest
import trio
import trio.testing

from ipfsreg.http import accesslog
from ipfsreg.http.accesslog import FORMATS, combined_line, json_line, open_access_log, text_line
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import open_server
from ipfsreg.testing.http_client import connect_http

NOW = 1_764_024_361.123456


class NoBody:
    length: int | None = 0

    async def read(self) -> memoryview:
        return memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        return 0

    async def read_all(self, limit: int) -> bytes:
        return b""


def request_of(target: str = "/v2/", **headers: str) -> Request:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Request("GET", target, named, NoBody(), "192.0.2.7")


def test_a_line_of_text_looks_like_the_log_around_it() -> None:
    line = text_line(request_of("/v2/a/tags/list?n=5"), 200, 90, 321, 0.01234, NOW)
    assert line == (
        b"2025-11-24T22:46:01.123Z INFO ipfsreg.http.access: 192.0.2.7 GET /v2/a/tags/list?n=5 -> 200, 321 bytes,"
        b" 12.3 ms\n"
    )


def test_a_combined_line_is_what_tools_for_web_servers_read() -> None:
    request = request_of(user_agent='docker/28 "quoted" \\', host="r")
    request.user = "alice"
    line = combined_line(request, 404, 90, 321, 0.01, NOW).decode()
    assert line == (
        '192.0.2.7 - alice [24/Nov/2025:22:46:01 +0000] "GET /v2/ HTTP/1.1" 404 321 "-" "docker/28 \\"quoted\\" \\\\"\n'
    )


def test_a_json_line_has_every_field() -> None:
    request = request_of(
        "/v2/a/manifests/1", user_agent="crane/1", host="registry.test:5000", authorization="Basic c2VjcmV0"
    )
    request.user, request.route = "alice", "manifest"
    line = json_line(request, 200, 90, 321, 0.0123456, NOW)
    assert json.loads(line) == {
        "time": 1764024361.123456,
        "remote": "192.0.2.7",
        "user": "alice",
        "method": "GET",
        "path": "/v2/a/manifests/1",
        "route": "manifest",
        "status": 200,
        "received_bytes": 90,
        "sent_bytes": 321,
        "seconds": 0.012346,
        "host": "registry.test:5000",
        "user_agent": "crane/1",
    }


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_a_client_says_can_end_a_line_or_fill_the_disk(form: str) -> None:
    hostile = "a\nb\r\x1b[31m\x7f\u0085\u2028 é \udcff" + "x" * 100_000
    request = request_of("/v2/" + hostile, user_agent=hostile, host=hostile)
    request.user = hostile
    line = FORMATS[form](request, 400, 0, 0, 0.0, NOW)
    assert line.isascii()
    assert line.endswith(b"\n")
    assert not re.search(rb"[\x00-\x1f\x7f]", line[:-1])
    assert len(line) < 4000


@pytest.mark.parametrize("form", FORMATS)
def test_secrets_of_a_query_are_not_told(form: str) -> None:
    request = request_of(
        "/token?service=r&access_token=s3cret&Client_Secret=s3cret&X-Amz-Signature=s3cret&password=s3cret&n=5",
        authorization="Bearer s3cret",
        cookie="session=s3cret",
    )
    line = FORMATS[form](request, 200, 0, 0, 0.0, NOW)
    assert b"s3cret" not in line
    assert b"service=r&access_token=***" in line
    assert b"&n=5" in line


async def ok(request: Request) -> Response:
    return Response(200, (), b"ok")


async def test_requests_become_lines_of_the_file_and_the_last_ones_are_not_lost(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with (
        open_access_log("json", path) as log,
        open_server(ok, listen=["127.0.0.1:0"], access_log=log) as server,
        connect_http(server.places[0]) as client,
    ):
        for number in range(5):
            await client.request("GET", f"/{number}")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["path"] for line in lines] == ["/0", "/1", "/2", "/3", "/4"]
    assert {(line["status"], line["remote"]) for line in lines} == {(200, "127.0.0.1")}
    assert path.stat().st_mode & 0o777 == 0o640


async def test_a_file_moved_away_is_begun_anew(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    async with open_access_log("text", path) as log:
        assert log is not None
        log.note(request_of("/first"), 200, 0, 0, 0.0)
        await log.flush()
        path.rename(tmp_path / "access.log.1")
        log.note(request_of("/second"), 200, 0, 0, 0.0)
    assert "/first" in (tmp_path / "access.log.1").read_text()
    assert "/second" in path.read_text()


async def test_without_a_log_there_is_none() -> None:
    async with open_access_log("off", None) as log:
        assert log is None


async def test_lines_that_cannot_be_written_are_counted_and_complained_of_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_access_log("text", tmp_path / "none" / "access.log") as log:
        assert log is not None
        for _ in range(3):
            log.note(request_of(), 200, 0, 0, 0.0)
            await log.flush()
        assert log.dropped == 3
        complaints = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(complaints) == 1
    assert "cannot be written" in complaints[0].getMessage()


async def test_a_reader_of_standard_error_that_has_stopped_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    monkeypatch.setattr(accesslog, "STANDARD_ERROR", writing)
    monkeypatch.setattr(accesslog, "MAX_WAITING_BYTES", 300_000)
    monkeypatch.setattr(accesslog, "FLUSH_S", 0.05)
    try:
        async with open_access_log("text", None) as log:
            assert log is not None
            with trio.fail_after(10):
                while not log.dropped:
                    for _ in range(100):
                        log.note(request_of("/" + "x" * 900), 200, 0, 0, 0.0)
                    await trio.testing.wait_all_tasks_blocked(0.001)
    finally:
        # Ends the write that waits. The thread may be between two of them: were its descriptor closed, the next file or
        # socket of this process would get the number, and the rest of the lines. So the number stays taken.
        os.close(reading)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, writing)
        os.close(nowhere)

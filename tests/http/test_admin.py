"""The admin door."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from ipfsreg.errors import ManifestUnknown
from ipfsreg.http.admin import MAX_COMMAND_BYTES, make_admin
from ipfsreg.http.server import open_server
from ipfsreg.testing.http_client import connect_http


async def status() -> dict[str, object]:
    return {"peers": 3, "heads": ["bafy"]}


async def test_reports_are_read_over_a_unix_socket(tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/admin.sock"
    async with open_server(make_admin({"/status": status}), listen=[place]), connect_http(place) as client:
        answer = await client.request("GET", "/status")
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert json.loads(answer.body) == {"peers": 3, "heads": ["bafy"]}
        assert (await client.request("HEAD", "/status")).headers["content-length"] == str(len(answer.body))


async def test_what_is_no_report_names_those_there_are(tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/admin.sock"
    async with open_server(make_admin({"/status": status}), listen=[place]), connect_http(place) as client:
        answer = await client.request("GET", "/other")
        assert answer.status == 404
        assert b"/status" in answer.body
        assert (await client.request("POST", "/status", body=b"")).status == 405


async def echo(fields: Mapping[str, str]) -> dict[str, object]:
    if not fields:
        raise ManifestUnknown("nothing there")
    return {"got": dict(fields)}


async def test_questions_have_fields_in_the_query_and_commands_in_a_body(tmp_path: Path) -> None:
    place = f"unix:{tmp_path}/admin.sock"
    admin = make_admin({}, {"/log": echo}, {"/rollback": echo})
    async with open_server(admin, listen=[place]), connect_http(place) as client:
        answer = await client.request("GET", "/log?tag=1.0&repository=team%2Fapp")
        assert (answer.status, json.loads(answer.body)) == (200, {"got": {"tag": "1.0", "repository": "team/app"}})
        answer = await client.request("POST", "/rollback", body=b'{"to": "1"}')
        assert (answer.status, json.loads(answer.body)) == (200, {"got": {"to": "1"}})
        answer = await client.request("GET", "/log")
        assert (answer.status, json.loads(answer.body)) == (400, {"error": "nothing there"})
        answer = await client.request("GET", "/rollback")
        assert (answer.status, answer.headers["allow"]) == (405, "POST"), "reading changes nothing"
        assert (await client.request("POST", "/log", body=b"{}")).status == 405


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"to": 1}', b'{"a":' * 100_000, b"\xff", b"x" * (MAX_COMMAND_BYTES + 1)]
)
async def test_what_is_no_command_is_refused(tmp_path: Path, body: bytes) -> None:
    place = f"unix:{tmp_path}/admin.sock"
    async with open_server(make_admin({}, {}, {"/rollback": echo}), listen=[place]), connect_http(place) as client:
        assert (await client.request("POST", "/rollback", body=body)).status == 400

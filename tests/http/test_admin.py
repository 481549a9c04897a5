"""The admin door."""

import json
from pathlib import Path

from ipfsreg.http.admin import make_admin
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

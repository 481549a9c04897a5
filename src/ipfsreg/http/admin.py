"""The admin door: JSON over a unix socket that only the node's own user can open.

    admin = make_admin({"/status": node.status}, {"/log": node.log}, {"/rollback": node.roll_back})
    async with open_server(admin, listen=[f"unix:{directory}/admin.sock"]): ...

    GET /status                          a report
    GET /log?repository=…&tag=…          a question, with its fields in the query
    POST /rollback {"repository": …}     a command, with its fields as a JSON object of texts

Who can open the socket can read the keys beside it, so it asks for no password. A failure of ours is answered 400 with
`{"error": text}`, and nothing was done then.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from urllib.parse import parse_qsl

from ipfsreg.errors import IpfsregError, MalformedData
from ipfsreg.http.connection import Handler
from ipfsreg.http.request import ClientGone, Request
from ipfsreg.http.responses import Response

Fields = Mapping[str, str]

Report = Callable[[], Awaitable[Mapping[str, object]]]
"""Tells something of the node, in what JSON can hold."""

Question = Callable[[Fields], Awaitable[Mapping[str, object]]]
"""Tells something of what the fields name, or, as a command, does it and tells what became of it."""

MAX_COMMAND_BYTES = 64 * 1024
MAX_FIELDS = 16

_JSON = (("Content-Type", "application/json"),)


def make_admin(
    reports: Mapping[str, Report],
    questions: Mapping[str, Question] | None = None,
    commands: Mapping[str, Question] | None = None,
) -> Handler:
    """The handler that answers GETs of *reports* and *questions* and POSTs of *commands*, each by its path."""
    asked, told = questions or {}, commands or {}

    async def answer(request: Request) -> Response:
        path = request.path
        if path not in {*reports, *asked, *told}:
            return _answer(404, {"error": f"no such report; there are: {', '.join(sorted({*reports, *asked, *told}))}"})
        allow = "POST" if path in told else "GET, HEAD"
        if request.method not in allow.split(", "):
            return Response(405, (*_JSON, ("Allow", allow)), b"{}")
        try:
            if path in reports:
                return _answer(200, await reports[path]())
            if path in asked:
                return _answer(200, await asked[path](_query(request.query)))
            return _answer(200, await told[path](_body(await request.body.read_all(MAX_COMMAND_BYTES))))
        except ClientGone:
            raise
        except IpfsregError as error:
            return _answer(400, {"error": str(error)})

    return answer


def _query(query: str) -> Fields:
    try:
        return dict(parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS))
    except ValueError:
        raise MalformedData("too many fields") from None


def _body(data: bytes) -> Fields:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise MalformedData(f"the body is not JSON: {error}") from None
    if not isinstance(fields, dict) or not all(isinstance(value, str) for value in fields.values()):
        raise MalformedData("the body is not an object of texts")
    return fields


def _answer(status: int, document: Mapping[str, object]) -> Response:
    return Response(status, _JSON, json.dumps(document).encode() + b"\n")

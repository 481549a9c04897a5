"""The admin door: JSON over a unix socket that only the node's own user can open.

    async with open_server(make_admin({"/status": node.status}), listen=[f"unix:{directory}/admin.sock"]): ...

Who can open the socket can read the keys beside it, so it asks for no password.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping

from ipfsreg.http.connection import Handler
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response

Report = Callable[[], Awaitable[Mapping[str, object]]]
"""Tells something of the node, in what JSON can hold."""

_JSON = (("Content-Type", "application/json"),)


def make_admin(reports: Mapping[str, Report]) -> Handler:
    """The handler that answers a GET of each path of *reports* with its report."""

    async def answer(request: Request) -> Response:
        report = reports.get(request.path)
        if report is None:
            return _answer(404, {"error": f"no such report; there are: {', '.join(sorted(reports))}"})
        if request.method not in ("GET", "HEAD"):
            return Response(405, (*_JSON, ("Allow", "GET, HEAD")), b"{}")
        return _answer(200, await report())

    return answer


def _answer(status: int, document: Mapping[str, object]) -> Response:
    return Response(status, _JSON, json.dumps(document).encode() + b"\n")

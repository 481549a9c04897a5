"""`/token`: a token for whoever proves who they are, with what they ask for as far as the rules allow it.

GET with Basic, and scopes in the query: distribution's token specification, "Requesting a Token" (docker, podman,
skopeo, crane). POST with a form: its OAuth 2 page (containerd, oras; `grant_type=password`). Refresh tokens are not
given: clients that ask for one keep the password, as they do without.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qs

from ipfsreg.errors import MalformedData, Unauthorized
from ipfsreg.http.door.access import (
    CATALOG,
    CREATE,
    DELETE,
    PULL,
    PUSH,
    Grants,
    Need,
    Scope,
    parse_scopes,
)
from ipfsreg.http.door.authenticator import Authenticator, Caller, claimed_user
from ipfsreg.http.door.rules import ANONYMOUS, Rules
from ipfsreg.http.door.tokens import Tokens
from ipfsreg.http.errors import error_body
from ipfsreg.http.request import Request, RequestRefused
from ipfsreg.http.responses import Response

PATH = "/token"

MAX_FORM_BYTES = 32 * 1024
_MAX_FIELDS = 200
_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


class TokenEndpoint:
    """Gives out tokens of our own."""

    def __init__(self, authenticator: Authenticator, rules: Rules, tokens: Tokens) -> None:
        self._authenticator = authenticator
        self._rules = rules
        self._tokens = tokens

    async def answer(self, request: Request) -> Response:
        """Answer GET and POST. Sets `request.user`.

        Raises:
            Unauthorized: wrong password, or none and nothing for nobody.
            TooManyRequests: too many failed.
            RequestRefused: what was sent is no request for a token.
        """
        if request.method == "GET":
            fields = _parse(request.query)
            header = request.headers.get("authorization", "")
            if header and not header.lower().startswith("basic "):
                # A token does not prove who somebody is for long enough to live on in another one.
                raise self._unauthorized("a token is given for a password")
            try:
                caller = await self._authenticator.identify(header or None, request.peer)
            except Unauthorized as error:
                request.tried = claimed_user(header)
                raise self._unauthorized(str(error)) from None
        elif request.method == "POST":
            fields = _parse((await request.body.read_all(MAX_FORM_BYTES)).decode("latin-1"))
            grant = _first(fields, "grant_type")
            if grant != "password":
                return _oauth_error("unsupported_grant_type", f"grant_type {grant[:40]!r} is not offered")
            user, password = _first(fields, "username"), _first(fields, "password").encode()
            try:
                caller = await self._authenticator.log_in(user, password, request.peer)
            except Unauthorized as error:
                request.tried = user
                raise self._unauthorized(str(error)) from None
        else:
            return Response(405, (*_HEADERS, ("Allow", "GET, POST")), error_body("UNSUPPORTED", "GET or POST"))
        request.user, request.how = caller.user, caller.how
        if caller.user == ANONYMOUS and not self._rules.anonymous_pull:
            raise self._unauthorized("log in first")
        service = _first(fields, "service")
        if service and service != self._tokens.service:
            raise RequestRefused(400, f"this is the token service of {self._tokens.service!r}")
        try:
            scopes = parse_scopes(fields.get("scope", ()))
        except MalformedData as error:
            raise RequestRefused(400, str(error)) from None
        return self._give(caller, self._grant(caller, scopes))

    def _unauthorized(self, text: str) -> Unauthorized:
        return Unauthorized(text, challenge=f'Basic realm="{self._tokens.service}", charset="UTF-8"')

    def _grant(self, caller: Caller, scopes: Sequence[Scope]) -> Grants:
        """What of *scopes* the rules allow. What they do not is left out, not refused: clients ask for much at once."""
        granted = []
        for scope in scopes:
            if scope.kind == "registry" and scope.name == "catalog":
                allowed = {"*"} if self._rules.allow(caller.user, Need("", CATALOG)) else set()
            elif scope.kind == "repository":
                asked = {PULL, PUSH, DELETE} if "*" in scope.actions else scope.actions & {PULL, PUSH, DELETE}
                allowed = {action for action in asked if self._allow(caller.user, scope.name, action)}
            else:
                continue
            granted.append(Scope(scope.kind, scope.name, frozenset(allowed)))
        return Grants(granted)

    def _allow(self, user: str, repository: str, action: str) -> bool:
        if self._rules.allow(user, Need(repository, action)):
            return True
        return action == PUSH and self._rules.allow(user, Need(repository, CREATE))

    def _give(self, caller: Caller, grants: Grants) -> Response:
        now = time.time()
        token = self._tokens.issue(caller.user, grants, now)
        document = {
            "token": token,
            "access_token": token,
            "token_type": "Bearer",
            "expires_in": int(self._tokens.lifetime_s),
            "issued_at": datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        }
        return Response(200, _HEADERS, json.dumps(document).encode())


def _parse(text: str) -> dict[str, list[str]]:
    try:
        return parse_qs(text, max_num_fields=_MAX_FIELDS)
    except ValueError:
        raise RequestRefused(400, "too many fields") from None


def _first(fields: dict[str, list[str]], name: str) -> str:
    return fields.get(name, [""])[0]


def _oauth_error(error: str, description: str) -> Response:
    body = json.dumps({"error": error, "error_description": description}).encode()
    return Response(400, _HEADERS, body)

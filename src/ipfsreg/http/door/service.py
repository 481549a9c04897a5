"""The door of the HTTP front: lets a request in, turns it away, or asks who is there.

    async with open_door(auth, audit, limits, secret=...) as door:
        action = await door.admit(request, action)

What a request without a cost of its own pays here is one keyed hash and two look-ups.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

from ipfsreg.errors import Denied, TooManyRequests, Unauthorized
from ipfsreg.http import paths
from ipfsreg.http.door.access import CATALOG, CREATE, PULL, PUSH, Need, need_of
from ipfsreg.http.door.audit import AuditLog
from ipfsreg.http.door.authenticator import NOBODY, Authenticator, Caller, Proof, claimed_user
from ipfsreg.http.door.forwarding import TrustedProxies
from ipfsreg.http.door.limits import Allowances, AtOnce, client_of
from ipfsreg.http.door.rules import ANONYMOUS, Rules
from ipfsreg.http.door.token_endpoint import PATH, TokenEndpoint
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response, Stands

_HOST = re.compile(r"[A-Za-z0-9._~\[\]:-]{1,255}", re.ASCII)

_WRITES: dict[type[paths.Action], str] = {
    paths.PutManifest: "push",
    paths.FinishUpload: "push blob",
    paths.DeleteManifest: "delete",
    paths.DeleteBlob: "delete blob",
}
_READS: dict[type[paths.Action], str] = {paths.GetManifest: "pull", paths.GetBlob: "pull blob"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """How a client is told to say who it is."""

    realm: str = ""
    """URL of the token service; empty: our own, under the name the client called us by."""
    service: str
    tokens: bool
    """Ask for tokens; else for the password with every request."""

    def header(self, request: Request, need: Need | None, error: str) -> str:
        """The value of WWW-Authenticate. Sources: distribution's token specification; RFC 6750, 3."""
        if not self.tokens:
            return f'Basic realm="{self.service}", charset="UTF-8"'
        parts = {"realm": self.realm or own_realm(request), "service": self.service}
        if need is not None:
            parts["scope"] = need.scope
        if error:
            parts["error"] = error
        return "Bearer " + ",".join(f'{name}="{value}"' for name, value in parts.items())


def own_realm(request: Request) -> str:
    """The URL of our token endpoint, as the client that sent *request* reaches us."""
    host = request.headers.get("host", "")
    scheme = "https" if request.secure else "http"
    return f"{scheme}://{host if _HOST.fullmatch(host) else 'localhost'}{PATH}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keeper:
    """Who is let in where. Absent where everybody may do everything."""

    authenticator: Authenticator
    rules: Rules
    challenge: Challenge
    endpoint: TokenEndpoint | None


class Door:
    """See the module. Safe from many tasks at once."""

    def __init__(
        self,
        *,
        keeper: Keeper | None = None,
        proxies: TrustedProxies | None = None,
        requests: Allowances | None = None,
        at_once: AtOnce | None = None,
        audit: AuditLog | None = None,
        audit_pulls: bool = False,
    ) -> None:
        """*requests* and *at_once* are for each user, or each address of those who are nobody."""
        self._keeper = keeper
        self._proxies = proxies
        self._requests = requests
        self._at_once = at_once
        self._audit = audit
        self._audited = {**_WRITES, **(_READS if audit_pulls else {})}

    async def admit(self, request: Request, action: paths.Action) -> paths.Action:
        """Let *request* in to do what is returned: *action*, or less of it where not all is allowed.

        Sets `request.user` and what else it may not do.

        Raises:
            Unauthorized, Denied, TooManyRequests.
        """
        keeper = self._keeper
        if self._proxies is not None:
            _look_behind(self._proxies, request)
        if keeper is None:
            await self._limit(request, NOBODY)
            return action
        need = need_of(action)
        header = request.headers.get("authorization")
        try:
            caller = await keeper.authenticator.identify(header, request.peer)
        except Unauthorized as error:
            request.tried = claimed_user(header or "")
            error.challenge = keeper.challenge.header(request, need, error.error)
            # Not every refusal counts as a failed login (an expired token does not), but each is a request.
            await self._limit(request, NOBODY)
            raise
        request.user = caller.user
        request.how = caller.how
        await self._limit(request, caller)
        if need is None:
            self._check_ping(keeper, request, caller)
            return action
        if not _may(keeper, caller, need):
            if not (need.right == PUSH and _may(keeper, caller, Need(need.repository, CREATE))):
                raise _refusal(keeper, request, caller, need)
            request.may_overwrite = False
        if isinstance(action, paths.StartUpload) and action.source is not None:
            # A mount reads its source. Whoever may not is told nothing, not even that it is there.
            if not _may(keeper, caller, Need(action.source, PULL)):
                return replace(action, mount=None, source=None)
        elif need.right == CATALOG and not keeper.rules.is_admin(caller.user):
            request.sees = lambda name: _may(keeper, caller, Need(name, PULL), listed=True)
        return action

    def _check_ping(self, keeper: Keeper, request: Request, caller: Caller) -> None:
        """Clients learn from the ping how to say who they are, so nobody gets past it without having said anything,
        unless passwords are all there is: then a client that has none would give up."""
        if not _may_ping(keeper, caller):
            raise Unauthorized("log in first", challenge=keeper.challenge.header(request, None, ""))

    def again(self, request: Request, action: paths.Action) -> Stands | None:
        """What says whether the same request as *request*, which was let in to do *action*, is let in again.

        It is what `admit` asks, in the end: whether the proof holds, whether the rules of that moment give the right,
        whether the client may have one more, which is counted. None: only `admit` itself can tell, or each such request
        is to be written down.
        """
        if request.sees is not None:
            return None
        if self._audit is not None and type(action) in self._audited:
            return None
        if self._keeper is None:
            lets_in: Stands = partial(self._has_one_more, NOBODY)
        else:
            proof = self._keeper.authenticator.proof(request.headers.get("authorization"))
            if proof is None:
                return None
            lets_in = partial(self._lets_in, proof, need_of(action))
        if self._proxies is None:
            return lets_in
        # Whose request it is follows from its head and from whom it comes from directly.
        direct, client = request.via or request.peer, request.peer
        return lambda peer: peer == direct and lets_in(client)

    def _lets_in(self, proof: Proof, need: Need | None, peer: str) -> bool:
        keeper, caller = self._keeper, proof.caller
        if keeper is None or not keeper.authenticator.holds(proof):
            return False
        may = _may_ping(keeper, caller) if need is None else _may(keeper, caller, need)
        return may and self._has_one_more(caller, peer)

    def _has_one_more(self, caller: Caller, peer: str) -> bool:
        """Whether there is room for a request that is answered at once; if so it is counted."""
        try:
            client = self._count(caller, peer)
        except TooManyRequests:
            return False
        if self._at_once is not None:
            if not self._at_once.begin(client):
                return False
            self._at_once.end(client)
        return True

    def _count(self, caller: Caller, peer: str) -> str:
        """Count a request as one of *caller*'s, or where they are nobody of their address; return whose it is.

        Raises TooManyRequests.
        """
        if self._requests is None and self._at_once is None:
            return ""
        client = caller.user or client_of(peer)
        if self._requests is not None:
            wait_s = self._requests.take(client, time.monotonic())
            if wait_s:
                raise TooManyRequests("too many requests", wait_s)
        return client

    async def _limit(self, request: Request, caller: Caller) -> None:
        """Count *request*, and hold a place for it until it is answered. Raises TooManyRequests."""
        client = self._count(caller, request.peer)
        if self._at_once is not None:
            await request.keep(self._under_way(self._at_once, client))

    @asynccontextmanager
    async def _under_way(self, at_once: AtOnce, client: str) -> AsyncIterator[None]:
        if not at_once.begin(client):
            raise TooManyRequests("too many requests at once", 1.0)
        try:
            yield
        finally:
            at_once.end(client)

    def serves(self, path: str) -> bool:
        """Whether `give_token` is what answers *path*."""
        return path == PATH and self._keeper is not None and self._keeper.endpoint is not None

    async def give_token(self, request: Request) -> Response:
        """Answer a request for a token. Raises Unauthorized, TooManyRequests, RequestRefused."""
        assert self._keeper is not None
        assert self._keeper.endpoint is not None
        if self._proxies is not None:
            _look_behind(self._proxies, request)
        await self._limit(request, NOBODY)
        return await self._keeper.endpoint.answer(request)

    def note(self, request: Request, action: paths.Action | None, status: int) -> None:
        """Write down what has to be remembered of an answered request."""
        if self._audit is None:
            return
        event = self._audited.get(type(action)) if action is not None else None
        if isinstance(action, paths.StartUpload) and status == 201:
            event = "mount" if action.mount is not None else "push blob"
        if status in (401, 403, 429):
            # A client that has not said anything yet is only being asked.
            event = "refused" if status != 401 or request.tried or "authorization" in request.headers else None
        elif action is None and request.path == PATH:
            event = "login" if request.user else None
        if event is None:
            return
        self._audit.write(
            event,
            status=status,
            user=request.user,
            tried=request.tried,
            how=request.how,
            peer=request.peer,
            method=request.method,
            repository=getattr(action, "repository", None),
            reference=_reference(action),
            source=getattr(action, "source", None),
            path=request.path if action is None else None,
            agent=request.headers.get("user-agent"),
        )


def _look_behind(proxies: TrustedProxies, request: Request) -> None:
    """Let *request* be from the client that a proxy passed it on for."""
    secure = proxies.is_secure(request.peer, request.headers)
    if secure is not None:
        request.secure = secure
    if proxies.trust(request.peer):
        request.via = request.peer
        request.peer = proxies.client(request.peer, request.headers)


def _reference(action: paths.Action | None) -> str | None:
    for name in ("reference", "digest", "mount"):
        value = getattr(action, name, None)
        if value is not None:
            return str(value)
    return None


def _may_ping(keeper: Keeper, caller: Caller) -> bool:
    return caller is not NOBODY or (keeper.rules.anonymous_pull and not keeper.challenge.tokens)


def _may(keeper: Keeper, caller: Caller, need: Need, *, listed: bool = False) -> bool:
    """Whether *caller* has it. What is only *listed* in a catalog needs no token of its own."""
    if caller.foreign:
        assert caller.grants is not None
        return caller.grants.cover(need) or keeper.rules.allow(ANONYMOUS, need)
    if not keeper.rules.allow(caller.user, need):
        return False
    return caller.grants is None or listed or caller.grants.cover(need)


def _refusal(keeper: Keeper, request: Request, caller: Caller, need: Need) -> Unauthorized | Denied:
    """What somebody is told who may not do it."""
    what = f"{need.right} in {need.repository}" if need.repository else "listing repositories"
    if caller is NOBODY:
        return Unauthorized(f"{what} needs a login", challenge=keeper.challenge.header(request, need, ""))
    # With another token it might be allowed; with another password it would not.
    if caller.grants is not None and (
        caller.foreign or caller.user == ANONYMOUS or keeper.rules.allow(caller.user, need)
    ):
        error = "insufficient_scope"
        why = "a login" if caller.user == ANONYMOUS else "more than this token allows"
        return Unauthorized(f"{what} needs {why}", challenge=keeper.challenge.header(request, need, error))
    return Denied(f"{caller.user} may not: {what}")

"""Who sent a request: what an Authorization header proves.

Checking a password takes a quarter of a second on purpose, so it happens in worker threads, few at a time, once for all
requests that come with it meanwhile, and a success is remembered. What is remembered is a keyed hash of the whole
header: neither passwords nor tokens stay in memory (docs/decisions/0083).
"""

from __future__ import annotations

import base64
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass
from hashlib import blake2b

import trio

from ipfsreg.errors import TooManyRequests, Unauthorized
from ipfsreg.http.door.access import Grants
from ipfsreg.http.door.htpasswd import Passwords
from ipfsreg.http.door.issuers import FRESH_S, Issuers
from ipfsreg.http.door.limits import Allowances, client_of
from ipfsreg.http.door.rules import ANONYMOUS
from ipfsreg.http.door.tokens import TokenInvalid, Tokens, read_issuer

REMEMBERED = 4096
PASSWORD_REMEMBERED_S = 300.0
CHECKS_AT_ONCE = 2
CHECKS_WAITING = 64
"""Beyond it whoever comes is told to come back: each would wait for more than ten seconds."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who sent a request."""

    user: str
    how: str
    """`anonymous`, `password` or `token`."""
    grants: Grants | None = None
    """What their token allows at most; None: no token says less than the rules."""
    foreign: bool = False
    """Whether the token is somebody else's: then it says what is allowed, and our rules know nothing of its user."""


NOBODY = Caller(ANONYMOUS, "anonymous")


@dataclass(frozen=True, slots=True)
class Proof:
    """Who somebody has proved to be."""

    caller: Caller
    until: float
    """Seconds since 1970."""
    generation: int
    """Of the passwords and keys by which it was found."""


class Authenticator:
    """Knows the callers of one node."""

    def __init__(
        self,
        *,
        passwords: Passwords | None = None,
        tokens: Tokens | None = None,
        issuers: Issuers | None = None,
        failures: Allowances | None = None,
    ) -> None:
        """*failures*: how many failed attempts one address has; None: any number."""
        self._passwords = passwords
        self._tokens = tokens
        self._issuers = issuers
        self._failures = failures
        self._key = secrets.token_bytes(32)
        self._known: OrderedDict[bytes, Proof] = OrderedDict()
        self._being_checked: dict[bytes, trio.Event] = {}
        self._limiter = trio.CapacityLimiter(CHECKS_AT_ONCE)

    async def identify(self, header: str | None, address: str) -> Caller:
        """Who sent *header*, from *address*; NOBODY where there is none.

        Raises:
            Unauthorized: it proves nothing.
            TooManyRequests: too many attempts of this address failed, or too many wait to be checked.
        """
        if header is None:
            return NOBODY
        mark = self._mark(header)
        while True:
            known = self._known.get(mark)
            if known is not None and self.holds(known):
                return known.caller
            under_way = self._being_checked.get(mark)
            if under_way is None:
                break
            await under_way.wait()
            # Where it failed, each of those who waited fails by its own check, and is counted.
        done = self._being_checked[mark] = trio.Event()
        try:
            generation = self._generation()
            caller, until = await self._check(header, address)
            self._remember(mark, Proof(caller, until, generation))
            return caller
        finally:
            del self._being_checked[mark]
            done.set()

    def proof(self, header: str | None) -> Proof | None:
        """What *header* was found to prove lately."""
        if header is None:
            return Proof(NOBODY, float("inf"), self._generation())
        return self._known.get(self._mark(header))

    def holds(self, proof: Proof) -> bool:
        """Whether that is so still: neither has it ended, nor have passwords or keys changed."""
        return proof.generation == self._generation() and time.time() < proof.until

    def _mark(self, header: str) -> bytes:
        return blake2b(header.encode("latin-1", "replace"), digest_size=20, key=self._key).digest()

    async def log_in(self, user: str, password: bytes, address: str) -> Caller:
        """As `identify`, for a name and a password that came in another way."""
        pair = user.encode("utf-8", "surrogateescape") + b":" + password
        return await self.identify("Basic " + base64.b64encode(pair).decode("ascii"), address)

    def _generation(self) -> int:
        # Each only grows, so an equal sum means that all are the same.
        parts = (self._passwords, self._tokens, self._issuers)
        return sum(part.generation for part in parts if part is not None)

    def _remember(self, mark: bytes, proof: Proof) -> None:
        self._known[mark] = proof
        self._known.move_to_end(mark)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)

    async def _check(self, header: str, address: str) -> tuple[Caller, float]:
        """The caller, and until when that holds (seconds since 1970)."""
        client = client_of(address)
        if self._failures is not None:
            # Taken before it is known whether it fails: a thousand attempts at once are a thousand attempts.
            wait_s = self._failures.take(client, time.monotonic())
            if wait_s:
                raise TooManyRequests("too many failed logins from this address", wait_s)
        try:
            found = await self._prove(header)
        except TokenInvalid as error:
            if error.harmless:
                self._give_back(client)
            raise Unauthorized(str(error), error="invalid_token") from None
        except BaseException as error:  # also cancelled: none of it is a failed login, except a wrong password
            if not isinstance(error, Unauthorized):
                self._give_back(client)
            raise
        self._give_back(client)
        return found

    async def _prove(self, header: str) -> tuple[Caller, float]:
        scheme, _, rest = header.partition(" ")
        if scheme.lower() == "basic":
            return await self._check_password(rest), time.time() + PASSWORD_REMEMBERED_S
        if scheme.lower() == "bearer":
            return await self._check_token(rest.strip())
        raise Unauthorized("the Authorization header is neither Basic nor Bearer")

    def _give_back(self, client: str) -> None:
        if self._failures is not None:
            self._failures.give_back(client)

    async def _check_password(self, encoded: str) -> Caller:
        user, password = _decode_basic(encoded)
        if self._passwords is None:
            raise Unauthorized("passwords are not taken here")
        if self._limiter.statistics().tasks_waiting >= CHECKS_WAITING:
            raise TooManyRequests("too many logins at once", 5.0)
        passwords = self._passwords
        right = await trio.to_thread.run_sync(passwords.check, user, password, limiter=self._limiter)
        if not right:
            raise Unauthorized("wrong user name or password")
        return Caller(user, "password")

    async def _check_token(self, token: str) -> tuple[Caller, float]:
        issuer = read_issuer(token)
        if self._tokens is not None and issuer == self._tokens.service:
            claims = self._tokens.verify(token)
            if claims.user != ANONYMOUS and self._passwords is not None and not self._passwords.knows(claims.user):
                raise TokenInvalid("the user of the token is gone")
            return Caller(claims.user, "token", claims.grants), claims.expires_at
        if self._issuers is None:
            raise TokenInvalid("the token is from an issuer that is not known here")
        claims = await self._issuers.verify(token, issuer)
        # Not until it ends: what is remembered asks for no keys, so a key that was withdrawn would never be missed.
        until = min(claims.expires_at, time.time() + FRESH_S)
        return Caller(f"{issuer}:{claims.user}", "token", claims.grants, foreign=True), until


def claimed_user(header: str) -> str:
    """The user whom a Basic *header* names, whatever it proves; "" for none."""
    try:
        return _decode_basic(header[6:])[0] if header[:6].lower() == "basic " else ""
    except Unauthorized:
        return ""


def _decode_basic(encoded: str) -> tuple[str, bytes]:
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).partition(b":")
        return user.decode("utf-8"), password
    except ValueError:  # not ASCII, not base64, not UTF-8
        raise Unauthorized("the Authorization header holds no user name and password") from None

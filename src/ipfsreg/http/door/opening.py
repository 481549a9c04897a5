"""Opens the door that a configuration asks for."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from ipfsreg.config import AuthConfig, Config
from ipfsreg.errors import ConfigError
from ipfsreg.http.door.audit import AuditLog
from ipfsreg.http.door.authenticator import Authenticator
from ipfsreg.http.door.forwarding import TrustedProxies
from ipfsreg.http.door.htpasswd import Passwords
from ipfsreg.http.door.issuers import Issuers, IssuerSettings
from ipfsreg.http.door.limits import Allowances, AtOnce
from ipfsreg.http.door.rules import OPEN_TO_USERS, Rule, Rules
from ipfsreg.http.door.service import Challenge, Door, Keeper
from ipfsreg.http.door.token_endpoint import TokenEndpoint
from ipfsreg.http.door.tokens import Tokens, derive_keys, load_keys
from ipfsreg.http.reloading import Reloaded

logger = logging.getLogger(__name__)

_LOOPBACK = ("127.", "[::1]", "localhost")


@dataclass(frozen=True, slots=True)
class OpenedDoor:
    """A door, and the files it reads."""

    door: Door | None
    """None: everybody may do everything, as often as they like, and nothing is written down."""
    reloaded: tuple[Reloaded, ...]


@contextmanager
def open_door(config: Config, secret: bytes) -> Iterator[OpenedDoor]:
    """Keep the door that *config* describes for as long as the block lasts. *secret*: the node's private key.

    Raises:
        ConfigError: a file that cannot be read, or keys that only make sense with others.
    """
    auth, http = config.auth, config.http
    reloaded: list[Reloaded] = []
    keeper = _keeper(auth, secret, reloaded)
    _warn(config, keeper is not None)
    audit = AuditLog(Path(config.audit.path)) if config.audit.path else None
    try:
        if audit is not None:
            reloaded.append(Reloaded((audit.path,), audit.reopen, watched=False))
        requests = Allowances(http.requests_per_s, http.requests_burst) if http.requests_per_s else None
        at_once = AtOnce(http.requests_at_once) if http.requests_at_once else None
        proxies = TrustedProxies(http.trusted_proxies) if http.trusted_proxies else None
        door = None
        if any(part is not None for part in (keeper, proxies, requests, at_once, audit)):
            door = Door(
                keeper=keeper,
                proxies=proxies,
                requests=requests,
                at_once=at_once,
                audit=audit,
                audit_pulls=config.audit.pulls,
            )
        yield OpenedDoor(door, tuple(reloaded))
    finally:
        if audit is not None:
            audit.close()


def _keeper(auth: AuthConfig, secret: bytes, reloaded: list[Reloaded]) -> Keeper | None:
    if not (auth.htpasswd or auth.issuers or auth.token_key):
        for key in ("rules", "groups", "admins", "anonymous_pull", "realm"):
            if getattr(auth, key):
                right = "means nothing while everybody may do everything: set auth.htpasswd or [[auth.issuers]] too"
                value = getattr(auth, key)
                shown = f"{len(value)} tables" if key in ("rules", "groups") else value
                raise ConfigError(f"auth.{key}", shown, right)
        return None
    passwords = tokens = issuers = None
    if auth.htpasswd:
        passwords = Passwords(Path(auth.htpasswd))
        reloaded.append(Reloaded((passwords.path,), passwords.reload))
    if auth.tokens:
        tokens = _tokens(auth, secret, reloaded)
    if auth.issuers:
        settings = [
            IssuerSettings(
                issuer=one.issuer, jwks=one.jwks, audience=one.audience or auth.service, repositories=one.repositories
            )
            for one in auth.issuers
        ]
        issuers = Issuers(settings)
        # Each on its own: where one is broken the others are read all the same.
        reloaded.extend(Reloaded((path,), partial(issuers.reload, path)) for path in issuers.paths)
    failures = None
    if auth.failed_logins_per_min:
        failures = Allowances(auth.failed_logins_per_min / 60, max(1.0, auth.failed_logins_per_min))
    authenticator = Authenticator(passwords=passwords, tokens=tokens, issuers=issuers, failures=failures)
    rules = Rules(
        _rules(auth),
        groups={group.name: group.users for group in auth.groups},
        admins=auth.admins,
        catalog=auth.catalog,
        anonymous_pull=auth.anonymous_pull,
    )
    endpoint = None
    if tokens is not None and (passwords is not None or auth.anonymous_pull):
        endpoint = TokenEndpoint(authenticator, rules, tokens)
    if auth.tokens and endpoint is None and not auth.realm:
        right = "the URL of the token service that clients are sent to: without auth.htpasswd this node has none"
        raise ConfigError("auth.realm", "", right)
    challenge = Challenge(realm=auth.realm, service=auth.service, tokens=auth.tokens)
    return Keeper(authenticator=authenticator, rules=rules, challenge=challenge, endpoint=endpoint)


def _tokens(auth: AuthConfig, secret: bytes, reloaded: list[Reloaded]) -> Tokens:
    if not auth.token_key:
        return Tokens(derive_keys(secret), auth.service, auth.token_s)
    path = Path(auth.token_key)
    tokens = Tokens(load_keys(path), auth.service, auth.token_s)
    reloaded.append(Reloaded((path,), lambda: tokens.replace_keys(load_keys(path))))
    return tokens


def _rules(auth: AuthConfig) -> tuple[Rule, ...]:
    if not auth.rules:
        return OPEN_TO_USERS
    return tuple(
        Rule(pattern=one.repositories, pull=one.pull, push=one.push, create=one.create, delete=one.delete)
        for one in auth.rules
    )


def _warn(config: Config, closed: bool) -> None:
    """Say loudly what others could make use of."""
    for address in config.http.listen:
        if address.removeprefix("http://").removeprefix("https://").startswith(_LOOPBACK):
            continue
        secure = not address.startswith("http://") and bool(config.http.tls_certificate)
        if not closed:
            logger.warning(
                "EVERYBODY WHO REACHES %s CAN PUSH AND DELETE: set auth.htpasswd, see docs/operations.md", address
            )
        if not secure:
            what = "PASSWORDS AND IMAGES" if closed else "IMAGES"
            logger.warning("%s GO OVER THE NETWORK IN THE CLEAR AT %s: set http.tls_certificate", what, address)

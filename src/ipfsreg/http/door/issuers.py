"""Tokens of others: issuers we were told to believe, and their keys as JWKS (RFC 7517), from a file or a URL.

A token's header only says which of the keys we already have to try (`kid`); keys it carries or points to are never
looked at, and the algorithm is the key's own. So there is no token without a signature, and none signed by a public key
taken for a shared secret.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import httpx
import jwt
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.http.door.tokens import Claims, TokenInvalid, read_header, verify_with

logger = logging.getLogger(__name__)

KEY = "auth.issuers"

MAX_JWKS_BYTES = 256 * 1024
MAX_KEYS = 100
MAX_RSA_BITS = 8192
MIN_RSA_BITS = 2048

FETCH_S = 10.0
"""Seconds a URL has for its answer."""
FRESH_S = 300.0
"""Seconds after which keys from a URL are fetched again."""
STALE_S = 24 * 3600.0
"""Seconds for which keys count whose URL does not answer any more."""
PATIENCE_S = 1.0
"""Seconds that a token whose key is known waits for newer keys; then it is checked by those there are."""
RETRY_S = 30.0
"""Seconds between two fetches, however many tokens name a key that is not known."""

_EC_ALGORITHMS = {"secp256r1": "ES256", "secp384r1": "ES384", "secp521r1": "ES512"}


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuerSettings:
    """Whom to believe, and about what."""

    issuer: str
    jwks: str
    """Path or URL."""
    audience: str
    repositories: str = "*"
    """Pattern of the repositories it may speak about."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """One of an issuer's keys, with the algorithms it can be used by."""

    key: object
    algorithms: tuple[str, ...]


def parse_jwks(data: bytes) -> dict[str, PublicKey]:
    """Key id -> key; "" for one without. Keys of kinds that are not used here are passed over, private ones too.

    Milliseconds for `MAX_JWKS_BYTES`: not to be called on the event loop.

    Raises:
        MalformedData: not a set of keys, too many, or none that can be used.
    """
    try:
        document = json.loads(data)
        entries = document["keys"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise MalformedData('not a JSON Web Key Set: {"keys": […]}') from None
    if not isinstance(entries, list) or len(entries) > MAX_KEYS:
        raise MalformedData(f"not a list of at most {MAX_KEYS} keys")
    keys: dict[str, PublicKey] = {}
    for entry in entries:
        # Who publishes private keys is not to be believed; and of an RSA key with "d" the library looks for the primes,
        # which holds the interpreter for a second, or hours with a larger number.
        if not isinstance(entry, dict) or entry.get("use", "sig") != "sig" or "d" in entry:
            continue
        try:
            found = _public_key(jwt.PyJWK(entry).key)
        except (jwt.PyJWTError, ValueError, TypeError, KeyError):
            continue
        if found is not None:
            keys[str(entry.get("kid", ""))] = found
    if not keys:
        raise MalformedData("no key in it can be used: Ed25519, ECDSA and RSA public keys are")
    return keys


def _public_key(key: object) -> PublicKey | None:
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS or key.public_numbers().e.bit_length() > 32:
            return None
        return PublicKey(key, ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"))
    if isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _EC_ALGORITHMS:
        return PublicKey(key, (_EC_ALGORITHMS[key.curve.name],))
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return PublicKey(key, ("EdDSA",))
    return None  # Also secrets: whoever publishes those is not to be believed.


@dataclass(slots=True)
class _Issuer:
    settings: IssuerSettings
    keys: Mapping[str, PublicKey] = field(default_factory=dict)
    fetched_at: float = float("-inf")
    tried_at: float = float("-inf")
    fetching: trio.Event | None = None
    """Set when the fetch that is under way has ended; None: none is."""

    @property
    def path(self) -> Path | None:
        return None if "://" in self.settings.jwks else Path(self.settings.jwks)


class Issuers:
    """All of them, with their keys as they are known now."""

    def __init__(self, settings: Sequence[IssuerSettings]) -> None:
        """Raises ConfigError: a file that is no JWKS."""
        self._issuers = {one.issuer: _Issuer(one) for one in settings}
        self._lock = threading.Lock()
        self.generation = 0
        """Goes up when keys change."""
        for path in self.paths:
            self.reload(path)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Files whose change asks for `reload`, each once."""
        return tuple(dict.fromkeys(issuer.path for issuer in self._issuers.values() if issuer.path is not None))

    def reload(self, path: Path) -> None:
        """Read the file at *path* again, and no other: one that is broken holds up nobody else's keys.

        Raises:
            ConfigError: what was read before stays in use.
        """
        keys = _read(path)
        for issuer in self._issuers.values():
            if issuer.path == path:
                self._take(issuer, keys)

    def _take(self, issuer: _Issuer, keys: dict[str, PublicKey]) -> None:
        with self._lock:
            issuer.keys = keys
            self.generation += 1

    async def verify(self, token: str, issuer_name: str) -> Claims:
        """Check a token that claims to be from *issuer_name*.

        Raises:
            TokenInvalid: the issuer is not known, its keys cannot be had, or the token is not good.
        """
        issuer = self._issuers.get(issuer_name)
        if issuer is None:
            raise TokenInvalid("the token is from an issuer that is not known here")
        header = read_header(token)
        key = await self._find(issuer, str(header.get("kid", "")))
        if key is None:
            raise TokenInvalid("the token is signed with a key that its issuer does not name")
        settings = issuer.settings
        claims = verify_with(token, key.key, list(key.algorithms), issuer=settings.issuer, audience=settings.audience)
        grants = claims.grants.within(lambda name: fnmatchcase(name, settings.repositories))
        return Claims(claims.user, grants, claims.expires_at)

    async def _find(self, issuer: _Issuer, kid: str) -> PublicKey | None:
        """The key *kid*, at once where it is known and fresh: no slow service, and no stranger who names keys that do
        not exist, delays those whose key is known."""
        if issuer.path is None:
            age_s = time.monotonic() - issuer.fetched_at
            if issuer.keys and age_s > STALE_S:
                self._take(issuer, {})
            if kid not in issuer.keys:
                await self._refresh(issuer)
            elif age_s > FRESH_S:
                with trio.move_on_after(PATIENCE_S):
                    await self._refresh(issuer)
        return issuer.keys.get(kid)

    async def _refresh(self, issuer: _Issuer) -> None:
        """Wait for the fetch that is under way, or for one that begins now if the last is long enough ago.

        Cancelled: the fetch goes on.
        """
        if issuer.fetching is None:
            now = time.monotonic()
            if now - issuer.tried_at < RETRY_S:
                return
            issuer.tried_at = now
            issuer.fetching = trio.Event()
            # It outlasts who asked for it, and has its own deadline.
            trio.lowlevel.spawn_system_task(self._fetch_keys, issuer, issuer.fetching, now)
        await issuer.fetching.wait()

    async def _fetch_keys(self, issuer: _Issuer, done: trio.Event, now: float) -> None:
        """Fetch the keys; what fails leaves what there is."""
        try:
            keys = await _fetch(issuer.settings.jwks)
        except (httpx.HTTPError, httpx.InvalidURL, OSError, MalformedData) as error:
            logger.warning("no keys of the issuer %s: %s", issuer.settings.issuer, error or type(error).__name__)
        except Exception:  # what leaves a system task ends the process, and this is about bytes of somebody else
            logger.exception("no keys of the issuer %s", issuer.settings.issuer)
        else:
            issuer.fetched_at = now
            if keys != issuer.keys:
                self._take(issuer, keys)
        finally:
            issuer.fetching = None
            done.set()


async def _fetch(url: str) -> dict[str, PublicKey]:
    """The keys at *url*.

    Raises httpx.HTTPError, MalformedData. Cancelled or late: the thread ends by itself soon after.
    """
    with trio.move_on_after(FETCH_S):
        # The stubs that libp2p brings along are older than this parameter.
        return await trio.to_thread.run_sync(_fetch_in_thread, url, abandon_on_cancel=True)  # type: ignore[call-arg]
    raise MalformedData(f"no answer within {FETCH_S:g} s")


def _fetch_in_thread(url: str) -> dict[str, PublicKey]:
    deadline = time.monotonic() + FETCH_S
    # No redirects: keys come from where we were told, and from nowhere that place points to. No proxies by environment,
    # and nothing compressed, of which nobody knows beforehand how large it becomes.
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    with (
        httpx.Client(follow_redirects=False, trust_env=False, timeout=FETCH_S / 2) as client,
        client.stream("GET", url, headers=headers) as response,
    ):
        response.raise_for_status()
        data = bytearray()
        for piece in response.iter_raw(64 * 1024):
            data += piece
            if len(data) > MAX_JWKS_BYTES:
                raise MalformedData(f"larger than {MAX_JWKS_BYTES} bytes")
            if time.monotonic() > deadline:
                raise MalformedData(f"not whole within {FETCH_S:g} s")
    return parse_jwks(bytes(data))


def _read(path: Path) -> dict[str, PublicKey]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JWKS_BYTES + 1)
    except OSError as error:
        raise ConfigError(KEY, str(path), f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_JWKS_BYTES:
        raise ConfigError(KEY, str(path), f"is larger than {MAX_JWKS_BYTES} bytes")
    try:
        return parse_jwks(data)
    except MalformedData as error:
        raise ConfigError(KEY, str(path), str(error)) from None

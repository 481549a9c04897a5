"""Tokens of our own: signed JWTs with the claims of distribution's token specification, "Token Authentication".

Whoever holds the key can make tokens for everybody. It is a file that nodes behind one name share, or, without one,
derived from the node's own identity, and then no other node takes its tokens (docs/decisions/0085).
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes, PublicKeyTypes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.http.door.access import Grants

KEY = "auth.token_key"

MAX_TOKEN_CHARACTERS = 16 * 1024
LEEWAY_S = 30.0
"""How far the clocks of two nodes may be apart."""

_MAX_FILE_BYTES = 64 * 1024
_END = b"-----END "


class TokenInvalid(MalformedData):
    """A token that says nothing to us. The text is for the client and holds nothing of the token."""

    def __init__(self, text: str, *, harmless: bool = False) -> None:
        """*harmless*: it was good once, so whoever brings it is not guessing."""
        super().__init__(text)
        self.harmless = harmless


@dataclass(frozen=True, slots=True)
class VerifyingKey:
    """A public key, and the one algorithm it is used with: what a token's header says is compared, not believed."""

    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    algorithm: str


@dataclass(frozen=True, slots=True)
class TokenKeys:
    """What tokens are signed with, and everything they are checked with."""

    signing: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey
    kid: str
    verifying: dict[str, VerifyingKey]
    """By key id."""


def derive_keys(secret: bytes) -> TokenKeys:
    """Keys of a node alone, from its identity's private key: the same after a restart, and of no use elsewhere."""
    seed = HKDF(SHA256(), 32, salt=None, info=b"ipfsreg token key").derive(secret)
    return _keys([ed25519.Ed25519PrivateKey.from_private_bytes(seed)])


def load_keys(path: Path) -> TokenKeys:
    """Read a PEM file: the private key that signs, then others, private or public, that are still accepted.

    Raises:
        ConfigError: it cannot be read, or holds a key that is neither Ed25519 nor ECDSA on P-256.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(KEY, str(path), f"cannot be read: {error.strerror}") from None
    try:
        return _keys([_load(block) for block in _blocks(data)])
    except (ValueError, TypeError, UnsupportedAlgorithm):
        right = (
            "a PEM file whose first key is private, Ed25519 or P-256: `openssl genpkey -algorithm ed25519` makes one"
        )
        raise ConfigError(KEY, str(path), right) from None


def _blocks(data: bytes) -> list[bytes]:
    blocks = []
    while _END in data:
        end = data.index(_END)
        line_end = data.find(b"\n", end)
        line_end = len(data) if line_end < 0 else line_end + 1
        blocks.append(data[:line_end])
        data = data[line_end:]
    return blocks


def _load(block: bytes) -> PrivateKeyTypes | PublicKeyTypes:
    return load_pem_public_key(block) if b"BEGIN PUBLIC KEY" in block else load_pem_private_key(block, password=None)


def _keys(keys: Sequence[PrivateKeyTypes | PublicKeyTypes]) -> TokenKeys:
    verifying: dict[str, VerifyingKey] = {}
    for key in keys:
        public = key.public_key() if isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) else key
        match public:
            case ed25519.Ed25519PublicKey():
                found = VerifyingKey(public, "EdDSA")
            case ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
                found = VerifyingKey(public, "ES256")
            case _:
                raise ValueError("a key of another kind")
        verifying[_kid(public)] = found
    match keys:
        case [ec.EllipticCurvePrivateKey() | ed25519.Ed25519PrivateKey() as first, *_]:
            return TokenKeys(first, _kid(first.public_key()), verifying)
    raise ValueError("the first key is not private")


def _kid(key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) -> str:
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token that was checked says."""

    user: str
    grants: Grants
    expires_at: float
    """Seconds since 1970."""


class Tokens:
    """Makes and checks the tokens of one *service*, which is their issuer and their audience."""

    def __init__(self, keys: TokenKeys, service: str, lifetime_s: float) -> None:
        self._keys = keys
        self.service = service
        self.lifetime_s = lifetime_s
        self.generation = 0
        """Goes up when the keys change."""

    def replace_keys(self, keys: TokenKeys) -> None:
        """Sign with, and accept, other keys from now on."""
        self._keys = keys
        self.generation += 1

    def issue(self, user: str, grants: Grants, now: float) -> str:
        """A token for *user*, from *now* (seconds since 1970) on."""
        claims = {
            "iss": self.service,
            "aud": self.service,
            "sub": user,
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + self.lifetime_s),
            "jti": secrets.token_hex(8),
            "access": grants.claims(),
        }
        keys = self._keys
        algorithm = keys.verifying[keys.kid].algorithm
        return jwt.encode(claims, keys.signing, algorithm=algorithm, headers={"kid": keys.kid})

    def verify(self, token: str) -> Claims:
        """Raises TokenInvalid."""
        header = read_header(token)
        key = self._keys.verifying.get(str(header.get("kid")))
        if key is None:
            raise TokenInvalid("the token is signed with a key that is not known here")
        return verify_with(token, key.key, [key.algorithm], issuer=self.service, audience=self.service)


def read_header(token: str) -> dict[str, object]:
    """The header, of which nothing is true yet. Raises TokenInvalid."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TokenInvalid("the token is too long")
    try:
        return jwt.get_unverified_header(token)
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise TokenInvalid("not a token") from None


def read_issuer(token: str) -> str:
    """Who a token claims to be from, to find the key it is checked with. Raises TokenInvalid."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TokenInvalid("the token is too long")
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except (jwt.InvalidTokenError, ValueError, RecursionError):
        raise TokenInvalid("not a token") from None
    return str(claims.get("iss", ""))


def verify_with(token: str, key: object, algorithms: list[str], *, issuer: str, audience: str) -> Claims:
    """Check signature, issuer, audience and times. Raises TokenInvalid, with a text that says what is wrong."""
    try:
        claims = jwt.decode(
            token,
            key,  # type: ignore[arg-type]
            algorithms=algorithms,
            issuer=issuer,
            audience=audience,
            leeway=LEEWAY_S,
            options={"require": ["exp", "iss", "aud"]},
        )
        expires_at = float(claims["exp"])
    except jwt.ExpiredSignatureError:
        raise TokenInvalid("the token has expired", harmless=True) from None
    except jwt.ImmatureSignatureError:
        raise TokenInvalid("the token is not valid yet") from None
    except jwt.InvalidAudienceError:
        raise TokenInvalid("the token is for another service") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        # Overflow: JSON has numbers that no clock and no float has.
        raise TokenInvalid("the token cannot be verified") from None
    return Claims(str(claims.get("sub", "")), Grants.of_claims(claims.get("access")), expires_at)

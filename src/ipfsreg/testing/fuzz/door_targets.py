"""What strangers give to the door of the registry's front: passwords, scopes, tokens, key sets."""

from __future__ import annotations

import json
import time

from ipfsreg.errors import MalformedData, Unauthorized
from ipfsreg.http.door.access import PUSH, Grants, Need, parse_scopes
from ipfsreg.http.door.authenticator import claimed_user
from ipfsreg.http.door.htpasswd import is_user, parse_htpasswd
from ipfsreg.http.door.issuers import MAX_JWKS_BYTES, PublicKey, parse_jwks
from ipfsreg.http.door.tokens import MAX_TOKEN_CHARACTERS, Tokens, derive_keys, read_header, read_issuer
from ipfsreg.testing.fuzz.harness import Target

_SCOPES = "repository:team/app:pull,push registry:catalog:* repository(plugin):host:5000/a:*"
_HASH = "$2y$05$" + "a" * 53
_LASTS_S = 10 * 365 * 86400.0
_TOKENS = Tokens(derive_keys(b"fuzz"), "ipfsreg", _LASTS_S)
_TOKEN = _TOKENS.issue("alice", Grants(parse_scopes([_SCOPES])), time.time())
_KEYS = {
    "keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {
            "kty": "EC",
            "crv": "P-256",
            "kid": "b",
            "use": "sig",
            "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
            "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
        },
    ]
}


def _scopes(data: bytes) -> None:
    """What was granted is still granted after it was written into a token and read."""
    grants = Grants(parse_scopes([data.decode("latin-1")]))
    again = Grants.of_claims(json.loads(json.dumps(grants.claims())))
    for claim in grants.claims():
        need = Need(str(claim["name"]), PUSH)
        assert grants.cover(need) == again.cover(need)


def _htpasswd(data: bytes) -> None:
    """Whoever is in a file can be a user, and has a hash that bcrypt takes."""
    for user, hashed in parse_htpasswd(data.decode("latin-1")).items():
        assert is_user(user)
        assert len(hashed) == 60


def _basic(data: bytes) -> None:
    """A header names a user, or nobody."""
    user = claimed_user(data.decode("latin-1"))
    if not user:
        raise Unauthorized("nobody")


def _token(data: bytes) -> None:
    """Nothing but what was signed is believed."""
    text = data.decode("latin-1")
    read_issuer(text)
    read_header(text)
    claims = _TOKENS.verify(text)
    assert claims.user == "alice"
    assert claims.grants.cover(Need("team/app", PUSH))


def _jwks(data: bytes) -> None:
    """What comes out is public, of a kind that signs, and bound to algorithms that do."""
    for key in parse_jwks(data).values():
        assert isinstance(key, PublicKey)
        assert key.algorithms
        assert not any(name.startswith("HS") or name == "none" for name in key.algorithms)
        assert "Private" not in type(key.key).__name__


TARGETS = (
    Target("door_scopes", _scopes, (_SCOPES.encode(), b"repository:a:pull"), 32 * 1024, memory_factor=160),
    Target("door_htpasswd", _htpasswd, (f"alice:{_HASH}\n# x\n\nbob:{_HASH}".encode(),), 64 * 1024),
    Target("door_basic", _basic, (b"Basic YWxpY2U6c2VjcmV0", b"basic Ojo="), 32 * 1024, (Unauthorized,)),
    Target("door_token", _token, (_TOKEN.encode(),), MAX_TOKEN_CHARACTERS + 100, (MalformedData,), weight=0.5),
    Target("door_jwks", _jwks, (json.dumps(_KEYS).encode(),), MAX_JWKS_BYTES, weight=0.3),
)

"""Tokens of our own, and what is none."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipfsreg.errors import ConfigError
from ipfsreg.http.door.access import PULL, PUSH, Grants, Need, parse_scopes
from ipfsreg.http.door.tokens import LEEWAY_S, MAX_TOKEN_CHARACTERS, TokenInvalid, Tokens, derive_keys, load_keys
from ipfsreg.testing.certificates import write_key

GRANTS = Grants(parse_scopes(["repository:team/app:pull,push"]))


@pytest.fixture
def tokens() -> Tokens:
    return Tokens(derive_keys(b"secret"), "ipfsreg", 300.0)


def public_pem(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def test_a_token_says_who_it_is_for_and_what_they_may(tokens: Tokens) -> None:
    now = time.time()
    claims = tokens.verify(tokens.issue("alice", GRANTS, now))
    assert claims.user == "alice"
    assert claims.grants.cover(Need("team/app", PUSH))
    assert not claims.grants.cover(Need("team/other", PULL))
    assert claims.expires_at == pytest.approx(now + 300, abs=1)


def test_a_token_for_nobody_is_one_too(tokens: Tokens) -> None:
    assert tokens.verify(tokens.issue("", Grants(()), time.time())).user == ""


def test_an_expired_token_is_told_from_a_forged_one(tokens: Tokens) -> None:
    with pytest.raises(TokenInvalid, match="expired") as caught:
        tokens.verify(tokens.issue("alice", GRANTS, time.time() - 300 - LEEWAY_S - 2))
    assert caught.value.harmless


def test_clocks_may_differ_by_half_a_minute(tokens: Tokens) -> None:
    for skew in (-300 - LEEWAY_S + 5, LEEWAY_S - 5):
        tokens.verify(tokens.issue("alice", GRANTS, time.time() + skew))
    with pytest.raises(TokenInvalid, match="not valid yet"):
        tokens.verify(tokens.issue("alice", GRANTS, time.time() + LEEWAY_S + 5))


def test_keys_derived_from_an_identity_are_the_same_after_a_restart_and_no_other_nodes(tokens: Tokens) -> None:
    token = Tokens(derive_keys(b"secret"), "ipfsreg", 60.0).issue("alice", GRANTS, time.time())
    assert tokens.verify(token).user == "alice"
    with pytest.raises(TokenInvalid, match="a key that is not known here"):
        Tokens(derive_keys(b"another"), "ipfsreg", 60.0).verify(token)


def test_a_token_for_another_service_is_refused(tokens: Tokens) -> None:
    other = Tokens(derive_keys(b"secret"), "elsewhere", 300.0)
    with pytest.raises(TokenInvalid):
        tokens.verify(other.issue("alice", GRANTS, time.time()))


def tampered(token: str, part: int, **changes: object) -> str:
    parts = token.split(".")
    raw = base64.urlsafe_b64decode(parts[part] + "==")
    document = {**json.loads(raw), **changes}
    parts[part] = base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=").decode()
    return ".".join(parts)


def test_a_token_changed_anywhere_is_refused(tokens: Tokens) -> None:
    token = tokens.issue("bob", GRANTS, time.time())
    head, claims, signature = token.split(".")
    for wrong in (
        tampered(token, 1, sub="alice"),
        tampered(token, 1, exp=int(time.time()) + 10**6),
        tampered(token, 0, alg="ES256"),
        tampered(token, 0, kid="other"),
        f"{head}.{claims}.",
        f"{head}.{claims}.{signature[:-4]}AAAA",
        f"{head}.{claims}",
        token + "x",
        "",
        "a.b.c",
        "é.ü.ö",
    ):
        with pytest.raises(TokenInvalid):
            tokens.verify(wrong)
    assert tokens.verify(token).user == "bob"


def test_a_token_without_a_signature_is_refused(tokens: Tokens) -> None:
    kid = derive_keys(b"secret").kid
    claims = {"iss": "ipfsreg", "aud": "ipfsreg", "sub": "alice", "exp": int(time.time()) + 100}
    unsigned = jwt.encode(claims, "", algorithm="none", headers={"kid": kid})
    for token in (unsigned, tampered(unsigned, 0, alg="None"), tampered(unsigned, 0, alg="nOnE")):
        with pytest.raises(TokenInvalid):
            tokens.verify(token)


def test_our_public_key_is_no_shared_secret(tokens: Tokens, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    keys = load_keys(write_key(tmp_path / "key", key))
    claims = {"iss": "ipfsreg", "aud": "ipfsreg", "sub": "alice", "exp": int(time.time()) + 100}
    header = base64.urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": keys.kid}).encode()).rstrip(b"=")
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=")
    mac = hmac.new(public_pem(key), header + b"." + payload, hashlib.sha256).digest()
    token = b".".join((header, payload, base64.urlsafe_b64encode(mac).rstrip(b"="))).decode()
    with pytest.raises(TokenInvalid):
        Tokens(keys, "ipfsreg", 60.0).verify(token)


def test_a_key_that_a_token_brings_along_is_never_looked_at(tokens: Tokens) -> None:
    attacker = ed25519.Ed25519PrivateKey.generate()
    jwk = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(attacker.public_key()))
    claims = {"iss": "ipfsreg", "aud": "ipfsreg", "sub": "alice", "exp": int(time.time()) + 100}
    headers = {"kid": derive_keys(b"secret").kid, "jwk": jwk, "jku": "https://attacker.example/", "x5u": "https://a/"}
    with pytest.raises(TokenInvalid, match="cannot be verified"):
        tokens.verify(jwt.encode(claims, attacker, algorithm="EdDSA", headers=headers))


def test_a_token_without_an_end_is_refused(tmp_path: Path) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    keys = load_keys(write_key(tmp_path / "key", key))
    claims = {"iss": "ipfsreg", "aud": "ipfsreg", "sub": "alice"}
    with pytest.raises(TokenInvalid):
        Tokens(keys, "ipfsreg", 60.0).verify(jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": keys.kid}))


@pytest.mark.parametrize("end", ["1e999", "Infinity", "9" * 400])
def test_a_token_with_an_end_that_no_clock_has_is_refused(tmp_path: Path, end: str) -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    keys = load_keys(write_key(tmp_path / "key", key))
    claims = f'{{"iss":"ipfsreg","aud":"ipfsreg","sub":"alice","exp":{end}}}'.encode()
    with pytest.raises(TokenInvalid):
        Tokens(keys, "ipfsreg", 60.0).verify(
            jwt.PyJWS().encode(claims, key, algorithm="EdDSA", headers={"kid": keys.kid})
        )


def test_a_token_of_any_length_is_not_read(tokens: Tokens) -> None:
    with pytest.raises(TokenInvalid, match="too long"):
        tokens.verify("a" * (MAX_TOKEN_CHARACTERS + 1))


@pytest.mark.parametrize("kind", ["ed25519", "p256"])
def test_keys_come_from_a_file_that_nodes_share(tmp_path: Path, kind: str) -> None:
    private = ed25519.Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "key", private)
    token = Tokens(load_keys(path), "ipfsreg", 60.0).issue("alice", GRANTS, time.time())
    assert Tokens(load_keys(path), "ipfsreg", 60.0).verify(token).user == "alice"


def test_a_new_key_signs_and_the_one_before_is_still_accepted(tmp_path: Path) -> None:
    old, new = ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1())
    path = write_key(tmp_path / "key", old)
    tokens = Tokens(load_keys(path), "ipfsreg", 60.0)
    before = tokens.issue("alice", GRANTS, time.time())
    write_key(path, new)
    with path.open("ab") as file:
        file.write(public_pem(old))
    tokens.replace_keys(load_keys(path))
    after = tokens.issue("alice", GRANTS, time.time())
    assert jwt.get_unverified_header(after)["alg"] == "ES256"
    assert [tokens.verify(token).user for token in (before, after)] == ["alice", "alice"]
    write_key(path, new)
    tokens.replace_keys(load_keys(path))
    with pytest.raises(TokenInvalid):
        tokens.verify(before)


def test_a_key_file_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="No such file"):
        load_keys(path)
    public = public_pem(ed25519.Ed25519PrivateKey.generate())
    write_key(path, rsa.generate_private_key(65537, 2048))
    contents = [path.read_bytes(), b"", b"nonsense", public, b"-----END x"]
    write_key(path, ec.generate_private_key(ec.SECP384R1()))
    for content in (*contents, path.read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="first key is private, Ed25519 or P-256"):
            load_keys(path)

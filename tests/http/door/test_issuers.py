"""Tokens of others: whose keys are believed, where they come from, and what no key makes true."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.http.door import issuers as issuers_module
from ipfsreg.http.door.access import PULL, PUSH, Need
from ipfsreg.http.door.issuers import Issuers, IssuerSettings, parse_jwks
from ipfsreg.http.door.tokens import TokenInvalid
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import ServerSettings, open_server

ISSUER = "https://login.example"
ACCESS = [{"type": "repository", "name": "team-a/app", "actions": ["pull", "push"]}]
RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey


def jwk(key: Key, kid: str, **fields: str) -> dict[str, str]:
    if isinstance(key, rsa.RSAPrivateKey):
        text = jwt.algorithms.RSAAlgorithm.to_jwk(key.public_key())
    elif isinstance(key, ec.EllipticCurvePrivateKey):
        text = jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())
    else:
        text = jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())
    return {**json.loads(text), "kid": kid, **fields}


def jwks(*keys: dict[str, str]) -> bytes:
    return json.dumps({"keys": keys}).encode()


ALL = jwks(jwk(RSA, "rsa"), jwk(EC, "ec"), jwk(ED, "ed"))


def token(key: Key = EC, kid: str = "ec", algorithm: str = "ES256", **claims: object) -> str:
    said = {"iss": ISSUER, "aud": "registry", "sub": "carol", "exp": int(time.time()) + 60, "access": ACCESS, **claims}
    said = {name: value for name, value in said.items() if value is not None}
    return jwt.encode(said, key, algorithm=algorithm, headers={"kid": kid})


def knowing(where: str | Path, **settings: str) -> Issuers:
    return Issuers([IssuerSettings(**{"issuer": ISSUER, "jwks": str(where), "audience": "registry", **settings})])


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    path.write_bytes(ALL)
    return path


class KeyService:
    """An issuer's web server."""

    def __init__(self) -> None:
        self.response = Response(200, (("Content-Type", "application/json"),), ALL)
        self.asked = 0
        self.was_asked = trio.Event()
        self.gate = trio.Event()
        self.gate.set()

    async def answer(self, request: Request) -> Response:
        self.asked += 1
        self.was_asked.set()
        await self.gate.wait()
        return self.response

    def close_gate(self) -> None:
        """Let who asks wait from now on."""
        self.was_asked, self.gate = trio.Event(), trio.Event()

    def say(self, body: bytes, status: int = 200, *headers: tuple[str, str]) -> None:
        self.response = Response(status, headers, body)


@pytest.fixture
async def service() -> AsyncIterator[tuple[KeyService, str]]:
    found = KeyService()
    async with open_server(found.answer, listen=["127.0.0.1:0"]) as server:
        yield found, f"http://{server.places[0]}/jwks.json"


# ---------------------------------------------------------------- tokens


@pytest.mark.parametrize(
    ("key", "kid", "algorithm"),
    [(RSA, "rsa", "RS256"), (RSA, "rsa", "PS512"), (EC, "ec", "ES256"), (ED, "ed", "EdDSA")],
)
async def test_a_token_signed_by_one_of_the_keys_is_believed(file: Path, key: Key, kid: str, algorithm: str) -> None:
    issuers = knowing(file)
    claims = await issuers.verify(token(key, kid, algorithm), ISSUER)
    assert claims.user == "carol"
    assert claims.grants.cover(Need("team-a/app", PUSH))
    assert not claims.grants.cover(Need("team-b/app", PULL))


@pytest.mark.parametrize(
    ("claims", "told"),
    [
        ({"aud": "elsewhere"}, "for another service"),
        ({"aud": None}, "cannot be verified"),
        ({"exp": int(time.time()) - 100}, "expired"),
        ({"exp": None}, "cannot be verified"),
        ({"nbf": int(time.time()) + 1000}, "not valid yet"),
        ({"iss": "https://other.example"}, "cannot be verified"),
    ],
)
async def test_a_token_that_is_not_for_us_or_not_for_now_is_refused(
    file: Path, claims: dict[str, object], told: str
) -> None:
    issuers = knowing(file)
    with pytest.raises(TokenInvalid, match=told):
        await issuers.verify(token(**claims), ISSUER)  # type: ignore[arg-type]


async def test_an_issuer_nobody_told_us_of_is_not_believed(file: Path) -> None:
    issuers = knowing(file)
    with pytest.raises(TokenInvalid, match="an issuer that is not known"):
        await issuers.verify(token(iss="https://other.example"), "https://other.example")


async def test_another_key_under_a_known_name_is_not_believed(file: Path) -> None:
    stranger = ec.generate_private_key(ec.SECP256R1())
    claims = {"iss": ISSUER, "aud": "registry", "exp": int(time.time()) + 60, "access": ACCESS}
    headers: dict[str, Any] = {"kid": "ec", "jwk": jwk(stranger, "ec"), "jku": "https://attacker.example/jwks.json"}
    issuers = knowing(file)
    with pytest.raises(TokenInvalid, match="cannot be verified"):
        await issuers.verify(jwt.encode(claims, stranger, algorithm="ES256", headers=headers), ISSUER)
    with pytest.raises(TokenInvalid, match="a key that its issuer does not name"):
        await issuers.verify(token(stranger, "theirs"), ISSUER)


async def test_the_public_key_of_an_issuer_is_no_shared_secret(file: Path) -> None:
    def part(document: dict[str, object]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(document).encode()).rstrip(b"=")

    claims = part({"iss": ISSUER, "aud": "registry", "exp": int(time.time()) + 60, "access": ACCESS})
    pem = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = part({"alg": "HS256", "kid": "rsa"})
    mac = base64.urlsafe_b64encode(hmac.new(pem, head + b"." + claims, hashlib.sha256).digest()).rstrip(b"=")
    none = part({"alg": "none", "kid": "rsa"})
    issuers = knowing(file)
    for forged in (b".".join((head, claims, mac)), none + b"." + claims + b"."):
        with pytest.raises(TokenInvalid):
            await issuers.verify(forged.decode(), ISSUER)


async def test_an_issuer_speaks_about_its_repositories_alone(file: Path) -> None:
    access = [*ACCESS, {"type": "repository", "name": "team-b/app", "actions": ["pull"]}]
    issuers = knowing(file, repositories="team-b/*")
    claims = await issuers.verify(token(access=access), ISSUER)
    assert claims.grants.cover(Need("team-b/app", PULL))
    assert not claims.grants.cover(Need("team-a/app", PULL))


# ---------------------------------------------------------------- keys


def test_keys_of_other_kinds_are_passed_over() -> None:
    weak = rsa.generate_private_key(65537, 1024)
    entries: list[dict[str, Any]] = [
        {"kty": "oct", "kid": "shared", "k": "c2VjcmV0"},
        jwk(weak, "weak"),
        jwk(EC, "for encryption", use="enc"),
        json.loads(jwt.algorithms.ECAlgorithm.to_jwk(ec.generate_private_key(ec.SECP256R1()))) | {"kid": "private"},
        {"kty": "RSA", "kid": "giant", "e": "AQAB", "n": "_" * 20_000},
        {"kty": "RSA", "kid": "broken", "n": 5},
        {"kty": "strange", "kid": "strange"},
        jwk(ED, "good"),
    ]
    data = json.dumps({"keys": [*entries, "text", None]}).encode()
    assert list(parse_jwks(data)) == ["good"]


def test_private_keys_are_passed_over_before_anything_is_computed_of_them() -> None:
    number = base64.urlsafe_b64encode(bytes([255]) * 2048).decode()
    private = {"kty": "RSA", "n": number, "e": "AQAB", "d": number}
    data = jwks(*[private | {"kid": str(count)} for count in range(20)], jwk(ED, "good"))
    began = time.perf_counter()
    assert list(parse_jwks(data)) == ["good"]
    assert time.perf_counter() - began < 1, "the primes of one take longer"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b'{"keys": {}}',
        b'{"keys": []}',
        b'{"keys": [{}]}',
        b"[" * 100_000,
        jwks(*[jwk(ED, "a")] * 101),
    ],
)
def test_what_is_no_key_set_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedData):
        parse_jwks(data)


async def test_a_file_that_changes_is_taken_and_a_broken_one_is_not(file: Path) -> None:
    write, remove = file.write_bytes, file.unlink
    issuers = knowing(file)
    assert issuers.paths == (file,)
    generation = issuers.generation
    write(b"broken")
    with pytest.raises(ConfigError, match=r"auth\.issuers"):
        issuers.reload(file)
    await issuers.verify(token(), ISSUER)
    write(jwks(jwk(ED, "ed")))
    issuers.reload(file)
    assert issuers.generation > generation
    with pytest.raises(TokenInvalid):
        await issuers.verify(token(), ISSUER)
    remove()
    with pytest.raises(ConfigError, match="No such file"):
        knowing(file)


async def test_keys_are_fetched_when_they_are_needed_and_not_again(service: tuple[KeyService, str]) -> None:
    keys, url = service
    issuers = knowing(url)
    assert (keys.asked, issuers.paths) == (0, ())
    for _ in range(3):
        await issuers.verify(token(), ISSUER)
    assert keys.asked == 1


async def test_a_key_that_is_not_known_is_looked_for_and_not_for_every_token(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, url = service
    keys.say(jwks(jwk(ED, "ed")))
    issuers = knowing(url)
    await issuers.verify(token(ED, "ed", "EdDSA"), ISSUER)
    for number in range(20):
        with pytest.raises(TokenInvalid):
            await issuers.verify(token(EC, f"unknown {number}"), ISSUER)
    assert keys.asked == 1
    monkeypatch.setattr(issuers_module, "RETRY_S", 0.0)
    keys.say(ALL)
    await issuers.verify(token(), ISSUER)
    assert keys.asked == 2


async def test_a_key_replaced_under_the_same_name_is_noticed(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, url = service
    issuers = knowing(url)
    await issuers.verify(token(), ISSUER)
    keys.say(jwks(jwk(ec.generate_private_key(ec.SECP256R1()), "ec")))
    monkeypatch.setattr(issuers_module, "RETRY_S", 0.0)
    monkeypatch.setattr(issuers_module, "FRESH_S", 0.0)
    generation = issuers.generation
    with pytest.raises(TokenInvalid):
        await issuers.verify(token(), ISSUER)
    assert issuers.generation > generation


async def test_a_service_that_fails_leaves_what_was_known_for_a_day(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    keys, url = service
    issuers = knowing(url)
    await issuers.verify(token(), ISSUER)
    keys.say(b"broken", 500)
    monkeypatch.setattr(issuers_module, "RETRY_S", 0.0)
    monkeypatch.setattr(issuers_module, "FRESH_S", 0.0)
    await issuers.verify(token(), ISSUER)
    assert "no keys of the issuer https://login.example" in caplog.text
    monkeypatch.setattr(issuers_module, "STALE_S", 0.0)
    with pytest.raises(TokenInvalid):
        await issuers.verify(token(), ISSUER)


@pytest.mark.parametrize("trouble", ["redirect", "endless", "nobody there"])
async def test_keys_come_from_where_we_were_told_and_not_without_end(
    service: tuple[KeyService, str], trouble: str
) -> None:
    keys, url = service
    if trouble == "redirect":
        keys.say(b"", 302, ("Location", url))
    elif trouble == "endless":
        keys.say(b" " * 300_000 + ALL)
    else:
        url = "http://127.0.0.1:1/jwks.json"
    issuers = knowing(url)
    with pytest.raises(TokenInvalid, match="a key that its issuer does not name"):
        await issuers.verify(token(), ISSUER)
    assert keys.asked <= 1


async def test_a_service_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(issuers_module, "FETCH_S", 0.05)

    async def silent(request: Request) -> Response:
        await trio.sleep_forever()
        raise AssertionError

    settings = ServerSettings(drain_s=0.0)
    async with open_server(silent, listen=["127.0.0.1:0"], settings=settings) as server:
        issuers = knowing(f"http://{server.places[0]}/")
        with trio.fail_after(5), pytest.raises(TokenInvalid):
            await issuers.verify(token(), ISSUER)


async def test_many_tokens_at_once_cause_one_fetch(service: tuple[KeyService, str]) -> None:
    keys, url = service
    issuers = knowing(url)
    async with trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(issuers.verify, token(), ISSUER)
    assert keys.asked == 1


async def test_a_known_fresh_key_waits_for_no_fetch_that_a_stranger_causes(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, url = service
    issuers = knowing(url)
    await issuers.verify(token(), ISSUER)
    monkeypatch.setattr(issuers_module, "RETRY_S", 0.0)
    keys.close_gate()
    refused = trio.Event()

    async def stranger() -> None:
        with pytest.raises(TokenInvalid):
            await issuers.verify(token(EC, "unknown"), ISSUER)
        refused.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(stranger)
        with trio.fail_after(5):
            await keys.was_asked.wait()
            await issuers.verify(token(), ISSUER)
        assert not refused.is_set()
        keys.gate.set()
    assert keys.asked == 2


async def test_old_keys_are_used_while_a_slow_service_is_asked_for_newer_ones(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, url = service
    keys.say(jwks(jwk(EC, "ec")))
    issuers = knowing(url)
    await issuers.verify(token(), ISSUER)
    monkeypatch.setattr(issuers_module, "RETRY_S", 0.0)
    monkeypatch.setattr(issuers_module, "FRESH_S", 0.0)
    monkeypatch.setattr(issuers_module, "PATIENCE_S", 0.01)
    keys.close_gate()
    keys.say(jwks(jwk(ED, "ed")))
    with trio.fail_after(5):
        await issuers.verify(token(), ISSUER)
        await keys.was_asked.wait()
        await issuers.verify(token(), ISSUER)
    keys.gate.set()
    await issuers.verify(token(ED, "ed", "EdDSA"), ISSUER)
    assert keys.asked == 2
    with pytest.raises(TokenInvalid):
        await issuers.verify(token(), ISSUER)


async def test_a_key_server_that_breaks_in_an_unforeseen_way_ends_no_node(
    service: tuple[KeyService, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def breaks(url: str) -> bytes:
        raise ZeroDivisionError

    monkeypatch.setattr(issuers_module, "_fetch", breaks)
    with pytest.raises(TokenInvalid):
        await knowing(service[1]).verify(token(), ISSUER)
    assert "no keys of the issuer https://login.example" in caplog.text

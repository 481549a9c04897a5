"""Who sent a request: what is checked, how often, and what is remembered of it."""

from __future__ import annotations

import base64
import gc
import json
import threading
import time
from pathlib import Path

import jwt
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ed25519

from ipfsreg.errors import TooManyRequests, Unauthorized
from ipfsreg.http.door import authenticator as module
from ipfsreg.http.door.access import Grants
from ipfsreg.http.door.authenticator import NOBODY, Authenticator
from ipfsreg.http.door.htpasswd import Passwords, make_hash
from ipfsreg.http.door.issuers import FRESH_S, Issuers, IssuerSettings
from ipfsreg.http.door.limits import Allowances
from ipfsreg.http.door.tokens import LEEWAY_S, Tokens, derive_keys
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import open_server

HERE = "192.0.2.1"


class CountingPasswords(Passwords):
    """Counts its checks, and holds them back while `gate` is closed."""

    def __init__(self, path: Path) -> None:
        self.checks = 0
        self.at_once = 0
        self.most_at_once = 0
        self._counting = threading.Lock()
        self.gate = threading.Event()
        self.gate.set()
        super().__init__(path)

    def check(self, user: str, password: bytes) -> bool:
        with self._counting:
            self.checks += 1
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        assert self.gate.wait(30)
        right = super().check(user, password)
        with self._counting:
            self.at_once -= 1
        return right


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ALICE = basic("alice", "opensesame-1")


@pytest.fixture
def passwords(tmp_path: Path) -> CountingPasswords:
    path = tmp_path / "htpasswd"
    path.write_text(f"alice:{make_hash(b'opensesame-1', 4).decode()}\n")
    return CountingPasswords(path)


async def test_nobody_is_nobody(passwords: CountingPasswords) -> None:
    assert await Authenticator(passwords=passwords).identify(None, HERE) is NOBODY
    assert passwords.checks == 0


async def test_a_right_password_is_checked_once_and_a_wrong_one_each_time(passwords: CountingPasswords) -> None:
    authenticator = Authenticator(passwords=passwords)
    for _ in range(5):
        assert (await authenticator.identify(ALICE, HERE)).user == "alice"
    assert passwords.checks == 1
    for _ in range(5):
        with pytest.raises(Unauthorized):
            await authenticator.identify(basic("alice", "wrong"), HERE)
    assert passwords.checks == 6


async def test_requests_that_come_at_once_share_one_check(passwords: CountingPasswords) -> None:
    authenticator = Authenticator(passwords=passwords)
    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(authenticator.identify, ALICE, HERE)
    assert passwords.checks == 1


async def test_when_the_one_who_checks_is_cancelled_another_one_does(passwords: CountingPasswords) -> None:
    authenticator = Authenticator(passwords=passwords)
    found: list[str] = []

    async def wait() -> None:
        found.append((await authenticator.identify(ALICE, HERE)).user)

    async with trio.open_nursery() as nursery:
        with trio.CancelScope() as scope:
            scope.cancel()
            await authenticator.identify(ALICE, HERE)
        nursery.start_soon(wait)
        nursery.start_soon(wait)
    assert found == ["alice", "alice"]


async def test_a_password_is_asked_of_the_file_again_after_a_while(
    passwords: CountingPasswords, monkeypatch: pytest.MonkeyPatch
) -> None:
    authenticator = Authenticator(passwords=passwords)
    await authenticator.identify(ALICE, HERE)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + module.PASSWORD_REMEMBERED_S + 1)
    await authenticator.identify(ALICE, HERE)
    assert passwords.checks == 2


async def test_a_new_file_ends_what_is_remembered(passwords: CountingPasswords) -> None:
    authenticator = Authenticator(passwords=passwords)
    await authenticator.identify(ALICE, HERE)
    passwords.path.write_text("")
    passwords.reload()
    with pytest.raises(Unauthorized):
        await authenticator.identify(ALICE, HERE)


async def test_what_is_remembered_has_a_bound_and_holds_no_password(
    passwords: CountingPasswords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REMEMBERED", 10)
    tokens = Tokens(derive_keys(b"x"), "ipfsreg", 60.0)
    authenticator = Authenticator(passwords=passwords, tokens=tokens)
    await authenticator.identify(basic("alice", "opensesame-1"), HERE)
    for _ in range(50):
        await authenticator.identify(f"Bearer {tokens.issue('', Grants(()), time.time())}", HERE)
    assert len(authenticator._known) == 10
    await authenticator.identify(basic("alice", "opensesame-1"), HERE)
    reachable: list[object] = [authenticator]
    seen: set[int] = set()
    texts: list[str] = []
    while reachable:
        thing = reachable.pop()
        if id(thing) in seen or isinstance(thing, type) or callable(thing) or type(thing).__name__ == "module":
            continue
        seen.add(id(thing))
        if isinstance(thing, str | bytes):
            texts.append(thing if isinstance(thing, str) else thing.decode("latin-1"))
        if isinstance(thing, dict | list | tuple | Authenticator) or hasattr(thing, "__dict__"):
            reachable += gc.get_referents(thing)
    assert texts
    secret = base64.b64encode(b"alice:opensesame-1").decode()
    assert not [text for text in texts if "opensesame-1" in text or secret in text]


async def test_a_token_is_remembered_until_it_ends(
    passwords: CountingPasswords, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = Tokens(derive_keys(b"x"), "ipfsreg", 60.0)
    authenticator = Authenticator(passwords=passwords, tokens=tokens)
    header = f"Bearer {tokens.issue('alice', Grants(()), time.time() - LEEWAY_S)}"
    caller = await authenticator.identify(header, HERE)
    assert (caller.user, caller.how, caller.foreign) == ("alice", "token", False)
    assert await authenticator.identify(header, HERE) is caller
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    assert await authenticator.identify(header, HERE) is not caller  # within the leeway, so it is still good


async def test_a_token_in_constant_use_ends_with_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    withdrawn, other = (ed25519.Ed25519PrivateKey.generate() for _ in range(2))

    def published(kid: str, key: ed25519.Ed25519PrivateKey) -> bytes:
        entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())) | {"kid": kid}
        return json.dumps({"keys": [entry]}).encode()

    says = [published("withdrawn", withdrawn)]

    async def answer(request: Request) -> Response:
        return Response(200, (), says[0])

    claims = {"iss": "https://login.example", "aud": "registry", "sub": "carol", "exp": int(time.time()) + 86400}
    token = jwt.encode({**claims, "access": []}, withdrawn, algorithm="EdDSA", headers={"kid": "withdrawn"})
    async with open_server(answer, listen=["127.0.0.1:0"]) as server:
        jwks = f"http://{server.places[0]}/jwks.json"
        issuers = Issuers([IssuerSettings(issuer="https://login.example", jwks=jwks, audience="registry")])
        authenticator = Authenticator(issuers=issuers)
        await authenticator.identify(f"Bearer {token}", HERE)  # fetches the keys, which ends what is remembered
        caller = await authenticator.identify(f"Bearer {token}", HERE)
        assert caller.foreign
        says[0] = published("other", other)
        assert await authenticator.identify(f"Bearer {token}", HERE) is caller
        wall, clock = time.time(), time.monotonic()
        monkeypatch.setattr(time, "time", lambda: wall + FRESH_S + 1)
        monkeypatch.setattr(time, "monotonic", lambda: clock + FRESH_S + 1)
        with pytest.raises(Unauthorized, match="its issuer does not name"):
            await authenticator.identify(f"Bearer {token}", HERE)


async def test_logins_at_once_are_few_those_that_wait_bounded_and_the_rest_told_to_come_back(
    passwords: CountingPasswords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHECKS_WAITING", 3)
    authenticator = Authenticator(passwords=passwords)
    passwords.gate.clear()
    refused: list[str] = []

    async def guess(number: int) -> None:
        try:
            await authenticator.identify(basic("alice", f"guess {number}"), HERE)
        except Unauthorized:
            refused.append("wrong")
        except TooManyRequests:
            refused.append("later")

    async with trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(guess, number)
            await trio.testing.wait_all_tasks_blocked()
        passwords.gate.set()
    assert refused == ["later"] * 5 + ["wrong"] * 5
    assert 1 <= passwords.most_at_once <= module.CHECKS_AT_ONCE


async def test_a_thousand_guesses_at_once_are_a_thousand_guesses(passwords: CountingPasswords) -> None:
    authenticator = Authenticator(passwords=passwords, failures=Allowances(0.001, 5))
    outcomes: list[type[Exception]] = []

    async def guess(number: int) -> None:
        try:
            await authenticator.identify(basic("alice", f"guess {number}"), HERE)
        except (Unauthorized, TooManyRequests) as error:
            outcomes.append(type(error))

    async with trio.open_nursery() as nursery:
        for number in range(1000):
            nursery.start_soon(guess, number)
    assert outcomes.count(Unauthorized) == passwords.checks == 5
    with pytest.raises(TooManyRequests) as caught:
        await authenticator.identify(ALICE, HERE)
    assert caught.value.retry_after_s > 1
    assert (await authenticator.identify(ALICE, "192.0.2.2")).user == "alice"


async def test_an_expired_token_is_no_guess_and_a_forged_one_is(passwords: CountingPasswords) -> None:
    tokens = Tokens(derive_keys(b"x"), "ipfsreg", 60.0)
    authenticator = Authenticator(passwords=passwords, tokens=tokens, failures=Allowances(0.001, 2))
    for _ in range(5):
        expired = tokens.issue("alice", Grants(()), time.time() - 1000)
        with pytest.raises(Unauthorized, match="expired"):
            await authenticator.identify(f"Bearer {expired}", HERE)
    forged = Tokens(derive_keys(b"y"), "ipfsreg", 60.0)
    outcomes: list[type[Exception]] = []
    for _ in range(3):
        try:
            await authenticator.identify(f"Bearer {forged.issue('alice', Grants(()), time.time())}", HERE)
        except (Unauthorized, TooManyRequests) as error:
            outcomes.append(type(error))
    assert outcomes == [Unauthorized, Unauthorized, TooManyRequests]

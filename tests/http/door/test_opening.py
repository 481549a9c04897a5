"""The door that a configuration asks for."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519

from ipfsreg.config import load_config
from ipfsreg.errors import ConfigError, Unauthorized
from ipfsreg.http.door.opening import OpenedDoor, open_door
from ipfsreg.http.reloading import Reloads
from ipfsreg.testing.closed import ClosedDoor

SECRET = b"the node's own key"


def open_with(**values: str) -> OpenedDoor:
    environment = {f"IPFSREG_{name}": value for name, value in values.items()}
    with open_door(load_config(None, {"IPFSREG_P2P_PROTECTOR_KEY": "ab" * 32, **environment}), SECRET) as door:
        return door


def test_without_configuration_there_is_no_door() -> None:
    assert open_with() == OpenedDoor(None, ())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("RULES", '[{"repositories": "*", "pull": ["*"]}]'),
        ("GROUPS", '[{"name": "a", "users": []}]'),
        ("ADMINS", "root"),
        ("ANONYMOUS_PULL", "true"),
        ("REALM", "https://login.example/token"),
    ],
)
def test_what_would_look_like_a_closed_door_and_be_none_is_refused(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"auth\.{key.lower()} .*means nothing while everybody may do everything"):
        open_with(**{f"AUTH_{key}": value})


def test_tokens_that_nobody_here_gives_need_a_realm(tmp_path: Path) -> None:
    issuers = f'[{{"issuer": "https://login.example", "jwks": "{tmp_path / "missing.json"}"}}]'
    with pytest.raises(ConfigError, match=r"auth\.issuers.*No such file"):
        open_with(AUTH_ISSUERS=issuers)
    remote = '[{"issuer": "https://login.example", "jwks": "https://login.example/jwks.json"}]'
    with pytest.raises(ConfigError, match=r"auth\.realm.*the URL of the token service"):
        open_with(AUTH_ISSUERS=remote)
    assert (open_with(AUTH_ISSUERS=remote, AUTH_REALM="https://login.example/token")).door is not None


def test_its_files_are_read_again(closed: ClosedDoor) -> None:
    environment = {name.removeprefix("IPFSREG_"): value for name, value in closed.environment(tls=False).items()}
    door = open_with(**environment)
    paths = [path for one in door.reloaded for path in one.paths]
    assert paths == [closed.htpasswd, closed.directory / "token.key", closed.audit]
    assert [one.watched for one in door.reloaded] == [True, True, False]


@pytest.mark.parametrize(
    ("listen", "values", "told"),
    [
        ("127.0.0.1:5000", {}, []),
        ("[::1]:5000,localhost:1", {}, []),
        ("0.0.0.0:5000", {}, ["EVERYBODY WHO REACHES 0.0.0.0:5000", "IN THE CLEAR"]),
        (":5000", {}, ["EVERYBODY", "IN THE CLEAR"]),
        ("0.0.0.0:5000", {"tls": "yes"}, ["EVERYBODY"]),
        ("0.0.0.0:5000", {"auth": "yes"}, ["PASSWORDS AND IMAGES GO OVER THE NETWORK IN THE CLEAR"]),
        ("0.0.0.0:5000", {"tls": "yes", "auth": "yes"}, []),
        ("http://0.0.0.0:5000", {"tls": "yes", "auth": "yes"}, ["IN THE CLEAR"]),
        ("http://127.0.0.1:5001,0.0.0.0:5000", {"tls": "yes", "auth": "yes"}, []),
    ],
)
def test_a_node_that_others_can_make_use_of_says_so_loudly(
    closed: ClosedDoor, caplog: pytest.LogCaptureFixture, listen: str, values: dict[str, str], told: list[str]
) -> None:
    environment = {"HTTP_LISTEN": listen}
    if "tls" in values:
        environment |= {"HTTP_TLS_CERTIFICATE": "/tls.crt", "HTTP_TLS_KEY": "/tls.key"}
    if "auth" in values:
        environment["AUTH_HTPASSWD"] = str(closed.htpasswd)
    open_with(**environment)
    warnings = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(warnings) == len(told)
    assert all(part in warning for part, warning in zip(told, warnings, strict=True))


async def test_a_broken_key_file_holds_up_no_other_issuer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def publish(name: str) -> ed25519.Ed25519PrivateKey:
        key = ed25519.Ed25519PrivateKey.generate()
        entry = json.loads(jwt.algorithms.OKPAlgorithm.to_jwk(key.public_key())) | {"kid": "k"}
        new = tmp_path / "new"
        new.write_text(json.dumps({"keys": [entry]}))
        new.rename(tmp_path / name)
        return key

    def token(name: str, key: ed25519.Ed25519PrivateKey) -> str:
        claims = {"iss": f"https://{name}", "aud": "ipfsreg", "sub": "carol", "exp": int(time.time()) + 60}
        return "Bearer " + jwt.encode({**claims, "access": []}, key, algorithm="EdDSA", headers={"kid": "k"})

    first, withdrawn = publish("first"), publish("second")
    issuers = [{"issuer": f"https://{name}", "jwks": str(tmp_path / name)} for name in ("first", "second")]
    opened = open_with(AUTH_ISSUERS=json.dumps(issuers), AUTH_REALM="https://first/token")
    assert opened.door is not None
    assert opened.door._keeper is not None
    identify = opened.door._keeper.authenticator.identify
    await identify(token("second", withdrawn), "192.0.2.1")
    reloads = Reloads(opened.reloaded)
    (tmp_path / "first").write_text("broken")
    replaced = publish("second")
    await reloads.reload()
    assert f"not reloaded, what was there before stays in use: auth.issuers = '{tmp_path / 'first'}'" in caplog.text
    await identify(token("first", first), "192.0.2.1")
    await identify(token("second", replaced), "192.0.2.1")
    with pytest.raises(Unauthorized):
        await identify(token("second", withdrawn), "192.0.2.1")

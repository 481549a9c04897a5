"""The door as clients meet it: who gets in where, what others are told, and what cannot be got around."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from collections.abc import Mapping
from urllib.parse import quote, urlencode

import pytest

from ipfsreg.cli.passwd import remove_user
from ipfsreg.http.door.access import Grants
from ipfsreg.http.door.tokens import Tokens, load_keys
from ipfsreg.testing.closed import ClosedDoor
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import Answer, HttpClient, connect_http

from .conftest import OpenClosed, opened, rules

IMAGE = "application/vnd.oci.image.manifest.v1+json"
LAYER = b"layer" * 1000
CONFIG = b"{}"
PASSWORDS = {"alice": "alice's secret", "bob": "bob's secret", "ci": "ci's secret", "root": "root's secret"}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def basic(user: str, password: str | None = None) -> dict[str, str]:
    pair = f"{user}:{PASSWORDS[user] if password is None else password}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


async def token(client: HttpClient, user: str | None, *scopes: str) -> dict[str, str]:
    query = urlencode([("service", "ipfsreg"), *(("scope", scope) for scope in scopes)])
    answer = await client.request("GET", f"/token?{query}", basic(user) if user else {})
    assert answer.status == 200, answer.body
    return {"Authorization": f"Bearer {json.loads(answer.body)['token']}"}


def manifest_of(layer: bytes = LAYER, **fields: object) -> bytes:
    def descriptor(data: bytes, kind: str) -> dict[str, object]:
        return {"mediaType": f"application/vnd.oci.image.{kind}", "digest": digest_of(data), "size": len(data)}

    document = {"schemaVersion": 2, "mediaType": IMAGE, "config": descriptor(CONFIG, "config.v1+json"), **fields}
    return json.dumps({**document, "layers": [descriptor(layer, "layer.v1.tar")]}).encode()


async def push_blob(client: HttpClient, repository: str, data: bytes, who: Mapping[str, str]) -> Answer:
    return await client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}", who, data)


async def push_manifest(client: HttpClient, where: str, who: Mapping[str, str], data: bytes | None = None) -> Answer:
    repository, _, reference = where.partition(":")
    headers = {"Content-Type": IMAGE, **who}
    return await client.request("PUT", f"/v2/{repository}/manifests/{reference}", headers, data or manifest_of())


async def push(client: HttpClient, where: str, who: Mapping[str, str], layer: bytes = LAYER) -> None:
    for blob in (layer, CONFIG):
        assert (await push_blob(client, where.partition(":")[0], blob, who)).status == 201
    assert (await push_manifest(client, where, who, manifest_of(layer))).status == 201


async def status(client: HttpClient, method: str, path: str, who: Mapping[str, str]) -> int:
    return (await client.request(method, path, who)).status


def error_of(answer: Answer) -> tuple[int, str]:
    return answer.status, json.loads(answer.body)["errors"][0]["code"]


def challenge_of(answer: Answer) -> dict[str, str]:
    scheme, _, rest = answer.headers["www-authenticate"].partition(" ")
    return {"scheme": scheme, **dict(re.findall(r'(\w+)="([^"]*)"', rest))}


# ---------------------------------------------------------------- saying who one is


async def test_the_ping_asks_for_a_token_of_our_own_service(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        answer = await client.request("GET", "/v2/", {"Host": "registry.test:5000"})
        assert error_of(answer) == (401, "UNAUTHORIZED")
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"
        assert challenge_of(answer) == {
            "scheme": "Bearer",
            "realm": "http://registry.test:5000/token",
            "service": "ipfsreg",
        }


async def test_a_host_that_is_none_does_not_get_into_the_challenge(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        for host in ('a",x="', "a b", "evil/path"):
            answer = await client.request("GET", "/v2/", {"Host": host})
            assert answer.status == 400 or challenge_of(answer)["realm"] == "http://localhost/token"


async def test_a_token_service_elsewhere_is_named(open_closed: OpenClosed) -> None:
    async with (
        open_closed(AUTH_REALM="https://login.example/token") as server,
        connect_http(server.places[0]) as client,
    ):
        assert challenge_of(await client.request("GET", "/v2/"))["realm"] == "https://login.example/token"


async def test_a_password_or_a_token_gets_past_the_ping(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        for who in (basic("bob"), await token(client, "bob"), await token(client, None)):
            assert await status(client, "GET", "/v2/", who) == 200


@pytest.mark.parametrize(
    "header",
    [
        "Basic " + base64.b64encode(b"alice:wrong").decode(),
        "Basic " + base64.b64encode(b"nobody:alice's secret").decode(),
        "Basic " + base64.b64encode(b"alice").decode(),
        "Basic " + base64.b64encode(b"\xff\xfe:x").decode(),
        "Basic " + base64.b64encode(b":").decode(),
        "Basic %%%",
        "Basic \xe9",
        "Bearer \xe9.\xe9.\xe9",
        "Basic",
        "Bearer x.y.z",
        "Bearer",
        "Negotiate abc",
        "é",
    ],
)
async def test_what_proves_nothing_is_401_and_never_anonymous(open_closed: OpenClosed, header: str) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        # Even for what everybody may do: a client whose password is wrong wants to know that.
        for path in ("/v2/", "/v2/team/app/tags/list"):
            answer = await client.request("GET", path, {"Authorization": header})
            assert error_of(answer) == (401, "UNAUTHORIZED")
            assert challenge_of(answer)["scheme"] == "Bearer"


async def test_a_wrong_token_is_told_by_its_name(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        answer = await client.request("GET", "/v2/team/app/tags/list", {"Authorization": "Bearer x.y.z"})
        found = challenge_of(answer)
        assert (found["error"], found["scope"]) == ("invalid_token", "repository:team/app:pull")


async def test_without_tokens_the_password_is_asked_for(open_closed: OpenClosed) -> None:
    async with (
        open_closed(AUTH_TOKENS="false", AUTH_ANONYMOUS_PULL="false") as server,
        connect_http(server.places[0]) as client,
    ):
        answer = await client.request("GET", "/v2/")
        assert challenge_of(answer) == {"scheme": "Basic", "realm": "ipfsreg", "charset": "UTF-8"}
        assert await status(client, "GET", "/v2/", basic("alice")) == 200
        assert await status(client, "GET", "/token", basic("alice")) == 404


async def test_without_tokens_and_with_anonymous_pull_the_ping_lets_everybody_in(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_TOKENS="false") as server, connect_http(server.places[0]) as client:
        assert await status(client, "GET", "/v2/", {}) == 200
        assert await status(client, "POST", "/v2/team/app/blobs/uploads/", {}) == 401


# ---------------------------------------------------------------- the token endpoint


async def test_a_token_says_no_more_than_asked_for_and_allowed(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        scopes = [
            "repository:team/app:pull,push",
            "repository:secret/app:pull repository:team/b:delete,strange",
            "a:b:c",
        ]
        query = urlencode([("scope", scope) for scope in scopes])
        answer = await client.request("GET", f"/token?service=ipfsreg&{query}", basic("bob"))
        document = json.loads(answer.body)
        assert document["token"] == document["access_token"]
        assert document["expires_in"] == 300
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document["issued_at"])
        assert answer.headers["cache-control"] == "no-store"
        claims = json.loads(base64.urlsafe_b64decode(document["token"].split(".")[1] + "=="))
        assert claims["access"] == [{"type": "repository", "name": "team/app", "actions": ["pull"]}]
        assert (claims["sub"], claims["aud"]) == ("bob", "ipfsreg")


async def test_a_star_asks_for_all_that_is_allowed(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice", "repository:team/app:*")
        await push(client, "team/app:1", who)
        assert await status(client, "DELETE", "/v2/team/app/manifests/1", who) == 202


async def test_containerd_and_oras_send_a_form(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        fields = {
            "grant_type": "password",
            "service": "ipfsreg",
            "client_id": "containerd-client",
            "scope": "repository:team/app:pull repository:team/b:pull",
            "username": "alice",
            "password": PASSWORDS["alice"],
        }
        form = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = await client.request("POST", "/token", form, urlencode(fields).encode())
        assert answer.status == 200
        assert json.loads(answer.body)["access_token"]
        wrong = urlencode({**fields, "password": "wrong"}).encode()
        assert error_of(await client.request("POST", "/token", form, wrong)) == (401, "UNAUTHORIZED")
        refresh = urlencode({**fields, "grant_type": "refresh_token"}).encode()
        answer = await client.request("POST", "/token", form, refresh)
        assert (answer.status, json.loads(answer.body)["error"]) == (400, "unsupported_grant_type")
        assert await status(client, "POST", "/token", {**form, "Content-Length": "40000"}) in (400, 413)


async def test_no_password_no_token_unless_nobody_may_pull(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_ANONYMOUS_PULL="false") as server, connect_http(server.places[0]) as client:
        answer = await client.request("GET", "/token?service=ipfsreg")
        assert error_of(answer) == (401, "UNAUTHORIZED")
        assert challenge_of(answer)["scheme"] == "Basic"


async def test_a_token_does_not_buy_another_token(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice")
        assert await status(client, "GET", "/token?service=ipfsreg", who) == 401


@pytest.mark.parametrize("query", ["service=other", "scope=nonsense", "scope=" + quote("repository:a:pull " * 101)])
async def test_a_request_for_a_token_that_makes_no_sense_is_told(open_closed: OpenClosed, query: str) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        assert await status(client, "GET", f"/token?{query}", basic("alice")) == 400


async def test_the_token_endpoint_has_two_methods(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        answer = await client.request("DELETE", "/token", basic("alice"))
        assert (answer.status, answer.headers["allow"]) == (405, "GET, POST")


# ---------------------------------------------------------------- rights


@pytest.mark.parametrize("by", ["password", "token"])
async def test_the_rules_say_who_pulls_pushes_and_deletes(open_closed: OpenClosed, by: str) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        scope = "repository:team/app:pull,push,delete"

        async def who(user: str) -> dict[str, str]:
            return basic(user) if by == "password" else await token(client, user, scope)

        await push(client, "team/app:1", await who("alice"))
        blob, tag = f"/v2/team/app/blobs/{digest_of(LAYER)}", "/v2/team/app/manifests/1"
        for reader in (await who("bob"), await who("alice"), {}):
            for path in (blob, tag, "/v2/team/app/tags/list", f"/v2/team/app/referrers/{digest_of(LAYER)}"):
                assert await status(client, "GET", path, reader) == 200
        bob = await who("bob")
        for method, path in (
            ("PUT", tag),
            ("DELETE", tag),
            ("DELETE", blob),
            ("POST", "/v2/team/app/blobs/uploads/"),
        ):
            answer = await client.request(method, path, bob)
            assert error_of(answer) == (403, "DENIED")
            answer = await client.request(method, path)
            assert error_of(answer) == (401, "UNAUTHORIZED")
        assert await status(client, "DELETE", tag, await who("alice")) == 202


async def test_who_has_no_right_does_not_learn_what_is_there(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        await push(client, "secret/app:1", basic("alice"))
        for path in (
            "manifests/1",
            "manifests/2",
            f"blobs/{digest_of(LAYER)}",
            f"blobs/{digest_of(b'other')}",
            "tags/list",
            f"referrers/{digest_of(LAYER)}",
        ):
            answers = {(await client.request("GET", f"/v2/secret/{name}/{path}", basic("bob"))).status for name in "ax"}
            assert answers == {403}
            assert await status(client, "GET", f"/v2/secret/app/{path}", basic("bob")) == 403
            assert await status(client, "GET", f"/v2/secret/app/{path}", {}) == 401


async def test_a_token_is_good_for_what_it_says_and_more_is_asked_for_by_name(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice", "repository:team/app:pull")
        answer = await push_blob(client, "team/app", LAYER, who)
        assert answer.status == 401
        found = challenge_of(answer)
        assert (found["error"], found["scope"]) == ("insufficient_scope", "repository:team/app:pull,push")
        assert (await push_blob(client, "team/app", LAYER, await token(client, "alice", found["scope"]))).status == 201
        assert await status(client, "GET", "/v2/team/other/tags/list", who) == 401


async def test_a_right_taken_away_is_gone_for_tokens_given_before(closed: ClosedDoor, open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice", "repository:team/app:pull,push")
        assert (await push_blob(client, "team/app", LAYER, who)).status == 201
    # The same token at the same node, with other rules; and at another one behind the same name.
    none = rules({"repositories": "*", "pull": ["*"]})
    async with open_closed(AUTH_RULES=none) as server, connect_http(server.places[0]) as client:
        assert error_of(await push_blob(client, "team/app", LAYER, who)) == (403, "DENIED")


async def test_a_node_that_shares_the_key_takes_the_token_and_one_that_does_not_asks_again(
    open_closed: OpenClosed,
) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice")
    async with open_closed() as server, connect_http(server.places[0]) as client:
        assert await status(client, "GET", "/v2/", who) == 200
    async with open_closed(AUTH_TOKEN_KEY="") as server, connect_http(server.places[0]) as client:
        assert await status(client, "GET", "/v2/", who) == 401


async def test_nobody_pushes_without_a_login_whatever_is_pulled(open_closed: OpenClosed) -> None:
    everything = rules({"repositories": "*", "pull": ["*"], "push": ["*"], "delete": ["*"]})
    async with open_closed(AUTH_RULES=everything) as server, connect_http(server.places[0]) as client:
        await push(client, "team/app:1", basic("bob"))
        for who in ({}, await token(client, None, "repository:team/app:pull,push,delete")):
            assert await status(client, "GET", "/v2/team/app/manifests/1", who) == 200
            assert (await push_blob(client, "team/app", LAYER, who)).status == 401
            assert await status(client, "DELETE", "/v2/team/app/manifests/1", who) == 401


async def test_anonymous_pull_is_off_unless_it_is_on(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_ANONYMOUS_PULL="false") as server, connect_http(server.places[0]) as client:
        await push(client, "team/app:1", basic("alice"))
        assert await status(client, "GET", "/v2/team/app/manifests/1", {}) == 401
        assert await status(client, "GET", "/v2/team/app/manifests/1", basic("bob")) == 200


async def test_admins_may_do_everything_everywhere(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        for where in ("secret/app:1", "released/app:1"):
            await push(client, where, basic("root"))
            assert await status(client, "DELETE", f"/v2/{where.partition(':')[0]}/manifests/1", basic("root")) == 202


# ---------------------------------------------------------------- what has been got around elsewhere


async def test_who_may_only_create_moves_no_tag(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        for who in (basic("ci"), await token(client, "ci", "repository:released/app:pull,push")):
            await push(client, "released/app:1", who)
            other = manifest_of(annotations={"a": "b"})
            digest = digest_of(other)
            assert error_of(await push_manifest(client, "released/app:1", who, other)) == (403, "DENIED")
            # Nor by digest with tags in the query, nor one after the other.
            for where in (f"released/app:{digest}?tag=1", f"released/app:{digest}?tag=2&tag=1"):
                assert error_of(await push_manifest(client, where, who, other)) == (403, "DENIED")
            assert await status(client, "DELETE", "/v2/released/app/manifests/1", who) == 403
            answer = await client.request("HEAD", "/v2/released/app/manifests/1", who)
            assert answer.headers["docker-content-digest"] == digest_of(manifest_of())
            assert await status(client, "GET", "/v2/released/app/manifests/2", who) == 404
            # The same again is no move.
            assert (await push_manifest(client, "released/app:1", who)).status == 201


async def test_a_mount_needs_the_right_to_pull_where_it_takes_from(open_closed: OpenClosed) -> None:
    policy = rules(
        {"repositories": "secret/*", "pull": ["alice"], "push": ["alice"]},
        {"repositories": "*", "pull": ["*"], "push": ["alice", "bob"]},
    )
    async with open_closed(AUTH_RULES=policy) as server, connect_http(server.places[0]) as client:
        await push(client, "secret/app:1", basic("alice"))
        mount = f"/v2/team/app/blobs/uploads/?mount={digest_of(LAYER)}&from=secret/app"
        absent = f"/v2/team/app/blobs/uploads/?mount={digest_of(b'absent')}&from=secret/app"
        for who in (
            basic("bob"),
            await token(client, "bob", "repository:team/app:pull,push", "repository:secret/app:pull"),
        ):
            for path in (mount, absent):  # told apart by nothing
                answer = await client.request("POST", path, who)
                assert answer.status == 202
                assert "docker-content-digest" not in answer.headers
            assert await status(client, "HEAD", f"/v2/team/app/blobs/{digest_of(LAYER)}", who) == 404
        # A token has to name the source, too.
        narrow = await token(client, "alice", "repository:team/app:pull,push")
        assert await status(client, "POST", mount, narrow) == 202
        wide = await token(client, "alice", "repository:team/app:pull,push", "repository:secret/app:pull")
        assert await status(client, "POST", mount, wide) == 201


async def test_a_blob_of_another_repository_is_not_got_by_naming_it_in_a_manifest(open_closed: OpenClosed) -> None:
    policy = rules(
        {"repositories": "secret/*", "pull": ["alice"], "push": ["alice"]},
        {"repositories": "*", "pull": ["*"], "push": ["*"]},
    )
    async with open_closed(AUTH_RULES=policy) as server, connect_http(server.places[0]) as client:
        await push(client, "secret/app:1", basic("alice"))
        assert (await push_blob(client, "team/app", CONFIG, basic("bob"))).status == 201
        answer = await push_manifest(client, "team/app:1", basic("bob"))
        assert error_of(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
        index = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json"}
        entry = {"mediaType": IMAGE, "digest": digest_of(manifest_of()), "size": len(manifest_of())}
        data = json.dumps({**index, "manifests": [entry]}).encode()
        headers = {"Content-Type": index["mediaType"], **basic("bob")}
        answer = await client.request("PUT", "/v2/team/app/manifests/1", headers, data)  # type: ignore[arg-type]
        assert error_of(answer) == (400, "MANIFEST_BLOB_UNKNOWN")
        assert await status(client, "GET", f"/v2/team/app/blobs/{digest_of(LAYER)}", basic("bob")) == 404


async def test_an_upload_is_of_no_use_to_anybody_else(open_closed: OpenClosed) -> None:
    policy = rules({"repositories": "*", "pull": ["*"], "push": ["*"]})
    async with open_closed(AUTH_RULES=policy) as server, connect_http(server.places[0]) as client:
        location = (await client.request("POST", "/v2/team/app/blobs/uploads/", basic("alice"))).headers["location"]
        assert (await client.request("PATCH", location, basic("alice"), b"abc")).status == 202
        for method, path in (
            ("GET", location),
            ("PATCH", location),
            ("PUT", f"{location}?digest={digest_of(b'abc')}"),
            ("DELETE", location),
            ("GET", location.replace("team/app", "team/b")),
        ):
            answer = await client.request(method, path, basic("bob"), b"abc" if method == "PATCH" else None)
            assert error_of(answer) == (404, "BLOB_UPLOAD_UNKNOWN")
        # Alice goes on, with a token where she began with a password.
        who = await token(client, "alice", "repository:team/app:pull,push")
        assert await status(client, "PUT", f"{location}?digest={digest_of(b'abc')}", who) == 201


async def test_a_user_taken_out_of_the_file_is_out_at_once(closed: ClosedDoor) -> None:
    with opened(closed) as door:
        async with (
            open_front_door(closed.directory, door=door.door) as server,
            connect_http(server.places[0]) as client,
        ):
            tokens = await token(client, "bob")
            assert await status(client, "GET", "/v2/", basic("bob")) == 200
            assert await status(client, "GET", "/v2/", tokens) == 200
            remove_user(closed.htpasswd, "bob")
            for one in door.reloaded:
                if closed.htpasswd in one.paths:
                    one.reload()
            assert await status(client, "GET", "/v2/", basic("bob")) == 401
            assert await status(client, "GET", "/v2/", tokens) == 401
            assert await status(client, "GET", "/v2/", basic("alice")) == 200


# ---------------------------------------------------------------- the catalog


async def test_each_sees_the_repositories_they_may_pull_from(open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        for where in ("a/1:1", "secret/1:1", "secret/2:1", "z/1:1"):
            await push(client, where, basic("root"))

        async def listed(who: Mapping[str, str], query: str = "") -> list[str]:
            answer = await client.request("GET", f"/v2/_catalog{query}", who)
            found: list[str] = json.loads(answer.body)["repositories"]
            return found

        assert await listed(basic("root")) == ["a/1", "secret/1", "secret/2", "z/1"]
        assert await listed(basic("alice")) == ["a/1", "secret/1", "secret/2", "z/1"]
        assert await listed(basic("bob")) == await listed({}) == ["a/1", "z/1"]
        answer = await client.request("GET", "/v2/_catalog?n=1", basic("bob"))
        assert json.loads(answer.body)["repositories"] == ["a/1"]
        (link,) = re.findall(r"<(.*?)>", answer.headers["link"])
        assert "secret" not in link
        answer = await client.request("GET", link, basic("bob"))
        assert json.loads(answer.body)["repositories"] == ["z/1"]
        assert "link" not in answer.headers


async def test_the_catalog_is_for_whom_the_configuration_says(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_CATALOG="alice") as server, connect_http(server.places[0]) as client:
        assert [await status(client, "GET", "/v2/_catalog", who) for who in (basic("alice"), basic("bob"), {})] == [
            200,
            403,
            401,
        ]
        answer = await client.request("GET", "/v2/_catalog")
        assert challenge_of(answer)["scope"] == "registry:catalog:*"
        assert await status(client, "GET", "/v2/_catalog", await token(client, "alice", "registry:catalog:*")) == 200
        assert await status(client, "GET", "/v2/_catalog", await token(client, "bob", "registry:catalog:*")) == 403


# ---------------------------------------------------------------- how much


async def test_a_client_that_asks_for_too_much_is_told_when_to_come_back(open_closed: OpenClosed) -> None:
    async with (
        open_closed(HTTP_REQUESTS_PER_S="0.01", HTTP_REQUESTS_BURST="3") as server,
        connect_http(server.places[0]) as client,
    ):
        assert [await status(client, "GET", "/v2/_catalog", basic("alice")) for _ in range(4)] == [
            200,
            200,
            200,
            429,
        ]
        answer = await client.request("GET", "/v2/_catalog", basic("alice"))
        assert error_of(answer) == (429, "TOOMANYREQUESTS")
        assert 90 <= int(answer.headers["retry-after"]) <= 100
        # Each user has their own allowance, and those who are nobody one for each address.
        assert await status(client, "GET", "/v2/_catalog", basic("bob")) == 200
        assert [await status(client, "GET", "/v2/_catalog", {}) for _ in range(4)] == [200, 200, 200, 429]


async def test_so_many_requests_at_once_and_no_more(open_closed: OpenClosed) -> None:
    async with open_closed(HTTP_REQUESTS_AT_ONCE="1") as server, connect_http(server.places[0]) as client:
        location = (await client.request("POST", "/v2/team/app/blobs/uploads/", basic("alice"))).headers["location"]
        async with connect_http(server.places[0]) as other:
            head = f"PATCH {location} HTTP/1.1\r\nHost: h\r\nAuthorization: {basic('alice')['Authorization']}\r\n"
            await other.send(f"{head}Content-Length: 10\r\nExpect: 100-continue\r\n\r\n".encode())
            assert (await other.receive()).status == 100
            answer = await client.request("GET", "/v2/_catalog", basic("alice"))
            assert error_of(answer) == (429, "TOOMANYREQUESTS")
            assert answer.headers["retry-after"] == "1"
            assert await status(client, "GET", "/v2/_catalog", basic("bob")) == 200
            await other.send(b"0123456789")
            assert (await other.receive()).status == 202
        assert await status(client, "GET", "/v2/_catalog", basic("alice")) == 200


@pytest.mark.parametrize("kind", ["expired token", "forged token", "wrong password"])
async def test_requests_whose_credentials_prove_nothing_are_requests_of_their_address(
    closed: ClosedDoor, open_closed: OpenClosed, kind: str
) -> None:
    tokens = Tokens(load_keys(closed.directory / "token.key"), "ipfsreg", 60.0)
    header = {
        "expired token": f"Bearer {tokens.issue('alice', Grants(()), time.time() - 1000)}",
        "forged token": "Bearer x.y.z",
        "wrong password": basic("alice", "wrong")["Authorization"],
    }[kind]
    limits = {"HTTP_REQUESTS_PER_S": "0.01", "HTTP_REQUESTS_BURST": "3", "AUTH_FAILED_LOGINS_PER_MIN": "100"}
    async with open_closed(**limits) as server, connect_http(server.places[0]) as client:
        who = {"Authorization": header}
        assert [await status(client, "GET", "/v2/_catalog", who) for _ in range(4)] == [401, 401, 401, 429]
        assert await status(client, "GET", "/v2/_catalog", {}) == 429
        assert await status(client, "GET", "/v2/_catalog", basic("alice")) == 200


async def test_requests_for_tokens_are_among_those_at_once(open_closed: OpenClosed) -> None:
    async with open_closed(HTTP_REQUESTS_AT_ONCE="1") as server, connect_http(server.places[0]) as client:
        async with connect_http(server.places[0]) as other:
            form = urlencode({"grant_type": "password", "username": "alice", "password": PASSWORDS["alice"]}).encode()
            head = f"POST /token HTTP/1.1\r\nHost: h\r\nContent-Length: {len(form)}\r\nExpect: 100-continue\r\n\r\n"
            await other.send(head.encode())
            assert (await other.receive()).status == 100
            answer = await client.request("GET", "/token", basic("bob"))
            assert error_of(answer) == (429, "TOOMANYREQUESTS")
            await other.send(form)
            assert (await other.receive()).status == 200
        assert await status(client, "GET", "/token", basic("bob")) == 200


async def test_failed_logins_of_an_address_are_limited_and_those_who_are_in_stay_in(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_FAILED_LOGINS_PER_MIN="3") as server, connect_http(server.places[0]) as client:
        assert await status(client, "GET", "/v2/", basic("alice")) == 200
        wrong = [await status(client, "GET", "/v2/", basic("alice", f"guess {n}")) for n in range(5)]
        assert wrong == [401, 401, 401, 429, 429]
        answer = await client.request("GET", "/token", basic("bob"))
        assert error_of(answer) == (429, "TOOMANYREQUESTS")
        assert int(answer.headers["retry-after"]) <= 20
        assert await status(client, "GET", "/v2/", basic("alice")) == 200
        assert await status(client, "GET", "/v2/team/app/tags/list", {}) == 404


async def test_behind_a_proxy_each_client_is_itself_and_is_sent_where_it_came_from(
    closed: ClosedDoor, open_closed: OpenClosed
) -> None:
    proxied = {"AUTH_FAILED_LOGINS_PER_MIN": "2", "HTTP_TRUSTED_PROXIES": "127.0.0.1"}
    async with open_closed(**proxied) as server, connect_http(server.places[0]) as client:
        guesser = {"X-Forwarded-For": "10.9.9.9, 192.0.2.7", "X-Forwarded-Proto": "https", **basic("bob", "guess")}
        assert [await status(client, "GET", "/token", guesser) for _ in range(4)] == [401, 401, 429, 429]
        neighbour = {"X-Forwarded-For": "192.0.2.7, 192.0.2.8", "X-Forwarded-Proto": "https"}
        assert await status(client, "GET", "/v2/", {**neighbour, **basic("bob")}) == 200
        answer = await client.request("GET", "/v2/", neighbour)
        assert challenge_of(answer)["realm"] == "https://registry.test/token"
    peers = {json.loads(line)["peer"] for line in closed.audit.read_text().splitlines()}
    assert peers == {"192.0.2.7"}


async def test_without_a_trusted_proxy_nobody_says_who_they_are(open_closed: OpenClosed) -> None:
    async with open_closed(AUTH_FAILED_LOGINS_PER_MIN="2") as server, connect_http(server.places[0]) as client:
        wrong = [
            await status(client, "GET", "/v2/", {"X-Forwarded-For": f"192.0.2.{n}", **basic("bob", "guess")})
            for n in range(4)
        ]
        assert wrong == [401, 401, 429, 429]


# ---------------------------------------------------------------- what is written down


async def test_who_did_what_is_written_down_and_no_secret_with_it(closed: ClosedDoor, open_closed: OpenClosed) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        who = await token(client, "alice", "repository:team/app:pull,push,delete")
        await push(client, "team/app:1", who)
        await client.request("GET", "/v2/team/app/manifests/1", who)
        await client.request("GET", "/v2/")
        await client.request("DELETE", "/v2/team/app/manifests/1", basic("bob"))
        await client.request("GET", "/v2/", basic("bob", "wrong"))
        await client.request("DELETE", "/v2/team/app/manifests/1", {"User-Agent": 'evil"\\agent', **basic("alice")})
    text = closed.audit.read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    told = [(line["event"], line.get("user"), line["status"], line.get("repository")) for line in lines]
    assert [line["tried"] for line in lines if "tried" in line] == ["bob"]
    assert told == [
        ("login", "alice", 200, None),
        ("push blob", "alice", 201, "team/app"),
        ("push blob", "alice", 201, "team/app"),
        ("push", "alice", 201, "team/app"),
        ("refused", "bob", 403, "team/app"),
        ("refused", None, 401, None),
        ("delete", "alice", 202, "team/app"),
    ]
    assert lines[-1]["agent"] == 'evil"\\agent'
    assert lines[3] == {
        "event": "push",
        "status": 201,
        "user": "alice",
        "how": "token",
        "peer": "127.0.0.1",
        "method": "PUT",
        "repository": "team/app",
        "reference": "1",
        "time": lines[3]["time"],
    }
    assert "secret" not in text
    assert who["Authorization"][7:] not in text
    assert "Basic" not in text


async def test_whoever_guesses_passwords_is_written_down_with_the_names_they_try(
    closed: ClosedDoor, open_closed: OpenClosed
) -> None:
    async with open_closed() as server, connect_http(server.places[0]) as client:
        await client.request("GET", "/token", basic("alice", "guess"))
        form = {"grant_type": "password", "username": "root", "password": "guess"}
        await client.request("POST", "/token", {}, urlencode(form).encode())
        await client.request("GET", "/v2/", {"Authorization": "Basic %%%"})
    lines = [json.loads(line) for line in closed.audit.read_text().splitlines()]
    assert [(line["event"], line["status"], line.get("tried"), line.get("user")) for line in lines] == [
        ("refused", 401, "alice", None),
        ("refused", 401, "root", None),
        ("refused", 401, None, None),
    ]
    assert "guess" not in closed.audit.read_text()


async def test_pulls_are_written_down_where_they_are_asked_for(closed: ClosedDoor, open_closed: OpenClosed) -> None:
    async with open_closed(AUDIT_PULLS="true") as server, connect_http(server.places[0]) as client:
        await push(client, "team/app:1", basic("alice"))
        await client.request("GET", "/v2/team/app/manifests/1")
        await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}", basic("bob"))
    lines = [json.loads(line) for line in closed.audit.read_text().splitlines()][-2:]
    assert [(line["event"], line.get("user"), line["reference"]) for line in lines] == [
        ("pull", None, "1"),
        ("pull blob", "bob", digest_of(LAYER)),
    ]

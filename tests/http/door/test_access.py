"""Which right each request needs, and the scopes of tokens."""

from __future__ import annotations

import typing

import pytest

from ipfsreg.errors import MalformedData
from ipfsreg.http import paths
from ipfsreg.http.door import access
from ipfsreg.http.door.access import CATALOG, CREATE, DELETE, PULL, PUSH, Grants, Need, Scope, need_of, parse_scopes

DIGEST = "sha256:" + "ab" * 32


@pytest.mark.parametrize(
    ("method", "path", "right"),
    [
        ("GET", "tags/list", PULL),
        ("HEAD", "manifests/1.0", PULL),
        ("GET", f"blobs/{DIGEST}", PULL),
        ("GET", f"referrers/{DIGEST}", PULL),
        ("PUT", "manifests/1.0", PUSH),
        ("POST", "blobs/uploads/", PUSH),
        ("GET", "blobs/uploads/1", PUSH),
        ("PATCH", "blobs/uploads/1", PUSH),
        ("PUT", f"blobs/uploads/1?digest={DIGEST}", PUSH),
        ("DELETE", "blobs/uploads/1", PUSH),
        ("DELETE", "manifests/1.0", DELETE),
        ("DELETE", f"manifests/{DIGEST}", DELETE),
        ("DELETE", f"blobs/{DIGEST}", DELETE),
    ],
)
def test_each_request_needs_a_right_on_its_repository(method: str, path: str, right: str) -> None:
    path, _, query = path.partition("?")
    assert need_of(paths.parse_action(method, f"/v2/team/app/{path}", query)) == Need("team/app", right)


def test_the_catalog_needs_its_own_right_and_the_ping_none() -> None:
    assert need_of(paths.parse_action("GET", "/v2/_catalog", "")) == Need("", CATALOG)
    assert need_of(paths.parse_action("GET", "/v2/", "")) is None


def test_no_action_of_the_api_is_forgotten() -> None:
    assert set(access._RIGHTS) == set(typing.get_args(paths.Action)) - {paths.Ping}


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("repository:team/app:pull,push", Scope("repository", "team/app", frozenset({"pull", "push"}))),
        ("repository(plugin):team/app:pull", Scope("repository", "team/app", frozenset({"pull"}))),
        ("repository:host:5000/app:pull", Scope("repository", "host:5000/app", frozenset({"pull"}))),
        ("registry:catalog:*", Scope("registry", "catalog", frozenset({"*"}))),
    ],
)
def test_a_scope_is_read(text: str, scope: Scope) -> None:
    assert Scope.parse(text) == scope


@pytest.mark.parametrize(
    "text",
    ["", "repository", "repository:app", "repository::pull", "repository:a b:pull", 'repository:a":pull', "a:b:"],
)
def test_what_is_no_scope_is_refused(text: str) -> None:
    with pytest.raises(MalformedData):
        Scope.parse(text)


def test_several_scopes_come_in_one_text_or_in_many_and_not_without_end() -> None:
    texts = ["repository:a:pull repository:b:pull", "repository:c:push"]
    assert [scope.name for scope in parse_scopes(texts)] == ["a", "b", "c"]
    with pytest.raises(MalformedData, match="at most 100"):
        parse_scopes(["repository:a:pull " * 101])


def test_a_need_names_the_scope_a_client_has_to_ask_for() -> None:
    assert Need("a/b", PULL).scope == "repository:a/b:pull"
    assert Need("a/b", PUSH).scope == "repository:a/b:pull,push"
    assert Need("a/b", DELETE).scope == "repository:a/b:delete"
    assert Need("", CATALOG).scope == "registry:catalog:*"


def test_grants_cover_what_they_say_and_nothing_beside() -> None:
    grants = Grants(parse_scopes(["repository:a:pull", "repository:b:pull,push", "repository:c:*"]))
    assert [need.repository for need in map(Need, "abcd", [PULL] * 4) if grants.cover(need)] == ["a", "b", "c"]
    assert [need.repository for need in map(Need, "abcd", [PUSH] * 4) if grants.cover(need)] == ["b", "c"]
    assert [need.repository for need in map(Need, "abcd", [CREATE] * 4) if grants.cover(need)] == ["b", "c"]
    assert [need.repository for need in map(Need, "abcd", [DELETE] * 4) if grants.cover(need)] == ["c"]
    assert not grants.cover(Need("", CATALOG))
    assert Grants([Scope.parse("registry:catalog:*")]).cover(Need("", CATALOG))


def test_two_scopes_on_one_name_add_up() -> None:
    grants = Grants(parse_scopes(["repository:a:pull", "repository:a:push"]))
    assert grants.cover(Need("a", PULL))
    assert grants.cover(Need("a", PUSH))


def test_grants_survive_as_claims_and_strange_claims_grant_nothing() -> None:
    grants = Grants(parse_scopes(["repository:a:pull,push"]))
    claims = grants.claims()
    assert claims == [{"type": "repository", "name": "a", "actions": ["pull", "push"]}]
    assert Grants.of_claims(claims).cover(Need("a", PUSH))
    strange: list[object] = [
        None,
        5,
        {},
        {"type": "repository", "name": "a"},
        {"type": 1, "name": "a", "actions": ["*"]},
    ]
    strange += [
        {"type": "repository", "name": "a", "actions": "*"},
        {"type": "repository", "name": "a", "actions": [5]},
    ]
    claims_of_others: list[object] = [None, "x", {}, strange]
    for claim in claims_of_others:
        assert not Grants.of_claims(claim).cover(Need("a", PULL))
    with pytest.raises(MalformedData):
        Grants.of_claims([{}] * 101)


def test_grants_are_cut_down_to_some_repositories() -> None:
    grants = Grants(parse_scopes(["repository:a/x:pull", "repository:b/x:pull", "registry:catalog:*"]))
    left = grants.within(lambda name: name.startswith("a/"))
    assert left.cover(Need("a/x", PULL))
    assert not left.cover(Need("b/x", PULL))
    assert not left.cover(Need("", CATALOG))

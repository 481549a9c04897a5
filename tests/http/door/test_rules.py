"""Who may do what."""

from __future__ import annotations

import pytest

from ipfsreg.http.door.access import CATALOG, CREATE, DELETE, PULL, PUSH, REPOSITORY_RIGHTS, Need
from ipfsreg.http.door.rules import ANONYMOUS, Rule, Rules

RIGHTS = [*REPOSITORY_RIGHTS]


def rights(rules: Rules, user: str, repository: str) -> list[str]:
    return [right for right in RIGHTS if rules.allow(user, Need(repository, right))]


def test_without_rules_whoever_has_logged_in_may_do_everything_and_nobody_else_anything() -> None:
    rules = Rules(admins=["root"])
    assert rights(rules, "alice", "team/app") == [PULL, PUSH, DELETE]
    assert rights(rules, ANONYMOUS, "team/app") == []
    assert rules.allow("alice", Need("", CATALOG))
    assert not rules.allow(ANONYMOUS, Need("", CATALOG))


def test_each_right_is_given_alone() -> None:
    for right in RIGHTS:
        rules = Rules([Rule(pattern="team/*", **{right: ["alice"]})])
        assert rights(rules, "alice", "team/app") == [right]
        assert rights(rules, "bob", "team/app") == []


def test_a_repository_that_no_rule_fits_belongs_to_the_admins() -> None:
    rules = Rules([Rule(pattern="team/*", pull=["*"])], admins=["root"])
    assert rights(rules, "alice", "other/app") == []
    assert rights(rules, "root", "other/app") == RIGHTS
    assert rules.is_admin("root")
    assert not rules.is_admin("alice")
    assert not rules.is_admin(ANONYMOUS)


def test_the_first_rule_that_fits_decides_alone() -> None:
    secret = Rule(pattern="secret/*", pull=["alice"])
    everything = Rule(pattern="*", pull=["*"], push=["*"])
    assert rights(Rules([secret, everything]), "bob", "secret/app") == []
    assert rights(Rules([secret, everything]), "alice", "secret/app") == [PULL]
    assert rights(Rules([everything, secret]), "bob", "secret/app") == [PULL, PUSH]


@pytest.mark.parametrize(
    ("pattern", "repository", "fits"),
    [
        ("*", "a/b/c", True),
        ("team-a/*", "team-a/app/sub", True),
        ("team-a/*", "team-a", False),
        ("team-a/*", "team-ab/app", False),
        ("team-a", "team-a/app", False),
        ("*/public", "a/b/public", True),
        ("team-a/app", "other/team-a/app", False),
        ("team.a/*", "teamxa/app", False),
    ],
)
def test_a_star_is_any_text_and_everything_else_itself(pattern: str, repository: str, fits: bool) -> None:
    rules = Rules([Rule(pattern=pattern, pull=["alice"])])
    assert rules.allow("alice", Need(repository, PULL)) is fits


def test_groups_stand_for_their_members() -> None:
    rules = Rules([Rule(pattern="*", push=["@team", "carol"])], groups={"team": ["alice", "bob"]})
    assert [user for user in ("alice", "bob", "carol", "dave", "@team") if rules.allow(user, Need("a", PUSH))] == [
        "alice",
        "bob",
        "carol",
    ]
    assert Rules(groups={"ops": ["root"]}, admins=["@ops"]).is_admin("root")


def test_a_group_there_is_not_is_a_mistake() -> None:
    with pytest.raises(KeyError):
        Rules([Rule(pattern="*", push=["@nobody"])])


def test_anonymous_pull_is_pull_and_nothing_else_and_only_where_everybody_may() -> None:
    rules = Rules(
        [
            Rule(pattern="secret/*", pull=["alice"], push=["*"]),
            Rule(pattern="*", pull=["*"], push=["*"], create=["*"], delete=["*"]),
        ],
        anonymous_pull=True,
    )
    assert rights(rules, ANONYMOUS, "team/app") == [PULL]
    assert rights(rules, ANONYMOUS, "secret/app") == []
    assert rules.allow(ANONYMOUS, Need("", CATALOG))


def test_an_empty_name_in_a_rule_lets_nobody_in() -> None:
    rules = Rules([Rule(pattern="*", push=[""], pull=[""])], admins=[""], catalog=[""], anonymous_pull=True)
    assert rights(rules, ANONYMOUS, "team/app") == []
    assert not rules.is_admin(ANONYMOUS)
    assert not rules.allow(ANONYMOUS, Need("", CATALOG))


def test_the_catalog_has_users_of_its_own() -> None:
    rules = Rules(catalog=["alice"], admins=["root"])
    assert [user for user in ("alice", "bob", "root") if rules.allow(user, Need("", CATALOG))] == ["alice", "root"]


def test_what_is_remembered_has_a_bound() -> None:
    rules = Rules([Rule(pattern="*", pull=["alice"])])
    for number in range(20_000):
        assert rules.allow("alice", Need(f"team/{number}", PULL))
    assert len(rules._found) <= 16_384
    assert not rules.allow("bob", Need("team/1", CREATE))

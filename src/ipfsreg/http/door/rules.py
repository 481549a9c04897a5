"""PURE: who may do what. The rules of one node, from its configuration.

Rules are read from the top, and the first whose pattern fits a repository decides about it, alone: what it does not
give, nobody has. So an exception stands above what it is an exception from (docs/decisions/0084).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import translate

from ipfsreg.http.door.access import CATALOG, CREATE, DELETE, PULL, PUSH, Need

ANONYMOUS = ""
"""The user who is nobody. No password file can name it."""

EVERYBODY = "*"
"""Everybody who has logged in; for `pull`, where anonymous pull is on, everybody."""

_REMEMBERED = 16_384


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Who has which right on the repositories that *pattern* fits (`*`: any text, slashes too)."""

    pattern: str
    pull: Sequence[str] = ()
    push: Sequence[str] = ()
    create: Sequence[str] = ()
    delete: Sequence[str] = ()


OPEN_TO_USERS = (Rule(pattern="*", pull=(EVERYBODY,), push=(EVERYBODY,), delete=(EVERYBODY,)),)
"""Where no rule is written: whoever has logged in may do everything but be an admin."""


class Rules:
    """All of them, and what was found out by them lately."""

    def __init__(
        self,
        rules: Sequence[Rule] = OPEN_TO_USERS,
        *,
        groups: Mapping[str, Iterable[str]] | None = None,
        admins: Sequence[str] = (),
        catalog: Sequence[str] = (EVERYBODY,),
        anonymous_pull: bool = False,
    ) -> None:
        """Names that begin with `@` are groups. Raises KeyError: a group there is not."""
        members = {f"@{name}": frozenset(users) for name, users in (groups or {}).items()}
        self._rules = [
            (
                re.compile(translate(rule.pattern)),
                {
                    PULL: _who(rule.pull, members),
                    PUSH: _who(rule.push, members),
                    CREATE: _who(rule.create, members),
                    DELETE: _who(rule.delete, members),
                },
            )
            for rule in rules
        ]
        self._admins = _who(admins, members) - {EVERYBODY}
        self._catalog = _who(catalog, members)
        self.anonymous_pull = anonymous_pull
        self._found: dict[tuple[str, str, str], bool] = {}

    def allow(self, user: str, need: Need) -> bool:
        """Whether *user* has what *need* says."""
        key = (user, need.repository, need.right)
        found = self._found.get(key)
        if found is None:
            found = self._decide(user, need)
            if len(self._found) >= _REMEMBERED:
                self._found.clear()
            self._found[key] = found
        return found

    def is_admin(self, user: str) -> bool:
        """Admins have every right everywhere."""
        return user in self._admins

    def _decide(self, user: str, need: Need) -> bool:
        if user in self._admins:
            return True
        if need.right == CATALOG:
            return _has(user, self._catalog, anonymous=self.anonymous_pull)
        for pattern, whose in self._rules:
            if pattern.match(need.repository):
                return _has(user, whose[need.right], anonymous=need.right == PULL and self.anonymous_pull)
        return False


def _who(names: Iterable[str], members: Mapping[str, frozenset[str]]) -> frozenset[str]:
    found: set[str] = set()
    for name in names:
        found |= members[name] if name.startswith("@") else {name}
    return frozenset(found - {ANONYMOUS})


def _has(user: str, names: frozenset[str], *, anonymous: bool) -> bool:
    if user == ANONYMOUS:
        return anonymous and EVERYBODY in names
    return user in names or EVERYBODY in names

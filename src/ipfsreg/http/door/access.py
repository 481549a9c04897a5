"""PURE: which right each request needs, and the scopes by which tokens name rights.

Source: distribution's token specification, "Token Scope Documentation".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from ipfsreg.errors import MalformedData
from ipfsreg.http import paths

PULL, PUSH, CREATE, DELETE, CATALOG = "pull", "push", "create", "delete", "catalog"
"""`create` is a push that moves no tag that there is."""

REPOSITORY_RIGHTS = (PULL, PUSH, CREATE, DELETE)

MAX_SCOPES = 100
MAX_SCOPE_CHARACTERS = 1024
_NAME = re.compile(r"[A-Za-z0-9._/:*-]{1,512}", re.ASCII)
_ACTION = re.compile(r"[a-z]{1,32}|\*", re.ASCII)

_RIGHTS: dict[type[paths.Action], str] = {
    paths.ListTags: PULL,
    paths.ListReferrers: PULL,
    paths.GetBlob: PULL,
    paths.GetManifest: PULL,
    paths.DeleteBlob: DELETE,
    paths.DeleteManifest: DELETE,
    paths.StartUpload: PUSH,
    paths.GetUpload: PUSH,
    paths.AppendUpload: PUSH,
    paths.FinishUpload: PUSH,
    paths.CancelUpload: PUSH,
    paths.PutManifest: PUSH,
    paths.ListRepositories: CATALOG,
}


@dataclass(frozen=True, slots=True)
class Need:
    """A right on a repository; the catalog is of none, written ""."""

    repository: str
    right: str

    @property
    def scope(self) -> str:
        """What a client asks a token for."""
        if self.right == CATALOG:
            return "registry:catalog:*"
        # Every client that pushes also looks at what is there.
        return f"repository:{self.repository}:{'pull,push' if self.right == PUSH else self.right}"


def need_of(action: paths.Action) -> Need | None:
    """What *action* needs beyond being let in at all; None for the ping."""
    right = _RIGHTS.get(type(action))
    return None if right is None else Need(getattr(action, "repository", ""), right)


@dataclass(frozen=True, slots=True)
class Scope:
    """Actions on one thing, as asked for or as granted."""

    kind: str
    """`repository` or `registry`; others exist and are never granted here."""
    name: str
    actions: frozenset[str]

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read `repository:team/app:pull,push`. Raises MalformedData."""
        # The name of a repository may hold a colon (a port), its kind and actions do not.
        kind, _, rest = text[:MAX_SCOPE_CHARACTERS].partition(":")
        name, _, actions = rest.rpartition(":")
        found = frozenset(action.strip() for action in actions.split(","))
        if not _NAME.fullmatch(name) or not all(map(_ACTION.fullmatch, found)):
            raise MalformedData(f"{text[:200]!r} is no scope; one looks like repository:team/app:pull,push")
        return cls(kind.partition("(")[0], name, found)


def parse_scopes(texts: Iterable[str]) -> list[Scope]:
    """Every scope of *texts*, each of which may hold several, separated by blanks.

    Raises:
        MalformedData: one of them is none, or there are more than `MAX_SCOPES`.
    """
    words = [word for text in texts for word in text.split()]
    if len(words) > MAX_SCOPES:
        raise MalformedData(f"{len(words)} scopes, at most {MAX_SCOPES} at a time")
    return [Scope.parse(word) for word in words]


class Grants:
    """What a token says its bearer may do."""

    __slots__ = ("_actions",)

    def __init__(self, scopes: Iterable[Scope]) -> None:
        actions: dict[tuple[str, str], frozenset[str]] = {}
        for scope in scopes:
            key = (scope.kind, scope.name)
            actions[key] = actions.get(key, frozenset()) | scope.actions
        self._actions: Mapping[tuple[str, str], frozenset[str]] = actions

    def cover(self, need: Need) -> bool:
        """Whether *need* is among them."""
        if need.right == CATALOG:
            return "*" in self._actions.get(("registry", "catalog"), ())
        actions = self._actions.get(("repository", need.repository), frozenset())
        # `create` is our own word: to whoever issues tokens it is a push, and our rules make it less.
        return "*" in actions or (PUSH if need.right == CREATE else need.right) in actions

    def within(self, fits: Callable[[str], bool]) -> Grants:
        """Those on repositories whose names *fits* accepts, and nothing else."""
        return Grants(
            Scope(kind, name, actions)
            for (kind, name), actions in self._actions.items()
            if kind == "repository" and fits(name)
        )

    def claims(self) -> list[dict[str, object]]:
        """As the `access` claim of a token has them."""
        return [
            {"type": kind, "name": name, "actions": sorted(actions)}
            for (kind, name), actions in self._actions.items()
            if actions
        ]

    @classmethod
    def of_claims(cls, claims: object) -> Grants:
        """Read an `access` claim; entries that are none grant nothing. Raises MalformedData for too many."""
        entries = claims if isinstance(claims, list) else []
        if len(entries) > MAX_SCOPES:
            raise MalformedData(f"a token with {len(entries)} scopes, at most {MAX_SCOPES} are read")
        scopes = []
        for entry in entries:
            match entry:
                case {"type": str(kind), "name": str(name), "actions": list(actions)}:
                    known = frozenset(action for action in actions[:MAX_SCOPES] if isinstance(action, str))
                    scopes.append(Scope(kind, name, known))
        return cls(scopes)

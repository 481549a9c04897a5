"""Who may write which names. PURE.

Rules are this node's own: nodes with the same rules and the same nodes of the DAG have the same names. What a rule
forbids is withheld, not lost: it stays in the DAG, in the tables and on the way to others, and counts as soon as the
rules of this node allow it.

A change (an element or a tombstone) counts if

    its author is in the `peers` of a rule for its name, or no rule is for it
    and, with `require_signed`, its author has signed it and is one of `signers`

Taking a peer out of a rule takes away all that it ever wrote there, unless the rule keeps it as a former writer: then
what it wrote in the nodes at or below the given heads counts, and nothing else. What it writes after that, or wrote
beside it and brings forth later, never lies below heads that were fixed before. In the same way `unsigned_heads` keeps
what was written before signatures were required.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache

from ipfsreg.peer_id import PeerId

Limits = tuple[frozenset[bytes], ...]
"""Heads (multihashes) at or below which a change counts: below one of each set. Without a set there is no limit; an
empty set leaves nothing."""

NEVER: Limits = (frozenset(),)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may write the names of some repositories."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too, `?` for one character, `[ab]` for one of some."""
    peers: frozenset[PeerId]
    former: tuple[tuple[PeerId, frozenset[bytes]], ...] = ()
    """Peers that may not write any more, each with the heads (multihashes) up to which it could."""


class Writers:
    """All the rules of a node."""

    def __init__(
        self,
        rules: tuple[Rule, ...] = (),
        *,
        require_signed: bool = False,
        signers: frozenset[PeerId] | None = None,
        unsigned_heads: frozenset[bytes] = frozenset(),
        repository_of: Callable[[str], str | None] = lambda key: None,
    ) -> None:
        """*signers*: whose signatures count when they are required; None: everybody's. *repository_of*: of a key."""
        self._rules = rules
        self._require_signed = require_signed
        self._signers = signers
        self._unsigned_heads = unsigned_heads
        self._repository_of = repository_of
        self._limits_in = lru_cache(4096)(self._limits_in_repository)
        self.cut_heads = unsigned_heads.union(*(heads for rule in rules for _, heads in rule.former))
        """All heads that a rule names."""

    @property
    def are_open(self) -> bool:
        """Whether everybody may write everything."""
        return not self._rules and not self._require_signed

    def limits(self, key: str, author: PeerId | None) -> Limits:
        """Where in the DAG a change of *key* by *author* (None: unsigned) counts."""
        return () if self.are_open else self._limits_in(self._repository_of(key), author)

    def allow_all(self, author: PeerId) -> bool:
        """Whether *author* is named by every rule there is, so that it may write everything."""
        signs = not self._require_signed or self._signers is None or author in self._signers
        return signs and all(author in rule.peers for rule in self._rules)

    def allow(self, key: str, author: PeerId | None) -> bool:
        """Whether *author* may write *key* now."""
        return not self.limits(key, author)

    def _limits_in_repository(self, repository: str | None, author: PeerId | None) -> Limits:
        rules = [rule for rule in self._rules if repository and fnmatchcase(repository, rule.repositories)]
        if author is None:
            return (self._unsigned_heads,) if self._require_signed or rules else ()
        if self._require_signed and self._signers is not None and author not in self._signers:
            return NEVER
        if not rules or any(author in rule.peers for rule in rules):
            return ()
        return (frozenset().union(*(heads for rule in rules for peer, heads in rule.former if peer == author)),)

    def fingerprint(self) -> str:
        """The same for equal rules, after a restart too."""
        rules = [
            (
                rule.repositories,
                sorted(map(str, rule.peers)),
                sorted((str(peer), sorted(head.hex() for head in heads)) for peer, heads in rule.former),
            )
            for rule in self._rules
        ]
        signers = sorted(map(str, self._signers)) if self._require_signed and self._signers is not None else None
        unsigned = sorted(head.hex() for head in self._unsigned_heads)
        return hashlib.sha256(repr((rules, self._require_signed, signers, unsigned)).encode()).hexdigest()


EVERYBODY = Writers()
"""No rules."""

"""What of a repository nobody needs any more, and since when. PURE.

Two questions are kept apart:

- *What is garbage now?* A link is, when no manifest of its repository names its blob. A manifest is, where the policy
  says so, when no tag reaches it: not itself, not as the child of a manifest that is reached, not as a referrer of one.
- *May it go?* Only what was garbage at every look during the whole grace, in the same version. A push writes again
  what it relies on, so whatever a push has touched since, here or on another node, is another version and begins anew.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import Manifest


@dataclass(frozen=True, slots=True)
class References:
    """What one manifest names."""

    content: frozenset[Digest]
    """Config, layers, and what an index lists: all it needs, also what could be had from elsewhere."""
    subject: Digest | None = None
    """What it refers to, and does not need."""


def references_of(manifest: Manifest) -> References:
    """What *manifest* names."""
    config = () if manifest.config is None else (manifest.config,)
    content = frozenset(one.digest for one in (*config, *manifest.layers, *manifest.entries))
    return References(content, None if manifest.subject is None else manifest.subject.digest)


def reached(roots: Iterable[Digest], manifests: Mapping[Digest, References]) -> set[Digest]:
    """Those of *manifests* that *roots* need: themselves, their children, and the referrers of any of these."""
    referrers: dict[Digest, list[Digest]] = defaultdict(list)
    for digest, names in manifests.items():
        if names.subject is not None:
            referrers[names.subject].append(digest)
    found: set[Digest] = set()
    ahead = [digest for digest in roots if digest in manifests]
    while ahead:
        digest = ahead.pop()
        if digest not in found:
            found.add(digest)
            ahead += [child for child in manifests[digest].content if child in manifests]
            ahead += referrers.get(digest, ())
    return found


def unnamed(links: Iterable[Digest], manifests: Mapping[Digest, References]) -> list[Digest]:
    """Those of *links* that none of *manifests* names."""
    named: set[Digest] = set().union(*(names.content for names in manifests.values()))
    return [digest for digest in links if digest not in named]


@dataclass(frozen=True, slots=True)
class Sentence:
    """Something that was found to be garbage."""

    version: bytes
    """Of what was found; another one is another thing."""
    since_s: float
    """When it was first found so, in seconds that the collector has watched."""


@dataclass(slots=True)
class Verdict:
    """What one look comes to."""

    due: list[str] = field(default_factory=list)
    """Garbage for the whole grace."""
    condemned: dict[str, Sentence] = field(default_factory=dict)
    """Garbage from now on, or in a new version."""
    pardoned: list[str] = field(default_factory=list)
    """Garbage no more, or gone."""


def judge(
    known: Mapping[str, Sentence], found: Mapping[str, bytes], held: Collection[str], *, now_s: float, grace_s: float
) -> Verdict:
    """Compare what was garbage before with what is *found* to be: item -> version. What is *held* is not.

    Never due at the first look, also without a grace: what was read and what is deleted must have a look in between.
    """
    verdict = Verdict()
    for item, version in found.items():
        if item in held:
            continue
        sentence = known.get(item)
        if sentence is None or sentence.version != version or sentence.since_s > now_s:
            verdict.condemned[item] = Sentence(version, now_s)
        elif now_s - sentence.since_s >= grace_s:
            verdict.due.append(item)
    verdict.pardoned = [item for item in known if item not in found or item in held]
    return verdict

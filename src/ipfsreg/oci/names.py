"""Repository names, tags and references. Spec: distribution-spec, "Pulling manifests"."""

from __future__ import annotations

import re
from typing import NewType

from ipfsreg.errors import NameInvalid, TagInvalid
from ipfsreg.oci.digest import Digest

RepositoryName = NewType("RepositoryName", str)
"""A name whose form was checked by `parse_repository`."""

Tag = NewType("Tag", str)
"""A tag whose form was checked by `parse_tag`."""

Reference = Tag | Digest

MAX_NAME_CHARACTERS = 255
"""Clients bound host and name together to 255; a longer name could never be pulled."""

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}", re.ASCII)


def parse_repository(text: str) -> RepositoryName:
    """Check *text* as a repository name. Raises NameInvalid."""
    if len(text) > MAX_NAME_CHARACTERS or not _NAME.fullmatch(text):
        raise NameInvalid(f"{text[:MAX_NAME_CHARACTERS]!r} is not a repository name")
    return RepositoryName(text)


def parse_tag(text: str) -> Tag:
    """Check *text* as a tag. Raises TagInvalid."""
    if not _TAG.fullmatch(text):
        raise TagInvalid(f"{text[:128]!r} is not a tag")
    return Tag(text)


def parse_reference(text: str) -> Reference:
    """Read a digest (it has a colon, no tag has) or a tag. Raises DigestInvalid, TagInvalid."""
    return Digest.parse(text) if ":" in text else parse_tag(text)

"""Manifests as they are pushed: read with suspicion, kept byte for byte.

Specs: image-spec manifest.md, image-index.md, descriptor.md; distribution-spec "Pushing Manifests".

A manifest is JSON that other programs will read again, each in its own way, so what could be read in two ways is
refused: a document that is an image and an index at once (CVE-2021-41190), a mediaType that is not its Content-Type, a
key twice, a known key in other letters (Go takes `Layers` for `layers`), embedded data that is not what its digest
says. Keys we do not know are left alone.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NoReturn

from ipfsreg.errors import DigestInvalid, ManifestInvalid, ManifestTooLarge
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.media_types import (
    IMAGE_TYPES,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_ARTIFACT_MANIFEST,
    SCHEMA1_TYPES,
    is_distributable,
    parse_media_type,
)

MAX_MANIFEST_BYTES = 4 * 1024 * 1024
"""distribution-spec asks for at least this; clients take no more."""

MAX_NESTING = 32
"""Levels of JSON objects and arrays. A manifest needs five."""

MAX_VALUES = 500_000
"""Strings, keys, brackets and commas of the JSON. Four mebibytes of descriptors, as short as they can be, have half of
it; of `[],[],…` they have more, which takes a hundred mebibytes of memory to read."""

MAX_SIZE_BYTES = (1 << 63) - 1

_Json = Mapping[str, object]

_KNOWN_KEYS = frozenset(
    {"schemaVersion", "mediaType", "artifactType", "config", "layers", "manifests", "blobs", "subject", "annotations"}
    | {"digest", "size", "urls", "data", "platform"}
)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\\?\Z)', re.DOTALL)
"""Also one that never ends, so that no byte is looked at twice."""
_KNOWN_LETTERS = {key.lower(): key for key in _KNOWN_KEYS}


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What a manifest says about a piece of content: image-spec descriptor.md."""

    media_type: str
    digest: Digest
    size: int
    """Bytes, as claimed."""
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)
    urls: tuple[str, ...] = ()
    """Where else it may be had. Never fetched from: they are an attacker's choice."""
    platform: str | None = None
    """`os/architecture` or `os/architecture/variant`, in an index."""


class ManifestKind(Enum):
    """How a manifest is read."""

    IMAGE = "image"
    INDEX = "index"
    ARTIFACT = "artifact"
    OTHER = "other"
    """A type we do not know: kept and served, its references taken where they look like any of the above."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest whose form was checked."""

    kind: ManifestKind
    media_type: str
    config: Descriptor | None = None
    layers: tuple[Descriptor, ...] = ()
    """An artifact manifest's blobs too."""
    entries: tuple[Descriptor, ...] = ()
    """What an index lists."""
    subject: Descriptor | None = None
    """What it refers to; need not exist."""
    artifact_type: str | None = None
    """As a referrers index shows it: of an image that has none, the media type of its config."""
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """The content that must be in the repository first, each digest once, manifests aside.

        Config and layers, without those that may only be had from elsewhere; of an index, entries that are no
        manifests (BuildKit's cache lists layers there).
        """
        found = [] if self.config is None else [self.config]
        found += [layer for layer in self.layers if is_distributable(layer.media_type)]
        found += [entry for entry in self.entries if entry.media_type not in MANIFEST_TYPES]
        return tuple({descriptor.digest: descriptor for descriptor in found}.values())

    @property
    def manifests(self) -> tuple[Descriptor, ...]:
        """The manifests an index lists, each digest once."""
        found = {entry.digest: entry for entry in self.entries if entry.media_type in MANIFEST_TYPES}
        return tuple(found.values())


def parse_manifest(data: bytes, content_type: str | None = None) -> Manifest:
    """Read a manifest pushed under *content_type*; without one, as its own mediaType says.

    Raises:
        ManifestTooLarge: above 4 MiB; not parsed.
        ManifestInvalid: anything that is not a manifest, or could be read in two ways. Says what, and where.
    """
    if len(data) > MAX_MANIFEST_BYTES:
        raise ManifestTooLarge(f"a manifest of {len(data)} bytes, {MAX_MANIFEST_BYTES} are allowed")
    document = _load(data)
    media_type = _media_type(document, content_type)
    if media_type in SCHEMA1_TYPES or document.get("schemaVersion") == 1:
        raise ManifestInvalid("a schema 1 manifest; push again with Docker 1.10 or later, or with skopeo")
    if media_type in IMAGE_TYPES:
        manifest = _image(media_type, document)
    elif media_type in INDEX_TYPES:
        manifest = _index(media_type, document)
    elif media_type == OCI_ARTIFACT_MANIFEST:
        manifest = _artifact(media_type, document)
    else:
        manifest = _other(media_type, document)
    _check_sizes(manifest)
    return manifest


# ---------------------------------------------------------------------- kinds


def _image(media_type: str, document: _Json) -> Manifest:
    _require_version_2(document)
    _forbid(document, "an image manifest", "manifests", "blobs")
    config = _descriptor(document.get("config"), "config")
    return Manifest(
        ManifestKind.IMAGE,
        media_type,
        config=config,
        layers=_descriptors(document, "layers", required=True),
        subject=_subject(document),
        artifact_type=_optional_text(document, "artifactType") or config.media_type,
        annotations=_annotations(document),
    )


def _index(media_type: str, document: _Json) -> Manifest:
    _require_version_2(document)
    _forbid(document, "an index", "layers", "config", "blobs")
    return Manifest(
        ManifestKind.INDEX,
        media_type,
        entries=_descriptors(document, "manifests", required=True),
        subject=_subject(document),
        artifact_type=_optional_text(document, "artifactType"),
        annotations=_annotations(document),
    )


def _artifact(media_type: str, document: _Json) -> Manifest:
    _forbid(document, "an artifact manifest", "layers", "config", "manifests")
    return Manifest(
        ManifestKind.ARTIFACT,
        media_type,
        layers=_descriptors(document, "blobs"),
        subject=_subject(document),
        artifact_type=_optional_text(document, "artifactType"),
        annotations=_annotations(document),
    )


def _other(media_type: str, document: _Json) -> Manifest:
    # Its keys may mean anything: what reads as we know it is taken, what does not is none of our business. Only the
    # subject counts for others, so that has to be right.
    return Manifest(
        ManifestKind.OTHER,
        media_type,
        config=next(_readable([document.get("config")]), None),
        layers=tuple(_readable(document.get("layers") or document.get("blobs"))),
        entries=tuple(_readable(document.get("manifests"))),
        subject=_subject(document),
        artifact_type=_optional_text(document, "artifactType"),
        annotations=_annotations(document),
    )


def _readable(items: object) -> Iterator[Descriptor]:
    for item in items if isinstance(items, list) else []:
        try:
            yield _descriptor(item, "entry")
        except ManifestInvalid:
            continue


# ----------------------------------------------------------------------- JSON


def _load(data: bytes) -> _Json:
    if _has_too_many_values(data):
        raise ManifestInvalid(f"the manifest has more than {MAX_VALUES} strings, brackets and commas")
    try:
        document = json.loads(data.decode(), object_pairs_hook=_unambiguous, parse_constant=_refuse_constant)
    except RecursionError:
        raise ManifestInvalid("the manifest is nested too deeply") from None
    except ValueError as error:
        raise ManifestInvalid(f"the manifest is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise ManifestInvalid("the manifest is not a JSON object")
    _check_nesting(document)
    return document


def _has_too_many_values(data: bytes) -> bool:
    """Told without building any of them; of what is no JSON it may say either."""
    brackets_and_commas = data.count(b",") + data.count(b"[") + data.count(b"{")
    if brackets_and_commas + data.count(b'"') // 2 <= MAX_VALUES:
        return False
    found = position = 0
    for string in _STRING.finditer(data):
        between = data[position : string.start()]
        found += 1 + between.count(b",") + between.count(b"[") + between.count(b"{")
        position = string.end()
        if found > MAX_VALUES:
            return True
    rest = data[position:]
    return found + rest.count(b",") + rest.count(b"[") + rest.count(b"{") > MAX_VALUES


def _unambiguous(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key, value in pairs:
        if key in found:
            raise ManifestInvalid(f"the key {key[:80]!r} stands twice in one object")
        found[key] = value
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_nesting(document: _Json) -> None:
    level: list[dict[str, object] | list[object]] = [dict(document)]
    for _ in range(MAX_NESTING):
        level = [
            member
            for container in level
            for member in (container.values() if isinstance(container, dict) else container)
            if isinstance(member, dict | list)
        ]
        if not level:
            return
    raise ManifestInvalid(f"the manifest is nested deeper than {MAX_NESTING} levels")


def _check_letters(document: _Json, where: str) -> None:
    for key in document:
        if key not in _KNOWN_KEYS and key.lower() in _KNOWN_LETTERS:
            raise ManifestInvalid(f"{where} has {key!r}, which some read as {_KNOWN_LETTERS[key.lower()]!r}")


def _media_type(document: _Json, content_type: str | None) -> str:
    _check_letters(document, "the manifest")
    pushed_as = parse_media_type(content_type) if content_type else None
    own = _optional_text(document, "mediaType")
    if own is not None:
        own = parse_media_type(own)
        if pushed_as not in (None, own):
            raise ManifestInvalid(f"the manifest says it is {own}, it was pushed as {pushed_as}")
    if pushed_as or own:
        return pushed_as or own or ""
    raise ManifestInvalid("neither a Content-Type nor a mediaType says what the manifest is")


def _require_version_2(document: _Json) -> None:
    version = document.get("schemaVersion")
    if version != 2 or isinstance(version, bool):
        raise ManifestInvalid(f"schemaVersion is {version!r}, it must be 2")


def _forbid(document: _Json, what: str, *keys: str) -> None:
    for key in keys:
        if document.get(key) is not None:
            raise ManifestInvalid(f"{what} with {key!r} could be read in two ways")


# ---------------------------------------------------------------- descriptors


def _descriptor(value: object, where: str) -> Descriptor:
    if not isinstance(value, dict):
        raise ManifestInvalid(f"{where} is not a descriptor")
    _check_letters(value, where)
    media_type = value.get("mediaType")
    if not isinstance(media_type, str):
        raise ManifestInvalid(f"{where} has no mediaType")
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str):
        raise ManifestInvalid(f"{where} has no digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE_BYTES:
        raise ManifestInvalid(f"the size of {where} is {str(size)[:40]}")
    try:
        parsed = Digest.parse(digest)
    except DigestInvalid as error:
        raise ManifestInvalid(f"{where}: {error}") from None
    _check_data(value.get("data"), parsed, where)
    return Descriptor(
        parse_media_type(media_type),
        parsed,
        size,
        artifact_type=_optional_text(value, "artifactType"),
        annotations=_annotations(value),
        urls=_urls(value, where),
        platform=_platform(value.get("platform")),
    )


def _check_data(data: object, digest: Digest, where: str) -> None:
    """Content a descriptor brings along: clients may take it in place of the blob."""
    if data is None:
        return
    try:
        content = base64.b64decode(_text(data, f"data of {where}"), validate=True)
    except ValueError:
        raise ManifestInvalid(f"data of {where} is not base64") from None
    if Digest.of(content, digest.algorithm) != digest:
        raise ManifestInvalid(f"data of {where} is not {digest}")


def _descriptors(document: _Json, key: str, *, required: bool = False) -> tuple[Descriptor, ...]:
    """The array under *key*; null is none (Go writes an empty slice so)."""
    if required and key not in document:
        raise ManifestInvalid(f"the manifest has no {key!r}")
    items = document.get(key)
    if items is None:
        return ()
    if not isinstance(items, list):
        raise ManifestInvalid(f"{key!r} is not an array")
    return tuple(_descriptor(item, f"{key}[{index}]") for index, item in enumerate(items))


def _subject(document: _Json) -> Descriptor | None:
    value = document.get("subject")
    return None if value is None else _descriptor(value, "subject")


def _urls(value: _Json, where: str) -> tuple[str, ...]:
    urls = value.get("urls") or []
    if not isinstance(urls, list):
        raise ManifestInvalid(f"urls of {where} is not an array")
    return tuple(_text(url, f"a url of {where}") for url in urls)


def _platform(value: object) -> str | None:
    """Only shown to people, so an odd one is no reason to refuse."""
    if not isinstance(value, dict):
        return None
    parts = [value.get("os"), value.get("architecture"), value.get("variant")]
    return "/".join(_text(part, "platform") for part in parts if isinstance(part, str) and part) or None


def _annotations(document: _Json) -> Mapping[str, str]:
    value = document.get("annotations")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ManifestInvalid("annotations is not an object")
    return {_text(name, "an annotation"): _text(text, f"annotation {name[:80]!r}") for name, text in value.items()}


def _optional_text(document: _Json, key: str) -> str | None:
    """The text under *key*; None where it is absent, null or empty."""
    value = document.get(key)
    return _text(value, key) or None if value is not None else None


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise ManifestInvalid(f"{what} is not a string")
    try:
        value.encode()
    except UnicodeEncodeError:
        # JSON can spell half a surrogate pair, which nothing after us could write down again.
        raise ManifestInvalid(f"{what} is not Unicode text") from None
    return value


def _check_sizes(manifest: Manifest) -> None:
    """One digest is one content of one size."""
    sizes: dict[Digest, int] = {}
    everything = (manifest.config, *manifest.layers, *manifest.entries, manifest.subject)
    for descriptor in filter(None, everything):
        if sizes.setdefault(descriptor.digest, descriptor.size) != descriptor.size:
            raise ManifestInvalid(f"{descriptor.digest} stands in two places with different sizes")
    for entry in manifest.manifests:
        if entry.size > MAX_MANIFEST_BYTES:
            raise ManifestInvalid(f"{entry.digest} claims to be a manifest of {entry.size} bytes")

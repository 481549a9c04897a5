"""PURE: method and URL in, a typed request out, or the reason why it is none.

Everything a URL names is checked here, percent-encoding undone first, so that nothing behind this module ever meets a
name, tag or digest in another form. Segments are decoded one by one: an encoded slash never becomes a separator.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote

from ipfsreg.errors import DigestInvalid, NameInvalid, Unsupported, UploadUnknown
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import Reference, RepositoryName, Tag, parse_reference, parse_repository, parse_tag

MAX_PAGE = 10_000
"""Names in one page of tags or repositories, whatever `n` asks; more follow by `Link`."""

_MAX_QUERY_FIELDS = 200
_MAX_LAST_CHARACTERS = 256
_UPLOAD_ID = re.compile(r"[A-Za-z0-9._~-]{1,200}", re.ASCII)


class RouteUnknown(Unsupported):
    """No such path in the API."""


class MethodUnsupported(Unsupported):
    """A path of the API, but not with this method."""

    def __init__(self, method: str, allow: str) -> None:
        super().__init__(f"{method} is not offered here")
        self.allow = allow


class QueryInvalid(Unsupported):
    """A query parameter that makes no sense."""


@dataclass(frozen=True, slots=True)
class Ping:
    """Is this a registry?"""


@dataclass(frozen=True, slots=True)
class ListRepositories:
    """The catalog, up to *limit* names after *last*."""

    limit: int
    last: str


@dataclass(frozen=True, slots=True)
class ListTags:
    """Up to *limit* tags after *last*."""

    repository: RepositoryName
    limit: int
    last: str


@dataclass(frozen=True, slots=True)
class ListReferrers:
    """What refers to *subject*; *last* is where the page before ended."""

    repository: RepositoryName
    subject: Digest
    artifact_type: str | None
    last: str


@dataclass(frozen=True, slots=True)
class GetBlob:
    """Also HEAD."""

    repository: RepositoryName
    digest: Digest


@dataclass(frozen=True, slots=True)
class DeleteBlob:
    """Out of this repository."""

    repository: RepositoryName
    digest: Digest


@dataclass(frozen=True, slots=True)
class StartUpload:
    """Begin a push; with *mount* try to do without; with *digest* all bytes are in this request."""

    repository: RepositoryName
    digest: Digest | None
    mount: Digest | None
    source: RepositoryName | None
    algorithm: str


@dataclass(frozen=True, slots=True)
class GetUpload:
    """How far is it?"""

    repository: RepositoryName
    upload_id: str


@dataclass(frozen=True, slots=True)
class AppendUpload:
    """The next bytes."""

    repository: RepositoryName
    upload_id: str


@dataclass(frozen=True, slots=True)
class FinishUpload:
    """The last bytes, or none, and what all of them are."""

    repository: RepositoryName
    upload_id: str
    digest: Digest


@dataclass(frozen=True, slots=True)
class CancelUpload:
    """Throw it away."""

    repository: RepositoryName
    upload_id: str


@dataclass(frozen=True, slots=True)
class GetManifest:
    """Also HEAD."""

    repository: RepositoryName
    reference: Reference


@dataclass(frozen=True, slots=True)
class PutManifest:
    """*tags* come in addition to a tag in the path."""

    repository: RepositoryName
    reference: Reference
    tags: tuple[Tag, ...]


@dataclass(frozen=True, slots=True)
class DeleteManifest:
    """A tag alone, or a manifest with its tags."""

    repository: RepositoryName
    reference: Reference


Action = (
    Ping
    | ListRepositories
    | ListTags
    | ListReferrers
    | GetBlob
    | DeleteBlob
    | StartUpload
    | GetUpload
    | AppendUpload
    | FinishUpload
    | CancelUpload
    | GetManifest
    | PutManifest
    | DeleteManifest
)


def parse_action(method: str, path: str, query: str) -> Action:
    """What *method* asks of *path* and *query* (both as sent).

    Raises:
        RouteUnknown, MethodUnsupported, QueryInvalid, NameInvalid, TagInvalid, DigestInvalid, UploadUnknown.
    """
    segments = path.split("/")
    if "%" in path:
        segments = [_decode(segment) for segment in segments]
    if len(segments) < 2 or segments[0] or segments[1] != "v2":
        raise RouteUnknown(f"no such path: {path[:200]}")
    rest = segments[2:]
    if rest in ([], [""]):
        _check_method(method, "GET, HEAD")
        return Ping()
    if rest == ["_catalog"]:
        _check_method(method, "GET, HEAD")
        fields = _fields(query)
        return ListRepositories(_limit(fields), _last(fields))
    if len(rest) >= 3:
        match rest[-2:]:
            case ["manifests", reference]:
                return _manifest(method, rest[:-2], reference, query)
            case ["blobs", "uploads"]:
                return _start_upload(method, rest[:-2], query)
            case ["blobs", digest]:
                _check_method(method, "GET, HEAD, DELETE")
                repository = _repository(rest[:-2])
                return (DeleteBlob if method == "DELETE" else GetBlob)(repository, Digest.parse(digest))
            case ["tags", "list"]:
                _check_method(method, "GET, HEAD")
                fields = _fields(query)
                return ListTags(_repository(rest[:-2]), _limit(fields), _last(fields))
            case ["referrers", digest]:
                _check_method(method, "GET, HEAD")
                fields = _fields(query)
                # A plus sign means a space in a query, and no media type has one: it was written by hand.
                artifact_type = _one(fields, "artifactType")
                artifact_type = artifact_type and artifact_type.replace(" ", "+")
                return ListReferrers(_repository(rest[:-2]), Digest.parse(digest), artifact_type, _last(fields))
            case ["uploads", ""] if rest[-3] == "blobs":
                return _start_upload(method, rest[:-3], query)
            case ["uploads", upload_id] if rest[-3] == "blobs":
                return _upload(method, rest[:-3], upload_id, query)
    raise RouteUnknown(f"no such path: {path[:200]}")


def _manifest(method: str, name: list[str], reference: str, query: str) -> Action:
    _check_method(method, "GET, HEAD, PUT, DELETE")
    repository = _repository(name)
    checked = parse_reference(reference)
    if method == "PUT":
        tags = tuple(parse_tag(value) for key, value in _fields(query) if key == "tag")
        return PutManifest(repository, checked, tags)
    if method == "DELETE":
        return DeleteManifest(repository, checked)
    return GetManifest(repository, checked)


def _start_upload(method: str, name: list[str], query: str) -> Action:
    _check_method(method, "POST")
    fields = _fields(query)
    digest = _digest(fields, "digest")
    algorithm = _one(fields, "digest-algorithm") or (digest.algorithm if digest else "sha256")
    if algorithm not in ("sha256", "sha512"):
        raise DigestInvalid(f"{algorithm[:40]!r} is not a digest algorithm known here")
    source = _one(fields, "from")
    return StartUpload(
        _repository(name), digest, _digest(fields, "mount"), parse_repository(source) if source else None, algorithm
    )


def _upload(method: str, name: list[str], upload_id: str, query: str) -> Action:
    _check_method(method, "GET, HEAD, PATCH, PUT, DELETE")
    repository = _repository(name)
    if not _UPLOAD_ID.fullmatch(upload_id):
        raise UploadUnknown(f"no upload {upload_id[:200]!r}")
    if method == "PATCH":
        return AppendUpload(repository, upload_id)
    if method == "PUT":
        digest = _digest(_fields(query), "digest")
        if digest is None:
            raise DigestInvalid("an upload is finished with ?digest=")
        return FinishUpload(repository, upload_id, digest)
    if method == "DELETE":
        return CancelUpload(repository, upload_id)
    return GetUpload(repository, upload_id)


def _check_method(method: str, allow: str) -> None:
    if method not in allow.split(", "):
        raise MethodUnsupported(method, allow)


def _decode(segment: str) -> str:
    try:
        return unquote(segment, errors="strict")
    except UnicodeDecodeError:
        raise NameInvalid("the path holds bytes that are no text") from None


def _repository(segments: list[str]) -> RepositoryName:
    if any("/" in segment for segment in segments):
        raise NameInvalid("an encoded slash in a repository name")
    return parse_repository("/".join(segments))


def _fields(query: str) -> list[tuple[str, str]]:
    if not query:
        return []
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=_MAX_QUERY_FIELDS)
    except ValueError:
        raise QueryInvalid("too many query parameters") from None


def _one(fields: list[tuple[str, str]], name: str) -> str | None:
    """The one value of *name*, None where absent or empty. Two would be a guess."""
    values = [value for key, value in fields if key == name]
    if len(values) > 1:
        raise QueryInvalid(f"{name} given twice")
    return values[0] or None if values else None


def _digest(fields: list[tuple[str, str]], name: str) -> Digest | None:
    text = _one(fields, name)
    return Digest.parse(text) if text is not None else None


def _limit(fields: list[tuple[str, str]]) -> int:
    text = _one(fields, "n")
    if text is None:
        return MAX_PAGE
    if not (text.isascii() and text.isdigit()):
        raise QueryInvalid(f"n = {text[:40]!r}: a number of names, 0 or more")
    return min(int(text[:20]), MAX_PAGE)


def _last(fields: list[tuple[str, str]]) -> str:
    return (_one(fields, "last") or "")[:_MAX_LAST_CHARACTERS]

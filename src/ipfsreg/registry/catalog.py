"""What the registry keeps in the replicated name store: keys and records. PURE.

Keys are go-datastore paths. A repository's own keys begin with `_`, which no component of a repository name can, so
`team/app` and `team/app/t` never meet and a repository's keys lie together:

    /r/<repository>/_t/<tag>                      TagRecord: what the tag points at
    /r/<repository>/_m/<digest>                   ManifestRecord: the repository has this manifest
    /r/<repository>/_l/<digest>                   LinkRecord: the repository may serve this blob
    /r/<repository>/_s/<subject>/<digest>         ReferrerRecord: the manifest <digest> refers to <subject>
    /r/<repository>/_h/<tag>/<microseconds>-<peer>  MoveRecord: the tag was moved, by whom and from what

Values are CBOR maps with one-letter keys and a version `v`; unknown keys are kept out of the way of later versions.
Nothing in them is tagged, and nothing nested deeper than a map in the record: what CBOR can say beyond that (values
shared among others, which unfold without end, and numbers of any size) is refused unread.
Manifest, link and referrer records hold nothing of when or by whom, so equal pushes on two nodes write equal bytes.
The time in a history key has sixteen hex digits, so that byte order is order in time.

Why the root of a blob stands in each link, and not once for all repositories: a record is a claim, and a writer of
one repository must not be able to claim for another's (docs/decisions/0045-names-in-the-crdt.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import cbor2

from ipfsreg.errors import DigestInvalid, MalformedData, ManifestInvalid
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES
from ipfsreg.oci.media_types import parse_media_type
from ipfsreg.oci.names import RepositoryName, Tag
from ipfsreg.peer_id import PeerId

VERSION = 1
ONE_LEAF_BYTES = 1024 * 1024
"""Blobs up to this size are one raw leaf (profile v1-2025), whose CID holds the same sha256 as the OCI digest."""

MAX_RECORD_BYTES = 64 * 1024
"""Larger records are not read: nothing we write comes near, annotations of referrers are cut to fit."""

MAX_BLOB_BYTES = 1 << 40
"""A record that claims more is not read. What a DAG may claim beside: `blockstore.outline`."""

MAX_NESTING = 3
"""Levels of CBOR containers, the record being the first. Ours have two; the third is for later versions."""

ROOT = "/r/"

LINK_MARK, MANIFEST_MARK = BLOB_MARKS = ("/_l/", "/_m/")
"""A key in which one of these stands before a digest, the end of the key, needs the blob of that digest."""


def repository_prefix(repository: RepositoryName) -> str:
    """All keys of *repository* begin with this, and no key of another does."""
    return f"{ROOT}{repository}/_"


def tags_prefix(repository: RepositoryName) -> str:
    """Where the tags of *repository* lie; what follows is the tag."""
    return f"{ROOT}{repository}/_t/"


def manifests_prefix(repository: RepositoryName) -> str:
    """Where the manifests of *repository* lie; what follows is the digest."""
    return f"{ROOT}{repository}/_m/"


def referrers_prefix(repository: RepositoryName, subject: Digest) -> str:
    """Where the referrers of *subject* lie; what follows is the referring manifest's digest."""
    return f"{ROOT}{repository}/_s/{subject}/"


def history_prefix(repository: RepositoryName, tag: Tag) -> str:
    """Where the moves of *tag* lie, in order of time."""
    return f"{ROOT}{repository}/_h/{tag}/"


def tag_key(repository: RepositoryName, tag: Tag) -> str:
    """Key of a TagRecord."""
    return tags_prefix(repository) + tag


def manifest_key(repository: RepositoryName, digest: Digest) -> str:
    """Key of a ManifestRecord."""
    return manifests_prefix(repository) + str(digest)


def link_key_prefix(repository: RepositoryName) -> str:
    """Where the links of *repository* lie; what follows is the digest."""
    return f"{ROOT}{repository}/_l/"


def link_key(repository: RepositoryName, digest: Digest) -> str:
    """Key of a LinkRecord."""
    return link_key_prefix(repository) + str(digest)


def referrer_key(repository: RepositoryName, subject: Digest, digest: Digest) -> str:
    """Key of a ReferrerRecord."""
    return referrers_prefix(repository, subject) + str(digest)


def history_key(repository: RepositoryName, tag: Tag, when_us: int, peer: PeerId) -> str:
    """Key of a MoveRecord; *when_us* in microseconds since 1970."""
    return f"{history_prefix(repository, tag)}{when_us:016x}-{peer.short}"


def repository_of(key: str) -> str | None:
    """The repository a key belongs to, or None for a key that is not of the registry's."""
    if not key.startswith(ROOT):
        return None
    name, mark, _ = key[len(ROOT) :].partition("/_")
    return name if mark else None


def end_of_repository(name: str) -> str:
    """Sorts behind every key of the repository and before every key of the repositories below it."""
    return f"{ROOT}{name}/_\x7f"


class _NoTags(Mapping[int, Any]):
    """The decoder of any CBOR tag whatever: none. Naming those the library knows would miss those it learns."""

    def __getitem__(self, tag: int) -> Any:
        return self._refuse

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def _refuse(self, decoder: object) -> NoReturn:
        raise ValueError("a tag")


def _load(data: bytes) -> dict[str, Any]:
    if len(data) > MAX_RECORD_BYTES:
        raise MalformedData(f"record of {len(data)} bytes")
    try:
        value = cbor2.loads(
            data, semantic_decoders=_NO_TAGS, max_depth=MAX_NESTING, allow_indefinite=False, allow_duplicate_keys=False
        )
    except (cbor2.CBORDecodeError, ValueError, RecursionError) as error:
        raise MalformedData(f"record is not CBOR: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("v"), int) or value["v"] < 1:
        raise MalformedData("record without a version")
    return value


_NO_TAGS = _NoTags()


def _dump(fields: Mapping[str, Any]) -> bytes:
    kept = {name: value for name, value in fields.items() if value not in (None, {}, "")}
    return cbor2.dumps({"v": VERSION, **kept}, canonical=True)


def _dump_digest(digest: Digest) -> bytes | str:
    """sha256 as its 32 bytes, anything else as text."""
    return digest.raw if digest.algorithm == "sha256" else str(digest)


def _load_digest(value: object) -> Digest:
    if isinstance(value, bytes) and len(value) == 32:
        return Digest("sha256", value.hex())
    if isinstance(value, str):
        try:
            return Digest.parse(value)
        except DigestInvalid as error:
            raise MalformedData(str(error)) from None
    raise MalformedData("record without a digest")


def _load_optional_digest(value: object) -> Digest | None:
    return None if value is None else _load_digest(value)


def _load_size(value: object, most: int) -> int:
    if isinstance(value, int) and 0 <= value <= most:
        return value
    raise MalformedData(f"size {value!r}"[:100])


def _load_time(value: object) -> int:
    if isinstance(value, int) and 0 <= value < 1 << 60:
        return value
    raise MalformedData(f"time {value!r}")


def _load_text(value: object) -> str:
    if isinstance(value, str):
        return value
    raise MalformedData(f"{value!r} where text belongs")


def _load_media_type(value: object) -> str:
    """It is sent in a header: what is no media type could be anything there."""
    try:
        return parse_media_type(_load_text(value))
    except ManifestInvalid as error:
        raise MalformedData(str(error)) from None


def _load_root(digest: Digest, size: int, root: object) -> Cid:
    if isinstance(root, bytes):
        return Cid.decode(root)
    if digest.algorithm == "sha256" and size <= ONE_LEAF_BYTES:
        return Cid.from_sha256(RAW, digest.raw)
    raise MalformedData(f"no root for {digest}")


def _dump_root(digest: Digest, size: int, root: Cid) -> bytes | None:
    """Nothing where the digest itself says it: most blobs of most images then cost 40 bytes less."""
    implied = digest.algorithm == "sha256" and size <= ONE_LEAF_BYTES and root == Cid.from_sha256(RAW, digest.raw)
    return None if implied else bytes(root)


@dataclass(frozen=True, slots=True)
class TagRecord:
    """What a tag points at."""

    digest: Digest
    when_us: int
    """Microseconds since 1970 by the clock of the node that moved it."""
    peer: PeerId
    """The node that moved it."""

    def encode(self) -> bytes:
        """As it is stored."""
        return _dump({"d": _dump_digest(self.digest), "w": self.when_us, "p": self.peer.raw})

    @classmethod
    def decode(cls, data: bytes) -> TagRecord:
        """Raises MalformedData."""
        record = _load(data)
        return cls(_load_digest(record.get("d")), _load_time(record.get("w")), _load_peer(record.get("p")))


def _load_peer(value: object) -> PeerId:
    if isinstance(value, bytes):
        return PeerId.decode(value)
    raise MalformedData("record without a peer")


@dataclass(frozen=True, slots=True)
class MoveRecord:
    """One move of a tag; the time and the short peer ID stand in the key."""

    to: Digest | None
    """None: the tag was deleted."""
    before: Digest | None
    """What the moving node saw it at; None: it did not exist there."""
    peer: PeerId

    def encode(self) -> bytes:
        """As it is stored."""
        return _dump(
            {
                "d": self.to and _dump_digest(self.to),
                "f": self.before and _dump_digest(self.before),
                "p": self.peer.raw,
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> MoveRecord:
        """Raises MalformedData."""
        record = _load(data)
        return cls(
            _load_optional_digest(record.get("d")),
            _load_optional_digest(record.get("f")),
            _load_peer(record.get("p")),
        )


@dataclass(frozen=True, slots=True)
class LinkRecord:
    """A blob the repository may serve."""

    size: int
    """Bytes."""
    root: Cid
    """Root of its UnixFS DAG, as the pushing node made it: a claim, checked by the OCI digest on arrival."""

    def encode(self, digest: Digest) -> bytes:
        """As it is stored under *digest*."""
        return _dump({"s": self.size, "r": _dump_root(digest, self.size, self.root)})

    @classmethod
    def decode(cls, digest: Digest, data: bytes) -> LinkRecord:
        """Raises MalformedData."""
        record = _load(data)
        size = _load_size(record.get("s"), MAX_BLOB_BYTES)
        return cls(size, _load_root(digest, size, record.get("r")))


@dataclass(frozen=True, slots=True)
class ManifestRecord:
    """A manifest the repository has."""

    media_type: str
    size: int
    """Bytes."""
    root: Cid
    subject: Digest | None = None

    def encode(self, digest: Digest) -> bytes:
        """As it is stored under *digest*."""
        return _dump(
            {
                "t": self.media_type,
                "s": self.size,
                "r": _dump_root(digest, self.size, self.root),
                "u": self.subject and _dump_digest(self.subject),
            }
        )

    @classmethod
    def decode(cls, digest: Digest, data: bytes) -> ManifestRecord:
        """Raises MalformedData."""
        record = _load(data)
        size = _load_size(record.get("s"), MAX_MANIFEST_BYTES)
        return cls(
            _load_media_type(record.get("t")),
            size,
            _load_root(digest, size, record.get("r")),
            _load_optional_digest(record.get("u")),
        )


@dataclass(frozen=True, slots=True)
class ReferrerRecord:
    """What a referrers index says of one referring manifest."""

    media_type: str
    size: int
    """Bytes."""
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict)

    def encode(self) -> bytes:
        """As it is stored."""
        return _dump(
            {"t": self.media_type, "s": self.size, "a": self.artifact_type, "n": dict(sorted(self.annotations.items()))}
        )

    @classmethod
    def decode(cls, data: bytes) -> ReferrerRecord:
        """Raises MalformedData."""
        record = _load(data)
        artifact_type, annotations = record.get("a"), record.get("n", {})
        if not isinstance(annotations, dict):
            raise MalformedData("annotations that are not a map")
        return cls(
            _load_media_type(record.get("t")),
            _load_size(record.get("s"), MAX_MANIFEST_BYTES),
            None if artifact_type is None else _load_text(artifact_type),
            {_load_text(name): _load_text(value) for name, value in annotations.items()},
        )

"""What the registry promises to its front door: repositories, blobs, uploads, manifests, tags.

No HTTP here: names, digests and references arrive checked (their types are the proof), failures leave as
`RegistryError`s, and `http/` turns both into the wire form of distribution-spec 1.1.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import Descriptor
from ipfsreg.oci.names import Reference, RepositoryName, Tag


@dataclass(frozen=True, slots=True)
class BlobStat:
    """A blob this repository may serve, here or with some peer."""

    digest: Digest
    size: int
    root: Cid
    """Root of its UnixFS DAG: what any IPFS tool fetches it by (`X-Ipfs-Roots`)."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """The bytes [start, end) of an open file: the kernel can hand them on, and they need no memory here."""

    descriptor: int
    """Open until the next piece is asked for."""
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


Piece = bytes | memoryview | FileRange
"""What a blob is streamed in."""


class BlobContent(Protocol):
    """An opened blob. Use as `async with`: leaving lets go of the file or of our share in the fetch."""

    @property
    def stat(self) -> BlobStat:
        """What is being served."""

    @property
    def path(self) -> Path | None:
        """The file with exactly the blob's bytes where it is whole and local (sendfile), else None."""

    @property
    def data(self) -> bytes | None:
        """All of it, where that is in memory and was checked. Then there is nothing to let go of."""

    def stream(self, start: int, end: int) -> AsyncIterator[Piece]:
        """Yield the bytes [start, end) in order, while later ones may still be arriving from peers.

        Raises:
            ContentUnavailable: no peer gave what is missing in time.
            DigestMismatch: what peers gave is not the blob; the response must not end as if it were whole.
        """

    async def __aenter__(self) -> BlobContent: ...

    async def __aexit__(self, *exc: object) -> None: ...


class UploadSession(Protocol):
    """A push under way on this node. One request at a time holds it."""

    @property
    def id(self) -> str:
        """Unguessable, URL-safe."""

    @property
    def repository(self) -> RepositoryName:
        """The only repository it can be used under."""

    @property
    def offset(self) -> int:
        """Bytes taken so far."""

    async def expect(self, size: int | None) -> None:
        """A body of *size* bytes is about to come; None: it does not say. To be called before it is taken.

        May wait some seconds until room is made for it.

        Raises:
            StoreFull, TooManyRequests, QuotaExceeded: it would not be.
        """

    def rest(self) -> None:
        """Nothing more comes by the request that held it. Raises UploadUnknown: it is over."""

    async def buffer(self) -> memoryview:
        """Where to receive the next bytes, for `append`: the same one until that is called.

        Waits while the disk is behind. Raises what an earlier piece failed with, as `settle`.
        """

    async def append(self, size: int) -> None:
        """Append the first *size* bytes of the buffer that was given last. Raises StoreFull, QuotaExceeded."""

    async def settle(self) -> None:
        """Return when all that was appended is written, and give the buffer back. Not cancelled, soon over.

        To be called before the session is released, whatever has happened. Raises StoreFull: what does not fit does not
        count.
        """

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        """Append, and settle. Raises StoreFull. Cancelled: *data* counts wholly or not at all."""

    async def finish(self, digest: Digest) -> BlobStat:
        """Publish as *digest* in the repository; on return it survives a power cut. The session is over.

        Raises:
            DigestMismatch: nothing is published; the session is over and its bytes are gone.
        """

    async def cancel(self) -> None:
        """Throw the bytes away."""


@dataclass(frozen=True, slots=True)
class ManifestStat:
    """A manifest of a repository, without its bytes."""

    digest: Digest
    media_type: str
    size: int


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """A manifest of a repository."""

    stat: ManifestStat
    data: bytes
    """Exactly the bytes that were pushed."""


@dataclass(frozen=True, slots=True)
class ManifestPushed:
    """What a manifest push brought about."""

    digest: Digest
    subject: Digest | None
    """The manifest it refers to, echoed as OCI-Subject."""
    tags: tuple[Tag, ...]
    heads: tuple[Cid, ...]
    """Heads of the replicated name store that contain this push."""


@dataclass(frozen=True, slots=True)
class Page:
    """Some names in byte order, and whether more follow."""

    names: tuple[str, ...]
    more: bool


class Registry(Protocol):
    """One node's whole registry. Safe from many tasks at once.

    Where a peer holds what this node lacks, methods may wait for the network, bounded by configured times.
    """

    @property
    def version(self) -> int | None:
        """Another number whenever what this answers may have changed: what was answered under one is still so while it
        stands, manifests and small blobs with their bytes. Where others hold what this node lacks is not in it.

        None while something is about to change: nothing can be said of what is answered now.
        """

    async def stat_blob(self, repository: RepositoryName, digest: Digest) -> BlobStat:
        """Raises BlobUnknown: this repository may not serve it."""

    def blob_size(self, repository: RepositoryName, digest: Digest) -> int:
        """In bytes, for whoever is no client: after `stat_blob` the client it was for relies on the blob, and it is
        kept for that.

        Raises:
            BlobUnknown: this repository may not serve it.
            StoreError.
        """

    async def open_blob(self, repository: RepositoryName, digest: Digest) -> BlobContent:
        """Open for reading; a blob we lack begins to be fetched. Raises BlobUnknown, ContentUnavailable."""

    async def delete_blob(self, repository: RepositoryName, digest: Digest) -> None:
        """Take the blob out of this repository. Raises BlobUnknown."""

    async def mount_blob(self, repository: RepositoryName, digest: Digest, source: RepositoryName | None) -> BlobStat:
        """Let *repository* serve a blob of *source* (None: of any repository) without an upload. Raises BlobUnknown."""

    async def start_upload(
        self, repository: RepositoryName, algorithm: str = "sha256", *, owner: str = ""
    ) -> UploadSession:
        """Begin a push of *owner*'s. *algorithm* is that of the digest expected at its end; another one costs a second
        pass."""

    async def resume_upload(self, repository: RepositoryName, upload_id: str, *, owner: str = "") -> UploadSession:
        """A push that *owner* began before, also before a restart.

        Raises:
            UploadUnknown: none of that id in this repository, by this owner, on this node.
            UploadInvalid: another request is writing to it now.
        """

    def release_upload(self, session: UploadSession) -> None:
        """The request that held *session* is over; the session may be resumed."""

    async def stat_manifest(self, repository: RepositoryName, reference: Reference) -> ManifestStat:
        """Raises NameUnknown, ManifestUnknown."""

    async def get_manifest(self, repository: RepositoryName, reference: Reference) -> ManifestContent:
        """Raises NameUnknown, ManifestUnknown, ContentUnavailable."""

    async def put_manifest(
        self,
        repository: RepositoryName,
        reference: Reference,
        media_type: str,
        data: bytes,
        tags: Sequence[Tag] = (),
        *,
        overwrite: bool = True,
    ) -> ManifestPushed:
        """Publish a manifest, under *reference* and *tags*; one delta; on return it survives a power cut.

        Raises:
            Denied: without *overwrite*, a tag points at another manifest; or it is immutable.
            ManifestInvalid, ManifestTooLarge, DigestMismatch (reference is a digest that does not fit),
            ManifestBlobUnknown: it names content this repository does not have.
        """

    async def delete_manifest(self, repository: RepositoryName, reference: Reference) -> tuple[Cid, ...]:
        """A tag: the tag alone. A digest: the manifest and every tag of it. Returns heads that contain that.

        Raises:
            NameUnknown, ManifestUnknown.
        """

    async def wait_heads(self, heads: Sequence[Cid]) -> None:
        """Return once this node has everything at or below *heads*, as a push or a deletion elsewhere told them.

        Raises:
            NotReady: it has not within the configured time.
        """

    async def tags(self, repository: RepositoryName, *, limit: int, last: str = "") -> Page:
        """Tags after *last*. Raises NameUnknown."""

    async def repositories(self, *, limit: int, last: str = "") -> Page:
        """Repository names after *last*."""

    async def referrers(
        self, repository: RepositoryName, subject: Digest, artifact_type: str | None = None
    ) -> list[Descriptor]:
        """Manifests whose subject is *subject*; never an error for an unknown one."""

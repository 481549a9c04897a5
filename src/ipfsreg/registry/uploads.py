"""Pushes of blobs under way on this node.

An upload ID is `<id of the bytes in the store>.<seal>`. The seal is a MAC over that ID, the repository and the user who
began it with a key only this node has: an ID used under another repository or by somebody else is simply not known
there, and nothing about an upload has to be written down beyond its bytes, so sessions outlive a restart without a
table of their own.
"""

from __future__ import annotations

import hashlib
import hmac
from contextlib import suppress
from dataclasses import dataclass, field

from ipfsreg.blockstore.interface import BlobInfo, BlobStore, BlobUpload
from ipfsreg.errors import StoreFull, UploadInvalid, UploadUnknown
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry.evicting import Evictor
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import BlobStat, UploadSession
from ipfsreg.registry.links import Links, link_of
from ipfsreg.registry.local import LocalBlobs
from ipfsreg.registry.providing import Providing
from ipfsreg.registry.quota import Quotas

_SEAL_DIGITS = 32


@dataclass(slots=True, eq=False)
class Upload:
    """One push of a blob. Keeps the `UploadSession` promises."""

    id: str
    repository: RepositoryName
    _bytes: BlobUpload
    _uploads: Uploads = field(repr=False)

    @property
    def offset(self) -> int:
        return self._bytes.offset

    async def expect(self, size: int | None) -> None:
        self._count(size or 0)
        try:
            self._bytes.expect(size or 0)
        except StoreFull:
            if not await self._uploads.evictor.make_room(size or 0):
                raise
            self._bytes.expect(size or 0)

    def rest(self) -> None:
        """Nothing more comes by the request that held it. Raises UploadUnknown: it is over."""
        self._bytes.expect(0)

    def _count(self, more: int) -> None:
        """Raises QuotaExceeded."""
        quotas = self._uploads.quotas
        quotas.coming(self.id, self.repository, self.offset)
        quotas.check(self.repository, more)
        quotas.coming(self.id, self.repository, self.offset + more)

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._uploads.quotas.of(self.id) < self.offset + memoryview(data).nbytes:
            self._count(memoryview(data).nbytes)
        try:
            await self._bytes.write(data)
        except StoreFull:
            # Nothing of it counts, and the buffer is still ours.
            if not await self._uploads.evictor.make_room(memoryview(data).nbytes):
                raise
            await self._bytes.write(data)

    async def buffer(self) -> memoryview:
        return await self._bytes.buffer()

    async def append(self, size: int) -> None:
        if self._uploads.quotas.of(self.id) < self.offset + size:
            self._count(size)
        try:
            self._bytes.append(size)
        except StoreFull:
            if not await self._uploads.evictor.make_room(size):
                raise
            self._bytes.append(size)

    async def settle(self) -> None:
        await self._bytes.settle()

    async def finish(self, digest: Digest) -> BlobStat:
        self._uploads.quotas.came(self.id)
        self._uploads.quotas.check(self.repository, self.offset, digest)
        with self._uploads.holds.hold(digest):
            info = await self._bytes.commit(digest)
            await self._uploads.publish(self.repository, info)
        return BlobStat(digest, info.size, info.root)

    async def cancel(self) -> None:
        await self._bytes.abort()


class Uploads:
    """All of them."""

    def __init__(
        self,
        blobs: BlobStore,
        local: LocalBlobs,
        links: Links,
        providing: Providing,
        holds: Holds,
        quotas: Quotas,
        evictor: Evictor,
        secret: bytes,
    ) -> None:
        """*secret*: 32 bytes that stay the same across restarts and leave this node never."""
        self._blobs = blobs
        self._local = local
        self._links = links
        self._providing = providing
        self.holds = holds
        self.quotas = quotas
        self.evictor = evictor
        self._secret = secret
        self._held: set[str] = set()

    async def start(self, repository: RepositoryName, algorithm: str, owner: str) -> Upload:
        """Begin a push; the caller holds it until `release`. Raises QuotaExceeded, StoreFull, TooManyRequests."""
        await self.quotas.wait_ready()
        self.quotas.check(repository, 1)
        self._links.check_room()
        try:
            received = await self._blobs.create_upload(algorithm)
        except StoreFull:
            if not await self.evictor.make_room(0):
                raise
            received = await self._blobs.create_upload(algorithm)
        upload = Upload(f"{received.id}.{self._seal(received.id, repository, owner)}", repository, received, self)
        self._held.add(upload.id)
        return upload

    async def resume(self, repository: RepositoryName, upload_id: str, owner: str) -> Upload:
        """Hold a push begun before. Raises UploadUnknown, UploadInvalid (held by another request)."""
        stored_id, _, seal = upload_id.partition(".")
        if not hmac.compare_digest(seal.encode(), self._seal(stored_id, repository, owner).encode()):
            raise UploadUnknown(f"no upload {upload_id[:100]!r} in {repository}")
        if upload_id in self._held:
            raise UploadInvalid("another request is using this upload now")
        self._held.add(upload_id)
        try:
            received = await self._blobs.resume_upload(stored_id)
        except BaseException:  # whatever stopped it, cancellation too: the upload is not held
            self._held.discard(upload_id)
            raise
        return Upload(upload_id, repository, received, self)

    def release(self, upload: UploadSession) -> None:
        """The request that held it is over: nothing more comes by it."""
        with suppress(UploadUnknown):  # it is over itself
            upload.rest()
        self.quotas.came(upload.id)
        self._held.discard(upload.id)

    async def publish(self, repository: RepositoryName, info: BlobInfo) -> None:
        """Let *repository* serve a blob that has just become whole in the store."""
        self._local.hashed(info.digest)
        self._providing.add(info.root)
        if self._links.replicated(repository, info.digest) is None:
            await self._links.add_pending(repository, info.digest, link_of(info))

    def _seal(self, stored_id: str, repository: RepositoryName, owner: str) -> str:
        # Neither of the first two holds a line end, so no two triples make the same text.
        text = f"{stored_id}\n{repository}\n{owner}".encode()
        return hmac.new(self._secret, text, hashlib.sha256).hexdigest()[:_SEAL_DIGITS]

"""Registries on real disks with real names, in this process; only the wires between them are in memory.

swarm = MemorySwarm()
async with open_site(swarm, directory, "alice") as alice, open_site(swarm, directory, "bob", "alice") as bob: ...
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.room import StoreLimits
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.crdt.replica import Replica, ReplicaSettings, open_replica
from ipfsreg.database import Database, open_database
from ipfsreg.dht.interface import Routing
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import Reference, RepositoryName, parse_tag
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.service import open_pubsub
from ipfsreg.registry.catalog import BLOB_MARKS
from ipfsreg.registry.interface import FileRange, ManifestPushed
from ipfsreg.registry.service import LocalRegistry, RegistrySettings, open_registry
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, peer_of

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Site:
    """One node without its doors."""

    registry: LocalRegistry
    blobs: DiskBlobStore
    replica: Replica
    database: Database
    endpoint: MemoryEndpoint

    async def push_blob(self, repository: RepositoryName, data: bytes) -> Digest:
        """Push a blob; return its digest."""
        session = await self.registry.start_upload(repository)
        try:
            await session.write(data)
            return (await session.finish(Digest.of(data))).digest
        finally:
            self.registry.release_upload(session)

    async def push_manifest(
        self, repository: RepositoryName, reference: str | None, data: bytes, media_type: str = IMAGE
    ) -> ManifestPushed:
        """Push a manifest whose content is there, by a tag or by its digest alone."""
        target: Reference = Digest.of(data) if reference is None else parse_tag(reference)
        return await self.registry.put_manifest(repository, target, media_type, data)

    async def push_image(
        self, repository: RepositoryName, tag: str | None, *layers: bytes, subject: bytes | None = None
    ) -> ManifestPushed:
        """Push an image with its content."""
        for data in (b"{}", *layers):
            await self.push_blob(repository, data)
        return await self.push_manifest(repository, tag, image_of(*layers, subject=subject))

    async def read_blob(self, repository: RepositoryName, digest: Digest) -> bytes:
        """Pull a blob, from wherever it is. Raises what `open_blob` and `stream` raise."""
        async with await self.registry.open_blob(repository, digest) as blob:
            pieces = [
                os.pread(piece.descriptor, len(piece), piece.start) if isinstance(piece, FileRange) else bytes(piece)
                async for piece in blob.stream(0, blob.stat.size)
            ]
        return b"".join(pieces)

    async def wait_like(self, other: Site) -> None:
        """Return once this replica has what *other* has now."""
        with trio.fail_after(30):
            await self.replica.wait_merged(other.replica.heads())


def describe(data: bytes, media_type: str) -> dict[str, object]:
    """A descriptor of *data*."""
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def image_of(*layers: bytes, subject: bytes | None = None) -> bytes:
    """The manifest of an image with the config `{}`, and the manifest *subject* as its subject."""
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": describe(b"{}", CONFIG),
        "layers": [describe(layer, LAYER) for layer in layers],
    }
    if subject is not None:
        document["subject"] = describe(subject, IMAGE)
    return json.dumps(document).encode()


def index_of(*manifests: bytes) -> bytes:
    """An index of image manifests."""
    document = {
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [describe(manifest, IMAGE) for manifest in manifests],
    }
    return json.dumps(document).encode()


@asynccontextmanager
async def open_site(
    swarm: MemorySwarm,
    directory: Path,
    name: str,
    *friends: str,
    settings: RegistrySettings | None = None,
    limits: StoreLimits | None = None,
    routing: Routing | None = None,
    trusted: frozenset[PeerId] | None = None,
) -> AsyncIterator[Site]:
    """The node *name* on `directory/name`, connected to its *friends*, for as long as the block lasts."""
    endpoint = swarm.endpoint(name)
    place = directory / name
    place.mkdir(exist_ok=True)
    async with (
        open_database(place / "node.db") as database,
        open_blobstore(place, database, limits) as (store, blobs),
        open_bitswap(endpoint, store) as bitswap,
        open_pubsub(endpoint) as pubsub,
        pubsub.join("names") as topic,
        open_replica(
            database,
            store,
            bitswap,
            topic,
            ReplicaSettings(alone_s=0.0, marks=BLOB_MARKS),
            signer=endpoint,
            network=endpoint,
        ) as replica,
        open_registry(
            database=database,
            names=replica,
            blobs=blobs,
            bitswap=bitswap,
            routing=routing,
            peer=endpoint.peer_id,
            upload_secret=name.encode().ljust(32),
            settings=settings or RegistrySettings(give_up_s=5.0),
            has_caught_up=replica.has_caught_up,
            network=endpoint,
            trusted_peers=trusted,
        ) as registry,
    ):
        for friend in friends:
            await endpoint.connect(PeerInfo(peer_of(friend)))
        await replica.wait_synced()
        yield Site(registry, blobs, replica, database, endpoint)
        swarm.kill(endpoint)

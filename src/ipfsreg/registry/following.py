"""Keeping up with the swarm: manifests that peers push are fetched as soon as their names arrive.

They are small, and a node that has them answers every question about an image, and the first two requests of every
pull, also when whoever pushed it is gone. Layers stay where they are until somebody pulls them here.
"""

from __future__ import annotations

import logging

import trio

from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.crdt.interface import Names
from ipfsreg.errors import DigestInvalid, IpfsregError, MalformedData, StoreError
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord
from ipfsreg.registry.fetching import Fetches

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Manifests fetched side by side."""


async def follow_manifests(names: Names, blobs: BlobStore, fetches: Fetches) -> None:
    """Fetch each manifest that is named from now on, for ever. One that nobody has now is fetched when it is pulled."""
    slots = trio.Semaphore(AT_ONCE)
    async with trio.open_nursery() as nursery, names.changes([catalog.ROOT]) as changes:
        async for change in changes:
            wanted = _wanted(change.key, change.new)
            if wanted is None or _is_here(blobs, wanted[1]):
                continue
            await slots.acquire()
            nursery.start_soon(_fetch, fetches, *wanted, slots)


def _is_here(blobs: BlobStore, digest: Digest) -> bool:
    try:
        return blobs.stat(digest) is not None
    except StoreError as error:
        logger.warning("whether manifest %s is here cannot be told: %s", digest, error)
        return True


def _wanted(key: str, value: bytes | None) -> tuple[RepositoryName, Digest, LinkRecord] | None:
    prefix, mark, text = key.rpartition("/_m/")
    repository = catalog.repository_of(key)
    if not mark or prefix != f"{catalog.ROOT}{repository}" or repository is None or value is None:
        return None
    try:
        digest = Digest.parse(text)
        record = ManifestRecord.decode(digest, value)
    except (DigestInvalid, MalformedData):
        return None
    return RepositoryName(repository), digest, LinkRecord(record.size, record.root)


async def _fetch(
    fetches: Fetches, repository: RepositoryName, digest: Digest, link: LinkRecord, slots: trio.Semaphore
) -> None:
    try:
        await fetches.fetch_whole(repository, digest, link, dials=False)
    except IpfsregError as error:
        logger.info("manifest %s is not here yet: %s", digest, error)
    finally:
        slots.release()

"""A whole registry behind its HTTP front, with its names in memory and its peers in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.interface import BlobStore, Blockstore
from ipfsreg.blockstore.memory import MemoryBlobStore, MemoryBlockstore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.database import Database, open_database
from ipfsreg.http.accesslog import AccessLog
from ipfsreg.http.app import make_app
from ipfsreg.http.connection import Handler
from ipfsreg.http.door.service import Door
from ipfsreg.http.server import Server, open_server
from ipfsreg.http.tls import Tls
from ipfsreg.registry.service import RegistrySettings, open_registry
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm


@asynccontextmanager
async def open_front_door(
    directory: Path,
    listen: str = "127.0.0.1:0",
    *,
    on_disk: bool = False,
    names: MemoryNames | None = None,
    endpoint: MemoryEndpoint | None = None,
    give_up_s: float = 5.0,
    wait_heads_s: float = 5.0,
    door: Door | None = None,
    tls: Tls | None = None,
    access_log: AccessLog | None = None,
    wrap: Callable[[Handler], Handler] = lambda handler: handler,
) -> AsyncIterator[Server]:
    """Serve an empty registry on *listen*; blobs are kept in memory, or in *directory*.

    Doors that share *names*, with *endpoint*s of one swarm, are nodes that know everything of each other at once.
    """
    endpoint = endpoint or MemorySwarm().endpoint("alice")
    async with (
        open_database(directory / f"{endpoint.peer_id}.db") as database,
        _open_blobs(directory, database, on_disk) as (blocks, blobs),
        open_bitswap(endpoint, blocks) as bitswap,
        open_registry(
            database=database,
            names=names or MemoryNames(),
            blobs=blobs,
            bitswap=bitswap,
            routing=None,
            peer=endpoint.peer_id,
            upload_secret=bytes(32),
            settings=RegistrySettings(give_up_s=give_up_s, wait_heads_s=wait_heads_s),
        ) as registry,
        open_server(wrap(make_app(registry, door)), listen=[listen], tls=tls, access_log=access_log) as server,
    ):
        yield server


@asynccontextmanager
async def _open_blobs(
    directory: Path, database: Database, on_disk: bool
) -> AsyncIterator[tuple[Blockstore, BlobStore]]:
    if on_disk:
        async with open_blobstore(directory, database) as stores:
            yield stores
    else:
        blocks = MemoryBlockstore()
        yield blocks, MemoryBlobStore(blocks)

"""A whole registry behind its HTTP front, all stores in memory, alone in its swarm."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.memory import MemoryBlobStore, MemoryBlockstore
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.database import open_database
from ipfsreg.http.app import make_app
from ipfsreg.http.server import Server, open_server
from ipfsreg.registry.service import RegistrySettings, open_registry
from ipfsreg.testing.network import MemorySwarm, peer_of


@asynccontextmanager
async def open_front_door(directory: Path, listen: str = "127.0.0.1:0") -> AsyncIterator[Server]:
    """Serve an empty registry on *listen*; what has to be a file lies in *directory*."""
    blocks = MemoryBlockstore()
    async with (
        open_database(directory / "db") as database,
        open_bitswap(MemorySwarm().endpoint("alice"), blocks) as bitswap,
        open_registry(
            database=database,
            names=MemoryNames(),
            blobs=MemoryBlobStore(blocks),
            bitswap=bitswap,
            peer=peer_of("alice"),
            upload_secret=bytes(32),
            settings=RegistrySettings(),
        ) as registry,
        open_server(make_app(registry), listen=[listen]) as server,
    ):
        yield server

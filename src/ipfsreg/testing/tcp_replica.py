"""Replicas of the names over real connections and real disks, without the registry above them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.crdt.replica import Replica, open_replica
from ipfsreg.database import open_database
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.pubsub.service import open_pubsub

SWARM_KEY = b"\x5a" * 32


@asynccontextmanager
async def open_replica_on_tcp(directory: Path) -> AsyncIterator[tuple[Host, Replica]]:
    """A replica in the new *directory*, listening on loopback; all of them share one swarm key."""
    await trio.Path(directory).mkdir()
    settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), psk=SWARM_KEY)
    async with (
        open_database(directory / "node.db") as database,
        open_blobstore(directory, database) as (store, _),
        open_network(Identity.generate(), settings) as host,
        open_bitswap(host, store) as bitswap,
        open_pubsub(host) as pubsub,
        pubsub.join("names") as topic,
        open_replica(database, store, bitswap, topic, signer=host, network=host) as replica,
    ):
        yield host, replica

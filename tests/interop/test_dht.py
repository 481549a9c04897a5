"""Kademlia with js-libp2p and Kubo: providers and peers found by either's servers, and layers by their CID alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import trio

from ipfsreg.bitswap.service import Bitswap, open_bitswap
from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.database import open_database
from ipfsreg.datastore import psk_of
from ipfsreg.dht.service import Dht, open_dht
from ipfsreg.dht.settings import LAN_PROTOCOL, PUBLIC_PROTOCOL, DhtSettings
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.p2p.addresses import split_peer
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.fetching import fetch_file
from ipfsreg.testing.js_peer import JsPeer, open_js_peer
from ipfsreg.testing.kubo_peer import open_kubo_peer
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
POLL_S = 0.1

protocols = pytest.mark.parametrize("protocol", [PUBLIC_PROTOCOL, "/ipfsreg-interop/kad/1.0.0"])


@dataclass(frozen=True, eq=False)
class Ours:
    """A node of ours as far as routing and blocks go."""

    host: Host
    dht: Dht
    blobs: BlobStore
    bitswap: Bitswap

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.host.peer_id, tuple(self.host.listen_addrs()))

    @property
    def peer(self) -> PeerId:
        return self.host.peer_id

    async def wait_table(self, *peers: PeerId) -> None:
        """Return when *peers* are in the routing table, and we have looked for ourselves."""
        while any(peer not in self.dht.table for peer in peers):  # noqa: ASYNC110 - it tells no such event
            await trio.sleep(POLL_S)
        await self.dht.bootstrapped.wait()

    async def wait_provider(self, cid: Cid, provider: PeerInfo) -> None:
        """Look for providers until *provider* is among them, with its addresses."""
        while True:
            async for found in self.dht.find_providers(cid):
                if found.peer == provider.peer and set(found.addrs) >= set(provider.addrs):
                    return
            await trio.sleep(POLL_S)


@asynccontextmanager
async def open_ours(directory: Path, name: str, protocol: str) -> AsyncIterator[Ours]:
    async with (
        open_network(Identity.generate(), NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))) as host,
        open_database(directory / f"{name}.db") as database,
        open_dht(host, database, DhtSettings(private=True, protocols=(protocol,))) as dht,
        open_blobstore(directory / name, database) as (store, blobs),
        open_bitswap(host, store, dht) as bitswap,
    ):
        yield Ours(host, dht, blobs, bitswap)


async def wait_dht_peers(js: JsPeer, count: int) -> None:
    while await js.dht_peers() < count:  # noqa: ASYNC110 - it tells no such event
        await trio.sleep(POLL_S)


def some_cid() -> Cid:
    """Of a block that nobody has."""
    return Cid.of(RAW, os.urandom(32))


def addrs_of(found: Sequence[str] | None) -> set[str]:
    """Without the peer ID some end in."""
    return {addr.split("/p2p/")[0] for addr in found or ()}


# --------------------------------------------------------------------------------------------------------- js-libp2p


@protocols
async def test_we_find_each_other_through_a_server_of_js_libp2p(protocol: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_js_peer(kad=protocol) as js,
            open_ours(tmp_path, "alice", protocol) as alice,
            open_ours(tmp_path, "bob", protocol) as bob,
        ):
            for ours in (alice, bob):
                await ours.host.connect(js.info)
                await ours.wait_table(js.peer)
            await wait_dht_peers(js, 2)
            found = await bob.dht.find_peer(alice.peer)
            assert found is not None
            assert set(found.addrs) == set(alice.info.addrs)
            cid = some_cid()
            await alice.dht.provide([cid])
            await bob.wait_provider(cid, alice.info)
            assert addrs_of((await js.find_providers(str(cid)))[alice.peer]) == set(alice.info.addrs)


@protocols
async def test_peers_of_js_libp2p_find_each_other_through_our_server(protocol: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_ours(tmp_path, "ours", protocol) as ours,
            open_js_peer(kad=protocol, name="js one") as one,
            open_js_peer(kad=protocol, name="js two") as two,
        ):
            for js in (one, two):
                await js.dial(ours.info)
                await wait_dht_peers(js, 1)
            await ours.wait_table(one.peer, two.peer)
            assert addrs_of(await two.find_peer(one.peer)) >= set(one.info.addrs)
            cid = some_cid()
            assert await one.provide(str(cid)) >= 1
            assert addrs_of((await two.find_providers(str(cid)))[one.peer]) >= set(one.info.addrs)
            await ours.wait_provider(cid, one.info)


# -------------------------------------------------------------------------------------------------------------- Kubo


async def test_we_find_each_other_through_a_server_of_kubo(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_kubo_peer(tmp_path / "kubo") as kubo,
            open_ours(tmp_path, "alice", LAN_PROTOCOL) as alice,
            open_ours(tmp_path, "bob", LAN_PROTOCOL) as bob,
        ):
            for ours in (alice, bob):
                await ours.host.connect(kubo.info)
                await ours.wait_table(kubo.peer)
            cid = some_cid()
            await alice.dht.provide([cid])
            await bob.wait_provider(cid, alice.info)
            found = await bob.dht.find_peer(alice.peer)
            assert found is not None
            assert set(found.addrs) == set(alice.info.addrs)


async def test_kubo_finds_what_another_kubo_has_through_our_server(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_ours(tmp_path, "ours", LAN_PROTOCOL) as ours,
            open_kubo_peer(tmp_path / "one", name="kubo one") as one,
            open_kubo_peer(tmp_path / "two", name="kubo two") as two,
        ):
            for kubo in (one, two):
                await kubo.dial(ours.info)
            await ours.wait_table(one.peer, two.peer)
            content = os.urandom(3 * MIB)
            path = trio.Path(tmp_path / "content")
            await path.write_bytes(content)
            root = await one.add(Path(path))
            await ours.wait_provider(Cid.parse(root), one.info)
            assert await two.cat(root) == (hashlib.sha256(content).hexdigest(), len(content))
            assert addrs_of(await two.find_peer(one.peer)) >= set(one.info.addrs)


@pytest.mark.parametrize("kind", ["helia", "kubo"])
async def test_we_find_and_fetch_what_only_they_hold_by_its_cid(kind: str, tmp_path: Path) -> None:
    protocol = PUBLIC_PROTOCOL if kind == "helia" else LAN_PROTOCOL
    path = tmp_path / "content"
    with trio.fail_after(60):
        await trio.Path(path).write_bytes(os.urandom(5 * MIB))
        opened = open_js_peer(kad=protocol, helia=True) if kind == "helia" else open_kubo_peer(tmp_path / "kubo")
        async with (
            open_ours(tmp_path, "bootstrapper", protocol) as bootstrapper,
            open_ours(tmp_path, "bob", protocol) as bob,
            opened as theirs,
        ):
            await theirs.dial(bootstrapper.info)
            await bootstrapper.wait_table(theirs.peer)
            root = await theirs.add(path)
            if isinstance(theirs, JsPeer):
                await wait_dht_peers(theirs, 1)
                await theirs.provide(root)
            await bootstrapper.wait_provider(Cid.parse(root), theirs.info)
            await bob.host.connect(bootstrapper.info)
            await fetch_file(bob.bitswap, bob.blobs, path, root)


# ------------------------------------------------------------------------------------------------- layers of a node


def push_layer(node: Daemon, content: bytes) -> str:
    """Push a layer; return its root."""
    with Client(node.http) as client:
        (digest,) = client.push_image("team/app", "1.0", [content]).layers
    return str(httpx.head(node.url(f"/v2/team/app/blobs/{digest}")).headers["X-Ipfs-Roots"])


@pytest.mark.parametrize("kind", ["helia", "kubo"])
async def test_a_layer_is_found_by_its_cid_and_one_node_that_lacks_it(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(100), Cluster(tmp_path / "nodes") as cluster:
        alice = cluster.start("alice")
        bob = cluster.start("bob", join=[alice])
        content = os.urandom(5 * MIB)
        root = push_layer(alice, content)
        bob.wait_manifest("team/app", "1.0")
        psk = psk_of(alice.config)
        addr, peer = split_peer(bob.multiaddr)
        assert peer is not None
        opened = (
            open_js_peer(psk=psk, kad=PUBLIC_PROTOCOL, helia=True)
            if kind == "helia"
            else open_kubo_peer(tmp_path / "kubo", psk=psk)
        )
        async with opened as theirs:
            await theirs.dial(PeerInfo(peer, (addr,)))
            assert await theirs.cat(root, 60) == (hashlib.sha256(content).hexdigest(), len(content))
            # Nobody told it of alice; bob did not fetch the layer for it.
            holder = alice.multiaddr.rpartition("/")[2]
            assert any(holder in str(connection) for connection in await theirs.connections())

"""Blocks with Kubo and Helia: they fetch layers from us by their roots, and we fetch what only they hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
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
from ipfsreg.ipld.builder import KUBO_V1, LITE, PROFILES, V0_2015, V1_2025, Profile, build
from ipfsreg.p2p.addresses import split_peer
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.fetching import fetch_file
from ipfsreg.testing.js_peer import open_js_peer
from ipfsreg.testing.kubo_peer import open_kubo_peer
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.interop

MIB = 1024 * 1024
GIB = 1024 * MIB
LARGE = 256 * MIB
"""What Helia is given: it keeps all blocks in memory, twice the size of the file. Kubo gets a gibibyte."""


@dataclass(frozen=True)
class Ours:
    """A node of ours as far as blocks go."""

    host: Host
    blobs: BlobStore
    bitswap: Bitswap

    async def fetch(self, path: Path, root: str) -> None:
        """Fetch what the file at *path* holds by its root."""
        await fetch_file(self.bitswap, self.blobs, path, root)


@asynccontextmanager
async def open_ours(directory: Path) -> AsyncIterator[Ours]:
    async with (
        open_network(Identity.generate(), NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))) as host,
        open_database(directory.with_suffix(".db")) as database,
        open_blobstore(directory, database) as (store, blobs),
        open_bitswap(host, store) as bitswap,
    ):
        yield Ours(host, blobs, bitswap)


def write_file(path: Path, size: int) -> Path:
    """A file of content that no other has."""
    with path.open("wb") as file:
        for begin in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - begin)))
    return path


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sizes_for(profile: Profile) -> list[int]:
    """Nothing, one leaf, its edge, a few leaves, and one more than an inner node holds."""
    chunk = profile.chunk_bytes
    beyond = [chunk * profile.width + 1] if profile.width < 1000 else []
    return [0, 1, chunk, chunk + 1, 3 * chunk + 7, *beyond]


# ------------------------------------------------------------------------------------------------ they fetch from us


@dataclass(frozen=True)
class Pushed:
    """Layers on a real node."""

    daemon: Daemon
    psk: bytes
    layers: list[Path]
    roots: list[str]

    @property
    def info(self) -> PeerInfo:
        addr, peer = split_peer(self.daemon.multiaddr)
        assert peer is not None
        return PeerInfo(peer, (addr,))


def push_layers(cluster: Cluster, directory: Path, sizes: list[int]) -> Pushed:
    """Start a node and push layers of these sizes to it."""
    alice = cluster.start("alice")
    layers = [write_file(directory / f"layer-{number}", size) for number, size in enumerate(sizes)]
    with Client(alice.http) as client:
        image = client.push_image("team/app", "1.0", layers)
    roots = [httpx.head(alice.url(f"/v2/team/app/blobs/{digest}")).headers["X-Ipfs-Roots"] for digest in image.layers]
    psk = psk_of(alice.config)
    assert psk is not None
    return Pushed(alice, psk, layers, roots)


LAYERS = [1, 100, MIB, MIB + 1, 20 * MIB + 5]


@pytest.mark.timeout(240)
async def test_kubo_fetches_layers_by_their_roots(tmp_path: Path) -> None:
    with trio.fail_after(220), Cluster(tmp_path / "nodes") as cluster:
        pushed = push_layers(cluster, tmp_path, [*LAYERS, GIB])
        async with open_kubo_peer(tmp_path / "kubo", psk=pushed.psk) as kubo:
            await kubo.dial(pushed.info)
            for layer, root in zip(pushed.layers, pushed.roots, strict=True):
                assert await kubo.cat(root, timeout_s=150) == (sha256_of(layer), layer.stat().st_size)


async def test_helia_fetches_layers_by_their_roots_and_makes_the_same_roots(tmp_path: Path) -> None:
    with trio.fail_after(110), Cluster(tmp_path / "nodes") as cluster:
        pushed = push_layers(cluster, tmp_path, [*LAYERS, LARGE])
        async with open_js_peer(psk=pushed.psk, helia=True) as helia:
            await helia.dial(pushed.info)
            for layer, root in zip(pushed.layers, pushed.roots, strict=True):
                assert await helia.cat(root) == (sha256_of(layer), layer.stat().st_size)
                if layer.stat().st_size < LARGE:
                    assert await helia.add(layer) == root


async def test_a_layer_that_kubo_keeps_outlives_the_node_it_was_pushed_to(tmp_path: Path) -> None:
    with trio.fail_after(100), Cluster(tmp_path / "nodes") as cluster:
        pushed = push_layers(cluster, tmp_path, [5 * MIB + 3])
        bob = cluster.start("bob", join=[pushed.daemon])
        bob.wait_manifest("team/app", "1.0")
        async with open_kubo_peer(tmp_path / "kubo", psk=pushed.psk) as kubo:
            await kubo.dial(pushed.info)
            await kubo.cat(pushed.roots[0])
            pushed.daemon.kill()
            addr, peer = split_peer(bob.multiaddr)
            assert peer is not None
            await kubo.dial(PeerInfo(peer, (addr,)))
            digest = f"sha256:{sha256_of(pushed.layers[0])}"
            with Client(bob.http) as client:
                pulled = await trio.to_thread.run_sync(client.pull_blob, "team/app", digest)
            assert pulled == 5 * MIB + 3


# ------------------------------------------------------------------------------------------------ we fetch from them


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
async def test_we_fetch_files_of_every_profile_that_only_helia_holds(profile: Profile, tmp_path: Path) -> None:
    with trio.fail_after(100):
        async with open_js_peer(helia=True) as helia, open_ours(tmp_path / "ours") as ours:
            await ours.host.connect(helia.info)
            for size in sizes_for(profile):
                path = write_file(tmp_path / f"{size}", size)
                root = await helia.add(path, profile)
                assert root == str(build(path.read_bytes(), profile).root)
                await ours.fetch(path, root)


@pytest.mark.parametrize("profile", [V0_2015, KUBO_V1], ids=lambda profile: profile.name)
async def test_we_fetch_files_laid_out_for_streams(profile: Profile, tmp_path: Path) -> None:
    with trio.fail_after(100):
        async with open_js_peer(helia=True) as helia, open_ours(tmp_path / "ours") as ours:
            await ours.host.connect(helia.info)
            path = write_file(tmp_path / "content", 20 * MIB + 1)
            await ours.fetch(
                path, await helia.add(path, Profile("narrow", 262144, 7, profile.raw_leaves, 1), trickled=True)
            )


async def test_we_fetch_256_mib_that_only_helia_holds(tmp_path: Path) -> None:
    with trio.fail_after(100):
        async with open_js_peer(helia=True) as helia, open_ours(tmp_path / "ours") as ours:
            await ours.host.connect(helia.info)
            path = write_file(tmp_path / "content", LARGE)
            await ours.fetch(path, await helia.add(path, V1_2025))


@pytest.mark.timeout(240)
async def test_we_fetch_files_that_only_kubo_holds(tmp_path: Path) -> None:
    with trio.fail_after(220):
        async with open_kubo_peer(tmp_path / "kubo") as kubo, open_ours(tmp_path / "ours") as ours:
            await ours.host.connect(kubo.info)
            for size in [*sizes_for(V0_2015), GIB]:
                path = write_file(tmp_path / f"{size}", size)
                await ours.fetch(path, await kubo.add(path))


async def test_files_of_every_profile_come_to_us_through_kubo(tmp_path: Path) -> None:
    with trio.fail_after(110):
        async with open_kubo_peer(tmp_path / "kubo") as kubo:
            files: list[tuple[Path, str]] = []
            async with open_js_peer(helia=True) as helia:
                await kubo.dial(helia.info)
                for profile in (V1_2025, KUBO_V1, LITE):
                    for size in sizes_for(profile):
                        path = write_file(tmp_path / f"{profile.name}-{size}", size)
                        files.append((path, await helia.add(path, profile)))
                        await kubo.cat(files[-1][1])
            async with open_ours(tmp_path / "ours") as ours:
                await ours.host.connect(kubo.info)
                for path, root in files:
                    await ours.fetch(path, root)

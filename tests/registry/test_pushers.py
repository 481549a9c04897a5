"""Whom a pull turns to first: on real connections, with names that say who pushed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.blockstore.memory import MemoryBlobStore, MemoryBlockstore
from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.database import open_database
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, TagRecord
from ipfsreg.registry.pushers import MAX_PUSHERS, Pushers
from ipfsreg.registry.records import Records
from ipfsreg.registry.service import LocalRegistry, RegistrySettings, open_registry
from ipfsreg.testing.content import pattern
from ipfsreg.testing.network import peer_of

APP = parse_repository("team/app")
LAYER = pattern(3 * 1024 * 1024 + 5)
PATIENCE_S = 5.0
"""Before content routing is asked; whoever came to the blob sooner did so without."""


class Directory:
    """Content routing that says what it is told to, and counts who asks."""

    def __init__(self, *providers: PeerInfo) -> None:
        self.providers = providers
        self.walks = 0

    async def provide(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()

    async def unprovide(self, cids: Iterable[Cid]) -> None:
        await trio.lowlevel.checkpoint()

    async def find_providers(self, cid: Cid, *, count: int = 20) -> AsyncIterator[PeerInfo]:
        self.walks += 1
        await trio.lowlevel.checkpoint()
        for provider in self.providers:
            yield provider

    async def find_peer(self, peer: PeerId) -> PeerInfo | None:
        self.walks += 1
        await trio.lowlevel.checkpoint()
        return None


@dataclass(frozen=True, slots=True)
class Node:
    """One node's registry on real sockets."""

    host: Host
    registry: LocalRegistry
    names: MemoryNames
    directory: Directory

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.host.peer_id, tuple(self.host.listen_addrs()))

    async def read(self, digest: Digest) -> bytes:
        async with await self.registry.open_blob(APP, digest) as blob:
            return b"".join([bytes(piece) async for piece in blob.stream(0, blob.stat.size)])  # type: ignore[arg-type]


@asynccontextmanager
async def open_node(directory: Path, routing: Directory, *, patience_s: float = PATIENCE_S) -> AsyncIterator[Node]:
    identity, store = Identity.generate(), MemoryBlockstore()
    names, blobs = MemoryNames(identity.peer_id), MemoryBlobStore(store)
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(directory / f"{identity.peer_id}.db"))
        settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), psk=bytes(32))
        host = await stack.enter_async_context(open_network(identity, settings))
        bitswap = await stack.enter_async_context(
            open_bitswap(host, store, routing, BitswapSettings(patience_s=patience_s))
        )
        registry = await stack.enter_async_context(
            open_registry(
                database=database,
                names=names,
                blobs=blobs,
                bitswap=bitswap,
                routing=routing,
                peer=identity.peer_id,
                upload_secret=bytes(32),
                settings=RegistrySettings(give_up_s=20.0),
            )
        )
        yield Node(host, registry, names, routing)


async def push(node: Node) -> Digest:
    """The layer, with its link."""
    session = await node.registry.start_upload(APP)
    try:
        await session.write(LAYER)
        stat = await session.finish(Digest.of(LAYER))
    finally:
        node.registry.release_upload(session)
    await node.names.commit(
        [Put(catalog.link_key(APP, stat.digest), LinkRecord(stat.size, stat.root).encode(stat.digest))]
    )
    return stat.digest


def learn(node: Node, pusher: Node) -> None:
    """Have the names of *pusher*, as gossip over others would bring them."""
    node.names.author = pusher.host.peer_id
    node.names.receive([Put(key, value) for key, value in pusher.names.scan("/")])


@asynccontextmanager
async def tarpit() -> AsyncIterator[str]:
    """An address at which nobody ever says a word."""
    with trio.socket.socket() as listener:
        await listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"/ip4/127.0.0.1/tcp/{listener.getsockname()[1]}"


async def test_who_pushed_it_is_dialled_before_content_routing_is_asked(tmp_path: Path) -> None:
    async with open_node(tmp_path, Directory()) as alice, open_node(tmp_path, Directory()) as bob:
        digest = await push(alice)
        learn(bob, alice)
        bob.host.add_addrs(alice.info)
        assert bob.host.peers() == []
        with trio.fail_after(PATIENCE_S):
            assert await bob.read(digest) == LAYER
        assert bob.directory.walks == 0


async def test_who_pushed_it_is_not_dialled_where_somebody_near_has_it(tmp_path: Path) -> None:
    async with (
        open_node(tmp_path, Directory()) as alice,
        open_node(tmp_path, Directory()) as carol,
        open_node(tmp_path, Directory()) as bob,
    ):
        digest = await push(alice)
        await push(carol)
        learn(bob, alice)
        bob.host.add_addrs(alice.info)
        await bob.host.connect(carol.info)
        with trio.fail_after(PATIENCE_S):
            assert await bob.read(digest) == LAYER
        assert bob.host.peers() == [carol.host.peer_id]


async def test_a_pusher_that_is_gone_costs_a_pull_nothing(tmp_path: Path) -> None:
    async with (
        tarpit() as silent,
        open_node(tmp_path, Directory()) as carol,
        open_node(tmp_path, Directory()) as bob,
    ):
        digest = await push(carol)
        learn(bob, carol)
        gone = bob.names.author = Identity.generate().peer_id
        bob.host.add_addrs(PeerInfo(gone, (silent,)))
        await bob.host.connect(carol.info)
        with trio.fail_after(2):
            assert await bob.read(digest) == LAYER
        assert bob.directory.walks == 0


async def test_content_routing_is_asked_as_early_as_ever_where_the_pusher_is_gone(tmp_path: Path) -> None:
    async with tarpit() as silent, open_node(tmp_path, Directory()) as carol:
        digest = await push(carol)
        async with open_node(tmp_path, Directory(carol.info), patience_s=0.5) as bob:
            learn(bob, carol)
            gone = bob.names.author = Identity.generate().peer_id
            bob.host.add_addrs(PeerInfo(gone, (silent,)))
            with trio.fail_after(3):
                assert await bob.read(digest) == LAYER
            assert bob.directory.walks == 1


async def test_a_pusher_that_has_moved_is_found_while_its_old_address_is_silent(tmp_path: Path) -> None:
    async with tarpit() as silent, open_node(tmp_path, Directory()) as alice:
        digest = await push(alice)
        async with open_node(tmp_path, Directory(alice.info), patience_s=0.5) as bob:
            learn(bob, alice)
            bob.host.add_addrs(PeerInfo(alice.host.peer_id, (silent,)))
            with trio.fail_after(5):
                assert await bob.read(digest) == LAYER


# ------------------------------------------------------------------ who that is


def pushers_of(names: MemoryNames) -> Pushers:
    return Pushers(names, Records(names))


def tagged(*movers: PeerId) -> list[Put]:
    digest = Digest.of(b"a manifest")
    return [
        Put(f"{catalog.tags_prefix(APP)}v{number}", TagRecord(digest, 0, mover).encode())
        for number, mover in enumerate(movers)
    ]


def link(digest: Digest) -> Put:
    return Put(catalog.link_key(APP, digest), LinkRecord(5, Cid.decode(b"\x01\x55\x12\x20" + bytes(32))).encode(digest))


async def test_the_authors_of_a_link_come_first_and_else_who_moved_tags() -> None:
    digest = Digest.of(LAYER)
    signed, unsigned = MemoryNames(peer_of("alice")), MemoryNames()
    for names in (signed, unsigned):
        names.receive([link(digest), *tagged(peer_of("bob"), peer_of("carol"), peer_of("bob"))])
    assert pushers_of(signed).of(APP, digest) == [peer_of("alice")]
    assert pushers_of(unsigned).of(APP, digest) == [peer_of("bob"), peer_of("carol")]


async def test_few_are_asked_first_however_many_have_written() -> None:
    names = MemoryNames()
    names.receive(tagged(*(peer_of(f"peer {number}") for number in range(200))))
    assert len(pushers_of(names).of(APP, Digest.of(LAYER))) == MAX_PUSHERS

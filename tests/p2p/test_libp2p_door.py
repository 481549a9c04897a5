"""py-libp2p's protocols on our host, speaking with a stock py-libp2p host over real TCP."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import multiaddr
import pytest
import trio
from libp2p import create_yamux_muxer_option, new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.exceptions import StreamFailure
from libp2p.host.ping import PingService
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.exceptions import StreamEOF, StreamReset
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo as TheirPeerInfo
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as NoiseTransport

from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.libp2p_door import open_door
from ipfsreg.p2p.ping import measure_rtt
from ipfsreg.peer_id import PeerId

ECHO, SHOUT, BROKEN = TProtocol("/test/echo/1"), TProtocol("/test/shout/1"), TProtocol("/test/broken/1")

# What py-libp2p leaves behind is not ours to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def collect() -> Iterator[None]:
    """Sockets that py-libp2p forgets to close are found while the filter above holds."""
    yield
    gc.collect()


async def echo(stream: INetStream) -> None:
    """A handler as py-libp2p's examples write them."""
    while True:
        try:
            data = await stream.read(1024)
        except StreamEOF:
            break
        await stream.write(data)
    await stream.close()


async def shout(stream: INetStream) -> None:
    await stream.write((await stream.read(1024)).upper())
    await stream.close()


async def broken(stream: INetStream) -> None:
    await stream.read(1024)
    raise ZeroDivisionError("a bug in a handler")


@asynccontextmanager
async def open_stock_host() -> AsyncIterator[IHost]:
    """A plain py-libp2p host, which shouts."""
    key_pair = create_new_key_pair()
    host = new_host(
        key_pair=key_pair,
        sec_opt={NOISE: NoiseTransport(key_pair, create_noise_key_pair().private_key)},
        muxer_opt=create_yamux_muxer_option(),
    )
    host.set_stream_handler(SHOUT, shout)
    async with host.run([multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host


@asynccontextmanager
async def open_mounted() -> AsyncIterator[tuple[Host, BasicHost]]:
    """Our host, and py-libp2p's host on its door with two protocols."""
    settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))
    async with open_network(Identity.generate(), settings) as network, open_door(network, [ECHO, BROKEN]) as door:
        host = BasicHost(network=door)
        host.set_stream_handler(ECHO, echo)
        host.set_stream_handler(BROKEN, broken)
        yield network, host


def theirs(network: Host) -> TheirPeerInfo:
    return TheirPeerInfo(ID(network.peer_id.raw), [multiaddr.Multiaddr(addr) for addr in network.listen_addrs()])


def ours(host: IHost) -> PeerInfo:
    addrs = tuple(str(addr).partition("/p2p/")[0] for addr in host.get_addrs())
    return PeerInfo(PeerId(host.get_id().to_bytes()), addrs)


async def test_a_stock_peer_speaks_a_protocol_mounted_on_our_host() -> None:
    async with open_mounted() as (network, _), open_stock_host() as stock:
        with trio.fail_after(30):
            await stock.connect(theirs(network))
            for _ in range(3):
                stream = await stock.new_stream(ID(network.peer_id.raw), [ECHO])
                await stream.write(b"hello ")
                await stream.write(b"door")
                received = b""
                while len(received) < 10:
                    received += await stream.read(1024)
                assert received == b"hello door"
                await stream.close()


async def test_a_mounted_protocol_dials_and_opens_streams_through_our_host() -> None:
    async with open_mounted() as (network, host), open_stock_host() as stock:
        with trio.fail_after(30):
            await host.connect(TheirPeerInfo(stock.get_id(), stock.get_transport_addrs()))
            assert network.peers() == [PeerId(stock.get_id().to_bytes())]
            assert host.get_connected_peers() == [stock.get_id()]
            stream = await host.new_stream(stock.get_id(), [TProtocol("/nobody/speaks/1"), SHOUT])
            assert stream.get_protocol() == SHOUT
            await stream.write(b"hello")
            assert await stream.read(1024) == b"HELLO"
            with pytest.raises(StreamEOF):
                await stream.read(1024)
            await stream.close()
            with pytest.raises(StreamFailure):
                await host.new_stream(stock.get_id(), [TProtocol("/nobody/speaks/1")])
            (rtt,) = await PingService(host).ping(stock.get_id())
            assert rtt >= 0


async def test_a_stock_peer_and_we_identify_and_ping_each_other() -> None:
    async with open_mounted() as (network, _), open_stock_host() as stock:
        with trio.fail_after(30):
            async with network.events() as events:
                await network.connect(ours(stock))
                assert await measure_rtt(network, ours(stock).peer) < 10
                while network.protocols_of(ours(stock).peer) is None:
                    await anext(events)
                (rtt,) = await PingService(stock).ping(ID(network.peer_id.raw))
                assert rtt >= 0
            protocols = network.protocols_of(ours(stock).peer)
            assert protocols is not None
            assert SHOUT in protocols


async def test_a_handler_that_fails_costs_its_stream_and_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    async with open_mounted() as (network, _), open_stock_host() as stock:
        with trio.fail_after(30):
            await stock.connect(theirs(network))
            stream = await stock.new_stream(ID(network.peer_id.raw), [BROKEN])
            await stream.write(b"x")
            with pytest.raises((StreamReset, StreamEOF)):
                await stream.read(1024)
            stream = await stock.new_stream(ID(network.peer_id.raw), [ECHO])
            await stream.write(b"still here")
            assert await stream.read(1024) == b"still here"
    assert "a bug in a handler" in caplog.text


async def test_peers_come_and_go_in_their_terms_too() -> None:
    settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))
    async with open_mounted() as (alice, host), open_network(Identity.generate(), settings) as bob:
        bobs_id = ID(bob.peer_id.raw)
        assert host.get_id() == ID(alice.peer_id.raw)
        with trio.fail_after(10):
            await bob.connect(PeerInfo(alice.peer_id, tuple(alice.listen_addrs())))
            while host.get_connected_peers() != [bobs_id]:  # noqa: ASYNC110 - theirs has no event for it
                await trio.sleep(0.01)
            connection = host.get_network().get_connections(bobs_id)[0]
            assert not connection.is_closed
            await host.disconnect(bobs_id)
            while host.get_connected_peers():  # noqa: ASYNC110 - theirs has no event for it
                await trio.sleep(0.01)
            assert connection.is_closed
            assert alice.peers() == []
            nobody = Identity.generate().peer_id
            with pytest.raises(SwarmException):
                await host.connect(TheirPeerInfo(ID(nobody.raw), [multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/1")]))


async def test_the_private_key_stays_with_the_node() -> None:
    async with open_mounted() as (alice, host):
        key = host.get_private_key()
        assert key.get_public_key().verify(b"data", key.sign(b"data"))
        assert key.get_public_key().serialize() == alice.public_key
        with pytest.raises(SwarmException):
            key.serialize()

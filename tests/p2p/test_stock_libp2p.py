"""Our connection and a stock py-libp2p host, over real sockets, both ways."""

from __future__ import annotations

import gc
import logging
import random
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import multiaddr
import pytest
import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_static_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID, Transport
from libp2p.stream_muxer.yamux.yamux import Yamux

from ipfsreg.errors import ConnectionLost, NetworkError, ProtocolUnsupported
from ipfsreg.p2p.connection import Connection, secure
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Stream
from ipfsreg.peer_id import PeerId

ECHO = "/echo/1.0.0"
PAYLOAD = random.Random(1).randbytes(3_000_000)


@pytest.fixture(autouse=True)
def sockets_left_behind() -> Iterator[None]:
    """py-libp2p 0.8.1 leaves sockets it dialled to the garbage collector: let it have them here, and quietly."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


async def their_echo(stream: Any) -> None:
    try:
        while piece := await stream.read(65536):
            await stream.write(piece)
    except Exception:  # whatever it calls the end of a stream
        logging.getLogger(__name__).debug("ended")
    await stream.close()


async def our_echo(stream: Stream) -> None:
    try:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.send_eof()
    except NetworkError:
        await stream.reset()
    await stream.aclose()


@asynccontextmanager
async def stock_host() -> AsyncIterator[tuple[Any, int]]:
    """A host as its documentation builds it, and its port."""
    keys = create_new_key_pair()
    host = new_host(
        key_pair=keys,
        sec_opt={PROTOCOL_ID: Transport(libp2p_keypair=keys, noise_privkey=create_static_key_pair().private_key)},
        muxer_opt={TProtocol("/yamux/1.0.0"): Yamux},
    )
    host.set_stream_handler(TProtocol(ECHO), their_echo)
    async with host.run([multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        yield host, int(host.get_addrs()[0].value_for_protocol("tcp"))


@asynccontextmanager
async def our_listener(identity: Identity) -> AsyncIterator[int]:
    """Answers on ECHO; yields its port."""

    async def serve(stream: trio.SocketStream) -> None:
        connection = await secure(stream, identity=identity, psk=None, dialer=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                while True:
                    nursery.start_soon(our_echo, await connection.accept_stream({ECHO}))
            except ConnectionLost:
                return

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(partial(trio.serve_listeners, serve, listeners))
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def check_echo(connection: Connection, *, lazy: bool) -> None:
    stream = await connection.open_stream([ECHO], lazy=lazy)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(PAYLOAD)
            await stream.send_eof()

        nursery.start_soon(send)
        received = bytearray()
        while piece := await stream.receive_some():
            received += piece
    assert received == PAYLOAD
    await stream.aclose()


async def test_we_dial_a_stock_host() -> None:
    with trio.fail_after(30):
        async with stock_host() as (host, port), trio.open_nursery() as nursery:
            tcp = await trio.open_tcp_stream("127.0.0.1", port)
            expected = PeerId.parse(str(host.get_id()))
            connection = await secure(tcp, identity=Identity.generate(), psk=None, dialer=True, expected=expected)
            nursery.start_soon(connection.run)
            await check_echo(connection, lazy=False)
            await check_echo(connection, lazy=True)
            assert (await connection.open_stream(["/nope", ECHO])).protocol == ECHO
            refused = await connection.open_stream(["/nope"], lazy=True)
            with pytest.raises(ProtocolUnsupported):
                await refused.receive_some()
            assert await connection.ping() > 0
            await connection.aclose("done")


async def test_a_stock_host_dials_us() -> None:
    identity = Identity.generate()
    with trio.fail_after(30):
        async with our_listener(identity) as port, stock_host() as (host, _):
            peer = info_from_p2p_addr(multiaddr.Multiaddr(f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}"))
            await host.connect(peer)
            for _ in range(3):
                stream = await host.new_stream(peer.peer_id, [TProtocol(ECHO)])
                received = bytearray()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(stream.write, PAYLOAD)
                    while len(received) < len(PAYLOAD):
                        received += await stream.read(65536)
                assert received == PAYLOAD
                await stream.close()

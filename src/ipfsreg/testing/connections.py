"""Pairs of connections for tests, and the ways a byte stream can arrive."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
import trio.testing

from ipfsreg.p2p.connection import Connection, ConnectionLimits, MemoryBudget, secure
from ipfsreg.p2p.identity import Identity


def deliveries(data: bytes) -> list[list[bytes]]:
    """The ways a byte stream may be cut: whole, byte by byte, and in two at every place."""
    halves = [[data[:cut], data[cut:]] for cut in range(1, len(data))]
    return [[data], [data[i : i + 1] for i in range(len(data))], *halves]


async def tcp_pair() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a TCP connection over loopback."""
    listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
    async with listener:
        host, port = listener.socket.getsockname()
        dialer = await trio.open_tcp_stream(host, port)
        return dialer, await listener.accept()


@asynccontextmanager
async def open_pair(
    *,
    psk: bytes | None = None,
    streams: tuple[trio.abc.Stream, trio.abc.Stream] | None = None,
    limits: ConnectionLimits | None = None,
    budget: MemoryBudget | None = None,
) -> AsyncIterator[tuple[Connection, Connection]]:
    """Two connected peers, alice who dialled and bob (with *limits* and *budget*), carried while the block lasts.

    Over a pair in memory unless *streams* are given: nothing there waits for the real clock, nor for the peer to read.
    """
    alice, bob = Identity.generate(), Identity.generate()
    near, far = streams or trio.testing.memory_stream_pair()
    ends: list[Connection] = []

    async def answer() -> None:
        ends.append(await secure(far, identity=bob, psk=psk, dialer=False, limits=limits, budget=budget))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer)
        ours = await secure(near, identity=alice, psk=psk, dialer=True, expected=bob.peer_id)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.run)
        nursery.start_soon(ends[0].run)
        yield ours, ends[0]
        nursery.cancel_scope.cancel()

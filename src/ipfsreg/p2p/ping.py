"""/ipfs/ping/1.0.0: thirty-two bytes there and back. Spec: libp2p/specs ping/ping.md."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator

import trio

from ipfsreg.errors import NetworkError, PeerMisbehaved, StreamReset
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PROTOCOL = "/ipfs/ping/1.0.0"
PAYLOAD_BYTES = 32
IDLE_S = 60.0
"""Seconds a peer may leave its ping stream unused."""


async def measure_rtt(network: Network, peer: PeerId) -> float:
    """Return the seconds a ping to *peer* and back takes. Waits as long as the caller lets it.

    Raises:
        PeerMisbehaved: other bytes came back.
        PeerUnreachable, ProtocolUnsupported, ConnectionLost, StreamReset.
    """
    stream = await network.open_stream(peer, [PROTOCOL])
    try:
        payload = os.urandom(PAYLOAD_BYTES)
        began = trio.current_time()
        await stream.send_all(payload)
        if await _receive_exactly(stream) != payload:
            raise PeerMisbehaved(f"{peer} answered a ping with other bytes")
        return trio.current_time() - began
    finally:
        await stream.aclose()


async def answer_pings(streams: AsyncIterator[Stream]) -> None:
    """Echo on every one of *streams*, side by side."""
    async with trio.open_nursery() as nursery:
        async for stream in streams:
            nursery.start_soon(_echo, stream)


async def _echo(stream: Stream) -> None:
    try:
        while True:
            with trio.fail_after(IDLE_S):
                payload = await _receive_exactly(stream)
                if payload is None:
                    break
                await stream.send_all(payload)
        await stream.aclose()
    except (NetworkError, trio.TooSlowError) as error:
        logger.debug("ping of %s ended: %s", stream.peer.short, error)
        await stream.reset()


async def _receive_exactly(stream: Stream) -> bytes | None:
    """One payload; None where the peer ended between two. Raises StreamReset where it ended inside one."""
    received = b""
    while len(received) < PAYLOAD_BYTES:
        piece = await stream.receive_some(PAYLOAD_BYTES - len(received))
        if not piece:
            if received:
                raise StreamReset("the stream ended inside a ping")
            return None
        received += piece
    return received

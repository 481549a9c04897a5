"""Content over one stream, both ways at once, each way with its hash: our side of what `js_peer.BULK` speaks.

The opener says in 8 bytes each, big-endian, how much it wants and how much it sends; then each side, at once, sends
content and its sha256. Who has sent and received all of it ends. Not before: what Kubo forwards knows no half-close.
"""

from __future__ import annotations

import hashlib
import random
from typing import Protocol

import trio

from ipfsreg.errors import NetworkError

PIECE_BYTES = 64 * 1024
HASH_BYTES = 32


class ByteStream(Protocol):
    """A stream of ours, or a TCP connection."""

    async def send_all(self, data: bytes | memoryview) -> None:
        """Send all of it."""

    async def receive_some(self, max_bytes: int = ...) -> bytes:
        """Some, or nothing at the end."""

    async def send_eof(self) -> None:
        """End our side."""


async def exchange(stream: ByteStream, *, send: int, want: int) -> int:
    """Open an exchange: send *send* bytes and return how many came with the right hash.

    Raises:
        AssertionError: what came does not hash to what was said, or goes on behind it.
    """
    await stream.send_all(want.to_bytes(8, "big") + send.to_bytes(8, "big"))
    return await _both_ways(stream, bytearray(), send, want)


async def answer_exchange(stream: ByteStream) -> int:
    """Answer an exchange that a peer opened; return how many bytes came with the right hash. Raises as `exchange`."""
    head = bytearray()
    while len(head) < 16:
        piece = await stream.receive_some(PIECE_BYTES)
        assert piece, "the stream ended before it said what it wants"
        head += piece
    send, want = (int.from_bytes(head[at : at + 8], "big") for at in (0, 8))
    return await _both_ways(stream, head[16:], send, want)


async def _both_ways(stream: ByteStream, begun: bytearray, send: int, want: int) -> int:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_send_content, stream, send)
        await _receive_content(stream, begun, want)
    try:
        await stream.send_eof()
        assert not await stream.receive_some(1), "more came than was said"
    except (NetworkError, trio.BrokenResourceError):
        # The peer was faster and is gone: where Kubo forwards, it resets one side when the other has ended.
        return want
    return want


async def _send_content(stream: ByteStream, size: int) -> None:
    content = bytearray(random.Random(size).randbytes(PIECE_BYTES))
    hasher = hashlib.sha256()
    sent = 0
    while sent < size:
        # Every piece is another one, so that one lost, doubled or out of place shows.
        content[:8] = sent.to_bytes(8, "big")
        piece = memoryview(content)[: min(PIECE_BYTES, size - sent)]
        hasher.update(piece)
        await stream.send_all(piece)
        sent += len(piece)
    await stream.send_all(hasher.digest())


async def _receive_content(stream: ByteStream, begun: bytearray, size: int) -> None:
    hasher = hashlib.sha256()
    tail = begun
    left = size
    while left or len(tail) < HASH_BYTES:
        content = min(left, len(tail))
        hasher.update(memoryview(tail)[:content])
        left -= content
        del tail[:content]
        if left or len(tail) < HASH_BYTES:
            piece = await stream.receive_some(4 * PIECE_BYTES)
            assert piece, f"the stream ended {left} bytes before it should"
            tail += piece
    assert hasher.digest() == tail, f"the hash of {size} bytes is wrong"

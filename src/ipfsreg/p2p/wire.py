"""What lies under a connection: a socket, or any trio stream, read and written without waiting.

Waiting and moving bytes are apart, so that nothing is held while a connection waits: all connections of a process read
into one buffer and write out of one (`Scratch`), which stays in the cache, and an idle connection owns none. It is
also what makes cancellation harmless: no await stands between two bytes of one write.
"""

from __future__ import annotations

import os
import socket
from typing import Protocol

import trio

from ipfsreg.errors import ConnectionLost
from ipfsreg.p2p.backlog import Backlog
from ipfsreg.p2p.noise import MAX_MESSAGE_BYTES, MAX_PLAINTEXT_BYTES

BATCH_BYTES = 256 * 1024
"""Read or written at once: large enough to make system calls and task switches cheap, small enough for the L2 cache."""

MAX_FRAME_BYTES = 2 + MAX_MESSAGE_BYTES

_WORTH_WAITING_BYTES = 4096
"""Fewer come in a packet or two."""

_PATIENCE_S = 1.0
"""So long a part of a message may lie in the socket unread."""


class Scratch:
    """Buffers for work that has no await in it. One per trio run, shared by all its connections."""

    __slots__ = ("incoming", "message", "outgoing", "plain")

    def __init__(self) -> None:
        self.incoming = memoryview(bytearray(BATCH_BYTES + MAX_FRAME_BYTES))
        """Ciphertext as read; begins with the part of a message left over from the read before."""
        self.message = memoryview(bytearray(MAX_PLAINTEXT_BYTES))
        """The plaintext of one message being sent."""
        self.outgoing = memoryview(bytearray(BATCH_BYTES + MAX_FRAME_BYTES))
        """Ciphertext to be written."""
        self.plain = memoryview(bytearray(MAX_PLAINTEXT_BYTES))
        """The plaintext of one message received."""


_scratch: trio.lowlevel.RunVar[Scratch] = trio.lowlevel.RunVar("_scratch")


def scratch() -> Scratch:
    """The buffers of the running trio loop."""
    try:
        return _scratch.get()
    except LookupError:
        buffers = Scratch()
        _scratch.set(buffers)
        return buffers


class Wire(Protocol):
    """A byte stream to a peer. One task reads, one at a time writes."""

    async def wait_readable(self, at_least: int = 1) -> None:
        """Return when `read_into` will have something; if the wire can wait for it, not before there are *at_least*
        bytes or a second has passed. Raises ConnectionLost.
        """

    def read_into(self, buffer: memoryview) -> int | None:
        """Read what is there: the number of bytes, 0 at the end, None where there is nothing yet.

        Raises:
            ConnectionLost.
        """

    def write(self, data: memoryview) -> int:
        """Write what is taken without waiting, maybe nothing: the number of bytes. Raises ConnectionLost."""

    def room(self) -> int:
        """How many bytes may be written now so that what is said after them need not wait long."""

    async def wait_room(self) -> None:
        """Return when there may be `room` again. Raises ConnectionLost."""

    async def write_all(self, data: bytes) -> None:
        """Write all of *data*. Cancelled: some of it may be written, and only closing is left.

        Raises:
            ConnectionLost.
        """

    async def send_eof(self) -> None:
        """Say that we write no more, where the stream can. Never raises but Cancelled."""

    async def aclose(self) -> None:
        """Close both directions. Never raises, does not wait for the peer."""


def wire_over(stream: trio.abc.Stream) -> Wire:
    """The best wire there is for *stream*."""
    if isinstance(stream, trio.SocketStream) and hasattr(os, "readv"):
        return SocketWire(stream)
    return StreamWire(stream)


class SocketWire:
    """Straight to the socket, past trio's one call, one checkpoint and one copy for each piece."""

    __slots__ = ("_at_least", "_backlog", "_socket", "_stream")

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._socket = stream.socket
        self._backlog = Backlog(stream.socket)
        self._at_least = 1

    async def wait_readable(self, at_least: int = 1) -> None:
        """See Wire."""
        at_least = at_least if at_least >= _WORTH_WAITING_BYTES else 1
        try:
            if at_least != self._at_least:
                self._wake_at(at_least)
            if at_least == 1:
                await trio.lowlevel.wait_readable(self._socket.fileno())
                return
            with trio.move_on_after(_PATIENCE_S):
                await trio.lowlevel.wait_readable(self._socket.fileno())
                return
            # Too slow for that: every byte is a sign of life.
            self._wake_at(1)
            await trio.lowlevel.wait_readable(self._socket.fileno())
        except (OSError, ValueError, trio.ClosedResourceError) as error:
            raise _lost(error) from None

    def _wake_at(self, count: int) -> None:
        """Let the socket be readable from *count* bytes on; at its end it is anyway."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, count)
        self._at_least = count

    def read_into(self, buffer: memoryview) -> int | None:
        """See Wire."""
        try:
            return os.readv(self._socket.fileno(), (buffer,))
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise _lost(error) from None

    def write(self, data: memoryview) -> int:
        """See Wire."""
        try:
            count = os.write(self._socket.fileno(), data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as error:
            raise _lost(error) from None
        self._backlog.wrote(count)
        return count

    def room(self) -> int:
        """See Wire."""
        return self._backlog.room(trio.current_time())

    async def wait_room(self) -> None:
        """See Wire."""
        try:
            await trio.lowlevel.wait_writable(self._socket.fileno())
        except (OSError, ValueError, trio.ClosedResourceError) as error:
            raise _lost(error) from None

    async def write_all(self, data: bytes) -> None:
        """See Wire."""
        left = memoryview(data)
        while left:
            await self.wait_room()
            left = left[self.write(left) :]

    async def send_eof(self) -> None:
        """See Wire."""
        await _send_eof(self._stream)

    async def aclose(self) -> None:
        """See Wire."""
        await trio.aclose_forcefully(self._stream)


class StreamWire:
    """Over any trio stream: a relay, a TLS stream, a pair in memory."""

    __slots__ = ("_received", "_stream")

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self._received: memoryview | None = None

    async def wait_readable(self, at_least: int = 1) -> None:
        """See Wire."""
        if self._received is None:
            try:
                self._received = memoryview(await self._stream.receive_some(BATCH_BYTES))
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                raise _lost(error) from None

    def read_into(self, buffer: memoryview) -> int | None:
        """See Wire."""
        received = self._received
        if received is None:
            return None
        count = min(len(received), len(buffer))
        buffer[:count] = received[:count]
        if count:
            # At the end the empty piece stays, so that the end is seen again.
            self._received = received[count:] if count < len(received) else None
        return count

    def write(self, data: memoryview) -> int:
        """See Wire. A trio stream takes nothing without an await."""
        return 0

    def room(self) -> int:
        """See Wire. It takes what it is given only when it can be sent on."""
        return BATCH_BYTES

    async def wait_room(self) -> None:
        """See Wire."""
        await trio.lowlevel.checkpoint()

    async def write_all(self, data: bytes) -> None:
        """See Wire."""
        try:
            await self._stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise _lost(error) from None

    async def send_eof(self) -> None:
        """See Wire."""
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await _send_eof(self._stream)

    async def aclose(self) -> None:
        """See Wire."""
        await trio.aclose_forcefully(self._stream)


async def _send_eof(stream: trio.abc.HalfCloseableStream) -> None:
    try:
        await stream.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return


def _lost(error: Exception) -> ConnectionLost:
    return ConnectionLost(f"the connection broke: {error or type(error).__name__}")

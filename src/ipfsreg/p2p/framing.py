"""Length-prefixed messages on a stream: what nearly every libp2p protocol speaks."""

from __future__ import annotations

from collections.abc import Iterator

from ipfsreg.errors import PeerMisbehaved, StreamReset
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.interface import Stream

READ_BYTES = 65536

_FRAMING_BYTES = 12
"""What a muxer puts before each part."""


class MessageReader:
    """Reads varint-prefixed messages from one stream.

    Small messages come out of one read buffer; the body of a large one is received straight into its own memory.
    """

    def __init__(self, stream: Stream, max_bytes: int) -> None:
        """*max_bytes*: the largest message taken; checked before memory is."""
        self._stream = stream
        self._max_bytes = max_bytes
        self._buffer = b""
        self._position = 0
        self._body_received = 0

    @property
    def body_received(self) -> int:
        """How many bytes are here of the message that is being read: grows while `read_body` waits."""
        return self._body_received

    async def read(self) -> memoryview | None:
        """Return the next message, or None where the peer ended its side between two messages.

        Raises:
            PeerMisbehaved: a length above the limit, or a malformed prefix.
            StreamReset: the stream ended inside a message, or was reset.
        """
        length = await self.read_length()
        return None if length is None else await self.read_body(length)

    async def read_body(self, length: int) -> memoryview:
        """Read the message whose length `read_length` has returned. Raises as `read`."""
        available = len(self._buffer) - self._position
        if length <= available:
            start = self._position
            self._position += length
            self._body_received = length
            return memoryview(self._buffer)[start : start + length]
        body = memoryview(bytearray(length))
        body[:available] = memoryview(self._buffer)[self._position :]
        self._buffer, self._position = b"", 0
        filled = self._body_received = available
        while filled < length:
            count = await self._stream.receive_into(body[filled:])
            if count == 0:
                raise StreamReset(f"stream ended {length - filled} bytes before the end of a message")
            filled += count
            self._body_received = filled
        return body.toreadonly()

    async def read_length(self) -> int | None:
        """The length of the next message, before memory is taken for it: `read_body` follows. Raises as `read`."""
        value = shift = 0
        self._body_received = 0
        while True:
            if self._position == len(self._buffer):
                self._buffer, self._position = await self._stream.receive_some(READ_BYTES), 0
                if not self._buffer:
                    if shift:
                        raise StreamReset("stream ended inside a length prefix")
                    return None
            byte = self._buffer[self._position]
            self._position += 1
            value |= (byte & 0x7F) << shift
            if value > self._max_bytes:
                raise PeerMisbehaved(f"message of at least {value} bytes, at most {self._max_bytes} are taken")
            if byte < 0x80:
                return value
            shift += 7
            if shift > 63:
                raise PeerMisbehaved("length prefix longer than nine bytes")


def framed(
    *pieces: bytes | bytearray | memoryview, at_most: int | None = None
) -> Iterator[bytes | bytearray | memoryview]:
    """What to send, part by part, for *pieces* as one varint-prefixed message.

    Small pieces are put together; large ones are passed on without a copy, cut into parts of *at_most* bytes. The first
    part is shorter by what stands before it, so that both fit where *at_most* bytes fit.
    """
    small = bytearray(encode_varint(sum(map(len, pieces))))
    for piece in pieces:
        if len(piece) < READ_BYTES:
            small += piece
            continue
        room = at_most
        if small:
            if at_most is not None:
                room = max(at_most - len(small) - _FRAMING_BYTES, 1)
            yield small
            small = bytearray()
        if at_most is None or room is None or len(piece) <= room:
            yield piece
        else:
            view = memoryview(piece)
            yield view[:room]
            for start in range(room, len(piece), at_most):
                yield view[start : start + at_most]
    if small:
        yield small


async def send_message(stream: Stream, *pieces: bytes | bytearray | memoryview) -> None:
    """Send *pieces* as one varint-prefixed message; large pieces are not copied together first."""
    for part in framed(*pieces):
        await stream.send_all(part)

"""Request bodies: Content-Length and chunked, received into buffers of whoever reads, or into one of their own.

Bytes are copied once, by the kernel. Chunk framing is taken out in place, so that many small chunks become one large
piece: a piece costs its reader a thread switch, a chunk should not.
"""

from __future__ import annotations

from typing import Protocol

from ipfsreg.http.request import Body, BodyTooLarge, ClientGone, RequestRefused

PIECE_BYTES = 64 * 1024
"""The largest piece of `read`, and what it holds."""

_STREAM_BYTES = 64 * 1024
"""Whoever has sent this much of a body whose end is not known will send more at once."""

_MAX_CHUNK_LINE_BYTES = 256
_MAX_TRAILER_BYTES = 8192
_NOTHING = memoryview(b"")
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


class Receiver(Protocol):
    """The connection below a body."""

    async def receive_into(self, buffer: memoryview) -> int:
        """Wait for bytes, then take what has arrived, at most *buffer*; 0: the client ended. Raises ClientGone."""

    async def gather_into(self, buffer: memoryview) -> int:
        """Take what has arrived; else wait for a good part of *buffer*, a moment. 0: nothing, or the client ended."""

    async def invite(self) -> None:
        """Tell a client that waits for `100 Continue` to go on; otherwise do nothing."""

    def give_back(self, data: bytes) -> None:
        """Return bytes that came after the body."""

    def hold(self, size: int) -> None:
        """The body is being read whole, and so much of it is in memory. Raises LimitReached."""

    def settle(self) -> None:
        """It is whole: the client has done its part."""


class _Pieces:
    """What both kinds of body share."""

    __slots__ = ("_buffer", "_first", "_receiver", "_size", "exhausted")

    def __init__(self, receiver: Receiver, first: bytes, size: int) -> None:
        """*first*: bytes that arrived with the head. *size* of the buffer for `read`."""
        self._receiver = receiver
        self._first = first
        self._size = size
        self._buffer: memoryview | None = None
        self.exhausted = False

    def _own_buffer(self) -> memoryview:
        if self._buffer is None:
            self._buffer = memoryview(bytearray(self._size))
        return self._buffer

    async def _receive(self, buffer: memoryview) -> int:
        """Fill *buffer* with the bytes that came with the head, else from the connection."""
        first = self._first
        if first:
            count = min(len(first), len(buffer))
            buffer[:count] = first[:count]
            self._first = first[count:]
            return count
        await self._receiver.invite()
        count = await self._receiver.receive_into(buffer)
        if count == 0:
            raise ClientGone("the client ended in the middle of its request body")
        return count

    async def _gather(self, buffer: memoryview) -> int:
        """More for *buffer*, if it comes at once; else 0."""
        return await (self._receive(buffer) if self._first else self._receiver.gather_into(buffer))


async def _read_all(body: Body, receiver: Receiver, limit: int) -> bytes:
    if body.length is not None and body.length > limit:
        raise BodyTooLarge(limit)
    whole = bytearray()
    while piece := await body.read():
        if len(whole) + len(piece) > limit:
            raise BodyTooLarge(limit)
        whole += piece
        receiver.hold(len(whole))
    receiver.settle()
    return bytes(whole)


class FixedBody(_Pieces):
    """A body of a length known beforehand."""

    __slots__ = ("_left", "length")

    def __init__(self, receiver: Receiver, first: bytes, length: int) -> None:
        if len(first) > length:
            receiver.give_back(first[length:])
            first = first[:length]
        super().__init__(receiver, first, min(length, PIECE_BYTES))
        self.length = length
        self._left = length
        self.exhausted = length == 0

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self._left

    async def read(self) -> memoryview:
        """See `Body.read`."""
        if not self._left:
            return _NOTHING
        buffer = self._own_buffer()
        count = await self._receive(buffer[: self._left])
        self._took(count)
        return buffer[:count]

    def _took(self, count: int) -> None:
        self._left -= count
        self.exhausted = self._left == 0

    async def read_into(self, buffer: memoryview) -> int:
        """See `Body.read_into`."""
        if not self._left:
            return 0
        buffer = buffer[: self._left]
        filled = 0
        while filled < len(buffer):
            count = await (self._gather(buffer[filled:]) if filled else self._receive(buffer))
            if not count:
                break
            self._took(count)
            filled += count
        return filled

    async def read_all(self, limit: int) -> bytes:
        """See `Body.read_all`."""
        return await _read_all(self, self._receiver, limit)


class ChunkedBody(_Pieces):
    """A body in chunks (RFC 9112, 7.1). Extensions and trailers are skipped, within bounds."""

    __slots__ = ("_decoder",)

    length = None

    def __init__(self, receiver: Receiver, first: bytes) -> None:
        super().__init__(receiver, first, PIECE_BYTES)
        self._decoder = ChunkDecoder()

    async def read(self) -> memoryview:
        """See `Body.read`."""
        buffer = self._own_buffer() if not self.exhausted else _NOTHING
        while not self.exhausted:
            if payload := self._decode(buffer, await self._receive(buffer)):
                return buffer[:payload]
        return _NOTHING

    def _decode(self, buffer: memoryview, count: int) -> int:
        """Take the framing out of the first *count* bytes; return how many are left."""
        payload, used = self._decoder.decode(buffer[:count])
        if self._decoder.finished:
            self.exhausted = True
            # What came with the head and was not even copied into the buffer comes after what was.
            self._receiver.give_back(bytes(buffer[used:count]) + self._first)
        return payload

    async def read_into(self, buffer: memoryview) -> int:
        """See `Body.read_into`."""
        filled = received = 0
        while filled < len(buffer) and not self.exhausted:
            rest = buffer[filled:]
            if not filled:
                count = await self._receive(rest)
            # Who ended here waits for the answer already: more is only waited for where much has come.
            elif (received < _STREAM_BYTES and not self._first) or not (count := await self._gather(rest)):
                break
            received += count
            filled += self._decode(rest, count)
        return filled

    async def read_all(self, limit: int) -> bytes:
        """See `Body.read_all`."""
        return await _read_all(self, self._receiver, limit)


class ChunkDecoder:
    """PURE: takes chunk framing out of bytes in place, wherever they are cut.

    Strict where tolerance has made two servers disagree: sizes are hex digits and nothing else, lines end with CRLF.
    """

    __slots__ = ("_left", "_line", "_state", "_trailer_bytes", "finished")

    _SIZE, _DATA, _DATA_END, _TRAILER = range(4)

    def __init__(self) -> None:
        self._state = self._SIZE
        self._left = 0
        self._line = b""
        self._trailer_bytes = 0
        self.finished = False
        """Whether the last chunk and its trailers are behind us."""

    def decode(self, buffer: memoryview) -> tuple[int, int]:
        """Move the payload in *buffer* to its front. Returns its length, and how many bytes were used.

        Fewer bytes are used than given only at the end of the body. Raises RequestRefused.
        """
        read = write = 0
        size = len(buffer)
        while read < size and not self.finished:
            if self._state == self._DATA:
                count = min(self._left, size - read)
                if read != write:
                    buffer[write : write + count] = buffer[read : read + count]
                read += count
                write += count
                self._left -= count
                if not self._left:
                    self._state = self._DATA_END
            else:
                read = self._take_line(buffer, read)
        return write, read

    def _take_line(self, buffer: memoryview, read: int) -> int:
        room = _MAX_CHUNK_LINE_BYTES - len(self._line)
        piece = bytes(buffer[read : read + room])
        newline = piece.find(b"\n")
        if newline < 0:
            self._line += piece
            if len(self._line) >= _MAX_CHUNK_LINE_BYTES:
                raise RequestRefused(400, "malformed chunk: its line is too long")
            return read + len(piece)
        line = self._line + piece[: newline + 1]
        self._line = b""
        if line[-2:] != b"\r\n" or b"\r" in line[:-2]:
            raise RequestRefused(400, "malformed chunk: a line does not end with CRLF")
        self._receive_line(line[:-2])
        return read + newline + 1

    def _receive_line(self, line: bytes) -> None:
        if self._state == self._DATA_END:
            if line:
                raise RequestRefused(400, "malformed chunk: more data than its size")
            self._state = self._SIZE
        elif self._state == self._SIZE:
            self._left = _chunk_size(line)
            self._state = self._DATA if self._left else self._TRAILER
        elif line:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _MAX_TRAILER_BYTES:
                raise RequestRefused(431, "the trailers are too large")
        else:
            self.finished = True


def _chunk_size(line: bytes) -> int:
    digits, _, _ = line.partition(b";")
    digits = digits.rstrip(b" \t")  # RFC 9112, 7.1.1: bad whitespace before an extension is tolerated
    if not 1 <= len(digits) <= 15 or not _HEX_DIGITS.issuperset(digits):
        raise RequestRefused(400, "malformed chunk: its size is not a number")
    return int(digits, 16)

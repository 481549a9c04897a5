"""What a connection reads, and how it becomes plaintext.

Ciphertext lies in the buffer all connections share only while nobody awaits; what is left of it then (a part of a
message, or messages another turn will handle) is put aside into memory of the connection's own.
"""

from __future__ import annotations

import trio

from ipfsreg.errors import ConnectionLost
from ipfsreg.p2p.noise import LENGTH_BYTES, Decryptor
from ipfsreg.p2p.pnet import Keystream
from ipfsreg.p2p.wire import Wire, scratch


class Inbox:
    """The receiving half of one connection."""

    def __init__(
        self, wire: Wire, decryptor: Decryptor, keystream: Keystream | None, leftover: bytes, bytes_in: int
    ) -> None:
        self._wire = wire
        self._decryptor = decryptor
        self._keystream = keystream
        self._scratch = scratch()
        self._leftover = leftover
        self._position = self._end = 0
        self._more = False
        """Whether the last read filled the buffer, so that there is probably more."""
        self.bytes_in = bytes_in
        self.last_received = trio.current_time()

    async def fill(self) -> None:
        """Wait for the peer and read what it sent behind what was put aside. Raises ConnectionLost."""
        buffer = self._scratch.incoming
        while True:
            if self._more:
                # Others get their turn, and the system is not asked to tell us what we know.
                self._more = False
                await trio.lowlevel.checkpoint()
            else:
                await self._wire.wait_readable(self._lacking())
            self.load()
            start = self._end
            count = self._wire.read_into(buffer[start:])
            if count is None:
                continue
            if count == 0:
                raise ConnectionLost("the peer closed the connection")
            if self._keystream is not None:
                self._keystream.xor(buffer[start : start + count])
            self._end += count
            self._more = self._end == len(buffer)
            self.bytes_in += count
            self.last_received = trio.current_time()
            return

    def _lacking(self) -> int:
        """How many bytes of the message that was put aside are still to come: before the last, none is of use.

        On a thin link each packet would cost a turn of the scheduler otherwise.
        """
        have = self._leftover
        if len(have) < LENGTH_BYTES:
            return 1
        return max(1, LENGTH_BYTES + (have[0] << 8 | have[1]) - len(have))

    def load(self) -> None:
        """Put what was put aside back into the shared buffer."""
        self._position, self._end = 0, len(self._leftover)
        self._scratch.incoming[: self._end] = self._leftover

    def put_aside(self) -> None:
        """Free the shared buffer, before an await."""
        self._leftover = bytes(self._scratch.incoming[self._position : self._end])

    def next_message(self) -> memoryview | None:
        """Decrypt the next whole Noise message, good until the next call; None where there is none.

        Raises:
            PeerMisbehaved: it does not authenticate.
        """
        buffer, position = self._scratch.incoming, self._position
        start = position + LENGTH_BYTES
        if self._end < start:
            return None
        end = start + (buffer[position] << 8 | buffer[position + 1])
        if self._end < end:
            return None
        self._position = end
        plain = self._scratch.plain
        return plain[: self._decryptor.decrypt_into(buffer[start:end], plain)]

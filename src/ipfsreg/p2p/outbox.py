"""What a connection still has to write, and how it becomes Noise messages.

Three things wait here, in this order: ciphertext the socket did not take, what the Yamux session says (`session.out`,
short messages among it), and streams with data that its senders still own. While ciphertext waits nothing else is
encrypted, so a peer that does not read costs one batch and what it makes the session say.
"""

from __future__ import annotations

from collections import deque

import trio

from ipfsreg.p2p import yamux
from ipfsreg.p2p.noise import MAX_PLAINTEXT_BYTES, Encryptor
from ipfsreg.p2p.pnet import Keystream
from ipfsreg.p2p.stream import MuxedStream
from ipfsreg.p2p.wire import BATCH_BYTES, Wire, scratch

MAX_PENDING_BYTES = 64 * 1024
"""Short messages that may wait to be written before their senders have to."""

MIN_FRAME_BYTES = 1024
"""Room at the end of a Noise message that is not worth a frame of its own."""


class Outbox:
    """The sending half of one connection."""

    def __init__(
        self, wire: Wire, encryptor: Encryptor, keystream: Keystream | None, session: yamux.Session, bytes_out: int
    ) -> None:
        self._wire = wire
        self._encryptor = encryptor
        self._keystream = keystream
        self._session = session
        self._scratch = scratch()
        self._unsent = b""
        self._senders: deque[MuxedStream] = deque()
        self._writer: trio.lowlevel.Task | None = None
        self._finishing = False
        self.bytes_out = bytes_out

    # ------------------------------------------------------------ putting in

    def take_small(self, stream: MuxedStream, data: memoryview) -> bool:
        """Copy a few bytes, to be written at the end of the turn; return whether there was room."""
        said = self._session.out
        if stream.state.send_window < len(data) or len(said) > MAX_PENDING_BYTES:
            return False
        said += self._session.data_header(stream.state, len(data))
        said += data
        self.wake()
        return True

    def write_now(self, stream: MuxedStream) -> None:
        """Write what can be of `stream.outgoing` without waiting; the rest is queued.

        Raises:
            ConnectionLost.
        """
        self.queue(stream)
        self.transmit_batch()
        self.wake()

    def queue(self, stream: MuxedStream) -> None:
        """Give *stream* its turns, if it has data and its peer lets it send."""
        if stream.outgoing is not None and not stream.queued and stream.state.send_window:
            stream.queued = True
            self._senders.append(stream)

    def unqueue(self, stream: MuxedStream) -> None:
        """Take nothing more of *stream*."""
        stream.outgoing = None
        if stream.queued:
            stream.queued = False
            self._senders.remove(stream)

    def finish(self) -> None:
        """Say that we write no more, once everything is written."""
        self._finishing = True
        self.wake()

    # --------------------------------------------------------------- writing

    async def carry(self) -> None:
        """Write whatever comes, until `finish`. Raises ConnectionLost."""
        while True:
            if self._unsent:
                # It stays set meanwhile: that keeps others from writing past it.
                await self._wire.write_all(self._unsent)
                self.bytes_out += len(self._unsent)
                self._unsent = b""
            elif self._session.out or self._senders:
                if self._wire.room():
                    await trio.lowlevel.checkpoint()
                else:
                    await self._wire.wait_room()
            elif self._finishing:
                await self._wire.send_eof()
                return
            else:
                await self._sleep()
            self.transmit_batch()

    async def _sleep(self) -> None:
        self._writer = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._writer = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)

    def wake(self) -> None:
        """See that what waits is written in the next turn."""
        if self._writer is not None and (self._session.out or self._senders or self._unsent or self._finishing):
            task, self._writer = self._writer, None
            trio.lowlevel.reschedule(task)

    def transmit_batch(self) -> None:
        """Encrypt and write up to one batch; what the socket does not take is kept. Raises ConnectionLost."""
        if self._unsent or not (self._session.out or self._senders):
            return
        outgoing, message = self._scratch.outgoing, self._scratch.message
        filled, room = 0, min(self._wire.room(), BATCH_BYTES)
        while filled < room:
            size = self._fill_message(message)
            if not size:
                break
            filled += self._encryptor.encrypt_into(message[:size], outgoing[filled:])
        if not filled:
            return
        batch = outgoing[:filled]
        if self._keystream is not None:
            self._keystream.xor(batch)
        written = self._wire.write(batch)
        self.bytes_out += written
        if written < filled:
            self._unsent = bytes(batch[written:])

    def _fill_message(self, message: memoryview) -> int:
        """Put what the session says, then a frame of each sender in turn, into one Noise message; return its size."""
        said = self._session.out
        size = min(len(said), MAX_PLAINTEXT_BYTES)
        if size:
            message[:size] = said[:size]
            del said[:size]
        senders = self._senders
        while senders and not said:
            room = MAX_PLAINTEXT_BYTES - size - yamux.HEADER_BYTES
            if room < MIN_FRAME_BYTES:
                break
            stream = senders.popleft()
            stream.queued = False
            data = stream.outgoing
            if data is None or not stream.state.send_window:
                continue
            length = min(len(data), room, stream.state.send_window)
            payload_at = size + yamux.HEADER_BYTES
            message[size:payload_at] = self._session.data_header(stream.state, length)
            size = payload_at + length
            message[payload_at:size] = data[:length]
            if length == len(data):
                stream.outgoing = None
                stream.sent()
            else:
                stream.outgoing = data[length:]
                self.queue(stream)
        return size

"""One stream of a connection: what an application holds.

Sending: the bytes stay the caller's until the connection encrypts them, straight from his memory; `send_all` returns
once the last are taken. Receiving: the connection copies decrypted bytes straight into the buffer of whoever waits in
`receive_into`, and keeps them here where nobody does, never more than the window it has granted.

Cancelling is harmless because bytes move only inside calls without an await: a cancelled send has been taken up to a
frame's end, a cancelled receive has taken nothing.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from ipfsreg.errors import NetworkError, PeerMisbehaved, ProtocolUnsupported, StreamReset
from ipfsreg.p2p.multistream import Dialer, Responder
from ipfsreg.p2p.yamux import StreamState
from ipfsreg.peer_id import PeerId

if TYPE_CHECKING:
    from ipfsreg.p2p.connection import Connection

SMALL_BYTES = 4096
"""Sends up to this size wait for the end of the scheduler's turn, so that several travel in one message."""

CHUNK_BYTES = 65536
"""Received pieces smaller than this are gathered, so that a peer that sends single bytes cannot cost 50 for each."""


class MuxedStream:
    """A stream over a `Connection`. Keeps the promises of `p2p.interface.Stream`."""

    __slots__ = (
        "_chunks",
        "_closed",
        "_connection",
        "_error",
        "_filled",
        "_negotiation",
        "_offset",
        "_opening",
        "_protocol",
        "_receiver",
        "_sender",
        "_target",
        "_woken",
        "outgoing",
        "queued",
        "state",
        "unread",
    )

    def __init__(
        self, connection: Connection, state: StreamState, negotiation: Dialer | Responder, protocol: str = ""
    ) -> None:
        self._connection = connection
        self.state = state
        self._protocol = protocol
        self._negotiation: Dialer | Responder | None = negotiation
        # Header and proposal of a stream of ours that nothing was sent on yet.
        self._opening = b""
        self._error: NetworkError | None = None
        self._closed = False

        self.outgoing: memoryview | None = None
        """What is being sent; the connection takes from its front."""
        self.queued = False
        """Whether the connection has it in its queue of senders."""
        self._sender: trio.lowlevel.Task | None = None

        self._chunks: deque[bytes | bytearray] = deque()
        self._offset = 0  # into the first chunk
        self.unread = 0
        """Bytes in memory that nobody has taken yet."""
        self._receiver: trio.lowlevel.Task | None = None
        self._woken = False
        self._target: memoryview | None = None
        self._filled = 0

    # ------------------------------------------------------------ properties

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._connection.peer

    @property
    def protocol(self) -> str:
        """What both sides agreed on."""
        return self._protocol

    @property
    def negotiating(self) -> bool:
        """Whether the protocol is still being agreed on."""
        return self._negotiation is not None

    @property
    def closed(self) -> bool:
        """Whether the application is done with it."""
        return self._closed

    # --------------------------------------------------------------- sending

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See Stream."""
        await self._connection.breathe()
        if self._sender is not None:
            raise trio.BusyResourceError("another task is sending on this stream")
        self._check_sendable()
        view = memoryview(data).cast("B") if not isinstance(data, memoryview) or data.format != "B" else data
        if self._opening:
            self.begin()
        self._connection.count_moved(len(view))
        if not view or (len(view) <= SMALL_BYTES and self._connection.send_small(self, view)):
            return
        self.outgoing = view
        self._connection.send_large(self)
        if self.outgoing is None:
            self._check_sendable()
            return
        self._sender = trio.lowlevel.current_task()

        def abort(_: object) -> trio.lowlevel.Abort:
            self._sender = None
            self._connection.unqueue(self)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._check_sendable()

    def sent(self) -> None:
        """The connection has taken all of `outgoing`, or it cannot be sent any more."""
        if self._sender is not None:
            task, self._sender = self._sender, None
            trio.lowlevel.reschedule(task)

    def _check_sendable(self) -> None:
        if self._error is not None:
            raise _again(self._error)
        if self.state.ended_by_us or self._closed:
            raise StreamReset("we ended our side of the stream before")

    async def send_eof(self) -> None:
        """See Stream."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._error is not None:
            raise _again(self._error)
        self._end()

    def _end(self) -> None:
        if self.outgoing is not None:
            # A send under way in another task: its bytes must not follow the end.
            self._connection.unqueue(self)
            self.sent()
        if self._opening:
            self.begin()
        self._connection.end(self)

    # ------------------------------------------------------------- receiving

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        """See Stream."""
        if not await self._wait_readable():
            return b""
        first = self._chunks[0]
        left = len(first) - self._offset
        count = min(left, max_bytes)
        if count == left and self._offset == 0 and isinstance(first, bytes):
            piece = first
        else:
            piece = bytes(memoryview(first)[self._offset : self._offset + count])
        self._advance(count)
        self._connection.consume(self, count)
        return piece

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        """See Stream."""
        target = memoryview(buffer).cast("B")
        if not await self._wait_readable(target):
            return 0
        count = self._filled
        while count < len(target) and self._chunks:
            first = self._chunks[0]
            step = min(len(first) - self._offset, len(target) - count)
            target[count : count + step] = memoryview(first)[self._offset : self._offset + step]
            self._advance(step)
            count += step
        self._connection.consume(self, count)
        return count

    async def _wait_readable(self, target: memoryview | None = None) -> bool:
        """Return True once bytes are here (in *target* already, or in memory), False at the end."""
        if self._chunks:
            await self._connection.breathe()
        else:
            # What follows waits anyway. With a checkpoint before it, the reader's next batch would find no target.
            await trio.lowlevel.checkpoint_if_cancelled()
        if self._receiver is not None:
            raise trio.BusyResourceError("another task is receiving from this stream")
        if self._closed:
            raise StreamReset("we closed the stream before")
        if self._opening:
            self.begin()
        self._filled = 0
        while not self._chunks:
            if self.state.ended_by_peer and self._negotiation is None:
                return False
            if self._error is not None:
                raise _again(self._error)
            self._receiver = trio.lowlevel.current_task()
            self._target = target

            def abort(_: object) -> trio.lowlevel.Abort:
                self._receiver = self._target = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            self._receiver = self._target = None
            self._woken = False
            if self._filled:
                return True
        return True

    def _advance(self, count: int) -> None:
        self.unread -= count
        self._connection.forget_buffered(count)
        self._offset += count
        if self._offset == len(self._chunks[0]):
            self._chunks.popleft()
            self._offset = 0

    # ------------------------------------- what the connection tells a stream

    def deliver(self, payload: bytes | memoryview) -> None:
        """Bytes of the peer: to whoever waits for them, else into memory. *payload* is copied."""
        target = self._target
        if target is not None and not self._chunks:
            step = min(len(payload), len(target) - self._filled)
            if step:
                target[self._filled : self._filled + step] = payload[:step]
                self._filled += step
                payload = payload[step:]
        if payload:
            self._keep(payload)
        self._wake_receiver()

    def _keep(self, payload: bytes | memoryview) -> None:
        size = len(payload)
        self.unread += size
        self._connection.count_buffered(size)
        last = self._chunks[-1] if self._chunks else None
        if isinstance(last, bytearray) and len(last) + size <= CHUNK_BYTES:
            last += payload
        elif size < CHUNK_BYTES // 4:
            self._chunks.append(bytearray(payload))
        else:
            self._chunks.append(bytes(payload))

    def _wake_receiver(self) -> None:
        # The task keeps its target until it runs, so that more of the same batch goes there as well.
        task = self._receiver
        if task is not None and not self._woken:
            self._woken = True
            trio.lowlevel.reschedule(task)

    def notice_end(self) -> None:
        """The peer has ended its side."""
        self._wake_receiver()

    def fail(self, error: NetworkError) -> None:
        """Nothing more can be sent, nor received beyond what is in memory. A reset drops that too."""
        if self._error is None:
            self._error = error
        if isinstance(error, (StreamReset, PeerMisbehaved, ProtocolUnsupported)):
            self.drop_unread()
        self.sent()
        self._wake_receiver()

    def take_unread(self) -> bytes:
        """Take what is in memory away from the application."""
        taken = b"".join(self._chunks)
        self.drop_unread()
        return taken

    def drop_unread(self) -> int:
        """Give the memory back; return how many bytes it was."""
        dropped, self.unread, self._offset = self.unread, 0, 0
        self._chunks.clear()
        self._connection.forget_buffered(dropped)
        return dropped

    # ----------------------------------------------------------- negotiation

    def prepare(self, opening: bytes) -> None:
        """Say *opening* before anything else, once something is said."""
        self._opening = opening

    def begin(self) -> None:
        """Open the stream on the wire and say the proposal."""
        opening, self._opening = self._opening, b""
        self._connection.start(self, opening)

    @property
    def negotiation(self) -> Dialer | Responder | None:
        """The negotiation under way."""
        return self._negotiation

    def agree(self, protocol: str) -> None:
        """The negotiation is over."""
        self._protocol = protocol
        self._negotiation = None
        self._wake_receiver()

    async def wait_agreed(self) -> None:
        """Return once the protocol is agreed on. Raises what `fail` was told."""
        while self._negotiation is not None:
            if self._error is not None:
                raise _again(self._error)
            self._receiver = trio.lowlevel.current_task()

            def abort(_: object) -> trio.lowlevel.Abort:
                self._receiver = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
            self._receiver = None
            self._woken = False

    # ---------------------------------------------------------------- ending

    async def aclose(self) -> None:
        """See Stream."""
        if not self._closed:
            if self._opening:
                # The peer never heard of it.
                self._connection.reset(self, StreamReset("we closed the stream"))
            elif self._error is None:
                self._end()
            self._closed = True
            self._connection.abandon(self)
            self._wake_receiver()
        await trio.lowlevel.cancel_shielded_checkpoint()

    async def reset(self) -> None:
        """See Stream."""
        self.reset_nowait("we reset the stream")
        await trio.lowlevel.cancel_shielded_checkpoint()

    def reset_nowait(self, why: str) -> None:
        """Abort both directions."""
        self._closed = True
        self._connection.reset(self, StreamReset(why))

    def __repr__(self) -> str:
        return f"<stream {self.state.number} {self._protocol or 'negotiating'} of {self.peer.short}>"


def _again(error: NetworkError) -> NetworkError:
    """A fresh copy: one exception raised in several tasks would gather all their tracebacks."""
    return type(error)(str(error))

"""One fused connection: TCP (or any trio stream), PSK, Noise and Yamux, without layers between them.

    connection = await secure(stream, identity=identity, psk=None, dialer=True, expected=peer)
    nursery.start_soon(connection.run)
    stream = await connection.open_stream(["/echo/1.0.0"], lazy=True)

How it moves bytes
- Two tasks carry a connection. The reader waits for the socket, reads up to 256 KiB into the buffer all connections
  share, decrypts each Noise message, lets Yamux cut it up and copies payloads to where they are awaited. The writer
  sleeps until something is left to write.
- Whoever sends more than a few bytes writes himself: his bytes become Yamux frames, Noise messages and one system call
  on the spot, without a task switch. Where the socket is full he queues, and the writer takes a frame from each sender
  in turn. Small things - window updates, acknowledgements, short messages - wait for the writer's next turn, so that
  those of one turn travel in one message.
- A stream that is being negotiated is driven by the reader as bytes arrive. No task belongs to it, so opening and
  resetting streams in a loop costs a peer as much as us, and a slow negotiation holds up nobody.

What profiling taught: of a sender's CPU time half is the kernel's copy and a quarter the cipher; all the Python above
them takes the last quarter, because there is little of it for each byte: one message of 64 KiB is one frame, a dozen
calls; four messages are one system call and at most one turn of the scheduler. Only a change in one of these numbers is
worth much.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass

import trio

from ipfsreg.errors import (
    ConnectionLost,
    LimitReached,
    NetworkError,
    PeerMisbehaved,
    ProtocolUnsupported,
    StreamReset,
)
from ipfsreg.p2p import yamux
from ipfsreg.p2p.handshake import Established, establish
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.inbox import Inbox
from ipfsreg.p2p.interface import Stream
from ipfsreg.p2p.multistream import Dialer, Responder
from ipfsreg.p2p.outbox import Outbox
from ipfsreg.p2p.patience import Patience
from ipfsreg.p2p.stream import MuxedStream
from ipfsreg.p2p.wire import BATCH_BYTES, wire_over
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

MAX_OWED_BYTES = 1024 * 1024
"""Answers a peer may make us owe (pongs, acknowledgements, resets) without reading them."""

MAX_EVENTS_PER_TURN = 512
"""Frames handled before other tasks get their turn: a batch can hold 20,000 of them."""

MAX_UNACKNOWLEDGED = 256
"""Streams of ours the peer has not taken yet; go-libp2p resets beyond this."""

MAX_WAITING_STREAMS = 256
"""Negotiated streams that nobody has accepted yet."""

MIN_MOVED_BYTES = 1024
"""What the smallest send or receive counts for when turns are shared out."""

LINGER_S = 60.0
"""Seconds a peer has to end a stream that we have closed, before it is reset."""

MIN_WINDOW_RTT_S = 0.0025
"""Round trips count as at least this long when windows grow: below, it is our own turns that take the time, and an
update more than every 10 ms would cost more than it brings."""

RTT_AGE_S = 10.0
"""A measurement older than this is refreshed, when there is traffic."""

GOODBYE_S = 1.0
"""Seconds `aclose` waits for the peer to hang up as well."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """What one peer may take of us on one connection."""

    max_inbound_streams: int = 1024
    """Streams the peer may have open; further ones are reset."""
    max_outbound_streams: int = 4096
    """Streams we may have open; `open_stream` raises LimitReached beyond."""
    max_stream_window_bytes: int = 16 * 1024 * 1024
    """How far the receive window of one stream may grow; it begins at 256 KiB."""
    max_window_growth_bytes: int = 64 * 1024 * 1024
    """What all windows of the connection together may have grown beyond their first 256 KiB."""
    max_buffered_bytes: int = 64 * 1024 * 1024
    """Received and not yet read; a stream that would pass it is reset."""
    negotiation_timeout_s: float = 30.0
    """Seconds a peer has to agree on the protocol of a stream."""


class MemoryBudget:
    """Bytes received and not yet read, over all connections that share this budget."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used_bytes = 0

    def __repr__(self) -> str:
        return f"MemoryBudget({self.used_bytes} of {self.max_bytes} bytes)"


async def secure(
    stream: trio.abc.Stream,
    *,
    identity: Identity,
    psk: bytes | None,
    dialer: bool,
    expected: PeerId | None = None,
    remote_addr: str = "",
    limits: ConnectionLimits | None = None,
    budget: MemoryBudget | None = None,
) -> Connection:
    """Make *stream* a connection to a peer that has proved who it is.

    Takes no longer than the peer does: the caller sets the deadline. Whatever is raised, *stream* is closed.

    Args:
        psk: the swarm's 32-byte key, or None on a public swarm.
        dialer: whether we opened the stream; both ends must not say the same.
        expected: whom we dialled, if we know.

    Raises:
        SwarmKeyMismatch: we have a PSK and the peer has another, or none.
        WrongPeer: somebody else answered than *expected*.
        ProtocolUnsupported: the peer speaks no Noise, or no Yamux.
        PeerMisbehaved: it broke a protocol, or did not prove its identity.
        ConnectionLost: it hung up.
    """

    wire = wire_over(stream)
    try:
        established = await establish(wire, identity=identity, psk=psk, dialer=dialer, expected=expected)
    except BaseException:  # cancelled too: nobody else has the wire
        with trio.CancelScope(shield=True):
            await wire.aclose()
        raise
    return Connection(established, remote_addr=remote_addr, limits=limits or ConnectionLimits(), budget=budget)


class Connection:
    """A secured, multiplexed connection to one peer. All methods may be called from many tasks at once."""

    def __init__(
        self,
        established: Established,
        *,
        remote_addr: str,
        limits: ConnectionLimits,
        budget: MemoryBudget | None,
    ) -> None:
        self.peer: PeerId = established.peer
        self.public_key: bytes = established.public_key
        """The peer's, as libp2p's protobuf."""
        self.remote_addr = remote_addr
        self.dialer: bool = established.dialer
        """Whether we opened it."""
        self.closed = trio.Event()
        """Set once the connection is over; `reason` says why from then on."""
        self.reason: NetworkError | None = None
        self.rtt_s: float | None = established.rtt_s
        """Smoothed round trip time in seconds; the handshake gives the first estimate."""

        self._limits = limits
        self._budget = budget
        self._buffered = 0
        self._wire = established.wire
        self._session = yamux.Session(
            dialer=established.dialer,
            max_stream_window_bytes=limits.max_stream_window_bytes,
            max_window_growth_bytes=limits.max_window_growth_bytes,
        )
        self._early = established.early
        self._inbox = Inbox(
            established.wire, established.decryptor, established.key_in, established.leftover, established.bytes_in
        )
        self._outbox = Outbox(
            established.wire, established.encryptor, established.key_out, self._session, established.bytes_out
        )
        self._since_breath = 0

        self._streams: dict[int, MuxedStream] = {}
        self._inbound = 0
        self._outbound = 0
        self._unacknowledged = trio.Semaphore(MAX_UNACKNOWLEDGED, max_value=MAX_UNACKNOWLEDGED)
        self._holding_slot: set[MuxedStream] = set()
        self._offered: Callable[[str], bool] | None = None
        self._accepted: deque[MuxedStream] = deque()
        self._acceptors = trio.lowlevel.ParkingLot()
        self._negotiating = Patience(limits.negotiation_timeout_s, self._run_out_of_patience)
        self._lingering = Patience(LINGER_S, self._run_out_of_patience)

        self._pings: dict[int, _Ping] = {}
        self._measured_at = float("-inf")

        self._nursery: trio.Nursery | None = None

    # -------------------------------------------------------------- lifetime

    async def run(self) -> NetworkError:
        """Carry the connection until it ends; return why. To be run once, in the owner's nursery.

        Contains every error of this peer. Cancelling it ends the connection.
        """
        assert self._nursery is None
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.reason is not None:
                    nursery.cancel_scope.cancel()
                nursery.start_soon(self._contain, self._outbox.carry)
                try:
                    await self._contain(self._read)
                finally:
                    # Before the nursery closes: from here on no stream may ask for a task in it.
                    self._end(ConnectionLost("we closed the connection"))
        finally:
            with trio.CancelScope(shield=True):
                await self._wire.aclose()
            if self._budget is not None:
                # What streams still hold can be read, but nobody need ever do it.
                self._budget.used_bytes -= self._buffered
                self._budget = None
            self.closed.set()
        assert self.reason is not None
        return self.reason

    async def _contain(self, carry: Callable[[], Awaitable[None]]) -> None:
        try:
            await carry()
        except NetworkError as error:
            self._break_off(error)
        except Exception:  # a fault of ours, met on what this peer sent, must not cost the other peers anything
            logger.exception("a connection to %s is closed after an internal error", self.peer)
            self._break_off(ConnectionLost("internal error"), yamux.GoAwayCode.INTERNAL_ERROR)

    def _break_off(self, error: NetworkError, code: yamux.GoAwayCode = yamux.GoAwayCode.PROTOCOL_ERROR) -> None:
        """End the connection now; a peer at fault is told so if its socket takes it."""
        self._end(error)
        if isinstance(error, PeerMisbehaved) or code is yamux.GoAwayCode.INTERNAL_ERROR:
            self._session.go_away(code)
            try:
                self._outbox.transmit_batch()
            except NetworkError:
                logger.debug("%s could not be told why it is cut off", self.peer)
        if self._nursery is not None:
            self._nursery.cancel_scope.cancel()

    def _end(self, reason: NetworkError) -> None:
        """Fail whatever waits on this connection. Idempotent; the first reason stays."""
        if self.reason is None:
            self.reason = reason
        lost = ConnectionLost(str(self.reason))
        for stream in [*self._streams.values()]:
            self._unqueue_failed(stream, lost)
            self._release_slot(stream)
        for ping in self._pings.values():
            ping.answered.set()
        self._pings.clear()
        self._acceptors.unpark_all()

    async def aclose(self, reason: str) -> None:
        """Say goodbye and close. Waits at most a second; every stream raises ConnectionLost from now on. Idempotent."""
        if not self.closed.is_set():
            if self.reason is None:
                self._end(ConnectionLost(f"we closed the connection: {reason}"))
                self._session.go_away(yamux.GoAwayCode.NORMAL)
                self._outbox.finish()
            if self._nursery is None:
                # Never run: nobody carries the goodbye.
                await self._wire.aclose()
                self.closed.set()
            with trio.CancelScope(deadline=trio.current_time() + GOODBYE_S, shield=True):
                await self.closed.wait()
            if self._nursery is not None:
                self._nursery.cancel_scope.cancel()
        await trio.lowlevel.cancel_shielded_checkpoint()

    def _check_alive(self) -> None:
        if self.reason is not None:
            raise ConnectionLost(str(self.reason))

    # --------------------------------------------------------------- reading

    async def _read(self) -> None:
        inbox, session = self._inbox, self._session
        self._act_on(session.receive(memoryview(self._early)))
        self._early = b""
        inbox.load()
        while True:
            handled = 0
            while (plaintext := inbox.next_message()) is not None:
                events = session.receive(plaintext)
                self._act_on(events)
                handled += len(events) + 1
                if handled > MAX_EVENTS_PER_TURN:
                    handled = 0
                    inbox.put_aside()
                    self._settle()
                    await trio.lowlevel.checkpoint()
                    inbox.load()
            inbox.put_aside()
            self._settle()
            await inbox.fill()

    def _settle(self) -> None:
        """After a turn of reading: see that what it caused is written."""
        if len(self._session.out) > MAX_OWED_BYTES:
            raise PeerMisbehaved("the peer makes us answer and does not read the answers")
        self._outbox.wake()

    def _act_on(self, events: list[yamux.Event]) -> None:
        for event in events:
            if event.__class__ is yamux.Received:
                stream = self._streams.get(event.stream.number)
                if stream is not None:
                    self._deliver(stream, event.payload)
                continue
            match event:
                case yamux.Opened():
                    self._admit(event.stream)
                case yamux.Pong():
                    self._take_pong(event.number)
                case yamux.GoneAway():
                    self._take_goodbye(event.code)
                case yamux.Acknowledged() | yamux.Writable() | yamux.Ended() | yamux.WasReset():
                    stream = self._streams.get(event.stream.number)
                    if stream is not None:
                        self._notice(stream, event)

    def _deliver(self, stream: MuxedStream, payload: memoryview) -> None:
        if stream.closed:
            # We are done with the stream, and it cannot be told but by a reset.
            self.reset(stream, StreamReset("we closed the stream"))
        elif stream.negotiation is not None and (self._offered is not None or isinstance(stream.negotiation, Dialer)):
            self._negotiate(stream, payload)
        else:
            # As well what a peer says before anybody accepts streams: it waits for the first `accept_stream`.
            stream.deliver(payload)
            over = self._buffered > self._limits.max_buffered_bytes
            if over or (self._budget is not None and self._budget.used_bytes > self._budget.max_bytes):
                logger.warning("%s sends more than is read: %r is reset", self.peer, stream)
                self.reset(stream, StreamReset("too much was received and not read"))

    def _notice(
        self,
        stream: MuxedStream,
        event: yamux.Acknowledged | yamux.Writable | yamux.Ended | yamux.WasReset,
    ) -> None:
        match event:
            case yamux.Acknowledged():
                self._release_slot(stream)
            case yamux.Writable():
                self._outbox.queue(stream)
            case yamux.Ended():
                if not stream.unread:
                    self._check_negotiable(stream)
                stream.notice_end()
                self._forget_if_gone(stream)
            case yamux.WasReset():
                self._unqueue_failed(stream, StreamReset("the peer reset the stream"))
                self._forget_if_gone(stream)

    def _take_pong(self, number: int) -> None:
        ping = self._pings.pop(number, None)
        if ping is None:
            return
        now = trio.current_time()
        ping.rtt_s = now - ping.sent_at
        ping.answered.set()
        self._measured_at = now
        self.rtt_s = ping.rtt_s if self.rtt_s is None else 0.75 * self.rtt_s + 0.25 * ping.rtt_s

    def _take_goodbye(self, code: int) -> None:
        # After a normal goodbye the streams that are open may still finish.
        if code != yamux.GoAwayCode.NORMAL or not self._streams:
            raise ConnectionLost(f"the peer ended the connection (code {code})")

    # --------------------------------------------- what streams ask of it

    def send_small(self, stream: MuxedStream, data: memoryview) -> bool:
        """Take a few bytes to be written at the end of the turn; return whether they were taken."""
        return self._outbox.take_small(stream, data)

    def send_large(self, stream: MuxedStream) -> None:
        """Write what can be written of `stream.outgoing` at once, and queue it for the rest."""
        try:
            self._outbox.write_now(stream)
        except NetworkError as error:
            self._break_off(error)

    async def breathe(self) -> None:
        """A checkpoint, but a cheap one unless much was moved since the last that let other tasks run."""
        if self._since_breath < BATCH_BYTES:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            self._since_breath = 0
            await trio.lowlevel.checkpoint()

    def count_moved(self, count: int) -> None:
        """Bytes went to or from an application. Each call counts for something, or tiny ones would never breathe."""
        self._since_breath += max(count, MIN_MOVED_BYTES)

    def unqueue(self, stream: MuxedStream) -> None:
        """Take nothing more from `stream.outgoing`."""
        self._outbox.unqueue(stream)

    def _unqueue_failed(self, stream: MuxedStream, error: NetworkError) -> None:
        self._outbox.unqueue(stream)
        stream.fail(error)

    def consume(self, stream: MuxedStream, count: int) -> None:
        """*count* received bytes are out of the way: let the peer send more."""
        self.count_moved(count)
        now = trio.current_time()
        rtt_s = max(self.rtt_s or 0.0, MIN_WINDOW_RTT_S)
        if self._session.consume(stream.state, count, now=now, rtt_s=rtt_s):
            if now - self._measured_at > RTT_AGE_S and not self._pings:
                self._send_ping()
            self._outbox.wake()

    def count_buffered(self, count: int) -> None:
        """*count* bytes wait in memory for an application."""
        self._buffered += count
        if self._budget is not None:
            self._budget.used_bytes += count

    def forget_buffered(self, count: int) -> None:
        """They do no longer."""
        self.count_buffered(-count)

    def start(self, stream: MuxedStream, opening: bytes) -> None:
        """Open *stream* on the wire and say *opening* on it."""
        if self.reason is None and not stream.state.gone:
            self._session.start(stream.state)
            self._session.out += self._session.data_header(stream.state, len(opening)) + opening
            self._outbox.wake()

    def end(self, stream: MuxedStream) -> None:
        """End our side of *stream*."""
        self._session.end(stream.state)
        self._outbox.wake()
        self._forget_if_gone(stream)

    def reset(self, stream: MuxedStream, error: StreamReset | ProtocolUnsupported | PeerMisbehaved) -> None:
        """Abort *stream*: its tasks hear *error*."""
        self._session.reset(stream.state)
        self._outbox.wake()
        self._unqueue_failed(stream, error)
        self._forget_if_gone(stream)

    def abandon(self, stream: MuxedStream) -> None:
        """The application is done with *stream*. Unless the peer has ended it, it gets a while to do so."""
        dropped = stream.drop_unread()
        if self.reason is None and not stream.state.gone:
            # So that a peer stuck on its window goes on, and is reset or ends.
            self._session.consume(stream.state, dropped, now=trio.current_time(), rtt_s=0.0)
            self._lingering.begin(stream.state.number, self._nursery)

    def _forget_if_gone(self, stream: MuxedStream) -> None:
        if not stream.state.gone:
            return
        number = stream.state.number
        if self._streams.pop(number, None) is not None:
            self._release_slot(stream)
            self._negotiating.end(number)
            self._lingering.end(number)
            if self._is_ours(number):
                self._outbound -= 1
            else:
                self._inbound -= 1

    def _release_slot(self, stream: MuxedStream) -> None:
        if stream in self._holding_slot:
            self._holding_slot.remove(stream)
            self._unacknowledged.release()

    def _is_ours(self, number: int) -> bool:
        return number & 1 == self.dialer

    # ----------------------------------------------------- opening, accepting

    @property
    def bytes_in(self) -> int:
        """Bytes read from the wire."""
        return self._inbox.bytes_in

    @property
    def last_received(self) -> float:
        """trio time at which the peer last sent anything."""
        return self._inbox.last_received

    @property
    def bytes_out(self) -> int:
        """Bytes written to the wire."""
        return self._outbox.bytes_out

    @property
    def inbound_streams(self) -> int:
        """Streams open that the peer opened."""
        return self._inbound

    @property
    def outbound_streams(self) -> int:
        """Streams open that we opened."""
        return self._outbound

    async def open_stream(self, protocols: Sequence[str], *, lazy: bool = False) -> Stream:
        """Open a stream on the first of *protocols* the peer speaks.

        *lazy*: take the first for granted, without a round trip; the proposal travels with the first bytes sent.
        Where the peer refuses it after all, the stream raises ProtocolUnsupported.

        Raises:
            ProtocolUnsupported: the peer speaks none of them.
            LimitReached: too many streams are open.
            ConnectionLost, StreamReset, PeerMisbehaved.
        """
        self._check_openable()
        await self._unacknowledged.acquire()
        try:
            self._check_openable()
            stream = self._open(protocols[:1] if lazy else protocols)
        except BaseException:  # cancelled too: the slot has to come back
            self._unacknowledged.release()
            raise
        self._holding_slot.add(stream)
        if lazy:
            return stream
        stream.begin()
        try:
            await stream.wait_agreed()
        except BaseException:  # cancelled too: nobody will use the stream
            stream.reset_nowait("negotiation was given up")
            raise
        return stream

    def _check_openable(self) -> None:
        self._check_alive()
        if self._session.peer_went_away:
            raise ConnectionLost("the peer takes no more streams")
        if self._outbound >= self._limits.max_outbound_streams:
            raise LimitReached(f"{self._outbound} streams to {self.peer} are open")

    def _open(self, protocols: Sequence[str]) -> MuxedStream:
        dialer = Dialer(protocols)
        stream = MuxedStream(self, self._session.open(), dialer, protocols[0])
        stream.prepare(dialer.begin())
        self._streams[stream.state.number] = stream
        self._outbound += 1
        return stream

    async def accept_stream(self, offered: Callable[[str], bool] | Collection[str]) -> Stream:
        """Return the next stream on which the peer chose a protocol that is in *offered*.

        *offered* is asked at negotiation, and holds until the next call of accept_stream replaces it. Negotiation goes
        on for all streams side by side, also between calls; before the first call proposals wait.

        Raises:
            ConnectionLost: the connection is over.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        first = self._offered is None
        self._offered = offered if callable(offered) else offered.__contains__
        if first:
            for number in self._negotiating.numbers():
                stream = self._streams[number]
                self._negotiate(stream, memoryview(stream.take_unread()))
                self._check_negotiable(stream)
        while not self._accepted:
            self._check_alive()
            await self._acceptors.park()
        return self._accepted.popleft()

    def _admit(self, state: yamux.StreamState) -> None:
        if self.reason is not None or self._inbound >= self._limits.max_inbound_streams:
            self._session.reset(state)
            return
        self._session.acknowledge(state)
        self._streams[state.number] = MuxedStream(self, state, Responder())
        self._inbound += 1
        self._negotiating.begin(state.number, self._nursery)

    def _negotiate(self, stream: MuxedStream, payload: memoryview) -> None:
        negotiation = stream.negotiation
        try:
            if isinstance(negotiation, Responder):
                assert self._offered is not None
                answer = negotiation.receive(payload, self._offered)
            else:
                assert negotiation is not None
                answer = negotiation.receive(payload)
        except (PeerMisbehaved, ProtocolUnsupported) as error:
            self.reset(stream, error)
            return
        if len(answer) > stream.state.send_window:
            self.reset(stream, PeerMisbehaved("the stream's window does not even hold its negotiation"))
            return
        if answer:
            self._session.out += self._session.data_header(stream.state, len(answer)) + answer
        rest = b"" if negotiation.protocol is None else negotiation.rest()
        self.consume(stream, len(payload) - len(rest))
        if negotiation.protocol is not None:
            stream.agree(negotiation.protocol)
            if rest:
                stream.deliver(rest)
            if isinstance(negotiation, Responder):
                self._hand_over(stream)

    def _check_negotiable(self, stream: MuxedStream) -> None:
        if stream.negotiation is not None and stream.state.ended_by_peer:
            self.reset(stream, StreamReset("the peer ended the stream while its protocol was negotiated"))

    def _hand_over(self, stream: MuxedStream) -> None:
        self._negotiating.end(stream.state.number)
        if len(self._accepted) >= MAX_WAITING_STREAMS:
            self.reset(stream, StreamReset("too many streams wait to be accepted"))
            return
        self._accepted.append(stream)
        self._acceptors.unpark()

    def _run_out_of_patience(self, number: int) -> None:
        self.reset(self._streams[number], StreamReset("the peer took too long to name a protocol or to end the stream"))

    # ------------------------------------------------------------------ pings

    async def ping(self) -> float:
        """Return the round trip time in seconds. Waits for the answer as long as the caller lets it.

        Raises:
            ConnectionLost.
        """
        self._check_alive()
        number = self._send_ping()
        ping = self._pings[number]
        try:
            await ping.answered.wait()
        finally:
            self._pings.pop(number, None)
        if ping.rtt_s is None:
            raise ConnectionLost(str(self.reason))
        return ping.rtt_s

    def _send_ping(self) -> int:
        number = self._session.ping()
        self._pings[number] = _Ping(trio.current_time())
        self._outbox.wake()
        return number

    def __repr__(self) -> str:
        return f"<connection to {self.peer.short} at {self.remote_addr or 'no address'}>"


class _Ping:
    """One ping under way."""

    __slots__ = ("answered", "rtt_s", "sent_at")

    def __init__(self, sent_at: float) -> None:
        self.sent_at = sent_at
        self.answered = trio.Event()
        self.rtt_s: float | None = None

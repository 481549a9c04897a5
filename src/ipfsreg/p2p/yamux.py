"""Yamux, pure: many streams on one byte stream.

A frame is a header of twelve bytes - version, type, flags, stream, length - and, for data, `length` bytes. Streams
begin with SYN (the dialer's have odd numbers), are acknowledged with ACK, end one side with FIN and both with RST.
Each side may send what the other's window allows: 256 KiB at first, more by window updates.

The session turns bytes into events and keeps what it has to say itself (acknowledgements, pongs, window updates) in
`out`; whoever carries it writes `out` before anything sent later. Data is never copied here: an event points into the
bytes that were given, and is good until they are overwritten.

Spec: hashicorp/yamux "spec.md", libp2p "yamux". Where implementations differ:
- SYNs may arrive out of order (Go takes numbers before it queues frames), so any unused number of the peer's opens.
- SYN, ACK, FIN and RST may come on data and on window updates, in any combination, and are all honoured. We send ACK
  alone: py-libp2p does not look at FIN and RST beside it.
- Frames for a stream that is gone are dropped without an answer: they were on their way when it ended.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from ipfsreg.errors import PeerMisbehaved

PROTOCOL = "/yamux/1.0.0"

DATA, WINDOW_UPDATE, PING, GO_AWAY = 0, 1, 2, 3
SYN, ACK, FIN, RST = 1, 2, 4, 8

HEADER = Struct(">BBHII")
HEADER_BYTES = HEADER.size

INITIAL_WINDOW_BYTES = 256 * 1024
"""Fixed by the specification, for both sides of every stream."""

UPDATE_GAP_S = 0.003
"""Between two window updates before half the window is owed: on fast short paths more cost more than they bring."""

MAX_SEND_WINDOW_BYTES = 2**32 - 1
"""A peer that grants more in all has overflowed its own counter."""


class GoAwayCode(IntEnum):
    """Why a session ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class StreamState:
    """What both sides of one stream have done and may still do."""

    __slots__ = (
        "acknowledged",
        "ended_by_peer",
        "ended_by_us",
        "first_at",
        "given",
        "gone",
        "grew_at",
        "number",
        "receive_window",
        "send_window",
        "started",
        "unread",
        "updated_at",
        "window",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.send_window = INITIAL_WINDOW_BYTES
        """Bytes we may still send."""
        self.receive_window = INITIAL_WINDOW_BYTES
        """Bytes the peer may still send."""
        self.window = INITIAL_WINDOW_BYTES
        """What receive_window and unread bytes are filled up to."""
        self.unread = 0
        """Bytes received and not yet given back by `consume`."""
        self.updated_at = float("-inf")
        """When the last window update was said."""
        self.given = 0
        """Bytes given back since `grew_at`."""
        self.first_at: float | None = None
        """When the first byte was given back."""
        self.grew_at = float("-inf")
        """When half a window was last used up, and it was looked at whether the window should grow."""
        self.started = False
        """Whether SYN was sent or received."""
        self.acknowledged = False
        self.ended_by_us = False
        self.ended_by_peer = False
        self.gone = False
        """Reset, or ended by both: it has no place in the session any more."""


@dataclass(slots=True)
class Opened:
    """The peer opened a stream; accept it with `acknowledge` or turn it away with `reset`."""

    stream: StreamState


@dataclass(slots=True)
class Acknowledged:
    """The peer took a stream we opened."""

    stream: StreamState


@dataclass(slots=True)
class Received:
    """Data; *payload* points into the bytes given to `receive`."""

    stream: StreamState
    payload: memoryview


@dataclass(slots=True)
class Writable:
    """The peer lets us send more."""

    stream: StreamState


@dataclass(slots=True)
class Ended:
    """The peer has sent all it will."""

    stream: StreamState


@dataclass(slots=True)
class WasReset:
    """The peer aborted the stream."""

    stream: StreamState


@dataclass(slots=True)
class Pong:
    """The answer to our ping of this number."""

    number: int


@dataclass(slots=True)
class GoneAway:
    """The peer will end the session and takes no more streams."""

    code: int


Event = Opened | Acknowledged | Received | Writable | Ended | WasReset | Pong | GoneAway


class Session:
    """One side of a connection's streams."""

    def __init__(
        self,
        *,
        dialer: bool,
        max_stream_window_bytes: int = 16 * 1024 * 1024,
        max_window_growth_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        """*max_window_growth_bytes*: what all receive windows together may have beyond their first 256 KiB."""
        self.out = bytearray()
        """What the session has to say, in order. The carrier takes it away."""
        self.streams: dict[int, StreamState] = {}
        self._next_number = 1 if dialer else 2
        self._peer_parity = 0 if dialer else 1
        self._highest_of_peer = 0
        self._max_stream_window = max_stream_window_bytes
        self._growth_left = max_window_growth_bytes
        self._header = bytearray()
        self._payload_of: StreamState | None = None
        self._payload_left = 0
        self._payload_flags = 0
        self._next_ping = 0
        self.went_away = False
        """Whether we said GOAWAY."""
        self.peer_went_away = False

    # ------------------------------------------------------------- receiving

    def receive(self, data: memoryview) -> list[Event]:
        """Take in *data*, however the byte stream was cut.

        Raises:
            PeerMisbehaved: the session cannot go on. Events before the bad frame are lost with it.
        """
        events: list[Event] = []
        position, end = 0, len(data)
        while position < end:
            if self._payload_left:
                step = min(self._payload_left, end - position)
                self._take_payload(data[position : position + step], events)
                position += step
                continue
            if self._header or end - position < HEADER_BYTES:
                step = min(HEADER_BYTES - len(self._header), end - position)
                self._header += data[position : position + step]
                position += step
                if len(self._header) < HEADER_BYTES:
                    break
                fields = HEADER.unpack(self._header)
                self._header.clear()
            else:
                fields = HEADER.unpack_from(data, position)
                position += HEADER_BYTES
            version, kind, flags, number, length = fields
            self._take_header(version, kind, flags, number, length, events)
        return events

    def _take_header(self, version: int, kind: int, flags: int, number: int, length: int, events: list[Event]) -> None:
        if version != 0:
            raise PeerMisbehaved(f"Yamux version {version}")
        if kind > GO_AWAY:
            raise PeerMisbehaved(f"Yamux frame of type {kind}")
        if kind <= WINDOW_UPDATE:
            if number == 0:
                raise PeerMisbehaved("a Yamux stream frame for the session")
            self._take_stream_frame(kind, flags, number, length, events)
            return
        if number != 0:
            raise PeerMisbehaved("a Yamux session frame for a stream")
        if kind == PING:
            if flags & SYN:
                self.out += HEADER.pack(0, PING, ACK, 0, length)
            elif flags & ACK:
                events.append(Pong(length))
        else:
            self.peer_went_away = True
            events.append(GoneAway(length))

    def _take_stream_frame(self, kind: int, flags: int, number: int, length: int, events: list[Event]) -> None:
        stream = self.streams.get(number)
        if flags & SYN:
            if stream is not None or number & 1 != self._peer_parity:
                raise PeerMisbehaved(f"Yamux stream {number} opened twice or by the wrong side")
            stream = self.streams[number] = StreamState(number)
            stream.started = True
            self._highest_of_peer = max(self._highest_of_peer, number)
            events.append(Opened(stream))
        elif stream is None or not stream.started:
            highest = self._highest_of_peer if number & 1 == self._peer_parity else self._next_number - 1
            if number > highest or stream is not None:
                raise PeerMisbehaved(f"a Yamux frame for stream {number}, which was never opened")
            stream = None
        if flags & ACK and stream is not None and not stream.acknowledged and number & 1 != self._peer_parity:
            stream.acknowledged = True
            events.append(Acknowledged(stream))
        if kind == DATA and length:
            self._begin_payload(stream, flags, length)
            return
        if kind == WINDOW_UPDATE and length and stream is not None:
            stream.send_window += length
            if stream.send_window > MAX_SEND_WINDOW_BYTES:
                raise PeerMisbehaved(f"the window of Yamux stream {number} overflows")
            events.append(Writable(stream))
        if stream is not None:
            self._take_endings(stream, flags, events)

    def _begin_payload(self, stream: StreamState | None, flags: int, length: int) -> None:
        if stream is not None:
            if stream.ended_by_peer:
                raise PeerMisbehaved(f"data on Yamux stream {stream.number} after its end")
            if length > stream.receive_window:
                raise PeerMisbehaved(
                    f"{length} bytes on Yamux stream {stream.number}, whose window has {stream.receive_window} left"
                )
            stream.receive_window -= length
        elif length > self._max_stream_window:
            raise PeerMisbehaved(f"a Yamux frame of {length} bytes for a stream that is gone")
        self._payload_of, self._payload_left, self._payload_flags = stream, length, flags

    def _take_payload(self, payload: memoryview, events: list[Event]) -> None:
        self._payload_left -= len(payload)
        stream = self._payload_of
        if stream is None or stream.gone:
            return
        stream.unread += len(payload)
        events.append(Received(stream, payload))
        if not self._payload_left:
            self._payload_of = None
            if self._payload_flags & (FIN | RST):
                self._take_endings(stream, self._payload_flags, events)

    def _take_endings(self, stream: StreamState, flags: int, events: list[Event]) -> None:
        if flags & RST:
            self._forget(stream)
            events.append(WasReset(stream))
        elif flags & FIN and not stream.ended_by_peer:
            stream.ended_by_peer = True
            events.append(Ended(stream))
            if stream.ended_by_us:
                self._forget(stream)

    # --------------------------------------------------------------- sending

    def open(self) -> StreamState:
        """A new stream of ours. Nothing is sent before `start`."""
        stream = StreamState(self._next_number)
        if self._next_number > 0xFFFF_FFFF:
            raise PeerMisbehaved("this connection has used up its stream numbers")
        self._next_number += 2
        self.streams[stream.number] = stream
        return stream

    def start(self, stream: StreamState) -> None:
        """Say SYN, once."""
        if not stream.started and not stream.gone:
            stream.started = True
            self._say(WINDOW_UPDATE, SYN, stream.number, 0)

    def acknowledge(self, stream: StreamState) -> None:
        """Say ACK to a stream the peer opened."""
        if not stream.acknowledged and not stream.gone:
            stream.acknowledged = True
            self._say(WINDOW_UPDATE, ACK, stream.number, 0)

    def data_header(self, stream: StreamState, length: int) -> bytes:
        """The header of a data frame; its *length* bytes must follow it. At most the send window."""
        assert stream.started
        assert 0 < length <= stream.send_window
        stream.send_window -= length
        return HEADER.pack(0, DATA, 0, stream.number, length)

    def end(self, stream: StreamState) -> None:
        """Say FIN, once."""
        if stream.ended_by_us or stream.gone:
            return
        stream.ended_by_us = True
        self._say(WINDOW_UPDATE, FIN, stream.number, 0)
        if stream.ended_by_peer:
            self._forget(stream)

    def reset(self, stream: StreamState) -> None:
        """Say RST, unless the stream is gone or the peer never heard of it."""
        if stream.gone:
            return
        if stream.started:
            self._say(WINDOW_UPDATE, RST, stream.number, 0)
        self._forget(stream)

    def consume(self, stream: StreamState, length: int, *, now: float, rtt_s: float) -> bool:
        """Give *length* received bytes back to the window; return whether an update was said.

        An update is worth sending once half the window is owed; and before that, a sixteenth of it at a time, as often
        as a sixteenth of the round trip passes (UPDATE_GAP_S at least): what is owed and not said is missing from
        what may be under way, which with updates by halves alone was a third of the rate.

        A stream's first window is judged from its first byte on, when three quarters of it were used up, and updates
        are said by quarters until then. With halves, and a clock that began with the second of them, a first block of a
        mebibyte waited one round trip more.

        Where half the window was used up faster than four round trips, the window itself held the peer back, and
        doubles: up to throughput x RTT, the stream's cap and what the connection has left. The first time it becomes
        four times as large, so that a block of a mebibyte waits for one update and not for two.
        """
        stream.unread -= length
        owed = stream.window - stream.receive_window - stream.unread
        if stream.first_at is None:
            stream.first_at = now
        is_first = stream.grew_at == float("-inf")
        is_due = owed * (4 if is_first else 2) >= stream.window or (
            owed * 16 >= stream.window and now - stream.updated_at >= max(UPDATE_GAP_S, rtt_s / 16)
        )
        if not is_due or stream.ended_by_peer or stream.gone:
            return False
        stream.given += owed
        if stream.given * 4 >= stream.window * (3 if is_first else 2):
            stream.given = 0
            if now - (stream.first_at if is_first else stream.grew_at) < 4 * rtt_s:
                wanted = stream.window * (3 if stream.window == INITIAL_WINDOW_BYTES else 1)
                growth = min(wanted, self._max_stream_window - stream.window, self._growth_left)
                stream.window += growth
                self._growth_left -= growth
                owed += growth
            stream.grew_at = now
        stream.updated_at = now
        stream.receive_window += owed
        self._say(WINDOW_UPDATE, 0, stream.number, owed)
        return True

    def ping(self) -> int:
        """Ask for a pong; return its number."""
        number = self._next_ping
        self._next_ping = (number + 1) & 0xFFFF_FFFF
        self._say(PING, SYN, 0, number)
        return number

    def go_away(self, code: GoAwayCode) -> None:
        """Say GOAWAY, once."""
        if not self.went_away:
            self.went_away = True
            self._say(GO_AWAY, 0, 0, code)

    def _say(self, kind: int, flags: int, number: int, length: int) -> None:
        self.out += HEADER.pack(0, kind, flags, number, length)

    def _forget(self, stream: StreamState) -> None:
        stream.gone = True
        self._growth_left += stream.window - INITIAL_WINDOW_BYTES
        del self.streams[stream.number]

"""The Yamux session as a state machine."""

from __future__ import annotations

import random
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.errors import PeerMisbehaved
from ipfsreg.p2p.yamux import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    INITIAL_WINDOW_BYTES,
    PING,
    RST,
    SYN,
    WINDOW_UPDATE,
    Acknowledged,
    Ended,
    Event,
    GoAwayCode,
    GoneAway,
    Opened,
    Pong,
    Received,
    Session,
    StreamState,
    WasReset,
    Writable,
)
from ipfsreg.testing.connections import deliveries


def frame(kind: int, flags: int, number: int, length: int, payload: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, number, length) + payload


def data(number: int, payload: bytes, flags: int = 0) -> bytes:
    return frame(DATA, flags, number, len(payload), payload)


def told(events: list[Event]) -> list[Any]:
    """Events in a form that compares: the payload as bytes, the stream as its number."""
    plain: list[Any] = []
    for event in events:
        match event:
            case Received():
                plain.append((event.stream.number, bytes(event.payload)))
            case Pong() | GoneAway():
                plain.append(event)
            case _:
                plain.append((event.stream.number, type(event)))
    return plain


def listener() -> Session:
    return Session(dialer=False)


def feed(session: Session, pieces: list[bytes]) -> None:
    for piece in pieces:
        session.receive(memoryview(piece))


def take(session: Session) -> bytes:
    out = bytes(session.out)
    session.out.clear()
    return out


CONVERSATION = (
    frame(WINDOW_UPDATE, SYN, 1, 0)
    + data(1, b"hello")
    + data(3, b"both at once", SYN | FIN)
    + frame(PING, SYN, 0, 77)
    + data(1, b"")
    + data(1, b" world", FIN)
    + frame(WINDOW_UPDATE, SYN, 5, 1000)
    + frame(WINDOW_UPDATE, RST | ACK, 5, 0)
    + frame(GO_AWAY, 0, 0, 0)
)


@pytest.mark.parametrize("pieces", deliveries(CONVERSATION))
def test_every_cut_of_the_byte_stream_says_the_same(pieces: list[bytes]) -> None:
    session = listener()
    received: dict[int, bytes] = defaultdict(bytes)
    others = []
    for piece in pieces:
        for event in told(session.receive(memoryview(piece))):
            if isinstance(event, tuple) and isinstance(event[1], bytes):
                received[event[0]] += event[1]
            else:
                others.append(event)
    assert received == {1: b"hello world", 3: b"both at once"}
    assert others == [
        (1, Opened),
        (3, Opened),
        (3, Ended),
        (1, Ended),
        (5, Opened),
        (5, Writable),
        (5, WasReset),
        GoneAway(0),
    ]
    assert take(session) == frame(PING, ACK, 0, 77)
    assert sorted(session.streams) == [1, 3]


def test_a_stream_of_ours_is_opened_acknowledged_and_ended_by_both() -> None:
    session = Session(dialer=True)
    stream = session.open()
    assert stream.number == 1
    session.start(stream)
    session.start(stream)
    header = session.data_header(stream, 5)
    session.end(stream)
    session.end(stream)
    assert take(session) == frame(WINDOW_UPDATE, SYN, 1, 0) + frame(WINDOW_UPDATE, FIN, 1, 0)
    assert header == frame(DATA, 0, 1, 5)
    events = session.receive(memoryview(frame(WINDOW_UPDATE, ACK | FIN, 1, 0)))
    assert told(events) == [(1, Acknowledged), (1, Ended)]
    assert stream.gone
    assert session.streams == {}


def test_streams_are_numbered_by_who_dialled() -> None:
    dialer, other = Session(dialer=True), listener()
    assert [dialer.open().number for _ in range(3)] == [1, 3, 5]
    assert [other.open().number for _ in range(3)] == [2, 4, 6]


def test_streams_may_be_opened_out_of_order() -> None:
    session = listener()
    wire = b"".join(frame(WINDOW_UPDATE, SYN, number, 0) for number in (5, 1, 3))
    assert told(session.receive(memoryview(wire))) == [(5, Opened), (1, Opened), (3, Opened)]


def test_frames_for_a_stream_that_is_gone_are_dropped_without_an_answer() -> None:
    session = listener()
    (opened,) = session.receive(memoryview(frame(WINDOW_UPDATE, SYN, 1, 0)))
    assert isinstance(opened, Opened)
    session.reset(opened.stream)
    assert take(session) == frame(WINDOW_UPDATE, RST, 1, 0)
    late = data(1, b"x" * 1000) + frame(WINDOW_UPDATE, 0, 1, 5) + frame(WINDOW_UPDATE, FIN, 1, 0) + data(1, b"", RST)
    assert session.receive(memoryview(late)) == []
    assert take(session) == b""


def test_a_reset_between_the_pieces_of_a_payload_drops_the_rest() -> None:
    session = listener()
    wire = data(1, b"x" * 100, SYN) + data(3, b"y", SYN)
    opened = session.receive(memoryview(wire[:50]))[0]
    assert isinstance(opened, Opened)
    session.reset(opened.stream)
    assert told(session.receive(memoryview(wire[50:]))) == [(3, Opened), (3, b"y")]


@pytest.mark.parametrize(
    "wire",
    [
        b"\x01" + frame(DATA, 0, 1, 0)[1:],
        frame(7, 0, 0, 0),
        frame(DATA, SYN, 0, 0),
        frame(DATA, SYN, 2, 0),
        frame(WINDOW_UPDATE, SYN, 1, 0) * 2,
        data(1, b"never opened"),
        frame(WINDOW_UPDATE, 0, 2, 5),
        frame(PING, SYN, 1, 0),
        frame(GO_AWAY, 0, 1, 0),
        frame(DATA, SYN, 1, INITIAL_WINDOW_BYTES + 1),
        frame(DATA, SYN, 1, 0xFFFF_FFFF),
        frame(WINDOW_UPDATE, SYN, 1, 0xFFFF_FFFF),
        data(1, b"end", SYN | FIN) + data(1, b"more"),
        frame(WINDOW_UPDATE, SYN, 1, 0) + frame(WINDOW_UPDATE, RST, 1, 0) + frame(DATA, 0, 1, 0xFFFF_FFFF),
    ],
)
def test_what_breaks_the_protocol_costs_the_connection(wire: bytes) -> None:
    for pieces in deliveries(wire) if len(wire) < 100 else [[wire]]:
        with pytest.raises(PeerMisbehaved):
            feed(listener(), pieces)


def test_a_peer_that_passes_its_window_in_small_steps_costs_the_connection() -> None:
    session = listener()
    session.receive(memoryview(frame(WINDOW_UPDATE, SYN, 1, 0)))
    step = memoryview(data(1, b"x" * 65536))
    for _ in range(INITIAL_WINDOW_BYTES // 65536):
        session.receive(step)
    with pytest.raises(PeerMisbehaved, match="window"):
        session.receive(memoryview(data(1, b"x")))


def opened_stream(session: Session) -> StreamState:
    (event,) = session.receive(memoryview(frame(WINDOW_UPDATE, SYN, 1, 0)))
    assert isinstance(event, Opened)
    return event.stream


def test_half_a_window_is_given_back_at_once() -> None:
    session = listener()
    stream = opened_stream(session)
    stream.updated_at = 0.0
    stream.grew_at = -1.0
    half = INITIAL_WINDOW_BYTES // 2
    session.receive(memoryview(data(1, bytes(half - 1))))
    assert not session.consume(stream, half - 1, now=0.0, rtt_s=0.01)
    session.receive(memoryview(data(1, bytes(1))))
    assert session.consume(stream, 1, now=0.0, rtt_s=0.01)
    assert take(session) == frame(WINDOW_UPDATE, 0, 1, half)
    assert stream.receive_window == INITIAL_WINDOW_BYTES


@pytest.mark.parametrize("step", [65536, 65507, 100_000, INITIAL_WINDOW_BYTES])
def test_a_first_window_that_is_used_up_in_one_go_grows_before_the_peer_hears_of_any_update(step: int) -> None:
    session = listener()
    stream = opened_stream(session)
    session.receive(memoryview(data(1, bytes(INITIAL_WINDOW_BYTES))))
    left = INITIAL_WINDOW_BYTES
    while left:
        session.consume(stream, min(step, left), now=0.0, rtt_s=0.05)
        left -= min(step, left)
    assert stream.window == 4 * INITIAL_WINDOW_BYTES


def test_a_sixteenth_of_a_window_is_given_back_after_a_sixteenth_of_a_round_trip() -> None:
    session = listener()
    stream = opened_stream(session)
    stream.updated_at = 0.0
    part = INITIAL_WINDOW_BYTES // 16
    session.receive(memoryview(data(1, bytes(3 * part))))
    assert not session.consume(stream, part, now=0.9, rtt_s=16.0), "too soon"
    assert session.consume(stream, part - 1, now=1.0, rtt_s=16.0)
    assert take(session) == frame(WINDOW_UPDATE, 0, 1, 2 * part - 1)
    assert not session.consume(stream, part - 1, now=5.0, rtt_s=16.0), "too little"
    assert stream.window == INITIAL_WINDOW_BYTES, "it grows by what half a window takes, not by updates"


def test_bytes_nobody_read_are_not_given_back() -> None:
    session = listener()
    stream = opened_stream(session)
    session.receive(memoryview(data(1, bytes(INITIAL_WINDOW_BYTES))))
    assert session.consume(stream, INITIAL_WINDOW_BYTES // 2, now=0.0, rtt_s=0.01)
    assert stream.receive_window == INITIAL_WINDOW_BYTES // 2


def drain(session: Session, stream: StreamState, *, every_s: float, times: int) -> None:
    now = 0.0
    for _ in range(times):
        size = stream.window // 2
        session.receive(memoryview(data(stream.number, bytes(size))))
        session.consume(stream, size, now=now, rtt_s=0.05)
        now += every_s


def test_a_window_that_holds_its_peer_back_doubles_up_to_the_cap() -> None:
    session = Session(dialer=False, max_stream_window_bytes=4 << 20)
    stream = opened_stream(session)
    drain(session, stream, every_s=0.1, times=12)
    assert stream.window == 4 << 20


def test_a_window_that_holds_nobody_back_stays() -> None:
    session = listener()
    stream = opened_stream(session)
    drain(session, stream, every_s=0.3, times=12)
    assert stream.window == INITIAL_WINDOW_BYTES


def test_windows_grow_out_of_one_purse_and_give_back_to_it() -> None:
    session = Session(dialer=False, max_window_growth_bytes=768 * 1024)
    first = opened_stream(session)
    drain(session, first, every_s=0.1, times=12)
    assert first.window == 1 << 20
    session.receive(memoryview(frame(WINDOW_UPDATE, SYN, 3, 0)))
    second = session.streams[3]
    drain(session, second, every_s=0.1, times=3)
    assert second.window == INITIAL_WINDOW_BYTES
    session.reset(first)
    drain(session, second, every_s=0.1, times=12)
    assert second.window == 1 << 20


def test_goodbyes_and_pings_go_out_once() -> None:
    session = listener()
    session.go_away(GoAwayCode.PROTOCOL_ERROR)
    session.go_away(GoAwayCode.NORMAL)
    assert (session.ping(), session.ping()) == (0, 1)
    assert take(session) == frame(GO_AWAY, 0, 0, 1) + frame(PING, SYN, 0, 0) + frame(PING, SYN, 0, 1)
    assert session.receive(memoryview(frame(PING, ACK, 0, 1))) == [Pong(1)]


def test_a_stream_the_peer_never_heard_of_is_reset_in_silence() -> None:
    session = Session(dialer=True)
    session.reset(session.open())
    assert take(session) == b""
    assert session.streams == {}


@settings(max_examples=60)
@given(st.integers())
def test_two_sessions_carry_every_byte_in_order_whatever_happens(seed: int) -> None:
    rng = random.Random(seed)
    ends = [Session(dialer=True), Session(dialer=False)]
    wires = [bytearray(), bytearray()]
    sent: list[dict[int, bytes]] = [{}, {}]
    received: list[dict[int, bytes]] = [defaultdict(bytes), defaultdict(bytes)]

    def move(side: int, count: int) -> None:
        """Carry *count* bytes of what *side* said to the other."""
        wires[side] += take(ends[side])
        piece = bytes(wires[side][:count])
        del wires[side][:count]
        other = 1 - side
        for event in ends[other].receive(memoryview(piece)):
            if isinstance(event, Opened):
                ends[other].acknowledge(event.stream)
            elif isinstance(event, Received):
                received[other][event.stream.number] += bytes(event.payload)
                ends[other].consume(event.stream, len(event.payload), now=0.0, rtt_s=0.0)

    for _ in range(rng.randrange(5, 120)):
        side = rng.randrange(2)
        session = ends[side]
        alive = [s for s in session.streams.values() if s.started and not s.ended_by_us]
        match rng.choice(["open", "send", "send", "send", "end", "move", "move"]):
            case "open" if len(session.streams) < 8:
                session.start(session.open())
            case "send" if alive:
                stream = rng.choice(alive)
                size = min(rng.choice([1, 11, 5000, 70000]), stream.send_window)
                if size:
                    payload = rng.randbytes(size)
                    session.out += session.data_header(stream, size) + payload
                    sent[side][stream.number] = sent[side].get(stream.number, b"") + payload
            case "end" if alive:
                session.end(rng.choice(alive))
            case _:
                move(side, rng.choice([1, 11, 12, 13, 1000, 100000]))
    for side in range(2):
        move(side, 1 << 30)  # so that both know all streams
    for session in ends:
        for stream in list(session.streams.values()):
            session.end(stream)
    for side in range(2):
        move(side, 1 << 30)
    for side in range(2):
        assert dict(received[1 - side]) == sent[side]
        assert ends[side].streams == {}


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=60), max_size=8))
def test_garbage_is_refused_or_ignored_and_never_fails_otherwise(pieces: list[bytes]) -> None:
    session = listener()
    try:
        for piece in pieces:
            session.receive(memoryview(piece))
    except PeerMisbehaved:
        return


@settings(max_examples=200)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([DATA, WINDOW_UPDATE, PING, GO_AWAY]),
            st.integers(0, 15),
            st.integers(0, 6),
            st.integers(0, 40),
        ),
        max_size=30,
    )
)
def test_any_order_of_valid_frames_is_refused_or_understood(frames: list[tuple[int, int, int, int]]) -> None:
    session = listener()
    ours = session.open()
    session.start(ours)
    try:
        for kind, flags, number, length in frames:
            wire = frame(kind, flags, number, length, bytes(length) if kind == DATA else b"")
            for event in session.receive(memoryview(wire)):
                if isinstance(event, Received):
                    session.consume(event.stream, len(event.payload), now=0.0, rtt_s=0.0)
    except PeerMisbehaved:
        return
    assert all(not stream.gone and stream.unread == 0 for stream in session.streams.values())

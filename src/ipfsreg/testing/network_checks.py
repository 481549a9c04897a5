"""The promises of `Network` and `Stream`, as checks that every implementation passes.

    @pytest.mark.parametrize("promise", PROMISES, ids=name_of)
    async def test_the_real_host_keeps_its_promises(promise):
        async with open_pair() as (alice, bob): await promise(alice, bob)

Each check gets two fresh networks that are not connected yet; alice can reach bob at `bob.listen_addrs()`.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial

import trio
import trio.testing

from ipfsreg.errors import (
    ConnectionLost,
    NetworkError,
    PeerUnreachable,
    ProtocolUnsupported,
    StreamReset,
)
from ipfsreg.p2p.interface import Network, PeerChange, PeerEvent, PeerInfo, Stream
from ipfsreg.peer_id import PeerId

PATIENCE_S = 30.0
"""How long any step may take; none takes long where the promise is kept."""

ECHO, OTHER, UNKNOWN = "/check/echo/1.0.0", "/check/other/1.0.0", "/check/unknown/1.0.0"

ABSENT = PeerId(b"\x00\x24\x08\x01\x12\x20" + b"\x00" * 32)
"""Nobody has this key."""

OpenPair = Callable[[], AbstractAsyncContextManager[tuple[Network, Network]]]
Promise = Callable[[Network, Network], Awaitable[None]]


async def check_network(open_pair: OpenPair) -> None:
    """Raise AssertionError unless the networks of *open_pair* keep every promise."""
    for promise in PROMISES:
        async with open_pair() as (alice, bob):
            await promise(alice, bob)


def name_of(promise: Promise) -> str:
    """The promise as a test's name."""
    return str(getattr(promise, "__name__", promise))


def info_of(network: Network) -> PeerInfo:
    """Where *network* can be reached."""
    return PeerInfo(network.peer_id, tuple(network.listen_addrs()))


async def receive_all(stream: Stream) -> bytes:
    """Everything until the peer ends its side."""
    received = bytearray()
    while piece := await stream.receive_some():
        received += piece
    return bytes(received)


async def _echo(streams: AsyncIterator[Stream]) -> None:
    async with trio.open_nursery() as nursery:
        async for stream in streams:
            nursery.start_soon(_echo_one, stream)


async def _echo_one(stream: Stream) -> None:
    try:
        while piece := await stream.receive_some():
            await stream.send_all(piece)
        await stream.send_eof()
    except NetworkError:
        await stream.reset()


async def _connected(alice: Network, bob: Network) -> None:
    """Connect, and wait until both sides know what the other speaks."""
    await alice.connect(info_of(bob))
    for here, there in ((alice, bob), (bob, alice)):
        await _wait_for(here, PeerEvent(there.peer_id, PeerChange.IDENTIFIED))


async def _wait_for(network: Network, wanted: PeerEvent) -> None:
    async with network.events() as events:
        async for event in events:
            if event == wanted:
                return


# ------------------------------------------------------------------ streams


async def what_is_sent_comes_back(alice: Network, bob: Network) -> None:
    """Bytes, in order, and the end of the stream; with the names of peer and protocol on both sides."""
    async with bob.accept([ECHO]) as streams, trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"hello")
            theirs = await anext(streams)
            assert (ours.peer, ours.protocol) == (bob.peer_id, ECHO)
            assert (theirs.peer, theirs.protocol) == (alice.peer_id, ECHO)
            nursery.start_soon(_echo_one, theirs)
            await ours.send_all(bytearray(b" wor"))
            await ours.send_all(memoryview(b"ld"))
            await ours.send_eof()
            await ours.send_eof()
            assert await receive_all(ours) == b"hello world"
            assert await ours.receive_some() == b"", "the end stays the end"


async def each_side_ends_on_its_own(alice: Network, bob: Network) -> None:
    """After send_eof the other direction goes on."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"question")
            await ours.send_eof()
            theirs = await anext(streams)
            assert await receive_all(theirs) == b"question"
            for number in range(10):
                await theirs.send_all(b"%d" % number)
            await theirs.aclose()
            assert await receive_all(ours) == b"0123456789"
            await ours.aclose()


async def receive_into_fills_the_given_memory(alice: Network, bob: Network) -> None:
    """And says how much; never more than there is room for."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"0123456789")
            await ours.send_eof()
            theirs = await anext(streams)
            memory = bytearray(10)
            filled = 0
            while filled < 10:
                count = await theirs.receive_into(memoryview(memory)[filled : filled + 3])
                assert 1 <= count <= 3
                filled += count
            assert memory == b"0123456789"
            assert await theirs.receive_into(bytearray(1)) == 0


async def a_reset_reaches_both_directions(alice: Network, bob: Network) -> None:
    """The peer hears of it when it sends and when it receives; the connection lives on."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"x")
            theirs = await anext(streams)
            assert await theirs.receive_some() == b"x"
            await ours.reset()
            await ours.reset()
            await _expect(StreamReset, theirs.receive_some)
            await _expect(StreamReset, theirs.send_all, b"y")
            await _expect(StreamReset, ours.receive_some)
            await _expect(StreamReset, ours.send_all, b"y")
            again = await alice.open_stream(bob.peer_id, [ECHO])
            await again.send_all(b"still here")
            assert await (await anext(streams)).receive_some() == b"still here"


async def a_closed_stream_never_raises_on_closing(alice: Network, bob: Network) -> None:
    """aclose and reset in any order, as often as one likes, on a live and on a lost connection."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            other = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"x")
            await other.send_all(b"x")
            theirs = await anext(streams)
            await ours.aclose()
            await ours.aclose()
            await ours.reset()
            await theirs.aclose()
            await theirs.reset()
            await alice.disconnect(bob.peer_id, "done")
            await other.reset()
            await other.aclose()


async def much_goes_both_ways_at_once(alice: Network, bob: Network) -> None:
    """More than any window, in both directions of several streams; neither side waits for the other to finish."""
    async with bob.accept([ECHO]) as streams, trio.open_nursery() as nursery:
        nursery.start_soon(_echo, streams)
        with trio.fail_after(4 * PATIENCE_S):
            await alice.connect(info_of(bob))
            async with trio.open_nursery() as transfers:
                for seed in range(3):
                    transfers.start_soon(_transfer, alice, bob.peer_id, random.Random(seed).randbytes(3_000_000 + seed))
        nursery.cancel_scope.cancel()


async def _transfer(network: Network, peer: PeerId, data: bytes) -> None:
    stream = await network.open_stream(peer, [ECHO])
    received: list[bytes] = []

    async def receive() -> None:
        received.append(await receive_all(stream))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await stream.send_all(data)
        await stream.send_eof()
    assert received == [data]


async def one_slow_reader_holds_up_nobody_else(alice: Network, bob: Network) -> None:
    """A stream nobody reads fills its window and waits; others on the same connection go on."""
    async with (
        bob.accept([ECHO]) as echoes,
        bob.accept([OTHER]) as unread,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_echo, echoes)
        with trio.fail_after(2 * PATIENCE_S):
            await alice.connect(info_of(bob))
            stuck = await alice.open_stream(bob.peer_id, [OTHER])
            await stuck.send_all(b"x")
            await anext(unread)
            with trio.move_on_after(0.3) as waited:
                await stuck.send_all(bytes(64_000_000))
            assert waited.cancelled_caught, "64 MB went into a stream that nobody reads"
            await _transfer(alice, bob.peer_id, bytes(1_000_000))
            await stuck.reset()
        nursery.cancel_scope.cancel()


async def a_cancelled_send_costs_only_its_stream(alice: Network, bob: Network) -> None:
    """What arrived is a prefix of what was sent, and other streams are sound."""
    data = random.Random(7).randbytes(8_000_000)
    async with (
        bob.accept([ECHO]) as echoes,
        bob.accept([OTHER]) as streams,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(_echo, echoes)
        with trio.fail_after(2 * PATIENCE_S):
            await alice.connect(info_of(bob))
            for _ in range(5):
                ours = await alice.open_stream(bob.peer_id, [OTHER])
                await ours.send_all(data[:1])
                theirs = await anext(streams)
                with trio.move_on_after(0.02):
                    await ours.send_all(data[1:])
                await ours.reset()
                received = bytearray()
                try:
                    while piece := await theirs.receive_some():
                        received += piece
                except StreamReset:
                    pass
                assert data.startswith(received)
                await _transfer(alice, bob.peer_id, data[:100_000])
        nursery.cancel_scope.cancel()


async def a_cancelled_receive_loses_nothing(alice: Network, bob: Network) -> None:
    """What was on its way when a receive was cancelled comes with the next one."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            ours = await alice.open_stream(bob.peer_id, [ECHO])
            await ours.send_all(b"a")
            theirs = await anext(streams)
            assert await theirs.receive_some() == b"a"
            with trio.move_on_after(0.01) as waited:
                await theirs.receive_some()
            assert waited.cancelled_caught
            await ours.send_all(b"bc")
            await ours.send_eof()
            assert await receive_all(theirs) == b"bc"


# ------------------------------------------------------------------ protocols


async def the_first_protocol_both_speak_is_taken(alice: Network, bob: Network) -> None:
    """In the opener's order, whether or not identify has answered yet."""
    async with bob.accept([OTHER, ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            for _ in range(2):
                ours = await alice.open_stream(bob.peer_id, [UNKNOWN, ECHO, OTHER])
                await ours.send_all(b"x")
                assert ours.protocol == ECHO
                assert (await anext(streams)).protocol == ECHO
                await _connected(alice, bob)


async def an_unknown_protocol_is_refused(alice: Network, bob: Network) -> None:
    """With ProtocolUnsupported, at the latest when the stream is used."""
    with trio.fail_after(PATIENCE_S):
        await alice.connect(info_of(bob))
        await _expect_refusal(alice, bob.peer_id)
        await _connected(alice, bob)
        await _expect_refusal(alice, bob.peer_id)
        assert bob.peer_id in alice.peers(), "a refusal is no reason to part"


async def a_withdrawn_protocol_is_refused(alice: Network, bob: Network) -> None:
    """Although the peer was known to speak it; and what waited to be taken is reset."""
    with trio.fail_after(PATIENCE_S):
        async with bob.accept([UNKNOWN]):
            await _connected(alice, bob)
            waiting = await alice.open_stream(bob.peer_id, [UNKNOWN])
            await waiting.send_all(b"x")
            # Another stream's echo shows that the first one has arrived at bob.
            async with bob.accept([ECHO]) as echoes:
                probe = await alice.open_stream(bob.peer_id, [ECHO])
                await probe.send_all(b"x")
                await anext(echoes)
        await _expect(StreamReset, waiting.receive_some)
        await _expect_refusal(alice, bob.peer_id)


async def _expect_refusal(network: Network, peer: PeerId) -> None:
    try:
        stream = await network.open_stream(peer, [UNKNOWN])
        await stream.send_all(b"x")
        await stream.receive_some()
    except ProtocolUnsupported:
        return
    raise AssertionError(f"a stream on {UNKNOWN} was taken")


async def too_many_waiting_streams_are_reset(alice: Network, bob: Network) -> None:
    """Those that wait already are kept."""
    async with bob.accept([ECHO], max_waiting=2) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            for number in range(2):
                stream = await alice.open_stream(bob.peer_id, [ECHO])
                await stream.send_all(b"%d" % number)
            stream = await alice.open_stream(bob.peer_id, [ECHO])
            await _expect(StreamReset, _send_and_receive, stream)
            for number in range(2):
                theirs = await anext(streams)
                assert await theirs.receive_some() == b"%d" % number
            stream = await alice.open_stream(bob.peer_id, [ECHO])
            await stream.send_all(b"room again")
            assert await (await anext(streams)).receive_some() == b"room again"


# ------------------------------------------------------------------ peers


async def a_peer_is_told_of_and_known(alice: Network, bob: Network) -> None:
    """CONNECTED, IDENTIFIED, DISCONNECTED, on both sides; and what is known in between."""
    async with alice.events() as alices, bob.events() as bobs, bob.accept([ECHO]):
        with trio.fail_after(PATIENCE_S):
            assert alice.peers() == []
            assert alice.protocols_of(bob.peer_id) is None
            await alice.connect(info_of(bob))
            assert alice.peers() == [bob.peer_id]
            for events, peer in ((alices, bob.peer_id), (bobs, alice.peer_id)):
                assert await anext(events) == PeerEvent(peer, PeerChange.CONNECTED)
                assert await anext(events) == PeerEvent(peer, PeerChange.IDENTIFIED)
            protocols = alice.protocols_of(bob.peer_id)
            assert protocols is not None
            assert ECHO in protocols
            assert alice.addrs_of(bob.peer_id)[:1] != []
            await alice.disconnect(bob.peer_id, "done")
            assert alice.peers() == []
            for events, peer in ((alices, bob.peer_id), (bobs, alice.peer_id)):
                event = await anext(events)
                while event.change is PeerChange.IDENTIFIED:
                    event = await anext(events)
                assert event == PeerEvent(peer, PeerChange.DISCONNECTED)
            assert bob.peers() == []
            assert alice.protocols_of(bob.peer_id) is None


async def a_late_reader_hears_of_who_is_there(alice: Network, bob: Network) -> None:
    """Events begin with the present."""
    with trio.fail_after(PATIENCE_S):
        await _connected(alice, bob)
        async with alice.events() as events:
            assert await anext(events) == PeerEvent(bob.peer_id, PeerChange.CONNECTED)
            assert await anext(events) == PeerEvent(bob.peer_id, PeerChange.IDENTIFIED)


async def a_slow_reader_hears_the_last_of_each(alice: Network, bob: Network) -> None:
    """However often a peer came and went: what waits for a reader does not pile up, and ends with how it stands."""
    with trio.fail_after(PATIENCE_S):
        async with alice.events() as events:
            for _ in range(5):
                await _connected(alice, bob)
                await alice.disconnect(bob.peer_id, "again")
            await _connected(alice, bob)
            heard = [await anext(events) for _ in range(3)]
            assert [event.change for event in heard] == [
                PeerChange.DISCONNECTED,
                PeerChange.CONNECTED,
                PeerChange.IDENTIFIED,
            ]


async def a_new_protocol_becomes_known(alice: Network, bob: Network) -> None:
    """Offered after the connection was made; told as IDENTIFIED."""
    with trio.fail_after(PATIENCE_S):
        await _connected(alice, bob)
        async with alice.events() as events, bob.accept([OTHER]) as streams:
            while OTHER not in (alice.protocols_of(bob.peer_id) or ()):
                event = await anext(events)
                assert event.change is not PeerChange.DISCONNECTED
            stream = await alice.open_stream(bob.peer_id, [OTHER])
            await stream.send_all(b"x")
            assert await (await anext(streams)).receive_some() == b"x"


async def parting_wakes_everybody_who_waits(alice: Network, bob: Network) -> None:
    """Receivers, and senders whose window is full, on both sides, at once."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            await alice.connect(info_of(bob))
            calls: dict[str, Callable[[], Awaitable[object]]] = {}
            for number in range(2):
                ours = await alice.open_stream(bob.peer_id, [ECHO])
                await ours.send_all(b"x")
                theirs = await anext(streams)
                assert await theirs.receive_some() == b"x"
                if number:
                    calls["our receiver"], calls["their receiver"] = ours.receive_some, theirs.receive_some
                else:
                    calls["our sender"] = partial(ours.send_all, bytes(64_000_000))
                    calls["their sender"] = partial(theirs.send_all, bytes(64_000_000))
            woken: set[str] = set()

            async def expect_lost(name: str) -> None:
                try:
                    await calls[name]()
                except ConnectionLost:
                    woken.add(name)

            async with trio.open_nursery() as nursery:
                for name in calls:
                    nursery.start_soon(expect_lost, name)
                await trio.testing.wait_all_tasks_blocked(0.05)
                await alice.disconnect(bob.peer_id, "done")
            assert woken == set(calls)


async def whoever_is_not_there_is_unreachable(alice: Network, bob: Network) -> None:
    """With and without addresses; and ourselves."""
    with trio.fail_after(2 * PATIENCE_S):
        await _expect(PeerUnreachable, alice.connect, PeerInfo(ABSENT))
        await _expect(PeerUnreachable, alice.open_stream, ABSENT, [ECHO])
        await _expect(PeerUnreachable, alice.connect, info_of(alice))
        # Somebody else lives there.
        await _expect(PeerUnreachable, alice.connect, PeerInfo(ABSENT, tuple(bob.listen_addrs())))
        await alice.connect(info_of(bob))


async def a_stream_dials_if_need_be(alice: Network, bob: Network) -> None:
    """Once the peer's address is known; and again after the connection is lost."""
    async with bob.accept([ECHO]) as streams:
        with trio.fail_after(PATIENCE_S):
            alice.add_addrs(info_of(bob))
            for _ in range(2):
                stream = await alice.open_stream(bob.peer_id, [ECHO])
                await stream.send_all(b"x")
                assert await (await anext(streams)).receive_some() == b"x"
                await alice.disconnect(bob.peer_id, "again")


async def connecting_twice_is_connecting_once(alice: Network, bob: Network) -> None:
    """By many at once, from both sides."""
    with trio.fail_after(PATIENCE_S):
        async with alice.events() as events, trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(alice.connect, info_of(bob))
                if bob.listen_addrs() and alice.listen_addrs():
                    nursery.start_soon(bob.connect, info_of(alice))
        assert alice.peers() == [bob.peer_id]
        assert bob.peers() == [alice.peer_id]
        assert await anext(events) == PeerEvent(bob.peer_id, PeerChange.CONNECTED)


async def addresses_are_remembered(alice: Network, bob: Network) -> None:
    """Not our own; each once."""
    alice.add_addrs(PeerInfo(ABSENT, ("/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1")))
    assert sorted(alice.addrs_of(ABSENT)) == ["/ip4/192.0.2.1/tcp/1", "/ip4/192.0.2.2/tcp/1"]
    alice.add_addrs(PeerInfo(alice.peer_id, ("/ip4/192.0.2.1/tcp/1",)))
    assert alice.addrs_of(alice.peer_id) == []
    assert alice.addrs_of(bob.peer_id) == []
    await trio.lowlevel.checkpoint()


async def _send_and_receive(stream: Stream) -> None:
    await stream.send_all(b"x")
    await stream.receive_some()


async def _expect(kind: type[NetworkError], call: Callable[..., Awaitable[object]], *args: object) -> None:
    """*call* must raise *kind*, now or once what was on its way before has been taken."""
    for _ in range(1000):
        try:
            await call(*args)
        except kind:
            return
    raise AssertionError(f"{call} did not raise {kind.__name__}")


PROMISES: tuple[Promise, ...] = (
    what_is_sent_comes_back,
    each_side_ends_on_its_own,
    receive_into_fills_the_given_memory,
    a_reset_reaches_both_directions,
    a_closed_stream_never_raises_on_closing,
    much_goes_both_ways_at_once,
    one_slow_reader_holds_up_nobody_else,
    a_cancelled_send_costs_only_its_stream,
    a_cancelled_receive_loses_nothing,
    the_first_protocol_both_speak_is_taken,
    an_unknown_protocol_is_refused,
    a_withdrawn_protocol_is_refused,
    too_many_waiting_streams_are_reset,
    a_peer_is_told_of_and_known,
    a_late_reader_hears_of_who_is_there,
    a_slow_reader_hears_the_last_of_each,
    a_new_protocol_becomes_known,
    parting_wakes_everybody_who_waits,
    whoever_is_not_there_is_unreachable,
    a_stream_dials_if_need_be,
    connecting_twice_is_connecting_once,
    addresses_are_remembered,
)

"""/ipfs/ping/1.0.0."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ipfsreg.errors import PeerMisbehaved, StreamReset
from ipfsreg.p2p.ping import IDLE_S, PROTOCOL, answer_pings, measure_rtt
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.network_checks import receive_all


async def test_a_ping_takes_the_time_there_and_back(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    swarm.delay(alice, bob, 0.25)
    async with bob.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, streams)
        assert await measure_rtt(alice, bob.peer_id) == pytest.approx(0.5)
        nursery.cancel_scope.cancel()


async def test_other_bytes_are_no_answer(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")

    async def lie() -> None:
        async with bob.accept([PROTOCOL]) as streams:
            async for stream in streams:
                await stream.receive_some()
                await stream.send_all(bytes(32))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie)
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(PeerMisbehaved):
            await measure_rtt(alice, bob.peer_id)
        nursery.cancel_scope.cancel()


async def test_pings_come_in_any_pieces_and_end_cleanly(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with bob.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, streams)
        stream = await alice.open_stream(bob.peer_id, [PROTOCOL])
        sent = bytes(range(96))
        for start in range(0, 96, 5):
            await stream.send_all(sent[start : start + 5])
        await stream.send_eof()
        assert await receive_all(stream) == sent

        half = await alice.open_stream(bob.peer_id, [PROTOCOL])
        await half.send_all(b"half a ping")
        await half.send_eof()
        with pytest.raises(StreamReset):
            await half.receive_some()
        nursery.cancel_scope.cancel()


async def test_a_stream_left_alone_is_closed(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with bob.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        nursery.start_soon(answer_pings, streams)
        stream = await alice.open_stream(bob.peer_id, [PROTOCOL])
        began = trio.current_time()
        with pytest.raises(StreamReset):
            await stream.receive_some()
        assert trio.current_time() - began == pytest.approx(IDLE_S)
        nursery.cancel_scope.cancel()

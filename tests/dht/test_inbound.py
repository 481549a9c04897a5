"""Streams from peers: who keeps a place, and who is made to wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock

from ipfsreg.dht.inbound import Reception
from ipfsreg.dht.keys import Contact
from ipfsreg.dht.messages import Message, MessageType, decode_message, encode_message
from ipfsreg.dht.records import open_records
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.dht.server import Answerer
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.testing.dht import numbered_contact
from ipfsreg.testing.inline_database import open_inline_database
from ipfsreg.testing.network import MemoryEndpoint, MemoryStream, MemorySwarm, peer_of

PROTOCOL = "/ipfs/kad/1.0.0"
PING = Message(MessageType.PING)


@asynccontextmanager
async def open_reception(directory: Path, settings: DhtSettings) -> AsyncIterator[tuple[MemorySwarm, Reception]]:
    """Bob, who answers on a swarm."""
    swarm = MemorySwarm()
    bob = swarm.endpoint("bob")
    ourselves = Contact(bob.peer_id)
    async with (
        open_inline_database(directory / "db") as database,
        open_records(database, settings, trio.current_time) as records,
        bob.accept([PROTOCOL]) as streams,
        trio.open_nursery() as nursery,
    ):
        answerer = Answerer(
            RoutingTable(ourselves, k=20),
            records,
            k=20,
            ourselves=lambda: ourselves,
            provides=lambda _key: False,
            locate=lambda _peer: None,
            believe=lambda contact: contact,
        )
        reception = Reception(answerer, records, settings)
        nursery.start_soon(reception.receive_streams, streams)
        yield swarm, reception
        nursery.cancel_scope.cancel()


async def connect(peer: MemoryEndpoint) -> MemoryStream:
    return await peer.open_stream(peer_of("bob"), [PROTOCOL])


async def ping(stream: MemoryStream) -> None:
    await send_message(stream, encode_message(PING))
    data = await MessageReader(stream, 1000).read()
    assert data is not None
    assert decode_message(data) == PING


def is_broken(stream: MemoryStream) -> bool:
    return stream._in.error is not None


async def test_the_stream_that_was_silent_longest_makes_way(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_reception(tmp_path, DhtSettings(inbound_streams_per_peer=3)) as (swarm, _):
        alice = swarm.endpoint("alice")
        streams = [await connect(alice) for _ in range(3)]
        await ping(streams[0])
        await connect(alice)
        await trio.sleep(1)
        assert [is_broken(stream) for stream in streams] == [False, True, False]


async def test_when_all_places_are_taken_whoever_has_most_makes_way(autojump_clock: MockClock, tmp_path: Path) -> None:
    settings = DhtSettings(inbound_streams_per_peer=8, inbound_streams=10)
    async with open_reception(tmp_path, settings) as (swarm, reception):
        greedy = swarm.endpoint("greedy")
        takers = [await connect(greedy) for _ in range(8)]
        modest = [await connect(swarm.endpoint(f"modest {number}")) for number in range(5)]
        await trio.sleep(1)
        assert not any(is_broken(stream) for stream in modest)
        assert sum(is_broken(stream) for stream in takers) == 3
        assert reception._count == 10
        for stream in modest:
            await ping(stream)


async def test_places_are_given_back(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_reception(tmp_path, DhtSettings()) as (swarm, reception):
        for number in range(50):
            stream = await connect(swarm.endpoint(f"peer {number}"))
            await ping(stream)
            if number % 2:
                await stream.aclose()
            else:
                await stream.reset()
        await trio.sleep(1)
        assert reception._count == 0


async def test_the_answer_is_there_for_a_peer_that_ends_its_side_first(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with open_reception(tmp_path, DhtSettings()) as (swarm, _):
        stream = await connect(swarm.endpoint("alice"))
        await send_message(stream, encode_message(PING))
        await stream.send_eof()
        await trio.sleep(5)
        assert await MessageReader(stream, 1000).read() is not None
        assert await stream.receive_some() == b""


async def test_a_new_stream_for_every_request_evades_no_rate(autojump_clock: MockClock, tmp_path: Path) -> None:
    settings = DhtSettings(requests_per_s=10, request_burst=20)
    async with open_reception(tmp_path, settings) as (swarm, _):
        alice = swarm.endpoint("alice")
        started = trio.current_time()
        for _ in range(120):
            stream = await connect(alice)
            await ping(stream)
            await stream.send_eof()
            await stream.receive_some()
        assert trio.current_time() - started >= 9.5


async def test_guests_are_forgotten_in_the_end(autojump_clock: MockClock, tmp_path: Path) -> None:
    settings = DhtSettings(inbound_streams=4)
    async with open_reception(tmp_path, settings) as (swarm, reception):
        for number in range(60):
            stream = await connect(swarm.endpoint(f"peer {number}"))
            await ping(stream)
            await stream.aclose()
        assert len(reception._guests) <= 2 * settings.inbound_streams + 1


async def test_a_request_that_never_ends_is_given_up(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_reception(tmp_path, DhtSettings()) as (swarm, _):
        slow = await connect(swarm.endpoint("slow"))
        started = trio.current_time()
        await slow.send_all(b"\x40")
        while not is_broken(slow):
            # A byte a second would keep a deadline for each byte from ever passing.
            await slow._out.send(b"\x08")
            await trio.sleep(1)
        assert trio.current_time() - started <= 11


async def test_a_peer_that_takes_no_answers_is_given_up(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with open_reception(tmp_path, DhtSettings()) as (swarm, reception):
        for number in range(20):
            reception._answerer._table.alive(numbered_contact(number), now=0.0)
        deaf = await connect(swarm.endpoint("deaf"))
        request = encode_message(Message(MessageType.FIND_NODE, b"anything"))
        for _ in range(1000):
            await send_message(deaf, request)
        started = trio.current_time()
        # A quarter of a megabyte of answers fits into its window; the next one waits.
        await trio.sleep(9)
        assert not is_broken(deaf)
        await trio.sleep(2)
        assert is_broken(deaf)
        assert trio.current_time() - started == 11

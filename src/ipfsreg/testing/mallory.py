"""A peer that says what it was told to say, whatever it is asked: for tests of what replicas ask their peers for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from ipfsreg.crdt.delta import Head, encode_broadcasts
from ipfsreg.errors import StreamReset
from ipfsreg.ipld.block import Block
from ipfsreg.p2p.framing import send_message
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.pubsub.interface import PeerJoined, TopicMessage
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import ReplicaSwarm

MALLORY = peer_of("mallory")


class Mallory:
    """Somebody who answers every request by *protocol* with the same messages; None among them: from there on nothing,
    for ever."""

    def __init__(self, swarm: ReplicaSwarm, protocol: str, messages: Sequence[bytes | None]) -> None:
        assert swarm.wires is not None
        self._endpoint = swarm.wires.endpoint("mallory")
        self._swarm = swarm
        self._protocol = protocol
        self._messages = messages
        self.asked = 0

    @asynccontextmanager
    async def answering(self) -> AsyncIterator[None]:
        """Answer, as long as the block lasts, and be in the topic."""
        async with (
            self._endpoint.accept([self._protocol]) as streams,
            self._swarm.mesh.join("names", MALLORY),
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._answer_all, streams, nursery)
            yield
            nursery.cancel_scope.cancel()

    async def _answer_all(self, streams: AsyncIterator[Stream], nursery: trio.Nursery) -> None:
        async for stream in streams:
            self.asked += 1
            nursery.start_soon(self._answer, stream)

    async def _answer(self, stream: Stream) -> None:
        try:
            for message in self._messages:
                if message is None:
                    await trio.sleep_forever()
                else:
                    await send_message(stream, message)
            await stream.send_eof()
        except StreamReset:
            pass  # whoever was sent a lie stops listening

    async def announce(self, listener: str, block: Block, *, joined: bool = False) -> None:
        """Connect to *listener* and say that *block* is a head; *joined*: it hears first that we are in the topic."""
        await self._endpoint.connect(PeerInfo(peer_of(listener)))
        if joined:
            self._swarm.topics[listener].push(PeerJoined(MALLORY))
        message = encode_broadcasts([Head(block.cid.multihash)])[0]
        self._swarm.topics[listener].push(TopicMessage(message, MALLORY, MALLORY))

"""`/ipfsreg/dagsync/1.0.0`: the nodes somebody lacks, in one stream instead of a round trip for each generation.

    asker     one message  Request { repeated bytes want = 1; repeated bytes have = 2; }      multihashes
    answerer  one message for each node: the bytes of its block; then the end of the stream

The answer has what is at or below the nodes *want* and not at or below the nodes *have*, as far as the answerer has it
closed, from the highest to the lowest, so that every node comes after one that links to it. The asker takes only nodes
it has been led to by links: each is proved by its hash as it comes, and a liar can neither slip in a node nor fill a
disk. An answer that stops anywhere leaves a shorter list to ask for, of whomever.

*have* are the heads of the asker and some nodes at growing distances below them, so that an answerer that does not know
the heads knows one of those. Nodes it does not know are passed over. Go replicas do not speak this; they are asked for
blocks (walker.py).
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Container, Iterable, Sequence
from contextlib import aclosing, asynccontextmanager

import trio

from ipfsreg.blockstore.interface import Blockstore
from ipfsreg.crdt import state
from ipfsreg.crdt.delta import node_cid
from ipfsreg.database import Database
from ipfsreg.errors import IpfsregError, PeerMisbehaved
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, read_fields
from ipfsreg.ipld.varint import encode_varint
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PROTOCOL = "/ipfsreg/dagsync/1.0.0"

MAX_WANTS = 1024
MAX_HAVES = 256
MAX_REQUEST_BYTES = 64 * 1024

MAX_ANSWERS = 16
"""Streams answered at a time; a further one waits in the offer, and is reset when that is full."""

SILENCE_S = 20.0
"""An asker or answerer that moves no byte for so long is given up."""

SEND_BYTES = 64 * 1024
"""Nodes are a few hundred bytes; they are sent together."""

Row = tuple[int, bytes, int]
"""Number, multihash and height of a closed node."""


def encode_request(want: Iterable[bytes], have: Iterable[bytes]) -> bytes:
    """The Request message."""
    return b"".join([*(bytes_field(1, one) for one in want), *(bytes_field(2, one) for one in have)])


def decode_request(data: bytes | memoryview) -> tuple[list[bytes], list[bytes]]:
    """Read a Request: want and have, as much of them as is looked at. Raises MalformedData."""
    found: dict[int, list[bytes]] = {1: [], 2: []}
    for number, value in read_fields(data):
        if number in found:
            found[number].append(bytes(expect_bytes(value)))
    return found[1][:MAX_WANTS], found[2][:MAX_HAVES]


class Descent:
    """From wanted nodes down to those somebody has, the highest first. PURE.

    A node is always higher than those it links to. So when it is its turn, all that lead to it have had theirs, and
    whether it is below a node that is had is known. Only the present generation is in memory.
    """

    def __init__(self, children: Callable[[int], Sequence[Row]], want: Iterable[Row], have: Iterable[Row]) -> None:
        self._children = children
        self._queue: list[tuple[int, int]] = []
        self._nodes: dict[int, tuple[bytes, bool]] = {}
        self._wanted = 0
        for row in want:
            self._add(row, had=False)
        for row in have:
            self._add(row, had=True)

    def _add(self, row: Row, *, had: bool) -> None:
        number, multihash, height = row
        before = self._nodes.get(number)
        if before is None:
            heapq.heappush(self._queue, (-height, number))
            self._wanted += not had
        elif had and not before[1]:
            self._wanted -= 1
        self._nodes[number] = multihash, had or (before is not None and before[1])

    def step(self) -> bytes | None:
        """Look at one node: return its multihash if it is to be sent. See `is_done`."""
        _, number = heapq.heappop(self._queue)
        multihash, had = self._nodes.pop(number)
        self._wanted -= not had
        for row in self._children(number):
            self._add(row, had=had)
        return None if had else multihash

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to be sent."""
        return self._wanted == 0


# ------------------------------------------------------------------- answering


async def answer_all(network: Network, database: Database, store: Blockstore) -> None:
    """Answer whoever asks. Never returns."""
    places = trio.Semaphore(MAX_ANSWERS)
    async with network.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        async for stream in streams:
            await places.acquire()
            nursery.start_soon(_answer, stream, database, store, places)


async def _answer(stream: Stream, database: Database, store: Blockstore, places: trio.Semaphore) -> None:
    try:
        with trio.fail_after(SILENCE_S):
            request = await MessageReader(stream, MAX_REQUEST_BYTES).read()
        if request is not None:
            want, have = decode_request(request)
            await _send_nodes(stream, database, store, want, have)
        await stream.send_eof()
        await stream.aclose()
    except (IpfsregError, trio.TooSlowError) as error:
        logger.debug("the answer to %s was given up: %s", stream.peer, error)
        await stream.reset()
    finally:
        places.release()


async def _send_nodes(
    stream: Stream, database: Database, store: Blockstore, want: Sequence[bytes], have: Sequence[bytes]
) -> None:
    def rows(multihashes: Sequence[bytes]) -> list[Row]:
        return [row for multihash in multihashes if (row := state.closed_node(database, multihash)) is not None]

    descent = Descent(lambda number: state.closed_children(database, number), rows(want), rows(have))
    waiting = bytearray()
    looked_at = 0
    while not descent.is_done:
        multihash = descent.step()
        if multihash is not None:
            data = (await store.get(node_cid(multihash))).data
            waiting += encode_varint(len(data))
            waiting += data
        elif (looked_at := looked_at + 1) % 64 == 0:
            await trio.lowlevel.checkpoint()
        if len(waiting) >= SEND_BYTES:
            await _send(stream, waiting)
            waiting = bytearray()
    await _send(stream, waiting)


async def _send(stream: Stream, data: bytearray) -> None:
    with trio.fail_after(SILENCE_S):
        await stream.send_all(data)


# ---------------------------------------------------------------------- asking


class Dagsync:
    """Asks peers for the nodes that are missing."""

    def __init__(self, network: Network, database: Database) -> None:
        self._network = network
        self._database = database
        self._asked: set[PeerId] = set()

    def peer_for(self, first: Iterable[PeerId], resting: Container[PeerId] = ()) -> PeerId | None:
        """Whom to ask: of *first*, else of all, one that speaks this, is not asked already, and none of *resting*."""
        for peer in (*first, *self._network.peers()):
            if peer not in self._asked and peer not in resting and PROTOCOL in (self._network.protocols_of(peer) or ()):
                return peer
        return None

    @asynccontextmanager
    async def ask(self, peer: PeerId, want: Sequence[bytes]) -> AsyncIterator[AsyncIterator[Block]]:
        """Ask *peer* for what is below *want* and not here; iterate over the blocks as they come.

        Whether they are those that were asked for is for the caller to see.

        Raises, entering or iterating:
            NetworkError: no answer, not all of it, or not in time.
        """
        self._asked.add(peer)
        stream: Stream | None = None
        try:
            with trio.fail_after(SILENCE_S):
                stream = await self._network.open_stream(peer, [PROTOCOL])
                have = state.sample_closed(self._database, MAX_HAVES)
                await send_message(stream, encode_request(want[:MAX_WANTS], have))
                await stream.send_eof()
            async with aclosing(self._read(stream)) as blocks:
                yield blocks
        except trio.TooSlowError:
            raise PeerMisbehaved(f"{peer} said nothing for {SILENCE_S:g} s") from None
        finally:
            self._asked.discard(peer)
            if stream is not None:
                # Whatever is still on its way is not wanted any more; after the end of the answer this does nothing.
                await stream.reset()

    async def _read(self, stream: Stream) -> AsyncGenerator[Block, None]:
        reader = MessageReader(stream, MAX_BLOCK_BYTES)
        while True:
            with trio.fail_after(SILENCE_S):
                data = await reader.read()
            if data is None:
                return
            yield Block.of(bytes(data), DAG_PB)

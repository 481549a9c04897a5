"""`/ipfsreg/checkpoint/1.0.0`: a whole replica tells an empty one all names at once, and signs for them.

    asker     one Request
    answerer  Header, Pieces (checkpoint.py), then the end of the stream; the end at once if it has none to offer

None is offered for another topic or under other rules on writers, while the answerer is not whole itself, with too many
heads, or where there is so little history that it comes as fast.

The answer is read from one snapshot of the tables, in a thread, a piece after the other as the asker takes them. While
any snapshot is open, SQLite's log cannot begin anew and grows with every write, so askers must not keep one open for as
long as they like, alone or taking turns (`Places`).
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Iterator

import trio

from ipfsreg.crdt.checkpoint import (
    MAX_HEADS,
    MAX_MESSAGE_BYTES,
    PIECE_BYTES,
    PIECE_ELEMENTS,
    PIECE_NODES,
    ClaimedElement,
    Header,
    Piece,
    Seal,
    check_end,
    decode_piece,
    decode_request,
    encode_elements,
    encode_end,
    encode_nodes,
    encode_request,
)
from ipfsreg.crdt.claims import SETTLED, Claim, Loading
from ipfsreg.crdt.intake import Intake
from ipfsreg.database import Database, Snapshot
from ipfsreg.errors import IpfsregError, MalformedData, PeerMisbehaved, StoreError
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PROTOCOL = "/ipfsreg/checkpoint/1.0.0"

MAX_REQUEST_BYTES = 4096

MAX_ANSWERS = 2
"""Given at a time; whoever asks meanwhile is told that there is none, and asks another peer or for the history."""

OVERLAP_S = 30.0
"""No answer begins once there has been no moment without one for so long: they end, and then the log begins anew."""

REST_S = 10.0
"""Without an answer after that, in which writes come that begin the log anew."""

PAUSE_S = 30.0
"""Between two answers to one peer."""

MAX_LOG_BYTES = 1 << 30
"""A log that has grown so large is more urgent than whoever reads a checkpoint: answers end."""

LEAST_PACE = 64 * 1024
"""Bytes a second that an asker has to take, of the time that we wait for it beyond `SILENCE_S`."""

SILENCE_S = 20.0
"""An asker or answerer that moves no byte for so long is given up."""

LOAD_S = 600.0
"""The longest a checkpoint may take; history waits for it."""

_ELEMENTS = """
SELECT key, priority, node, value, withheld & 1 FROM crdt_elements AS e
WHERE withheld < 4 AND NOT EXISTS (
    SELECT 1 FROM crdt_tombstones AS t WHERE t.key = e.key AND t.node = e.node AND t.withheld = 0
    AND t.by NOT IN (SELECT node FROM crdt_early)
) ORDER BY key, priority, node
"""


class Making:
    """A checkpoint of the tables as a connection sees them, which must be in one transaction until it is made."""

    def __init__(self, db: sqlite3.Connection, topic: str, rules: bytes, *, least_nodes: int, now_us: int) -> None:
        self._db = db
        rows = db.execute("SELECT number, multihash FROM crdt_nodes WHERE state = 3 ORDER BY height DESC").fetchall()
        heads = db.execute(
            "SELECT multihash, height FROM crdt_heads CROSS JOIN crdt_nodes ON number = node ORDER BY height DESC"
        ).fetchall()
        unsettled = db.execute("SELECT 1 FROM crdt_checkpoints WHERE state < ?", (SETTLED,)).fetchone()
        self._positions = {number: position for position, (number, _) in enumerate(rows)}
        self._multihashes = [multihash for _, multihash in rows]
        self.header: Header | None = None
        """What it is of; None: there is none to offer."""
        if unsettled is None and len(rows) >= max(least_nodes, 1) and len(heads) <= MAX_HEADS:
            self.header = Header(
                heads=tuple(multihash for multihash, _ in heads),
                height=heads[0][1],
                nodes=len(rows),
                taken_us=now_us,
                topic=topic,
                rules=rules,
            )

    def pieces(self) -> Iterator[bytes]:
        """The Piece messages, but for the last."""
        for start in range(0, len(self._multihashes), PIECE_NODES):
            yield encode_nodes(self._multihashes[start : start + PIECE_NODES])
        waiting: list[ClaimedElement] = []
        size = 0
        for key, priority, node, value, withheld in self._db.execute(_ELEMENTS):
            position = self._positions.get(node)
            if position is None:
                continue  # of a node that counts early
            waiting.append((key, priority, position, value, bool(withheld)))
            size += len(key) + len(value)
            if len(waiting) >= PIECE_ELEMENTS or size >= PIECE_BYTES:
                yield encode_elements(waiting)
                waiting, size = [], 0
        if waiting:
            yield encode_elements(waiting)


# ------------------------------------------------------------------- answering


class Places:
    """Who may be answered when. PURE."""

    def __init__(self) -> None:
        self._answered: set[PeerId] = set()
        self._pausing: dict[PeerId, float] = {}
        self._busy_since = 0.0
        self._rest_until = 0.0

    def take(self, peer: PeerId, *, now: float) -> bool:
        """Whether *peer* may be answered now; then `free` has to follow."""
        self._pausing = {one: until for one, until in self._pausing.items() if until > now}
        if len(self._answered) >= MAX_ANSWERS or peer in self._answered or peer in self._pausing:
            return False
        if now < self._rest_until or (self._answered and now >= self._busy_since + OVERLAP_S):
            return False
        if not self._answered:
            self._busy_since = now
        self._answered.add(peer)
        return True

    def free(self, peer: PeerId, *, now: float) -> None:
        """The answer to *peer* is over, and its snapshot closed."""
        self._answered.remove(peer)
        self._pausing[peer] = now + PAUSE_S
        if not self._answered and now >= self._busy_since + OVERLAP_S:
            self._rest_until = now + REST_S


async def answer_checkpoints(
    network: Network, database: Database, topic: str, rules: bytes, *, least_nodes: int
) -> None:
    """Answer whoever asks. Never returns."""
    places = Places()

    async def answer(stream: Stream) -> None:
        try:
            with trio.fail_after(SILENCE_S):
                request = await MessageReader(stream, MAX_REQUEST_BYTES).read()
            if request is not None and decode_request(request) == (topic.encode(), rules):
                await offer(stream)
            with trio.fail_after(SILENCE_S):
                await stream.send_eof()
                await stream.aclose()
        except (IpfsregError, trio.TooSlowError) as error:
            logger.info("the checkpoint for %s was given up: %s", stream.peer, error)
            await stream.reset()

    async def offer(stream: Stream) -> None:
        if not places.take(stream.peer, now=trio.current_time()):
            return
        try:
            with trio.fail_after(LOAD_S):
                async with database.snapshot() as snapshot:
                    await _send(stream, snapshot, database, network, topic, rules, least_nodes)
        finally:
            places.free(stream.peer, now=trio.current_time())

    async with network.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        async for stream in streams:
            nursery.start_soon(answer, stream)


async def _send(
    stream: Stream,
    snapshot: Snapshot,
    database: Database,
    network: Network,
    topic: str,
    rules: bytes,
    least_nodes: int,
) -> None:
    now_us = time.time_ns() // 1000
    making = await snapshot.run(lambda db: Making(db, topic, rules, least_nodes=least_nodes, now_us=now_us))
    if making.header is None:
        return
    seal = Seal()
    message: bytes | None = making.header.encode()
    pieces = making.pieces()
    patience_s = SILENCE_S
    while message is not None:
        if database.log_bytes > MAX_LOG_BYTES:
            raise StoreError("others write so much that the log must begin anew")
        seal.add(message)
        began = trio.current_time()
        with trio.fail_after(max(patience_s, 0.0)):
            await send_message(stream, message)
        patience_s = min(patience_s + len(message) / LEAST_PACE - (trio.current_time() - began), SILENCE_S)
        message = await snapshot.run(lambda _: next(pieces, None))
    with trio.fail_after(SILENCE_S):
        await send_message(stream, encode_end(network.peer_id, network.sign(seal.signed_bytes())))


# ---------------------------------------------------------------------- taking


async def take_checkpoint(
    network: Network, peer: PeerId, topic: str, rules: bytes, intake: Intake, *, everything: bool
) -> bool:
    """Take a checkpoint of *peer* into the tables; return whether it speaks now. False: it has none to offer.

    Raises:
        NetworkError, MalformedData, StoreError: it did not come wholly, or is none. What came of it is dropped.
    """
    loading = Loading(peer, everything)
    stream: Stream | None = None
    speaks = False
    try:
        with trio.fail_after(LOAD_S):
            with trio.fail_after(SILENCE_S):
                stream = await network.open_stream(peer, [PROTOCOL])
                await send_message(stream, encode_request(topic, rules))
                await stream.send_eof()
            speaks = await _take(MessageReader(stream, MAX_MESSAGE_BYTES), topic, rules, intake, loading)
            return speaks
    except trio.TooSlowError:
        raise PeerMisbehaved(f"{peer} was too slow") from None
    finally:
        if not speaks and loading.begun:
            loading.failed = loading.failed or "it was broken off"
            intake.drop_claims()
        if stream is not None:
            await stream.reset()


async def _take(reader: MessageReader, topic: str, rules: bytes, intake: Intake, loading: Loading) -> bool:
    seal = Seal()
    claim: Claim | None = None
    while True:
        with trio.fail_after(SILENCE_S):
            message = await reader.read()
        if message is None:
            if claim is None:
                return False
            raise PeerMisbehaved("the stream ended before the checkpoint did")
        if claim is None:
            header = Header.decode(message)
            if (header.topic, header.rules) != (topic, rules):
                raise MalformedData("a checkpoint of another topic, or by other rules")
            following = Claim(loading, header=header)
            loading.begun = True
            piece = Piece()
        else:
            piece = decode_piece(message)
            if piece.end is not None:
                check_end(piece.end, loading.signer, seal)
            following = Claim(loading, piece=piece, proof=None if piece.end is None else bytes(message))
        seal.add(message)
        await intake.add_claim(following)
        if claim is not None:
            await claim.done.wait()  # the next piece may come while one is written, and no more
        claim = following
        if piece.end is not None:
            await claim.done.wait()
        if loading.failed is not None:
            raise MalformedData(loading.failed)
        if piece.end is not None:
            return True

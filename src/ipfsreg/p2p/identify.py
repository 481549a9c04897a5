"""/ipfs/id/1.0.0 and /ipfs/id/push/1.0.0: what each side speaks, and where it may be found.

Every new peer is asked once; later changes are pushed. What a peer tells about itself is bounded, and its addresses
are claims: kept only where they make sense for where it reached us from.
Spec: libp2p/specs identify/README.md.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import trio

from ipfsreg.errors import MalformedData, NetworkError
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, read_fields
from ipfsreg.p2p.addresses import claims_worth_keeping, decode_addr, encode_addr, tellable
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import PeerChange, Stream
from ipfsreg.p2p.observed import ObservedAddrs
from ipfsreg.p2p.swarm import Swarm
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

ID, PUSH = "/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0"
PROTOCOL_VERSION = "ipfs/0.1.0"

MAX_MESSAGE_BYTES = 16 * 1024
MAX_MESSAGES = 10
"""A long answer comes in several messages, to be merged: the limit of go-libp2p."""
MAX_PROTOCOLS = 512
MAX_PROTOCOL_CHARS = 256
MAX_ADDRS = 32
MAX_ADDRS_READ = 128
"""Those that cannot be read included: a message holds 30,000, and finding out takes 20 µs each."""
MAX_VERSION_CHARS = 128

ANSWER_S = 10.0
"""Seconds a peer has to ask, answer or push."""
RETRY_AFTER_S = (1.0, 5.0)
SETTLE_S = 0.05
"""Seconds a change waits for the next one before it is pushed: parts offer their protocols one after another."""
PUSHES_AT_ONCE = 32
CLAIM_TTL_S = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Description:
    """What one peer says about itself, and about whom it talks to."""

    public_key: bytes = b""
    addrs: tuple[str, ...] = ()
    protocols: frozenset[str] = frozenset()
    observed: str = ""
    """Where it sees the other side of this connection; "" if it does not say."""
    agent: str = ""
    protocol_version: str = PROTOCOL_VERSION


def encode(description: Description) -> bytes:
    """The Identify protobuf."""
    parts = [bytes_field(1, description.public_key)] if description.public_key else []
    parts += [bytes_field(2, encode_addr(addr)) for addr in description.addrs[:MAX_ADDRS]]
    parts += [bytes_field(3, protocol.encode()) for protocol in sorted(description.protocols)]
    if description.observed:
        parts.append(bytes_field(4, encode_addr(description.observed)))
    parts.append(bytes_field(5, description.protocol_version.encode()))
    parts.append(bytes_field(6, description.agent.encode()))
    return b"".join(parts)


def decode(data: bytes | memoryview) -> Description:
    """Read one or several concatenated Identify protobufs: repeated fields add up, of others the last one counts.

    Addresses we cannot read and protocols that are not text are left out; so is what exceeds the limits.

    Raises:
        MalformedData: not a protobuf.
    """
    public_key, observed, agent, version = b"", b"", "", ""
    addrs: list[str] = []
    addrs_read = 0
    protocols: set[str] = set()
    for number, value in read_fields(data):
        if number not in (1, 2, 3, 4, 5, 6):
            continue
        raw = bytes(expect_bytes(value))
        match number:
            case 1:
                public_key = raw
            case 2 if len(addrs) < MAX_ADDRS and addrs_read < MAX_ADDRS_READ:
                addrs_read += 1
                addrs += _readable(raw)
            case 3 if len(protocols) < MAX_PROTOCOLS and len(raw) <= MAX_PROTOCOL_CHARS:
                try:
                    protocols.add(raw.decode())
                except UnicodeDecodeError:
                    continue
            case 4:
                observed = raw
            case 5:
                version = raw.decode("utf-8", "replace")[:MAX_VERSION_CHARS]
            case 6:
                agent = raw.decode("utf-8", "replace")[:MAX_VERSION_CHARS]
            case _:
                continue
    return Description(public_key, tuple(addrs), frozenset(protocols), "".join(_readable(observed)), agent, version)


def _readable(raw: bytes) -> list[str]:
    try:
        return [decode_addr(raw)]
    except MalformedData:
        return []


class Identify:
    """Tells every peer what we are, and learns what they are."""

    def __init__(self, swarm: Swarm, own_addrs: Callable[[], list[str]], observed: ObservedAddrs, agent: str) -> None:
        """*own_addrs*: where we can be reached, as of now."""
        self._swarm = swarm
        self._own_addrs = own_addrs
        self._observed = observed
        self._agent = agent
        self._told: dict[PeerId, bytes] = {}
        """What each connected peer was told last, without what it was told about itself."""
        self._claims: dict[PeerId, list[str]] = {}
        """Where each connected peer says it can be found."""
        self._push_slots = trio.CapacityLimiter(PUSHES_AT_ONCE)

    async def run(self) -> None:
        """Serve until cancelled."""
        swarm = self._swarm
        async with (
            swarm.offers.accept([ID], max_waiting=256) as askers,
            swarm.offers.accept([PUSH], max_waiting=256) as pushers,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(self._follow_peers, nursery)
            nursery.start_soon(self._follow_changes, nursery)
            nursery.start_soon(self._serve, pushers, self._receive_push)
            await self._serve(askers, self._answer)

    # ------------------------------------------------------------------ telling

    def _description(self, peer: PeerId) -> Description:
        connection = self._swarm.connection(peer)
        remote = connection.remote_addr if connection is not None else ""
        return Description(
            self._swarm.identity.public_key,
            tuple(tellable(self._own_addrs(), to=remote)),
            frozenset(self._swarm.offers),
            remote,
            self._agent,
        )

    async def _answer(self, stream: Stream) -> None:
        message = encode(self._description(stream.peer))
        self._told[stream.peer] = message
        await send_message(stream, message)
        await stream.aclose()

    async def _follow_changes(self, nursery: trio.Nursery) -> None:
        while True:
            await self._swarm.offers.wait_changed()
            await trio.sleep(SETTLE_S)
            for peer in self._swarm.peers():
                self._push_if_stale(peer, nursery)

    def addrs_changed(self) -> None:
        """Our own addresses are others now: to be pushed like a change of protocols."""
        self._swarm.offers.tell_changed()

    def _push_if_stale(self, peer: PeerId, nursery: trio.Nursery) -> None:
        told = self._told.get(peer)
        # Who has not asked yet will hear the latest when it does.
        if told is None or PUSH not in (self._swarm.protocols_of(peer) or ()):
            return
        message = encode(self._description(peer))
        if message != told:
            self._told[peer] = message
            nursery.start_soon(self._push, peer, message)

    async def _push(self, peer: PeerId, message: bytes) -> None:
        connection = self._swarm.connection(peer)
        if connection is None:
            return
        try:
            async with self._push_slots:
                with trio.fail_after(ANSWER_S):
                    stream = await connection.open_stream([PUSH], lazy=True)
                    await send_message(stream, message)
                    await stream.aclose()
        except (NetworkError, trio.TooSlowError) as error:
            logger.debug("%s was not told of our change: %s", peer.short, error)

    # ------------------------------------------------------------------ learning

    async def _follow_peers(self, nursery: trio.Nursery) -> None:
        with self._swarm.events.read(self._swarm.peers(), []) as events:
            async for event in events:
                if event.change is PeerChange.CONNECTED:
                    nursery.start_soon(self._ask, event.peer)
                elif event.change is PeerChange.IDENTIFIED:
                    self._push_if_stale(event.peer, nursery)
                else:
                    self._told.pop(event.peer, None)
                    self._observed.forget(event.peer)
                    # They count from now on: a peer may have been connected for longer than its claims lived.
                    self._swarm.book.add(event.peer, self._claims.pop(event.peer, []), ttl_s=CLAIM_TTL_S)

    async def _ask(self, peer: PeerId) -> None:
        for pause in (*RETRY_AFTER_S, None):
            connection = self._swarm.connection(peer)
            # A push may have been faster.
            if connection is None or self._swarm.protocols_of(peer) is not None:
                return
            try:
                with trio.fail_after(ANSWER_S):
                    stream = await connection.open_stream([ID])
                    self._learn(peer, await _read_description(stream))
                    return
            except (NetworkError, MalformedData, trio.TooSlowError) as error:
                logger.debug("%s did not say what it speaks: %s", peer.short, error or "no answer in time")
            if pause is not None:
                await trio.sleep(pause)

    async def _receive_push(self, stream: Stream) -> None:
        self._learn(stream.peer, await _read_description(stream))

    def _learn(self, peer: PeerId, description: Description) -> None:
        connection = self._swarm.connection(peer)
        if connection is None:
            return
        if description.addrs:
            claims = self._claims[peer] = claims_worth_keeping(description.addrs, seen_from=connection.remote_addr)
            self._swarm.book.add(peer, claims, ttl_s=CLAIM_TTL_S)
        # Of a connection we dialled the peer sees a port the system chose for us, of no use to anybody.
        if (
            description.observed
            and not connection.dialer
            and self._observed.saw(peer, description.observed, seen_from=connection.remote_addr)
        ):
            self.addrs_changed()
        self._swarm.identified(peer, description.protocols, description.agent)

    # ------------------------------------------------------------------ streams

    async def _serve(self, streams: AsyncIterator[Stream], handle: Callable[[Stream], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            async for stream in streams:
                nursery.start_soon(self._handle, stream, handle)

    async def _handle(self, stream: Stream, handle: Callable[[Stream], Awaitable[None]]) -> None:
        try:
            with trio.fail_after(ANSWER_S):
                await handle(stream)
        except (NetworkError, MalformedData, trio.TooSlowError) as error:
            logger.debug("%s of %s failed: %s", stream.protocol, stream.peer.short, error or "too slow")
            await stream.reset()


async def _read_description(stream: Stream) -> Description:
    reader = MessageReader(stream, MAX_MESSAGE_BYTES)
    data = bytearray()
    try:
        for _ in range(MAX_MESSAGES):
            message = await reader.read()
            if message is None:
                break
            data += message
    finally:
        await stream.aclose()
    return decode(bytes(data))

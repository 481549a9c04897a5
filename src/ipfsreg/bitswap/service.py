"""Bitswap at work: streams in and out, hashing, time; every decision is the engine's.

Streams. We speak on two long-lived streams of our own per peer: one for what is short (wants, cancels, HAVE, small
blocks), one for large blocks, so that a cancel never waits behind a megabyte. Nothing is ever answered on the stream it
came on: other implementations do not read there. Inbound streams are read to their end; some peers open one for every
message.

Memory. A message above 64 KiB is read only when its length fits into what the peer, and all peers, may hold here; a
block counts until its session's reader has taken it. Blocks from 64 KiB on are hashed in a worker thread while the
next message arrives.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import trio

from ipfsreg.bitswap.allowance import Allowance
from ipfsreg.bitswap.engine import (
    Engine,
    Event,
    FindProviders,
    Give,
    Misbehaved,
    Received,
    Session,
    SessionStats,
    Speak,
)
from ipfsreg.bitswap.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOLS,
    Message,
    Payload,
    decode_message,
    encode_message,
)
from ipfsreg.bitswap.settings import MIB, BitswapSettings
from ipfsreg.blockstore.interface import Blockstore
from ipfsreg.dht.interface import Routing
from ipfsreg.errors import BlockNotFound, MalformedData, NetworkError, PeerMisbehaved, StoreError
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import IDENTITY, Cid
from ipfsreg.p2p.framing import MessageReader, framed
from ipfsreg.p2p.interface import Network, PeerChange, PeerInfo, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

MAX_INBOUND_STREAMS = 64
"""Of one peer. Kubo opens one for every message it sends us, and closes them a little later."""

RECEIVING_BYTES = 64 * MIB
RECEIVING_BYTES_PER_PEER = 12 * MIB
"""Messages that are arriving or being hashed."""

STORE_READS = 8
"""Gives that are read from the store at a time."""

SEARCH_S = 60.0
REACH_S = 30.0
SEARCHES = 16
"""Searches for providers under way at a time."""

_SENT_AT_ONCE = 256 * 1024
"""So often, in bytes, the engine learns how a large block proceeds."""

_HASHED_INLINE_BYTES = 64 * 1024
_SLOWEST_BYTES_PER_S = 12_500
_SLOWEST_S = 10.0


def _deadline_for(size: int) -> float:
    """Seconds a peer may take to take or give *size* bytes."""
    return _SLOWEST_S + size / _SLOWEST_BYTES_PER_S


class _Voice:
    """One outgoing stream to a peer, opened when there is something to say and again when it broke."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self._stream: Stream | None = None
        self.lock = trio.Lock()

    async def say(self, message: Message, *, tries: int, sent: Callable[[int], None] | None = None) -> None:
        """Send *message*, with the lock held; on a broken stream try again on a new one.

        *sent* is told how many bytes the connection took, as it takes them.

        Raises:
            NetworkError: the last try failed.

        Cancelled: the stream is reset.
        """
        size = sum(len(payload.data) for payload in message.payloads)
        for left in reversed(range(tries)):
            try:
                with trio.fail_after(_deadline_for(size)):
                    if self._stream is None:
                        self._stream = await self._network.open_stream(self._peer, PROTOCOLS)
                    pieces = encode_message(message, self._stream.protocol)
                    for part in framed(*pieces, at_most=_SENT_AT_ONCE):
                        await self._stream.send_all(part)
                        if sent is not None:
                            sent(len(part))
            except NetworkError:
                await self.hang_up()
                if not left:
                    raise
            except trio.TooSlowError:
                await self.hang_up()
                raise NetworkError(f"{self._peer} takes nothing") from None
            except trio.Cancelled:
                await self.hang_up()
                raise
            else:
                return

    async def hang_up(self) -> None:
        """Reset the stream, if there is one."""
        if self._stream is not None:
            await self._stream.reset()
            self._stream = None

    async def close(self) -> None:
        """End the stream in good order."""
        if self._stream is not None and not self.lock.locked():
            await self._stream.aclose()
            self._stream = None


class _Link:
    """What is open between a peer and us."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self.peer = peer
        self.urgent = _Voice(network, peer)
        self.bulk = _Voice(network, peer)
        self.speaking = False
        self.readers: dict[MessageReader, int] = {}
        """Inbound streams, and how much of the message each is reading was reported to the engine."""
        self.receiving = Allowance(RECEIVING_BYTES_PER_PEER)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A block that was wanted."""

    block: Block
    peer: PeerId | None
    """Who sent it; None where it was here already."""


class BlockSession:
    """A wanted set, from which blocks come as they arrive. One task reads; any task may want more."""

    def __init__(self, bitswap: Bitswap, session: Session) -> None:
        self._bitswap = bitswap
        self._session = session
        self._local: deque[Cid] = deque()
        self._arrived: deque[Arrival] = deque()
        self._wanted: set[Cid] = set()
        self._wake = trio.Event()

    @property
    def stats(self) -> SessionStats:
        """What came from peers, and what of it came twice."""
        return self._session.stats

    @property
    def missing(self) -> int:
        """How many blocks are wanted and were not delivered."""
        return len(self._wanted)

    @property
    def last_byte_at(self) -> float:
        """When the last byte of a block came from a peer that owes us one, on trio's clock; else when we began."""
        return self._session.last_byte_at

    def want(self, cids: Iterable[Cid]) -> None:
        """Want *cids* too. They are asked for roughly in this order, behind what is wanted already."""
        elsewhere = []
        for cid in cids:
            if cid in self._wanted:
                continue
            self._wanted.add(cid)
            if self._bitswap.is_local(cid):
                self._local.append(cid)
            else:
                elsewhere.append(cid)
        if elsewhere:
            self._bitswap._want(self._session, elsewhere)
        self._wake.set()

    def urge(self, cids: Sequence[Cid]) -> None:
        """A reader waits for *cids* (wanted already), in this order; it no longer waits for those urged before."""
        self._bitswap._urge(self._session, cids)

    def forget(self, cids: Iterable[Cid]) -> None:
        """Want *cids* no more."""
        gone = [cid for cid in cids if cid in self._wanted]
        self._wanted.difference_update(gone)
        self._bitswap._forget(self._session, gone)
        self._wake.set()

    def add_provider(self, provider: PeerInfo) -> None:
        """*provider* is believed to have all of it; it is asked first from now on, and dialled if need be."""
        self._bitswap._add_provider(self._session, provider)

    async def receive(self) -> Arrival | None:
        """The next block, or None where nothing is wanted any more. Blocks are the caller's to store.

        Raises:
            BlockNotFound: the exchange was closed.

        Cancelled: nothing is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._wanted:
            if self._arrived:
                arrival = self._arrived.popleft()
                self._bitswap._consumed(self._session, len(arrival.block.data))
                if arrival.block.cid in self._wanted:
                    self._wanted.discard(arrival.block.cid)
                    return arrival
            elif self._local:
                block = await self._bitswap._load(self._session, self._local[0])
                cid = self._local.popleft()
                if block is not None and cid in self._wanted:
                    self._wanted.discard(cid)
                    return Arrival(block, None)
            elif not self._bitswap.is_open:
                raise BlockNotFound("the block exchange is closed")
            else:
                self._wake = trio.Event()
                await self._wake.wait()
        return None

    async def receive_within(self, deadline_s: float | None) -> Arrival | None:
        """Like `receive`; None waits for ever.

        Raises:
            BlockNotFound: nothing came for *deadline_s* seconds. Bytes of a block that is not whole yet count as
                progress, within reason.
        """
        if deadline_s is None:
            return await self.receive()
        began = trio.current_time()
        due = began + deadline_s
        while trio.current_time() < due:
            with trio.move_on_at(due):
                return await self.receive()
            # A large block on a thin link takes its time; but somebody may only pretend to send one.
            due = min(self.last_byte_at + deadline_s, began + 4 * deadline_s)
        raise BlockNotFound(f"no peer in reach gave any of {self.missing} blocks in {deadline_s:g} s")

    def wake(self) -> None:
        """Let the reader look again."""
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Arrival]:
        return self

    async def __anext__(self) -> Arrival:
        arrival = await self.receive()
        if arrival is None:
            raise StopAsyncIteration
        return arrival

    def _deliver(self, arrival: Arrival) -> None:
        self._arrived.append(arrival)
        self._wake.set()


class Bitswap:
    """Blocks from here or from peers. Keeps `BlockService`. Safe to use from many tasks at once."""

    def __init__(
        self,
        network: Network,
        store: Blockstore,
        routing: Routing | None,
        settings: BitswapSettings,
        nursery: trio.Nursery,
    ) -> None:
        self._network = network
        self._store = store
        self._routing = routing
        self._nursery = nursery
        dice = random.Random(network.peer_id.raw)  # noqa: S311 - spreads the order over peers, guards nothing
        self._engine = Engine(network.peer_id, store.size_of, dice.random, settings)
        self._links: dict[PeerId, _Link] = {}
        self._sessions: dict[int, BlockSession] = {}
        self._searching: set[int] = set()
        self._reaching: set[PeerId] = set()
        self._receiving = Allowance(RECEIVING_BYTES)
        self._store_reads = trio.Semaphore(STORE_READS)
        self._sooner = trio.Event()
        self._sleeps_until = 0.0
        self.is_open = True

    # ------------------------------------------------------------- fetching

    async def fetch(
        self, cids: Sequence[Cid], *, first: Sequence[PeerId] = (), deadline_s: float | None = None
    ) -> AsyncGenerator[Block, None]:
        """Yield the verified blocks of *cids* as they come (see `BlockService.fetch`)."""
        with self.session(
            None, first=[PeerInfo(peer) for peer in first], spread=False, block_bytes=16 * 1024
        ) as wanted:
            wanted.want(cids)
            while wanted.missing:
                arrival = await wanted.receive_within(deadline_s)
                if arrival is not None:
                    yield arrival.block

    @contextmanager
    def session(
        self, root: Cid | None, *, first: Iterable[PeerInfo] = (), spread: bool = True, block_bytes: int = MIB
    ) -> Iterator[BlockSession]:
        """A wanted set for as long as the block lasts; leaving it cancels what is still wanted.

        *root* names the whole: peers that have it, or fetch it too, take part, and content routing is asked for it.
        *first* are peers believed to have all of it. *spread*: others may fetch the same now, so blocks are asked in
        an order of our own, except those urged. *block_bytes*: how large a block probably is.
        """
        providers = [provider for provider in first if provider.peer != self._network.peer_id]
        session, events = self._engine.open_session(
            root,
            [provider.peer for provider in providers],
            spread=spread,
            block_bytes=block_bytes,
            now=trio.current_time(),
        )
        wanted = self._sessions[session.number] = BlockSession(self, session)
        try:
            self._apply(events)
            for provider in providers:
                self._reach(provider)
            yield wanted
        finally:
            del self._sessions[session.number]
            self._apply(self._engine.close_session(session, trio.current_time()))

    def is_local(self, cid: Cid) -> bool:
        """Whether the block is here, or is none one would ask a peer for: its CID says all, or it is empty."""
        return cid.hash_code == IDENTITY or self._store.has(cid) or cid.matches(b"")

    def _want(self, session: Session, cids: Sequence[Cid]) -> None:
        self._apply(self._engine.want(session, cids, trio.current_time()))

    def _urge(self, session: Session, cids: Sequence[Cid]) -> None:
        self._apply(self._engine.urge(session, cids, trio.current_time()))

    def _forget(self, session: Session, cids: Sequence[Cid]) -> None:
        self._apply(self._engine.forget(session, cids, trio.current_time()))

    def _consumed(self, session: Session, size: int) -> None:
        self._apply(self._engine.consumed(session, size, trio.current_time()))

    def _add_provider(self, session: Session, provider: PeerInfo) -> None:
        if provider.peer != self._network.peer_id:
            self._apply(self._engine.add_provider(session, provider.peer, trio.current_time()))
            self._reach(provider)

    async def _load(self, session: Session, cid: Cid) -> Block | None:
        """A block that should be here; None where it is not, and peers are asked instead."""
        if cid.hash_code == IDENTITY:
            return Block.verified(cid, cid.digest)
        if cid.matches(b""):
            return Block.verified(cid, b"")
        try:
            return await self._store.get(cid)
        except StoreError as error:
            logger.warning("block %s is asked of peers: %s", cid, error)
            self._want(session, [cid])
            return None

    def close(self) -> None:
        """Nothing comes any more; who still waits is told so."""
        self.is_open = False
        for wanted in self._sessions.values():
            wanted.wake()

    # --------------------------------------------------------------- events

    def _apply(self, events: Iterable[Event]) -> None:
        """Do what the engine decided."""
        if not self.is_open:
            return
        for event in events:
            match event:
                case Speak(peer):
                    link = self._link(peer)
                    if not link.speaking:
                        link.speaking = True
                        self._nursery.start_soon(self._speak, link)
                case Give():
                    self._nursery.start_soon(self._give, event)
                case Received(sessions, block, peer):
                    for number in sessions:
                        self._sessions[number]._deliver(Arrival(block, peer))
                case Misbehaved(peer, reason):
                    logger.warning("peer %s %s: disconnecting", peer, reason)
                    self._nursery.start_soon(self._network.disconnect, peer, reason)
                case FindProviders(number, cid):
                    if self._routing is not None and number not in self._searching and len(self._searching) < SEARCHES:
                        self._searching.add(number)
                        self._nursery.start_soon(self._find_providers, self._routing, number, cid)
        now = trio.current_time()
        if self._sleeps_until > now + 0.1:
            deadline = self._engine.next_deadline(now)
            if deadline is not None and deadline < self._sleeps_until:
                self._sooner.set()

    def _link(self, peer: PeerId) -> _Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(self._network, peer)
        return link

    async def _keep_time(self) -> None:
        while True:
            deadline = self._engine.next_deadline(trio.current_time())
            self._sleeps_until = float("inf") if deadline is None else deadline
            self._sooner = trio.Event()
            with trio.move_on_at(self._sleeps_until):
                await self._sooner.wait()
                continue
            for link in self._links.values():
                if link.readers and self._engine.owes(link.peer):
                    self._report_bytes(link)
            self._apply(self._engine.tick(trio.current_time()))

    def _report_bytes(self, link: _Link) -> None:
        """Tell the engine what has come of messages that are still arriving."""
        for reader, reported in link.readers.items():
            count = reader.body_received - reported
            if count > 0:
                link.readers[reader] = reader.body_received
                self._engine.receive_bytes(link.peer, count, trio.current_time())

    # ------------------------------------------------------------- speaking

    async def _speak(self, link: _Link) -> None:
        """Tell a peer all there is to tell it."""
        try:
            failures = 0
            async with link.urgent.lock:
                while True:
                    message = self._engine.take_message(link.peer, trio.current_time())
                    if message is None:
                        return
                    try:
                        await link.urgent.say(message, tries=1)
                        failures = 0
                    except NetworkError as error:
                        failures += 1
                        if failures == 3 or link.peer not in self._network.peers():
                            logger.debug("cannot speak to %s: %s", link.peer, error)
                            self._apply(self._engine.disconnected(link.peer, trio.current_time()))
                            return
                        self._apply(self._engine.tell_again(link.peer, trio.current_time()))
        finally:
            link.speaking = False

    async def _give(self, give: Give) -> None:
        """Read blocks and send them to a peer."""
        missing: list[Cid] = []
        try:
            async with self._store_reads:
                blocks = [block for block in [await self._read_block(cid, missing) for cid in give.cids] if block]
            link = self._link(give.peer)
            voice = link.bulk if give.large else link.urgent
            async with voice.lock:
                wanted = [block for block in blocks if self._engine.is_wanted(give, block.cid)]
                if wanted:
                    payloads = [Payload(block.cid.prefix, block.data) for block in wanted]
                    await voice.say(Message(payloads=payloads), tries=2, sent=partial(self._took, give))
        except NetworkError as error:
            logger.debug("cannot give blocks to %s: %s", give.peer, error)
        finally:
            self._apply(self._engine.given(give, trio.current_time(), missing=missing))

    def _took(self, give: Give, size: int) -> None:
        self._engine.took(give, size, trio.current_time())

    async def _read_block(self, cid: Cid, missing: list[Cid]) -> Block | None:
        try:
            return await self._store.get(cid)
        except StoreError as error:
            logger.info("cannot give block %s: %s", cid, error)
            missing.append(cid)
            return None

    # ------------------------------------------------------------ listening

    async def _accept(self, streams: AsyncIterator[Stream]) -> None:
        async for stream in streams:
            link = self._link(stream.peer)
            if len(link.readers) >= MAX_INBOUND_STREAMS:
                await stream.reset()
                continue
            reader = MessageReader(stream, MAX_MESSAGE_BYTES)
            link.readers[reader] = 0
            self._nursery.start_soon(self._read, link, stream, reader)

    async def _read(self, link: _Link, stream: Stream, reader: MessageReader) -> None:
        """Read one inbound stream to its end."""
        try:
            self._apply(self._engine.connected(link.peer, trio.current_time()))
            while (length := await reader.read_length()) is not None:
                await self._read_message(link, reader, length)
            await stream.aclose()
        except (MalformedData, PeerMisbehaved) as error:
            logger.info("peer %s broke the protocol: %s", link.peer, error)
            self._apply(self._engine.receive_garbage(link.peer, "sent garbage", trio.current_time()))
            await stream.reset()
        except trio.TooSlowError:
            logger.info("peer %s is too slow: a message did not arrive in time", link.peer)
            await stream.reset()
        except NetworkError:
            await stream.reset()
        except trio.Cancelled:
            await stream.reset()
            raise
        finally:
            del link.readers[reader]

    async def _read_message(self, link: _Link, reader: MessageReader, length: int) -> None:
        async with AsyncExitStack() as held:
            # Given back when the last block of the message was hashed: see _hash.
            if length > _HASHED_INLINE_BYTES:
                await held.enter_async_context(link.receiving.hold(length))
                await held.enter_async_context(self._receiving.hold(length))
            with trio.fail_after(_deadline_for(length)):
                body = await reader.read_body(length)
            message = decode_message(body)
            reported, link.readers[reader] = link.readers[reader], 0
            now = trio.current_time()
            size = sum(len(payload.data) for payload in message.payloads)
            self._engine.receive_bytes(link.peer, max(0, size - reported), now)
            if message.entries or message.full or message.haves or message.dont_haves:
                self._apply(self._engine.receive_message(link.peer, message, now))
            large = []
            for payload in message.payloads:
                if len(payload.data) > MAX_BLOCK_BYTES:
                    raise PeerMisbehaved(f"a block of {len(payload.data)} bytes")
                if len(payload.data) < _HASHED_INLINE_BYTES:
                    self._receive_block(link, Block.under(payload.prefix, payload.data))
                else:
                    large.append(payload)
            if large:
                self._nursery.start_soon(self._hash, link, large, held.pop_all())

    async def _hash(self, link: _Link, payloads: list[Payload], held: AsyncExitStack) -> None:
        """Hash large blocks beside the event loop, while their stream is read on."""
        async with held:
            for payload in payloads:
                try:
                    block = await trio.to_thread.run_sync(Block.under, payload.prefix, payload.data)
                except MalformedData as error:
                    logger.info("peer %s sent a block nobody can name: %s", link.peer, error)
                    self._apply(self._engine.receive_garbage(link.peer, "sent garbage", trio.current_time()))
                else:
                    self._receive_block(link, block)

    def _receive_block(self, link: _Link, block: Block) -> None:
        self._apply(self._engine.receive_block(link.peer, block, trio.current_time()))

    # ------------------------------------------------------- peers and store

    async def _watch_peers(self) -> None:
        async with self._network.events() as events:
            async for event in events:
                if event.change is PeerChange.DISCONNECTED:
                    self._links.pop(event.peer, None)
                    self._apply(self._engine.disconnected(event.peer, trio.current_time()))
                elif self._speaks_bitswap(event.peer):
                    self._apply(self._engine.connected(event.peer, trio.current_time()))

    def _speaks_bitswap(self, peer: PeerId) -> bool:
        protocols = self._network.protocols_of(peer)
        return protocols is not None and not protocols.isdisjoint(PROTOCOLS)

    async def _watch_store(self, arrivals: AsyncIterator[frozenset[bytes]]) -> None:
        async for multihashes in arrivals:
            self._apply(self._engine.receive_arrivals(multihashes, trio.current_time()))
            if not self._sessions:
                continue
            for multihash in multihashes:
                for cid in self._engine.wanted_as(multihash):
                    await self._take_from_store(cid)

    async def _take_from_store(self, cid: Cid) -> None:
        """A block that is wanted of peers got here by another way."""
        try:
            block = await self._store.get(cid)
        except StoreError as error:
            logger.warning("block %s arrived and cannot be read: %s", cid, error)
            return
        numbers, events = self._engine.receive_local(block, trio.current_time())
        for number in numbers:
            self._sessions[number]._deliver(Arrival(block, None))
        self._apply(events)

    def _reach(self, provider: PeerInfo) -> None:
        """Connect to a peer that is believed to have what we want."""
        if provider.peer in self._network.peers():
            self._network.add_addrs(provider)
            if self._network.protocols_of(provider.peer) is None or self._speaks_bitswap(provider.peer):
                self._apply(self._engine.connected(provider.peer, trio.current_time()))
        elif provider.peer not in self._reaching:
            self._reaching.add(provider.peer)
            self._nursery.start_soon(self._connect, provider)

    async def _connect(self, provider: PeerInfo) -> None:
        try:
            with trio.move_on_after(REACH_S):
                await self._dial(provider)
                protocols = self._network.protocols_of(provider.peer)
                if protocols is None or self._speaks_bitswap(provider.peer):
                    self._apply(self._engine.connected(provider.peer, trio.current_time()))
        except NetworkError as error:
            logger.debug("provider %s cannot be reached: %s", provider.peer, error)
        finally:
            self._reaching.discard(provider.peer)

    async def _dial(self, provider: PeerInfo) -> None:
        if not provider.addrs and not self._network.addrs_of(provider.peer) and self._routing is not None:
            provider = await self._routing.find_peer(provider.peer) or provider
        await self._network.connect(provider)

    async def _find_providers(self, routing: Routing, number: int, cid: Cid) -> None:
        try:
            with trio.move_on_after(SEARCH_S):
                async for provider in routing.find_providers(cid):
                    wanted = self._sessions.get(number)
                    if wanted is None:
                        return
                    wanted.add_provider(provider)
        except NetworkError as error:
            logger.debug("no providers found for %s: %s", cid, error)
        finally:
            self._searching.discard(number)


@asynccontextmanager
async def open_bitswap(
    network: Network, store: Blockstore, routing: Routing | None = None, settings: BitswapSettings | None = None
) -> AsyncIterator[Bitswap]:
    """Exchange blocks with peers for as long as the block lasts; leaving it cancels what is under way.

    What *store* has is given to whoever asks. *routing* is asked when no connected peer has a block.
    """
    async with (
        store.arrivals() as arrivals,
        network.accept(PROTOCOLS) as streams,
        trio.open_nursery() as nursery,
    ):
        bitswap = Bitswap(network, store, routing, settings or BitswapSettings(), nursery)
        nursery.start_soon(bitswap._watch_store, arrivals)
        nursery.start_soon(bitswap._accept, streams)
        nursery.start_soon(bitswap._watch_peers)
        nursery.start_soon(bitswap._keep_time)
        try:
            yield bitswap
        finally:
            bitswap.close()
            nursery.cancel_scope.cancel()

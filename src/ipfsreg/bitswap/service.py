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
import os
import random
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict
from functools import partial

import trio

from ipfsreg import tracing
from ipfsreg.bitswap.allowance import Allowance
from ipfsreg.bitswap.blocksession import Arrival, BlockSession
from ipfsreg.bitswap.engine import (
    Engine,
    Event,
    FindProviders,
    Give,
    Misbehaved,
    Received,
    Speak,
    TryPeers,
)
from ipfsreg.bitswap.messages import (
    MAX_MESSAGE_BYTES,
    PROTOCOLS,
    Message,
    Payload,
    decode_message,
)
from ipfsreg.bitswap.settings import MIB, BitswapSettings
from ipfsreg.bitswap.voice import Voice, deadline_for
from ipfsreg.blockstore.interface import Blockstore
from ipfsreg.dht.interface import Routing
from ipfsreg.errors import MalformedData, NetworkError, PeerMisbehaved, StoreError
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.cid import IDENTITY, Cid
from ipfsreg.p2p.framing import MessageReader
from ipfsreg.p2p.interface import Network, PeerChange, PeerInfo, Stream
from ipfsreg.peer_id import PeerId

__all__ = ["Arrival", "Bitswap", "BitswapSettings", "BlockSession", "open_bitswap"]

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

_HASHED_INLINE_BYTES = 64 * 1024


class _Link:
    """What is open between a peer and us."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self.peer = peer
        self.urgent = Voice(network, peer)
        self.bulk = Voice(network, peer)
        self.speaking = False
        self.readers: dict[MessageReader, int] = {}
        """Inbound streams, and how much of the message each is reading was reported to the engine."""
        self.receiving = Allowance(RECEIVING_BYTES_PER_PEER)


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
        self.engine = Engine(network.peer_id, store.size_of, dice.random, settings)
        self._links: dict[PeerId, _Link] = {}
        self._sessions: dict[int, BlockSession] = {}
        self._searching: set[int] = set()
        self._reaching: set[PeerId] = set()
        self._trying: set[PeerId] = set()
        self._receiving = Allowance(RECEIVING_BYTES)
        self._hashers = trio.CapacityLimiter(max(2, os.cpu_count() or 1))
        self._store_reads = trio.Semaphore(STORE_READS)
        self._sooner = trio.Event()
        self._sleeps_until = 0.0
        self.is_open = True

    def status(self) -> dict[str, int]:
        """What it does and has done, for the operator."""
        return {"sessions": len(self._sessions), "wants": self.engine.wants, **asdict(self.engine.counters)}

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
        self,
        root: Cid | None,
        *,
        first: Iterable[PeerInfo] = (),
        likely: Iterable[PeerId] = (),
        dial_likely: bool = True,
        spread: bool = True,
        block_bytes: int = MIB,
    ) -> Iterator[BlockSession]:
        """A wanted set for as long as the block lasts; leaving it cancels what is still wanted.

        *root* names the whole: peers that have it, or fetch it too, take part, and content routing is asked for it.
        *first* are peers believed to have all of it. *likely* are those that had it once: they are asked first too,
        but dialled only when nobody near has it and where their addresses are known and worth a try, and they are not
        looked for; without *dial_likely* they are not dialled at all. *spread*: others may fetch the same now, so
        blocks are asked in an order of our own, except those urged. *block_bytes*: how large a block probably is.
        """
        providers = [provider for provider in first if provider.peer != self._network.peer_id]
        hopes = [peer for peer in likely if peer != self._network.peer_id]
        session, events = self.engine.open_session(
            root,
            [*(provider.peer for provider in providers), *hopes],
            dialled_late=hopes if dial_likely else (),
            spread=spread,
            block_bytes=block_bytes,
            now=trio.current_time(),
        )
        wanted = self._sessions[session.number] = BlockSession(self, session)
        try:
            self.apply(events)
            for provider in providers:
                self.reach(provider)
            yield wanted
        finally:
            del self._sessions[session.number]
            self.apply(self.engine.close_session(session, trio.current_time()))

    def is_local(self, cid: Cid) -> bool:
        """Whether the block is here, or is none one would ask a peer for: its CID says all, or it is empty."""
        return cid.hash_code == IDENTITY or self._store.has(cid) or cid.matches(b"")

    async def load(self, cid: Cid) -> Block | None:
        """A block that `is_local` said is here; None where that turns out wrong."""
        if cid.hash_code == IDENTITY:
            return Block.verified(cid, cid.digest)
        if cid.matches(b""):
            return Block.verified(cid, b"")
        try:
            return await self._store.get(cid)
        except StoreError as error:
            logger.warning("block %s is asked of peers: %s", cid, error)
            return None

    def close(self) -> None:
        """Nothing comes any more; who still waits is told so."""
        self.is_open = False
        for wanted in self._sessions.values():
            wanted.wake()

    # --------------------------------------------------------------- events

    def apply(self, events: Iterable[Event]) -> None:
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
                        self._sessions[number].deliver(Arrival(block, peer))
                case Misbehaved(peer, reason):
                    logger.warning("peer %s %s: disconnecting", peer, reason)
                    self._nursery.start_soon(self._network.disconnect, peer, reason)
                case TryPeers(peers):
                    for peer in peers:
                        self._try(peer)
                case FindProviders(number, cid):
                    if self._routing is not None and number not in self._searching and len(self._searching) < SEARCHES:
                        self._searching.add(number)
                        self._nursery.start_soon(self._find_providers, self._routing, number, cid)
        now = trio.current_time()
        if self._sleeps_until > now + 0.1:
            deadline = self.engine.next_deadline(now)
            if deadline is not None and deadline < self._sleeps_until:
                self._sooner.set()

    def _link(self, peer: PeerId) -> _Link:
        link = self._links.get(peer)
        if link is None:
            link = self._links[peer] = _Link(self._network, peer)
        return link

    async def _keep_time(self) -> None:
        while True:
            deadline = self.engine.next_deadline(trio.current_time())
            self._sleeps_until = float("inf") if deadline is None else deadline
            self._sooner = trio.Event()
            with trio.move_on_at(self._sleeps_until):
                await self._sooner.wait()
                continue
            for link in self._links.values():
                if link.readers and self.engine.owes(link.peer):
                    self._report_bytes(link)
            self.apply(self.engine.tick(trio.current_time()))

    def _report_bytes(self, link: _Link) -> None:
        """Tell the engine what has come of messages that are still arriving."""
        for reader, reported in link.readers.items():
            count = reader.body_received - reported
            if count > 0:
                link.readers[reader] = reader.body_received
                self.engine.receive_bytes(link.peer, count, trio.current_time())

    # ------------------------------------------------------------- speaking

    async def _speak(self, link: _Link) -> None:
        """Tell a peer all there is to tell it."""
        try:
            failures = 0
            async with link.urgent.lock:
                while True:
                    message = self.engine.take_message(link.peer, trio.current_time())
                    if message is None:
                        return
                    try:
                        await link.urgent.say(message, tries=1)
                        failures = 0
                    except NetworkError as error:
                        failures += 1
                        if failures == 3 or link.peer not in self._network.peers():
                            logger.debug("cannot speak to %s: %s", link.peer, error)
                            if self._links.get(link.peer) is link and not link.readers:
                                del self._links[link.peer]
                            self.apply(self.engine.disconnected(link.peer, trio.current_time()))
                            return
                        self.apply(self.engine.tell_again(link.peer, trio.current_time()))
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
                wanted = [block for block in blocks if self.engine.is_wanted(give, block.cid)]
                if wanted:
                    payloads = [Payload(block.cid.prefix, block.data) for block in wanted]
                    message = Message(payloads=payloads)
                    sent, still = partial(self._took, give), partial(self._is_wanted, give)
                    if await voice.say(message, tries=2, sent=sent, wanted=still):
                        self.engine.counters.send(len(wanted), sum(len(block.data) for block in wanted))
        except NetworkError as error:
            logger.debug("cannot give blocks to %s: %s", give.peer, error)
        except Exception:  # what goes wrong in answering one peer must not end the node
            logger.exception("giving blocks to peer %s failed", give.peer)
        finally:
            self.apply(self.engine.given(give, trio.current_time(), missing=missing))

    def _took(self, give: Give, size: int) -> None:
        self.engine.took(give, size, trio.current_time())

    def _is_wanted(self, give: Give) -> bool:
        return any(self.engine.is_wanted(give, cid) for cid in give.cids)

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
            self.apply(self.engine.connected(link.peer, trio.current_time()))
            while (length := await reader.read_length()) is not None:
                await self._read_message(link, reader, length)
            await stream.aclose()
        except (MalformedData, PeerMisbehaved) as error:
            logger.info("peer %s broke the protocol: %s", link.peer, error)
            self.apply(self.engine.receive_garbage(link.peer, "sent garbage", trio.current_time()))
            await stream.reset()
        except trio.TooSlowError:
            logger.info("peer %s is too slow: a message did not arrive in time", link.peer)
            await stream.reset()
        except NetworkError:
            await stream.reset()
        except trio.Cancelled:
            await stream.reset()
            raise
        except Exception:  # whatever a peer's bytes bring about must not end the node
            logger.exception("reading from peer %s failed", link.peer)
            await stream.reset()
        finally:
            if link.readers.pop(reader):
                self.engine.receive_break(link.peer)

    async def _read_message(self, link: _Link, reader: MessageReader, length: int) -> None:
        async with AsyncExitStack() as held:
            # Given back when the last block of the message was hashed: see _hash.
            if length > _HASHED_INLINE_BYTES:
                await held.enter_async_context(link.receiving.hold(length))
                await held.enter_async_context(self._receiving.hold(length))
            with trio.fail_after(deadline_for(length)):
                body = await reader.read_body(length)
            message = decode_message(body)
            reported, link.readers[reader] = link.readers[reader], 0
            now = trio.current_time()
            size = sum(len(payload.data) for payload in message.payloads)
            self.engine.receive_bytes(link.peer, max(0, size - reported), now)
            if message.entries or message.full or message.haves or message.dont_haves:
                self.apply(self.engine.receive_message(link.peer, message, now))
            large = []
            for payload in message.payloads:
                if len(payload.data) > MAX_BLOCK_BYTES:
                    raise PeerMisbehaved(f"a block of {len(payload.data)} bytes")
                if len(payload.data) >= _HASHED_INLINE_BYTES:
                    large.append(payload)
                elif (block := _name(payload)) is not None:
                    self._receive_block(link, block)
            if large:
                self._nursery.start_soon(self._hash, link, large, held.pop_all())

    async def _hash(self, link: _Link, payloads: list[Payload], held: AsyncExitStack) -> None:
        """Hash large blocks beside the event loop, while their stream is read on."""
        async with held:
            for payload in payloads:
                block = await trio.to_thread.run_sync(_name, payload, limiter=self._hashers)
                if block is not None:
                    self._receive_block(link, block)

    def _receive_block(self, link: _Link, block: Block) -> None:
        self.apply(self.engine.receive_block(link.peer, block, trio.current_time()))

    # ------------------------------------------------------- peers and store

    async def _watch_peers(self) -> None:
        async with self._network.events() as events:
            async for event in events:
                if event.change is PeerChange.DISCONNECTED:
                    self._links.pop(event.peer, None)
                    self.apply(self.engine.disconnected(event.peer, trio.current_time()))
                elif self._speaks_bitswap(event.peer):
                    self.apply(self.engine.connected(event.peer, trio.current_time()))

    def _speaks_bitswap(self, peer: PeerId) -> bool:
        protocols = self._network.protocols_of(peer)
        return protocols is not None and not protocols.isdisjoint(PROTOCOLS)

    async def _watch_store(self, arrivals: AsyncIterator[frozenset[bytes]]) -> None:
        async for multihashes in arrivals:
            self.apply(self.engine.receive_arrivals(multihashes, trio.current_time()))
            if not self._sessions:
                continue
            for multihash in multihashes:
                for cid in self.engine.wanted_as(multihash):
                    await self._take_from_store(cid)

    async def _take_from_store(self, cid: Cid) -> None:
        """A block that is wanted of peers got here by another way."""
        try:
            block = await self._store.get(cid)
        except StoreError as error:
            logger.warning("block %s arrived and cannot be read: %s", cid, error)
            return
        numbers, events = self.engine.receive_local(block, trio.current_time())
        for number in numbers:
            self._sessions[number].deliver(Arrival(block, None))
        self.apply(events)

    def reach(self, provider: PeerInfo) -> None:
        """Connect to a peer that is believed to have what we want, soon."""
        if provider.peer == self._network.peer_id:
            return
        if provider.peer in self._network.peers():
            self._network.add_addrs(provider)
            if self._network.protocols_of(provider.peer) is None or self._speaks_bitswap(provider.peer):
                self.apply(self.engine.connected(provider.peer, trio.current_time()))
        elif provider.peer not in self._reaching:
            self._reaching.add(provider.peer)
            self._nursery.start_soon(self._connect, provider)

    def _try(self, peer: PeerId) -> None:
        """Connect to a peer that may be gone for good, if that takes no more than a dial."""
        # Not among those that are being reached: who learns a new address of it meanwhile must not wait for this dial.
        if peer not in self._trying and peer not in self._network.peers() and self._network.addrs_of(peer):
            self._trying.add(peer)
            self._nursery.start_soon(self._connect, PeerInfo(peer), False)

    async def _connect(self, provider: PeerInfo, insist: bool = True) -> None:
        try:
            with trio.move_on_after(REACH_S):
                if insist:
                    await self._dial(provider)
                else:
                    await self._network.connect(provider, insist=False)
                protocols = self._network.protocols_of(provider.peer)
                if protocols is None or self._speaks_bitswap(provider.peer):
                    self.apply(self.engine.connected(provider.peer, trio.current_time()))
        except NetworkError as error:
            logger.debug("provider %s cannot be reached: %s", provider.peer, error)
        finally:
            (self._reaching if insist else self._trying).discard(provider.peer)

    async def _dial(self, provider: PeerInfo) -> None:
        if not provider.addrs and not self._network.addrs_of(provider.peer) and self._routing is not None:
            provider = await self._routing.find_peer(provider.peer) or provider
        await self._network.connect(provider)

    async def _find_providers(self, routing: Routing, number: int, cid: Cid) -> None:
        found = 0
        try:
            with tracing.span("fetch.providers", detached=True) as span, trio.move_on_after(SEARCH_S):
                span.set_attribute("ipfsreg.root", str(cid))
                async for provider in routing.find_providers(cid):
                    wanted = self._sessions.get(number)
                    if wanted is None:
                        return
                    found += 1
                    span.set_attribute("ipfsreg.providers", found)
                    wanted.add_provider(provider)
        except NetworkError as error:
            logger.debug("no providers found for %s: %s", cid, error)
        finally:
            self._searching.discard(number)


def _name(payload: Payload) -> Block | None:
    """Learn by hashing what a peer has sent; None where it cannot be checked, so that nobody here can want it."""
    try:
        return Block.under(payload.prefix, payload.data)
    except MalformedData:
        return None


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

"""Publish/subscribe on a network: the streams around the router.

To each peer that speaks one of the protocols we keep one stream for what we say (a *link*, with its queue), and we read
one stream of what it says. Everything that decides is in `router.py`; every call into it is synchronous, so nothing
can come between a decision and its queueing.

What profiling taught: a message costs turns of the scheduler, not bytes. Each batch on a link is a turn for four tasks
(link, writer, reader, stream) and three system calls; that was half the time, cancel scopes per turn another tenth, and
a signature is 60 µs; one more duplicate in a batch that travels anyhow is little. So links that forward wait for each
other's news and for more to say, woken by one task for all of them; a send has no cancel scope of its own; and what
has waited rides along when something urgent leaves. With 16 nodes all connected it left 1.4 batches for a delivery, the
author's own among them, and halved the time.

A peer that says too much is not cut off: its stream is read more slowly, until the excess waits in its own memory.
A peer that says garbage loses the stream, and standing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from math import inf

import trio

from ipfsreg.errors import LimitReached, MalformedData, NetworkError, PeerMisbehaved, ProtocolUnsupported
from ipfsreg.p2p.framing import MessageReader
from ipfsreg.p2p.interface import Network, PeerChange, PeerEvent, PeerInfo, Stream
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.events import Deliver, Event, Joined, MeshChanged, Recommended, Send, Urgency
from ipfsreg.pubsub.interface import TopicEvent, TopicMessage
from ipfsreg.pubsub.messages import SIGN_PREFIX, Message, Rpc, decode_rpc, encode_rpc, unsigned_bytes
from ipfsreg.pubsub.messages import Subscription as SubscriptionEntry
from ipfsreg.pubsub.outbox import Frame, Outbox, OutboxSettings, pack
from ipfsreg.pubsub.parameters import DIALECTS, RouterSettings
from ipfsreg.pubsub.router import Router, RouterStats
from ipfsreg.pubsub.screening import Bucket, Screen, ScreenSettings
from ipfsreg.pubsub.subscription import Subscription

logger = logging.getLogger(__name__)

PROTOCOLS = tuple(DIALECTS)

MAX_RPC_BYTES = 1024 * 1024
"""What every implementation takes by default."""

ENVELOPE_BYTES = 2048
"""Room for author, seqno, topic and signature around the data."""

BATCH_BYTES = 64 * 1024
"""Frames joined into one send."""

MESSAGES_PER_TURN = 32
"""Messages of one peer looked at before others get a turn: about 3 ms of signature checks."""

ENTRY_COST = 0.05
"""What a control entry or an id costs a peer of its rate; a message or an RPC costs 1."""

GARBAGE_PENALTY = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PubSubSettings:
    """Publish/subscribe."""

    max_data_bytes: int = MAX_RPC_BYTES - ENVELOPE_BYTES
    """The largest message that can be published."""
    queue_messages: int = 8192
    queue_bytes: int = 16 * 1024 * 1024
    """What waits for the reader of a topic before the oldest is dropped."""
    peer_rate_per_s: float = 2000.0
    peer_burst: float = 8000.0
    """Messages and RPCs of one peer that are read at full speed; above, reading slows down to the rate."""
    open_deadline_s: float = 10.0
    send_deadline_s: float = 15.0
    """Without progress for this long the stream to a peer is given up and opened anew; looked at every heartbeat."""
    linger_s: float = 0.05
    """What others said is forwarded after a random time up to this: in batches, and not to who sends it to us first.

    Without it two neighbours in the mesh nearly always send each other the same message."""
    author_linger_s: float = 0.1
    """The same for what came from its author: he tells all his peers, and in a small swarm ours are his."""
    retry_s: float = 0.5
    max_retry_s: float = 30.0
    publish_patience_s: float = 1.0
    """How long a publisher waits for the slowest peer once a great deal is queued for it."""
    max_recommended_dials: int = 4
    """Dials to recommended peers at a time; further recommendations are passed over."""
    router: RouterSettings = field(default_factory=RouterSettings)
    screen: ScreenSettings = field(default_factory=ScreenSettings)
    outbox: OutboxSettings = field(default_factory=OutboxSettings)


class _Link:
    """One peer: the stream to it, and the one from it."""

    def __init__(self, peer: PeerId, outbox: Outbox, bucket: Bucket) -> None:
        self.peer = peer
        self.outbox = outbox
        self.bucket = bucket
        self.scope = trio.CancelScope()
        """Ends the link and all its tasks."""
        self.stream_scope = trio.CancelScope()
        """Ends the stream to the peer; the next is opened."""
        self.incoming_scope = trio.CancelScope()
        """Ends the stream from the peer."""
        self.topics: tuple[str, ...] = ()
        """What the peer said it is in, kept while our stream to it is reopened."""
        self.unsent: list[Frame] = []
        self.sending_since = inf
        """When the send under way began."""
        self.due = inf
        """When what waits in the outbox has to leave."""
        self.open = trio.Event()
        self.work = trio.Event()
        """Set when something has to leave now."""
        self.room = trio.Event()
        self.nudge = trio.Event()


class JoinedTopic:
    """A topic we are in. Keeps the `Topic` promises."""

    def __init__(self, service: GossipService, name: str, subscription: Subscription) -> None:
        self._service = service
        self._name = name
        self._subscription = subscription

    @property
    def name(self) -> str:
        return self._name

    async def publish(self, data: bytes) -> None:
        """Sign *data* and queue it to every peer in the topic.

        Waits up to `publish_patience_s` where a great deal is queued already.

        Raises:
            LimitReached: *data* is too large for one message.
            NetworkError: the topic was left.

        Cancelled: the message is out, or was never made.
        """
        await self._service.publish(self._name, data)

    def events(self) -> AsyncIterator[TopicEvent]:
        return self._subscription

    def peers(self) -> list[PeerId]:
        return self._service.router.peers_in(self._name)

    def status(self) -> dict[str, int]:
        """How it stands and what happened since the start, for the operator; counts are over all topics.

        `dropped` are messages this topic's reader was too slow for.
        """
        return {
            "peers": len(self.peers()),
            "mesh": len(self._service.router.mesh(self._name)),
            **asdict(self._service.stats),
            "dropped": self._subscription.dropped_in_all,
        }


class GossipService:
    """Gossipsub on a network. Keeps the `PubSub` promises; `open_pubsub` makes one."""

    def __init__(self, network: Network, settings: PubSubSettings, nursery: trio.Nursery) -> None:
        self._network = network
        self._settings = settings
        self._nursery = nursery
        self._rng = random.SystemRandom()
        # Nobody gains by foreseeing how long a link lingers, and the system's dice cost a system call.
        self._dice = random.Random()  # noqa: S311
        screen = Screen(settings.screen)
        self.router = Router(
            network.peer_id,
            settings.router,
            judge=lambda message, now: screen.judge(message, now=now),
            rng=self._rng,
        )
        self._links: dict[PeerId, _Link] = {}
        self._lingering: dict[_Link, None] = {}
        self._lingerers = trio.Event()
        self._topics: dict[str, Subscription] = {}
        self._dialling: set[PeerId] = set()
        # Nanoseconds are ahead of any count of messages a node can make: ids are fresh after a restart.
        self._seqno = time.time_ns()

    @property
    def stats(self) -> RouterStats:
        """What happened since the start."""
        return self.router.stats

    # ------------------------------------------------------------------- topics

    @asynccontextmanager
    async def join(self, name: str) -> AsyncIterator[JoinedTopic]:
        """Be in the topic *name* while the block lasts.

        Raises:
            ValueError: we are in it already.
        """
        if name in self._topics:
            raise ValueError(f"already in the topic {name!r}")
        settings = self._settings
        subscription = Subscription(max_messages=settings.queue_messages, max_bytes=settings.queue_bytes)
        self._topics[name] = subscription
        self._perform(self.router.join(name, now=trio.current_time()))
        try:
            yield JoinedTopic(self, name, subscription)
        finally:
            del self._topics[name]
            subscription.close()
            self._perform(self.router.leave(name, now=trio.current_time()))

    async def publish(self, name: str, data: bytes) -> None:
        """See `JoinedTopic.publish`."""
        if len(data) > self._settings.max_data_bytes:
            raise LimitReached(f"message of {len(data)} bytes, at most {self._settings.max_data_bytes} are published")
        if name not in self._topics:
            raise NetworkError(f"the topic {name!r} was left")
        await trio.lowlevel.checkpoint()
        self._perform(self.router.publish(self._sign(name, data), now=trio.current_time()))
        with trio.move_on_after(self._settings.publish_patience_s):
            for link in list(self._links.values()):
                while link.outbox.is_crowded and not link.scope.cancel_called:
                    link.room = trio.Event()
                    await link.room.wait()

    def _sign(self, topic: str, data: bytes) -> Message:
        self._seqno += 1
        author, seqno = self._network.peer_id.raw, self._seqno.to_bytes(8, "big")
        signature = self._network.sign(SIGN_PREFIX + unsigned_bytes(author, seqno, topic, data))
        # An identity multihash carries the key itself; any other has to be accompanied by it.
        key = None if author[0] == 0 else self._network.public_key
        return Message(author, seqno, topic, data, signature, key)

    # ------------------------------------------------- what the router has decided

    def _perform(self, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Send():
                    self._queue(event)
                case Deliver(message, received_from):
                    if subscription := self._topics.get(message.topic):
                        author = PeerId(message.author)
                        subscription.put_message(TopicMessage(message.data, author, received_from))
                case Joined(peer, topic):
                    if subscription := self._topics.get(topic):
                        subscription.put_joined(peer)
                case MeshChanged(peer, topic, entered):
                    change = self._network.protect if entered else self._network.unprotect
                    change(peer, f"mesh {topic}")
                case Recommended(peer, _record):
                    self._consider(peer)

    def _queue(self, send: Send) -> None:
        data = encode_rpc(send.rpc)
        message = send.rpc.messages[0] if send.rpc.messages else None
        frame = Frame(data, send.urgency, message)
        settings, now = self._settings, trio.current_time()
        linger_s = settings.author_linger_s if send.from_author else settings.linger_s
        for peer in send.peers:
            link = self._links.get(peer)
            if link is None:
                continue
            if not link.outbox.put(frame):
                if message is not None:
                    self.router.forgot_to_send(peer, message)
            elif frame.urgency > Urgency.OWN:
                self._linger(link, now, linger_s)
            else:
                link.work.set()
                if link.outbox.is_stuck:
                    self._reopen(link)

    def _linger(self, link: _Link, now: float, linger_s: float) -> None:
        """Let what waits on *link* leave within *linger_s*; what comes until then leaves with it."""
        if link.due == inf:
            link.due = now + linger_s * self._dice.random()
            self._lingering[link] = None
            self._lingerers.set()
        elif link.due > now + linger_s:
            link.due = now + linger_s

    def _reopen(self, link: _Link) -> None:
        if not link.stream_scope.cancel_called:
            logger.warning("peer %s takes nothing any more: its pubsub stream is opened anew", link.peer)
            link.stream_scope.cancel()

    def _consider(self, peer: PeerId) -> None:
        """Dial a peer that a mesh member recommended, if addresses of it are known."""
        if len(self._dialling) < self._settings.max_recommended_dials and peer not in self._dialling:
            addrs = self._network.addrs_of(peer)
            if addrs:
                self._dialling.add(peer)
                self._nursery.start_soon(self._dial, PeerInfo(peer, tuple(addrs)))

    async def _dial(self, info: PeerInfo) -> None:
        try:
            with trio.move_on_after(self._settings.open_deadline_s):
                await self._network.connect(info)
        except NetworkError as error:
            logger.debug("recommended peer %s: %s", info.peer, error)
        finally:
            self._dialling.discard(info.peer)

    # ------------------------------------------------------------ streams to peers

    async def follow_network(self, events: AsyncIterator[PeerEvent]) -> None:
        """Keep a link to everybody who speaks our protocols."""
        async for event in events:
            peer = event.peer
            if event.change is PeerChange.DISCONNECTED:
                # It may be back already: then its old stream fails by itself and the link opens another.
                if peer in self._links and peer not in self._network.peers():
                    self._links[peer].scope.cancel()
            elif event.change is PeerChange.IDENTIFIED:
                spoken = self._network.protocols_of(peer)
                if spoken is not None and not spoken.isdisjoint(PROTOCOLS):
                    self._link_to(peer).nudge.set()

    def _link_to(self, peer: PeerId) -> _Link:
        link = self._links.get(peer)
        if link is None or link.scope.cancel_called:
            settings = self._settings
            bucket = Bucket(settings.peer_rate_per_s, settings.peer_burst, now=trio.current_time())
            link = self._links[peer] = _Link(peer, Outbox(settings.outbox), bucket)
            self._nursery.start_soon(self._keep_link, link)
        return link

    async def _keep_link(self, link: _Link) -> None:
        """Keep a stream to the peer open while it is connected and speaks one of our protocols."""
        retry_s = self._settings.retry_s
        try:
            with link.scope:
                while link.peer in self._network.peers():
                    link.nudge = trio.Event()
                    started = trio.current_time()
                    await self._run_stream(link)
                    if trio.current_time() - started > self._settings.max_retry_s:
                        retry_s = self._settings.retry_s
                    with trio.move_on_after(retry_s * self._rng.uniform(0.5, 1.0)):
                        await link.nudge.wait()
                    retry_s = min(2 * retry_s, self._settings.max_retry_s)
        except ProtocolUnsupported:
            logger.debug("peer %s no longer speaks pubsub", link.peer)
        except Exception:  # whatever a stream of this one peer throws must not take the others down
            logger.exception("pubsub link to %s", link.peer)
        finally:
            link.scope.cancel()
            link.incoming_scope.cancel()
            link.room.set()
            if self._links.get(link.peer) is link:
                del self._links[link.peer]

    async def _run_stream(self, link: _Link) -> None:
        """Open a stream to the peer and write to it until it breaks. Raises ProtocolUnsupported."""
        try:
            with trio.fail_after(self._settings.open_deadline_s):
                stream = await self._network.open_stream(link.peer, PROTOCOLS)
        except ProtocolUnsupported:
            raise
        except (NetworkError, trio.TooSlowError) as error:
            logger.debug("no pubsub stream to %s: %s", link.peer, error)
            return
        refused: list[ProtocolUnsupported] = []
        try:
            with trio.CancelScope() as link.stream_scope:
                self._perform(self.router.add_peer(link.peer, DIALECTS[stream.protocol]))
                known = Rpc(subscriptions=tuple(SubscriptionEntry(True, topic) for topic in link.topics))
                self._perform(self.router.receive_control(link.peer, known, now=trio.current_time()))
                link.open.set()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._watch, link, stream, refused)
                    await self._write(link, stream, refused)
        finally:
            link.open = trio.Event()
            link.sending_since = inf
            link.topics = self.router.topics_of(link.peer)
            self._perform(self.router.remove_peer(link.peer, now=trio.current_time()))
            link.outbox.restart(link.unsent)
            link.unsent = []
            await stream.reset()
        if refused:
            raise refused[0]

    async def _watch(self, link: _Link, stream: Stream, refused: list[ProtocolUnsupported]) -> None:
        """Learn that the peer ended the stream we write to: it has nothing to say on it."""
        try:
            if await stream.receive_some(1):
                self.router.misbehaved(link.peer)
        except ProtocolUnsupported as error:
            refused.append(error)
        except NetworkError as error:
            logger.debug("pubsub stream to %s: %s", link.peer, error)
        link.stream_scope.cancel()

    async def _write(self, link: _Link, stream: Stream, refused: list[ProtocolUnsupported]) -> None:
        try:
            link.work.set()
            while True:
                await link.work.wait()
                link.unsent = link.outbox.take(BATCH_BYTES)
                if not link.outbox:
                    link.work = trio.Event()
                    link.due = inf
                    self._lingering.pop(link, None)
                if not link.unsent:
                    continue
                batch = memoryview(pack(link.unsent))
                for start in range(0, len(batch), BATCH_BYTES):
                    link.sending_since = trio.current_time()
                    await stream.send_all(batch[start : start + BATCH_BYTES])
                link.sending_since = inf
                link.unsent = []
                if not link.outbox.is_crowded:
                    link.room.set()
        except ProtocolUnsupported as error:
            refused.append(error)
        except NetworkError as error:
            logger.debug("pubsub stream to %s: %s", link.peer, error)
        link.stream_scope.cancel()

    async def wake_lingerers(self) -> None:
        """Let what lingered leave when it is due: one sleeper for all links, twice a linger."""
        while True:
            await self._lingerers.wait()
            await trio.sleep(self._settings.linger_s / 2)
            now = trio.current_time()
            for link in [link for link in self._lingering if link.due <= now]:
                del self._lingering[link]
                link.due = inf
                link.work.set()
            if not self._lingering:
                self._lingerers = trio.Event()

    # ---------------------------------------------------------- streams from peers

    async def take_streams(self, streams: AsyncIterator[Stream]) -> None:
        """Read every stream peers open to us, of each peer the newest."""
        async for stream in streams:
            self._nursery.start_soon(self._read_stream, stream)

    async def _read_stream(self, stream: Stream) -> None:
        peer = stream.peer
        link = self._link_to(peer)
        link.incoming_scope.cancel()
        with trio.CancelScope() as scope:
            link.incoming_scope = scope
            try:
                await self._read(link, stream)
            except (MalformedData, PeerMisbehaved) as error:
                logger.info("peer %s sent garbage on pubsub: %s", peer, error)
                self.router.misbehaved(peer, GARBAGE_PENALTY)
            except NetworkError as error:
                logger.debug("pubsub stream from %s: %s", peer, error)
            except Exception:  # one peer's bytes must not end the service, whatever they led to
                logger.exception("pubsub stream from %s", peer)
            finally:
                await stream.reset()
        if link.incoming_scope is scope:
            # It opens another and says anew what it is in; until then nothing may be believed.
            link.topics = ()
            self._perform(self.router.forget_topics(peer))

    async def _read(self, link: _Link, stream: Stream) -> None:
        reader = MessageReader(stream, MAX_RPC_BYTES)
        looked_at = 0
        while (data := await reader.read()) is not None:
            rpc = decode_rpc(data, self.router.has_seen)
            # Before we can speak to it the router does not know it, and would answer into the void.
            while not link.open.is_set():
                await link.open.wait()
            now = trio.current_time()
            for id_ in (*rpc.known, *rpc.idontwant):
                link.outbox.cancel(id_)
            self._perform(self.router.receive_control(link.peer, rpc, now=now))
            for message in rpc.messages:
                self._perform(self.router.receive_message(link.peer, message, now=now))
                looked_at += 1
                if looked_at % MESSAGES_PER_TURN == 0:
                    await trio.lowlevel.checkpoint()
            cost = 1 + len(rpc.messages) + len(rpc.known) + rpc.malformed + ENTRY_COST * rpc.entries
            wait_s = link.bucket.owe(cost, now=now)
            looked_at += 1
            # A frame that is in the reader's buffer comes without a checkpoint; one each would double its cost.
            if wait_s or rpc.entries > 100 or looked_at % MESSAGES_PER_TURN == 0:
                await trio.sleep(wait_s)

    async def keep_time(self) -> None:
        """The heartbeat."""
        heartbeat_s = self._settings.router.heartbeat_s
        # The first comes early: the mesh of a fresh node should not take a second to form.
        await trio.sleep(heartbeat_s / 10)
        while True:
            now = trio.current_time()
            for link in self._links.values():
                if now - link.sending_since > self._settings.send_deadline_s:
                    self._reopen(link)
            self._perform(self.router.heartbeat(now=now))
            await trio.sleep(heartbeat_s)


@asynccontextmanager
async def open_pubsub(network: Network, settings: PubSubSettings | None = None) -> AsyncIterator[GossipService]:
    """Run publish/subscribe on *network* for as long as the block lasts.

    Leaving it resets our streams; peers notice at once.
    """
    async with (
        network.accept(PROTOCOLS) as streams,
        network.events() as events,
        trio.open_nursery() as nursery,
    ):
        service = GossipService(network, settings or PubSubSettings(), nursery)
        nursery.start_soon(service.take_streams, streams)
        nursery.start_soon(service.follow_network, events)
        nursery.start_soon(service.keep_time)
        nursery.start_soon(service.wake_lingerers)
        yield service
        nursery.cancel_scope.cancel()

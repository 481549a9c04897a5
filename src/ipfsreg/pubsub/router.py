"""Gossipsub v1.1, thinking only: what comes in, what time it is, and whom to tell what.

How a message spreads. Every node keeps a *mesh* per topic: about six peers with whom whole messages are exchanged at
once. A link of the mesh is agreed on by GRAFT and ended by PRUNE, after which neither side tries again for the
*backoff*. Once a heartbeat some peers outside the mesh get IHAVE, the ids of recent messages; who has missed one asks
with IWANT and gets it. So a broken mesh costs delay and not messages. Our own messages go to every peer in the topic
(*flood publish*): an eclipse of our mesh cannot silence us.

Two things are added to what the specification asks, both legal on the wire, because in a small swarm every peer is in
the mesh and nobody outside it would gossip:

- a peer that is grafted is told what it may have missed (IHAVE with the GRAFT);
- a peer whose queue overflowed is told at the next heartbeat what was dropped on the way to it (`forgot_to_send`).

Fanout is left out: it serves nodes that publish without subscribing and without flood publish, and ours do neither.
Messages are forwarded only in topics we are in. Peers that speak floodsub get every message and no control.

Specs: libp2p/specs pubsub/gossipsub v1.0, v1.1, v1.2 (IDONTWANT).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, MutableSequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ipfsreg.errors import MalformedData
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.caches import MessageCache, SeenCache
from ipfsreg.pubsub.events import Deliver, Event, Joined, MeshChanged, Recommended, Send, Urgency
from ipfsreg.pubsub.messages import ExchangedPeer, IHave, Message, Prune, Rpc, Subscription
from ipfsreg.pubsub.parameters import Dialect, RouterSettings
from ipfsreg.pubsub.scoring import PeerScores
from ipfsreg.pubsub.screening import Verdict

MAX_TOPIC_CHARS = 1024
MAX_TOPICS_PER_PEER = 128
"""Topics of a peer that are remembered before we join them; topics we are in always count."""
MAX_BACKOFFS = 16_384
MAX_MISSED = 5000
"""Ids of dropped messages kept for one peer; more than the message cache can hold is no use."""


class Rng(Protocol):
    """The dice; `random.Random` has them."""

    def shuffle(self, x: MutableSequence[Any], /) -> None:
        """Put *x* into random order."""


@dataclass(slots=True)
class RouterStats:
    """Counts since the start."""

    delivered: int = 0
    duplicates: int = 0
    ignored: int = 0
    rejected: int = 0
    asked: int = 0
    """Ids asked for with IWANT."""
    given: int = 0
    """Messages sent in answer to IWANT."""
    broken_promises: int = 0
    overflowed: int = 0
    """Messages that found no room on their way to a peer; it is told about them."""


@dataclass(slots=True)
class _Peer:
    dialect: Dialect
    topics: dict[str, None] = field(default_factory=dict)
    ihave_rpcs: int = 0
    asked: int = 0
    unwanted: list[dict[bytes, None]] = field(default_factory=lambda: [{}, {}, {}])
    """Ids it does not want, by heartbeat, newest first."""
    missed: dict[bytes, str] = field(default_factory=dict)
    """Ids (and topics) of what was dropped on the way to it."""

    def does_not_want(self, id_: bytes) -> bool:
        newest, middle, oldest = self.unwanted
        return id_ in newest or id_ in middle or id_ in oldest


@dataclass(slots=True)
class _Topic:
    """A topic we are in. Dicts are sets that keep their order: a simulation can be repeated."""

    peers: dict[PeerId, None] = field(default_factory=dict)
    mesh: dict[PeerId, None] = field(default_factory=dict)


class Router:
    """One node's part of gossipsub."""

    def __init__(
        self,
        me: PeerId,
        settings: RouterSettings,
        *,
        judge: Callable[[Message, float], Verdict],
        rng: Rng,
    ) -> None:
        """*judge* says of each new message, at a time, whether it counts."""
        self._me = me
        self._settings = settings
        self._judge = judge
        self._rng = rng
        self._peers: dict[PeerId, _Peer] = {}
        self._topics: dict[str, _Topic] = {}
        self._scores = PeerScores(settings.score)
        self._seen = SeenCache(settings.seen_ttl_s, settings.max_seen)
        self._cache = MessageCache(settings.history_windows, settings.gossip_windows, settings.history_bytes)
        self._backoff: dict[tuple[str, PeerId], float] = {}
        self._promises: dict[bytes, dict[PeerId, float]] = {}
        """Per id asked for: until when which peer has to bring it."""
        self._asked: dict[bytes, int] = {}
        self._heartbeats = 0
        self.stats = RouterStats()

    # -------------------------------------------------------------- who is there

    def add_peer(self, peer: PeerId, dialect: Dialect) -> list[Event]:
        """*peer* can be spoken to: tell it our topics."""
        self._peers[peer] = _Peer(dialect)
        self._scores.add(peer)
        if not self._topics:
            return []
        hello = Rpc(subscriptions=tuple(Subscription(True, topic) for topic in self._topics))
        return [Send((peer,), hello, Urgency.CONTROL)]

    def remove_peer(self, peer: PeerId, *, now: float) -> list[Event]:
        """*peer* can no longer be spoken to."""
        events = self.forget_topics(peer)
        if self._peers.pop(peer, None) is not None:
            self._scores.remove(peer, now=now)
        for promised in self._promises.values():
            promised.pop(peer, None)
        return events

    def forget_topics(self, peer: PeerId) -> list[Event]:
        """What *peer* said of its topics no longer holds: it will say it anew."""
        state = self._peers.get(peer)
        if state is None:
            return []
        state.topics.clear()
        events: list[Event] = []
        for name, topic in self._topics.items():
            topic.peers.pop(peer, None)
            events += self._remove_from_mesh(name, topic, peer)
        return events

    def topics_of(self, peer: PeerId) -> tuple[str, ...]:
        """The topics *peer* is in, as far as remembered."""
        state = self._peers.get(peer)
        return tuple(state.topics) if state else ()

    def peers_in(self, name: str) -> list[PeerId]:
        """The peers in a topic of ours."""
        topic = self._topics.get(name)
        return list(topic.peers) if topic else []

    def mesh(self, name: str) -> list[PeerId]:
        """The peers in our mesh for a topic."""
        topic = self._topics.get(name)
        return list(topic.mesh) if topic else []

    def score(self, peer: PeerId, *, now: float) -> float:
        """What we think of *peer*."""
        return self._scores.score(peer, now=now)

    def misbehaved(self, peer: PeerId, amount: float = 1.0) -> None:
        """The transport caught *peer* at something (garbage, say)."""
        self._scores.misbehaved(peer, amount)

    # ---------------------------------------------------------------- our topics

    def join(self, name: str, *, now: float) -> list[Event]:
        """Enter the topic *name*."""
        if name in self._topics:
            return []
        topic = self._topics[name] = _Topic()
        topic.peers.update((peer, None) for peer, state in self._peers.items() if name in state.topics)
        events = self._tell_everybody(Subscription(True, name))
        events += [Joined(peer, name) for peer in topic.peers]
        return events + self._fill_mesh(name, topic, now)

    def leave(self, name: str, *, now: float) -> list[Event]:
        """Leave the topic *name*."""
        topic = self._topics.pop(name, None)
        if topic is None:
            return []
        events = self._tell_everybody(Subscription(False, name))
        for peer in list(topic.mesh):
            events += self._prune(name, topic, peer, now, exchange=False, backoff_s=self._settings.leave_backoff_s)
        return events

    def _tell_everybody(self, subscription: Subscription) -> list[Event]:
        if not self._peers:
            return []
        return [Send(tuple(self._peers), Rpc(subscriptions=(subscription,)), Urgency.CONTROL)]

    def publish(self, message: Message, *, now: float) -> list[Event]:
        """Send our own *message* to every peer in its topic, those in the mesh first."""
        self._seen.add(message.id, now=now)
        self._cache.put(message)
        topic = self._topics.get(message.topic)
        if topic is None:
            return []
        threshold = self._settings.score.publish_threshold
        peers = [peer for peer in {**topic.mesh, **topic.peers} if not self._scores.is_below(peer, threshold, now=now)]
        return [Send(tuple(peers), Rpc(messages=(message,)), Urgency.OWN)] if peers else []

    def forgot_to_send(self, peer: PeerId, message: Message) -> None:
        """*message* was dropped on the way to *peer*: tell it about it at the next heartbeat."""
        self.stats.overflowed += 1
        state = self._peers.get(peer)
        if state is not None:
            if len(state.missed) >= MAX_MISSED:
                del state.missed[next(iter(state.missed))]
            state.missed[message.id] = message.topic
            self._cache.take_back(message.id, peer)

    # ------------------------------------------------------------ what they say

    def has_seen(self, id_: bytes) -> bool:
        """Whether the message *id_* has come before: it need not be looked at again."""
        return id_ in self._seen

    def receive_message(self, peer: PeerId, message: Message, *, now: float) -> list[Event]:
        """Take in one message that *peer* sent."""
        if not self._listens_to(peer, now):
            return []
        topic = self._topics.get(message.topic)
        # Our own messages come back after a restart with the same key, when peers still have them.
        if topic is None or message.author == self._me.raw:
            return []
        # Kept, whoever brings it, and whatever becomes of it.
        self._promises.pop(message.id, None)
        if message.id in self._seen:
            self.stats.duplicates += 1
            return []
        verdict = self._judge(message, now)
        if verdict is Verdict.REJECT:
            self.stats.rejected += 1
            self._scores.delivered_invalid(peer)
            return []
        if verdict is Verdict.IGNORE:
            self.stats.ignored += 1
            return []
        self.stats.delivered += 1
        self._seen.add(message.id, now=now)
        self._cache.put(message)
        self._scores.delivered_first(peer)
        return [Deliver(message, peer), *self._forward(topic, message, peer)]

    def _listens_to(self, peer: PeerId, now: float) -> bool:
        threshold = self._settings.score.graylist_threshold
        return peer in self._peers and not self._scores.is_below(peer, threshold, now=now)

    def _forward(self, topic: _Topic, message: Message, source: PeerId) -> list[Event]:
        events: list[Event] = []
        if len(message.encoded) >= self._settings.idontwant_bytes:
            told = tuple(peer for peer in topic.mesh if peer != source and self._peers[peer].dialect >= Dialect.V1_2)
            if told:
                events.append(Send(told, Rpc(idontwant=(message.id,)), Urgency.GOSSIP))
        flooded = [peer for peer in topic.peers if self._peers[peer].dialect is Dialect.FLOODSUB]
        have_it = (source.raw, message.author)
        peers = tuple(
            [
                peer
                for peer in (*topic.mesh, *flooded)
                if peer.raw not in have_it and not self._peers[peer].does_not_want(message.id)
            ]
        )
        if peers:
            rpc = Rpc(messages=(message,))
            events.append(Send(peers, rpc, Urgency.FORWARD, from_author=source.raw == message.author))
        return events

    def receive_control(self, peer: PeerId, rpc: Rpc, *, now: float) -> list[Event]:
        """Take in all that *rpc* of *peer* says, except its messages."""
        state = self._peers.get(peer)
        if state is None:
            return []
        self.stats.duplicates += len(rpc.known)
        events: list[Event] = []
        for subscription in rpc.subscriptions:
            events += self._receive_subscription(peer, state, subscription, now)
        if not self._listens_to(peer, now):
            return events
        if rpc.malformed:
            self.stats.rejected += rpc.malformed
            self._scores.delivered_invalid(peer, rpc.malformed)
        if rpc.ihave:
            events += self._receive_ihave(peer, state, rpc.ihave, now)
        if rpc.iwant:
            events += self._receive_iwant(peer, rpc.iwant, now)
        # Without duplicates: the second GRAFT of a topic in one RPC says nothing, but would cost an answer each.
        for name in dict.fromkeys(rpc.graft):
            events += self._receive_graft(peer, state, name, now)
        for prune in rpc.prune:
            events += self._receive_prune(peer, prune, now)
        for id_ in rpc.idontwant:
            if len(state.unwanted[0]) < self._settings.max_idontwant_ids:
                state.unwanted[0][id_] = None
        return events

    def _receive_subscription(self, peer: PeerId, state: _Peer, said: Subscription, now: float) -> list[Event]:
        name = said.topic
        topic = self._topics.get(name)
        if not said.subscribe:
            state.topics.pop(name, None)
            if topic is None:
                return []
            topic.peers.pop(peer, None)
            return self._remove_from_mesh(name, topic, peer)
        if name in state.topics or len(name) > MAX_TOPIC_CHARS:
            return []
        if topic is None:
            if len(state.topics) < MAX_TOPICS_PER_PEER:
                state.topics[name] = None
            return []
        state.topics[name] = None
        topic.peers[peer] = None
        events: list[Event] = [Joined(peer, name)]
        # Do not wait for the heartbeat where the mesh is thin: a node that just started would miss a second.
        if len(topic.mesh) < self._settings.d_low and self._may_graft(name, topic, peer, now):
            events += self._graft(name, topic, peer, now)
        return events

    def _receive_ihave(self, peer: PeerId, state: _Peer, haves: Collection[IHave], now: float) -> list[Event]:
        settings = self._settings
        if self._scores.is_below(peer, settings.score.gossip_threshold, now=now):
            return []
        state.ihave_rpcs += 1
        if state.ihave_rpcs > settings.max_ihave_rpcs:
            return []
        # As a dict: an id named twice is asked for once.
        wanted = {
            id_: None
            for have in haves
            if have.topic in self._topics
            for id_ in have.ids
            if id_ not in self._seen and self._asked.get(id_, 0) < settings.max_asked_twice
        }
        ids = list(wanted)
        self._rng.shuffle(ids)
        del ids[max(0, settings.max_ihave_ids - state.asked) :]
        if not ids:
            return []
        state.asked += len(ids)
        self.stats.asked += len(ids)
        for id_ in ids:
            self._asked[id_] = self._asked.get(id_, 0) + 1
        # One of them stands for all: they are in random order, so a peer cannot know which to answer.
        self._promises.setdefault(ids[0], {}).setdefault(peer, now + settings.promise_s)
        return [Send((peer,), Rpc(iwant=tuple(ids)), Urgency.CONTROL)]

    def _receive_iwant(self, peer: PeerId, ids: Iterable[bytes], now: float) -> list[Event]:
        if self._scores.is_below(peer, self._settings.score.gossip_threshold, now=now):
            return []
        events: list[Event] = []
        for id_ in dict.fromkeys(ids):
            message = self._cache.give(id_, peer, at_most=self._settings.max_retransmissions)
            if message is not None:
                events.append(Send((peer,), Rpc(messages=(message,)), Urgency.FORWARD))
        self.stats.given += len(events)
        return events

    def _receive_graft(self, peer: PeerId, state: _Peer, name: str, now: float) -> list[Event]:
        topic = self._topics.get(name)
        # A topic we are not in gets no answer: it would tell what we are in, and cost us a message for theirs.
        if topic is None or peer in topic.mesh or state.dialect is Dialect.FLOODSUB:
            return []
        settings = self._settings
        until = self._backoff.get((name, peer))
        if until is not None and now < until:
            self._scores.misbehaved(peer)
            if now < until - settings.prune_backoff_s + settings.graft_flood_s:
                self._scores.misbehaved(peer)
            return self._refuse(name, topic, peer, now, exchange=False)
        if self.score(peer, now=now) < 0:
            return self._refuse(name, topic, peer, now, exchange=False)
        if len(topic.mesh) >= settings.d_high:
            return self._refuse(name, topic, peer, now, exchange=True)
        events: list[Event] = []
        if peer not in topic.peers:
            # A GRAFT implies the subscription; it can overtake it where streams are reopened.
            state.topics[name] = None
            topic.peers[peer] = None
            events.append(Joined(peer, name))
        events += self._add_to_mesh(name, topic, peer, now)
        if recent := self._recent(name):
            events.append(Send((peer,), Rpc(ihave=recent), Urgency.GOSSIP))
        return events

    def _receive_prune(self, peer: PeerId, prune: Prune, now: float) -> list[Event]:
        topic = self._topics.get(prune.topic)
        if topic is None:
            return []
        settings = self._settings
        events = self._remove_from_mesh(prune.topic, topic, peer)
        backoff_s = min(float(prune.backoff_s or settings.prune_backoff_s), settings.max_backoff_s)
        self._back_off(prune.topic, peer, now + backoff_s)
        if self.score(peer, now=now) < settings.score.exchange_threshold:
            return events
        for each in prune.peers[: settings.exchanged_peers]:
            try:
                recommended = PeerId.decode(each.peer)
            except MalformedData:
                self._scores.misbehaved(peer)
                break
            if recommended != self._me and recommended not in self._peers:
                events.append(Recommended(recommended, each.record))
        return events

    # ------------------------------------------------------------------ the mesh

    def _may_graft(self, name: str, topic: _Topic, peer: PeerId, now: float) -> bool:
        return (
            peer not in topic.mesh
            and self._peers[peer].dialect is not Dialect.FLOODSUB
            and self._backoff.get((name, peer), now) <= now
            and self.score(peer, now=now) >= 0
        )

    def _candidates(self, name: str, topic: _Topic, now: float) -> list[PeerId]:
        found = [peer for peer in topic.peers if self._may_graft(name, topic, peer, now)]
        self._rng.shuffle(found)
        return found

    def _fill_mesh(self, name: str, topic: _Topic, now: float) -> list[Event]:
        lacking = self._settings.d - len(topic.mesh)
        events: list[Event] = []
        for peer in self._candidates(name, topic, now)[:lacking]:
            events += self._graft(name, topic, peer, now)
        return events

    def _graft(self, name: str, topic: _Topic, peer: PeerId, now: float) -> list[Event]:
        rpc = Rpc(graft=(name,), ihave=self._recent(name))
        return [*self._add_to_mesh(name, topic, peer, now), Send((peer,), rpc, Urgency.CONTROL)]

    def _recent(self, name: str) -> tuple[IHave, ...]:
        ids = self._cache.recent_ids(name)[: self._settings.max_ihave_ids]
        return (IHave(name, tuple(ids)),) if ids else ()

    def _add_to_mesh(self, name: str, topic: _Topic, peer: PeerId, now: float) -> list[Event]:
        topic.mesh[peer] = None
        self._scores.entered_mesh(peer, name, now=now)
        return [MeshChanged(peer, name, entered=True)]

    def _remove_from_mesh(self, name: str, topic: _Topic, peer: PeerId) -> list[Event]:
        if peer not in topic.mesh:
            return []
        del topic.mesh[peer]
        self._scores.left_mesh(peer, name)
        return [MeshChanged(peer, name, entered=False)]

    def _prune(
        self, name: str, topic: _Topic, peer: PeerId, now: float, *, exchange: bool, backoff_s: float | None = None
    ) -> list[Event]:
        return [
            *self._remove_from_mesh(name, topic, peer),
            *self._refuse(name, topic, peer, now, exchange=exchange, backoff_s=backoff_s),
        ]

    def _refuse(
        self, name: str, topic: _Topic, peer: PeerId, now: float, *, exchange: bool, backoff_s: float | None = None
    ) -> list[Event]:
        """PRUNE *peer* and start a backoff on our side too."""
        backoff_s = self._settings.prune_backoff_s if backoff_s is None else backoff_s
        self._back_off(name, peer, now + backoff_s)
        if self._peers[peer].dialect < Dialect.V1_1:
            return [Send((peer,), Rpc(prune=(Prune(name),)), Urgency.CONTROL)]
        peers: tuple[ExchangedPeer, ...] = ()
        if exchange:
            others = [each for each in topic.peers if each != peer and self.score(each, now=now) >= 0]
            self._rng.shuffle(others)
            peers = tuple(ExchangedPeer(each.raw) for each in others[: self._settings.exchanged_peers])
        return [Send((peer,), Rpc(prune=(Prune(name, peers, int(backoff_s)),)), Urgency.CONTROL)]

    def _back_off(self, name: str, peer: PeerId, until: float) -> None:
        key = (name, peer)
        until = max(until, self._backoff.pop(key, until))
        self._backoff[key] = until
        if len(self._backoff) > MAX_BACKOFFS:
            del self._backoff[next(iter(self._backoff))]

    # ----------------------------------------------------------------- heartbeat

    def heartbeat(self, *, now: float) -> list[Event]:
        """Mend the meshes and gossip. Call every `heartbeat_s`."""
        self._heartbeats += 1
        self._scores.decay(now=now)
        self._seen.expire(now=now)
        self._break_promises(now)
        for key in [key for key, until in self._backoff.items() if until <= now]:
            del self._backoff[key]
        self._asked.clear()
        events: list[Event] = []
        for name, topic in self._topics.items():
            events += self._mend_mesh(name, topic, now)
            events += self._gossip(name, topic, now)
        events += self._own_up()
        for state in self._peers.values():
            state.ihave_rpcs = state.asked = 0
            state.unwanted = [{}, *state.unwanted[:-1]]
        self._cache.shift()
        return events

    def _break_promises(self, now: float) -> None:
        for id_, promised in list(self._promises.items()):
            for peer in [peer for peer, due in promised.items() if due <= now]:
                del promised[peer]
                self.stats.broken_promises += 1
                self._scores.misbehaved(peer)
            if not promised:
                del self._promises[id_]

    def _mend_mesh(self, name: str, topic: _Topic, now: float) -> list[Event]:
        settings = self._settings
        events: list[Event] = []
        for peer in [peer for peer in topic.mesh if self.score(peer, now=now) < 0]:
            events += self._prune(name, topic, peer, now, exchange=False)
        if len(topic.mesh) < settings.d_low:
            events += self._fill_mesh(name, topic, now)
        elif len(topic.mesh) > settings.d_high:
            members = list(topic.mesh)
            self._rng.shuffle(members)
            members.sort(key=lambda peer: self.score(peer, now=now), reverse=True)
            rest = members[settings.d_score :]
            self._rng.shuffle(rest)
            for peer in rest[settings.d - settings.d_score :]:
                events += self._prune(name, topic, peer, now, exchange=True)
        if self._heartbeats % settings.opportunistic_heartbeats == 0:
            events += self._improve_mesh(name, topic, now)
        return events

    def _improve_mesh(self, name: str, topic: _Topic, now: float) -> list[Event]:
        """Opportunistic grafting: a mesh of poor peers gets a few that are better than its median."""
        if len(topic.mesh) < 2:
            return []
        scores = sorted(self.score(peer, now=now) for peer in topic.mesh)
        median = scores[len(scores) // 2]
        if median >= self._settings.score.opportunistic_threshold:
            return []
        better = [peer for peer in self._candidates(name, topic, now) if self.score(peer, now=now) > median]
        events: list[Event] = []
        for peer in better[: self._settings.opportunistic_peers]:
            events += self._graft(name, topic, peer, now)
        return events

    def _gossip(self, name: str, topic: _Topic, now: float) -> list[Event]:
        settings = self._settings
        ids = self._cache.recent_ids(name)
        if not ids:
            return []
        peers = [
            peer
            for peer in topic.peers
            if peer not in topic.mesh
            and self._peers[peer].dialect is not Dialect.FLOODSUB
            and not self._scores.is_below(peer, settings.score.gossip_threshold, now=now)
        ]
        self._rng.shuffle(peers)
        del peers[max(settings.d_lazy, int(settings.gossip_factor * len(peers))) :]
        if not peers:
            return []
        if len(ids) <= settings.max_ihave_ids:
            return [Send(tuple(peers), Rpc(ihave=(IHave(name, tuple(ids)),)), Urgency.GOSSIP)]
        # Too many for one peer: a different choice for each, so that together they hear of all.
        events: list[Event] = []
        for peer in peers:
            self._rng.shuffle(ids)
            chosen = IHave(name, tuple(ids[: settings.max_ihave_ids]))
            events.append(Send((peer,), Rpc(ihave=(chosen,)), Urgency.GOSSIP))
        return events

    def _own_up(self) -> list[Event]:
        """Tell peers what was dropped on the way to them, as far as it can still be given."""
        events: list[Event] = []
        for peer, state in self._peers.items():
            if not state.missed or state.dialect is Dialect.FLOODSUB:
                continue
            by_topic: dict[str, list[bytes]] = {}
            for id_, name in state.missed.items():
                if id_ in self._cache:
                    by_topic.setdefault(name, []).append(id_)
            state.missed.clear()
            if by_topic:
                haves = tuple(IHave(name, tuple(ids)) for name, ids in by_topic.items())
                events.append(Send((peer,), Rpc(ihave=haves), Urgency.CONTROL))
        return events

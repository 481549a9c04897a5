"""Gossipsub with js-libp2p and Kubo: signed messages both ways, passed on, asked for, and in a mixed swarm."""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, TopicMessage
from ipfsreg.pubsub.parameters import RouterSettings
from ipfsreg.pubsub.service import GossipService, JoinedTopic, PubSubSettings, open_pubsub
from ipfsreg.testing.js_peer import JsPeer, open_js_peer
from ipfsreg.testing.kubo_peer import KuboPeer, open_kubo_peer

pytestmark = pytest.mark.interop

TOPIC = "names"
KEY = b"\x5a" * 32
WITHOUT_MESH = PubSubSettings(router=RouterSettings(d=0, d_low=0, d_high=0, d_score=0))
"""Tells others of messages, and gives them only to those who ask."""

SMALL = b"\x00\xff"
LARGE = random.Random(1).randbytes(900_000)

kinds = pytest.mark.parametrize("kind", ["js", "kubo"])


@dataclass(eq=False)
class Ours:
    """A node of ours in the topic, and what it heard."""

    host: Host
    pubsub: GossipService
    topic: JoinedTopic
    heard: list[TopicMessage] = field(default_factory=list)
    joined: set[PeerId] = field(default_factory=set)
    dropped: int = 0
    _news: trio.Event = field(default_factory=trio.Event)

    @property
    def info(self) -> PeerInfo:
        return PeerInfo(self.host.peer_id, tuple(self.host.listen_addrs()))

    @property
    def peer(self) -> PeerId:
        return self.host.peer_id

    async def listen(self) -> None:
        async for event in self.topic.events():
            match event:
                case TopicMessage():
                    self.heard.append(event)
                case PeerJoined(peer):
                    self.joined.add(peer)
                case MessagesDropped(count):
                    self.dropped += count
            self._news.set()
            self._news = trio.Event()

    async def wait_joined(self, *peers: PeerId) -> None:
        while not self.joined.issuperset(peers):
            await self._news.wait()

    async def wait_message(self, data: bytes) -> TopicMessage:
        while True:
            for message in self.heard:
                if message.data == data:
                    return message
            await self._news.wait()


@asynccontextmanager
async def open_ours(psk: bytes | None = None, settings: PubSubSettings | None = None) -> AsyncIterator[Ours]:
    network = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), psk=psk)
    async with (
        open_network(Identity.generate(), network) as host,
        open_pubsub(host, settings or PubSubSettings()) as pubsub,
        pubsub.join(TOPIC) as topic,
        trio.open_nursery() as nursery,
    ):
        ours = Ours(host, pubsub, topic)
        nursery.start_soon(ours.listen)
        yield ours
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_theirs(kind: str, directory: Path, psk: bytes | None = None) -> AsyncIterator[JsPeer | KuboPeer]:
    """A peer of theirs in the topic."""
    opened = open_js_peer(psk=psk) if kind == "js" else open_kubo_peer(directory / "kubo", psk=psk)
    async with opened as theirs:
        await theirs.subscribe(TOPIC)
        yield theirs


async def wait_subscribers(theirs: JsPeer | KuboPeer, *peers: PeerId) -> None:
    """Return when *theirs* knows that all of *peers* are in the topic."""
    while not set(await theirs.subscribers(TOPIC)).issuperset(peers):  # noqa: ASYNC110 - it tells no such event
        await trio.sleep(0.05)


async def heard_by(theirs: JsPeer | KuboPeer, data: bytes) -> PeerId:
    """Wait until *theirs* got *data*; return who signed it."""
    got = await theirs.wait_message(TOPIC, data)
    return got if isinstance(got, PeerId) else got.author


# --------------------------------------------------------------------------------------------------------- two peers


@kinds
@pytest.mark.parametrize("psk", [None, KEY], ids=["public", "private"])
@pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "they dial"])
async def test_signed_messages_go_both_ways(kind: str, psk: bytes | None, we_dial: bool, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_theirs(kind, tmp_path, psk) as theirs, open_ours(psk) as ours:
            if we_dial:
                await ours.host.connect(theirs.info)
            else:
                await theirs.dial(ours.info)
            await ours.wait_joined(theirs.peer)
            await wait_subscribers(theirs, ours.peer)
            for data in (SMALL, b"from us " * 100, LARGE):
                await ours.topic.publish(data)
                assert await heard_by(theirs, data) == ours.peer
                await theirs.publish(TOPIC, data[::-1])
                message = await ours.wait_message(data[::-1])
                assert (message.author, message.received_from) == (theirs.peer, theirs.peer)
            assert ours.pubsub.stats.rejected == 0


# ------------------------------------------------------------------------------------------------------- three peers


@kinds
async def test_they_pass_on_what_we_signed(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_theirs(kind, tmp_path) as theirs, open_ours() as alice, open_ours() as bob:
            for ours in (alice, bob):
                await ours.host.connect(theirs.info)
                await ours.wait_joined(theirs.peer)
            await wait_subscribers(theirs, alice.peer, bob.peer)
            # They do not say when their mesh is made. What comes between a subscription and the next heartbeat, at
            # which they tell peers outside of the mesh what came, they may pass on to nobody.
            for attempt in range(10):
                data = b"through them %d" % attempt
                await alice.topic.publish(data)
                with trio.move_on_after(3):
                    message = await bob.wait_message(data)
                    break
            assert (message.data, message.author, message.received_from) == (data, alice.peer, theirs.peer)


async def test_we_pass_on_what_they_signed(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_theirs("js", tmp_path) as js, open_theirs("kubo", tmp_path) as kubo, open_ours() as ours:
            for theirs in (js, kubo):
                await ours.host.connect(theirs.info)
            await ours.wait_joined(js.peer, kubo.peer)
            await wait_subscribers(js, ours.peer)
            await wait_subscribers(kubo, ours.peer)
            await js.publish(TOPIC, b"by js")
            assert await heard_by(kubo, b"by js") == js.peer
            await kubo.publish(TOPIC, b"by kubo, whose key is RSA and travels along")
            assert await heard_by(js, b"by kubo, whose key is RSA and travels along") == kubo.peer


@kinds
async def test_they_ask_us_for_what_the_mesh_did_not_bring(kind: str, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            open_theirs(kind, tmp_path) as theirs,
            open_ours() as alice,
            open_ours(settings=WITHOUT_MESH) as bob,
        ):
            await bob.host.connect(theirs.info)
            await bob.host.connect(alice.info)
            await bob.wait_joined(theirs.peer, alice.peer)
            await wait_subscribers(theirs, bob.peer)
            await alice.wait_joined(bob.peer)
            for number in range(5):
                await alice.topic.publish(b"missed %d" % number)
            for number in range(5):
                assert await heard_by(theirs, b"missed %d" % number) == alice.peer
            assert bob.pubsub.stats.given >= 5


async def test_we_ask_them_for_what_the_mesh_did_not_bring() -> None:
    with trio.fail_after(60):
        async with open_js_peer(meshed=False) as js, open_ours() as alice, open_ours() as bob:
            await js.subscribe(TOPIC)
            for ours in (alice, bob):
                await ours.host.connect(js.info)
                await ours.wait_joined(js.peer)
            await wait_subscribers(js, alice.peer, bob.peer)
            for number in range(5):
                await alice.topic.publish(b"missed %d" % number)
            for number in range(5):
                message = await bob.wait_message(b"missed %d" % number)
                assert (message.author, message.received_from) == (alice.peer, js.peer)
            assert bob.pubsub.stats.asked >= 5


# --------------------------------------------------------------------------------------------------------- a swarm


@pytest.mark.timeout(300)
async def test_a_mixed_swarm_hears_every_message_and_finds_none_malformed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Three of ours, two of js-libp2p, one Kubo, in a ring with two chords, for two minutes."""
    caplog.set_level(logging.INFO, logger="ipfsreg.pubsub")  # where garbage of a peer is told
    dice = random.Random(5)
    published: dict[bytes, PeerId] = {}
    complaints: list[str] = []
    with trio.fail_after(240):
        async with AsyncExitStack() as stack:
            ours = [await stack.enter_async_context(open_ours(KEY)) for _ in range(3)]
            theirs: list[JsPeer | KuboPeer] = [
                await stack.enter_async_context(open_js_peer(psk=KEY, log="libp2p:gossipsub:error", name=name))
                for name in ("js one", "js two")
            ]
            kubo = open_kubo_peer(tmp_path / "kubo", psk=KEY, log="error,pubsub=info")
            theirs.append(await stack.enter_async_context(kubo))
            for peer in theirs:
                await peer.subscribe(TOPIC)
            ring: list[Ours | JsPeer | KuboPeer] = [ours[0], theirs[0], ours[1], theirs[1], ours[2], theirs[2]]
            said = [len(peer.process.stderr) for peer in theirs]
            links = [(one, ring[number - 1]) for number, one in enumerate(ring)]
            links += [(ring[0], ring[3]), (ring[1], ring[5])]
            for one, other in links:
                await (one.host.connect(other.info) if isinstance(one, Ours) else one.dial(other.info))
            for one, other in links + [link[::-1] for link in links]:
                await (one.wait_joined(other.peer) if isinstance(one, Ours) else wait_subscribers(one, other.peer))
            # So that every mesh has been made before the first message.
            await trio.sleep(2)

            for second in range(120):
                for one in ring:
                    for _ in range(3):
                        data = b"%d/%d " % (second, len(published)) + dice.randbytes(dice.choice((0, 50, 1500, 20_000)))
                        published[data] = one.peer
                        await (one.topic.publish(data) if isinstance(one, Ours) else one.publish(TOPIC, data))
                await trio.sleep(1)

            for one in ring:
                # Gossip needs a few heartbeats to bring what the mesh did not.
                with trio.move_on_after(10):
                    for data, author in published.items():
                        if author != one.peer:
                            await heard(one, data)
                complaints += complaints_of(one, published)
            for peer, before in zip(theirs, said, strict=True):
                for line in peer.process.stderr[before:].decode().splitlines():
                    # Kubo also looks for more subscribers in its DHT, where there is nobody to find.
                    if "discovery.go" not in line:
                        complaints.append(f"{peer.process.name}: {line}")
    # Here and not above, where a failure would be wrapped in a group for every peer.
    assert complaints == []
    assert [record.message for record in caplog.records if "pubsub" in record.name] == []


async def heard(one: Ours | JsPeer | KuboPeer, data: bytes) -> None:
    if isinstance(one, Ours):
        await one.wait_message(data)
    else:
        await heard_by(one, data)


def complaints_of(one: Ours | JsPeer | KuboPeer, published: dict[bytes, PeerId]) -> list[str]:
    """What *one* has not heard just once, or not from whom it was."""
    if isinstance(one, Ours):
        name = "ours"
        got = [(message.data, message.author) for message in one.heard]
        stats = one.pubsub.stats
        failed = [f"ours: dropped {one.dropped}, {stats}"] if one.dropped or stats.rejected else []
    elif isinstance(one, JsPeer):
        name = one.process.name
        got = [(message.data, message.author) for message in one.messages(TOPIC)]
        failed = []
    else:
        name = one.process.name
        got = one.messages(TOPIC)
        failed = []
    expected = {item for item in published.items() if item[1] != one.peer}
    others = [item for item in got if item[1] != one.peer]
    failed += [f"{name} missed {data[:12]!r} of {author}" for data, author in expected - set(others)]
    failed += [f"{name} heard {data[:12]!r} of {author}, which nobody said" for data, author in set(others) - expected]
    if len(others) > len(set(others)):
        failed.append(f"{name} heard {len(others) - len(set(others))} messages twice")
    return failed

"""Our pubsub and stock py-libp2p's gossipsub on one topic, over real sockets."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import PeerJoined, Topic, TopicEvent, TopicMessage
from ipfsreg.pubsub.service import open_pubsub

pytestmark = [
    pytest.mark.interop,
    # Theirs, on import and on closing: nothing of it is ours to mend.
    pytest.mark.filterwarnings("ignore"),
]

TOPIC = "names"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"


@asynccontextmanager
async def open_stock_peer(topic: str) -> AsyncIterator[tuple[PeerInfo, object, object]]:
    """A stock host with gossipsub, subscribed: where it is, its pubsub, its subscription."""
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_new_noise_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.pubsub.gossipsub import GossipSub
    from libp2p.pubsub.pubsub import Pubsub
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from libp2p.tools.anyio_service import background_trio_service
    from multiaddr import Multiaddr

    key_pair = create_new_key_pair()
    noise = Transport(key_pair, noise_privkey=create_new_noise_key_pair().private_key)
    host = new_host(key_pair=key_pair, sec_opt={PROTOCOL_ID: noise})
    router = GossipSub([TProtocol("/meshsub/1.1.0")], degree=6, degree_low=4, degree_high=12, heartbeat_interval=1)
    pubsub = Pubsub(host, router)
    async with (
        host.run(listen_addrs=[Multiaddr(LOOPBACK)]),
        background_trio_service(pubsub),
        background_trio_service(router),
    ):
        await pubsub.wait_until_ready()
        subscription = await pubsub.subscribe(topic)
        addr = str(host.get_addrs()[0]).split("/p2p/")[0]
        yield PeerInfo(PeerId.parse(str(host.get_id())), (addr,)), pubsub, subscription


@asynccontextmanager
async def open_ours() -> AsyncIterator[tuple[Host, Topic]]:
    async with (
        open_network(Identity.generate(), NetworkSettings(listen_addrs=(LOOPBACK,))) as host,
        open_pubsub(host) as pubsub,
        pubsub.join(TOPIC) as topic,
    ):
        yield host, topic


async def next_of(topic: Topic, kind: type[TopicEvent]) -> TopicEvent:
    async for event in topic.events():
        if isinstance(event, kind):
            return event
    raise AssertionError("the topic ended")


async def test_messages_travel_both_ways_with_signatures() -> None:
    with trio.fail_after(30):
        async with open_stock_peer(TOPIC) as (theirs, pubsub, subscription), open_ours() as (host, topic):
            await host.connect(theirs)
            assert await next_of(topic, PeerJoined) == PeerJoined(theirs.peer)
            await trio.sleep(1.5)
            for number in range(5):
                await topic.publish(b"from us %d" % number)
                heard = await subscription.get()  # type: ignore[attr-defined]
                while heard.from_id == theirs.peer.raw:  # it hears itself, too
                    heard = await subscription.get()  # type: ignore[attr-defined]
                assert (heard.data, heard.from_id) == (b"from us %d" % number, host.peer_id.raw)
                await pubsub.publish(TOPIC, b"from them %d" % number)  # type: ignore[attr-defined]
                message = TopicMessage(b"from them %d" % number, author=theirs.peer, received_from=theirs.peer)
                assert await next_of(topic, TopicMessage) == message


async def test_a_stock_peer_between_two_of_ours_passes_messages_on() -> None:
    with trio.fail_after(30):
        async with (
            open_stock_peer(TOPIC) as (theirs, _, _),
            open_ours() as (alice, alices),
            open_ours() as (bob, bobs),
        ):
            await alice.connect(theirs)
            await bob.connect(theirs)
            await next_of(alices, PeerJoined)
            await next_of(bobs, PeerJoined)
            await trio.sleep(2.5)
            await alices.publish(b"through them")
            expected = TopicMessage(b"through them", author=alice.peer_id, received_from=theirs.peer)
            assert await next_of(bobs, TopicMessage) == expected

"""The service over a network in memory: real signatures, real streams, a clock that jumps."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.errors import LimitReached, NetworkError
from ipfsreg.ipld.protobuf import bytes_field
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import PeerInfo, Stream
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, PubSub, TopicEvent, TopicMessage
from ipfsreg.pubsub.messages import (
    SIGN_PREFIX,
    IHave,
    Message,
    Prune,
    Rpc,
    Subscription,
    decode_rpc,
    encode_rpc,
    unsigned_bytes,
)
from ipfsreg.pubsub.outbox import OutboxSettings
from ipfsreg.pubsub.service import PROTOCOLS, GossipService, JoinedTopic, PubSubSettings, open_pubsub
from ipfsreg.testing.network import MemoryEndpoint, MemoryStream, MemorySwarm, key_of, peer_of

TOPIC = "names"


class Node:
    """A node in the topic, and what it heard."""

    def __init__(self, endpoint: MemoryEndpoint, service: GossipService, topic: JoinedTopic) -> None:
        self.endpoint = endpoint
        self.service = service
        self.topic = topic
        self.heard: list[TopicEvent] = []

    @property
    def messages(self) -> list[bytes]:
        return [event.data for event in self.heard if isinstance(event, TopicMessage)]

    @property
    def joined(self) -> list[PeerId]:
        return [event.peer for event in self.heard if isinstance(event, PeerJoined)]


@asynccontextmanager
async def open_node(
    swarm: MemorySwarm, name: str, settings: PubSubSettings | None = None, *, reads: bool = True
) -> AsyncIterator[Node]:
    endpoint = swarm.endpoint(name)
    async with open_pubsub(endpoint, settings) as service, service.join(TOPIC) as topic, trio.open_nursery() as nursery:
        node = Node(endpoint, service, topic)

        async def listen() -> None:
            async for event in topic.events():
                node.heard.append(event)

        if reads:
            nursery.start_soon(listen)
        yield node
        nursery.cancel_scope.cancel()


async def connect(one: Node, other: Node | MemoryEndpoint) -> None:
    await one.endpoint.connect(PeerInfo(other.endpoint.peer_id if isinstance(other, Node) else other.peer_id))


def signed(author: str, seqno: int, data: bytes, *, topic: str = TOPIC, signer: str | None = None) -> Message:
    peer = peer_of(author).raw
    number = seqno.to_bytes(8, "big")
    signature = key_of(signer or author).sign(SIGN_PREFIX + unsigned_bytes(peer, number, topic, data))
    return Message(peer, number, topic, data, signature)


class Stranger:
    """A peer that says what it likes."""

    def __init__(self, endpoint: MemoryEndpoint, victim: Node, streams: AsyncIterator[Stream]) -> None:
        self.endpoint = endpoint
        self._victim = victim.endpoint.peer_id
        self.streams = streams
        self.heard: list[Rpc] = []
        self.out: MemoryStream

    async def open(self) -> None:
        """Open a new stream to the victim."""
        self.out = await self.endpoint.open_stream(self._victim, PROTOCOLS)

    async def say(self, rpc: Rpc) -> None:
        await send_message(self.out, encode_rpc(rpc))

    async def listen(self) -> None:
        async for stream in self.streams:
            reader = MessageReader(stream, 1 << 20)
            try:
                while (data := await reader.read()) is not None:
                    self.heard.append(decode_rpc(data))
            except NetworkError:
                continue


@asynccontextmanager
async def open_stranger(
    swarm: MemorySwarm, victim: Node, name: str = "mallory", *, listens: bool = True
) -> AsyncIterator[Stranger]:
    endpoint = swarm.endpoint(name)
    async with endpoint.accept(PROTOCOLS) as streams, trio.open_nursery() as nursery:
        stranger = Stranger(endpoint, victim, streams)
        if listens:
            nursery.start_soon(stranger.listen)
        await endpoint.connect(PeerInfo(victim.endpoint.peer_id))
        await stranger.open()
        await stranger.say(Rpc(subscriptions=(Subscription(True, TOPIC),)))
        await trio.sleep(0.5)
        yield stranger
        nursery.cancel_scope.cancel()


async def test_the_service_keeps_the_promised_interface(autojump_clock: MockClock) -> None:
    async with open_pubsub(MemorySwarm().endpoint("alice")) as service:
        promised: PubSub = service
        async with promised.join(TOPIC) as topic:
            assert topic.name == TOPIC
            assert topic.peers() == []
            await topic.publish(b"to nobody")


async def test_bob_hears_what_alice_publishes(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        await alice.topic.publish(b"hello")
        await trio.sleep(1)
        assert bob.heard == [
            PeerJoined(peer_of("alice")),
            TopicMessage(b"hello", author=peer_of("alice"), received_from=peer_of("alice")),
        ]
        assert alice.heard == [PeerJoined(peer_of("bob"))]
        assert alice.topic.peers() == [peer_of("bob")]


async def test_five_nodes_in_a_line_pass_messages_on_once_each(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node(swarm, f"node {number}")) for number in range(5)]
        for one, other in pairwise(nodes):
            await connect(one, other)
        await trio.sleep(2)
        published = [b"%d" % number for number in range(100)]
        for data in published:
            await nodes[0].topic.publish(data)
        await trio.sleep(2)
        for node in nodes[1:]:
            assert node.messages == published
        last = nodes[-1].heard[-1]
        assert isinstance(last, TopicMessage)
        assert (last.author, last.received_from) == (peer_of("node 0"), peer_of("node 3"))


async def test_who_subscribes_late_is_told_of_and_hears_what_comes(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice:
        bobs = swarm.endpoint("bob")
        async with open_pubsub(bobs) as service:
            await connect(alice, bobs)
            await trio.sleep(5)
            assert alice.joined == []
            async with service.join(TOPIC) as topic:
                await trio.sleep(0.1)
                assert alice.joined == [peer_of("bob")]
                await alice.topic.publish(b"after")
                heard = topic.events()
                assert await anext(heard) == PeerJoined(peer_of("alice"))
                assert await anext(heard) == TopicMessage(b"after", peer_of("alice"), peer_of("alice"))
            await trio.sleep(0.1)
            assert alice.topic.peers() == []


async def test_neighbours_do_not_send_each_other_what_both_have(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with AsyncExitStack() as stack:
        nodes = [await stack.enter_async_context(open_node(swarm, f"node {number}")) for number in range(6)]
        for number, node in enumerate(nodes):
            for other in nodes[:number]:
                await connect(node, other)
        await trio.sleep(3)
        for _ in range(100):
            await nodes[0].topic.publish(b"news")
            await trio.sleep(0.1)
        await trio.sleep(1)
        assert all(len(node.messages) == 100 for node in nodes[1:])
        # Of the ten pairs that do not contain the author, one of the two speaks and the other need not.
        copies = sum(node.service.stats.duplicates for node in nodes)
        assert copies < 100 * 14


async def test_a_burst_of_own_messages_arrives_whole(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        published = [b"%d" % number for number in range(3000)]
        for data in published:
            await alice.topic.publish(data)
        await trio.sleep(5)
        assert bob.messages == published


async def test_after_a_restart_with_the_same_key_messages_are_new(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "bob") as bob:
        for _ in range(3):
            async with open_node(swarm, "alice") as alice:
                await connect(alice, bob)
                await trio.sleep(1)
                for _ in range(20):
                    await alice.topic.publish(b"the same words")
                await trio.sleep(1)
            swarm.kill(alice.endpoint)
            await trio.sleep(1)
        assert bob.messages == [b"the same words"] * 60
        assert bob.joined == [peer_of("alice")] * 3


async def test_a_peer_whose_pubsub_restarts_on_the_same_connection_is_found_again(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice:
        bobs = swarm.endpoint("bob")
        await connect(alice, bobs)
        for data in (b"first", b"second"):
            async with open_pubsub(bobs) as service, service.join(TOPIC) as topic:
                await trio.sleep(2)
                await alice.topic.publish(data)
                heard = topic.events()
                assert await anext(heard) == PeerJoined(peer_of("alice"))
                assert await anext(heard) == TopicMessage(data, peer_of("alice"), peer_of("alice"))
            # Longer than a GRAFT tells back, or the second life would hear what the first has heard.
            await trio.sleep(6)
            assert alice.topic.peers() == []
        assert alice.joined == [peer_of("bob")] * 2


async def test_after_a_cut_both_are_told_that_the_other_is_there(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        swarm.cut(alice.endpoint, bob.endpoint)
        await trio.sleep(1)
        await alice.topic.publish(b"while cut off")
        swarm.heal(alice.endpoint, bob.endpoint)
        await connect(alice, bob)
        await trio.sleep(3)
        assert alice.joined == [peer_of("bob")] * 2
        assert bob.joined == [peer_of("alice")] * 2
        # Grafting tells what was said a moment ago.
        assert bob.messages == [b"while cut off"]


async def test_a_slow_reader_is_told_how_much_it_missed_and_keeps_the_newest(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    settings = PubSubSettings(queue_messages=10)
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob", settings, reads=False) as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        for number in range(25):
            await alice.topic.publish(b"%d" % number)
        await trio.sleep(1)
        heard = bob.topic.events()
        assert await anext(heard) == MessagesDropped(15)
        assert await anext(heard) == PeerJoined(peer_of("alice"))
        newest = [await anext(heard) for _ in range(10)]
        assert [event.data for event in newest if isinstance(event, TopicMessage)] == [b"%d" % n for n in range(15, 25)]
        status = bob.topic.status()
        assert {key: status[key] for key in ("peers", "mesh", "delivered", "duplicates", "dropped", "overflowed")} == {
            "peers": 1,
            "mesh": 1,
            "delivered": 25,
            "duplicates": 0,
            "dropped": 15,
            "overflowed": 0,
        }


async def test_what_was_dropped_on_the_way_to_a_stalled_peer_is_recovered(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    narrow = PubSubSettings(outbox=OutboxSettings(forward_frames=32))
    async with (
        open_node(swarm, "alice") as alice,
        open_node(swarm, "bob", narrow) as bob,
        open_node(swarm, "carol") as carol,
    ):
        await connect(alice, bob)
        await connect(bob, carol)
        await trio.sleep(2)
        published = [b"%03d" % number + bytes(20_000) for number in range(60)]
        swarm.stall(bob.endpoint, carol.endpoint)
        for data in published:
            await alice.topic.publish(data)
        await trio.sleep(1.5)
        assert len(bob.messages) == 60
        swarm.resume(bob.endpoint, carol.endpoint)
        await trio.sleep(4)
        assert sorted(carol.messages) == published
        assert bob.service.stats.given > 0
        assert bob.topic.status()["overflowed"] > 0


async def test_a_peer_that_never_reads_holds_up_nobody(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    swarm = MemorySwarm()
    settings = PubSubSettings(
        outbox=OutboxSettings(kept_soft_frames=8, kept_hard_frames=32), publish_patience_s=0.2, send_deadline_s=3600
    )
    async with (
        open_node(swarm, "alice", settings) as alice,
        open_node(swarm, "bob") as bob,
        open_node(swarm, "carol") as carol,
    ):
        await connect(alice, bob)
        await connect(alice, carol)
        await trio.sleep(1)
        swarm.stall(alice.endpoint, carol.endpoint)
        published = [b"%03d" % number + bytes(60_000) for number in range(60)]
        started = trio.current_time()
        for data in published:
            await alice.topic.publish(data)
        assert trio.current_time() - started < 60 * 0.2 + 1
        await trio.sleep(2)
        assert bob.messages == published
        swarm.resume(alice.endpoint, carol.endpoint)
        await trio.sleep(5)
        await alice.topic.publish(b"back again")
        await trio.sleep(2)
        assert carol.messages[-1] == b"back again"
        assert caplog.text.count("takes nothing any more") >= 1
        assert alice.joined.count(peer_of("carol")) >= 2


async def test_a_send_without_progress_is_given_up_and_its_message_arrives_on_the_next_stream(
    caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    swarm = MemorySwarm()
    settings = PubSubSettings(send_deadline_s=5)
    async with open_node(swarm, "alice", settings) as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        swarm.stall(alice.endpoint, bob.endpoint)
        await alice.topic.publish(bytes(1_000_000))
        await trio.sleep(4)
        assert "takes nothing any more" not in caplog.text
        await trio.sleep(4)
        assert caplog.text.count("takes nothing any more") == 1
        swarm.resume(alice.endpoint, bob.endpoint)
        await trio.sleep(5)
        assert bob.messages == [bytes(1_000_000)]


async def test_what_lingers_leaves_in_time_and_at_once_with_what_is_urgent(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    patient = PubSubSettings(linger_s=10, author_linger_s=20)
    async with (
        open_node(swarm, "alice") as alice,
        open_node(swarm, "bob", patient) as bob,
        open_node(swarm, "carol") as carol,
    ):
        await connect(alice, bob)
        await connect(bob, carol)
        await trio.sleep(2)
        await alice.topic.publish(b"forwarded with the next")
        await trio.sleep(0.1)
        assert (bob.messages, carol.messages) == ([b"forwarded with the next"], [])
        await bob.topic.publish(b"urgent")
        await trio.sleep(0.1)
        assert carol.messages == [b"urgent", b"forwarded with the next"]
        await alice.topic.publish(b"forwarded alone")
        await trio.sleep(26)
        assert carol.messages[2:] == [b"forwarded alone"]


async def test_own_messages_in_flight_on_a_broken_stream_are_sent_on_the_next(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice, listens=False) as carol:
        first = await anext(carol.streams)
        published = [b"%d" % number + bytes(100_000) for number in range(8)]
        for data in published:
            await alice.topic.publish(data)
        await trio.sleep(1)
        await first.reset()
        with trio.move_on_after(5):
            await carol.listen()
        heard = [message.data for rpc in carol.heard for message in rpc.messages]
        # Two had left for the peer's window; the third was on its way, the others waited.
        assert heard == published[2:]
        assert alice.joined == [peer_of("mallory")] * 2


async def test_what_a_peer_is_in_is_believed_as_long_as_its_stream_lasts(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice) as carol:
        assert alice.topic.peers() == [peer_of("mallory")]
        await carol.out.send_eof()
        await trio.sleep(0.1)
        assert alice.topic.peers() == []
        await carol.open()
        await carol.say(Rpc(subscriptions=(Subscription(True, TOPIC),)))
        await trio.sleep(0.1)
        assert alice.topic.peers() == [peer_of("mallory")]
        # A newer stream takes the place of the older without a gap.
        old = carol.out
        await carol.open()
        await trio.sleep(0.1)
        assert alice.topic.peers() == [peer_of("mallory")]
        with pytest.raises(NetworkError):
            await old.send_all(b"\x00")


async def test_what_is_too_large_is_refused_before_it_is_sent(autojump_clock: MockClock) -> None:
    async with open_node(MemorySwarm(), "alice") as alice:
        with pytest.raises(LimitReached):
            await alice.topic.publish(bytes(1 << 20))


async def test_the_largest_message_passes(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        await trio.sleep(1)
        largest = bytes(PubSubSettings().max_data_bytes)
        await alice.topic.publish(largest)
        await trio.sleep(1)
        assert bob.messages == [largest]


async def test_a_topic_that_was_left_takes_nothing_and_its_reader_ends(autojump_clock: MockClock) -> None:
    async with open_pubsub(MemorySwarm().endpoint("alice")) as service:
        async with service.join(TOPIC) as topic:
            with pytest.raises(ValueError, match="already"):
                async with service.join(TOPIC):
                    pass
        assert [event async for event in topic.events()] == []
        with pytest.raises(NetworkError):
            await topic.publish(b"late")


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff\xff\xff\xff\x7f",
        b"\x05hello",
        b"\x04\x1a\x02\x0a\xff",
        b"\x80" * 20,
        b"\x06\x0a\x04\x12\x02\xff\xfe",
    ],
    ids=["gigabytes claimed", "not protobuf", "nested length", "endless prefix", "topic not UTF-8"],
)
async def test_garbage_costs_its_sender_the_stream_and_nobody_anything_else(
    garbage: bytes, caplog: pytest.LogCaptureFixture, autojump_clock: MockClock
) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        async with open_stranger(swarm, alice) as mallory:
            with caplog.at_level(logging.INFO):
                await mallory.out.send_all(garbage)
                await trio.sleep(1)
            assert "garbage" in caplog.text
            with pytest.raises(NetworkError):
                await mallory.out.send_all(b"\x00")
            await bob.topic.publish(b"still here")
            await mallory.open()
            await mallory.say(Rpc(messages=(signed("mallory", 1, b"sorry"),)))
            await trio.sleep(1)
            assert alice.messages == [b"still here", b"sorry"]


async def test_who_sends_garbage_again_and_again_is_no_longer_listened_to(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice) as mallory:
        for _ in range(4):
            await mallory.out.send_all(b"\x05hello")
            await trio.sleep(0.1)
            await mallory.open()
        await mallory.say(Rpc(messages=(signed("mallory", 1, b"listen"),)))
        await trio.sleep(0.2)
        assert alice.messages == []


async def test_only_what_is_signed_by_its_author_is_heard(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice) as mallory:
        good = signed("mallory", 1, b"good")
        unsigned = bytes_field(2, unsigned_bytes(peer_of("mallory").raw, bytes(8), TOPIC, b"unsigned"))
        await send_message(mallory.out, unsigned)
        await mallory.say(Rpc(messages=(signed("bob", 2, b"as bob", signer="mallory"),)))
        await mallory.say(Rpc(messages=(good, good)))
        await mallory.say(Rpc(messages=(good,)))
        await trio.sleep(1)
        assert alice.messages == [b"good"]
        assert alice.service.stats.rejected == 2


async def test_a_replay_is_not_heard_again(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice) as mallory:
        message = signed("mallory", 1, b"once")
        for _ in range(10):
            await mallory.say(Rpc(messages=(message,)))
            await trio.sleep(10)
        assert alice.messages == [b"once"]


async def test_our_own_old_messages_are_not_given_to_us(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_stranger(swarm, alice) as mallory:
        await mallory.say(Rpc(messages=(signed("alice", 1, b"from before the restart"),)))
        await trio.sleep(1)
        assert alice.messages == []


async def test_floods_of_control_stay_bounded_and_others_are_heard(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice, open_node(swarm, "bob") as bob:
        await connect(alice, bob)
        async with open_stranger(swarm, alice) as mallory:
            rng_ids = iter(range(10**9))
            for _ in range(40):
                ids = tuple(next(rng_ids).to_bytes(8, "big") for _ in range(2000))
                with trio.move_on_after(1):
                    await mallory.say(
                        Rpc(
                            subscriptions=tuple(Subscription(True, f"topic {id_.hex()}") for id_ in ids[:500]),
                            ihave=(IHave(TOPIC, ids),),
                            graft=(TOPIC,) * 100,
                            prune=(Prune(TOPIC, backoff_s=2**64 - 1),),
                        )
                    )
            await trio.sleep(5)
            await bob.topic.publish(b"through it all")
            await trio.sleep(1)
            assert alice.messages == [b"through it all"]
            asked = sum(len(rpc.iwant) for rpc in mallory.heard)
            assert asked <= 5000 * 45
            assert alice.service.router.score(peer_of("mallory"), now=trio.current_time()) < -10
            assert len(alice.service.router.topics_of(peer_of("mallory"))) <= 130
            # It refused us for 2**64 seconds; that is no reason to remember it longer than an hour.
            assert peer_of("mallory") not in alice.service.router.mesh(TOPIC)


async def test_a_peer_that_says_too_much_is_read_more_slowly(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    settings = PubSubSettings(peer_rate_per_s=100, peer_burst=100)
    async with open_node(swarm, "alice", settings) as alice, open_stranger(swarm, alice) as mallory:
        for number in range(300):
            await mallory.say(Rpc(messages=(signed("mallory", number, b"%d" % number),)))
        await trio.sleep(2)
        assert len(alice.messages) < 300
        await trio.sleep(5)
        assert len(alice.messages) == 300


async def test_a_peer_speaking_floodsub_hears_and_is_heard(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    old = swarm.endpoint("old")
    heard: list[Rpc] = []
    async with (
        open_node(swarm, "alice") as alice,
        open_node(swarm, "bob") as bob,
        old.accept(["/floodsub/1.0.0"]) as streams,
    ):
        await connect(alice, bob)
        await connect(alice, old)
        out = await old.open_stream(peer_of("alice"), ["/floodsub/1.0.0"])
        await send_message(out, encode_rpc(Rpc(subscriptions=(Subscription(True, TOPIC),))))
        await trio.sleep(2)
        await send_message(out, encode_rpc(Rpc(messages=(signed("old", 1, b"old words"),))))
        await bob.topic.publish(b"new words")
        reader = MessageReader(await anext(streams), 1 << 20)
        with trio.move_on_after(3):
            while (data := await reader.read()) is not None:
                heard.append(decode_rpc(data))
        assert bob.messages == [b"old words"]
        assert [message.data for rpc in heard for message in rpc.messages] == [b"new words"]
        assert not any(rpc.graft or rpc.ihave or rpc.prune for rpc in heard)


async def test_mesh_members_are_protected_from_trimming(autojump_clock: MockClock) -> None:
    swarm = MemorySwarm()
    async with open_node(swarm, "alice") as alice:
        async with open_node(swarm, "bob") as bob:
            await connect(alice, bob)
            await trio.sleep(1)
            assert alice.endpoint._protected[peer_of("bob")] == {f"mesh {TOPIC}"}
        await trio.sleep(1)
        assert alice.endpoint._protected[peer_of("bob")] == set()

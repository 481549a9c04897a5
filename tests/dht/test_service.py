from __future__ import annotations

import random
import statistics
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
import trio.lowlevel
from trio.testing import MockClock

from ipfsreg.database import open_database
from ipfsreg.dht.keys import Contact
from ipfsreg.dht.messages import Message, MessageType, decode_message, encode_message
from ipfsreg.dht.service import Dht, open_dht
from ipfsreg.dht.settings import LAN_PROTOCOL, PUBLIC_PROTOCOL, DhtSettings, Mode
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.host import NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Network, PeerInfo
from ipfsreg.testing.dht import AddressedEndpoint, addressed_endpoint
from ipfsreg.testing.inline_database import open_inline_database
from ipfsreg.testing.network import MemorySwarm, peer_of

LAYER = Cid.of(RAW, b"a layer")


@asynccontextmanager
async def open_node(
    network: Network, directory: Path, settings: DhtSettings | None = None, name: str = ""
) -> AsyncIterator[Dht]:
    """A DHT whose clock may jump."""
    async with (
        open_inline_database(directory / f"{name or network.peer_id.short}.db") as database,
        open_dht(network, database, settings or DhtSettings(), clock=trio.current_time) as dht,
    ):
        yield dht


async def join(
    stack: AsyncExitStack,
    network: AddressedEndpoint,
    directory: Path,
    *others: Network,
    settings: DhtSettings | None = None,
) -> Dht:
    dht = await stack.enter_async_context(open_node(network, directory, settings))
    for other in others:
        await network.connect(PeerInfo(other.peer_id))
    return dht


async def wait_announced(dht: Dht, count: int) -> None:
    with trio.fail_after(300):
        while dht._reprovider.announcements < count:  # noqa: ASYNC110
            await trio.sleep(0.5)


async def providers(dht: Dht, cid: Cid, count: int = 20) -> list[PeerInfo]:
    return [info async for info in dht.find_providers(cid, count=count)]


async def ask(network: Network, peer: Network, message: Message, protocol: str = PUBLIC_PROTOCOL) -> Message | None:
    """Speak to a DHT by hand; None where it answers nothing and ends the stream."""
    stream = await network.open_stream(peer.peer_id, [protocol])
    await send_message(stream, encode_message(message))
    await stream.send_eof()
    data = await MessageReader(stream, 1 << 20).read()
    return decode_message(data) if data is not None else None


async def test_bob_finds_through_carol_what_alice_provides(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob, carol = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "carol"))
    async with AsyncExitStack() as stack:
        await join(stack, carol, tmp_path)
        alices = await join(stack, alice, tmp_path, carol)
        bobs = await join(stack, bob, tmp_path, carol)
        await alices.provide([LAYER])
        await wait_announced(alices, 1)
        swarm.part(alice, bob)
        assert await providers(bobs, LAYER) == [PeerInfo(alice.peer_id, tuple(alice.listen_addrs()))]


async def test_a_provider_is_never_told_of_itself(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with AsyncExitStack() as stack:
        await join(stack, bob, tmp_path)
        alices = await join(stack, alice, tmp_path, bob)
        await alices.provide([LAYER])
        await wait_announced(alices, 1)
        assert await providers(alices, LAYER) == []


async def test_a_provider_that_announced_to_nobody_is_found_by_asking_it(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with AsyncExitStack() as stack:
        alices = await join(stack, alice, tmp_path)
        await alices.provide([LAYER])
        bobs = await join(stack, bob, tmp_path, alice)
        assert [info.peer for info in await providers(bobs, LAYER)] == [alice.peer_id]


async def test_the_search_ends_where_nobody_provides(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with AsyncExitStack() as stack:
        alices = await join(stack, alice, tmp_path)
        assert await providers(alices, LAYER) == []
        await join(stack, bob, tmp_path, alice)
        assert await providers(alices, LAYER) == []


async def test_what_is_unprovided_is_told_no_more(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with AsyncExitStack() as stack:
        alices = await join(stack, alice, tmp_path)
        await alices.provide([LAYER])
        await alices.unprovide([LAYER])
        bobs = await join(stack, bob, tmp_path, alice)
        assert await providers(bobs, LAYER) == []


async def test_records_run_out_unless_they_are_renewed(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob, carol = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "carol"))
    gone = Cid.of(RAW, b"given up")
    async with AsyncExitStack() as stack:
        bobs = await join(stack, bob, tmp_path)
        alices = await join(stack, alice, tmp_path, bob)
        await alices.provide([LAYER, gone])
        await wait_announced(alices, 2)
        await alices.unprovide([gone])
        assert [info.peer for info in await providers(bobs, gone)] == [alice.peer_id]
        for _ in range(5):
            await trio.sleep(10 * 3600)
            assert [info.peer for info in await providers(bobs, LAYER)] == [alice.peer_id]
        assert await providers(bobs, gone) == []
        assert bobs.status().records == 1
        await join(stack, carol, tmp_path, bob)


async def test_roots_are_announced_again_after_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with open_node(alice, tmp_path) as alices:
        await alices.provide([LAYER])
    async with AsyncExitStack() as stack:
        bobs = await join(stack, bob, tmp_path)
        alices = await join(stack, alice, tmp_path, bob)
        assert alices.status().roots == 1
        await wait_announced(alices, 1)
        assert [peer.peer for peer in bobs._records.providers_of(LAYER.multihash)] == [alice.peer_id]


async def test_records_outlive_a_restart(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    async with open_node(bob, tmp_path):
        await ask(alice, bob, announcement(alice))
    async with open_node(bob, tmp_path) as bobs:
        (record,) = bobs._records.providers_of(LAYER.multihash)
        assert record == contact_of(alice)


async def test_a_peer_is_found_by_its_id(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    names = [f"node {number}" for number in range(12)]
    endpoints = [addressed_endpoint(swarm, name) for name in names]
    async with AsyncExitStack() as stack:
        dhts = [
            await join(stack, endpoint, tmp_path, *endpoints[:number][-1:]) for number, endpoint in enumerate(endpoints)
        ]
        await trio.sleep(60)
        swarm.part(endpoints[0], endpoints[-1])
        wanted = endpoints[-1]
        assert await dhts[0].find_peer(wanted.peer_id) == PeerInfo(wanted.peer_id, tuple(wanted.listen_addrs()))
        assert await dhts[0].find_peer(peer_of("nobody")) is None


async def test_a_client_is_found_by_its_id_while_it_is_connected(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob, carol = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "carol"))
    async with AsyncExitStack() as stack:
        await join(stack, carol, tmp_path)
        bobs = await join(stack, bob, tmp_path, carol)
        client = await stack.enter_async_context(open_node(alice, tmp_path, DhtSettings(mode=Mode.CLIENT)))
        await alice.connect(PeerInfo(carol.peer_id))
        await trio.sleep(5)
        assert not client.status().server
        assert alice.peer_id not in bobs.table
        assert await bobs.find_peer(alice.peer_id) == PeerInfo(alice.peer_id, tuple(alice.listen_addrs()))
        # Being a client it can ask and provide all the same.
        await client.provide([LAYER])
        await wait_announced(client, 1)
        assert [info.peer for info in await providers(bobs, LAYER)] == [alice.peer_id]


async def test_kubo_is_met_on_its_lan_protocol(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    kubo, bob = (addressed_endpoint(swarm, name) for name in ("kubo", "bob"))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(open_node(kubo, tmp_path, DhtSettings(protocols=(LAN_PROTOCOL,))))
        bobs = await join(stack, bob, tmp_path, kubo)
        await bobs.provide([LAYER])
        await wait_announced(bobs, 1)
        answer = await ask(bob, kubo, Message(MessageType.GET_PROVIDERS, LAYER.multihash), LAN_PROTOCOL)
        assert answer is not None
        assert answer.providers == (contact_of(bob),)


async def test_on_the_public_network_a_node_is_a_client_until_it_can_be_reached(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    class Moving(AddressedEndpoint):
        addrs: list[str] = ["/ip4/192.168.1.2/tcp/4001"]  # noqa: RUF012

        def listen_addrs(self) -> list[str]:
            return self.addrs

    swarm = MemorySwarm()
    alice = Moving(swarm, "alice")
    swarm.by_id[alice.peer_id] = alice
    async with open_node(alice, tmp_path, DhtSettings(private=False)) as dht:
        await trio.sleep(60)
        assert not dht.status().server
        alice.addrs = ["/ip4/192.168.1.2/tcp/4001", "/ip4/8.8.8.8/tcp/4001"]
        await trio.sleep(10)
        assert dht.status().server
        alice.addrs = []
        await trio.sleep(10)
        assert not dht.status().server


def contact_of(network: Network) -> Contact:
    return Contact.of(network.peer_id, network.listen_addrs())


def announcement(provider: Network) -> Message:
    return Message(MessageType.ADD_PROVIDER, LAYER.multihash, providers=(contact_of(provider),))


async def test_a_provider_announced_by_somebody_else_is_ignored(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    alice, bob, mallory = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "mallory"))
    async with open_node(bob, tmp_path) as bobs:
        assert await ask(mallory, bob, announcement(alice)) is None
        assert bobs._records.providers_of(LAYER.multihash) == []
        # The same words from the provider itself are taken: it was not the form that was refused.
        assert await ask(alice, bob, announcement(alice)) is None
        assert bobs._records.providers_of(LAYER.multihash) == [contact_of(alice)]


async def test_on_the_public_network_nobody_is_sent_into_its_own_network(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    """Mallory tells addresses of loopback and of a LAN, for a provider and for peers to ask."""
    swarm = MemorySwarm()
    alice, mallory = (addressed_endpoint(swarm, name) for name in ("alice", "mallory"))
    inside = Contact.of(peer_of("victim"), ["/ip4/127.0.0.1/tcp/5000", "/ip4/10.0.0.1/tcp/22", "/ip4/8.8.8.8/tcp/4001"])

    async def lie() -> None:
        async with mallory.accept([PUBLIC_PROTOCOL]) as streams:
            async for stream in streams:
                data = await MessageReader(stream, 1000).read()
                assert data is not None
                request = decode_message(data)
                answer = Message(request.type, request.key, closer=(inside,), providers=(inside,))
                await send_message(stream, encode_message(answer))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(lie)
        async with open_node(alice, tmp_path, DhtSettings(private=False)) as dht:
            await alice.connect(PeerInfo(mallory.peer_id))
            assert await providers(dht, LAYER) == [PeerInfo(inside.peer, ("/ip4/8.8.8.8/tcp/4001",))]
            assert alice.addrs_of(inside.peer) == ["/ip4/8.8.8.8/tcp/4001"]
        nursery.cancel_scope.cancel()


async def test_a_peer_with_a_hundred_idle_streams_is_noticed_by_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    swarm = MemorySwarm()
    alice, bob, mallory = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "mallory"))
    ping = Message(MessageType.PING)
    async with open_node(bob, tmp_path):
        kept = await alice.open_stream(bob.peer_id, [PUBLIC_PROTOCOL])
        await trio.sleep(1)
        idle = [await mallory.open_stream(bob.peer_id, [PUBLIC_PROTOCOL]) for _ in range(100)]
        # Half of them have begun a message that never ends.
        for stream in idle[-8:]:
            await stream.send_all(b"\xff")
        started = trio.current_time()
        await send_message(kept, encode_message(ping))
        assert await MessageReader(kept, 1000).read() is not None
        assert await ask(alice, bob, ping) == ping
        assert trio.current_time() - started < 0.1
        await trio.lowlevel.checkpoint()
        broken = [stream._in.error for stream in idle]
        assert [error is not None for error in broken] == [True] * 84 + [False] * 16
        await trio.sleep(61)
        assert all(stream._in.error is not None for stream in idle)


async def test_a_flood_of_requests_is_read_at_its_rate_and_delays_nobody(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    swarm = MemorySwarm()
    alice, bob, mallory = (addressed_endpoint(swarm, name) for name in ("alice", "bob", "mallory"))
    settings = DhtSettings(requests_per_s=10, request_burst=10)
    ping = encode_message(Message(MessageType.PING))
    answered = 0
    async with open_node(bob, tmp_path, settings), trio.open_nursery() as nursery:

        async def flood() -> None:
            nonlocal answered
            stream = await mallory.open_stream(bob.peer_id, [PUBLIC_PROTOCOL])
            reader = MessageReader(stream, 1000)
            while True:
                await send_message(stream, ping)
                await reader.read()
                answered += 1

        nursery.start_soon(flood)
        nursery.start_soon(flood)
        await trio.sleep(10)
        # Ten at once, then ten a second, and each stream may be one ahead.
        assert 100 <= answered <= 112
        started = trio.current_time()
        assert await ask(alice, bob, Message(MessageType.PING)) is not None
        assert trio.current_time() == started
        nursery.cancel_scope.cancel()


async def test_garbage_costs_its_stream_and_nothing_else(autojump_clock: MockClock, tmp_path: Path) -> None:
    swarm = MemorySwarm()
    bob, mallory = (addressed_endpoint(swarm, name) for name in ("bob", "mallory"))
    dice = random.Random(7)
    find = encode_message(Message(MessageType.FIND_NODE, bob.peer_id.raw))
    rubbish = [
        b"\xff\xff\xff\xff\x0f",  # a message of four gigabytes
        b"\x00",
        b"\x02\x08\x09",  # an unknown type
        b"\x02\x08\x04",  # FIND_NODE without a key
        b"\x04\x12\x02ab",  # a value to keep
        *(bytes((len(find),)) + dice.randbytes(len(find)) for _ in range(50)),
    ]
    async with open_node(bob, tmp_path) as bobs:
        for piece in rubbish:
            stream = await mallory.open_stream(bob.peer_id, [PUBLIC_PROTOCOL])
            await stream.send_all(piece)
            await stream.send_eof()
        await trio.sleep(1)
        assert bobs.status().server
        assert await ask(mallory, bob, Message(MessageType.PING)) == Message(MessageType.PING)


async def test_an_answerer_that_lies_costs_only_its_own_query(autojump_clock: MockClock, tmp_path: Path) -> None:
    """Garbage, silence, a wrong answer: alice asks four peers, and finds what the honest one knows."""
    swarm = MemorySwarm()
    alice, bob = (addressed_endpoint(swarm, name) for name in ("alice", "bob"))
    replies = {"garbage": b"\x03abc", "silence": b"", "wrong": b"\x02\x08\x05", "huge": b"\xff\xff\xff\x7f"}
    async with AsyncExitStack() as stack:
        nursery = await stack.enter_async_context(trio.open_nursery())

        async def lie(endpoint: AddressedEndpoint, reply: bytes) -> None:
            async with endpoint.accept([PUBLIC_PROTOCOL]) as streams:
                async for stream in streams:
                    await stream.receive_some()
                    await stream.send_all(reply)

        liars = [addressed_endpoint(swarm, name) for name in replies]
        for liar, reply in zip(liars, replies.values(), strict=True):
            nursery.start_soon(lie, liar, reply)
        bobs = await join(stack, bob, tmp_path)
        await bobs.provide([LAYER])
        alices = await join(stack, alice, tmp_path, bob, *liars)
        assert [info.peer for info in await providers(alices, LAYER)] == [bob.peer_id]
        await trio.sleep(600)
        assert not any(liar.peer_id in alices.table for liar in liars)
        nursery.cancel_scope.cancel()


async def test_a_hundred_nodes_find_everything_and_most_of_it_when_a_fifth_is_dead(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    swarm = MemorySwarm()
    dice = random.Random(5)
    endpoints = [addressed_endpoint(swarm, f"node {number}") for number in range(100)]
    cids = [Cid.of(RAW, dice.randbytes(8)) for _ in range(60)]
    async with AsyncExitStack() as stack:
        dhts: list[Dht] = []
        for number, endpoint in enumerate(endpoints):
            known = [dice.choice(endpoints[:number])] if number else []
            # Less than the usual k: a table then holds a third of the swarm instead of most of it.
            dhts.append(await join(stack, endpoint, tmp_path, *known, settings=DhtSettings(k=8)))
        with trio.fail_after(120):
            for dht in dhts:
                await dht.bootstrapped.wait()
        owners = [dice.randrange(100) for _ in cids]
        for owner, cid in zip(owners, cids, strict=True):
            await dhts[owner].provide([cid])
        for number in set(owners):
            await wait_announced(dhts[number], owners.count(number))

        async def search(cid: Cid, owner: int, asker: int) -> bool:
            found = await providers(dhts[asker], cid, count=1)
            return [info.peer for info in found] == [endpoints[owner].peer_id]

        searches = [
            (cid, owner, dice.choice([n for n in range(100) if n != owner]))
            for cid, owner in zip(cids, owners, strict=True)
        ]
        assert all([await search(*each) for each in searches])

        dead = set(dice.sample(range(100), 20))
        for number in dead:
            for other in endpoints:
                swarm.link(endpoints[number], other).up = False
            for peer in endpoints[number].peers():
                swarm.part(endpoints[number], swarm.by_id[peer])
        alive = [each for each in searches if each[2] not in dead]
        results = [await search(*each) for each in alive]
        assert sum(results) >= 0.99 * len(results)
        assert statistics.median(len(dhts[number].table) for number in range(100) if number not in dead) >= 20


async def test_two_real_hosts_provide_and_find(tmp_path: Path) -> None:
    psk = bytes(range(32))
    settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), psk=psk)
    with trio.fail_after(30):
        async with AsyncExitStack() as stack:
            hosts = [await stack.enter_async_context(open_network(Identity.generate(), settings)) for _ in range(3)]
            dhts = []
            for number, host in enumerate(hosts):
                database = await stack.enter_async_context(open_database(tmp_path / f"{number}.db"))
                quick = DhtSettings(gather_s=0.01, bootstrap_delay_s=0.01)
                dhts.append(await stack.enter_async_context(open_dht(host, database, quick)))
            for host in hosts[1:]:
                await host.connect(PeerInfo(hosts[0].peer_id, tuple(hosts[0].listen_addrs())))
            await dhts[1].provide([LAYER])
            while not dhts[1]._reprovider.announcements:  # noqa: ASYNC110
                await trio.sleep(0.01)
            found = await providers(dhts[2], LAYER, count=1)
            assert [info.peer for info in found] == [hosts[1].peer_id]
            assert set(found[0].addrs) >= set(hosts[1].listen_addrs())
            located = await dhts[2].find_peer(hosts[1].peer_id)
            assert located is not None
            assert set(located.addrs) >= set(hosts[1].listen_addrs())

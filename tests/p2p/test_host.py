"""The real host, on loopback sockets: the promises of `Network`, and what only a real host has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from ipfsreg.database import open_database
from ipfsreg.errors import ConfigError, PeerUnreachable
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange, PeerEvent, PeerInfo
from ipfsreg.p2p.listening import reachable_at
from ipfsreg.p2p.redial import open_redial
from ipfsreg.p2p.resolver import Resolver
from ipfsreg.testing.network_checks import PROMISES, Promise, info_of, name_of

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PSK = bytes(range(32))


@asynccontextmanager
async def open_hosts(count: int, psk: bytes | None = None) -> AsyncIterator[list[Host]]:
    settings = NetworkSettings(listen_addrs=(LOOPBACK,), psk=psk)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_network(Identity.generate(), settings)) for _ in range(count)]


@pytest.mark.parametrize("psk", [None, PSK], ids=["public", "private"])
@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_the_host_keeps_its_promises(promise: Promise, psk: bytes | None) -> None:
    async with open_hosts(2, psk) as (alice, bob):
        await promise(alice, bob)


async def test_a_restarted_node_finds_its_swarm_without_its_bootstrappers(tmp_path: Path) -> None:
    settings = NetworkSettings(listen_addrs=(LOOPBACK,))
    alice = Identity.generate()
    async with open_hosts(1) as (bob,), open_database(tmp_path / "db") as database:
        with trio.fail_after(20):
            async with open_network(alice, settings, database) as host, open_redial(host, [info_of(bob)]) as redial:
                await redial.wait_changed()
                assert host.peers() == [bob.peer_id]
            async with (
                open_network(alice, settings, database) as host,
                host.events() as events,
                open_redial(host, [], remembered=host.remembered),
            ):
                assert await anext(events) == PeerEvent(bob.peer_id, PeerChange.CONNECTED)


async def test_a_bootstrapper_that_comes_up_late_is_reached() -> None:
    bob = Identity.generate()
    async with open_hosts(1) as (alice,):
        async with open_network(bob, NetworkSettings(listen_addrs=(LOOPBACK,))) as host:
            (addr,) = host.listen_addrs()
        with trio.fail_after(20):
            async with open_redial(alice, [PeerInfo(bob.peer_id, (addr,))]) as redial, alice.events() as events:
                await redial.wait_changed()
                assert redial.states()[0].failures == 1
                assert "refused" in redial.states()[0].last_error
                async with open_network(bob, NetworkSettings(listen_addrs=(addr,))):
                    assert await anext(events) == PeerEvent(bob.peer_id, PeerChange.CONNECTED)


async def test_a_stream_opened_while_the_connection_dies_gets_another_connection() -> None:
    async with open_hosts(2) as (alice, bob):
        with trio.fail_after(10):
            await alice.connect(info_of(bob))
            async with alice.events() as events:
                while (await anext(events)).change is not PeerChange.IDENTIFIED:
                    pass
            async with bob.accept(["/new/1"]) as streams, trio.open_nursery() as nursery:
                nursery.start_soon(bob.disconnect, alice.peer_id, "just now")
                stream = await alice.open_stream(bob.peer_id, ["/new/1"])
                await stream.send_all(b"x")
                assert await (await anext(streams)).receive_some() == b"x"


async def test_announced_addresses_are_told_instead_of_the_real_ones() -> None:
    outside = ("/dns4/node.example/tcp/4619", "/ip4/203.0.113.9/tcp/4619")
    settings = NetworkSettings(listen_addrs=(LOOPBACK,), announce_addrs=outside)
    async with open_hosts(1) as (alice,), open_network(Identity.generate(), settings) as bob:
        assert tuple(bob.listen_addrs()) == outside
        with trio.fail_after(10):
            async with alice.events() as events:
                (port,) = [addr.port for addr in reachable_at(bob._swarm.listeners)]
                await alice.connect(PeerInfo(bob.peer_id, (f"/ip4/127.0.0.1/tcp/{port}",)))
                while (await anext(events)).change is not PeerChange.IDENTIFIED:
                    pass
            assert set(outside) <= set(alice.addrs_of(bob.peer_id))


async def test_an_announced_address_that_is_none_stops_the_start() -> None:
    settings = NetworkSettings(listen_addrs=(LOOPBACK,), announce_addrs=("node.example:4619",))
    with pytest.raises(ExceptionGroup) as caught:
        async with open_network(Identity.generate(), settings):
            pass
    assert caught.group_contains(ConfigError, match="announce_addrs")


async def test_all_addresses_are_tried_and_the_failure_names_each() -> None:
    async with open_hosts(2) as (alice, bob), open_tarpit() as tarpit:
        (good,) = bob.listen_addrs()
        dead = "/ip4/127.0.0.1/tcp/1"
        with trio.fail_after(10):
            began = trio.current_time()
            await alice.connect(PeerInfo(bob.peer_id, (dead, tarpit, "/ip4/127.0.0.1/udp/1/quic-v1", good)))
            assert trio.current_time() - began < 3, "neither the dead nor the mute one is waited for to the end"
            assert alice.addrs_of(bob.peer_id)[0] == good
            absent = Identity.generate().peer_id
            with pytest.raises(PeerUnreachable) as caught:
                await alice.connect(PeerInfo(absent, (dead, good, "/dns4/nowhere.invalid/tcp/1")))
            for addr in (dead, good, "/dns4/nowhere.invalid/tcp/1"):
                assert addr in str(caught.value)


async def test_names_are_resolved() -> None:
    async with open_hosts(1) as (bob,):
        (addr,) = bob.listen_addrs()
        port = addr.rpartition("/")[2]

        async def txt(domain: str) -> list[str]:
            await trio.lowlevel.checkpoint()
            assert domain == "_dnsaddr.swarm.example"
            return [f"dnsaddr={addr}/p2p/{bob.peer_id}"]

        settings = NetworkSettings(listen_addrs=())
        for name in (f"/dns4/localhost/tcp/{port}", f"/dns/localhost/tcp/{port}", "/dnsaddr/swarm.example"):
            async with open_network(Identity.generate(), settings, resolver=Resolver(txt)) as alice:
                with trio.fail_after(10):
                    await alice.connect(PeerInfo(bob.peer_id, (name,)))
                    assert alice.addrs_of(bob.peer_id)[0] == name, "the name is what is worth keeping"


async def test_status_tells_who_is_there() -> None:
    async with open_hosts(2) as (alice, bob):
        with trio.fail_after(10):
            await alice.connect(info_of(bob))
            async with alice.events() as events:
                while (await anext(events)).change is not PeerChange.IDENTIFIED:
                    pass
        (status,) = alice.status()
        assert (status.peer, status.dialed) == (bob.peer_id, True)
        assert status.addr in bob.listen_addrs()
        assert status.agent.startswith("ipfsreg/")
        assert status.bytes_in > 0
        assert status.bytes_out > 0


@asynccontextmanager
async def open_tarpit() -> AsyncIterator[str]:
    """The address of something that takes connections and says nothing."""
    with trio.socket.socket() as sock:
        await sock.bind(("127.0.0.1", 0))
        sock.listen()
        yield f"/ip4/127.0.0.1/tcp/{sock.getsockname()[1]}"

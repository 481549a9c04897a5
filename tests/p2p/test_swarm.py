"""The swarm on real loopback sockets: crossing dials, strangers, silence, floods."""

from __future__ import annotations

import errno
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from ipfsreg.errors import AlreadyRunning, ConfigError, ConnectionLost, LimitReached, NetworkError, PeerUnreachable
from ipfsreg.p2p import swarm as swarm_module
from ipfsreg.p2p.addressbook import AddressBook
from ipfsreg.p2p.connection import Connection, ConnectionLimits, MemoryBudget, secure
from ipfsreg.p2p.dialer import open_tcp
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange
from ipfsreg.p2p.limits import Limits
from ipfsreg.p2p.listening import reachable_at
from ipfsreg.p2p.swarm import Swarm, open_swarm
from ipfsreg.peer_id import PeerId

ECHO = "/echo/1.0.0"
LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PSK, OTHER_PSK = bytes(32), bytes(range(32))


@asynccontextmanager
async def open_swarms(
    count: int, limits: Limits | None = None, psk: bytes | None = None, listen: str = LOOPBACK
) -> AsyncIterator[list[Swarm]]:
    """Swarms that echo and do not know each other."""
    async with AsyncExitStack() as stack:
        swarms = []
        for _ in range(count):
            identity = Identity.generate()
            swarm = await stack.enter_async_context(
                open_swarm(
                    identity=identity,
                    psk=psk,
                    listen_addrs=[listen],
                    book=AddressBook(identity.peer_id),
                    limits=limits or Limits(),
                    connection_limits=ConnectionLimits(),
                    budget=MemoryBudget(1 << 28),
                )
            )
            nursery = await stack.enter_async_context(trio.open_nursery())
            stack.callback(nursery.cancel_scope.cancel)
            nursery.start_soon(serve_echo, swarm)
            swarms.append(swarm)
        yield swarms


async def serve_echo(swarm: Swarm) -> None:
    async with swarm.offers.accept([ECHO], max_waiting=64) as streams:
        async for stream in streams:
            try:
                await stream.send_all(await stream.receive_some())
                await stream.aclose()
            except NetworkError:
                await stream.reset()


def peer_of(swarm: Swarm) -> PeerId:
    return swarm.identity.peer_id


def addrs_of(swarm: Swarm) -> list[str]:
    return [str(addr) for addr in reachable_at(swarm.listeners)]


async def reach(here: Swarm, there: Swarm) -> Connection:
    return await here.reach(peer_of(there), addrs_of(there), insist=True)


async def echo(here: Swarm, there: Swarm) -> None:
    """One echo over a connection that is dialled if need be."""
    connection = await reach(here, there)
    stream = await connection.open_stream([ECHO])
    await stream.send_all(b"hello")
    assert await stream.receive_some() == b"hello"
    await stream.aclose()


async def connect_raw(swarm: Swarm) -> trio.SocketStream:
    """A stranger's TCP connection."""
    return await open_tcp(reachable_at(swarm.listeners)[0])


async def wait_until_gone(swarm: Swarm, peer: PeerId) -> None:
    with swarm.events.read(swarm.peers(), []) as events:
        if peer in swarm.peers():
            async for event in events:
                if (event.peer, event.change) == (peer, PeerChange.DISCONNECTED):
                    return


async def until(condition: Callable[[], bool]) -> None:
    """For what the other side of a socket does in its own time, and nobody tells."""
    while not condition():  # noqa: ASYNC110 - no event exists for it
        await trio.sleep(0.01)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare connections are closed soon, for tests that wait for it."""
    monkeypatch.setattr(swarm_module, "DRY_S", 0.05)
    monkeypatch.setattr(swarm_module, "DRY_OTHER_S", 0.3)
    monkeypatch.setattr(swarm_module, "LOOK_S", 0.02)


# ------------------------------------------------------------------ dialing


async def test_dials_that_cross_lose_no_stream_and_leave_one_connection(impatient: None) -> None:
    for _ in range(10):
        async with open_swarms(2) as (alice, bob):
            with trio.fail_after(20):
                for _ in range(5):
                    async with trio.open_nursery() as nursery:
                        for _ in range(3):
                            nursery.start_soon(echo, alice, bob)
                            nursery.start_soon(echo, bob, alice)
                    (mine, *_), (theirs, *_) = alice.connections(peer_of(bob)), bob.connections(peer_of(alice))
                    assert mine.dialer is not theirs.dialer, "both sides use the same connection"
                    await until(lambda: len(alice.connections(peer_of(bob))) == 1)
                    await until(lambda: len(bob.connections(peer_of(alice))) == 1)
                    await echo(alice, bob)
                    await alice.part(peer_of(bob), "again")
                    await wait_until_gone(bob, peer_of(alice))


async def test_many_who_want_one_peer_share_one_dial() -> None:
    async with open_swarms(2) as (alice, bob):
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                for _ in range(50):
                    nursery.start_soon(reach, alice, bob)
            assert len(alice.connections(peer_of(bob))) == 1
            assert len(bob.connections(peer_of(alice))) == 1


async def test_a_dial_goes_on_while_anybody_waits_for_it_and_no_longer() -> None:
    tarpit = trio.socket.socket()
    await tarpit.bind(("127.0.0.1", 0))
    tarpit.listen()
    addr = f"/ip4/127.0.0.1/tcp/{tarpit.getsockname()[1]}"
    with tarpit:
        async with open_swarms(1) as (alice,):
            absent = Identity.generate().peer_id
            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(lambda: alice.reach(absent, [addr], insist=True))
                    with trio.move_on_after(0.05):
                        await alice.reach(absent, [addr], insist=True)
                    stream, _ = await tarpit.accept()
                    assert absent in alice._dials, "somebody else still waits"
                    nursery.cancel_scope.cancel()
                with stream:
                    while await stream.recv(1000):
                        pass
                await trio.testing.wait_all_tasks_blocked()
                assert not alice._dials


async def test_an_address_that_somebody_learns_later_is_tried_in_the_dial_that_runs() -> None:
    tarpit = trio.socket.socket()
    await tarpit.bind(("127.0.0.1", 0))
    tarpit.listen()
    silent = f"/ip4/127.0.0.1/tcp/{tarpit.getsockname()[1]}"
    with tarpit:
        async with open_swarms(2) as (alice, bob), trio.open_nursery() as nursery:
            with trio.fail_after(5):
                nursery.start_soon(lambda: alice.reach(peer_of(bob), [silent], insist=False))
                stream, _ = await tarpit.accept()
                with stream:
                    connection = await alice.reach(peer_of(bob), addrs_of(bob), insist=True)
            assert alice.connection(peer_of(bob)) is connection


async def test_a_peer_that_dials_us_meanwhile_ends_the_wait_and_not_the_dial() -> None:
    async with open_swarms(2) as (alice, bob), open_slow_road(bob) as (addr, opened), trio.open_nursery() as nursery:
        with trio.fail_after(10):
            reached = trio.Event()

            async def dial() -> None:
                await alice.reach(peer_of(bob), [addr], insist=True)
                reached.set()

            nursery.start_soon(dial)
            await until(lambda: peer_of(bob) in alice._dials)
            await reach(bob, alice)
            await reached.wait()
            assert [one.dialer for one in alice.connections(peer_of(bob))] == [False]
            opened.set()
            await until(lambda: len(alice.connections(peer_of(bob))) == 2)
            await until(lambda: len(bob.connections(peer_of(alice))) == 2)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def open_slow_road(swarm: Swarm) -> AsyncIterator[tuple[str, trio.Event]]:
    """An address that leads to *swarm*, over which no byte passes until the event is set."""
    opened = trio.Event()

    async def carry(source: trio.SocketStream, sink: trio.SocketStream) -> None:
        await opened.wait()
        with suppress(trio.BrokenResourceError):
            async for piece in source:
                await sink.send_all(piece)

    async def serve(here: trio.SocketStream) -> None:
        async with await connect_raw(swarm) as there, trio.open_nursery() as nursery:
            nursery.start_soon(carry, here, there)
            nursery.start_soon(carry, there, here)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, serve, [listener])
        yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}", opened
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("ours_is_smaller", [True, False])
async def test_the_side_with_the_smaller_peer_id_closes_a_spare_connection(
    ours_is_smaller: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarm_module, "DRY_S", 0.05)
    monkeypatch.setattr(swarm_module, "DRY_OTHER_S", 1000)
    monkeypatch.setattr(swarm_module, "LOOK_S", 0.01)
    async with open_swarms(1) as (alice,):
        bob = Identity.generate()
        while (peer_of(alice) < bob.peer_id) is not ours_is_smaller:
            bob = Identity.generate()
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                connections = [
                    await secure(await connect_raw(alice), identity=bob, psk=None, dialer=True) for _ in range(2)
                ]
                for connection in connections:
                    nursery.start_soon(connection.run)
                await until(lambda: len(alice.connections(bob.peer_id)) == 2)
                with trio.move_on_after(0.3):
                    await connections[0].closed.wait()
                assert connections[0].closed.is_set() is ours_is_smaller
                assert not connections[1].closed.is_set()
                nursery.cancel_scope.cancel()


async def test_a_peer_redialled_after_a_loss_only_it_has_noticed_is_heard_at_once() -> None:
    async with open_swarms(1) as (alice,):
        bob = Identity.generate()
        with trio.fail_after(10):
            # The first connection stays open on alice's side: nobody reads or writes the other end any more.
            first = await secure(await connect_raw(alice), identity=bob, psk=None, dialer=True)
            await until(lambda: len(alice.connections(bob.peer_id)) == 1)
            second = await secure(await connect_raw(alice), identity=bob, psk=None, dialer=True)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(second.run)
                await until(lambda: len(alice.connections(bob.peer_id)) == 2)
                stream = await second.open_stream([ECHO])
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                in_use = alice.connection(bob.peer_id)
                assert in_use is not None
                assert await in_use.ping() < 10, "the first one would never answer"
                nursery.cancel_scope.cancel()
            await first.aclose("done")


async def test_one_peer_cannot_pile_up_connections() -> None:
    async with open_swarms(1) as (alice,):
        bob = Identity.generate()
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    connection = await secure(await connect_raw(alice), identity=bob, psk=None, dialer=True)
                    nursery.start_soon(connection.run)
                    await connection.ping()
                assert len(alice.connections(bob.peer_id)) <= swarm_module.MAX_PER_PEER + 1
                nursery.cancel_scope.cancel()


async def test_an_implicit_dial_does_not_repeat_what_failed_a_moment_ago_and_an_explicit_one_does() -> None:
    async with open_swarms(2) as (alice, bob):
        peer, absent = peer_of(bob), Identity.generate().peer_id
        with trio.fail_after(10):
            with pytest.raises(PeerUnreachable, match="/tcp/"):
                await alice.reach(absent, addrs_of(bob), insist=True)
            alice.book.add(absent, addrs_of(bob), ttl_s=60)
            with pytest.raises(PeerUnreachable, match="a moment ago"):
                await alice.reach(absent, insist=False)
            with pytest.raises(PeerUnreachable, match="/tcp/"):
                await alice.reach(absent, insist=True)
            await alice.reach(peer, addrs_of(bob), insist=False)


async def test_we_do_not_dial_ourselves() -> None:
    async with open_swarms(1) as (alice,):
        with pytest.raises(PeerUnreachable):
            await reach(alice, alice)
        with pytest.raises(PeerUnreachable):
            await alice.reach(Identity.generate().peer_id, addrs_of(alice), insist=True)
        assert alice.peers() == []


async def test_a_peer_with_another_swarm_key_is_refused_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async with (
        open_swarms(1, psk=PSK) as (alice,),
        open_swarms(2, psk=OTHER_PSK) as (bob, _),
        open_swarms(1) as (carol,),
    ):
        with trio.fail_after(30):
            for stranger in (bob, bob, carol):
                with pytest.raises(PeerUnreachable) as caught:
                    await reach(stranger, alice)
                assert "127.0.0.1" in str(caught.value)
        assert alice.peers() == []
    lines = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.name for line in lines] == ["ipfsreg.p2p.swarm"]
    assert "key" in lines[0].getMessage()


# ------------------------------------------------------------------ listening


async def test_a_port_in_use_is_an_error_that_says_so() -> None:
    async with open_swarms(1) as (alice,):
        (addr,) = addrs_of(alice)
        with pytest.raises(AlreadyRunning, match=addr):
            async with open_swarms(1, listen=addr):
                pass


@pytest.mark.parametrize("addr", ["/ip4/192.0.2.1/tcp/0", "/dns4/localhost/tcp/0", "/ip4/127.0.0.1/udp/1", "nonsense"])
async def test_an_address_that_is_not_ours_is_a_configuration_error(addr: str) -> None:
    with pytest.raises(ConfigError) as caught:
        async with open_swarms(1, listen=addr):
            pass
    assert caught.value.value == addr


async def test_a_wildcard_is_every_interface_and_the_real_port() -> None:
    async with open_swarms(1, listen="/ip4/0.0.0.0/tcp/0") as (alice,):
        addrs = addrs_of(alice)
        assert all(addr.startswith("/ip4/") and not addr.endswith("/tcp/0") for addr in addrs)
        assert any(addr.startswith("/ip4/127.0.0.1/") for addr in addrs)
        assert not any("0.0.0.0" in addr for addr in addrs)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
async def test_ipv6_and_ipv4_may_have_the_same_port() -> None:
    async with open_swarms(1, listen="/ip4/0.0.0.0/tcp/0") as (alice,):
        port = addrs_of(alice)[0].rpartition("/")[2]
        async with open_swarms(1, listen=f"/ip6/::/tcp/{port}") as (bob,):
            with trio.fail_after(5):
                connection = await alice.reach(peer_of(bob), [f"/ip6/::1/tcp/{port}"], insist=True)
            assert connection.remote_addr == f"/ip6/::1/tcp/{port}"
            assert bob.connections(peer_of(alice))[0].remote_addr.startswith("/ip6/::1/tcp/")


class ListenerOutOfFiles:
    """A listener whose process has no file descriptors left, twice, and is closed then."""

    def __init__(self) -> None:
        self.failures = [errno.EMFILE, errno.ECONNABORTED]

    async def accept(self) -> trio.SocketStream:
        await trio.lowlevel.checkpoint()
        if not self.failures:
            raise trio.ClosedResourceError
        raise OSError(self.failures.pop(0), "no")


async def test_running_out_of_files_stops_nobody_from_listening(caplog: pytest.LogCaptureFixture) -> None:
    async with open_swarms(1) as (alice,):
        listener = ListenerOutOfFiles()
        with trio.fail_after(5):
            await alice._listen(cast(trio.SocketListener, listener))
        assert not listener.failures
    assert "no connection can be taken" in caplog.text


# ------------------------------------------------------------------ strangers


async def test_thousands_of_silent_sockets_keep_nobody_out() -> None:
    limits = Limits(silent_sockets=50)
    strangers: list[trio.SocketStream] = []
    async with open_swarms(2, limits) as (alice, bob), AsyncExitStack() as sockets:
        with trio.fail_after(60):
            for _ in range(10):
                strangers += [await sockets.enter_async_context(await connect_raw(alice)) for _ in range(200)]
                await echo(bob, alice)
                await bob.part(peer_of(alice), "again")
            assert len(alice._doorstep._silent) <= 50
            with trio.fail_after(5):
                assert await strangers[0].receive_some(1) == b"", "the longest silent is closed first, at once"


async def test_garbage_costs_its_sender_the_connection_and_nobody_else_anything(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rng = random.Random(5)
    openings = [b"", b"\x13/multistream/1.0.0\n", b"\x13/multistream/1.0.0\n\x07/noise\n", b"GET / HTTP/1.1\r\n\r\n"]
    for psk in (None, PSK):
        async with open_swarms(2, Limits(handshake_s=0.5), psk=psk) as (alice, bob):
            with trio.fail_after(60):
                connection = await reach(bob, alice)
                async with trio.open_nursery() as nursery:
                    for number in range(100):
                        garbage = openings[number % 4] + rng.randbytes(rng.choice((1, 10, 100, 1000, 100_000)))
                        nursery.start_soon(send_garbage, alice, garbage)
                await echo(bob, alice)
                assert bob.connection(peer_of(alice)) is connection
                assert alice.peers() == [peer_of(bob)]
    assert "nobody foresaw" not in caplog.text


async def send_garbage(swarm: Swarm, garbage: bytes) -> None:
    stream = await connect_raw(swarm)
    async with stream:
        try:
            await stream.send_all(garbage)
            while await stream.receive_some():
                pass
        except trio.BrokenResourceError:
            pass


async def test_a_slow_handshake_has_a_deadline(caplog: pytest.LogCaptureFixture) -> None:
    async with open_swarms(2, Limits(handshake_s=0.4, handshakes=4)) as (alice, bob):
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(20):
                    nursery.start_soon(drip, alice)
                # Five rounds of four slots, in turn; a peer waits in line like everybody.
                await trio.sleep(0.1)
                await echo(bob, alice)
    assert "nobody foresaw" not in caplog.text


async def drip(swarm: Swarm) -> None:
    """A byte now and then, until it is cut off."""
    stream = await connect_raw(swarm)
    async with stream:
        try:
            for byte in b"\x13/multistream/1.0.0\n\x07/noise\n" * 10:
                await stream.send_all(bytes([byte]))
                with trio.move_on_after(0.05):
                    if not await stream.receive_some():
                        return
        except trio.BrokenResourceError:
            return
    raise AssertionError("nobody cut the slow one off")


async def test_what_nobody_foresaw_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def faulty(*args: object, **kwargs: object) -> Connection:
        monkeypatch.setattr(swarm_module, "secure", secure)
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("a bug")

    async with open_swarms(2) as (alice, bob):
        with trio.fail_after(10):
            monkeypatch.setattr(swarm_module, "secure", faulty)
            async with await connect_raw(alice) as stranger:
                await stranger.send_all(b"x")
                with suppress(trio.BrokenResourceError):
                    assert await stranger.receive_some() == b""
            monkeypatch.setattr(swarm_module, "secure", faulty)
            with pytest.raises(PeerUnreachable, match="a bug"):
                await reach(alice, bob)
            await echo(alice, bob)
    assert caplog.text.count("nobody foresaw") == 2


# ------------------------------------------------------------------ the life of a connection


async def test_a_peer_that_falls_silent_is_gone_within_twenty_seconds(mock_clock: MockClock) -> None:
    async with open_swarms(2) as (alice, bob):
        carol = Identity.generate()
        await echo(alice, bob)
        # Her handshake is done; from then on she neither reads nor writes, and closes nothing.
        connection = await secure(await connect_raw(alice), identity=carol, psk=None, dialer=True)
        while carol.peer_id not in alice.peers():
            await trio.testing.wait_all_tasks_blocked(0.01)
        stuck = alice.connections(carol.peer_id)[0]
        errors: list[NetworkError] = []

        async def open_for_ever() -> None:
            try:
                await stuck.open_stream([ECHO])
            except NetworkError as error:
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(open_for_ever)
            for second in range(20):
                mock_clock.jump(1)
                # Real bytes between alice and bob need real turns of the loop.
                for _ in range(5):
                    await trio.testing.wait_all_tasks_blocked(0.005)
                if second < 14:
                    assert carol.peer_id in alice.peers()
            assert carol.peer_id not in alice.peers()
            mock_clock.jump(2)
        assert isinstance(errors[0], ConnectionLost)
        assert alice.peers() == [peer_of(bob)], "who answers pings stays"
        assert bob.peers() == [peer_of(alice)]
        await connection.aclose("done")


async def test_three_hundred_connections_come_and_go_and_leave_nothing_behind() -> None:
    async with open_swarms(2) as (alice, bob):
        with trio.fail_after(60):
            await echo(alice, bob)
            await trio.testing.wait_all_tasks_blocked()
            before = trio.lowlevel.current_statistics().tasks_living
            for _ in range(300):
                await echo(alice, bob)
                await alice.part(peer_of(bob), "again")
            await wait_until_gone(bob, peer_of(alice))
            await echo(alice, bob)
            await trio.testing.wait_all_tasks_blocked(0.1)
            assert trio.lowlevel.current_statistics().tasks_living <= before
            assert not alice._dials
            assert bob._doorstep._gate._inside == {}
            assert bob._doorstep._slots.borrowed_tokens == 0


async def test_too_many_connections_are_trimmed_and_the_protected_kept() -> None:
    limits = Limits(low_connections=3, high_connections=5, grace_s=0)
    async with open_swarms(1, limits) as (alice,), open_swarms(7) as others:
        with trio.fail_after(20):
            alice.protect(peer_of(others[0]), "test")
            for other in others:
                await reach(other, alice)
            await until(lambda: len(alice.peers()) == 3)
            assert peer_of(others[0]) in alice.peers()
            alice.unprotect(peer_of(others[0]), "test")
            await echo(others[0], alice)


async def test_a_full_node_refuses_strangers_and_takes_the_protected() -> None:
    limits = Limits(low_connections=2, high_connections=2, max_connections=2, grace_s=1000)
    async with open_swarms(1, limits) as (alice,), open_swarms(4) as others:
        with trio.fail_after(20):
            for other in others[:2]:
                await reach(other, alice)
            await until(lambda: len(alice.peers()) == 2)
            alice.protect(peer_of(others[3]), "test")
            connection = await reach(others[2], alice)
            await connection.closed.wait()
            await echo(others[3], alice)
            assert set(alice.peers()) == {peer_of(others[n]) for n in (0, 1, 3)}
            with pytest.raises(LimitReached):
                await reach(alice, others[2])


async def test_leaving_closes_every_connection_and_both_sides_know() -> None:
    async with open_swarms(1) as (bob,):
        with trio.fail_after(10):
            async with open_swarms(1) as (alice,):
                await echo(alice, bob)
                stream = await (await reach(bob, alice)).open_stream([ECHO])
            with pytest.raises(ConnectionLost):
                await stream.receive_some()
            await wait_until_gone(bob, peer_of(alice))
            assert alice.peers() == []

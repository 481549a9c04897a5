"""Our connections with those of js-libp2p and Kubo: each dials the other, without and with a swarm key."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from ipfsreg.errors import PeerUnreachable
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identify import ID as IDENTIFY
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange, PeerInfo
from ipfsreg.p2p.ping import PROTOCOL as PING
from ipfsreg.p2p.ping import measure_rtt
from ipfsreg.testing.bulk import answer_exchange, exchange
from ipfsreg.testing.daemons import free_port
from ipfsreg.testing.js_peer import BULK, JsPeer, open_js_peer
from ipfsreg.testing.kubo_peer import MOUNTED, KuboPeer, open_kubo_peer
from ipfsreg.testing.peer_process import PeerFailed

pytestmark = pytest.mark.interop

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
MUCH = 256 * 1024 * 1024
SOME = 8 * 1024 * 1024
KEY, OTHER_KEY = b"\x5a" * 32, b"\xa5" * 32

kept_private = pytest.mark.parametrize("psk", [None, KEY], ids=["public", "private"])
dialled = pytest.mark.parametrize("we_dial", [True, False], ids=["we dial", "they dial"])
wrong_keys = pytest.mark.parametrize(
    ("ours", "theirs"),
    [(KEY, OTHER_KEY), (KEY, None), (None, KEY)],
    ids=["another key", "they have none", "we have none"],
)


@asynccontextmanager
async def open_ours(psk: bytes | None) -> AsyncIterator[Host]:
    async with open_network(Identity.generate(), NetworkSettings(listen_addrs=(LOOPBACK,), psk=psk)) as host:
        yield host


def info_of(host: Host) -> PeerInfo:
    return PeerInfo(host.peer_id, tuple(host.listen_addrs()))


async def join(host: Host, theirs: JsPeer | KuboPeer, *, we_dial: bool) -> None:
    """Connect, and wait until we know them."""
    if we_dial:
        await host.connect(theirs.info)
    else:
        await theirs.dial(info_of(host))
    async with host.events() as events:
        async for event in events:
            if event.peer == theirs.peer and event.change is PeerChange.IDENTIFIED:
                break
    (status,) = host.status()
    assert status.dialed == we_dial


# ------------------------------------------------------------------------------------------------------------- js


@kept_private
@dialled
async def test_js_libp2p_and_we_identify_and_ping_each_other(psk: bytes | None, we_dial: bool) -> None:
    with trio.fail_after(60):
        async with open_ours(psk) as host, open_js_peer(psk=psk) as js:
            await join(host, js, we_dial=we_dial)
            (status,) = host.status()
            assert "js-libp2p/" in status.agent
            assert {IDENTIFY, PING, "/meshsub/1.1.0", BULK} <= (host.protocols_of(js.peer) or frozenset())
            assert set(js.info.addrs) <= set(host.addrs_of(js.peer))
            assert 0 < await measure_rtt(host, js.peer) < 10

            ours = await js.identified(host.peer_id)
            assert ours.agent.startswith("ipfsreg/")
            assert {IDENTIFY, "/ipfs/id/push/1.0.0", PING} <= ours.protocols
            assert set(ours.listen) == set(host.listen_addrs())
            assert ours.observed == (status.addr if not we_dial else js.info.addrs[0])
            assert 0 <= await js.ping(host.peer_id) < 10
            (connection,) = await js.connections()
            assert connection["peer"] == str(host.peer_id)


@kept_private
async def test_256_mib_go_both_ways_at_once_over_a_stream_of_js_libp2p(psk: bytes | None) -> None:
    with trio.fail_after(100):
        async with open_ours(psk) as host, open_js_peer(psk=psk) as js, host.accept([BULK]) as streams:
            await join(host, js, we_dial=False)
            received = 0

            async def answer() -> None:
                nonlocal received
                stream = await anext(streams)
                received = await answer_exchange(stream)
                await stream.aclose()

            async with trio.open_nursery() as nursery:
                nursery.start_soon(answer)
                assert await js.bulk(host.peer_id, send=MUCH, want=MUCH, timeout_s=90) == MUCH
            assert received == MUCH


@kept_private
async def test_content_goes_both_ways_over_a_stream_we_open_to_js_libp2p(psk: bytes | None) -> None:
    with trio.fail_after(60):
        async with open_ours(psk) as host, open_js_peer(psk=psk) as js:
            await join(host, js, we_dial=True)
            stream = await host.open_stream(js.peer, [BULK])
            assert await exchange(stream, send=SOME, want=SOME) == SOME
            await stream.aclose()
            assert (await js.process.wait_event("bulk"))["received"] == SOME


@wrong_keys
@dialled
async def test_js_libp2p_with_another_swarm_key_is_refused_in_one_line(
    ours: bytes | None, theirs: bytes | None, we_dial: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(60), caplog.at_level(logging.INFO):
        async with open_ours(ours) as host, open_js_peer(psk=theirs) as js:
            if we_dial:
                with pytest.raises(PeerUnreachable, match="swarm key" if ours else js.info.addrs[0]):
                    await host.connect(js.info)
                assert not caplog.messages
            else:
                with pytest.raises(PeerFailed):
                    await js.dial(info_of(host))
                await check_refusal(caplog, private=ours is not None)
            assert not host.peers()
            assert not await js.connections()
            assert not [event for event in js.process.events if event["event"] == "connect"]
            assert not js.process.stderr


async def check_refusal(caplog: pytest.LogCaptureFixture, *, private: bool) -> None:
    """One line for a connection refused for its key; a public node knows of no key and says nothing."""
    if private:
        # They may know before we do.
        while not caplog.messages:  # noqa: ASYNC110 - a log has no event
            await trio.sleep(0.02)
        (line,) = caplog.messages
        assert line.startswith("refused /ip4/127.0.0.1/tcp/")
        assert "swarm key" in line
    else:
        assert not caplog.messages


# ----------------------------------------------------------------------------------------------------------- Kubo


@kept_private
@dialled
async def test_kubo_and_we_identify_each_other_and_we_ping_it(psk: bytes | None, we_dial: bool, tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with open_ours(psk) as host, open_kubo_peer(tmp_path, psk=psk) as kubo:
            await join(host, kubo, we_dial=we_dial)
            (status,) = host.status()
            assert status.agent.startswith("kubo/")
            assert {IDENTIFY, PING, "/meshsub/1.1.0", "/ipfs/bitswap/1.2.0", MOUNTED} <= (
                host.protocols_of(kubo.peer) or frozenset()
            )
            assert set(kubo.info.addrs) <= set(host.addrs_of(kubo.peer))
            assert 0 < await measure_rtt(host, kubo.peer) < 10

            (connection,) = await kubo.connections()
            assert connection.endswith(str(host.peer_id))
            # Where we listen it can only know from identify, if it is we who dialled.
            assert set(host.listen_addrs()) <= set(await kubo.find_peer(host.peer_id))


@kept_private
async def test_256_mib_go_both_ways_at_once_over_a_stream_of_kubo(psk: bytes | None, tmp_path: Path) -> None:
    port = free_port()
    with trio.fail_after(100):
        async with (
            open_ours(psk) as host,
            open_kubo_peer(tmp_path, psk=psk) as kubo,
            host.accept([MOUNTED + BULK]) as streams,
        ):
            await join(host, kubo, we_dial=False)
            await kubo.forward(BULK, port, host.peer_id)
            received = 0

            async def answer() -> None:
                nonlocal received
                stream = await anext(streams)
                received = await answer_exchange(stream)
                await stream.aclose()

            async with trio.open_nursery() as nursery, await trio.open_tcp_stream("127.0.0.1", port) as entrance:
                nursery.start_soon(answer)
                assert await exchange(entrance, send=MUCH, want=MUCH) == MUCH
            assert received == MUCH


@kept_private
async def test_content_goes_both_ways_over_a_stream_we_open_to_kubo(psk: bytes | None, tmp_path: Path) -> None:
    answered, answers = trio.open_memory_channel[int](1)

    async def answer(connection: trio.SocketStream) -> None:
        await answered.send(await answer_exchange(connection))

    with trio.fail_after(60):
        async with open_ours(psk) as host, open_kubo_peer(tmp_path, psk=psk) as kubo, trio.open_nursery() as nursery:
            (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
            nursery.start_soon(trio.serve_listeners, answer, [listener])
            await join(host, kubo, we_dial=True)
            await kubo.listen(BULK, listener.socket.getsockname()[1])
            stream = await host.open_stream(kubo.peer, [MOUNTED + BULK])
            assert await exchange(stream, send=SOME, want=SOME) == SOME
            await stream.aclose()
            assert await answers.receive() == SOME
            nursery.cancel_scope.cancel()


@wrong_keys
@dialled
async def test_kubo_with_another_swarm_key_is_refused_in_one_line(
    ours: bytes | None, theirs: bytes | None, we_dial: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with trio.fail_after(60), caplog.at_level(logging.INFO):
        async with open_ours(ours) as host, open_kubo_peer(tmp_path, psk=theirs) as kubo:
            said = bytes(kubo.process.stderr)
            if we_dial:
                with pytest.raises(PeerUnreachable, match="swarm key" if ours else kubo.info.addrs[0]):
                    await host.connect(kubo.info)
                assert not caplog.messages
            else:
                with pytest.raises(PeerFailed):
                    await kubo.dial(info_of(host))
                await check_refusal(caplog, private=ours is not None)
            assert not host.peers()
            assert not await kubo.connections()
            assert kubo.process.stderr == said

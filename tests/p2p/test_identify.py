"""Identify: what each side says of itself, and what of that is believed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.errors import MalformedData, StreamReset
from ipfsreg.ipld.protobuf import bytes_field
from ipfsreg.p2p import identify
from ipfsreg.p2p.connection import Connection, secure
from ipfsreg.p2p.dialer import open_tcp
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identify import ID, PUSH, Description, decode, encode
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange, PeerEvent
from ipfsreg.p2p.listening import reachable_at
from ipfsreg.testing.network_checks import receive_all

BOB = Identity.generate()


def test_a_description_survives_the_wire() -> None:
    description = Description(
        b"key",
        ("/ip4/192.0.2.1/tcp/1", "/ip6/2001:db8::1/tcp/2", "/ip4/192.0.2.1/udp/1/quic-v1"),
        frozenset({ID, "/ipfs/kad/1.0.0"}),
        "/ip4/192.0.2.9/tcp/9",
        "ipfsreg/1",
    )
    assert decode(encode(description)) == description


def test_the_bytes_are_those_of_libp2ps_protobuf() -> None:
    # Laid out by hand from libp2p/specs identify: publicKey 1, listenAddrs 2, protocols 3, observedAddr 4,
    # protocolVersion 5, agentVersion 6.
    message = bytes.fromhex("0a026b791208047f000001060fa11a022f612208047f00000106 0001".replace(" ", ""))
    message += b"\x2a\x0aipfs/0.1.0\x32\x01x"
    description = Description(b"ky", ("/ip4/127.0.0.1/tcp/4001",), frozenset({"/a"}), "/ip4/127.0.0.1/tcp/1", "x")
    assert encode(description) == message
    assert decode(message) == description


def test_what_is_too_much_or_unreadable_is_left_out() -> None:
    message = b"".join(
        [bytes_field(2, b"\xff\xff\xff")]
        + [bytes_field(2, b"\x04\x7f\x00\x00\x01\x06" + port.to_bytes(2, "big")) for port in range(1, 100)]
        + [bytes_field(3, b"\xff\xfe"), bytes_field(3, b"/" + b"a" * 300)]
        + [bytes_field(3, b"/%d" % number) for number in range(1000)]
        + [bytes_field(6, b"\xff" * 1000), bytes_field(8, b"signed record"), b"\x48\x01"]
    )
    description = decode(message)
    assert len(description.addrs) == identify.MAX_ADDRS
    assert len(description.protocols) == identify.MAX_PROTOCOLS
    assert len(description.agent) == identify.MAX_VERSION_CHARS


def test_a_flood_of_unreadable_addresses_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def count(raw: bytes) -> str:
        read.append(raw)
        raise MalformedData("not an address")

    monkeypatch.setattr(identify, "decode_addr", count)
    decode((bytes_field(2, b"\x36\x01a") + bytes_field(4, b"\x36\x01a")) * 10_000)
    assert len(read) == identify.MAX_ADDRS_READ + 1


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_any_bytes_are_a_description_or_malformed(data: bytes) -> None:
    try:
        description = decode(data)
    except MalformedData:
        return
    assert len(description.addrs) <= identify.MAX_ADDRS


# ------------------------------------------------------------------ between a host and a peer we play by hand


@asynccontextmanager
async def open_host() -> AsyncIterator[Host]:
    async with open_network(Identity.generate(), NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))) as host:
        yield host


@asynccontextmanager
async def bob_connected_to(host: Host) -> AsyncIterator[Connection]:
    """Bob, played by hand."""
    (addr,) = reachable_at(host._swarm.listeners)
    connection = await secure(await open_tcp(addr), identity=BOB, psk=None, dialer=True, remote_addr=str(addr))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        yield connection
        await connection.aclose("done")
        nursery.cancel_scope.cancel()


async def answer_once(connection: Connection, *messages: bytes) -> None:
    """Answer the host's question with *messages*."""
    stream = await connection.accept_stream([ID])
    for message in messages:
        await send_message(stream, message)
    await stream.aclose()


async def wait_identified(host: Host) -> None:
    async with host.events() as events:
        while await anext(events) != PeerEvent(BOB.peer_id, PeerChange.IDENTIFIED):
            pass


async def ask(connection: Connection) -> Description:
    stream = await connection.open_stream([ID])
    message = await MessageReader(stream, 65536).read()
    assert message is not None
    assert await receive_all(stream) == b""
    return decode(message)


async def test_a_host_tells_what_it_speaks_and_where_it_sees_us() -> None:
    async with open_host() as alice, alice.accept(["/special/1"]), bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            description = await ask(bob)
        assert {"/special/1", ID, PUSH, "/ipfs/ping/1.0.0"} <= description.protocols
        assert list(description.addrs) == alice.listen_addrs()
        assert description.public_key == alice.public_key
        assert description.observed.startswith("/ip4/127.0.0.1/tcp/")
        assert description.observed not in description.addrs
        assert description.agent.startswith("ipfsreg/")
        assert description.protocol_version == "ipfs/0.1.0"


async def test_an_answer_in_several_messages_is_one_answer() -> None:
    async with open_host() as alice, bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            parts = [Description(protocols=frozenset({f"/{n}"}), agent="bob") for n in range(3)]
            await answer_once(bob, *map(encode, parts))
            await wait_identified(alice)
        assert alice.protocols_of(BOB.peer_id) == frozenset({"/0", "/1", "/2"})
        assert alice.status()[0].agent == "bob"


async def test_claimed_addresses_are_kept_behind_none_that_worked() -> None:
    async with open_host() as alice, bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            await answer_once(bob, encode(Description(addrs=("/ip4/192.0.2.1/tcp/1", *alice.listen_addrs()))))
            await wait_identified(alice)
        assert alice.addrs_of(BOB.peer_id) == ["/ip4/192.0.2.1/tcp/1"], "not our own"


async def test_a_push_changes_what_is_known() -> None:
    async with open_host() as alice, bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            await answer_once(bob, encode(Description(protocols=frozenset({"/old"}))))
            await wait_identified(alice)
            async with alice.events() as events:
                assert (await anext(events)).change is PeerChange.CONNECTED
                assert (await anext(events)).change is PeerChange.IDENTIFIED
                stream = await bob.open_stream([PUSH])
                await send_message(stream, encode(Description(protocols=frozenset({"/new"}))))
                await stream.aclose()
                assert (await anext(events)).change is PeerChange.IDENTIFIED
            assert alice.protocols_of(BOB.peer_id) == frozenset({"/new"})


async def test_a_change_of_ours_is_pushed_once_to_those_who_asked() -> None:
    send, pushed = trio.open_memory_channel[Description](100)

    async def take_pushes(connection: Connection) -> None:
        while True:
            stream = await connection.accept_stream([PUSH])
            message = await MessageReader(stream, 65536).read()
            assert message is not None
            await send.send(decode(message))
            assert await receive_all(stream) == b""

    async with open_host() as alice, bob_connected_to(alice) as bob, trio.open_nursery() as nursery:
        with trio.fail_after(10):
            await answer_once(bob, encode(Description(protocols=frozenset({PUSH}))))
            await wait_identified(alice)
            nursery.start_soon(take_pushes, bob)
            async with alice.accept(["/before/1"]):
                await trio.sleep(4 * identify.SETTLE_S)
            assert "/late/1" not in (await ask(bob)).protocols
            async with alice.accept(["/brief/1"]):
                pass
            # Long enough for a push of what has not changed after all.
            await trio.sleep(4 * identify.SETTLE_S)
            async with alice.accept(["/late/1"]):
                # The parts of a node offer theirs one after another, with a few turns between them.
                for _ in range(5):
                    await trio.lowlevel.checkpoint()
                async with alice.accept(["/late/2"]):
                    first = await pushed.receive()
                    assert {"/late/1", "/late/2"} <= first.protocols, "the first push, and nothing before bob had asked"
            assert not {"/late/1", "/late/2"} & (await pushed.receive()).protocols
            assert pushed.statistics().current_buffer_used == 0
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [b"\xff" * 40, b"\x80\x80\x80\x80\x01", b"\x05abc", b""],
    ids=["no protobuf", "a gigabyte announced", "cut off", "nothing"],
)
async def test_a_bad_answer_costs_the_stream_and_streams_still_open(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(identify, "RETRY_AFTER_S", (0.01,))
    async with open_host() as alice, alice.accept(["/special/1"]) as streams, bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            for _ in range(2 if answer else 1):
                stream = await bob.accept_stream([ID])
                if answer:
                    await stream.send_all(answer)
                await stream.aclose()
            ours = await bob.open_stream(["/special/1"])
            await ours.send_all(b"x")
            assert await (await anext(streams)).receive_some() == b"x"
            if answer:
                assert alice.protocols_of(BOB.peer_id) is None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(bob.accept_stream, ["/bobs"])
                await alice.open_stream(BOB.peer_id, ["/bobs"])


async def test_a_bad_push_costs_the_stream() -> None:
    async with open_host() as alice, bob_connected_to(alice) as bob:
        with trio.fail_after(10):
            await answer_once(bob, encode(Description(protocols=frozenset({"/old"}))))
            await wait_identified(alice)
            for garbage in (b"\x05\xff\xff\xff\xff\xff", b"\xff" * 40):
                stream = await bob.open_stream([PUSH])
                await stream.send_all(garbage)
                await stream.send_eof()
                # Until alice is done with it, whichever way she ends it.
                with suppress(StreamReset):
                    await receive_all(stream)
            assert alice.protocols_of(BOB.peer_id) == frozenset({"/old"})
            assert await ask(bob)

"""What lies under a connection."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from ipfsreg.errors import ConnectionLost
from ipfsreg.p2p import wire as wire_module
from ipfsreg.p2p.wire import SocketWire, StreamWire, Wire, scratch, wire_over
from ipfsreg.testing.connections import tcp_pair


async def pair(kind: str) -> tuple[Wire, Wire]:
    near, far = await tcp_pair() if kind == "tcp" else trio.testing.memory_stream_pair()
    wires = wire_over(near), wire_over(far)
    assert all(isinstance(wire, SocketWire if kind == "tcp" else StreamWire) for wire in wires)
    return wires


async def read(wire: Wire, size: int = 100) -> bytes:
    room = memoryview(bytearray(size))
    while True:
        await wire.wait_readable()
        count = wire.read_into(room)
        if count is not None:
            return bytes(room[:count])


@pytest.mark.parametrize("kind", ["tcp", "memory"])
async def test_bytes_pass_in_pieces_as_large_as_the_reader_likes(kind: str) -> None:
    near, far = await pair(kind)
    await near.write_all(b"hello world")
    assert await read(far, 5) == b"hello"
    assert await read(far) == b" world"
    assert far.read_into(memoryview(bytearray(10))) is None
    await near.send_eof()
    assert await read(far) == b""
    assert await read(far) == b""
    await far.write_all(b"the other way")
    assert await read(near) == b"the other way"
    for wire in (near, far):
        await wire.aclose()
        await wire.aclose()


async def test_a_socket_takes_what_it_can_and_waits_for_the_rest() -> None:
    near, far = await pair("tcp")
    block = bytes(1 << 20)
    taken = 0
    while count := near.write(memoryview(block)):
        taken += count
    async with trio.open_nursery() as nursery:
        nursery.start_soon(near.write_all, block)
        received = 0
        while received < taken + len(block):
            received += len(await read(far, 1 << 20))
    for wire in (near, far):
        await wire.aclose()


async def wait_for(wire: Wire, at_least: int, done: list[int]) -> None:
    await wire.wait_readable(at_least)
    done.append(wire.read_into(memoryview(bytearray(1 << 20))) or 0)


async def test_who_needs_a_whole_message_is_not_woken_by_a_part_of_it() -> None:
    near, far = await pair("tcp")
    done: list[int] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait_for, far, 60_000, done)
        for _ in range(6):
            assert not done
            await near.write_all(bytes(10_000))
            await trio.testing.wait_all_tasks_blocked(0.01)
    assert done == [60_000]
    await near.write_all(b"x")
    assert await read(far) == b"x", "the next one who asks for less gets it"
    for wire in (near, far):
        await wire.aclose()


async def test_a_part_is_seen_after_a_while_and_the_end_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "_PATIENCE_S", 0.05)
    near, far = await pair("tcp")
    done: list[int] = []
    with trio.fail_after(5):
        await near.write_all(bytes(10_000))
        await wait_for(far, 60_000, done)
        assert done == [10_000]
        await near.send_eof()
        await wait_for(far, 60_000, done)
        assert done == [10_000, 0]
    for wire in (near, far):
        await wire.aclose()


@pytest.mark.parametrize("kind", ["tcp", "memory"])
async def test_a_closed_wire_is_lost_whoever_uses_it(kind: str) -> None:
    near, far = await pair(kind)
    await near.aclose()
    with pytest.raises(ConnectionLost):
        await near.wait_readable()
    with pytest.raises(ConnectionLost):
        await near.write_all(b"x" * 10)
    await near.send_eof()
    await far.aclose()


@pytest.mark.parametrize("kind", ["tcp", "memory"])
async def test_closing_wakes_whoever_waits(kind: str) -> None:
    near, far = await pair(kind)

    async def wait() -> None:
        with pytest.raises(ConnectionLost):
            await near.wait_readable()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await near.aclose()
    await far.aclose()


async def test_all_connections_of_a_loop_share_one_set_of_buffers() -> None:
    assert scratch() is scratch()

import pytest
import trio

from ipfsreg.testing.delay_proxy import open_delay_proxy

RTT_S = 0.08


async def echo(stream: trio.SocketStream) -> None:
    while piece := await stream.receive_some():
        await stream.send_all(piece)
    await stream.send_eof()


@pytest.fixture
async def target(nursery: trio.Nursery) -> tuple[str, int]:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    nursery.start_soon(trio.serve_listeners, echo, listeners)
    address: tuple[str, int] = listeners[0].socket.getsockname()
    return address


async def receive_all(stream: trio.SocketStream) -> bytes:
    received = b""
    while piece := await stream.receive_some():
        received += piece
    return received


async def test_a_byte_takes_a_round_trip_and_the_first_one_a_handshake_more(target: tuple[str, int]) -> None:
    async with open_delay_proxy(target, rtt_s=RTT_S) as proxy:
        assert RTT_S <= proxy.measured_rtt_s < 5 * RTT_S
        began = trio.current_time()
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            await stream.send_all(b"x")
            assert await stream.receive_some(1) == b"x"
            assert trio.current_time() - began >= 2 * RTT_S
            began = trio.current_time()
            await stream.send_all(b"y")
            assert await stream.receive_some(1) == b"y"
            assert trio.current_time() - began >= RTT_S


async def test_all_bytes_arrive_in_order_and_so_does_the_end(target: tuple[str, int]) -> None:
    sent = bytes(range(256)) * 4096
    async with (
        open_delay_proxy(target, rtt_s=0.01) as proxy,
        await trio.open_tcp_stream(*proxy.address) as stream,
        trio.open_nursery() as nursery,
    ):

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()

        nursery.start_soon(send)
        assert await receive_all(stream) == sent


async def test_no_more_passes_than_the_width_allows(target: tuple[str, int]) -> None:
    sent = bytes(200_000)
    async with (
        open_delay_proxy(target, rtt_s=0.01, bytes_per_s=400_000) as proxy,
        await trio.open_tcp_stream(*proxy.address) as stream,
    ):
        began = trio.current_time()
        await stream.send_all(sent)
        await stream.send_eof()
        assert len(await receive_all(stream)) == len(sent)
        assert trio.current_time() - began >= 0.5


async def test_who_is_not_there_is_a_connection_that_ends() -> None:
    async with (
        open_delay_proxy(("127.0.0.1", 1), rtt_s=0.01) as proxy,
        await trio.open_tcp_stream(*proxy.address) as stream,
    ):
        with trio.fail_after(5):
            assert await stream.receive_some() == b""

"""A TCP path of a given delay and width between two ends on one machine.

    async with open_delay_proxy(("127.0.0.1", port), rtt_s=0.05) as proxy:
        stream = await trio.open_tcp_stream(*proxy.address)

    with delay_proxy_process(("127.0.0.1", port), rtt_s=0.05) as proxy:      # a process of its own, for benchmarks
        print(proxy.address, proxy.measured_rtt_s)

The kernel need not have netem: every piece of bytes is kept for half a round trip and then released, each way, through
a pipe that carries no more than a given rate and holds no more than a given number of bytes. A connection is opened
the way a far one is: the other end sees it one and a half round trips after the SYN, which is when the handshake would
have been over there. What a proxy cannot show is loss and TCP's slow start; `namespaces` has the loss.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import trio

PIPE_BYTES = 64 * 1024 * 1024
"""On their way in one direction at a time: above what the rates and delays we measure at can fill."""

_PIECE_BYTES = 256 * 1024
_PINGS = 9

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class DelayProxy:
    """A path that is open."""

    address: Address
    """Where to connect instead of to the far end."""
    rtt_s: float
    """What was asked for."""
    measured_rtt_s: float
    """Median round trip of a byte through such a path, measured when it was opened."""


class _Pipe:
    """One direction: bytes in now, bytes out later, in order."""

    def __init__(self, delay_s: float, bytes_per_s: float | None, opens_at: float) -> None:
        self._delay_s = delay_s
        self._bytes_per_s = bytes_per_s
        self._free_at = opens_at
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._changed = trio.Event()

    def _tell(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def fill(self, source: trio.SocketStream) -> None:
        """Take in what *source* sends until it ends; a connection that broke ends too."""
        ended = False
        while not ended:
            while self._size > PIPE_BYTES:
                await self._changed.wait()
            try:
                piece = await source.receive_some(_PIECE_BYTES)
            except trio.BrokenResourceError:
                piece = b""
            ended = not piece
            due = max(trio.current_time() + self._delay_s, self._free_at)
            if self._bytes_per_s is not None:
                due += len(piece) / self._bytes_per_s
                self._free_at = due
            self._pieces.append((due, bytes(piece)))
            self._size += len(piece)
            self._tell()

    async def empty(self, sink: trio.SocketStream) -> None:
        """Give to *sink* what is due, until the end or until it takes no more."""
        try:
            while True:
                while not self._pieces:
                    await self._changed.wait()
                due, piece = self._pieces.popleft()
                await trio.sleep_until(due)
                if not piece:
                    await sink.send_eof()
                    return
                await sink.send_all(piece)
                self._size -= len(piece)
                self._tell()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await sink.aclose()


async def _carry(near: trio.SocketStream, target: Address, delay_s: float, bytes_per_s: float | None) -> None:
    """Carry one connection until both sides have ended."""
    opens_at = trio.current_time() + 3 * delay_s
    forth, back = _Pipe(delay_s, bytes_per_s, opens_at), _Pipe(delay_s, bytes_per_s, 0.0)
    async with near, trio.open_nursery() as nursery:
        nursery.start_soon(forth.fill, near)
        await trio.sleep_until(opens_at)
        try:
            far = await trio.open_tcp_stream(*target)
        except OSError:
            nursery.cancel_scope.cancel()
            return
        async with far, trio.open_nursery() as both:
            both.start_soon(forth.empty, far)
            both.start_soon(back.fill, far)
            both.start_soon(back.empty, near)


async def _measure(rtt_s: float, bytes_per_s: float | None) -> float:
    """The median round trip of a byte over such a path to an end that answers at once."""

    async def echo(stream: trio.SocketStream) -> None:
        while piece := await stream.receive_some():
            await stream.send_all(piece)

    async with trio.open_nursery() as nursery:
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        nursery.start_soon(trio.serve_listeners, echo, [listener])
        target = listener.socket.getsockname()[:2]
        address = await _listen(nursery, target, rtt_s, bytes_per_s, "127.0.0.1", 0)
        samples = []
        async with await trio.open_tcp_stream(*address) as stream:
            for _ in range(_PINGS):
                began = trio.current_time()
                await stream.send_all(b".")
                await stream.receive_some(1)
                samples.append(trio.current_time() - began)
        nursery.cancel_scope.cancel()
    return statistics.median(samples[1:])


async def _listen(
    nursery: trio.Nursery, target: Address, rtt_s: float, bytes_per_s: float | None, host: str, port: int
) -> Address:
    listeners = await trio.open_tcp_listeners(port, host=host)
    carry = partial(_carry, target=target, delay_s=rtt_s / 2, bytes_per_s=bytes_per_s)
    nursery.start_soon(trio.serve_listeners, carry, listeners)
    address: Address = listeners[0].socket.getsockname()[:2]
    return address


@asynccontextmanager
async def open_delay_proxy(
    target: Address, *, rtt_s: float, bytes_per_s: float | None = None, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[DelayProxy]:
    """A path to *target* while the block lasts; its connections break when it ends. *bytes_per_s*: each way."""
    measured = await _measure(rtt_s, bytes_per_s)
    async with trio.open_nursery() as nursery:
        address = await _listen(nursery, target, rtt_s, bytes_per_s, host, port)
        yield DelayProxy(address, rtt_s, measured)
        nursery.cancel_scope.cancel()


@contextmanager
def delay_proxy_process(
    target: Address, *, rtt_s: float, bytes_per_s: float | None = None, host: str = "127.0.0.1", port: int = 0
) -> Iterator[DelayProxy]:
    """Like `open_delay_proxy`, in a process of its own, so that it takes no time from the ends that are measured."""
    command = [sys.executable, "-m", "ipfsreg.testing.delay_proxy", *target, rtt_s, bytes_per_s or 0, host, port]
    with subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            facts = json.loads(process.stdout.readline())
            yield DelayProxy((facts["host"], facts["port"]), rtt_s, facts["rtt_s"])
        finally:
            process.terminate()


async def _main(options: argparse.Namespace) -> None:
    target = (options.target_host, options.target_port)
    rate = options.bytes_per_s or None
    async with open_delay_proxy(
        target, rtt_s=options.rtt_s, bytes_per_s=rate, host=options.host, port=options.port
    ) as proxy:
        host, port = proxy.address
        print(json.dumps({"host": host, "port": port, "rtt_s": proxy.measured_rtt_s}), flush=True)
        await trio.sleep_forever()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("target_host")
    parser.add_argument("target_port", type=int)
    parser.add_argument("rtt_s", type=float)
    parser.add_argument("bytes_per_s", type=float, help="0: as much as goes")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    trio.run(_main, _parse())

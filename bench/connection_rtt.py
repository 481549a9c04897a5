"""What one stream carries over a long round trip, beside what its window allows.

    .venv/bin/python bench/connection_rtt.py [--rtt-ms 50] [--seconds 6]

Two ends in one process, a delay proxy in another. For each cap on the window of a stream: the rate that cap allows
(cap / measured round trip), the rate reached once the window has grown, and how long it took to grow. The window begins
at 256 KiB.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import trio

from ipfsreg.p2p.connection import ConnectionLimits, secure
from ipfsreg.p2p.identity import Identity
from ipfsreg.testing.delay_proxy import delay_proxy_process

MIB = 1 << 20
SINK = "/sink/1.0.0"


async def measure(rtt_s: float, window_mib: int, seconds: float) -> None:
    """Send for *seconds*; print the rate of each half-second from when it stays within a tenth of the last."""
    limits = replace(ConnectionLimits(), max_stream_window_bytes=window_mib * MIB)
    arrived: list[tuple[float, int]] = []
    async with trio.open_nursery() as nursery:

        async def serve(tcp: trio.SocketStream) -> None:
            connection = await secure(tcp, identity=Identity.generate(), psk=None, dialer=False, limits=limits)
            nursery.start_soon(connection.run)
            stream = await connection.accept_stream({SINK})
            buffer, total = bytearray(MIB), 0
            while count := await stream.receive_into(buffer):
                total += count
                arrived.append((time.perf_counter(), total))

        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        with delay_proxy_process(("127.0.0.1", listeners[0].socket.getsockname()[1]), rtt_s=rtt_s) as proxy:
            tcp = await trio.open_tcp_stream(*proxy.address)
            connection = await secure(tcp, identity=Identity.generate(), psk=None, dialer=True, limits=limits)
            nursery.start_soon(connection.run)
            stream = await connection.open_stream([SINK], lazy=True)
            began, cpu = time.perf_counter(), time.process_time()
            with trio.move_on_after(seconds):
                while True:
                    await stream.send_all(bytes(MIB))
            busy = (time.process_time() - cpu) / (time.perf_counter() - began)
            allowed = window_mib * MIB / proxy.measured_rtt_s
            reached = rate_between(arrived, began + seconds / 2, began + seconds)
            grown = next(
                (at - began for at, _ in arrived if rate_between(arrived, at, at + 0.5) >= 0.9 * reached), seconds
            )
            print(
                f"window {window_mib:3} MiB, measured RTT {proxy.measured_rtt_s * 1000:.1f} ms:",
                f"allows {allowed / 1e6:6.1f} MB/s, reached {reached / 1e6:6.1f} MB/s = {reached / allowed:.2f}",
                f"after {grown:.1f} s; CPU {busy:.0%} of a core",
            )
            nursery.cancel_scope.cancel()


def rate_between(arrived: list[tuple[float, int]], start: float, end: float) -> float:
    """Bytes a second that arrived in between."""
    inside = [(at, total) for at, total in arrived if start <= at <= end]
    if len(inside) < 2 or inside[-1][0] <= inside[0][0]:
        return 0.0
    return (inside[-1][1] - inside[0][1]) / (inside[-1][0] - inside[0][0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", type=float, default=50)
    parser.add_argument("--seconds", type=float, default=6)
    options = parser.parse_args()
    for window_mib in (1, 4, 16):
        trio.run(measure, options.rtt_ms / 1000, window_mib, options.seconds)


if __name__ == "__main__":
    main()

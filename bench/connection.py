"""How fast a connection is, beside plain TCP and stock py-libp2p, in one run.

    python bench/connection.py                      # everything: 1 GiB a transfer, 3 rounds, some two minutes
    python bench/connection.py --mib 256 --rounds 1 --skip stock --skip kubo

Two processes over loopback. Each round runs every contestant once, so that what else the machine does hits them alike;
the table has medians, and ratios to the first line. CPU is user and system time of each process during the transfer.
The stock host moves less (`--stock-mib`), its figures are per MiB as well.

Kubo (two of them, left out where scripts/setup-interop has not run) takes the bytes by TCP and hands them on by TCP, as
its stream mounting does: two more loopback hops than ours, which plain TCP beside them shows to be cheap.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import trio

from ipfsreg.errors import ConnectionLost, NetworkError
from ipfsreg.p2p.connection import Connection, secure
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Stream
from ipfsreg.testing.daemons import free_port
from ipfsreg.testing.kubo_peer import KuboPeer, open_kubo_peer
from ipfsreg.testing.peer_process import INSTALLED

PSK = bytes(range(32))
SINK, ECHO = "/sink/1.0.0", "/echo/1.0.0"
BLOCK = bytes(1 << 20)
KINDS = ("tcp", "ours", "ours+psk", "stock", "kubo")
ANSWERING = ("tcp", "ours", "ours+psk", "stock")


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def resident_bytes() -> int:
    gc.collect()
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def say(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# ------------------------------------------------------------------ the process that answers


async def answer_tcp() -> None:
    async def sink(stream: trio.SocketStream) -> None:
        began, total = cpu_seconds(), 0
        while piece := await stream.receive_some(1 << 18):
            total += len(piece)
        await stream.send_all(total.to_bytes(8, "big"))
        say(cpu=cpu_seconds() - began)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    say(port=listeners[0].socket.getsockname()[1])
    await trio.serve_listeners(sink, listeners)


async def answer_ours(psk: bytes | None) -> None:
    identity = Identity.generate()

    async def answer(stream: Stream) -> None:
        try:
            await (sink if stream.protocol == SINK else echo)(stream)
            await stream.send_eof()
            await stream.aclose()
        except NetworkError:
            await stream.reset()

    async def sink(stream: Stream) -> None:
        began, total, buffer = cpu_seconds(), 0, bytearray(1 << 20)
        while count := await stream.receive_into(buffer):
            total += count
        await stream.send_all(total.to_bytes(8, "big"))
        say(cpu=cpu_seconds() - began)

    async def echo(stream: Stream) -> None:
        while piece := await stream.receive_some():
            await stream.send_all(piece)

    async def serve(tcp: trio.SocketStream) -> None:
        connection = await secure(tcp, identity=identity, psk=psk, dialer=False)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            try:
                while True:
                    nursery.start_soon(answer, await connection.accept_stream({SINK, ECHO}))
            except ConnectionLost:
                return

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1", backlog=1000)
    say(port=listeners[0].socket.getsockname()[1], peer=str(identity.peer_id))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch_memory)
        await trio.serve_listeners(serve, listeners)


async def watch_memory() -> None:
    """Each line on stdin asks what this process holds or has used."""
    async for question in trio.wrap_file(sys.stdin):
        if question == "rss\n":
            say(rss=resident_bytes())
        else:
            say(cpu=cpu_seconds())


def stock_host() -> Any:
    from libp2p import new_host
    from libp2p.crypto.ed25519 import create_new_key_pair
    from libp2p.crypto.x25519 import create_new_key_pair as create_static
    from libp2p.custom_types import TProtocol
    from libp2p.security.noise.transport import PROTOCOL_ID, Transport
    from libp2p.stream_muxer.yamux.yamux import Yamux

    logging.disable(logging.CRITICAL)
    keys = create_new_key_pair()
    return new_host(
        key_pair=keys,
        sec_opt={PROTOCOL_ID: Transport(libp2p_keypair=keys, noise_privkey=create_static().private_key)},
        muxer_opt={TProtocol("/yamux/1.0.0"): Yamux},
    )


async def answer_stock() -> None:
    import multiaddr

    async def sink(stream: Any) -> None:
        began, total = cpu_seconds(), 0
        size = int.from_bytes(await stream.read(8), "big")
        while total < size:
            total += len(await stream.read(65536))
        await stream.write(total.to_bytes(8, "big"))
        say(cpu=cpu_seconds() - began)
        await stream.close()

    async def echo(stream: Any) -> None:
        try:
            while piece := await stream.read(65536):
                await stream.write(piece)
        except Exception:  # whatever it calls the end of a stream
            await stream.close()

    host = stock_host()
    host.set_stream_handler(SINK, sink)
    host.set_stream_handler(ECHO, echo)
    async with host.run([multiaddr.Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        say(port=int(host.get_addrs()[0].value_for_protocol("tcp")), peer=str(host.get_id()))
        await trio.sleep_forever()


async def answer(kind: str) -> None:
    match kind:
        case "tcp":
            await answer_tcp()
        case "stock":
            await answer_stock()
        case _:
            await answer_ours(PSK if kind == "ours+psk" else None)


# ------------------------------------------------------------------ the process that asks


class Other:
    """The answering process."""

    def __init__(self, kind: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--answer", kind], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.facts = self.heard()

    def heard(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while True:
            line = self._process.stdout.readline()
            if line.startswith("{"):
                facts: dict[str, Any] = json.loads(line)
                return facts

    def ask(self, question: str) -> float:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        return float(self.heard()[question])

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


@asynccontextmanager
async def our_connection(other: Other, psk: bytes | None) -> AsyncIterator[Connection]:
    tcp = await trio.open_tcp_stream("127.0.0.1", other.facts["port"])
    connection = await secure(tcp, identity=Identity.generate(), psk=psk, dialer=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        yield connection
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stock_connection(other: Other) -> AsyncIterator[Callable[[str], Awaitable[Any]]]:
    import multiaddr
    from libp2p.peer.peerinfo import info_from_p2p_addr

    host = stock_host()
    address = f"/ip4/127.0.0.1/tcp/{other.facts['port']}/p2p/{other.facts['peer']}"
    peer = info_from_p2p_addr(multiaddr.Multiaddr(address))
    async with host.run([]):
        await host.connect(peer)
        yield lambda protocol: host.new_stream(peer.peer_id, [protocol])


async def transfer(kind: str, other: Other, mib: int) -> dict[str, float]:
    """Send *mib* MiB on one stream: MB/s, CPU ms per MiB of each side."""
    if kind == "tcp":
        tcp = await trio.open_tcp_stream("127.0.0.1", other.facts["port"])
        async with tcp:
            began, cpu = time.perf_counter(), cpu_seconds()
            for _ in range(mib):
                await tcp.send_all(BLOCK)
            await tcp.send_eof()
            await tcp.receive_some(8)
            elapsed, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    elif kind == "stock":
        async with stock_connection(other) as open_stream:
            stream = await open_stream(SINK)
            await stream.write((mib << 20).to_bytes(8, "big"))
            began, cpu = time.perf_counter(), cpu_seconds()
            for _ in range(mib):
                await stream.write(BLOCK)
            await stream.read(8)
            elapsed, cpu = time.perf_counter() - began, cpu_seconds() - cpu
    else:
        async with our_connection(other, PSK if kind == "ours+psk" else None) as connection:
            ours = await connection.open_stream([SINK], lazy=True)
            began, cpu = time.perf_counter(), cpu_seconds()
            for _ in range(mib):
                await ours.send_all(BLOCK)
            await ours.send_eof()
            assert int.from_bytes(await ours.receive_some(8), "big") == mib << 20
            elapsed, cpu = time.perf_counter() - began, cpu_seconds() - cpu
            await ours.aclose()
    theirs = other.heard()["cpu"]
    return {"MB/s": mib * 1.048576 / elapsed, "tx": cpu * 1000 / mib, "rx": theirs * 1000 / mib}


@asynccontextmanager
async def kubo_pair() -> AsyncIterator[tuple[KuboPeer, KuboPeer]]:
    with tempfile.TemporaryDirectory() as folder:
        async with (
            open_kubo_peer(Path(folder) / "a", name="a") as a,
            open_kubo_peer(Path(folder) / "b", name="b") as b,
        ):
            await a.dial(b.info)
            yield a, b


async def transfer_by_kubo(mib: int) -> dict[str, float]:
    """The same from one Kubo to another: TCP into the one, a libp2p stream between them, TCP out of the other."""
    done: list[float] = []

    async def sink(stream: trio.SocketStream) -> None:
        buffer = bytearray(1 << 20)
        left = mib << 20
        while left and (count := await stream.socket.recv_into(buffer)):
            left -= count
        done.append(time.perf_counter())
        await stream.send_all(b"done")

    async with kubo_pair() as (a, b), trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, sink, listeners)
        port = free_port()
        await b.listen("sink", listeners[0].socket.getsockname()[1])
        await a.forward("sink", port, b.peer)
        processes = [psutil.Process(peer.process.pid) for peer in (a, b)]
        async with await trio.open_tcp_stream("127.0.0.1", port) as tcp:
            before = [sum(process.cpu_times()[:2]) for process in processes]
            began = time.perf_counter()
            for _ in range(mib):
                await tcp.send_all(BLOCK)
            await tcp.receive_some(8)
            elapsed = done[0] - began
            after = [sum(process.cpu_times()[:2]) for process in processes]
        nursery.cancel_scope.cancel()
    tx, rx = (1000 * (end - start) / mib for start, end in zip(before, after, strict=True))
    return {"MB/s": mib * 1.048576 / elapsed, "tx": tx, "rx": rx}


async def open_and_close(kind: str, other: Other, count: int) -> float:
    """Streams opened, echoed and closed one after another: milliseconds each."""
    message = b"x" * 100
    if kind == "stock":
        async with stock_connection(other) as open_stream:
            began = time.perf_counter()
            for _ in range(count):
                stream = await open_stream(ECHO)
                await stream.write(message)
                assert await stream.read(100) == message
                await stream.close()
            return (time.perf_counter() - began) * 1000 / count
    async with our_connection(other, None) as connection:
        began = time.perf_counter()
        for _ in range(count):
            ours = await connection.open_stream([ECHO], lazy=True)
            await ours.send_all(message)
            assert await ours.receive_some() == message
            await ours.aclose()
        return (time.perf_counter() - began) * 1000 / count


async def idle(other: Other, count: int) -> dict[str, float]:
    """*count* connections that do nothing: KiB each on both sides, CPU ms in two idle seconds of both."""
    identity = Identity.generate()
    # The first brings what all share.
    async with our_connection(other, None), trio.open_nursery() as nursery:
        await trio.sleep(0.1)
        ours, theirs = resident_bytes(), other.ask("rss")
        for _ in range(count):
            tcp = await trio.open_tcp_stream("127.0.0.1", other.facts["port"])
            nursery.start_soon((await secure(tcp, identity=identity, psk=None, dialer=True)).run)
        await trio.sleep(0.2)
        result = {
            "dialer": (resident_bytes() - ours) / count / 1024,
            "listener": (other.ask("rss") - theirs) / count / 1024,
        }
        cpu, their_cpu = cpu_seconds(), other.ask("cpu")
        await trio.sleep(2)
        result["idle_ms"] = (cpu_seconds() - cpu) * 1000
        result["their_idle_ms"] = (other.ask("cpu") - their_cpu) * 1000
        nursery.cancel_scope.cancel()
    return result


def with_other(kind: str, ask: Callable[[Other], Awaitable[Any]]) -> Any:
    other = Other(kind)
    try:
        return trio.run(ask, other)
    finally:
        other.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answer", choices=ANSWERING, help=argparse.SUPPRESS)
    parser.add_argument("--mib", type=int, default=1024, help="per transfer (1 to 8192)")
    parser.add_argument("--stock-mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--idle", type=int, default=500)
    parser.add_argument("--skip", action="append", default=[], choices=[*KINDS, "streams", "idle"])
    options = parser.parse_args()
    if options.answer:
        trio.run(answer, options.answer)
        return
    mib = max(1, min(options.mib, 8192))

    kinds = [kind for kind in KINDS if kind not in options.skip]
    if "kubo" in kinds and not (INSTALLED / "kubo").exists():
        print("without Kubo: scripts/setup-interop installs it")
        kinds.remove("kubo")
    results: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            if kind == "kubo":
                results[kind].append(trio.run(transfer_by_kubo, mib))
            else:
                size = min(mib, options.stock_mib) if kind == "stock" else mib
                results[kind].append(with_other(kind, partial(transfer, kind, mib=size)))
    print(f"one stream, {mib} MiB, medians of {options.rounds}")
    print(f"{'':10} {'MB/s':>8} {'ratio':>7} {'tx ms/MiB':>10} {'rx ms/MiB':>10}")
    first = 0.0
    for kind in kinds:
        speed, tx, rx = (statistics.median(run[key] for run in results[kind]) for key in ("MB/s", "tx", "rx"))
        first = first or speed
        print(f"{kind:10} {speed:8.0f} {speed / first:7.2f} {tx:10.2f} {rx:10.2f}")
    for one, other in (("ours", "stock"), ("ours", "kubo"), ("ours+psk", "ours")):
        if one in kinds and other in kinds:
            pairs = zip(results[one], results[other], strict=True)
            print(f"{one} / {other}, round by round: {statistics.median(a['MB/s'] / b['MB/s'] for a, b in pairs):.2f}")

    if "streams" not in options.skip:
        print(f"\n{options.streams} streams opened, echoed, closed one after another, ms each")
        for kind in ("ours", "stock"):
            if kind in kinds:
                each = statistics.median(
                    with_other(kind, partial(open_and_close, kind, count=options.streams))
                    for _ in range(options.rounds)
                )
                print(f"{kind:10} {each:8.3f}")

    if "idle" not in options.skip:
        result = with_other("ours", lambda other: idle(other, options.idle))
        print(f"\n{options.idle} idle connections:")
        print(f"KiB each: {result['dialer']:.1f} dialling, {result['listener']:.1f} listening")
        print(f"CPU in two seconds: {result['idle_ms']:.1f} and {result['their_idle_ms']:.1f} ms")


if __name__ == "__main__":
    main()

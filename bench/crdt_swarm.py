"""How fast names agree: replicas on disks of their own, connected on loopback by the connections that nodes have.

    .venv/bin/python bench/crdt_swarm.py agree [--nodes 5] [--writes 4000] [--writers 64]
    .venv/bin/python bench/crdt_swarm.py lag [--nodes 16] [--rate 20] [--seconds 30]

`agree`: many tasks at every node write tags, durable and signed, as fast as it goes; a write counts when every node has
merged it. `lag`: single tags are written at a steady rate, each at the next node; the time from the acknowledgement
to the moment at which each other node answers with the new value. All replicas share one process and so one core; a
node of its own has more. Prints the share of that core, and how long the process stood still at the most.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.replica import Replica
from ipfsreg.p2p.host import Host
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.tcp_replica import open_replica_on_tcp

VALUE = bytes(range(120))
"""About what a tag record takes."""

TICK_S = 0.01


@dataclass(frozen=True)
class Member:
    host: Host
    replica: Replica


@asynccontextmanager
async def open_member(directory: Path) -> AsyncIterator[Member]:
    async with open_replica_on_tcp(directory) as (host, replica):
        yield Member(host, replica)


@asynccontextmanager
async def open_swarm(nodes: int, directory: Path) -> AsyncIterator[list[Member]]:
    """All of them, each connected to every other, their meshes built."""
    async with AsyncExitStack() as stack:
        members: list[Member] = []
        for number in range(nodes):
            member = await stack.enter_async_context(open_member(directory / f"{number}"))
            for other in members:
                await member.host.connect(PeerInfo(other.host.peer_id, tuple(other.host.listen_addrs())))
            members.append(member)
        await trio.sleep(5)
        yield members


class Stalls:
    """How long the process stood still at the most, and what of a core it took."""

    def __init__(self) -> None:
        self.longest_s = 0.0
        self._began, self._cpu = time.perf_counter(), time.process_time()

    async def watch(self) -> None:
        while True:
            before = time.perf_counter()
            await trio.sleep(TICK_S)
            self.longest_s = max(self.longest_s, time.perf_counter() - before - TICK_S)

    def __str__(self) -> str:
        share = (time.process_time() - self._cpu) / (time.perf_counter() - self._began)
        return f"{share:.0%} of a core, stood still for {self.longest_s * 1e3:.0f} ms at the most"


async def print_agree(members: list[Member], writes: int, writers: int) -> None:
    async def write(member: Member, numbers: list[int]) -> None:
        while numbers:
            number = numbers.pop()
            await member.replica.commit([Put(f"/r/many/_t/{number:06}", VALUE)])

    left = [list(range(place, writes, len(members))) for place in range(len(members))]
    stalls = Stalls()
    began = time.perf_counter()
    async with trio.open_nursery() as watching:
        watching.start_soon(stalls.watch)
        async with trio.open_nursery() as nursery:
            for member, numbers in zip(members, left, strict=True):
                for _ in range(writers):
                    nursery.start_soon(write, member, numbers)
        written_s = time.perf_counter() - began
        while any(member.replica.status().names < writes for member in members):
            await trio.sleep(TICK_S)
        taken_s = time.perf_counter() - began
        watching.cancel_scope.cancel()
    height = max(member.replica.status().height for member in members)
    print(
        f"{writes} tag writes at {len(members)} nodes, {writers} tasks each: all durable after {written_s:.2f} s, all "
        f"merged by all after {taken_s:.2f} s: {writes / taken_s:,.0f}/s agreed; DAG of height {height}; {stalls}"
    )


async def print_lag(members: list[Member], rate: float, seconds: float) -> None:
    written: dict[str, float] = {}
    lags: list[float] = []
    missing: set[tuple[int, str]] = set()
    all_here = trio.Event()

    async def listen(place: int, member: Member) -> None:
        async with member.replica.changes(["/r/"]) as changes:
            async for change in changes:
                if (place, change.key) in missing:
                    missing.discard((place, change.key))
                    # Before the acknowledgement it is 0: another node was faster than the writer's own task.
                    lags.append(max(0.0, time.perf_counter() - written.get(change.key, float("inf"))))
                    if not missing:
                        all_here.set()

    stalls = Stalls()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stalls.watch)
        for place, member in enumerate(members):
            nursery.start_soon(listen, place, member)
        await trio.sleep(0.1)
        began = trio.current_time()
        for number in range(int(rate * seconds)):
            await trio.sleep_until(began + number / rate)
            place, key = number % len(members), f"/r/lag/_t/{number:06}"
            missing.update((other, key) for other in range(len(members)) if other != place)
            await members[place].replica.commit([Put(key, VALUE)])
            written[key] = time.perf_counter()
        with trio.move_on_after(60):
            while missing:
                all_here = trio.Event()
                await all_here.wait()
        nursery.cancel_scope.cancel()
    lags.sort()
    quantiles = " / ".join(f"{lags[min(int(len(lags) * share), len(lags) - 1)] * 1e3:.0f}" for share in (0.5, 0.99, 1))
    print(
        f"{len(written)} tags at {rate:g}/s over {len(members)} nodes: lag p50 / p99 / max {quantiles} ms of "
        f"{len(lags)} arrivals, {len(missing)} missing; {stalls}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["agree", "lag"])
    parser.add_argument("--nodes", type=int, default=None)
    parser.add_argument("--writes", type=int, default=4000)
    parser.add_argument("--writers", type=int, default=64, help="tasks at each node")
    parser.add_argument("--rate", type=float, default=20.0, help="writes a second")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--directory", type=Path, default=None, help="on the disk to be measured")
    options = parser.parse_args()
    nodes = options.nodes or (5 if options.what == "agree" else 16)
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        async with open_swarm(nodes, Path(directory)) as members:
            if options.what == "agree":
                await print_agree(members, options.writes, options.writers)
            else:
                await print_lag(members, options.rate, options.seconds)


if __name__ == "__main__":
    trio.run(main)

"""How fast blocks move over bitswap, beside what the cipher and the hash alone would allow, in one run.

    python bench/bitswap.py                       # 1 GiB in 1 MiB blocks over loopback, 3 rounds, about half a minute
    python bench/bitswap.py --mib 256 --block-kib 256
    python bench/bitswap.py --small 20000         # many small blocks instead: 200 bytes each
    python bench/bitswap.py --crowd               # a flash crowd in simulated time: no sockets, figures without noise

Two processes, each with the real host and the real service; the giver's blocks are slices of one random buffer, the
taker verifies every block and throws it away. CPU is user and system time of each process during the transfer. The
"ideal" is ChaCha20-Poly1305 and sha256 one after the other on one core, measured in the same run.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import trio
from ideal import measure_ideal

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.errors import BlockNotFound
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.host import NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.block_crowd import MIB, flash_crowd

LOOPBACK = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",))


class SlicedStore:
    """Keeps `Blockstore` for blocks that are slices of one buffer; takes no others."""

    def __init__(self, count: int, size: int) -> None:
        step = 4096 if size >= 65536 else 64
        self._buffer = memoryview(random.Random(0).randbytes(size + count * step))
        self.blocks = [Block.of(self._buffer[index * step : index * step + size]) for index in range(count)]
        self._by_hash = {block.cid.multihash: block for block in self.blocks}

    def has(self, cid: Cid) -> bool:
        return cid.multihash in self._by_hash

    def size_of(self, cid: Cid) -> int | None:
        block = self._by_hash.get(cid.multihash)
        return len(block.data) if block else None

    async def get(self, cid: Cid) -> Block:
        await trio.lowlevel.checkpoint()
        block = self._by_hash.get(cid.multihash)
        if block is None:
            raise BlockNotFound(str(cid))
        return Block(cid, block.data)

    async def put(self, block: Block) -> None:
        raise NotImplementedError

    async def put_many(self, blocks: Sequence[Block]) -> None:
        raise NotImplementedError

    async def delete(self, cids: Iterable[Cid]) -> None:
        raise NotImplementedError

    @asynccontextmanager
    async def arrivals(self) -> AsyncIterator[AsyncIterator[frozenset[bytes]]]:
        async def never() -> AsyncIterator[frozenset[bytes]]:
            await trio.sleep_forever()
            yield frozenset()

        yield never()


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextmanager
def profiled(wanted: bool) -> Iterator[None]:
    profile = cProfile.Profile()
    if wanted:
        profile.enable()
    yield
    if wanted:
        profile.disable()
        pstats.Stats(profile, stream=sys.stderr).sort_stats("tottime").print_stats(25)


async def give(args: argparse.Namespace) -> None:
    store = SlicedStore(args.blocks, args.size)
    async with open_network(Identity.generate(), LOOPBACK) as network, open_bitswap(network, store):
        print(json.dumps({"peer": str(network.peer_id), "addrs": network.listen_addrs()}), flush=True)
        began = cpu_seconds()
        while await trio.to_thread.run_sync(sys.stdin.readline):
            now = cpu_seconds()
            print(json.dumps({"cpu": now - began}), flush=True)
            began = cpu_seconds()


async def take(args: argparse.Namespace) -> None:
    giver = subprocess.Popen(
        [sys.executable, __file__, "--role", "give", "--blocks", str(args.blocks), "--size", str(args.size)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert giver.stdin is not None
    assert giver.stdout is not None

    def ask_giver() -> Any:
        giver.stdin.write("\n")
        giver.stdin.flush()
        return json.loads(giver.stdout.readline())

    facts = json.loads(giver.stdout.readline())
    cids = [block.cid for block in SlicedStore(args.blocks, args.size).blocks]
    provider = PeerInfo(PeerId.parse(facts["peer"]), tuple(facts["addrs"]))
    rows = []
    try:
        empty = SlicedStore(0, args.size)
        async with open_network(Identity.generate(), LOOPBACK) as network, open_bitswap(network, empty) as bitswap:
            await network.connect(provider)
            await trio.sleep(0.2)
            for _ in range(args.rounds):
                ask_giver()
                cpu, began = cpu_seconds(), time.perf_counter()
                with profiled(args.profile), bitswap.session(None, first=[provider], block_bytes=args.size) as wanted:
                    wanted.want(cids)
                    async for _arrival in wanted:
                        pass
                took = time.perf_counter() - began
                rows.append((took, ask_giver()["cpu"], cpu_seconds() - cpu))
    finally:
        giver.stdin.close()
        giver.wait()
    report(args, rows)


def report(args: argparse.Namespace, rows: list[tuple[float, float, float]]) -> None:
    took, giver, taker = (statistics.median(column) for column in zip(*rows, strict=True))
    size = args.blocks * args.size
    ideal = measure_ideal()
    print(f"{args.blocks} blocks of {args.size} bytes, {args.rounds} rounds, {os.cpu_count()} cores, medians")
    print(f"  {size / took / 1e6:8.1f} MB/s  {args.blocks / took:8.0f} blocks/s")
    print(f"  CPU ms/MiB: giver {giver * 1000 / (size / MIB):.2f}, taker {taker * 1000 / (size / MIB):.2f}")
    print(f"  on one core: {ideal}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"  {size / took / ideal.in_turn:.2f} of that; peak RSS of the taker {peak} MiB")


def crowd() -> None:
    print("flash crowd, 50 blocks of 1 MiB, links of 50 Mbit/s: last node by the time one link needs; holder; twice")
    for nodes in (2, 4, 8, 16, 32):
        outcomes = [flash_crowd(nodes, seed=seed) for seed in range(3)]
        last = statistics.median(one.last_s / one.ideal_s for one in outcomes)
        holder = statistics.median(one.sent["node 0"] / (50 * MIB) for one in outcomes)
        twice = statistics.median(one.duplicates for one in outcomes)
        print(f"  {nodes:3} nodes: {last:5.2f} x   holder sends {holder:4.2f} x   duplicates {twice:.1%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--block-kib", type=int, default=1024)
    parser.add_argument("--small", type=int, default=0, help="this many blocks of 200 bytes instead")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="profile the taker")
    parser.add_argument("--crowd", action="store_true")
    parser.add_argument("--role", default="take", help=argparse.SUPPRESS)
    parser.add_argument("--blocks", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--size", type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.crowd:
        crowd()
        return
    if not args.size:
        args.size = 200 if args.small else args.block_kib * 1024
        args.blocks = args.small or args.mib * MIB // args.size
    trio.run(give if args.role == "give" else take, args)


if __name__ == "__main__":
    main()

"""Gossip over real connections on loopback: delay and loss.

    python bench/gossip.py [--nodes 16] [--rate 200] [--seconds 60] [--size 200] [--memory]

All nodes live in this one process and share its one core, so the delay printed is an upper bound; the share of the
core that was used is printed beside it. Every node is connected to every other; messages are published by all in
turn, at an even pace. `--memory` takes the network in memory instead of sockets, to tell one's cost from the other's.
"""

from __future__ import annotations

import argparse
import resource
import struct
import time
from contextlib import AsyncExitStack

import trio

from ipfsreg.p2p.host import NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Network, PeerInfo
from ipfsreg.p2p.limits import Limits
from ipfsreg.pubsub.interface import MessagesDropped, Topic, TopicMessage
from ipfsreg.pubsub.service import GossipService, open_pubsub
from ipfsreg.testing.network import MemorySwarm

TOPIC = "bench"


async def open_networks(stack: AsyncExitStack, count: int, *, memory: bool) -> list[Network]:
    if memory:
        swarm = MemorySwarm()
        return [swarm.endpoint(f"node {number}") for number in range(count)]
    settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), limits=Limits())
    return [await stack.enter_async_context(open_network(Identity.generate(), settings)) for _ in range(count)]


async def main(args: argparse.Namespace) -> None:
    delays: list[float] = []
    counts = [0] * args.nodes
    dropped = 0

    async def read(number: int, topic: Topic) -> None:
        nonlocal dropped
        async for event in topic.events():
            if isinstance(event, TopicMessage):
                (sent_at,) = struct.unpack_from("d", event.data)
                if sent_at:
                    counts[number] += 1
                    delays.append(time.perf_counter() - sent_at)
            elif isinstance(event, MessagesDropped):
                dropped += event.count

    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        networks = await open_networks(stack, args.nodes, memory=args.memory)
        services: list[GossipService] = []
        topics: list[Topic] = []
        for number, network in enumerate(networks):
            services.append(await stack.enter_async_context(open_pubsub(network)))
            topics.append(await stack.enter_async_context(services[-1].join(TOPIC)))
            nursery.start_soon(read, number, topics[-1])
        for number, network in enumerate(networks):
            for other in networks[:number]:
                await network.connect(PeerInfo(other.peer_id, tuple(other.listen_addrs())))
        while any(len(topic.peers()) < args.nodes - 1 for topic in topics):
            await trio.sleep(0.1)
        await trio.sleep(3)
        cpu, started = time.process_time(), time.perf_counter()
        total = int(args.rate * args.seconds)
        for number in range(total):
            await trio.sleep(max(0.0, started + number / args.rate - time.perf_counter()))
            data = struct.pack("d", time.perf_counter()) + bytes(args.size - 8)
            await topics[number % args.nodes].publish(data)
        took = time.perf_counter() - started
        cpu = time.process_time() - cpu
        await trio.sleep(5)
        expected = [total - len(range(number, total, args.nodes)) for number in range(args.nodes)]
        lost = sum(expected) - sum(counts)
        delays.sort()
        stats = [service.stats for service in services]
        print(f"{args.nodes} nodes, {'memory' if args.memory else 'loopback'}, {args.size} B, {total} messages")
        print(f"published      {total / took:8.1f} /s of {args.rate} asked for")
        print(f"lost           {lost} of {sum(expected)} deliveries ({dropped} to slow readers)")
        print(f"delay p50      {delays[len(delays) // 2] * 1000:8.1f} ms")
        print(f"delay p99      {delays[int(len(delays) * 0.99)] * 1000:8.1f} ms")
        print(f"delay max      {delays[-1] * 1000:8.1f} ms")
        print(f"duplicates     {sum(each.duplicates for each in stats) / max(1, sum(counts)):8.2f} per delivery")
        print(
            f"by IWANT       {sum(each.given for each in stats)}; broken promises "
            f"{sum(each.broken_promises for each in stats)}"
        )
        print(f"core used      {cpu / took:8.0%}; {cpu / sum(counts) * 1e6:.0f} us per delivery")
        print(f"peak RSS       {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--memory", action="store_true")
    trio.run(main, parser.parse_args())

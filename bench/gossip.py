"""Gossip over real connections on loopback: delay, loss and cost.

    python bench/gossip.py [--nodes 16] [--rate 200] [--seconds 60] [--size 200] [--memory]
    python bench/gossip.py --replace 0.3         # a third of the way in, so many nodes die and new ones come
    python bench/gossip.py --loss 0.02           # so many packets are lost on the way; needs root
    python bench/gossip.py --rtt 0.05            # every connection through a delay proxy, seconds

All nodes live in this one process and share its one core, so the delay printed is an upper bound; the share of the
core that was used is printed beside it. Every node is connected to every other; messages are published by all in
turn, at an even pace. `--memory` takes the network in memory instead of sockets, to tell one's cost from the other's.

Lost is what a node that was there from start to end did not hear of what anybody published, the dead included; what
died with its author, before a single peer had it, is counted apart. The mesh is whole when every node has `d_low`
living peers in it and no dead one.
"""

from __future__ import annotations

import argparse
import resource
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, field

import trio

from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import Network, PeerInfo
from ipfsreg.p2p.limits import Limits
from ipfsreg.pubsub.interface import MessagesDropped, TopicMessage
from ipfsreg.pubsub.messages import Message
from ipfsreg.pubsub.parameters import RouterSettings
from ipfsreg.pubsub.service import GossipService, JoinedTopic, open_pubsub
from ipfsreg.testing.delay_proxy import delay_proxy_process
from ipfsreg.testing.namespaces import open_lan
from ipfsreg.testing.network import MemorySwarm

TOPIC = "bench"
HEAD = struct.Struct("Id")
"""At the front of each message: its number and when it was published."""

ROUTER = RouterSettings()
SETTLE_S = 3.0
"""Before the first message, and after the last."""


@dataclass(eq=False)
class Node:
    """One node, and what it heard."""

    network: Network
    service: GossipService
    topic: JoinedTopic
    addrs: tuple[str, ...]
    """Where others reach it: its own addresses, or that of the proxy in front."""
    scope: trio.CancelScope
    heard: set[int] = field(default_factory=set)
    delays: list[float] = field(default_factory=list)
    dropped: int = 0

    def mesh_is_whole(self, living: set[bytes]) -> bool:
        mesh = [peer.raw for peer in self.service.router.mesh(TOPIC)]
        return len(mesh) >= min(ROUTER.d_low, len(living) - 1) and living.issuperset(mesh)


class Bench:
    """All nodes, dead or alive."""

    def __init__(self, args: argparse.Namespace, nursery: trio.Nursery, proxies: ExitStack) -> None:
        self.args = args
        self.nodes: list[Node] = []
        self.authors: list[Node] = []
        """Of each message, by its number."""
        self.longest_stall_s = 0.0
        """For how long the process as a whole did not get on, by itself or for want of a processor."""
        self._nursery = nursery
        self._proxies = proxies
        self._memory = MemorySwarm()

    # ------------------------------------------------------------------- nodes

    async def add_nodes(self, count: int) -> list[Node]:
        """Nodes more, connected to everybody."""
        added: list[Node] = []

        async def add() -> None:
            added.append(await self._nursery.start(self._run_node))

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(add)
        async with trio.open_nursery() as nursery:
            for node in added:
                for other in self.living():
                    nursery.start_soon(node.network.connect, PeerInfo(other.network.peer_id, other.addrs))
                self.nodes.append(node)
        return added

    async def _run_node(self, *, task_status: trio.TaskStatus[Node]) -> None:
        with trio.CancelScope() as scope:
            async with AsyncExitStack() as stack:
                network, addrs = await self._open_network(stack)
                service = await stack.enter_async_context(open_pubsub(network))
                topic = await stack.enter_async_context(service.join(TOPIC))
                node = Node(network, service, topic, addrs, scope)
                task_status.started(node)
                async for event in topic.events():
                    if isinstance(event, MessagesDropped):
                        node.dropped += event.count
                    elif isinstance(event, TopicMessage):
                        number, sent_at = HEAD.unpack_from(event.data)
                        node.heard.add(number)
                        node.delays.append(time.perf_counter() - sent_at)

    async def _open_network(self, stack: AsyncExitStack) -> tuple[Network, tuple[str, ...]]:
        if self.args.memory:
            endpoint = self._memory.endpoint(f"node {len(self.nodes)} {time.perf_counter()}")
            return endpoint, tuple(endpoint.listen_addrs())
        settings = NetworkSettings(listen_addrs=("/ip4/127.0.0.1/tcp/0",), limits=Limits())
        host = await stack.enter_async_context(open_network(Identity.generate(), settings))
        addrs = tuple(host.listen_addrs())
        if self.args.rtt:
            target = ("127.0.0.1", int(addrs[0].rpartition("/")[2]))
            path = delay_proxy_process(target, rtt_s=self.args.rtt)
            proxy = await trio.to_thread.run_sync(path.__enter__)
            self._proxies.push(path)
            addrs = (f"/ip4/127.0.0.1/tcp/{proxy.address[1]}",)
        return host, addrs

    def living(self) -> list[Node]:
        return [node for node in self.nodes if not node.scope.cancel_called]

    async def wait_whole(self, nodes: list[Node]) -> None:
        """Until the mesh of each of *nodes* is whole."""
        while True:
            living = {node.network.peer_id.raw for node in self.living()}
            if all(node.mesh_is_whole(living) for node in nodes):
                return
            await trio.sleep(0.02)

    async def wait_acquainted(self) -> None:
        """Until every living node knows that every other is in the topic."""
        while any(len(node.topic.peers()) < len(self.living()) - 1 for node in self.living()):
            await trio.sleep(0.1)

    async def replace(self, count: int) -> None:
        """Let *count* nodes die at once and as many come, and tell how long the mesh took."""
        for node in self.living()[:count]:
            node.scope.cancel()
        began = trio.current_time()
        staying = self.living()
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                await self.wait_whole(staying)
                print(
                    f"mesh whole     {trio.current_time() - began:8.2f} s after {count} nodes died, for those who stay"
                )

            nursery.start_soon(watch)
            added = await self.add_nodes(count)
            connected = trio.current_time()
            await self.wait_whole(added)
            print(f"               {trio.current_time() - connected:8.2f} s after {count} new ones connected, for them")

    # ---------------------------------------------------------------- messages

    async def publish(self, total: int) -> None:
        """Publish *total* messages at the pace asked for, by the living in turn."""
        started = time.perf_counter()
        for number in range(total):
            await trio.sleep(max(0.0, started + number / self.args.rate - time.perf_counter()))
            if number == total // 3 and self.args.replace:
                self._nursery.start_soon(self.replace, round(self.args.replace * self.args.nodes))
            living = self.living()
            node = living[number % len(living)]
            self.authors.append(node)
            await node.topic.publish(HEAD.pack(number, time.perf_counter()) + bytes(self.args.size - HEAD.size))
            node.heard.add(number)

    async def watch_for_stalls(self) -> None:
        while True:
            began = time.perf_counter()
            await trio.sleep(0.01)
            self.longest_stall_s = max(self.longest_stall_s, time.perf_counter() - began - 0.01)

    def bytes_sent(self) -> int:
        """Bytes on the wire so far, all protocols and headers above TCP."""
        hosts = [node.network for node in self.nodes if isinstance(node.network, Host)]
        return sum(peer.bytes_out for host in hosts for peer in host.status())

    def message_bytes(self) -> int:
        """The size of one message in the form it travels in."""
        author = self.nodes[0].network.peer_id.raw
        return len(Message(author, bytes(8), TOPIC, bytes(self.args.size), bytes(64)).encoded)


def report(bench: Bench, total: int, took: float, cpu: float, sent: int) -> Iterator[str]:
    args = bench.args
    delivered = sum(len(node.delays) for node in bench.nodes)
    stayed = bench.living()[: args.nodes - round(args.replace * args.nodes)]
    unheard = {
        number
        for number, author in enumerate(bench.authors)
        if author.scope.cancel_called and not any(number in node.heard for node in bench.nodes if node is not author)
    }
    lost = sum(total - len(node.heard | unheard) for node in stayed)
    # Who comes later is told as well what was said shortly before; that is no delay.
    delays = sorted(delay for node in stayed for delay in node.delays)
    stats = [node.service.stats for node in bench.nodes]
    where = "memory" if args.memory else f"loopback, {args.loss:.0%} loss, {args.rtt * 1000:.0f} ms RTT"
    yield f"{args.nodes} nodes, {where}, {args.size} B, {total} messages"
    yield f"published      {total / took:8.1f} /s of {args.rate} asked for"
    dropped = sum(node.dropped for node in stayed)
    yield f"lost           {lost} of {total * len(stayed)} ({dropped} to slow readers), {len(stayed)} nodes stayed"
    if args.replace:
        yield f"               {len(unheard)} messages died with their authors, heard by nobody"
    for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0)):
        yield f"delay {name}      {delays[min(int(len(delays) * share), len(delays) - 1)] * 1000:8.1f} ms"
    yield f"longest stall  {bench.longest_stall_s * 1000:8.1f} ms of the whole process"
    yield f"duplicates     {sum(each.duplicates for each in stats) / delivered:8.2f} per delivery"
    broken = sum(each.broken_promises for each in stats)
    yield f"by IWANT       {sum(each.given for each in stats)}; broken promises {broken}"
    yield f"core used      {cpu / took:8.0%}; {cpu / delivered * 1e6:.0f} us per delivery"
    if sent and not args.replace:
        each = sent / total / args.nodes
        message = bench.message_bytes()
        share = each / message / ROUTER.d
        yield f"sent           {each:8.0f} B a node per message of {message} B: {share:.2f} x D x message"
    yield f"peak RSS       {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:8.0f} MiB"


async def main(args: argparse.Namespace, proxies: ExitStack) -> None:
    async with trio.open_nursery() as nursery:
        bench = Bench(args, nursery, proxies)
        await bench.add_nodes(args.nodes)
        await bench.wait_acquainted()
        await trio.sleep(SETTLE_S)
        nursery.start_soon(bench.watch_for_stalls)
        total = int(args.rate * args.seconds)
        sent, cpu, started = bench.bytes_sent(), time.process_time(), time.perf_counter()
        await bench.publish(total)
        took = time.perf_counter() - started
        cpu = time.process_time() - cpu
        await trio.sleep(SETTLE_S)
        for line in report(bench, total, took, cpu, bench.bytes_sent() - sent):
            print(line)
        nursery.cancel_scope.cancel()


def run_with_loss(args: argparse.Namespace) -> int:
    """Run this program once more where loopback loses packets."""
    with open_lan(["here"]) as lan:
        prefix = lan["here"].prefix
        rule = ["-A", "INPUT", "-i", "lo", "-m", "statistic", "--mode", "random", "--probability", f"{args.loss}"]
        subprocess.run([*prefix, "iptables", "-w", *rule, "-j", "DROP"], check=True)
        return subprocess.run([*prefix, sys.executable, *sys.argv, "--inside"], check=False).returncode


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--rate", type=float, default=200)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--size", type=int, default=200)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--replace", type=float, default=0.0, help="share of the nodes")
    parser.add_argument("--loss", type=float, default=0.0, help="share of the packets")
    parser.add_argument("--rtt", type=float, default=0.0, help="seconds")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory and (args.replace or args.loss or args.rtt):
        parser.error("the network in memory has no nodes that die, no loss and no delay here")
    return args


if __name__ == "__main__":
    arguments = parse()
    if arguments.loss and not arguments.inside:
        sys.exit(run_with_loss(arguments))
    with ExitStack() as stack:
        trio.run(main, arguments, stack)

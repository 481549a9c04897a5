"""A swarm of bitswap engines over links of a given width, in simulated time: no sockets, no bytes moved.

What the engines decide is carried out by a model of the network: every node has an uplink and a downlink that its
transfers share fairly, messages without blocks take the latency alone, and blocks to one peer go one behind the other.
A crowd of sixteen that would need ten seconds on real links runs in about one, and the same every time.
"""

from __future__ import annotations

import heapq
import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count, islice

from ipfsreg.bitswap.engine import Engine, Event, FindProviders, Give, Misbehaved, Received, Session, Speak
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import peer_of

MIB = 1024 * 1024

_WORTH_BREAKING_BYTES = 256 * 1024
"""As in `voice`."""

LAYERS_AT_ONCE = 3
"""What docker pulls at a time."""


@dataclass(eq=False)
class Transfer:
    """Blocks on their way from one node to another."""

    giver: Node
    taker: Node
    give: Give
    left: float
    rate: float = 0.0
    reported: float = 0.0
    released: bool = False
    taken: float = 0.0


Layer = tuple[Cid, list[Cid]]
"""A root and its leaves."""


@dataclass(eq=False)
class Pull:
    """One layer on its way to one node."""

    session: Session
    root: Cid
    leaves: list[Cid]
    waiting: deque[Cid]
    """What a reader has not read yet, in order."""
    read_ahead: int
    """Leaves urged beyond the one that is waited for; below 0, nobody reads."""


@dataclass(eq=False)
class Node:
    """One peer of the crowd."""

    name: str
    uplink: float
    """Bytes per second."""
    downlink: float
    peer: PeerId = field(init=False)
    engine: Engine = field(init=False)
    store: dict[Cid, int] = field(default_factory=dict)
    pulls: dict[int, Pull] = field(default_factory=dict)
    """By session."""
    layers: deque[Layer] = field(default_factory=deque)
    """What it pulls when it is done with something else."""
    sessions: list[Session] = field(default_factory=list)
    """All there were."""
    done_at: float | None = None
    sent: int = 0
    misbehaved: list[PeerId] = field(default_factory=list)
    silent: bool = False
    """Takes part in talk but sends no block: a liar."""
    tick_at: float = float("inf")


class Crowd:
    """All nodes and the links between them."""

    def __init__(self, *, latency_s: float = 0.02, buffer_bytes: int = 256 * 1024, seed: int = 0) -> None:
        """*buffer_bytes*: what a sender may hand to its system before the first of it has left."""
        self.now = 0.0
        self.nodes: dict[PeerId, Node] = {}
        self._latency_s = latency_s
        self._buffer_bytes = buffer_bytes
        self._seed = seed
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._queues: dict[tuple[PeerId, PeerId], deque[Transfer]] = defaultdict(deque)
        self._moved_at = 0.0
        self._generation = 0
        self._pulling: set[Node] = set()
        self.broken_off = 0
        """Transfers."""

    # ---------------------------------------------------------------- set-up

    def add(self, name: str, *, uplink: float, downlink: float, settings: BitswapSettings | None = None) -> Node:
        """A node connected to all the others; widths in bytes per second."""
        node = Node(name, uplink, downlink)
        node.peer = peer_of(name)
        dice = random.Random(f"{self._seed} {name}")
        node.engine = Engine(node.peer, node.store.get, dice.random, settings or BitswapSettings())
        for other in self.nodes.values():
            self._do(node, node.engine.connected(other.peer, self.now))
            self._do(other, other.engine.connected(node.peer, self.now))
        self.nodes[node.peer] = node
        return node

    def remove(self, node: Node) -> None:
        """*node* dies, and everybody notices."""
        self._advance()
        del self.nodes[node.peer]
        self._pulling.discard(node)
        for pair in [pair for pair in self._queues if node.peer in pair]:
            for transfer in self._queues.pop(pair):
                if not transfer.released:
                    self._do(transfer.giver, transfer.giver.engine.given(transfer.give, self.now))
        for other in self.nodes.values():
            self._do(other, other.engine.disconnected(node.peer, self.now))
        self._share()

    def pull_at(
        self, when: float, node: Node, layers: Iterable[Layer], first: Iterable[Node], *, read_ahead: int = -1
    ) -> None:
        """*node* begins to fetch *layers* at *when*, some at a time; *read_ahead* as in `Pull`."""
        self._pulling.add(node)
        node.layers.extend(layers)
        hints = [one.peer for one in first]

        def begin() -> None:
            for _ in range(min(LAYERS_AT_ONCE, len(node.layers))):
                self._pull(node, hints, read_ahead)

        self.at(when, begin)

    def _pull(self, node: Node, hints: list[PeerId], read_ahead: int) -> None:
        root, leaves = node.layers.popleft()
        session, events = node.engine.open_session(root, hints, spread=True, block_bytes=MIB, now=self.now)
        node.sessions.append(session)
        node.pulls[session.number] = Pull(session, root, leaves, deque(leaves), read_ahead)
        self._do(node, events)
        self._do(node, node.engine.want(session, [root], self.now))
        self._do(node, node.engine.urge(session, [root], self.now))

    def _read(self, node: Node, pull: Pull) -> None:
        """Let the reader go on as far as it can, and say what it waits for."""
        while pull.waiting and pull.waiting[0] in node.store:
            pull.waiting.popleft()
        if pull.read_ahead >= 0:
            urgent = [cid for cid in islice(pull.waiting, 1 + pull.read_ahead) if cid not in node.store]
            self._do(node, node.engine.urge(pull.session, urgent, self.now))

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do *action* at *when*."""
        heapq.heappush(self._events, (when, next(self._order), action))

    def run(self, *, until: float = 3600.0) -> None:
        """Let time pass until everybody has everything, or *until*."""
        while self._events and self._pulling:
            when, _, action = heapq.heappop(self._events)
            if when > until:
                return
            self.now = when
            action()

    # ---------------------------------------------------------------- engines

    def _do(self, node: Node, events: Iterable[Event]) -> None:
        for event in events:
            match event:
                case Speak(peer):
                    self.at(self.now, lambda peer=peer: self._speak(node, peer))  # type: ignore[misc]
                case Give():
                    self._give(node, event)
                case Received(sessions, block, _):
                    self._receive(node, sessions, block)
                case Misbehaved(peer, _):
                    node.misbehaved.append(peer)
                case FindProviders():
                    pass
        deadline = node.engine.next_deadline(self.now)
        if deadline is not None and deadline < node.tick_at:
            node.tick_at = deadline
            self.at(deadline, lambda: self._tick(node, deadline))

    def _tick(self, node: Node, due: float) -> None:
        if node.tick_at != due or node.peer not in self.nodes:
            return
        node.tick_at = float("inf")
        self._advance()
        for transfer in self._active():
            if transfer.taker is node:
                arrived = transfer.give.size - transfer.left
                node.engine.receive_bytes(transfer.giver.peer, int(arrived - transfer.reported), self.now)
                transfer.reported = arrived
        self._do(node, node.engine.tick(self.now))

    def _speak(self, node: Node, peer: PeerId) -> None:
        while (message := node.engine.take_message(peer, self.now)) is not None:
            taken = message

            def deliver(taken=taken) -> None:  # type: ignore[no-untyped-def]
                other = self.nodes.get(peer)
                if other is not None and node.peer in self.nodes:
                    self._do(other, other.engine.receive_message(node.peer, taken, self.now))
                    if any(entry.cancel for entry in taken.entries):
                        self._break_off(other, node)

            self.at(self.now + self._latency_s, deliver)

    def _receive(self, node: Node, sessions: Iterable[int], block: Block) -> None:
        node.store[block.cid] = len(block.data)
        for number in sessions:
            pull = node.pulls[number]
            self._do(node, node.engine.consumed(pull.session, len(block.data), self.now))
            if block.cid == pull.root:
                # Only now it is known what else there is.
                self._do(node, node.engine.want(pull.session, pull.leaves, self.now))
            self._read(node, pull)
        self._do(node, node.engine.receive_arrivals([block.cid.multihash], self.now))
        for number in sessions:
            pull = node.pulls[number]
            if pull.session.missing:
                continue
            del node.pulls[number]
            self._do(node, node.engine.close_session(pull.session, self.now))
            if node.layers:
                # Whom to ask for the next layer is found out anew, as a node does.
                self._pull(node, [], pull.read_ahead)
            elif not node.pulls and node.done_at is None:
                node.done_at = self.now
                self._pulling.discard(node)

    # ----------------------------------------------------------------- bytes

    def _give(self, node: Node, give: Give) -> None:
        taker = self.nodes.get(give.peer)
        if taker is None or node.silent:
            self.at(self.now, lambda: self._do(node, node.engine.given(give, self.now)))
            return
        self._advance()
        self._queues[node.peer, give.peer].append(Transfer(node, taker, give, give.size))
        self._share()

    def _break_off(self, giver: Node, taker: Node) -> None:
        """Stop what *giver* sends to *taker* if that does not want it any more and much is left."""
        queue = self._queues[giver.peer, taker.peer]
        if not queue or queue[0].released:
            return
        transfer = queue[0]
        self._advance()
        if transfer.left - self._buffer_bytes <= _WORTH_BREAKING_BYTES or any(
            giver.engine.is_wanted(transfer.give, cid) for cid in transfer.give.cids
        ):
            return
        queue.popleft()
        self.broken_off += 1
        giver.sent += int(transfer.give.size - transfer.left)
        taker.engine.receive_break(giver.peer)
        self._share()
        self._do(giver, giver.engine.given(transfer.give, self.now))

    def _active(self) -> Iterator[Transfer]:
        return (queue[0] for queue in self._queues.values() if queue)

    def _advance(self) -> None:
        """Move bytes up to now."""
        passed = self.now - self._moved_at
        self._moved_at = self.now
        for transfer in self._active():
            transfer.left -= transfer.rate * passed
            taken = min(transfer.give.size, transfer.give.size - transfer.left + self._buffer_bytes)
            if int(taken - transfer.taken) > 0 and not transfer.released:
                transfer.giver.engine.took(transfer.give, int(taken - transfer.taken), self.now)
                transfer.taken = taken

    def _share(self) -> None:
        """Divide the links fairly (max-min) and find out what happens next."""
        active = list(self._active())
        room: dict[tuple[str, PeerId], float] = {}
        users: dict[tuple[str, PeerId], dict[Transfer, None]] = defaultdict(dict)
        for transfer in active:
            for end in (("up", transfer.giver.peer), ("down", transfer.taker.peer)):
                node = transfer.giver if end[0] == "up" else transfer.taker
                room[end] = node.uplink if end[0] == "up" else node.downlink
                users[end][transfer] = None
        open_transfers = dict.fromkeys(active)
        while open_transfers:
            end = min((end for end in users if users[end]), key=lambda end: room[end] / len(users[end]))
            rate = room[end] / len(users[end])
            for transfer in list(users[end]):
                transfer.rate = rate
                del open_transfers[transfer]
                for other in (("up", transfer.giver.peer), ("down", transfer.taker.peer)):
                    users[other].pop(transfer, None)
                    room[other] -= rate
        self._generation += 1
        due = min((self._due(transfer) for transfer in active), default=None)
        if due is not None:
            generation = self._generation
            self.at(self.now + max(due, 0.0), lambda: self._move(generation))

    def _due(self, transfer: Transfer) -> float:
        """Seconds until something happens to *transfer*: its giver is rid of it, or it has arrived."""
        left = transfer.left if transfer.released else transfer.left - self._buffer_bytes
        return max(0.0, left) / transfer.rate

    def _move(self, generation: int) -> None:
        if generation != self._generation:
            return
        self._advance()
        released = [one for one in self._active() if not one.released and one.left <= self._buffer_bytes + 1]
        arrived = [one for one in self._active() if one.released and one.left <= 1]
        for transfer in arrived:
            queue = self._queues[transfer.giver.peer, transfer.taker.peer]
            queue.popleft()
            while queue and not any(queue[0].giver.engine.is_wanted(queue[0].give, cid) for cid in queue[0].give.cids):
                dropped = queue.popleft()
                self.at(
                    self.now,
                    lambda dropped=dropped: self._do(  # type: ignore[misc]
                        dropped.giver, dropped.giver.engine.given(dropped.give, self.now)
                    ),
                )
        for transfer in released:
            transfer.released = True
        self._share()
        for transfer in released:
            self._do(transfer.giver, transfer.giver.engine.given(transfer.give, self.now))
        for transfer in arrived:
            transfer.giver.sent += transfer.give.size
            self.at(self.now + self._latency_s, lambda transfer=transfer: self._deliver(transfer))  # type: ignore[misc]

    def _deliver(self, transfer: Transfer) -> None:
        taker = transfer.taker
        if taker.peer not in self.nodes:
            return
        taker.engine.receive_bytes(transfer.giver.peer, int(transfer.give.size - transfer.reported), self.now)
        for want in transfer.give.wants:
            block = Block(want.entry.cid, memoryview(_ZEROS)[: want.size])
            self._do(taker, taker.engine.receive_block(transfer.giver.peer, block, self.now))


_ZEROS = bytes(2 * MIB)


@dataclass(frozen=True)
class Outcome:
    """How it went."""

    ideal_s: float
    """Bytes of the blob by the width of a link."""
    seconds: dict[str, float | None]
    sent: dict[str, int]
    duplicates: float
    """Blocks received once more, as a share of all received."""

    @property
    def last_s(self) -> float:
        return max(one if one is not None else float("inf") for one in self.seconds.values())


def blob(blocks: int, name: str = "leaf") -> Layer:
    """The root and the leaves of an imagined blob."""
    leaves = [Cid.of(RAW, f"{name} {index}".encode()) for index in range(blocks)]
    return Cid.of(DAG_PB, f"root of {name}".encode()), leaves


def outcome(crowd: Crowd, size: int, width: float) -> Outcome:
    """Read the result off *crowd*."""
    pullers = [node for node in crowd.nodes.values() if node.sessions]
    sessions = [session for node in pullers for session in node.sessions]
    received = sum(session.stats.blocks for session in sessions)
    twice = sum(session.stats.duplicate_blocks for session in sessions)
    return Outcome(
        size / width,
        {node.name: node.done_at for node in pullers},
        {node.name: node.sent for node in crowd.nodes.values()},
        twice / max(1, received + twice),
    )


def flash_crowd(
    nodes: int,
    *,
    layers: Sequence[int] = (50,),
    width: float = 6.25e6,
    spread_s: float = 0.1,
    seed: int = 0,
    settings: BitswapSettings | None = None,
    latency_s: float = 0.02,
    buffer_bytes: int = 256 * 1024,
    read_ahead: int = -1,
    block_bytes: int = MIB,
) -> Outcome:
    """*nodes* peers, of which one holds *layers* (blocks of each) that all others begin to pull within *spread_s*."""
    crowd = Crowd(seed=seed, latency_s=latency_s, buffer_bytes=buffer_bytes)
    members = [crowd.add(f"node {index}", uplink=width, downlink=width, settings=settings) for index in range(nodes)]
    blobs = [blob(blocks, f"layer {number}") for number, blocks in enumerate(layers)]
    holder = members[0]
    for root, leaves in blobs:
        holder.store.update(dict.fromkeys(leaves, block_bytes))
        holder.store[root] = 3000
    dice = random.Random(seed)
    for node in members[1:]:
        crowd.pull_at(dice.random() * spread_s, node, blobs, [holder], read_ahead=read_ahead)
    crowd.run()
    return outcome(crowd, sum(layers) * block_bytes, width)

"""A wanted set, as its reader sees it: say what is wanted, take blocks as they arrive."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import trio

from ipfsreg.bitswap.engine import Engine, Event, Session, SessionStats
from ipfsreg.errors import BlockNotFound
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId


class Exchange(Protocol):
    """What a session needs of the running exchange."""

    @property
    def engine(self) -> Engine:
        """Who decides."""

    @property
    def is_open(self) -> bool:
        """Whether blocks can still come."""

    def apply(self, events: Iterable[Event]) -> None:
        """Do what the engine decided."""

    def reach(self, provider: PeerInfo) -> None:
        """Connect to *provider*, soon."""

    def is_local(self, cid: Cid) -> bool:
        """Whether nobody has to be asked for *cid*."""

    async def load(self, cid: Cid) -> Block | None:
        """A block that is local; None where it turns out not to be."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A block that was wanted."""

    block: Block
    peer: PeerId | None
    """Who sent it; None where it was here already."""


class BlockSession:
    """A wanted set, from which blocks come as they arrive. One task reads; any task may want more."""

    def __init__(self, exchange: Exchange, session: Session) -> None:
        self._exchange = exchange
        self._engine = exchange.engine
        self._session = session
        self._local: deque[Cid] = deque()
        self._arrived: deque[Arrival] = deque()
        self._wanted: set[Cid] = set()
        self._wake = trio.Event()

    @property
    def stats(self) -> SessionStats:
        """What came from peers, and what of it came twice."""
        return self._session.stats

    @property
    def missing(self) -> int:
        """How many blocks are wanted and were not delivered."""
        return len(self._wanted)

    @property
    def last_byte_at(self) -> float:
        """When the last byte of a block came from a peer that owes us one, on trio's clock; else when we began."""
        return self._session.last_byte_at

    def want(self, cids: Iterable[Cid]) -> None:
        """Want *cids* too. They are asked for roughly in this order, behind what is wanted already."""
        elsewhere = []
        for cid in cids:
            if cid in self._wanted:
                continue
            self._wanted.add(cid)
            if self._exchange.is_local(cid):
                self._local.append(cid)
            else:
                elsewhere.append(cid)
        if elsewhere:
            self._exchange.apply(self._engine.want(self._session, elsewhere, trio.current_time()))
        self._wake.set()

    def urge(self, cids: Sequence[Cid]) -> None:
        """A reader waits for *cids* (wanted already), in this order; it no longer waits for those urged before."""
        self._exchange.apply(self._engine.urge(self._session, cids, trio.current_time()))

    def forget(self, cids: Iterable[Cid]) -> None:
        """Want *cids* no more."""
        gone = [cid for cid in cids if cid in self._wanted]
        self._wanted.difference_update(gone)
        self._exchange.apply(self._engine.forget(self._session, gone, trio.current_time()))
        self._wake.set()

    def add_provider(self, provider: PeerInfo) -> None:
        """*provider* is believed to have all of it; it is asked first from now on, and dialled if need be."""
        self._exchange.apply(self._engine.add_provider(self._session, provider.peer, trio.current_time()))
        self._exchange.reach(provider)

    async def receive(self) -> Arrival | None:
        """The next block, or None where nothing is wanted any more. Blocks are the caller's to store.

        Raises:
            BlockNotFound: the exchange was closed.

        Cancelled: nothing is lost.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while self._wanted:
            if self._arrived:
                arrival = self._arrived.popleft()
                size = len(arrival.block.data)
                self._exchange.apply(self._engine.consumed(self._session, size, trio.current_time()))
                if arrival.block.cid in self._wanted:
                    self._wanted.discard(arrival.block.cid)
                    return arrival
            elif self._local:
                block = await self._exchange.load(self._local[0])
                cid = self._local.popleft()
                if block is None:
                    self._exchange.apply(self._engine.want(self._session, [cid], trio.current_time()))
                elif cid in self._wanted:
                    self._wanted.discard(cid)
                    return Arrival(block, None)
            elif not self._exchange.is_open:
                raise BlockNotFound("the block exchange is closed")
            else:
                self._wake = trio.Event()
                await self._wake.wait()
        return None

    async def receive_within(self, deadline_s: float | None) -> Arrival | None:
        """Like `receive`; None waits for ever.

        Raises:
            BlockNotFound: nothing came for *deadline_s* seconds. Bytes of a block that is not whole yet count as
                progress, within reason.
        """
        if deadline_s is None:
            return await self.receive()
        began = trio.current_time()
        due = began + deadline_s
        while trio.current_time() < due:
            with trio.move_on_at(due):
                return await self.receive()
            # A large block on a thin link takes its time; but somebody may only pretend to send one.
            due = min(self.last_byte_at + deadline_s, began + 4 * deadline_s)
        raise BlockNotFound(f"no peer in reach gave any of {self.missing} blocks in {deadline_s:g} s")

    def wake(self) -> None:
        """Let the reader look again."""
        self._wake.set()

    def __aiter__(self) -> AsyncIterator[Arrival]:
        return self

    async def __anext__(self) -> Arrival:
        arrival = await self.receive()
        if arrival is None:
            raise StopAsyncIteration
        return arrival

    def deliver(self, arrival: Arrival) -> None:
        """Give *arrival* to the reader. For the exchange alone."""
        self._arrived.append(arrival)
        self._wake.set()

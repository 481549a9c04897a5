"""The walks: fetching what the frontier asks for, and finding out from what comes what to ask for next.

Links are followed as soon as a block is here, before it is durable: a long chain costs a round trip for each node, and
should not cost a disk flush as well. Nothing is lost by it, because what was not written yet is fetched again.

What is announced is asked of the block service. What lies below and is missing too is asked of a peer that speaks
dagsync, all at once, and where there is none of the block service again, a generation after the other.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from itertools import islice
from typing import cast

import trio

from ipfsreg.blockstore.interface import BlockService
from ipfsreg.crdt.dagsync import Dagsync
from ipfsreg.crdt.delta import node_cid, parse_node
from ipfsreg.crdt.frontier import Frontier, Request
from ipfsreg.crdt.intake import Intake
from ipfsreg.crdt.state import STORED, VoidNode, state_of_node, wanted_nodes
from ipfsreg.database import Database
from ipfsreg.errors import IpfsregError, MalformedData, NetworkError, PeerMisbehaved, StoreError
from ipfsreg.ipld.block import Block
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""A request without progress for so long is given up, and its nodes are tried again later."""


REST_S = 30.0
"""A peer whose answer to dagsync failed, or was empty, is asked for blocks so long."""

PARSED_HERE_BYTES = 32 * 1024
"""A larger node is parsed in a thread: one of 2 MiB can hold 350,000 elements, which takes more than half a second."""

LOOKED_UP_AT_ONCE = 256
"""Nodes looked up in the tables, about 5 us each, before other tasks get their turn: a faulty node can have 16,384
links."""

REWRITE_S = 5.0
"""Until a node that could not be written is fetched again."""


class Walker:
    """Fetches wanted nodes for as long as `run` runs."""

    def __init__(
        self,
        database: Database,
        blocks: BlockService,
        intake: Intake,
        frontier: Frontier,
        dagsync: Dagsync | None = None,
        *,
        epoch: int = 1,
    ) -> None:
        self._epoch = epoch
        self._dagsync = dagsync
        self._announced: set[bytes] = set()
        self._resting: dict[PeerId, float] = {}
        self._database = database
        self._blocks = blocks
        self._intake = intake
        self._frontier = frontier
        self._wake = trio.Event()
        self._parsers = trio.CapacityLimiter(2)
        self._released = trio.Event()
        self.last_arrival_at = trio.current_time()
        """When a node, or a piece of a checkpoint, last came, in trio's time."""

    def release(self) -> None:
        """Fetch from now on: until this is called nothing is, so that a checkpoint comes before the history."""
        self._released.set()

    def want(self, multihash: bytes, first: Iterable[PeerId]) -> None:
        """Fetch a node that was announced, unless it is here or on its way."""
        if self._is_missing(multihash):
            if len(self._announced) < self._frontier.max_nodes:
                self._announced.add(multihash)
            self._follow(multihash, first)

    def _is_missing(self, multihash: bytes) -> bool:
        return not self._intake.holds(multihash) and (state_of_node(self._database, multihash) or 0) < STORED

    async def _follow_missing(self, links: Iterable[bytes], first: Sequence[PeerId]) -> None:
        try:
            async for missing in self._find_missing(links):
                for link in missing:
                    self._follow(link, first)
        except StoreError as error:
            # The tables cannot be read. The nodes that link there are fetched and written again at the next start.
            logger.info("what is missing cannot be told: %s", error)

    async def _find_missing(self, links: Iterable[bytes]) -> AsyncIterator[list[bytes]]:
        """Those of *links* that are not here, some at a time. Raises StoreError."""
        left = iter(links)
        while some := list(islice(left, LOOKED_UP_AT_ONCE)):
            yield [link for link in some if self._is_missing(link)]
            if len(some) == LOOKED_UP_AT_ONCE:
                await trio.lowlevel.checkpoint()

    def _follow(self, multihash: bytes, first: Iterable[PeerId]) -> None:
        self._frontier.want(multihash, first, now=trio.current_time())
        self._wake.set()

    def hint(self, peer: PeerId) -> None:
        """*peer* may have what is missing: try again soon."""
        self._frontier.hint([peer], now=trio.current_time())
        self._wake.set()

    def written(self) -> None:
        """The tables know more than before."""
        if self._frontier.overflowed:
            self._wake.set()

    def forget(self, multihashes: Iterable[bytes]) -> None:
        """Nodes that nobody leads to any more are not fetched."""
        for multihash in multihashes:
            self._frontier.arrived(multihash)
            self._announced.discard(multihash)

    def failed(self, multihashes: Iterable[bytes]) -> None:
        """Nodes that came could not be written: fetch them again, a little later."""
        for multihash in multihashes:
            self._frontier.want(multihash, (), now=trio.current_time() + REWRITE_S)
        self._wake.set()

    async def bring(self, block: Block, first: Sequence[PeerId] = ()) -> None:
        """Take in the block of a node, whoever delivered it; what it links to is asked of *first* before others."""
        await self._follow_missing(await self._take_in(block), first)

    async def _take_in(self, block: Block) -> tuple[bytes, ...]:
        """Take in the block of a node; return what it links to."""
        multihash = block.cid.multihash
        self._frontier.arrived(multihash)
        self._announced.discard(multihash)
        self.last_arrival_at = trio.current_time()
        try:
            if len(block.data) > PARSED_HERE_BYTES:
                node = await trio.to_thread.run_sync(parse_node, block, self._epoch, limiter=self._parsers)
            else:
                node = parse_node(block, self._epoch)
        except MalformedData as error:
            await self._intake.add_arrival(VoidNode(multihash, str(error)))
            return ()
        await self._intake.add_arrival(node)
        return node.links

    async def run(self) -> None:
        """Fetch what is wanted, after `release`, now and later. Never returns."""
        await self._released.wait()
        await self._refill()
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                if self._frontier.overflowed and self._frontier.has_room:
                    await self._refill()
                for request in self._frontier.take(now=trio.current_time()):
                    nursery.start_soon(self._fetch, request)
                deadline = self._frontier.next_deadline()
                with trio.move_on_at(float("inf") if deadline is None else deadline):
                    await self._wake.wait()

    async def _refill(self) -> None:
        """Put into the frontier what the tables say is wanted, some at a time, until it is full."""
        # Nodes that are not in the tables yet may want more; then look again.
        self._frontier.overflowed = not self._intake.is_empty
        after = 0
        try:
            while some := wanted_nodes(self._database, LOOKED_UP_AT_ONCE, after):
                for _, multihash in some:
                    if multihash not in self._frontier and not self._intake.holds(multihash):
                        self._frontier.want(multihash, (), now=trio.current_time())
                if len(some) < LOOKED_UP_AT_ONCE:
                    return
                if self._frontier.is_full:
                    self._frontier.overflowed = True
                    return
                after = some[-1][0]
                await trio.lowlevel.checkpoint()
        except StoreError as error:
            logger.info("what is wanted cannot be told: %s", error)

    async def _fetch(self, request: Request) -> None:
        below = [multihash for multihash in request.nodes if multihash not in self._announced]
        peer = self._peer_for(request.first) if below else None
        if peer is not None:
            await self._sync(peer, below, request.first)
        rest = [multihash for multihash in request.nodes if peer is None or multihash in self._announced]
        if rest:
            await self._fetch_blocks(rest, request.first)
        self._announced.difference_update(request.nodes)
        self._frontier.failed(request.nodes, now=trio.current_time())
        self._wake.set()

    async def _fetch_blocks(self, multihashes: list[bytes], first: tuple[PeerId, ...]) -> None:
        cids = [node_cid(multihash) for multihash in multihashes]
        try:
            found = self._blocks.fetch(cids, first=first, deadline_s=PATIENCE_S)
            async with aclosing(cast("AsyncGenerator[Block, None]", found)) as blocks:
                async for block in blocks:
                    await self.bring(block, first)
        except IpfsregError as error:
            logger.info("%d nodes of the name store did not come, will try again: %s", len(cids), error)

    # --------------------------------------------------------------- dagsync

    def _peer_for(self, first: Iterable[PeerId]) -> PeerId | None:
        if self._dagsync is None:
            return None
        now = trio.current_time()
        self._resting = {peer: until for peer, until in self._resting.items() if until > now}
        return self._dagsync.peer_for(first, self._resting)

    async def _sync(self, peer: PeerId, multihashes: list[bytes], first: tuple[PeerId, ...]) -> None:
        """Take what *peer* has below *multihashes*. What it led to and did not give is wanted afterwards."""
        assert self._dagsync is not None
        expected = set(multihashes)
        brought = 0
        try:
            async with self._dagsync.ask(peer, multihashes) as blocks:
                async for block in blocks:
                    multihash = block.cid.multihash
                    if multihash in expected:
                        expected.discard(multihash)
                        brought += 1
                        async for missing in self._find_missing(await self._take_in(block)):
                            expected.update(missing)
                    elif self._is_missing(multihash):
                        raise PeerMisbehaved(f"{peer} sent a node that nothing leads to")
                    if not expected or len(expected) > self._frontier.max_nodes:
                        break
        except (NetworkError, StoreError) as error:
            logger.info("what %s has below %d nodes did not come wholly: %s", peer, len(multihashes), error)
            self._resting[peer] = trio.current_time() + REST_S
        if not brought:
            self._resting[peer] = trio.current_time() + REST_S
        await self._follow_missing(expected.difference(multihashes), first)

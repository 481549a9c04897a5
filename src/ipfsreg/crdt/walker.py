"""The walks: fetching what the frontier asks for, and finding out from what comes what to ask for next.

Links are followed as soon as a block is here, before it is durable: a long chain costs a round trip for each node, and
should not cost a disk flush as well. Nothing is lost by it, because what was not written yet is fetched again.

Blocks come from the block service, one by one or many at a time. A protocol that delivers whole stretches of the DAG
would bring them the same way, through `bring`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Iterable
from contextlib import aclosing
from typing import cast

import trio

from ipfsreg.blockstore.interface import BlockService
from ipfsreg.crdt.delta import node_cid, parse_node
from ipfsreg.crdt.frontier import Frontier, Request
from ipfsreg.crdt.intake import Intake
from ipfsreg.crdt.state import STORED, VoidNode, state_of_node, wanted_nodes
from ipfsreg.database import Database
from ipfsreg.errors import IpfsregError, MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PATIENCE_S = 30.0
"""A request without progress for so long is given up, and its nodes are tried again later."""


REWRITE_S = 5.0
"""Until a node that could not be written is fetched again."""


class Walker:
    """Fetches wanted nodes for as long as `run` runs."""

    def __init__(self, database: Database, blocks: BlockService, intake: Intake, frontier: Frontier) -> None:
        self._database = database
        self._blocks = blocks
        self._intake = intake
        self._frontier = frontier
        self._wake = trio.Event()
        self.last_arrival_at = trio.current_time()
        """When a node last came, in trio's time."""

    def want(self, multihash: bytes, first: Iterable[PeerId]) -> None:
        """Fetch a node unless it is here or on its way."""
        if not self._intake.holds(multihash) and (state_of_node(self._database, multihash) or 0) < STORED:
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

    def failed(self, multihashes: Iterable[bytes]) -> None:
        """Nodes that came could not be written: fetch them again, a little later."""
        for multihash in multihashes:
            self._frontier.want(multihash, (), now=trio.current_time() + REWRITE_S)
        self._wake.set()

    async def bring(self, block: Block, first: Iterable[PeerId] = ()) -> None:
        """Take in the block of a node, whoever delivered it; what it links to is asked of *first* before others."""
        multihash = block.cid.multihash
        self._frontier.arrived(multihash)
        self.last_arrival_at = trio.current_time()
        try:
            node = parse_node(block)
        except MalformedData as error:
            await self._intake.add_arrival(VoidNode(multihash, str(error)))
            return
        await self._intake.add_arrival(node)
        for link in node.links:
            self.want(link, first)

    async def run(self) -> None:
        """Fetch what is wanted, now and later. Never returns."""
        self._refill()
        async with trio.open_nursery() as nursery:
            while True:
                self._wake = trio.Event()
                if self._frontier.overflowed and self._frontier.has_room:
                    self._refill()
                for request in self._frontier.take(now=trio.current_time()):
                    nursery.start_soon(self._fetch, request)
                deadline = self._frontier.next_deadline()
                with trio.move_on_at(float("inf") if deadline is None else deadline):
                    await self._wake.wait()

    def _refill(self) -> None:
        """Put into the frontier what the tables say is wanted."""
        # Nodes that are not in the tables yet may want more; then look again.
        self._frontier.overflowed = not self._intake.is_empty
        for multihash in wanted_nodes(self._database, 2 * self._frontier.max_nodes):
            if multihash not in self._frontier and not self._intake.holds(multihash):
                self._frontier.want(multihash, (), now=trio.current_time())

    async def _fetch(self, request: Request) -> None:
        cids = [node_cid(multihash) for multihash in request.nodes]
        try:
            found = self._blocks.fetch(cids, first=request.first, deadline_s=PATIENCE_S)
            async with aclosing(cast("AsyncGenerator[Block, None]", found)) as blocks:
                async for block in blocks:
                    await self.bring(block, request.first)
        except IpfsregError as error:
            logger.info("%d nodes of the name store did not come, will try again: %s", len(cids), error)
        self._frontier.failed(request.nodes, now=trio.current_time())
        self._wake.set()

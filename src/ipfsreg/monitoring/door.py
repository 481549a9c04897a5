"""`GET /metrics`: what a node tells in numbers, in Prometheus' text or OpenMetrics, on listeners of its own.

    async with open_watch_door(["127.0.0.1:5001"], parts, health) as server: ...

Off unless `metrics.listen` names a place. It asks for no password and tells how busy the node is, so it belongs on
loopback or into a network of its own, and never on the port that clients use.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager

import trio
from prometheus_client import ProcessCollector
from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ipfsreg.errors import StoreError
from ipfsreg.http.connection import ServerSettings
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.http.server import Server, open_server
from ipfsreg.monitoring.families import Counts, families
from ipfsreg.monitoring.health import Health
from ipfsreg.monitoring.parts import Parts

logger = logging.getLogger(__name__)

COUNT_EVERY_S = 15.0
"""What is counted in the database is that old at the most, however often somebody asks."""

PATIENCE_S = 5.0
"""How long a scrape waits for a new count; then it tells the last one."""

SETTINGS = ServerSettings(max_connections=64, max_head_bytes=16 * 1024, idle_timeout_s=300.0, drain_s=1.0)


class Numbers(Collector):
    """The source of a scrape: what `prometheus_client` encodes."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._process = ProcessCollector(registry=None)
        self._counts = Counts()
        self._counted_at = float("-inf")
        self._asked = trio.Event()
        self._counted = trio.Event()

    def collect(self) -> Iterator[Metric]:
        """All families. Does not wait."""
        yield from families(self._parts, self._counts)
        yield from self._process.collect()

    async def refresh(self) -> None:
        """Wait for a new count where the last one is old, `PATIENCE_S` at the most."""
        if trio.current_time() < self._counted_at + COUNT_EVERY_S:
            await trio.lowlevel.checkpoint()
            return
        counted = self._counted
        self._asked.set()
        with trio.move_on_after(PATIENCE_S):
            await counted.wait()

    async def count_when_asked(self) -> None:
        """Count whenever somebody wants to know, for ever. In a task of its own: a disk that hangs hangs no scrape."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            try:
                self._counts = await self._count()
            except StoreError as error:
                self._counts = Counts()
                logger.warning("the store could not be counted: %s", error)
            self._counted_at = trio.current_time()
            self._counted.set()
            self._counted = trio.Event()

    async def _count(self) -> Counts:
        parts = self._parts
        if parts.blobs is None:
            return Counts()
        tally = None if parts.replica is None else await parts.replica.tally()
        return Counts(await parts.blobs.census(), tally, await parts.blobs.room())

    async def answer(self, request: Request) -> Response:
        """GET /metrics."""
        if request.path != "/metrics":
            return Response(404, (("Content-Type", "text/plain"),), b"there are /metrics, /healthz and /readyz\n")
        if request.method not in ("GET", "HEAD"):
            return Response(405, (("Allow", "GET, HEAD"),))
        await self.refresh()
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(200, (("Content-Type", content_type),), encode(self))


@asynccontextmanager
async def open_watch_door(listen: Sequence[str], parts: Parts, health: Health) -> AsyncIterator[Server]:
    """Answer scrapes and probes on *listen* for as long as the block lasts.

    Raises:
        ConfigError, AlreadyRunning: as `open_server`.
    """
    numbers = Numbers(parts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(numbers.count_when_asked)
        async with open_server(health.answering(numbers.answer), listen=listen, settings=SETTINGS) as server:
            yield server
        nursery.cancel_scope.cancel()

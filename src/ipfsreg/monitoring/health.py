"""Whether a node lives, and whether it should be sent requests.

    async with open_health(parts) as health:
        front = health.answering(front)

    GET /healthz   200 while the process lives and its event loop turns
    GET /readyz    200 when every check is passed, else 503; either way which are, and why not

The checks of the store write to the disk, so their result is kept for `KEEP_S` seconds however often somebody asks, and
they run in a task of their own: a disk that hangs is told as that, and hangs no answer.

What is told is short and has no paths and no names: who may connect to the registry may ask.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ipfsreg.errors import StoreError
from ipfsreg.http.connection import Handler
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.monitoring.parts import Parts

KEEP_S = 5.0
PATIENCE_S = 3.0
"""How long an answer waits for the checks of the store."""

TICK_S = 0.25

PATHS = frozenset(("/healthz", "/readyz"))

_HEADERS = (("Content-Type", "application/json"), ("Cache-Control", "no-store"))


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that has to hold."""

    name: str
    fault: str = ""
    """Why it does not; "" where it does."""


class Health:
    """Built only by `open_health`."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._store: list[Check] = []
        self._looked_at = float("-inf")
        self._asked = trio.Event()
        self._looked = trio.Event()

    async def checks(self) -> list[Check]:
        """All of them, after `PATIENCE_S` at the most."""
        parts = self._parts
        if parts.stopping:
            return [Check("running", "the node is stopping")]
        running = Check("running", "the node is starting" if parts.registry is None else "")
        return [running, self._check_replica(), *await self._check_store()]

    def _check_replica(self) -> Check:
        replica = self._parts.replica
        if replica is None:
            return Check("replica", "not open yet")
        return Check("replica", "" if replica.synced else "catching up with the names of the swarm")

    async def _check_store(self) -> list[Check]:
        if self._parts.blobs is None or self._parts.database is None:
            return [Check("store", "not open yet")]
        if trio.current_time() >= self._looked_at + KEEP_S:
            looked = self._looked
            self._asked.set()
            with trio.move_on_after(PATIENCE_S):
                await looked.wait()
                return self._store
            return [Check("store", f"the disk does not answer within {PATIENCE_S:g} s")]
        return self._store

    async def look_when_asked(self) -> None:
        """Look after the store whenever somebody wants to know, for ever."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            self._store = await self._look()
            self._looked_at = trio.current_time()
            self._looked.set()
            self._looked = trio.Event()

    async def _look(self) -> list[Check]:
        blobs, database = self._parts.blobs, self._parts.database
        assert blobs is not None
        assert database is not None
        try:
            free, total = await blobs.room()
            await blobs.try_to_write()
            await database.write(lambda db: None)
        except StoreError as error:
            return [Check("store", str(error))]
        kept = blobs.kept_free(total)
        if free <= kept:
            return [Check("store"), Check("disk", f"{free >> 20} MiB are free, {kept >> 20} MiB are kept so")]
        return [Check("store"), Check("disk")]

    async def tick(self) -> None:
        """Measure how late the event loop is, for ever."""
        while True:
            due = trio.current_time() + TICK_S
            await trio.sleep_until(due)
            self._parts.lag_seconds.observe(max(0.0, trio.current_time() - due))

    # ---------------------------------------------------------------- answers

    def answering(self, handler: Handler) -> Handler:
        """*handler*, with `PATHS` answered before it sees them."""

        def answer(request: Request) -> Awaitable[Response]:
            # Not a coroutine of its own: that would cost every request a frame.
            return self.answer(request) if request.path in PATHS else handler(request)

        return answer

    async def answer(self, request: Request) -> Response:
        """What is asked with one of `PATHS`."""
        request.route = "health"
        if request.method not in ("GET", "HEAD"):
            return Response(405, (*_HEADERS, ("Allow", "GET, HEAD")), b"{}\n")
        if request.path == "/healthz":
            return Response(200, _HEADERS, b'{"alive": true}\n')
        checks = await self.checks()
        faults = {check.name: check.fault for check in checks if check.fault}
        document = {"ready": not faults, "checks": {check.name: check.fault or "ok" for check in checks}}
        return Response(503 if faults else 200, _HEADERS, json.dumps(document).encode() + b"\n")


@asynccontextmanager
async def open_health(parts: Parts) -> AsyncIterator[Health]:
    """Watch over *parts* for as long as the block lasts."""
    health = Health(parts)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.look_when_asked)
        nursery.start_soon(health.tick)
        yield health
        nursery.cancel_scope.cancel()

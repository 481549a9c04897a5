"""What happens to a stranger between its TCP connect and its finished handshake.

Thousands of sockets that say nothing must cost little and keep nobody out. So a socket first waits, without a handshake
slot, for its first byte (in libp2p whoever dials speaks first); when too many wait, the one that has been silent for
longest goes. Only those that speak get a slot, in turn, and a deadline.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from ipfsreg.errors import ConnectionLost, LimitReached
from ipfsreg.p2p.limits import Gate, Limits

MAX_IN_LINE = 128
"""Sockets that have spoken and wait for a handshake slot."""
TELL_EVERY_S = 60.0
"""Seconds between two log lines about one address."""
MAX_TOLD = 1024


class Visit:
    """One stranger's stay."""

    def __init__(self, slots: trio.CapacityLimiter) -> None:
        self._slots = slots
        self._in_handshake = True

    def finished(self) -> None:
        """The handshake is over; let the next one in. Idempotent."""
        if self._in_handshake:
            self._in_handshake = False
            self._slots.release_on_behalf_of(self)


class Doorstep:
    """Everybody who is not a peer yet."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._gate = Gate(limits.per_ip)
        self._silent: dict[trio.CancelScope, None] = {}
        self._slots = trio.CapacityLimiter(limits.handshakes)
        self._told: dict[str, float] = {}

    @asynccontextmanager
    async def admit(self, stream: trio.SocketStream, host: str) -> AsyncIterator[Visit]:
        """Wait for a first byte and a handshake slot; the block is the handshake until `Visit.finished`, then the rest.

        Raises:
            LimitReached: too many from *host*, or too many at all.
            ConnectionLost: it said nothing in time.
        """
        if not self._gate.enter(host):
            raise LimitReached(f"{self._limits.per_ip} connections from {host} are open")
        try:
            await self._wait_first_byte(stream)
            if self._slots.statistics().tasks_waiting >= MAX_IN_LINE:
                raise LimitReached("too many handshakes are waiting")
            visit = Visit(self._slots)
            await self._slots.acquire_on_behalf_of(visit)
            try:
                yield visit
            finally:
                visit.finished()
        finally:
            self._gate.leave(host)

    async def _wait_first_byte(self, stream: trio.SocketStream) -> None:
        with trio.move_on_after(self._limits.handshake_s) as scope:
            self._silent[scope] = None
            if len(self._silent) > self._limits.silent_sockets:
                oldest = next(iter(self._silent))
                del self._silent[oldest]
                oldest.cancel()
            try:
                await trio.lowlevel.wait_readable(stream.socket.fileno())
            finally:
                self._silent.pop(scope, None)
        if scope.cancelled_caught:
            raise ConnectionLost("it said nothing")

    def worth_telling(self, host: str) -> bool:
        """Whether a log line about *host* is due: once a minute."""
        now = trio.current_time()
        if now - self._told.get(host, -TELL_EVERY_S) < TELL_EVERY_S:
            return False
        self._told.pop(host, None)
        self._told[host] = now
        if len(self._told) > MAX_TOLD:
            del self._told[next(iter(self._told))]
        return True

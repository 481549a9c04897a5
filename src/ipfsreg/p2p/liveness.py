"""Who has fallen silent: decides when a connection is asked for a sign of life, and when it is given up.

Any byte counts as life, so a slow peer that keeps reading is never cut off; only silence in spite of a ping is death.
Pure: the swarm asks at regular times and acts.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

C = TypeVar("C", bound=Hashable)

SWEEP_S = 2.0
"""Seconds between two looks."""
QUIET_S = 7.0
"""Seconds without a byte after which a ping is sent."""
DEAD_S = 15.0
"""Seconds without a byte after which a connection is given up. With two sweeps of slack: gone within 20."""


@dataclass(slots=True)
class _Watch:
    received: int
    heard_at: float
    asked: bool = False


@dataclass(frozen=True, slots=True)
class Verdict(Generic[C]):
    """What to do after one look."""

    ask: list[C]
    """Send these a ping; the answer shows in their byte counter."""
    dead: list[C]
    """Give these up."""


class Liveness(Generic[C]):
    """The silence of every connection."""

    def __init__(self) -> None:
        self._watches: dict[C, _Watch] = {}
        self._swept_at: float | None = None

    def sweep(self, received: dict[C, int], *, now: float) -> Verdict[C]:
        """Look at how many bytes have come in so far on each live connection."""
        slept = 0.0
        if self._swept_at is not None:
            # We, or the machine, were stopped: the silence was ours, and what peers sent meanwhile still waits.
            slept = max(0.0, now - self._swept_at - 2 * SWEEP_S)
        self._swept_at = now
        verdict: Verdict[C] = Verdict([], [])
        watches: dict[C, _Watch] = {}
        for connection, count in received.items():
            watch = self._watches.get(connection)
            if watch is None or watch.received != count:
                watches[connection] = _Watch(count, now)
                continue
            watches[connection] = watch
            watch.heard_at += slept
            silence = now - watch.heard_at
            if silence >= DEAD_S:
                verdict.dead.append(connection)
            elif silence >= QUIET_S and not watch.asked:
                watch.asked = True
                verdict.ask.append(connection)
        self._watches = watches
        return verdict

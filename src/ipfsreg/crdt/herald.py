"""When a replica says which heads it has. PURE.

Three occasions: it wrote something (at once, the new head alone); somebody may lack what it has (soon, after a short
random wait, so that of many who could answer one does); and every minute or so, against whatever was lost. A head
that somebody else announced meanwhile need not be said again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from random import Random

from ipfsreg.crdt.delta import Head

TICK_S = 60.0
TICK_JITTER = 0.3
"""As in go-ds-crdt: 42 to 78 seconds."""

GREETING_S = (0.2, 1.0)
SECOND_GREETING_S = (3.0, 5.0)
"""A peer that just joined may not be in the mesh yet when it is greeted first."""


@dataclass(slots=True)
class _Greeting:
    at: float
    heard: set[bytes] = field(default_factory=set)


class Herald:
    """Decides which heads to announce when."""

    def __init__(self, rng: Random, *, now: float) -> None:
        self._rng = rng
        self._next_tick = self._tick_after(now)
        self._heard: set[bytes] = set()
        self._written: list[Head] = []
        self._greetings: list[_Greeting] = []

    def _tick_after(self, now: float) -> float:
        return now + TICK_S * self._rng.uniform(1 - TICK_JITTER, 1 + TICK_JITTER)

    def wrote(self, head: Head) -> None:
        """We wrote *head*. It is said at once, unless a later one covers it by then."""
        self._written.append(head)

    def heard(self, heads: Iterable[Head]) -> None:
        """Somebody announced *heads*, or we did."""
        multihashes = [head.multihash for head in heads]
        self._heard.update(multihashes)
        for greeting in self._greetings:
            greeting.heard.update(multihashes)

    def greet(self, *, now: float, newcomer: bool) -> None:
        """Somebody may lack our heads; a *newcomer* is told twice. Greetings that are planned already will do."""
        waits = [GREETING_S, SECOND_GREETING_S] if newcomer else [GREETING_S]
        for low, high in waits:
            planned = next((one for one in self._greetings if now + low <= one.at <= now + high), None)
            if planned is None:
                self._greetings.append(_Greeting(now + self._rng.uniform(low, high)))
            else:
                planned.heard.clear()  # what was said before now, this one may not have heard

    def due(self, heads: Sequence[Head], *, now: float) -> list[Head]:
        """Which of *heads*, all that we have, to announce now. Counts as heard from then on."""
        saying = set(self._written)
        self._written = []
        for greeting in [greeting for greeting in self._greetings if greeting.at <= now]:
            self._greetings.remove(greeting)
            saying |= {head for head in heads if head.multihash not in greeting.heard}
        ticked = now >= self._next_tick
        if ticked:
            saying |= {head for head in heads if head.multihash not in self._heard}
        announced = [head for head in heads if head in saying]
        self.heard(announced)
        if ticked:
            self._heard.clear()
            self._next_tick = self._tick_after(now)
        return announced

    def next_deadline(self) -> float:
        """When `due` may next have something, writes of ours apart."""
        return min([self._next_tick, *(greeting.at for greeting in self._greetings)])

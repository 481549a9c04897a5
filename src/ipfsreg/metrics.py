"""Numbers that are cheap to keep: added to where something happens, read when somebody asks.

No library on the hot path: an observation is a binary search and two additions, where the client library for
Prometheus takes a lock and several microseconds. What is kept becomes Prometheus' text in `monitoring`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


class Histogram:
    """How many values fell below each bound. One thread at a time."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        """*bounds*: ascending; a value on a bound is below it."""
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        """How many fell between each bound and the one before; the last ones are above all bounds."""
        self.total = 0.0
        """Of all values."""

    def observe(self, value: float) -> None:
        """Count *value*."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def add(self, other: Histogram) -> None:
        """Count all that *other* counted; its bounds are the same."""
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.total += other.total

    def cumulated(self) -> list[tuple[str, int]]:
        """Bound and how many values are at or below it, up to `+Inf`."""
        names = [f"{bound:g}" for bound in self.bounds]
        return list(zip([*names, "+Inf"], accumulate(self.counts), strict=True))

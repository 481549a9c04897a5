"""How many uploads of large blocks go on at a time.

A block can be passed on only once it has arrived whole, so in a crowd few at a time are better: as many as keep a block
from taking longer than most of a second, and at least two. More go on where they carry more: half as many again are
tried, and if the link then carries noticeably more they stay and still more are tried at once. If not, the next trial
is whether fewer would do; trials that change nothing come ever less often (docs/decisions/0026).
"""

from __future__ import annotations

from collections import deque

MOMENT_S = 0.25
MOMENTS = 4
_FADING = 0.996
"""The best rate seen is believed for a while: it halves in 43 seconds."""

_BLOCK_BYTES = 1024 * 1024
_BLOCK_S = 0.7
"""How long a block should take at most, where the link allows it."""

_FEWEST = 2
_TRIAL_MOMENTS = MOMENTS + 1
"""A trial lasts until the rate is that of a second in which it went on."""

_GAIN = 1.12
"""By so much more must be carried by more uploads to keep them."""

_LOSS = 0.96
"""And fewer are kept if they still carry this share."""

_FIRST_PAUSE, _LONGEST_PAUSE = 4, 64
"""Moments between a trial that failed and the next."""


class Uplink:
    """What our link carries now and has shown to carry, in bytes per second."""

    def __init__(self) -> None:
        self._moment = 0
        self._current = 0
        self._recent: deque[int] = deque(maxlen=MOMENTS)
        self.capacity = 0.0
        """The highest rate lately."""

    @property
    def rate(self) -> float:
        """Over the last whole second."""
        return sum(self._recent) / (MOMENTS * MOMENT_S)

    def record(self, size: int, now: float) -> None:
        """*size* bytes were taken by a peer's connection."""
        self.pass_to(now)
        self._current += size

    def pass_to(self, now: float) -> int:
        """Close the moments that are over; return the number of the present one."""
        moment = int(now / MOMENT_S)
        self._moment = max(self._moment, moment - MOMENTS - 1)
        while self._moment < moment:
            self._recent.append(self._current)
            self._current = 0
            self._moment += 1
            self.capacity = max(self.rate, self.capacity * _FADING)
        return moment


class Slots:
    """How many uploads may go on."""

    def __init__(self, uplink: Uplink, usual: int) -> None:
        """*usual*: of peers whose links are as good as ours, at a time; fewer where our link is thin."""
        self._uplink = uplink
        self._usual = usual
        self._kept = self.allowed = min(_FEWEST, usual)
        self._moment = -1
        self._busy_for = 0
        """Moments in which all slots were taken."""
        self._tried_at: int | None = None
        self._rate_before = 0.0
        self._upward = True
        self._pause = _FIRST_PAUSE
        self._next_trial = 0

    def pass_to(self, now: float, *, busy: int, stuck: bool) -> None:
        """Adapt to what happened; *busy* uploads go on, *stuck*: nobody has taken anything for a while."""
        moment = self._uplink.pass_to(now)
        if moment == self._moment:
            return
        self._moment = moment
        if stuck:
            self.allowed += 1
        elif self._tried_at is None:
            self._kept = max(self._kept, self._least)
            self._busy_for = self._busy_for + 1 if busy >= self._kept else 0
            self.allowed = self._kept
            if moment >= self._next_trial and self._busy_for > MOMENTS:
                self._try(moment)
        elif moment - self._tried_at >= _TRIAL_MOMENTS:
            self._judge(moment, busy)

    def _try(self, moment: int) -> None:
        self._tried_at, self._rate_before = moment, self._uplink.rate
        more, fewer = max(1, self._kept // 2), self._kept // 4
        self.allowed = self._kept + more if self._upward else max(self._least, self._kept - fewer)

    def _judge(self, moment: int, busy: int) -> None:
        """The trial is over: keep what carried more, or as much with fewer."""
        self._tried_at = None
        share = self._uplink.rate / self._rate_before if self._rate_before else 0.0
        if self._upward and share > _GAIN:
            self._kept = max(self._least, min(self.allowed, busy))
            self._pause, self._next_trial = _FIRST_PAUSE, moment
        else:
            if not self._upward and share > _LOSS:
                self._kept = self.allowed
            self._upward = not self._upward
            self._next_trial = moment + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        self.allowed = self._kept

    @property
    def _least(self) -> int:
        """As many as keep a block from taking too long."""
        by_width = int(self._uplink.capacity * _BLOCK_S / _BLOCK_BYTES)
        return min(self._usual, max(_FEWEST, by_width))

"""Deadlines of streams, kept by one task that exists only while there are any.

A timer for each stream would cost a task for each; and an idle connection must not wake up at all.
"""

from __future__ import annotations

from collections.abc import Callable

import trio


class Patience:
    """How long each of some streams may take, the same time for all, so that they end in the order they began."""

    def __init__(self, patience_s: float, run_out: Callable[[int], None]) -> None:
        """*run_out* is called with the number of each stream that took too long; it must not wait."""
        self._patience_s = patience_s
        self._run_out = run_out
        self._deadlines: dict[int, float] = {}
        self._kept = False

    def numbers(self) -> list[int]:
        """The streams that are waited for, the longest first."""
        return [*self._deadlines]

    def begin(self, number: int, nursery: trio.Nursery | None) -> None:
        """Wait for stream *number* from now on, with a task in *nursery* if there is none yet."""
        self._deadlines[number] = trio.current_time() + self._patience_s
        if not self._kept and nursery is not None:
            self._kept = True
            nursery.start_soon(self._keep)

    def end(self, number: int) -> None:
        """Stream *number* is not waited for any more."""
        self._deadlines.pop(number, None)

    async def _keep(self) -> None:
        try:
            while self._deadlines:
                number, deadline = next(iter(self._deadlines.items()))
                if deadline > trio.current_time():
                    await trio.sleep_until(deadline)
                else:
                    del self._deadlines[number]
                    self._run_out(number)
        finally:
            self._kept = False

"""A few threads for work that comes in many small pieces, in order, from many places at once.

A job of a worker thread costs two wake-ups, there and back, which on a machine that is not busy take longer than
hashing a hundred kilobytes. So a lane is filled ahead of its thread: whoever finds the next piece there goes on with it
at once, and the event loop only hears of what is done.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import outcome
import trio


def _over(result: outcome.Outcome[None]) -> None:
    """A thread is done. Raises what ended it, for the log."""
    result.unwrap()


class Lane:
    """Jobs that are done one after the other, in the order they came."""

    __slots__ = ("is_known", "jobs")

    def __init__(self) -> None:
        self.jobs: deque[Callable[[], None]] = deque()
        self.is_known = False
        """A thread is at it, or it waits for one."""


class Crew:
    """Threads that take turns at lanes, a job at a time, so that none waits for all of another's."""

    def __init__(self, most: int) -> None:
        """*most* threads at once; without work there is none."""
        self._most = most
        self._lock = threading.Lock()
        self._ready: deque[Lane] = deque()
        self._threads = 0

    def add(self, lane: Lane, job: Callable[[], None]) -> None:
        """Do *job* after what is in *lane* already. It must not raise. Returns at once, in any thread."""
        with self._lock:
            lane.jobs.append(job)
            if lane.is_known:
                return
            lane.is_known = True
            self._ready.append(lane)
            if self._threads == self._most:
                return
            self._threads += 1
        trio.lowlevel.start_thread_soon(self._work, _over)

    def _work(self) -> None:
        lane: Lane | None = None
        while True:
            with self._lock:
                if lane is not None:
                    if lane.jobs:
                        self._ready.append(lane)
                    else:
                        lane.is_known = False
                if not self._ready:
                    self._threads -= 1
                    return
                lane = self._ready.popleft()
                job = lane.jobs.popleft()
            job()
            del job  # it holds a buffer

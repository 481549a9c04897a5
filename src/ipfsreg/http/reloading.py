"""Files that are read again when they change, or when somebody says so (SIGHUP).

They are looked at, not watched by inotify: certificates come by symbolic links that are swapped, from network file
systems and into containers, and a look every few seconds is right on all of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from ipfsreg.errors import IpfsregError

logger = logging.getLogger(__name__)

INTERVAL_S = 5.0

_Stamp = tuple[int, int, int] | None


@dataclass(frozen=True, slots=True)
class Reloaded:
    """Some files that are read together."""

    paths: tuple[Path, ...]
    reload: Callable[[], None]
    """Called in a worker thread. Raises IpfsregError where what was read before has to stay in use."""
    watched: bool = True
    """Whether a change is a reason; else only somebody who says so is."""


class Reloads:
    """Everything of a node that is read again while it runs."""

    def __init__(self, reloaded: Sequence[Reloaded]) -> None:
        self._reloaded = reloaded
        self._stamps = [_stamps(one.paths) for one in reloaded]
        self._one_at_a_time = trio.Lock()

    async def reload(self, *, changed_only: bool = False) -> None:
        """Read again everything, or what has changed. What fails is logged and stays as it was."""
        async with self._one_at_a_time:
            for index, one in enumerate(self._reloaded):
                if changed_only and not one.watched:
                    continue
                # Taken before the files are read: a change in between is seen at the next look.
                stamps = await trio.to_thread.run_sync(_stamps, one.paths)
                if changed_only and stamps == self._stamps[index]:
                    continue
                self._stamps[index] = stamps
                try:
                    await trio.to_thread.run_sync(one.reload)
                except IpfsregError as error:
                    logger.warning("not reloaded, what was there before stays in use: %s", error)
                else:
                    logger.info("reloaded %s", ", ".join(map(str, one.paths)))

    async def watch(self) -> None:
        """Look for changes for ever."""
        while True:
            await trio.sleep(INTERVAL_S)
            await self.reload(changed_only=True)


@asynccontextmanager
async def open_reloads(reloaded: Sequence[Reloaded]) -> AsyncIterator[Reloads]:
    """Look after the files of *reloaded* for as long as the block lasts."""
    reloads = Reloads(reloaded)
    async with trio.open_nursery() as nursery:
        if reloaded:
            nursery.start_soon(reloads.watch)
        yield reloads
        nursery.cancel_scope.cancel()


def _stamps(paths: Sequence[Path]) -> list[_Stamp]:
    return [_stamp(path) for path in paths]


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns

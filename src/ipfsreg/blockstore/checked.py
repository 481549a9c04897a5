"""Which stored bytes were hashed so recently that they need not be hashed again to be served.

A node that gives one layer to many peers would spend more time on hashing the same leaves again and again than on
encrypting them, and each receiver checks them anyway. Trusted is a file as it was when it was hashed: same inode,
length and time of the last write. What a disk does to bytes behind the file system's back it does over weeks, not
within the hour.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Hashable

import trio

CHECK_AGAIN_S = 3600.0

MAX_ENTRIES = 16_384
"""Leaves and blobs remembered: 16 GiB in single leaves, about 5 MB of memory."""

Stamp = tuple[int, int, int]
"""Of a file: inode, length, and nanoseconds of the last write."""


def stamp_of(status: os.stat_result) -> Stamp:
    """What `stat` says about whether the bytes can have changed."""
    return status.st_ino, status.st_size, status.st_mtime_ns


class Checked:
    """Remembers what was checked, for a while."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Hashable, tuple[float, Stamp]] = OrderedDict()

    def add(self, key: Hashable, stamp: Stamp) -> None:
        """*key* was checked now, in a file of that *stamp*."""
        self._entries[key] = (trio.current_time(), stamp)
        self._entries.move_to_end(key)
        if len(self._entries) > MAX_ENTRIES:
            self._entries.popitem(last=False)

    def stamp(self, key: Hashable) -> Stamp | None:
        """The stamp of the file in which *key* was checked within the hour."""
        when, stamp = self._entries.get(key, (0.0, None))
        return stamp if stamp is not None and trio.current_time() < when + CHECK_AGAIN_S else None

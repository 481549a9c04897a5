"""PURE: what the connections of a server hold in memory together, of bodies read whole and answers not taken yet.

A connection alone is bounded (a manifest, a page of a list), but thousands of them, each with a body that never becomes
whole or an answer that is never read, would be gigabytes. So there is room for so much in all. Who finds none left gets
that of whoever has kept the server waiting for longest: clients that are at it take milliseconds.
"""

from __future__ import annotations

from typing import Protocol

FREE_BYTES = 64 * 1024
"""Of each connection, not counted: small manifests are taken, and small answers given, whatever others hold."""


class Holder(Protocol):
    """A connection."""

    def cut_off(self) -> None:
        """Let go of everything. Only called while its client is waited for."""


class Holdings:
    """Of all connections of a server."""

    def __init__(self, max_bytes: int) -> None:
        """*max_bytes* in all, beside the first `FREE_BYTES` of each."""
        self._max_bytes = max_bytes
        self._sizes: dict[Holder, int] = {}
        self._waiting: dict[Holder, None] = {}
        """Whose clients we wait for, the longest first."""
        self.bytes_held = 0

    def hold(self, holder: Holder, size: int) -> bool:
        """Count *size* bytes in all for *holder*, whose client has to do its part; False: there is no room for them.

        It may be cut off until `settle` or `release`.
        """
        if size <= FREE_BYTES:
            return True
        more = size - self._sizes.get(holder, 0)
        while self.bytes_held + more > self._max_bytes:
            longest = next((one for one in self._waiting if one is not holder), None)
            if longest is None:
                return False
            self.release(longest)
            longest.cut_off()
        self._sizes[holder] = size
        self._waiting.setdefault(holder)
        self.bytes_held += more
        return True

    def settle(self, holder: Holder) -> None:
        """Keep what *holder* has, and do not cut it off: now we are at work for it."""
        self._waiting.pop(holder, None)

    def release(self, holder: Holder) -> None:
        """*holder* holds nothing any more."""
        self._waiting.pop(holder, None)
        self.bytes_held -= self._sizes.pop(holder, 0)

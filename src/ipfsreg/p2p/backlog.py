"""How much a socket may be given before what it has was sent.

A system takes megabytes from whoever writes, for a link that may need seconds to send them. Whatever is said later, a
cancel or a HAVE of a few bytes, then waits behind them, and who counts what a socket *took* believes it was sent. So a
connection gives its socket no more than it sends in a few hundredths of a second (docs/decisions/0104).
"""

from __future__ import annotations

import fcntl
import socket
import struct
import sys
from contextlib import suppress

import trio

UNSENT_S = 0.03
"""How long what is written may wait in the system. Longer than an event loop may be busy with something else, or the
link would run dry."""

LEAST_BYTES = 32 * 1024
MOST_BYTES = 4 * 1024 * 1024
"""Limits of what may wait, whatever the rate."""

FIRST_BYTES = 64 * 1024
"""What may wait while the rate is not known. Twenty connections that begin at the same moment on a thin link share it:
what each of them may put in front of the others adds up."""

_WINDOW_S = 0.05
"""The rate is taken over so long, at least."""

_SIOCOUTQNSD = 0x894B
"""Linux: how many bytes of a TCP socket were not sent yet, not counting those that only wait for an acknowledgement."""


class Backlog:
    """What one socket has been given and not sent."""

    __slots__ = (
        "_began",
        "_dry",
        "_held",
        "_left",
        "_lowat",
        "_sent_before",
        "_socket",
        "_supported",
        "_written",
        "limit",
    )

    def __init__(self, sock: trio.socket.SocketType) -> None:
        self._socket = sock
        self._supported = sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)
        self._written = 0
        self._began: float | None = None
        self._sent_before = 0
        self._dry = False
        self._held = False
        self._left = 0
        self._lowat = 0
        self.limit = FIRST_BYTES
        """Bytes that may wait now."""

    def wrote(self, count: int) -> None:
        """The socket took *count* bytes."""
        self._written += count
        self._left -= count
        self._held = self._held or self._left <= 0

    def room(self, now: float) -> int:
        """How many bytes may be written at *now*; none while the socket has enough to do."""
        if not self._supported:
            return MOST_BYTES
        unsent = self._unsent()
        self._measure(self._written - unsent, unsent, now)
        self._left = max(0, self.limit - unsent)
        if not self._left:
            self._wake_at(self.limit // 2)
        return self._left

    def _unsent(self) -> int:
        try:
            return int(struct.unpack("i", fcntl.ioctl(self._socket.fileno(), _SIOCOUTQNSD, bytes(4)))[0])
        except (OSError, ValueError):
            # Closed: writing will show it.
            return 0

    def _measure(self, sent: int, unsent: int, now: float) -> None:
        """Set the limit by what was sent over the last moments, as far as there always was something to send."""
        self._dry = self._dry or not unsent
        if self._began is None or now - self._began > 10 * _WINDOW_S:
            # What was idle shares its link with others now, as far as anybody knows.
            self.limit = min(self.limit, FIRST_BYTES)
            self._begin(sent, now, unsent)
        elif now - self._began >= _WINDOW_S:
            by_rate = int((sent - self._sent_before) / (now - self._began) * UNSENT_S)
            if not self._dry:
                self._set_limit(by_rate)
            elif self._held:
                # It ran dry, and could have sent more than it was given. Where the limit kept nobody from giving it
                # more, there was no more.
                self._set_limit(max(by_rate, 2 * self.limit))
            self._begin(sent, now, unsent)

    def _begin(self, sent: int, now: float, unsent: int) -> None:
        self._began, self._sent_before, self._dry, self._held = now, sent, not unsent, False

    def _set_limit(self, wanted: int) -> None:
        limit = min(max(wanted, LEAST_BYTES), MOST_BYTES)
        if not 0.75 * self.limit <= limit <= 1.5 * self.limit:
            self.limit = limit

    def _wake_at(self, unsent: int) -> None:
        """Let the socket be writable when less than *unsent* bytes are left."""
        if unsent != self._lowat:
            self._lowat = unsent
            with suppress(OSError):  # closed
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, unsent)

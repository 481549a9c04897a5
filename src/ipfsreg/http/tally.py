"""What a server has answered, in numbers: by method, kind of request and status.

Names of repositories, tags and peers never become labels: there is no end to them, and strangers choose them.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipfsreg.metrics import Histogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Bounds of the time for one request, from its head to the last byte of its answer."""

METHODS = frozenset(("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE"))

NO_ROUTE = "none"
"""The route of what is no request of any API we serve."""


class Answered:
    """Requests that were equal in method, route and status."""

    __slots__ = ("count", "received", "seconds", "sent")

    def __init__(self) -> None:
        self.count = 0
        self.received = 0
        """Bytes, heads included."""
        self.sent = 0
        self.seconds = Histogram(SECONDS)


class Tally:
    """The books of one server."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str, int], Answered] = {}
        self.turned_away = 0
        """Connections that found no room."""

    def note(self, method: str, route: str, status: int, received: int, sent: int, took_s: float) -> None:
        """One request was answered, or its client has gone (499)."""
        row = self._rows.get((method, route, status))
        if row is None:
            row = self._open_row(method, route, status)
        row.count += 1
        row.received += received
        row.sent += sent
        row.seconds.observe(took_s)

    def _open_row(self, method: str, route: str, status: int) -> Answered:
        method = method if method in METHODS else "other"
        return self._rows.setdefault((method, route or NO_ROUTE, status), Answered())

    def rows(self) -> Iterator[tuple[str, str, int, Answered]]:
        """Method, route, status, and how many requests had them."""
        for (method, route, status), row in self._rows.items():
            yield method, route, status, row

"""Spans: what took how long, and for whose sake. Off unless `monitoring.spans` has switched them on.

    with tracing.span("crdt.transaction", {"ipfsreg.commits": 3}) as span:
        ...
        span.set_attribute("ipfsreg.changes", 5)

Switched off, a span is a test of one global and an object that does nothing (0.6 µs). The global is the process's, like
the standard library's loggers: whoever works deep in a part should not have to be given a tracer.

Parents follow the context of the task: a task started while a span is open belongs to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

Value = str | bool | int | float

_tracer: Tracer | None = None


class Span(Protocol):
    """Something that takes time."""

    def set_attribute(self, key: str, value: Value) -> None:
        """Say something of it."""

    def end(self) -> None:
        """It is over; only for those of `start`."""


class _Nothing(AbstractContextManager["_Nothing"]):
    """No span."""

    def set_attribute(self, key: str, value: Value) -> None:
        """Nothing."""

    def end(self) -> None:
        """Nothing."""

    def __exit__(self, *exc: object) -> None:
        return None


_NOTHING = _Nothing()


def switch(tracer: Tracer | None) -> None:
    """Trace with *tracer* from now on; None: not any more."""
    global _tracer
    _tracer = tracer


def is_on() -> bool:
    """Whether anybody wants spans."""
    return _tracer is not None


def span(
    name: str, attributes: Mapping[str, Value] | None = None, *, detached: bool = False
) -> AbstractContextManager[Span]:
    """A span while the block lasts. *detached*: nobody's child, for tasks that serve many.

    A failure that leaves the block is told; being cancelled is not one.
    """
    if _tracer is None:
        return _NOTHING
    if not detached:
        return _tracer.start_as_current_span(name, attributes=attributes)
    from opentelemetry.context import Context

    return _tracer.start_as_current_span(name, Context(), attributes=attributes)


class Stages:
    """Spans that follow each other; each ends where the next begins."""

    __slots__ = ("_name", "_span")

    def __init__(self) -> None:
        self._name = ""
        self._span: Span = _NOTHING

    def enter(self, name: str) -> None:
        """Now comes *name*, if it is not that already."""
        if _tracer is None or name == self._name:
            return
        self._span.end()
        self._name = name
        self._span = _tracer.start_span(name)

    def leave(self) -> None:
        """The last one is over."""
        self._span.end()
        self._name, self._span = "", _NOTHING

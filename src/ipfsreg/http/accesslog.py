"""One line for each request, in one of several forms.

    async with open_access_log("json", path) as log: ...

A request pays for making its line and nothing else: lines are gathered, and written by a worker thread five times a
second, so that a slow disk, or whoever reads our standard error and has stopped, holds up nobody. What does not fit
into `MAX_WAITING_BYTES` is dropped and counted. A kill -9 loses the last fifth of a second.

The file is opened for each write, so it can be moved away at any time (logrotate, without a signal).

Lines never have a header but the user agent, and of a query no value whose name sounds like a secret. Whatever a client
chose is cut to a bound and escaped: it ends no line and forges none.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import msgspec
import trio

from ipfsreg.http.request import Request

logger = logging.getLogger(__name__)

GATHER_S = 0.2
MAX_WAITING_BYTES = 4 * 1024 * 1024
FLUSH_S = 2.0
"""How long the last lines may take when the node stops."""
COMPLAIN_EVERY_S = 60.0

MAX_TARGET_CHARACTERS = 1024
MAX_FIELD_CHARACTERS = 256

STANDARD_ERROR = 2

_SECRET = re.compile(r"([?&][^=&]*(?:token|secret|passw|sign|auth|key|credential)[^=&]*=)[^&]*", re.IGNORECASE)
_encode = msgspec.json.Encoder().encode


def target_of(request: Request) -> str:
    """Path and query as they may stand in a log: bounded, ASCII, without secrets."""
    target = request.target
    if "?" in target:
        target = _SECRET.sub(r"\1***", target)
    return bounded(target, MAX_TARGET_CHARACTERS)


def bounded(text: str, characters: int = MAX_FIELD_CHARACTERS) -> str:
    """*text* as it may stand in a log: cut, with everything escaped that is not printable ASCII."""
    if len(text) > characters:
        text = text[:characters] + "..."
    if text.isascii() and text.isprintable():
        return text
    return text.encode("ascii", "backslashreplace").decode().translate(_CONTROLS)


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)}


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def text_line(request: Request, status: int, received: int, sent: int, took_s: float, now: float) -> bytes:
    """As the lines of the log around it."""
    stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
    return (
        f"{stamp}.{int(now * 1000) % 1000:03d}Z INFO ipfsreg.http.access: {request.peer} {request.method}"
        f" {target_of(request)} -> {status}, {sent} bytes, {took_s * 1000:.1f} ms\n"
    ).encode("ascii", "backslashreplace")


def combined_line(request: Request, status: int, received: int, sent: int, took_s: float, now: float) -> bytes:
    """The Combined Log Format that web servers write."""
    stamp = time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now))
    agent = _quoted(bounded(request.headers.get("user-agent", "-")))
    user = bounded(request.user).replace(" ", "_") or "-"
    return (
        f'{request.peer} - {user} [{stamp}] "{request.method} {_quoted(target_of(request))} HTTP/1.1"'
        f' {status} {sent} "-" "{agent}"\n'
    ).encode("ascii", "backslashreplace")


def json_line(request: Request, status: int, received: int, sent: int, took_s: float, now: float) -> bytes:
    """An object: docs/operations.md has its fields."""
    headers = request.headers
    return (
        _encode(
            {
                "time": round(now, 6),
                "remote": request.peer,
                "user": bounded(request.user),
                "method": request.method,
                "path": target_of(request),
                "route": request.route,
                "status": status,
                "received_bytes": received,
                "sent_bytes": sent,
                "seconds": round(took_s, 6),
                "host": bounded(headers.get("host", "")),
                "user_agent": bounded(headers.get("user-agent", "")),
            }
        )
        + b"\n"
    )


Line = Callable[[Request, int, int, int, float, float], bytes]

FORMATS: dict[str, Line] = {"text": text_line, "combined": combined_line, "json": json_line}


class AccessLog:
    """Gathers lines. Built only by `open_access_log`."""

    def __init__(self, line: Line, path: Path | None) -> None:
        self._line = line
        self._path = path
        self._lines: list[bytes] = []
        self._waiting_bytes = 0
        self._wake = trio.Event()
        self._complained_at = float("-inf")
        self.dropped = 0
        """Lines that were not written."""

    def note(self, request: Request, status: int, received: int, sent: int, took_s: float) -> None:
        """*request* was answered with *status*, or its client has gone (499)."""
        line = self._line(request, status, received, sent, took_s, time.time())
        if self._waiting_bytes + len(line) > MAX_WAITING_BYTES:
            self.dropped += 1
            return
        self._lines.append(line)
        self._waiting_bytes += len(line)
        self._wake.set()

    async def run(self) -> None:
        """Write what has gathered, for ever."""
        while True:
            await self._wake.wait()
            await trio.sleep(GATHER_S)
            self._wake = trio.Event()
            await self.flush()

    async def flush(self) -> None:
        """Write all that waits. Cancelled: the thread may still write it."""
        lines, self._lines = self._lines, []
        if not lines:
            return
        try:
            # The stubs that libp2p brings along are older than this parameter.
            await trio.to_thread.run_sync(  # type: ignore[call-arg]
                partial(_write, self._path, b"".join(lines)), abandon_on_cancel=True
            )
        except OSError as error:
            self.dropped += len(lines)
            if trio.current_time() - self._complained_at >= COMPLAIN_EVERY_S:
                self._complained_at = trio.current_time()
                logger.warning("the access log cannot be written: %s", error)
        self._waiting_bytes = sum(map(len, self._lines))


def _write(path: Path | None, data: bytes) -> None:
    """Raises OSError."""
    if path is None:
        _write_all(STANDARD_ERROR, data)
        return
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
    try:
        _write_all(descriptor, data)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


@asynccontextmanager
async def open_access_log(format: str, path: Path | None) -> AsyncIterator[AccessLog | None]:
    """A log in one of `FORMATS` to *path* (None: standard error) for as long as the block lasts; "off": None."""
    if format == "off":
        yield None
        return
    log = AccessLog(FORMATS[format], path)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.run)
        try:
            yield log
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True, deadline=trio.current_time() + FLUSH_S):
                await log.flush()

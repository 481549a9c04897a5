"""PURE: a response as handlers give it, and its head as bytes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from ipfsreg.registry.interface import Piece

Header = tuple[str, str]

Stands = Callable[[str], bool]
"""Whether an answer is still the right one to the same request from this address. Costs no more than it must: it is
asked before each time the answer is given again."""

_REASONS = {status.value: status.phrase for status in HTTPStatus}


@dataclass(frozen=True, slots=True)
class FileBody:
    """The bytes [start, end) of a file, handed from kernel to kernel where the connection allows it."""

    path: Path
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class StreamBody:
    """*length* bytes from an iterator. Where it fails or gives another number of bytes, the connection breaks, so that
    nobody takes what was sent for the whole."""

    length: int
    pieces: AsyncIterator[Piece]


@dataclass(frozen=True, slots=True)
class NoBody:
    """The answer to a HEAD: what a GET would carry, in bytes, without carrying it."""

    length: int


@dataclass(frozen=True, slots=True)
class Response:
    """What a handler answers. Content-Length, Date and Connection are the server's to add."""

    status: int
    headers: Sequence[Header] = ()
    body: bytes | FileBody | StreamBody | NoBody = b""
    stands: Stands | None = None
    """Where the answer rests on nothing but the request's head and what this says: it may be given again without asking
    the handler, as long as this is true. None: it is good for once."""


def body_length(response: Response) -> int:
    """Bytes its Content-Length names."""
    body = response.body
    if isinstance(body, bytes):
        return len(body)
    if isinstance(body, FileBody):
        return body.end - body.start
    return body.length


def encode_head(response: Response, date: str, connection: str) -> bytes:
    """The head, up to and with the empty line. *connection* is the value of that header, empty for none.

    Raises:
        ValueError: a header value that would end its line. Some values, as media types, once came from a stranger.
    """
    status = response.status
    lines = [f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", f"Date: {date}"]
    lines += [f"{name}: {value}" for name, value in response.headers]
    if status not in (204, 304):
        lines.append(f"Content-Length: {body_length(response)}")
    if connection:
        lines.append(f"Connection: {connection}")
    lines.append("\r\n")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) or text.count("\r") != len(lines) or "\0" in text:
        raise ValueError("a response header holds a line end")
    return text.encode("latin-1")

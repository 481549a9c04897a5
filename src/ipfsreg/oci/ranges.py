"""Byte ranges of blobs and of upload chunks. Specs: RFC 9110 section 14; distribution-spec "Pushing a blob in chunks"."""

from __future__ import annotations

import re

from ipfsreg.errors import RangeInvalid

_RANGE = re.compile(r"([0-9]{1,19})-([0-9]{1,19})?|-([0-9]{1,19})", re.ASCII)
_CONTENT_RANGE = re.compile(r"(?:bytes[ =])?([0-9]{1,19})-([0-9]{1,19})(?:/(?:[0-9]{1,19}|\*))?", re.ASCII)


def parse_range(header: str, size: int) -> tuple[int, int] | None:
    """The bytes [start, end) of *size* a Range header asks for: `bytes=a-b`, `bytes=a-` or `bytes=-n`.

    None means that all of them are to be sent: another unit, or several ranges, which a server may ignore. One range as
    a whole costs a client less than a multipart answer it may not expect.

    Raises:
        RangeInvalid: not a range, backwards, or none of it lies inside. To be answered with 416.
    """
    unit, _, text = header.partition("=")
    if unit.strip().lower() != "bytes" or "," in text:
        return None
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        raise RangeInvalid(f"{header[:80]!r} is not a byte range")
    first, last, suffix = match.groups()
    start = max(0, size - int(suffix)) if suffix else int(first)
    end = size if last is None else min(size, int(last) + 1)
    if start >= end:
        raise RangeInvalid(f"{header[:80]!r} asks for nothing of {size} bytes")
    return start, end


def content_range(start: int, end: int, size: int) -> str:
    """The Content-Range header of an answer with the bytes [start, end) of *size*."""
    return f"bytes {start}-{end - 1}/{size}"


def unsatisfied_range(size: int) -> str:
    """The Content-Range header of a 416."""
    return f"bytes */{size}"


def parse_chunk_range(header: str) -> tuple[int, int]:
    """The bytes [start, end) an upload chunk says it is: `a-b`, both included, as distribution-spec has it.

    `bytes a-b/size`, as RFC 9110 has it, is taken too: some clients send that.

    Raises:
        RangeInvalid: anything else, or backwards.
    """
    match = _CONTENT_RANGE.fullmatch(header.strip())
    if match is None or int(match[1]) > int(match[2]):
        raise RangeInvalid(f"{header[:80]!r} is not the range of a chunk")
    return int(match[1]), int(match[2]) + 1


def upload_range(offset: int) -> str:
    """The Range header of an upload that holds *offset* bytes. An empty one says `0-0`, as every registry does."""
    return f"0-{max(0, offset - 1)}"

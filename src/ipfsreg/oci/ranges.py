"""Byte ranges as clients write them: `Range` on a download, `Content-Range` on a chunk of an upload.

Specs: RFC 9110, 14; distribution-spec, "Pushing a blob in chunks".
"""

from __future__ import annotations

import re

from ipfsreg.errors import RangeInvalid

_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})", re.ASCII)
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/(?:[0-9]+|\*))?", re.ASCII)


def parse_range(text: str, size: int) -> tuple[int, int] | None:
    """The [start, end) that a `Range` header asks of *size* bytes; None where all of them are to be sent.

    Another unit, or several ranges at once, may be answered with the whole (RFC 9110, 14.2). A range that is not one,
    or lies outside, is refused: a client that gets the whole where it asked for a rest would append it to what it has.

    Raises:
        RangeInvalid: nothing of the range can be served.
    """
    unit, separator, ranges = text.partition("=")
    if unit.strip().lower() != "bytes" or not separator or "," in ranges:
        return None
    match = _RANGE.fullmatch(ranges.strip())
    if match is None or not (match[1] or match[2]):
        raise RangeInvalid(f"{text[:100]!r} is not a range")
    if match[1]:
        start = int(match[1])
        end = min(int(match[2]) + 1, size) if match[2] else size
    else:
        start, end = max(size - int(match[2]), 0), size
    if start >= end:
        raise RangeInvalid(f"{text[:100]!r} is outside of the {size} bytes there are")
    return start, end


def parse_content_range(text: str) -> tuple[int, int]:
    """The [start, end) of an upload's chunk. With the unit and total of HTTP, or without as the OCI has it.

    Raises:
        RangeInvalid: not a range, or one that ends before it starts.
    """
    match = _CONTENT_RANGE.fullmatch(text.strip())
    if match is None or int(match[2]) < int(match[1]):
        raise RangeInvalid(f"{text[:100]!r} is not the range of a chunk")
    return int(match[1]), int(match[2]) + 1

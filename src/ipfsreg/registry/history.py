"""The history of a tag: which moves led to where it points, which lost, and where it pointed at some time. PURE.

Every move writes a MoveRecord of its own, so concurrent moves are all here, while the tag itself shows one winner. A
move says what its node saw the tag at. From the present move back, the move before one is the latest that led to what
it started from; moves that are never come by on this way were made at the same time as others, and lost.

Times are those of the nodes that moved the tag. They are shown, and are the order where nothing else tells; a clock
that is wrong makes its moves look early or late, and never changes which move won.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from ipfsreg.errors import MalformedData
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import Tag
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.catalog import MoveRecord, TagRecord

_PAST = re.compile(r"(.+)--(\d{4})-(\d\d)-(\d\d)(?:T(\d\d)\.(\d\d)\.(\d\d)Z)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Move:
    """One move of a tag."""

    when_us: int
    """Microseconds since 1970, by the clock of the node that made it."""
    peer: PeerId
    to: Digest | None
    """None: the tag was deleted."""
    before: Digest | None
    """What that node saw it at; None: it did not exist there."""
    step: int | None = None
    """How many moves before the present one; None: it lost against a concurrent one."""


def read_move(suffix: str, data: bytes) -> Move:
    """The move that stands under a history key with this *suffix*. Raises MalformedData."""
    record = MoveRecord.decode(data)
    digits, dash, peer = suffix.partition("-")
    if not dash or not re.fullmatch(r"[0-9a-f]{16}", digits) or peer != record.peer.short:
        raise MalformedData(f"{suffix[:80]!r} is not the key of a move")
    return Move(int(digits, 16), record.peer, record.to, record.before)


def trace(moves: Iterable[Move], now: TagRecord | None) -> list[Move]:
    """*moves* with their steps, the latest first. *now*: what the tag is."""
    left = sorted(moves, key=lambda move: (move.when_us, move.peer.raw), reverse=True)
    steps: dict[Move, int] = {}
    at = _present(left, now)
    while at is not None:
        steps[at] = len(steps)
        at = _before(at, [move for move in left if move not in steps])
    return [replace(move, step=steps.get(move)) for move in left]


def _present(moves: Sequence[Move], now: TagRecord | None) -> Move | None:
    """The move that made the tag what it is; *moves* from the latest to the earliest."""
    if now is None:
        return next((move for move in moves if move.to is None), None)
    same = [move for move in moves if move.to == now.digest]
    return next((move for move in same if (move.when_us, move.peer) == (now.when_us, now.peer)), next(iter(same), None))


def _before(move: Move, others: Sequence[Move]) -> Move | None:
    """Which of *others* led to what *move* started from: the latest before it, where the clocks say so."""
    led = [other for other in others if other.to == move.before]
    earlier = next((other for other in led if other.when_us < move.when_us), None)
    # Later only by a clock that is wrong. But a tag can begin without a move before, so a later deletion tells nothing.
    return earlier or (next(iter(led), None) if move.before is not None else None)


def state_at(traced: Iterable[Move], when_us: int) -> Digest | None:
    """Where the tag pointed at a time, given what `trace` returned. None: nowhere."""
    counting = sorted((move for move in traced if move.step is not None), key=lambda move: move.step or 0)
    return next((move.to for move in counting if move.when_us <= when_us), None)


def parse_past(tag: Tag) -> tuple[Tag, int] | None:
    """Read `latest--2026-11-01T12.30.00Z`, or with the day alone its beginning: a tag and microseconds since 1970, UTC.

    None for any other tag.
    """
    match = _PAST.fullmatch(tag)
    if match is None:
        return None
    name, *numbers = match.groups(default="0")
    year, month, day, hour, minute, second = map(int, numbers)
    try:
        when = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except ValueError:
        return None
    return Tag(name), int(when.timestamp()) * 1_000_000


def format_time(when_us: int) -> str:
    """As `parse_past` reads it, to the second."""
    return datetime.fromtimestamp(when_us // 1_000_000, tz=UTC).strftime("%Y-%m-%dT%H.%M.%SZ")

"""The promises of docs/consistency.md, judged from outside: what clients were told, against what the nodes show after.

    history = History()
    history.add(Operation(...))            while partitions, kills and wrong clocks come and go
    findings = judge(history, shown)       when all nodes are together again: one sentence for each broken promise

The judge knows operations with their answers, the log and the value of each tag at each node, and which move
stands below which in the DAG. Every push has a digest of its own, so that a value names the push it comes from.

The exception of docs/consistency.md (a node that writes while it is catching up) shows in the DAG and in what a move
removes by name: it removed a push without being above an older one, which shows again. Nothing else is excused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

Position = float
"""Seconds on one clock that all clients share."""

MoveKey = tuple[int, str]
"""Microseconds by the clock of the node that moved the tag, and its peer ID."""

OWN = "own-"
"""Tags that begin so are written by one node alone, one write after the other."""

FIXED = "fixed-"
"""Tags that begin so are immutable at every node."""


@dataclass(frozen=True, slots=True)
class Write:
    """A push (to a digest nobody else pushes) or deletion (to None) of a tag."""

    node: str
    tag: str
    to: str | None
    began: Position
    ended: Position
    outcome: str
    """`done`, `refused` (nothing may remain of it) or `unknown` (wholly there or not at all)."""
    heads: str = ""
    """The token that the answer carried."""


@dataclass(frozen=True, slots=True)
class Read:
    """What a tag was at a node."""

    node: str
    tag: str
    found: str | None
    began: Position
    ended: Position
    after: Write | None = None
    """The write whose token the request carried."""


@dataclass(frozen=True, slots=True)
class LoggedMove:
    """One line of `ipfsreg log`."""

    peer: str
    when_us: int
    to: str | None
    before: str | None
    step: int | None
    below: frozenset[MoveKey]
    """The moves of the same tag that stand below it in the DAG."""
    removed: frozenset[MoveKey] = frozenset()
    """Those whose values it removes by name."""

    @property
    def key(self) -> MoveKey:
        """By which it is known."""
        return self.when_us, self.peer


@dataclass(frozen=True, slots=True)
class Shown:
    """What one node shows in the end."""

    values: Mapping[str, str | None]
    logs: Mapping[str, tuple[LoggedMove, ...]]
    """By tag, the latest first."""


@dataclass(slots=True)
class History:
    """All operations. Clients in many threads may add to it."""

    peers: Mapping[str, str]
    """The peer ID of each node."""
    writes: list[Write] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, operation: Write | Read) -> None:
        """Remember one."""
        with self._lock:
            if isinstance(operation, Write):
                self.writes.append(operation)
            else:
                self.reads.append(operation)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of it."""

    findings: tuple[str, ...]
    """Broken promises."""
    early: int
    """Tags with moves by nodes that were catching up."""


def judge(history: History, shown: Mapping[str, Shown]) -> Verdict:
    """Hold *history* against what each node shows, after all of them were together for long enough."""
    findings: list[str] = []
    early = 0
    names = sorted(shown)
    first = shown[names[0]]
    for name in names[1:]:
        for tag in sorted(first.values):
            if shown[name].values[tag] != first.values[tag]:
                findings.append(f"convergence: {tag} is {first.values[tag]} at {names[0]}, not so at {name}")
            if shown[name].logs[tag] != first.logs[tag]:
                findings.append(f"convergence: the log of {tag} at {names[0]} and {name} differ")
    for tag in sorted(first.values):
        judge_tag = _Tag(history, tag, first.values[tag], first.logs[tag])
        findings += judge_tag.findings()
        early += judge_tag.has_early
    return Verdict(tuple(findings), early)


class _Tag:
    """One tag: its operations, its log, its value."""

    def __init__(self, history: History, tag: str, value: str | None, log: tuple[LoggedMove, ...]) -> None:
        self._tag = tag
        self._peers = history.peers
        self._value = value
        self._log = log
        self._writes = [write for write in history.writes if write.tag == tag]
        self._reads = [read for read in history.reads if read.tag == tag]
        self._pushes = {move.to: move for move in log if move.to is not None}
        self._removed = frozenset().union(*(move.removed for move in log))
        self.has_early = any(not move.removed <= move.below or not self._is_above_what_it_saw(move) for move in log)

    def _is_above_what_it_saw(self, move: LoggedMove) -> bool:
        push = self._pushes.get(move.before or "")
        return push is None or push.key in move.below

    def findings(self) -> Iterator[str]:
        """Each broken promise."""
        for check in (self._durable, self._winner, self._no_way_back, self._read_your_writes, self._own, self._fixed):
            for what in check():
                yield f"{self._tag}: {what}"

    def _moves_of(self, write: Write) -> list[LoggedMove]:
        peer = self._peers[write.node]
        return [move for move in self._log if move.peer == peer and move.to == write.to]

    def _durable(self) -> Iterator[str]:
        for write in self._writes:
            if write.to is None:
                continue
            found = self._moves_of(write)
            if write.outcome == "done" and not found:
                yield f"the push of {write.to} at {write.node} was acknowledged and is not in the log"
            if write.outcome == "refused" and found:
                yield f"the push of {write.to} at {write.node} was refused and is in the log"
            if len(found) > 1:
                yield f"the push of {write.to} at {write.node} is in the log {len(found)} times"
        for node, peer in self._peers.items():
            deleted = [write for write in self._writes if write.to is None and write.node == node]
            logged = sum(move.to is None and move.peer == peer for move in self._log)
            done = sum(write.outcome == "done" for write in deleted)
            unknown = sum(write.outcome == "unknown" for write in deleted)
            if not done <= logged <= done + unknown:
                yield f"{done} deletions at {node} were acknowledged, {unknown} unknown, and {logged} are in the log"

    def _winner(self) -> Iterator[str]:
        present = [move for move in self._log if move.step == 0]
        if self._log and [move.to for move in present] != [self._value]:
            yield f"it is {self._value}, and the log calls {[move.to for move in present]} the present move"
        if self._value is not None and self._value not in self._pushes:
            yield f"it is {self._value}, which nobody pushed"

    def _is_excused(self, push: LoggedMove, above: LoggedMove) -> bool:
        """Whether *push* may show though *above* beats it: who removed that did not have the push yet."""
        return any(above.key in move.removed and push.key not in move.below for move in self._log)

    def _no_way_back(self) -> Iterator[str]:
        """Nothing comes back, and nothing goes but by who had it."""
        for push in self._pushes.values():
            above = [move for move in self._log if push.key in move.below]
            if push.to == self._value:
                for move in above:
                    if not self._is_excused(push, move):
                        yield f"{push.to} is back, which {move.peer} had moved away from"
            if self._value is None and push.key not in self._removed:
                yield f"the push of {push.to} was never deleted by anybody who had it, and is gone"

    def _read_your_writes(self) -> Iterator[str]:
        for read in self._reads:
            known = [write for write in self._writes if write.outcome == "done" and write.node == read.node]
            for write in [*known, *([read.after] if read.after is not None else [])]:
                moves = self._moves_of(write)
                if write.ended > read.began or write.to == read.found or len(moves) != 1:
                    continue  # of several deletions nobody was told which it was
                (move,) = moves
                what = f"a read of {read.found} at {read.node} after {write.to} was written at {write.node}"
                if read.found is None:
                    if move.key not in self._removed:
                        yield f"{what}, which nobody deleted"
                elif read.found not in self._pushes:
                    yield f"{what}: that is in no log"
                else:
                    push = self._pushes[read.found]
                    if push.key in move.below and not self._is_excused(push, move):
                        yield f"{what}, which beats it"

    def _own(self) -> Iterator[str]:
        """Of a tag that one node writes alone, everything is known."""
        if not self._tag.startswith(OWN):
            return
        ordered = sorted(self._writes, key=lambda write: write.began)
        for read in self._reads:
            if read.after is None and read.node != self._tag.removeprefix(OWN):
                continue
            until = read.began if read.after is None else read.after.ended
            allowed = _possible(ordered, until, read.ended)
            if read.found not in allowed:
                yield f"a read at {read.node} found {read.found}, possible were {allowed}"
        if ordered:
            allowed = _possible(ordered, float("inf"), float("inf"))
            if self._value not in allowed:
                yield f"it is {self._value}, possible were {allowed}"

    def _fixed(self) -> Iterator[str]:
        if self._tag.startswith(FIXED):
            for move in self._log:
                if move.before is not None:
                    yield f"an immutable tag was moved from {move.before} to {move.to} by {move.peer}"


def _possible(ordered: Iterable[Write], until: Position, ended: Position) -> set[str | None]:
    """What a tag may be to who has all that was done *until* then and perhaps what began before *ended*."""
    allowed: set[str | None] = {None}
    for write in ordered:
        if write.outcome == "refused" or write.began > ended:
            continue
        if write.outcome == "done" and write.ended <= until:
            allowed = {write.to}
        else:
            allowed.add(write.to)
    return allowed


def moves_below(
    places: Mapping[MoveKey, int], children: Mapping[int, Sequence[int]]
) -> dict[MoveKey, frozenset[MoveKey]]:
    """Which moves stand below which, given the node of a DAG where each is and the children of every node."""
    keys = list(places)
    here: dict[int, int] = {}
    for number, key in enumerate(keys):
        here[places[key]] = here.get(places[key], 0) | 1 << number
    found: dict[int, int] = {}
    stack = list(places.values())
    while stack:
        node = stack[-1]
        missing = [child for child in children.get(node, ()) if child not in found]
        if missing:
            stack += missing
            continue
        stack.pop()
        below = 0
        for child in children.get(node, ()):
            below |= found[child] | here.get(child, 0)
        found[node] = below
    return {
        key: frozenset(other for number, other in enumerate(keys) if found[places[key]] >> number & 1) for key in keys
    }

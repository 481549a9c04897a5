"""What clients were told of their images, and what of it nodes must still serve when all trouble is over. Pure.

    ledger = Ledger()
    ledger.add(Push(...)), ledger.add(Removal(...))     while nodes are killed, cut off, filled, damaged, collected
    findings = judge(ledger, shown, lost)               when all are together again: a sentence for each broken promise

What is asked (docs/consistency.md, "Garbage collection"):

- A manifest that was acknowledged stays, with the manifests below it and every blob of all of them, byte for byte, on
  every node; but for what a client deleted at the same time or later.
- A manifest that was deleted by somebody who had every push of it does not come back.
- A tag is the same everywhere, points at something that was pushed to it, and what it points at can be pulled; it is
  gone only where somebody deleted it, or what it pointed at, during or after its last push.
- A referrer is listed as long as its manifest stays.

Which of concurrent moves of a tag wins is judged elsewhere (`histories`).
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

WHOLE = "whole"
GONE = "gone"
"""What a node shows of a manifest or blob: 200 with the right bytes; 404; or what else it answered."""


@dataclass(frozen=True, slots=True)
class Image:
    """A manifest as it was made: what it names."""

    repository: str
    digest: str
    blobs: frozenset[str] = frozenset()
    """Config and layers."""
    below: tuple[Image, ...] = ()
    """The manifests an index lists."""
    subject: str | None = None

    def all(self) -> Iterator[Image]:
        """This one and those below."""
        yield self
        for image in self.below:
            yield from image.all()


@dataclass(frozen=True, slots=True)
class Push:
    """A manifest that was pushed. Times are seconds on one clock that all clients share."""

    node: str
    image: Image
    tag: str | None
    began: float
    ended: float
    outcome: str
    """`done` (201), `refused` (nothing was done), or `unknown`."""


@dataclass(frozen=True, slots=True)
class Removal:
    """What a client deleted."""

    node: str
    repository: str
    kind: str
    """`tag`, `manifest` or `blob`."""
    what: str
    began: float
    ended: float
    outcome: str


@dataclass(slots=True)
class Ledger:
    """All of it. Clients in many threads may add."""

    pushes: list[Push] = field(default_factory=list)
    removals: list[Removal] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, entry: Push | Removal) -> None:
        """Remember one."""
        with self._lock:
            if isinstance(entry, Push):
                self.pushes.append(entry)
            else:
                self.removals.append(entry)

    def settle(self, asked: Removal, answered: Removal) -> None:
        """A deletion that was written down as `unknown` when it was asked for has been answered."""
        with self._lock:
            self.removals[self.removals.index(asked)] = answered

    def removed_since(self, repository: str, kind: str, what: str, since: float) -> bool:
        """Whether a client may have deleted it at any time after *since*."""
        return any(
            removal.repository == repository
            and removal.kind == kind
            and removal.what == what
            and removal.outcome != "refused"
            and removal.ended > since
            for removal in list(self.removals)
        )


@dataclass(frozen=True, slots=True)
class Shown:
    """What one node serves in the end."""

    tags: Mapping[tuple[str, str], str | None]
    """(repository, tag) -> digest."""
    manifests: Mapping[tuple[str, str], str]
    """(repository, digest) -> WHOLE, GONE, or another answer."""
    blobs: Mapping[tuple[str, str], str]
    referrers: Mapping[tuple[str, str], frozenset[str]]
    """(repository, subject) -> digests."""


@dataclass(frozen=True, slots=True)
class Due:
    """What the nodes must show: (repository, digest) -> why."""

    manifests: dict[tuple[str, str], str]
    blobs: dict[tuple[str, str], str]
    gone: dict[tuple[str, str], str]
    """Manifests that must not be there."""


def due_of(ledger: Ledger) -> Due:
    """What *ledger* obliges every node to."""
    due = Due({}, {}, {})
    for push in ledger.pushes:
        if push.outcome != "done":
            continue
        for image in push.image.all():
            if ledger.removed_since(image.repository, "manifest", image.digest, push.began):
                continue
            why = f"pushed at {push.node}" + (f" as {push.tag}" if push.tag else "")
            if image is not push.image:
                why += f" with the index {push.image.digest}"
            due.manifests.setdefault((image.repository, image.digest), why)
            for blob in image.blobs:
                if not ledger.removed_since(image.repository, "blob", blob, push.began):
                    due.blobs.setdefault((image.repository, blob), f"of {image.digest}, {why}")
    for removal in ledger.removals:
        if removal.kind == "manifest" and removal.outcome == "done" and _knew_all(ledger, removal):
            due.gone[removal.repository, removal.what] = f"deleted at {removal.node}"
    return due


def _knew_all(ledger: Ledger, removal: Removal) -> bool:
    """Whether every write of the manifest was at the node that deleted it, before it did: or there was only one."""
    writes = [
        push
        for push in ledger.pushes
        if push.outcome != "refused"
        and any((image.repository, image.digest) == (removal.repository, removal.what) for image in push.image.all())
    ]
    # It was there to be deleted, so the only one was known.
    return (len(writes) == 1 and writes[0].outcome == "done" and writes[0].ended < removal.began) or all(
        push.node == removal.node and push.ended < removal.began and push.outcome == "done" for push in writes
    )


def judge(ledger: Ledger, shown: Mapping[str, Shown], lost: Collection[str] = ()) -> list[str]:
    """One sentence for each broken promise. *lost*: blobs and manifests whose last good copy was taken by force."""
    due = due_of(ledger)
    findings: list[str] = []
    for name, node in sorted(shown.items()):
        for kind, wanted, found in (
            ("manifest", due.manifests, node.manifests),
            ("blob", due.blobs, node.blobs),
        ):
            for (repository, digest), why in sorted(wanted.items()):
                state = found[repository, digest]
                if state != WHOLE and digest not in lost:
                    findings.append(f"{name}: {kind} {digest} of {repository} is {state}; {why}")
        for (repository, digest), why in sorted(due.gone.items()):
            if node.manifests[repository, digest] == WHOLE:
                findings.append(f"{name}: manifest {digest} of {repository} is back; {why}")
        findings += [f"{name}: {what}" for what in _judge_referrers(ledger, due, node)]
    findings += _judge_tags(ledger, shown, lost)
    return findings


def _judge_referrers(ledger: Ledger, due: Due, node: Shown) -> Iterator[str]:
    for push in ledger.pushes:
        image = push.image
        if image.subject is None:
            continue
        listed = image.digest in node.referrers[image.repository, image.subject]
        if (image.repository, image.digest) in due.manifests and not listed:
            yield f"{image.digest} is no referrer of {image.subject} in {image.repository}; pushed at {push.node}"
        if (image.repository, image.digest) in due.gone and listed:
            yield f"{image.digest} is a referrer of {image.subject} in {image.repository} still, and was deleted"


def _judge_tags(ledger: Ledger, shown: Mapping[str, Shown], lost: Collection[str]) -> Iterator[str]:
    names = sorted(shown)
    pushes: dict[tuple[str, str], list[Push]] = {}
    for push in ledger.pushes:
        if push.tag is not None and push.outcome != "refused":
            pushes.setdefault((push.image.repository, push.tag), []).append(push)
    for (repository, tag), moves in sorted(pushes.items()):
        values = {name: shown[name].tags[repository, tag] for name in names}
        value = values[names[0]]
        if len(set(values.values())) > 1:
            yield f"{repository}:{tag} differs: {values}"
            continue
        if value is None:
            for move in moves:
                if move.outcome == "done" and not _may_be_gone(ledger, repository, tag, moves, move.began):
                    yield f"{repository}:{tag} is gone, and nobody deleted it since {move.image.digest} was pushed"
                    break
            continue
        if value not in {move.image.digest for move in moves}:
            yield f"{repository}:{tag} is {value}, which nobody pushed"
        for name in names:
            state = shown[name].manifests.get((repository, value), "not asked for")
            if state != WHOLE and value not in lost:
                yield f"{name}: {repository}:{tag} points at {value}, which is {state}"


def _may_be_gone(ledger: Ledger, repository: str, tag: str, moves: list[Push], since: float) -> bool:
    return ledger.removed_since(repository, "tag", tag, since) or any(
        ledger.removed_since(repository, "manifest", move.image.digest, since) for move in moves
    )

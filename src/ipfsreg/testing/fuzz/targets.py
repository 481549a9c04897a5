"""All targets, and the inputs that were worth keeping."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ipfsreg.testing.fuzz import crdt_targets, data_targets, door_targets, http_targets, peer_targets, wire_targets
from ipfsreg.testing.fuzz.harness import Target

_ROOMS = (data_targets, crdt_targets, http_targets, door_targets, wire_targets, peer_targets)

TARGETS: dict[str, Target] = {target.name: target for room in _ROOMS for target in room.TARGETS}
"""By name."""


def load_corpus(directory: Path, target: Target) -> list[bytes]:
    """The inputs kept for *target*: one in hex on each line of `<name>.hex`. None where there is no such file."""
    path = directory / f"{target.name}.hex"
    if not path.exists():
        return []
    return [bytes.fromhex(line) for line in path.read_text().split()]


def save_corpus(directory: Path, target: Target, inputs: Iterable[bytes]) -> None:
    """Keep *inputs*, short before long, so that a change of one is a change of one line."""
    kept = sorted(set(inputs), key=lambda each: (len(each), each))
    (directory / f"{target.name}.hex").write_text("".join(f"{each.hex()}\n" for each in kept))

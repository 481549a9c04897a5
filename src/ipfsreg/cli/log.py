"""`ipfsreg log` and `ipfsreg rollback`: the history of a tag."""

from __future__ import annotations

from typing import Any

from ipfsreg.cli.status import ask, tell
from ipfsreg.config import Config
from ipfsreg.oci.names import parse_repository, parse_tag


def name_fields(name: str) -> dict[str, str]:
    """REPO:TAG as the admin door takes it. Raises NameInvalid, TagInvalid."""
    repository, _, tag = name.partition(":")
    return {"repository": parse_repository(repository), "tag": parse_tag(tag)}


def moves_of(config: Config, name: str) -> list[dict[str, Any]]:
    """The moves of REPO:TAG, the latest first. Raises NotRunning, Refused, NameInvalid, TagInvalid."""
    moves = ask(config, "/log", name_fields(name))["moves"]
    assert isinstance(moves, list)
    return moves


def roll_back(config: Config, name: str, to: str) -> dict[str, Any]:
    """Move REPO:TAG to a digest or a number of moves back; return the move. Raises as `moves_of`."""
    move = tell(config, "/rollback", {**name_fields(name), "to": to})["move"]
    assert isinstance(move, dict)
    return move


def describe_move(move: dict[str, Any]) -> str:
    """One move as a line."""
    step = "lost" if move["step"] is None else str(move["step"])
    before = move["from"] or "nothing"
    return f"{step:>4}  {move['time']}  {move['peer']}  {before} -> {move['to'] or 'deleted'}"

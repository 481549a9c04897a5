from random import Random

import pytest

from ipfsreg.errors import MalformedData
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import Tag
from ipfsreg.registry.catalog import MoveRecord, TagRecord
from ipfsreg.registry.history import Move, format_time, parse_past, read_move, state_at, trace
from ipfsreg.testing.network import peer_of

ALICE, BOB = peer_of("alice"), peer_of("bob")
X, Y, Z = (Digest.of(text) for text in (b"x", b"y", b"z"))


def steps(moves: list[Move], now: Digest | None, when_us: int = 0) -> dict[int, int | None]:
    """The step of each move, by its time."""
    mixed = list(moves)
    Random(len(moves)).shuffle(mixed)
    record = None if now is None else TagRecord(now, when_us, next(m.peer for m in moves if m.when_us == when_us))
    traced = trace(mixed, record)
    assert [move.when_us for move in traced] == sorted((move.when_us for move in moves), reverse=True)
    return {move.when_us: move.step for move in traced}


def test_moves_one_after_the_other_are_counted_back_from_the_present_one() -> None:
    moves = [Move(1, ALICE, X, None), Move(2, BOB, Y, X), Move(3, ALICE, X, Y), Move(4, ALICE, Z, X)]
    assert steps(moves, Z, 4) == {4: 0, 3: 1, 2: 2, 1: 3}
    assert steps([], None) == {}


def test_of_concurrent_moves_those_that_lost_have_no_step() -> None:
    moves = [Move(1, ALICE, X, None), Move(2, ALICE, Y, X), Move(3, BOB, Z, X)]
    assert steps(moves, Y, 2) == {1: 1, 2: 0, 3: None}, "the earlier one can win"
    assert steps([*moves, Move(4, BOB, X, Y)], X, 4) == {1: 2, 2: 1, 3: None, 4: 0}


def test_a_deletion_is_a_move_and_loses_against_a_concurrent_push() -> None:
    moves = [Move(1, ALICE, X, None), Move(2, ALICE, None, X)]
    assert steps(moves, None) == {1: 1, 2: 0}
    assert steps([*moves, Move(3, BOB, Y, None)], Y, 3) == {1: 2, 2: 1, 3: 0}
    assert steps([*moves, Move(3, BOB, Y, X)], Y, 3) == {1: 1, 2: None, 3: 0}
    assert steps(moves, X, 1) == {1: 0, 2: None}, "a deletion after the first move is not the move before it"


def test_a_clock_that_is_days_ahead_does_not_change_who_won() -> None:
    moves = [Move(1, ALICE, X, None), Move(900, BOB, Y, X), Move(2, ALICE, Z, Y)]
    assert steps(moves, Z, 2) == {1: 2, 900: 1, 2: 0}


def test_the_state_at_a_time_is_that_of_the_moves_that_count() -> None:
    moves = [Move(10, ALICE, X, None), Move(20, BOB, Z, X), Move(21, ALICE, Y, X), Move(30, ALICE, None, Y)]
    traced = trace(moves, None)
    assert [state_at(traced, when) for when in (9, 10, 20, 21, 30)] == [None, X, X, Y, None]


def test_tags_with_a_time_are_read_and_others_left_alone() -> None:
    assert parse_past(Tag("latest--1970-01-01T00.00.01Z")) == ("latest", 1_000_000)
    assert parse_past(Tag("v1--2--1970-01-02")) == ("v1--2", 86400 * 1_000_000)
    assert parse_past(Tag("latest--" + format_time(1_796_083_200_000_000))) == ("latest", 1_796_083_200_000_000)
    for other in (
        "latest",
        "latest--1",
        "latest--2026-13-01",
        "--2026-01-01",
        "latest--2026-01-01T00.00.61Z",
        "a--0000-01-01",
    ):
        assert parse_past(Tag(other)) is None, other


@pytest.mark.parametrize(
    "suffix", ["", "1-x", "000000000000000a", "000000000000000A-" + ALICE.short, "000000000000000a-" + BOB.short]
)
def test_a_move_under_a_strange_key_is_refused(suffix: str) -> None:
    data = MoveRecord(X, None, ALICE).encode()
    assert read_move("000000000000000a-" + ALICE.short, data) == Move(10, ALICE, X, None)
    with pytest.raises(MalformedData):
        read_move(suffix, data)

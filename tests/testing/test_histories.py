"""The judge of histories finds each broken promise, and nothing where all are kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipfsreg.testing.histories import History, LoggedMove, Read, Shown, Write, judge, moves_below

PEERS = {"alice": "A", "bob": "B"}

# Alice pushes one, Bob, who has seen it, two; beside that Alice pushes three, which loses; Bob, who knows all, deletes.
ONE, TWO, THREE, GONE = (10, "A"), (20, "B"), (15, "A"), (30, "B")
LOG = (
    LoggedMove("B", 30, None, "two", 0, frozenset({ONE, TWO, THREE}), frozenset({ONE, TWO, THREE})),
    LoggedMove("B", 20, "two", "one", 1, frozenset({ONE})),
    LoggedMove("A", 15, "three", "one", None, frozenset({ONE})),
    LoggedMove("A", 10, "one", None, 2, frozenset()),
)
WRITES = (
    Write("alice", "t", "one", 1, 2, "done"),
    Write("bob", "t", "two", 3, 4, "done"),
    Write("alice", "t", "three", 3, 4, "done"),
    Write("bob", "t", None, 8, 9, "done"),
)


def findings(
    *,
    writes: tuple[Write, ...] = WRITES,
    reads: tuple[Read, ...] = (),
    log: tuple[LoggedMove, ...] = LOG,
    value: str | None = None,
    tag: str = "t",
    elsewhere: Shown | None = None,
) -> list[str]:
    shown = Shown({tag: value}, {tag: log})
    history = History(PEERS, [replace(write, tag=tag) for write in writes], [replace(read, tag=tag) for read in reads])
    return list(judge(history, {"alice": shown, "bob": elsewhere or shown}).findings)


def test_where_all_is_kept_nothing_is_found() -> None:
    reads = (
        Read("alice", "t", "one", 2.5, 2.6),
        Read("alice", "t", "three", 5, 6),
        Read("bob", "t", "three", 5, 6),
        Read("alice", "t", None, 10, 11, after=WRITES[3]),
    )
    assert findings(reads=reads) == []


def test_nodes_that_differ_are_found() -> None:
    assert any("convergence" in one for one in findings(elsewhere=Shown({"t": "two"}, {"t": LOG})))
    assert any("differ" in one for one in findings(elsewhere=Shown({"t": None}, {"t": LOG[:2]})))


def test_an_acknowledged_push_that_is_gone_is_found() -> None:
    assert any("not in the log" in one for one in findings(log=LOG[:2] + LOG[3:]))
    assert any(
        "0 are in the log" in one for one in findings(log=tuple(replace(m, step=0) for m in LOG[1:2]), value="two")
    )


def test_a_push_that_was_cut_off_may_be_there_or_not() -> None:
    unknown = (*WRITES[:2], replace(WRITES[2], outcome="unknown"), WRITES[3])
    assert findings(writes=unknown) == []
    assert findings(writes=unknown, log=tuple(move for move in LOG if move.to != "three")) == []


def test_what_was_refused_and_is_there_all_the_same_is_found() -> None:
    refused = (*WRITES[:2], replace(WRITES[2], outcome="refused"), WRITES[3])
    assert any("refused" in one for one in findings(writes=refused))


def test_a_value_that_was_moved_away_from_and_is_back_is_found() -> None:
    back = (replace(LOG[1], step=0), LOG[2], replace(LOG[3], step=1))
    found = findings(log=back, value="one", writes=WRITES[:3])
    assert any("is back" in one for one in found)


def test_a_push_that_nobody_deleted_who_had_it_and_is_gone_is_found() -> None:
    blind = replace(LOG[0], below=frozenset({ONE, TWO}), removed=frozenset({ONE, TWO}))
    assert any("three was never deleted" in one for one in findings(log=(blind, *LOG[1:])))


def test_who_writes_while_catching_up_is_excused_for_what_follows_from_that_alone() -> None:
    early = replace(LOG[0], below=frozenset({ONE, TWO}))
    assert findings(log=(early, *LOG[1:])) == [], "it removes three by name, and is not above it"
    # Bob has two and not yet what it stands on; he deletes it, and one shows again.
    blind = LoggedMove("B", 30, None, "two", None, frozenset(), frozenset({TWO}))
    log = (blind, replace(LOG[1], step=None), replace(LOG[3], step=0))
    writes = (WRITES[0], WRITES[1], WRITES[3])
    assert (
        findings(log=log, value="one", writes=writes, reads=(Read("bob", "t", "one", 10, 11, after=WRITES[1]),)) == []
    )
    knowing = replace(blind, below=frozenset({ONE, TWO}))
    assert any("is back" in one for one in findings(log=(knowing, *log[1:]), value="one", writes=writes))


@pytest.mark.parametrize(
    "read",
    [
        Read("bob", "t", "one", 5, 6),
        Read("alice", "t", "one", 5, 6, after=WRITES[1]),
        Read("alice", "t", "nobody's", 5, 6),
    ],
)
def test_a_read_of_what_the_reader_had_left_behind_is_found(read: Read) -> None:
    found = findings(reads=(read,))
    assert found
    assert all(f"a read of {read.found} at {read.node}" in one for one in found)


def test_a_read_of_nothing_where_nobody_deleted_is_found() -> None:
    log = (replace(LOG[1], step=0), LOG[2], replace(LOG[3], step=1))
    found = findings(log=log, value="two", writes=WRITES[:3], reads=(Read("bob", "t", None, 5, 6),))
    assert len(found) == 1
    assert "nobody deleted" in found[0]


def test_of_a_tag_that_one_node_writes_alone_everything_is_known() -> None:
    log = (
        LoggedMove("A", 20, "two", "one", 0, frozenset({ONE})),
        LoggedMove("A", 10, "one", None, 1, frozenset()),
    )
    writes = (WRITES[0], Write("alice", "t", "two", 3, 4, "done"))
    assert findings(tag="own-alice", log=log, value="two", writes=writes) == []
    stale = Read("bob", "t", None, 5, 6, after=writes[1])
    assert any(
        "possible were" in one for one in findings(tag="own-alice", log=log, value="two", writes=writes, reads=(stale,))
    )


def test_an_immutable_tag_that_was_moved_is_found() -> None:
    assert any("immutable" in one for one in findings(tag="fixed-1"))


def test_moves_stand_below_each_other_as_their_nodes_do() -> None:
    places = {ONE: 1, TWO: 4, THREE: 3, GONE: 6}
    children = {6: [5], 5: [4, 3], 4: [2], 3: [1], 2: [1]}
    assert moves_below(places, children) == {
        ONE: frozenset(),
        TWO: {ONE},
        THREE: {ONE},
        GONE: {ONE, TWO, THREE},
    }

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from ipfsreg.database import open_database
from ipfsreg.dht.keys import KEY_BITS, common_bits, position_of
from ipfsreg.dht.provided import EARLY, LONGEST, SKIP, ProvidedRoots, Root, next_due

DAY = 86400.0
INTERVAL = 22 * 3600.0
KEYS = [b"\x12\x20" + bytes([number]) * 32 for number in range(200)]


class Clock:
    now = 1.7e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def roots(tmp_path: Path, clock: Clock) -> AsyncIterator[ProvidedRoots]:
    async with open_database(tmp_path / "db") as database:
        kept = ProvidedRoots(database, interval_s=INTERVAL, clock=clock)
        await kept.prepare()
        yield kept


@given(st.integers(0, 2**256 - 1), st.floats(0, 4e9))
def test_a_root_is_due_when_the_hand_passes_it_and_never_too_late(position: int, now: float) -> None:
    due = next_due(position, now=now, interval_s=INTERVAL)
    assert now + SKIP * INTERVAL - 1 <= due <= now + LONGEST * INTERVAL + 1
    hand = due % INTERVAL / INTERVAL
    distance = abs(hand - position / (1 << KEY_BITS))
    assert min(distance, 1 - distance) < 1e-6


@given(st.integers(0, 2**256 - 1), st.floats(0, 4e9), st.floats(0, EARLY))
def test_announced_early_with_a_neighbour_it_is_not_due_again_at_its_own_time(
    position: int, start: float, early: float
) -> None:
    due = next_due(position, now=start, interval_s=INTERVAL)
    again = next_due(position, now=due - early * INTERVAL, interval_s=INTERVAL)
    assert again == pytest.approx(due + INTERVAL, abs=1)


def test_records_are_renewed_long_before_they_run_out() -> None:
    assert LONGEST * INTERVAL < 48 * 3600 / 1.5


async def test_what_is_new_is_due_at_once_and_then_within_the_interval(roots: ProvidedRoots, clock: Clock) -> None:
    await roots.add(KEYS)
    assert len(roots) == 200
    everything = roots.due_within(0, 0)
    assert sorted(root.key for root in everything) == sorted(KEYS)
    await roots.announced(everything)
    first = roots.first_due()
    assert first is not None
    assert first[1] > clock.now
    # Spread: in each quarter of the interval about a quarter of them comes up.
    clock.now += SKIP * INTERVAL
    shares = []
    for _ in range(4):
        clock.now += INTERVAL / 4
        due = [root for root, when in _all(roots) if when <= clock.now]
        await roots.announced(due)
        shares.append(len(due))
    assert sum(shares) == 200
    assert max(shares) < 80


def _all(roots: ProvidedRoots) -> list[tuple[Root, float]]:
    rows = roots._database.read("SELECT position, key, due FROM dht_roots")
    return [(Root(int.from_bytes(position, "big"), key), due) for position, key, due in rows]


async def test_only_the_neighbours_of_a_region_come_along(roots: ProvidedRoots) -> None:
    await roots.add(KEYS)
    prefix = position_of(KEYS[0])
    found = {root.key for root in roots.due_within(prefix, 3)}
    assert found == {key for key in KEYS if common_bits(position_of(key), prefix) >= 3}
    assert 0 < len(found) < 60


async def test_adding_again_changes_nothing_and_removing_forgets(roots: ProvidedRoots, clock: Clock) -> None:
    await roots.add(KEYS[:2])
    await roots.announced(roots.due_within(0, 0))
    first = roots.first_due()
    await roots.add(KEYS[:2])
    assert roots.first_due() == first
    assert roots.has(KEYS[0])
    await roots.remove(KEYS)
    assert not roots.has(KEYS[0])
    assert roots.first_due() is None
    assert roots.due_within(0, 0) == []


async def test_what_failed_is_due_again_after_a_while(roots: ProvidedRoots, clock: Clock) -> None:
    await roots.add(KEYS[:1])
    await roots.postpone(roots.due_within(0, 0), 30.0)
    first = roots.first_due()
    assert first is not None
    assert first[1] == clock.now + 30


async def test_a_clock_that_stood_wrong_silences_no_root(tmp_path: Path, clock: Clock) -> None:
    async with open_database(tmp_path / "db") as database:
        clock.now += 10 * 365 * DAY
        early = ProvidedRoots(database, interval_s=INTERVAL, clock=clock)
        await early.prepare()
        await early.add(KEYS[:1])
        await early.announced(early.due_within(0, 0))
        clock.now -= 10 * 365 * DAY
        later = ProvidedRoots(database, interval_s=INTERVAL, clock=clock)
        await later.prepare()
        first = later.first_due()
        assert first is not None
        assert first[1] == clock.now

from ipfsreg.bitswap.settings import MIB
from ipfsreg.bitswap.uplink import MOMENT_S, Slots, Uplink


def run(width: float, taker: float, *, seconds: float, waiting: int = 40, usual: int = 4) -> list[int]:
    """How many slots there were each moment, on a link of *width* to peers that take *taker* bytes per second each."""
    uplink = Uplink()
    slots = Slots(uplink, usual)
    seen, now = [], 0.0
    while now < seconds:
        busy = min(waiting, slots.allowed)
        uplink.record(int(min(width, busy * taker) * MOMENT_S), now)
        now += MOMENT_S
        slots.pass_to(now, busy=busy, stuck=False)
        seen.append(slots.allowed)
    return seen


def mean(slots: list[int]) -> float:
    return sum(slots) / len(slots)


def test_on_a_thin_link_two_peers_at_a_time_are_enough() -> None:
    assert mean(run(2.5e6, 100e6, seconds=60)) < 2.5


def test_on_a_wider_link_as_many_as_keep_a_block_below_a_second() -> None:
    slots = run(6.25e6, 100e6, seconds=60)
    assert 4 <= mean(slots[8:]) < 5
    assert max(slots) <= 6


def test_a_wide_link_is_filled_by_many_thin_peers_within_seconds() -> None:
    slots = run(20e6, 1e6, seconds=60)
    assert max(slots[: int(20 / MOMENT_S)]) >= 16
    assert mean(slots[int(30 / MOMENT_S) :]) >= 15


def test_all_that_want_something_get_it_where_the_link_is_never_full() -> None:
    assert run(1000 * MIB, 1e6, seconds=30, waiting=20)[-1] >= 19


def test_no_more_are_tried_than_want_something() -> None:
    assert max(run(1000 * MIB, 1e6, seconds=60, waiting=3)) <= 6


def test_no_more_than_usual_where_only_one_is_allowed() -> None:
    assert run(100e6, 100e6, seconds=2, usual=1)[0] == 1


def test_when_nobody_takes_anything_others_get_their_chance() -> None:
    slots = Slots(Uplink(), 4)
    for moment in range(1, 9):
        slots.pass_to(moment * MOMENT_S, busy=slots.allowed, stuck=True)
    assert slots.allowed >= 8

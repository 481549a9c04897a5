"""What connections hold in memory together, and who makes room."""

from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.http.holding import FREE_BYTES, Holdings

MIB = 1 << 20


class Guest:
    def __init__(self) -> None:
        self.cut = False

    def cut_off(self) -> None:
        self.cut = True


def test_whoever_is_waited_for_longest_makes_room() -> None:
    holdings = Holdings(3 * MIB)
    alice, bob, carol, dave = (Guest() for _ in range(4))
    for guest in (alice, bob, carol):
        assert holdings.hold(guest, MIB)
    assert holdings.hold(alice, MIB), "what is held already is not counted twice"
    assert holdings.hold(dave, MIB)
    assert [guest.cut for guest in (alice, bob, carol, dave)] == [True, False, False, False]
    assert holdings.bytes_held == 3 * MIB


def test_nobody_makes_room_for_more_of_his_own() -> None:
    holdings = Holdings(MIB)
    alice = Guest()
    assert holdings.hold(alice, MIB)
    assert not holdings.hold(alice, 2 * MIB)
    assert not alice.cut


def test_what_is_worked_on_stays() -> None:
    holdings = Holdings(MIB)
    alice, bob = Guest(), Guest()
    assert holdings.hold(alice, MIB)
    holdings.settle(alice)
    assert not holdings.hold(bob, MIB)
    assert not alice.cut
    holdings.release(alice)
    assert holdings.hold(bob, MIB)


def test_small_ones_need_no_room() -> None:
    holdings = Holdings(0)
    assert holdings.hold(Guest(), FREE_BYTES)
    assert not holdings.hold(Guest(), FREE_BYTES + 1)


@given(st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["hold", "settle", "release"]), st.integers(0, MIB))))
def test_the_sum_is_right_and_never_above_the_limit(steps: list[tuple[int, str, int]]) -> None:
    holdings = Holdings(MIB)
    guests = [Guest() for _ in range(5)]
    for number, what, size in steps:
        guest = guests[number]
        if what == "hold":
            holdings.hold(guest, size)
        else:
            getattr(holdings, what)(guest)
        assert 0 <= holdings.bytes_held <= MIB
    for guest in guests:
        holdings.release(guest)
    assert holdings.bytes_held == 0

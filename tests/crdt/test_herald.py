from itertools import pairwise
from random import Random

import pytest

from ipfsreg.crdt.delta import Head
from ipfsreg.crdt.herald import GREETING_S, SECOND_GREETING_S, TICK_JITTER, TICK_S, Herald

A, B = Head(b"a"), Head(b"b")
LONGEST_TICK_S = TICK_S * (1 + TICK_JITTER)


@pytest.fixture
def herald() -> Herald:
    return Herald(Random(1), now=0)


def test_a_write_is_said_at_once_and_alone(herald: Herald) -> None:
    herald.wrote(A)
    assert herald.due([A, B], now=0) == [A]
    assert herald.due([A, B], now=0) == []


def test_a_write_that_a_later_one_covers_is_not_said(herald: Herald) -> None:
    herald.wrote(A)
    herald.wrote(B)
    assert herald.due([B], now=0) == [B]


def test_all_heads_are_said_about_once_a_minute(herald: Herald) -> None:
    said_at = []
    for _ in range(50):
        now = herald.next_deadline()
        assert herald.due([A, B], now=now - 0.001) == []
        if herald.due([A, B], now=now):
            said_at.append(now)
    gaps = [later - earlier for earlier, later in pairwise(said_at)]
    assert len(gaps) == 49
    assert all(TICK_S * (1 - TICK_JITTER) <= gap <= LONGEST_TICK_S for gap in gaps)
    assert len(set(gaps)) > 10, "replicas must not tick in step"


def test_a_head_that_others_say_need_not_be_said(herald: Herald) -> None:
    for _ in range(10):
        herald.heard([A])
        assert herald.due([A, B], now=herald.next_deadline()) == [B]


def test_a_write_of_ours_is_not_said_again_at_the_next_tick(herald: Herald) -> None:
    herald.wrote(A)
    herald.due([A], now=1)
    assert herald.due([A], now=herald.next_deadline()) == []
    assert herald.due([A], now=herald.next_deadline()) == [A]


def test_a_newcomer_is_greeted_soon_and_once_more(herald: Herald) -> None:
    herald.greet(now=0, newcomer=True)
    first = herald.next_deadline()
    assert GREETING_S[0] <= first <= GREETING_S[1]
    assert herald.due([A, B], now=first) == [A, B]
    second = herald.next_deadline()
    assert SECOND_GREETING_S[0] <= second <= SECOND_GREETING_S[1]
    herald.heard([A])
    assert herald.due([A, B], now=second) == [], "both were said since the second greeting was planned"


def test_a_greeting_that_others_give_first_is_not_given_again(herald: Herald) -> None:
    herald.greet(now=0, newcomer=False)
    herald.heard([A])
    assert herald.due([A, B], now=1) == [B]


def test_what_was_heard_before_a_newcomer_came_is_said_again(herald: Herald) -> None:
    herald.greet(now=0, newcomer=False)
    herald.heard([A])
    herald.greet(now=0.01, newcomer=False)
    assert herald.due([A], now=2) == [A]


def test_many_newcomers_are_greeted_together(herald: Herald) -> None:
    for number in range(100):
        herald.greet(now=number / 1000, newcomer=True)
    said = 0
    while herald.next_deadline() < 10:
        said += bool(herald.due([A], now=herald.next_deadline()))
    assert said <= 3

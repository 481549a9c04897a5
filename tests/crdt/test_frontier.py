from random import Random

import pytest

from ipfsreg.crdt.frontier import (
    FIRST_RETRY_S,
    LAST_RETRY_S,
    MAX_FIRST,
    MAX_IN_FLIGHT,
    MAX_NODES,
    MAX_PER_REQUEST,
    Frontier,
    Request,
)
from ipfsreg.testing.network import peer_of

ALICE, BOB, CAROL = peer_of("alice"), peer_of("bob"), peer_of("carol")


@pytest.fixture
def frontier() -> Frontier:
    return Frontier(Random(1))


def node(number: int) -> bytes:
    return b"\x12\x20" + number.to_bytes(32)


def test_nodes_of_the_same_announcer_are_asked_for_together(frontier: Frontier) -> None:
    frontier.want(node(1), [ALICE], now=0)
    frontier.want(node(2), [BOB], now=0)
    frontier.want(node(3), [ALICE], now=0)
    assert frontier.take(now=0) == [Request((node(1), node(3)), (ALICE,)), Request((node(2),), (BOB,))]
    assert frontier.take(now=1000) == [], "all are in flight"
    assert frontier.next_deadline() is None


def test_what_arrived_is_wanted_no_more(frontier: Frontier) -> None:
    frontier.want(node(1), [], now=0)
    frontier.take(now=0)
    frontier.arrived(node(1))
    frontier.failed([node(1)], now=0)
    frontier.arrived(node(2))
    assert len(frontier) == 0
    assert frontier.next_deadline() is None


def test_what_failed_is_tried_again_less_and_less_often(frontier: Frontier) -> None:
    frontier.want(node(1), [], now=0)
    now, waits = 0.0, []
    for _ in range(14):
        assert len(frontier.take(now=now)) == 1
        frontier.failed([node(1)], now=now)
        deadline = frontier.next_deadline()
        assert deadline is not None
        assert frontier.take(now=deadline - 0.01) == []
        waits.append(deadline - now)
        now = deadline
    assert 0.8 * FIRST_RETRY_S <= waits[0] <= FIRST_RETRY_S
    assert waits[:8] == sorted(waits[:8])
    assert 0.8 * LAST_RETRY_S <= waits[-1] <= LAST_RETRY_S


def test_a_new_announcement_is_a_reason_to_try_soon_but_not_at_once_every_time(frontier: Frontier) -> None:
    frontier.want(node(1), [ALICE], now=0)
    for _ in range(10):
        deadline = frontier.next_deadline()
        assert deadline is not None
        now = deadline
        frontier.take(now=now)
        frontier.failed([node(1)], now=now)
    for _ in range(100):
        frontier.want(node(1), [BOB], now=now)
    assert frontier.take(now=now + 0.5) == []
    assert frontier.take(now=now + FIRST_RETRY_S) == [Request((node(1),), (BOB, ALICE))]


def test_a_hint_reaches_everything_that_waits(frontier: Frontier) -> None:
    frontier.want(node(1), [], now=0)
    frontier.want(node(2), [], now=0)
    frontier.take(now=0)
    frontier.failed([node(1)], now=0)
    frontier.hint([CAROL], now=100)
    assert frontier.take(now=100) == [Request((node(1),), (CAROL,))]


def test_the_newest_announcer_is_asked_first_and_few_are_remembered(frontier: Frontier) -> None:
    peers = [peer_of(str(number)) for number in range(MAX_FIRST + 2)]
    for peer in peers:
        frontier.want(node(1), [peer], now=0)
    (request,) = frontier.take(now=0)
    assert request.first == tuple(reversed(peers[-MAX_FIRST:]))


def test_requests_and_what_is_in_flight_are_bounded(frontier: Frontier) -> None:
    for number in range(MAX_IN_FLIGHT + 10):
        frontier.want(node(number), [], now=0)
    requests = frontier.take(now=0)
    assert sum(len(request.nodes) for request in requests) == MAX_IN_FLIGHT
    assert max(len(request.nodes) for request in requests) == MAX_PER_REQUEST
    assert frontier.next_deadline() is None
    for request in requests:
        for multihash in request.nodes:
            frontier.arrived(multihash)
    assert sum(len(request.nodes) for request in frontier.take(now=0)) == 10


def test_more_than_memory_should_hold_is_left_in_the_tables(frontier: Frontier) -> None:
    for number in range(MAX_NODES + 1):
        frontier.want(node(number), [], now=0)
    assert len(frontier) == MAX_NODES
    assert frontier.overflowed
    assert not frontier.has_room
    for number in range(MAX_NODES // 2 + 1):
        frontier.arrived(node(number))
    assert frontier.has_room


def test_what_failed_before_leaves_room_for_what_is_new(frontier: Frontier) -> None:
    for number in range(MAX_IN_FLIGHT):
        frontier.want(node(number), [], now=0)
    frontier.take(now=0)
    frontier.failed([node(number) for number in range(MAX_IN_FLIGHT)], now=0)
    assert sum(len(request.nodes) for request in frontier.take(now=10)) == MAX_IN_FLIGHT // 2
    assert frontier.next_deadline() is None, "the others wait for places, not for a time"
    frontier.want(node(MAX_IN_FLIGHT), [ALICE], now=10)
    assert frontier.next_deadline() == 10
    assert frontier.take(now=10) == [Request((node(MAX_IN_FLIGHT),), (ALICE,))]

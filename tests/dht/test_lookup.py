from __future__ import annotations

import hypothesis.strategies as st
from hypothesis import given

from ipfsreg.dht.keys import Contact, position_of
from ipfsreg.dht.lookup import MAX_HEARD, Lookup
from ipfsreg.testing.dht import numbered_contact

OURS = numbered_contact(10**9).peer
TARGET = position_of(b"a key")
CROWD = sorted((numbered_contact(number) for number in range(200)), key=lambda contact: contact.position ^ TARGET)
"""Peers, the closest to the target first."""


def lookup(seeds: list[Contact], *, k: int = 4, alpha: int = 3, per_network: int | None = None) -> Lookup:
    return Lookup(TARGET, seeds, ours=OURS, k=k, alpha=alpha, per_network=per_network)


def test_the_closest_known_are_asked_first_alpha_at_a_time() -> None:
    search = lookup(CROWD[50:60][::-1])
    assert search.begin_queries(now=0.0) == CROWD[50:53]
    assert search.begin_queries(now=0.0) == []


def test_every_answer_opens_the_next_query_at_once() -> None:
    search = lookup(CROWD[50:60])
    search.begin_queries(now=0.0)
    search.receive(CROWD[51].peer, [CROWD[7], CROWD[3]])
    # No round is waited for: two queries are still under way.
    assert search.begin_queries(now=0.1) == [CROWD[3]]
    search.fail(CROWD[50].peer)
    assert search.begin_queries(now=0.1) == [CROWD[7]]
    assert search.hops_of(CROWD[50].peer) == 1
    assert search.hops_of(CROWD[3].peer) == 2


def test_it_ends_when_the_k_closest_have_answered() -> None:
    search = lookup(CROWD[:10])
    for contact in search.begin_queries(now=0.0):
        search.receive(contact.peer, CROWD[:20])
    assert not search.is_finished(now=0.0)
    assert search.begin_queries(now=0.0) == [CROWD[3]]
    assert not search.is_finished(now=0.0)
    search.receive(CROWD[3].peer, CROWD[:20])
    assert search.is_finished(now=0.0)
    assert search.begin_queries(now=0.0) == []
    assert search.closest() == CROWD[:4]
    assert search.queries == 4


def test_those_that_fail_are_replaced_by_the_next_closest() -> None:
    search = lookup(CROWD[:10])
    now = 0.0
    while not search.is_finished(now=now):
        for contact in search.begin_queries(now=now):
            if contact in CROWD[:3]:
                search.fail(contact.peer)
            else:
                search.receive(contact.peer, CROWD[:10])
    assert search.closest() == CROWD[3:7]


def test_a_slow_peer_holds_no_place_in_the_window_nor_the_end() -> None:
    search = lookup(CROWD[:10])
    assert search.begin_queries(now=0.0) == CROWD[:3]
    assert search.next_deadline(now=0.0) == 2.0
    search.receive(CROWD[1].peer, [])
    search.receive(CROWD[2].peer, [])
    assert search.begin_queries(now=1.0) == [CROWD[3]]
    search.receive(CROWD[3].peer, [])
    assert not search.is_finished(now=1.9)
    assert search.begin_queries(now=2.0) == [CROWD[4]]
    search.receive(CROWD[4].peer, [])
    assert search.is_finished(now=2.0)
    assert search.closest() == CROWD[1:5]


def test_a_slow_peer_that_answers_after_all_counts() -> None:
    search = lookup(CROWD[:10])
    search.begin_queries(now=0.0)
    search.begin_queries(now=2.0)
    search.receive(CROWD[0].peer, [])
    assert search.closest() == [CROWD[0]]


def test_with_fewer_peers_than_k_the_slow_are_waited_for() -> None:
    search = lookup(CROWD[:2])
    search.begin_queries(now=0.0)
    search.receive(CROWD[0].peer, [])
    assert not search.is_finished(now=5.0)
    assert search.next_deadline(now=5.0) is None
    search.fail(CROWD[1].peer)
    assert search.is_finished(now=5.0)


def test_with_nobody_to_ask_it_is_over() -> None:
    search = lookup([])
    assert search.is_finished(now=0.0)
    assert search.closest() == []


def test_we_and_those_heard_of_before_are_not_asked_again() -> None:
    search = lookup([CROWD[0]])
    assert search.begin_queries(now=0.0) == [CROWD[0]]
    search.receive(CROWD[0].peer, [Contact(OURS), CROWD[0], CROWD[1], CROWD[1]])
    assert search.begin_queries(now=0.0) == [CROWD[1]]
    search.receive(CROWD[1].peer, [])
    assert search.is_finished(now=0.0)


def test_nobody_can_lead_us_on_for_ever() -> None:
    """Each answer names one peer that is closer than all before."""
    search = Lookup(TARGET, [CROWD[-1]], ours=OURS, max_queries=50)
    while not search.is_finished(now=0.0):
        for contact in search.begin_queries(now=0.0):
            search.receive(contact.peer, [CROWD[CROWD.index(contact) - 1]])
    assert search.queries == 50
    assert search.closest() == CROWD[150:170]


def test_the_closest_stay_when_too_many_are_heard_of() -> None:
    search = Lookup(TARGET, CROWD, ours=OURS)
    (first, *_) = search.begin_queries(now=0.0)
    search.receive(first.peer, [numbered_contact(10**6 + each) for each in range(3 * MAX_HEARD)])
    assert len(search._known) == MAX_HEARD
    everybody = CROWD + [numbered_contact(10**6 + each) for each in range(3 * MAX_HEARD)]
    everybody.sort(key=lambda contact: contact.position ^ TARGET)
    assert {contact.peer for contact in everybody[:20]} <= set(search._known)


def test_an_eclipse_from_one_network_leaves_places_for_others() -> None:
    sybils = [Contact.of(contact.peer, [f"/ip4/8.8.1.{number}/tcp/1"]) for number, contact in enumerate(CROWD[:40])]
    honest = [Contact.of(each.peer, [f"/ip4/{20 + number}.1.1.1/tcp/1"]) for number, each in enumerate(CROWD[40:80])]
    search = lookup(sybils + honest, k=20, per_network=4)
    while not search.is_finished(now=0.0):
        for contact in search.begin_queries(now=0.0):
            search.receive(contact.peer, sybils)
    assert search.closest() == sybils[:4] + honest[:16]


@given(st.data())
def test_the_k_closest_living_are_found_in_any_order_of_answers(data: st.DataObject) -> None:
    """Everybody knows its neighbours in the order of distance; some are dead; answers come in any order."""
    crowd = CROWD[:60]
    dead = {crowd[index] for index in data.draw(st.sets(st.integers(0, 50), max_size=12))}
    search = lookup([crowd[-1]], k=5, alpha=3)
    waiting: list[Contact] = []
    while not search.is_finished(now=0.0):
        waiting += search.begin_queries(now=0.0)
        contact = waiting.pop(data.draw(st.integers(0, len(waiting) - 1)))
        if contact in dead:
            search.fail(contact.peer)
            continue
        place = crowd.index(contact)
        search.receive(contact.peer, crowd[max(0, place - 20) : place + 20])
    assert search.closest() == [contact for contact in crowd if contact not in dead][:5]

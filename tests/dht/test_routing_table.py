from __future__ import annotations

import random

import hypothesis.strategies as st
from hypothesis import given

from ipfsreg.dht.keys import Contact, common_bits
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.dht import numbered_contact

OURS = numbered_contact(10**9)


def far_contacts(count: int, start: int = 0) -> list[Contact]:
    """Peers that share no leading bit with us: all for one bucket."""
    found: list[Contact] = []
    while len(found) < count:
        contact = numbered_contact(start)
        if common_bits(contact.position, OURS.position) == 0:
            found.append(contact)
        start += 1
    return found


def at(number: int, addr: str) -> Contact:
    return Contact.of(numbered_contact(number).peer, [addr])


def test_a_full_bucket_keeps_those_that_live_and_lets_newcomers_wait() -> None:
    table = RoutingTable(OURS, k=4)
    *old, newcomer, later = far_contacts(6)
    assert all(table.alive(contact, now=1.0) for contact in old)
    assert not table.alive(newcomer, now=2.0)
    assert not table.alive(later, now=3.0)
    assert set(table) == set(old)
    table.failed(old[0].peer)
    assert set(table) == {*old[1:], later}
    table.remove(old[1].peer)
    assert set(table) == {*old[2:], later, newcomer}


def test_a_peer_that_fails_goes_and_is_told_to_nobody_meanwhile() -> None:
    table = RoutingTable(OURS, k=4)
    one, other = far_contacts(2)
    table.alive(one, now=1.0)
    table.alive(other, now=1.0)
    table.failed(one.peer)
    assert one.peer in table
    assert table.closest(one.position, 5, sure=True) == [other]
    assert table.closest(one.position, 5) == [one, other]
    table.alive(one, now=2.0)
    assert table.closest(one.position, 5, sure=True) == [one, other]
    table.failed(one.peer)
    table.failed(one.peer)
    assert list(table) == [other]


def test_a_newcomer_takes_the_place_of_one_that_is_in_doubt() -> None:
    table = RoutingTable(OURS, k=2)
    one, other, newcomer = far_contacts(3)
    table.alive(one, now=1.0)
    table.alive(other, now=1.0)
    table.failed(one.peer)
    assert table.alive(newcomer, now=2.0)
    assert set(table) == {other, newcomer}


def test_ten_thousand_identities_push_nobody_out_and_take_bounded_room() -> None:
    table = RoutingTable(OURS, k=20)
    honest = [numbered_contact(number) for number in range(40)]
    for contact in honest:
        table.alive(contact, now=1.0)
    before = set(table)
    for number in range(1000, 11_000):
        table.alive(numbered_contact(number), now=2.0)
    assert before <= set(table)
    assert len(table) <= 20 * 14
    assert sum(len(bucket.waiting) for bucket in table._buckets.values()) <= 20 * 14


def test_one_network_gets_few_places() -> None:
    table = RoutingTable(OURS, k=20, per_network_in_table=3, per_network_in_bucket=2)
    for number in range(1000):
        table.alive(at(number, f"/ip4/8.8.{number % 256}.{number // 256}/tcp/1"), now=1.0)
    assert len(table) == 3
    assert max(table.bucket_sizes().values()) <= 2
    # Others are let in all the same, and private addresses are nobody's network.
    assert table.alive(at(2000, "/ip4/9.9.9.9/tcp/1"), now=1.0)
    assert table.alive(at(2001, "/ip4/192.168.1.1/tcp/1"), now=1.0)
    assert table.alive(at(2002, "/ip4/192.168.1.2/tcp/1"), now=1.0)


def test_places_of_a_network_are_free_again_when_a_peer_goes_or_moves() -> None:
    table = RoutingTable(OURS, k=20, per_network_in_table=1, per_network_in_bucket=1)
    assert table.alive(at(1, "/ip4/8.8.8.8/tcp/1"), now=1.0)
    assert table.alive(at(1, "/ip4/8.8.8.8/tcp/2"), now=1.0)
    assert not table.alive(at(2, "/ip4/8.8.4.4/tcp/1"), now=1.0)
    table.alive(at(1, "/ip4/9.9.9.9/tcp/1"), now=2.0)
    assert table.alive(at(2, "/ip4/8.8.4.4/tcp/1"), now=2.0)
    table.remove(numbered_contact(2).peer)
    assert table.alive(at(3, "/ip4/8.8.1.1/tcp/1"), now=3.0)
    assert len(table) == 2


def test_we_are_not_in_our_own_table_and_addresses_are_not_forgotten() -> None:
    table = RoutingTable(OURS, k=4)
    assert not table.alive(OURS, now=1.0)
    known = numbered_contact(1)
    table.alive(known, now=1.0)
    table.alive(Contact(known.peer), now=2.0)
    assert table.get(known.peer) == known


def test_silent_members_and_stale_buckets_are_named() -> None:
    table = RoutingTable(OURS, k=20)
    assert table.stale_buckets(before=100.0) == []
    one, other = far_contacts(2)
    near = next(c for c in map(numbered_contact, range(1000)) if common_bits(c.position, OURS.position) == 3)
    table.alive(one, now=10.0)
    table.alive(other, now=5.0)
    table.alive(near, now=20.0)
    assert table.silent_since(15.0) == [other, one]
    assert table.stale_buckets(before=100.0) == [0, 1, 2, 3, 4]
    table.looked_at(one.position, now=100.0)
    table.looked_at(near.position, now=100.0)
    assert table.stale_buckets(before=100.0) == [1, 2, 4]


moves = st.lists(st.tuples(st.sampled_from(["alive", "failed", "remove"]), st.integers(0, 60)), max_size=150)


@given(moves)
def test_counts_hold_whatever_happens(moves: list[tuple[str, int]]) -> None:
    table = RoutingTable(OURS, k=3, per_network_in_table=4, per_network_in_bucket=2)
    for now, (move, number) in enumerate(moves):
        contact = at(number, f"/ip4/8.{number % 5}.0.1/tcp/1")
        if move == "alive":
            table.alive(contact, now=float(now))
        elif move == "failed":
            table.failed(contact.peer)
        else:
            table.remove(contact.peer)
        members = list(table)
        assert len(table) == len(members) == sum(table.bucket_sizes().values())
        networks = [contact.addrs[0][1:3] for contact in members]
        assert all(networks.count(each) == table._networks[f"8.{each[1]}"] <= 4 for each in networks)
        assert sum(table._networks.values()) == len(members)
        assert max(table.bucket_sizes().values(), default=0) <= 3


def test_the_closest_are_those_by_xor() -> None:
    dice = random.Random(1)
    table = RoutingTable(OURS, k=20)
    for number in range(300):
        table.alive(numbered_contact(number), now=1.0)
    target = dice.getrandbits(256)
    expected = sorted(table, key=lambda contact: contact.position ^ target)
    assert table.closest(target, 20) == expected[:20]
    assert table.get(PeerId(b"\x00\x01x")) is None

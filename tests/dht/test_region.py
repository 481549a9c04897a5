from __future__ import annotations

import random

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from ipfsreg.dht.keys import Contact, common_bits, position_of, random_key
from ipfsreg.dht.region import MAX_SEARCHES, Region
from ipfsreg.testing.dht import numbered_contact


def explore(position: int, crowd: list[Contact], k: int, dice: random.Random) -> tuple[Region, int]:
    """Look into a network that consists of *crowd*; return the region and how many lookups it took."""
    region, searches = Region(position, k=k), 0
    while (search := region.next_search()) is not None:
        near, bits = search
        place = position if near == position else position_of(random_key(near, bits, dice.randbytes))
        region.receive(place, sorted(crowd, key=lambda contact: contact.position ^ place)[:k])
        searches += 1
    return region, searches


def in_region(region: Region, position: int) -> bool:
    return common_bits(region.prefix, position) >= region.bits


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 5, 20, 21, 60, 300]))
def test_the_closest_peers_of_every_position_in_it_are_known(seed: int, size: int) -> None:
    dice, k = random.Random(seed), 20
    crowd = [numbered_contact(dice.getrandbits(60)) for _ in range(size)]
    region, searches = explore(position_of(dice.randbytes(4)), crowd, k, dice)
    assert searches <= 8
    positions = [position_of(dice.randbytes(8)) for _ in range(400)]
    inside = [position for position in positions if in_region(region, position)]
    for position in [region.prefix, *inside[:40]]:
        assert region.closest(position) == sorted(crowd, key=lambda contact: contact.position ^ position)[:k]


def test_a_swarm_of_at_most_k_is_one_region_and_one_lookup() -> None:
    dice = random.Random(1)
    region, searches = explore(position_of(b"x"), [numbered_contact(n) for n in range(19)], 20, dice)
    assert (region.bits, searches, len(region)) == (0, 1, 19)


@pytest.mark.parametrize("size", [100, 1000])
def test_few_lookups_cover_the_whole_keyspace(size: int) -> None:
    dice = random.Random(2)
    crowd = [numbered_contact(n) for n in range(size)]
    roots = sorted(position_of(dice.randbytes(8)) for _ in range(2000))
    lookups = regions = 0
    while roots:
        region, searches = explore(roots[0], crowd, 20, dice)
        lookups += searches
        regions += 1
        roots = [position for position in roots if not in_region(region, position)]
    # Between k and a few times k peers to a region, and two or three lookups each.
    assert regions <= size / 20 * 1.6
    assert lookups <= 4 * regions


def test_where_nobody_answers_nothing_is_known() -> None:
    region, searches = explore(position_of(b"x"), [], 20, random.Random(1))
    assert (len(region), searches) == (0, 1)
    assert region.closest(1) == []


def test_a_crowd_of_sybils_costs_a_bounded_number_of_lookups() -> None:
    region, searches = Region(0, k=20), 0
    while (search := region.next_search()) is not None:
        near, _ = search
        # Wherever one looks, twenty identities are even closer together.
        region.receive(
            near, [Contact(numbered_contact(searches * 20 + each).peer) for each in range(19)] + [_at(near ^ 1)]
        )
        searches += 1
    assert searches <= MAX_SEARCHES


def _at(position: int) -> Contact:
    contact = numbered_contact(1)
    object.__setattr__(contact, "position", position)
    return contact

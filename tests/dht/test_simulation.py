"""The engines together, a hundred nodes of them: what a swarm has to achieve."""

from __future__ import annotations

import statistics

import pytest

from ipfsreg.dht.keys import position_of
from ipfsreg.testing.dht import DhtSimulation


@pytest.fixture(scope="module")
def swarm() -> DhtSimulation:
    swarm = DhtSimulation(100, seed=1)
    swarm.fill_tables()
    return swarm


def test_tables_are_as_large_as_theory_says(swarm: DhtSimulation) -> None:
    # Two buckets that can be filled with twenty each, and everybody who is nearer.
    assert 50 <= statistics.median(swarm.table_sizes()) <= 80


def test_a_lookup_names_the_truly_closest(swarm: DhtSimulation) -> None:
    for _ in range(20):
        key, asker = swarm.rng.randbytes(32), swarm.rng.choice(swarm.nodes)
        others = [node.contact for node in swarm.nodes if node is not asker]
        truth = sorted(others, key=lambda contact: contact.position ^ position_of(key))[:20]
        assert swarm.find_closest(asker, key) == truth


def test_everything_is_found_in_few_hops_and_nearly_everything_when_a_fifth_is_dead() -> None:
    swarm = DhtSimulation(100, seed=2, wire=True)
    swarm.fill_tables()
    keys = [swarm.rng.randbytes(32) for _ in range(100)]
    for key in keys:
        swarm.provide(swarm.rng.choice(swarm.nodes), key)
    found = [swarm.find_providers(swarm.rng.choice(swarm.nodes), key) for key in keys]
    assert all(each.providers for each in found)
    assert statistics.median(each.hops or 0 for each in found) <= 3
    swarm.kill(0.2)
    found = [swarm.find_providers(swarm.rng.choice(swarm.living()), key) for key in keys]
    assert sum(bool(each.providers) for each in found) >= 99
    # The dead are noticed by one's patience and not by the time a query may take.
    assert statistics.median(each.took_s for each in found) < 1.0

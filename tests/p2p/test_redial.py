"""Bootstrappers are dialled for ever, and old friends while nobody is there."""

from __future__ import annotations

import logging
import random

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.redial import LAST_PAUSE_S, Redial, open_redial
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm


def info_of(endpoint: MemoryEndpoint) -> PeerInfo:
    return PeerInfo(endpoint.peer_id, tuple(endpoint.listen_addrs()))


async def wait_until_connected(redial: Redial, connected: bool = True) -> None:
    while any(state.connected is not connected for state in redial.states()):
        await redial.wait_changed()


async def test_a_bootstrapper_that_comes_up_late_is_reached(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    swarm.cut(alice, bob)
    async with open_redial(alice, [info_of(bob)], rng=random.Random(1)) as redial:
        await trio.sleep(3600)
        (state,) = redial.states()
        assert not state.connected
        assert 60 <= state.failures <= 130, "backoff grows to a minute and no further"
        assert "cannot be reached" in str(state)
        swarm.heal(alice, bob)
        with trio.fail_after(LAST_PAUSE_S + 1):
            await wait_until_connected(redial)
        assert bob.peer_id in alice.peers()


async def test_a_lost_bootstrapper_is_dialled_at_once(autojump_clock: object, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with open_redial(alice, [info_of(bob)], rng=random.Random(1)) as redial:
        await wait_until_connected(redial)
        swarm.part(alice, bob)
        with trio.fail_after(1):
            await wait_until_connected(redial, False)
            await wait_until_connected(redial)
        swarm.cut(alice, bob)
        await trio.sleep(600)
        swarm.heal(alice, bob)
        await wait_until_connected(redial)
    lines = [record.getMessage() for record in caplog.records if record.name == "ipfsreg.p2p.redial"]
    assert [line.split(": ")[1].split(",")[0] for line in lines[:3]] == ["connected", "connection lost", "connected"]
    assert sum("trying again" in line for line in lines) == 1, "one line for a hundred failures"
    assert lines[-1].endswith(": connected")


async def test_many_bootstrappers_wait_for_nobody(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob, carol = (swarm.endpoint(name) for name in ("alice", "bob", "carol"))
    swarm.cut(alice, bob)
    infos = [info_of(bob), info_of(carol), info_of(alice), PeerInfo(carol.peer_id, ("/memory/elsewhere",))]
    async with open_redial(alice, infos) as redial:
        await wait_all_tasks_blocked()
        assert [state.connected for state in redial.states()] == [False, True], "one line each, and none for ourselves"
        assert redial.states()[1].addrs == ("/memory/carol", "/memory/elsewhere")


async def test_peers_of_former_runs_are_dialled_while_few_are_there(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice = swarm.endpoint("alice")
    others = [swarm.endpoint(str(number)) for number in range(10)]
    for other in others:
        swarm.cut(alice, other)
    async with open_redial(alice, [], remembered=lambda: [info_of(other) for other in others]):
        await trio.sleep(1000)
        assert alice.peers() == []
        for other in others:
            swarm.heal(alice, other)
        await trio.sleep(LAST_PAUSE_S + 1)
        assert 4 <= len(alice.peers()) < 10, "enough to find the rest, and not everybody"
        for other in others:
            swarm.part(alice, other)
        await trio.sleep(LAST_PAUSE_S + 1)
        assert 4 <= len(alice.peers()) < 10


async def test_leaving_takes_the_protection_away(autojump_clock: object) -> None:
    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with open_redial(alice, [info_of(bob)]) as redial:
        await wait_until_connected(redial)
        assert alice._protected[bob.peer_id]
    assert not alice._protected[bob.peer_id]

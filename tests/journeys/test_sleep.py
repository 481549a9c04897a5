"""A machine that sleeps: its process stands still for longer than peers wait, wakes, and goes on by itself."""

from __future__ import annotations

import os
import time

import pytest

from ipfsreg.p2p.liveness import DEAD_S, SWEEP_S
from ipfsreg.testing.daemons import Cluster, wait_until
from ipfsreg.testing.pushing import Client

pytestmark = pytest.mark.journey

SLEEP_S = 60.0

MIB = 1024 * 1024


@pytest.mark.timeout(240)
def test_a_node_that_slept_for_a_minute_reconnects_and_catches_up(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    carol = cluster.start("carol", join=[alice])
    for node in (alice, bob, carol):
        node.wait_peers(2 if node is not carol else 1)
    with Client(alice.http) as at_alice:
        before = at_alice.push_image("team/app", "before", [os.urandom(MIB)])
    assert bob.wait_manifest("team/app", "before") == before.digest

    bob.pause()
    slept_at = time.monotonic()
    # Others notice within their time, and go on without him.
    wait_until(
        lambda: all(str(peer["peer_id"]) not in bob.multiaddr for peer in alice.status()["peers"]),
        "alice has given bob up",
        DEAD_S + 4 * SWEEP_S,
    )
    with Client(alice.http) as at_alice:
        meanwhile = at_alice.push_image("team/app", "meanwhile", [os.urandom(3 * MIB)])
    assert carol.wait_manifest("team/app", "meanwhile") == meanwhile.digest
    time.sleep(max(0.0, SLEEP_S - (time.monotonic() - slept_at)))
    bob.wake()

    # Nobody tells him anything: he finds his connections dead, dials anew and asks for what he missed.
    assert bob.wait_manifest("team/app", "meanwhile", timeout_s=20) == meanwhile.digest
    with Client(bob.http) as at_bob:
        assert at_bob.pull_image("team/app", "meanwhile") > 3 * MIB
        after = at_bob.push_image("team/app", "after", [os.urandom(MIB)])
    for node in (alice, carol):
        assert node.wait_manifest("team/app", "after") == after.digest
    assert not [line for node in (alice, bob, carol) for line in node.lines if "Traceback" in line]

"""Nodes find each other: through one they were told of, and on a LAN through nobody."""

from __future__ import annotations

import pytest

from ipfsreg.testing.daemons import Cluster

pytestmark = pytest.mark.journey


def test_nodes_that_share_a_bootstrapper_find_each_other(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    others = [cluster.start(name, join=[alice]) for name in ("bob", "carol", "dave")]
    for node in (alice, *others):
        node.wait_peers(3)


def test_nodes_on_one_lan_need_no_bootstrapper(cluster: Cluster) -> None:
    alice = cluster.add("alice", IPFSREG_P2P_MDNS="true").start()
    bob = cluster.add("bob", IPFSREG_P2P_MDNS="true").start()
    for node in (alice, bob):
        node.wait_peers(1)

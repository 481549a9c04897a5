"""Where others see us: believed when independent peers agree."""

from __future__ import annotations

from ipfsreg.p2p.observed import MAX_TOLD, ObservedAddrs
from ipfsreg.testing.network import peer_of

OUTSIDE = "/ip4/203.0.113.5/tcp/4619"
ALICE, BOB, CAROL = map(peer_of, ("alice", "bob", "carol"))


def test_two_networks_must_agree() -> None:
    observed = ObservedAddrs()
    assert not observed.saw(ALICE, OUTSIDE, seen_from="/ip4/198.51.100.1/tcp/1")
    assert not observed.saw(BOB, OUTSIDE, seen_from="/ip4/198.51.100.1/tcp/2"), "one machine with two keys"
    assert observed.addrs() == []
    assert observed.saw(CAROL, OUTSIDE, seen_from="/ip4/198.51.100.2/tcp/1")
    assert observed.addrs() == [OUTSIDE]
    observed.forget(CAROL)
    assert observed.addrs() == []


def test_what_is_no_address_of_ours_is_ignored() -> None:
    observed = ObservedAddrs()
    for number, peer in enumerate((ALICE, BOB, CAROL)):
        observed.saw(peer, "/ip4/1.2.3.4/udp/1/quic-v1", seen_from=f"/ip4/198.51.100.{number}/tcp/1")
        observed.saw(peer, OUTSIDE, seen_from="nonsense")
    assert observed.addrs() == []


def test_few_are_told() -> None:
    observed = ObservedAddrs()
    for port in range(MAX_TOLD + 3):
        for network in range(2):
            peer = peer_of(f"{port} {network}")
            observed.saw(peer, f"/ip4/203.0.113.5/tcp/{port + 1}", seen_from=f"/ip4/198.51.100.{network}/tcp/1")
    assert len(observed.addrs()) == MAX_TOLD

"""Who may come in, who has to go, and which of two connections is used."""

from __future__ import annotations

from ipfsreg.p2p.limits import (
    SIMULTANEOUS_S,
    Candidate,
    Facts,
    Gate,
    Limits,
    choose_trimmed,
    network_of,
    newer_is_better,
)
from ipfsreg.testing.network import peer_of

ALICE, BOB = sorted((peer_of("alice"), peer_of("bob")))
LIMITS = Limits(low_connections=2, high_connections=4, grace_s=20)


def candidate(
    name: str, *, protected: bool = False, at: float = 0.0, streams: int = 0, dialed: bool = False
) -> Candidate:
    return Candidate(peer_of(name), protected, at, streams, dialed)


def test_one_network_has_so_many_connections_and_no_more() -> None:
    gate = Gate(2)
    assert gate.enter("10.0.0.1")
    assert gate.enter("10.0.0.1")
    assert not gate.enter("10.0.0.1")
    assert gate.enter("10.0.0.2")
    gate.leave("10.0.0.1")
    assert gate.enter("10.0.0.1")


def test_a_whole_ipv6_subnet_counts_as_one_and_loopback_not_at_all() -> None:
    assert network_of("2001:db8::1") == network_of("2001:db8::ffff:1") == "2001:db8::/64"
    assert network_of("2001:db8:0:1::1") != network_of("2001:db8::1")
    gate = Gate(1)
    assert all(gate.enter("127.0.0.1") for _ in range(10))
    assert all(gate.enter("::1") for _ in range(10))


def test_nobody_goes_while_there_is_room() -> None:
    assert choose_trimmed([candidate(str(n)) for n in range(4)], LIMITS, now=1000) == []


def test_the_idle_uninvited_and_young_go_first() -> None:
    everybody = [
        candidate("busy", streams=1),
        candidate("sought", dialed=True),
        candidate("old", at=1),
        candidate("young", at=900),
        candidate("newborn", at=999),
        candidate("ours", protected=True),
    ]
    assert choose_trimmed(everybody, LIMITS, now=1000) == [peer_of(name) for name in ("young", "old", "sought", "busy")]


def test_the_protected_and_the_newborn_stay_however_many_they_are() -> None:
    everybody = [candidate(str(n), protected=n % 2 == 0, at=0 if n % 2 == 0 else 990) for n in range(10)]
    assert choose_trimmed(everybody, LIMITS, now=1000) == []


def test_dials_that_crossed_are_resolved_alike_on_both_sides() -> None:
    for alices_first in (True, False):
        # Seen by alice, then by bob; they may have arrived in another order there.
        first, second = Facts(alices_first, 0.0), Facts(not alices_first, 0.1)
        alice_takes_second = newer_is_better(first, second, ours=ALICE, theirs=BOB)
        taken_by_alice = second if alice_takes_second else first
        for bobs_first in (True, False):
            first, second = Facts(bobs_first, 5.0), Facts(not bobs_first, 5.3)
            taken_by_bob = second if newer_is_better(first, second, ours=BOB, theirs=ALICE) else first
            assert taken_by_alice.dialed != taken_by_bob.dialed, "one dialled it, so the other did not"


def test_whoever_dials_anew_has_lost_the_old_connection() -> None:
    for ours, theirs in ((ALICE, BOB), (BOB, ALICE)):
        for dialed in (True, False):
            assert newer_is_better(Facts(dialed, 0.0), Facts(dialed, 0.1), ours=ours, theirs=theirs)
            old, new = Facts(dialed, 0.0), Facts(not dialed, SIMULTANEOUS_S + 1)
            assert newer_is_better(old, new, ours=ours, theirs=theirs)

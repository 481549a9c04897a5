"""Silence: asked after, then given up; within twenty seconds, and never for a peer that says anything."""

from __future__ import annotations

from ipfsreg.p2p.liveness import DEAD_S, QUIET_S, SWEEP_S, Liveness


def test_a_silent_peer_is_asked_once_and_given_up_within_twenty_seconds() -> None:
    liveness: Liveness[str] = Liveness()
    now, asked, dead = 100.0, [], None
    while dead is None:
        verdict = liveness.sweep({"bob": 5}, now=now)
        asked += [now - 100.0 for _ in verdict.ask]
        dead = now - 100.0 if verdict.dead else None
        now += SWEEP_S
    assert len(asked) == 1
    assert QUIET_S <= asked[0] < QUIET_S + 2 * SWEEP_S
    # The last byte may have come right after the look before the first one here.
    assert dead + SWEEP_S < 20
    assert dead - asked[0] >= 5, "time for an answer"


def test_any_byte_is_life() -> None:
    liveness: Liveness[str] = Liveness()
    for step in range(100):
        verdict = liveness.sweep({"slow": step * 8 // 24}, now=step * SWEEP_S)
        assert not verdict.dead


def test_our_own_sleep_is_nobodys_silence() -> None:
    liveness: Liveness[str] = Liveness()
    now = 0.0
    for _ in range(3):
        liveness.sweep({"bob": 5}, now=now)
        now += SWEEP_S
    verdict = liveness.sweep({"bob": 5}, now=now + 60)
    assert not verdict.dead
    # But silence goes on counting afterwards.
    now += 60
    while not liveness.sweep({"bob": 5}, now=now).dead:
        now += SWEEP_S
        assert now < 60 + 6 * SWEEP_S + DEAD_S


def test_closed_connections_are_forgotten() -> None:
    liveness: Liveness[str] = Liveness()
    liveness.sweep({"bob": 5}, now=0)
    liveness.sweep({}, now=SWEEP_S)
    assert not liveness.sweep({"bob": 5}, now=DEAD_S + 1).dead

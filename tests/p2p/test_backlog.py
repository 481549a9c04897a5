"""A socket is given no more than it can send soon."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest
import trio

from ipfsreg.p2p.backlog import FIRST_BYTES, LEAST_BYTES, MOST_BYTES, UNSENT_S, Backlog
from ipfsreg.testing.connections import tcp_pair

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what was not sent")


class Link(Backlog):
    """A backlog over a link of a known rate instead of a socket."""

    def __init__(self, sock: trio.socket.SocketType, bytes_per_s: float) -> None:
        super().__init__(sock)
        self.rate = bytes_per_s
        self.waiting = 0.0

    def _unsent(self) -> int:
        return int(self.waiting)

    def steps(self, seconds: float, *, at_once: int | None = None) -> Iterator[int]:
        """Write whatever there is room for, or *at_once* bytes at most, for *seconds*; yield what waits."""
        now = 0.0
        while now < seconds:
            count = min(self.room(now), at_once or MOST_BYTES)
            self.waiting += count
            self.wrote(count)
            yield int(self.waiting)
            now += 0.005
            self.waiting = max(0.0, self.waiting - self.rate * 0.005)


@pytest.mark.parametrize("rate", [2_000_000, 6_250_000, 50_000_000])
async def test_what_waits_is_sent_soon_whatever_the_rate(rate: int) -> None:
    near, far = await tcp_pair()
    async with near, far:
        link = Link(near.socket, rate)
        waiting = list(link.steps(2.0))
        assert max(waiting[100:]) <= max(1.6 * rate * UNSENT_S, LEAST_BYTES)


async def test_a_link_that_is_always_given_enough_does_not_run_dry() -> None:
    near, far = await tcp_pair()
    async with near, far:
        link = Link(near.socket, 20_000_000)
        assert all(waiting > 0 for waiting in list(link.steps(2.0))[100:])


async def test_a_link_that_ran_dry_is_given_more() -> None:
    near, far = await tcp_pair()
    async with near, far:
        link = Link(near.socket, 200_000_000)
        list(link.steps(1.0, at_once=300_000))
        assert link.limit > 4 * FIRST_BYTES


async def test_a_link_that_ran_dry_because_there_was_no_more_is_not_given_more() -> None:
    near, far = await tcp_pair()
    async with near, far:
        link = Link(near.socket, 200_000_000)
        list(link.steps(1.0, at_once=20_000))
        assert link.limit == FIRST_BYTES


async def test_after_a_pause_a_link_is_new_again() -> None:
    near, far = await tcp_pair()
    async with near, far:
        link = Link(near.socket, 200_000_000)
        list(link.steps(1.0))
        assert link.limit > 4 * FIRST_BYTES
        link.waiting = 0.0
        assert link.room(10.0) == FIRST_BYTES, "others may have its share by now"


async def test_a_peer_that_does_not_read_is_given_little_beyond_its_window() -> None:
    near, far = await tcp_pair()
    async with near, far:
        backlog = Backlog(near.socket)
        backlog.limit = LEAST_BYTES
        piece = bytes(16 * 1024)
        while backlog.room(0.0):
            backlog.wrote(os.write(near.socket.fileno(), piece))
        assert LEAST_BYTES <= backlog._unsent() < LEAST_BYTES + len(piece)


async def test_a_closed_socket_has_room_so_that_writing_shows_it() -> None:
    near, far = await tcp_pair()
    async with near, far:
        backlog = Backlog(near.socket)
    assert backlog.room(0.0) == FIRST_BYTES

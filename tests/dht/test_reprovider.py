"""The reprovider, in whole nodes on a swarm in memory."""

from __future__ import annotations

import itertools
import random
from contextlib import AsyncExitStack
from pathlib import Path

import trio
from trio.testing import MockClock

from ipfsreg.dht.keys import position_of
from ipfsreg.dht.service import Dht, open_dht
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.testing.dht import AddressedEndpoint, addressed_endpoint
from ipfsreg.testing.inline_database import open_inline_database
from ipfsreg.testing.network import MemorySwarm

CIDS = [Cid.of(RAW, number.to_bytes(4, "big")) for number in range(500)]


async def open_swarm(stack: AsyncExitStack, directory: Path, count: int, settings: DhtSettings) -> list[Dht]:
    """Nodes that know each other."""
    swarm = MemorySwarm()
    endpoints: list[AddressedEndpoint] = []
    dhts = []
    dice = random.Random(4)
    for number in range(count):
        endpoint = addressed_endpoint(swarm, f"node {number}")
        database = await stack.enter_async_context(open_inline_database(directory / f"{number}.db"))
        dhts.append(await stack.enter_async_context(open_dht(endpoint, database, settings, clock=trio.current_time)))
        if endpoints:
            await endpoint.connect(PeerInfo(dice.choice(endpoints).peer_id))
        endpoints.append(endpoint)
    if count > 1:
        for dht in dhts:
            await dht.bootstrapped.wait()
    return dhts


async def wait_announced(dht: Dht, count: int) -> None:
    with trio.fail_after(3600):
        while dht._reprovider.announcements < count:  # noqa: ASYNC110
            await trio.sleep(1)


async def test_every_root_lies_with_the_peers_closest_to_it_after_a_few_lookups(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        dhts = await open_swarm(stack, tmp_path, 40, DhtSettings(k=8))
        alice, *others = dhts
        await alice.provide(CIDS)
        await wait_announced(alice, len(CIDS))
        await trio.sleep(5)
        # 40 peers are some five regions of at least eight.
        assert alice._reprovider.lookups <= 30
        for cid in CIDS[::25]:
            place = position_of(cid.multihash)
            closest = sorted(others, key=lambda dht: position_of(dht._network.peer_id.raw) ^ place)[:8]
            holders = [dht for dht in others if dht._records.providers_of(cid.multihash)]
            assert set(holders) == set(closest)


async def test_a_day_later_it_is_announced_again_and_spread_over_the_day(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    async with AsyncExitStack() as stack:
        alice, _ = await open_swarm(stack, tmp_path, 2, DhtSettings())
        await alice.provide(CIDS)
        await wait_announced(alice, len(CIDS))
        # The first round is over after one interval and an eighth; the second is the one to look at.
        await trio.sleep(1.125 * 22 * 3600)
        seen = [alice._reprovider.announcements]
        for _ in range(11):
            await trio.sleep(2 * 3600)
            seen.append(alice._reprovider.announcements)
        hours = [later - before for before, later in itertools.pairwise(seen)]
        # Not exactly all of them: some come up a little early with a neighbour, over either end of the day.
        assert abs(sum(hours) - len(CIDS)) <= 0.1 * len(CIDS)
        assert max(hours) <= 0.2 * len(CIDS)


async def test_announcing_waits_for_somebody_to_tell(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        (alice,) = await open_swarm(stack, tmp_path, 1, DhtSettings())
        await alice.provide(CIDS[:3])
        await trio.sleep(7200)
        assert alice._reprovider.announcements == 0
        endpoint = alice._network
        assert isinstance(endpoint, AddressedEndpoint)
        bob = addressed_endpoint(endpoint._swarm, "bob")
        database = await stack.enter_async_context(open_inline_database(tmp_path / "bob.db"))
        bobs = await stack.enter_async_context(open_dht(bob, database, clock=trio.current_time))
        await bob.connect(PeerInfo(endpoint.peer_id))
        await trio.sleep(5)
        assert alice._reprovider.announcements == 3
        assert len(bobs._records) == 3


async def test_what_reached_nobody_is_tried_again(autojump_clock: MockClock, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        alice, bob = await open_swarm(stack, tmp_path, 2, DhtSettings())
        endpoint, other = alice._network, bob._network
        assert isinstance(endpoint, AddressedEndpoint)
        assert isinstance(other, AddressedEndpoint)
        swarm = endpoint._swarm
        swarm.cut(endpoint, other)
        await alice.provide(CIDS[:3])
        await trio.sleep(20)
        assert alice._reprovider.announcements == 0
        swarm.heal(endpoint, other)
        await endpoint.connect(PeerInfo(other.peer_id))
        await trio.sleep(40)
        assert alice._reprovider.announcements == 3

"""Nodes with small stores pull more through than fits: what goes, what stays, and that nothing is lost."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from ipfsreg.blockstore.room import StoreLimits
from ipfsreg.errors import StoreFull
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository
from ipfsreg.registry.evicting import EvictionSettings
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.network import MemorySwarm, peer_of
from ipfsreg.testing.sites import Site, image_of, open_site

APP = parse_repository("team/app")
OTHER = parse_repository("other/app")
MIB = 1024 * 1024
CAP = StoreLimits(max_bytes=10 * MIB)


def layers(count: int, size: int = MIB) -> list[bytes]:
    dice = random.Random(4)
    return [dice.randbytes(size) for _ in range(count)]


@asynccontextmanager
async def swarm_of(
    directory: Path, *names: str, capped: Sequence[str] = ("bob",), **options: Any
) -> AsyncIterator[dict[str, Site]]:
    """Sites that all know each other; those *capped* hold 10 MiB."""
    swarm = MemorySwarm()
    sites: dict[str, Site] = {}
    async with AsyncExitStack() as stack:
        for name in names:
            eviction = options.get("eviction", EvictionSettings())
            sites[name] = await stack.enter_async_context(
                open_site(
                    swarm,
                    directory,
                    name,
                    *sites,
                    settings=RegistrySettings(give_up_s=2.0, eviction=eviction),
                    limits=CAP if name in capped else None,
                    trusted=options.get("trusted"),
                )
            )
        yield sites


async def push(site: Site, tag: str, *data: bytes, repository: str = APP) -> None:
    await site.push_image(parse_repository(repository), tag, *data)


async def read_all(site: Site, data: Sequence[bytes]) -> None:
    """Pull all of it."""
    for one in data:
        assert await site.read_blob(APP, Digest.of(one)) == one


def here(site: Site, data: Sequence[bytes]) -> list[bool]:
    return [site.blobs.stat(Digest.of(one)) is not None for one in data]


async def test_more_than_fits_is_pulled_through_and_the_store_stays_below_its_limit(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        data = layers(25)
        for number, layer in enumerate(data):
            await push(alice, f"t{number}", layer)
        await bob.wait_like(alice)
        for _ in range(2):
            for layer in data:
                assert await bob.read_blob(APP, Digest.of(layer)) == layer
                assert bob.blobs.usage().used <= CAP.max_bytes
        # Much of what fits is here, and it is what was asked for last.
        assert here(bob, data[-8:]) == [True] * 8
        assert bob.registry.evictor.done.blobs >= 50 - 10
        assert all(here(alice, data))


async def test_what_was_asked_for_last_stays_longest(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        *data, more = layers(9) + layers(1, 2 * MIB)
        await push(alice, "all", *data, more)
        await bob.wait_like(alice)
        await read_all(bob, data)
        await bob.read_blob(APP, Digest.of(data[0]))
        await bob.read_blob(APP, Digest.of(more))
        assert here(bob, data)[:3] == [True, False, here(bob, data)[2]]


async def test_what_no_other_node_has_stays_and_the_pull_is_refused(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob", "carol") as sites:
        alice, bob, carol = sites["alice"], sites["bob"], sites["carol"]
        data, (late,) = layers(9), layers(1, 3 * MIB)
        await push(alice, "all", *data)
        await push(carol, "late", late)
        await bob.wait_like(alice)
        await bob.wait_like(carol)
        await read_all(bob, data)
        # What alice had is lost to the swarm but for what bob has.
        for layer in data:
            await alice.blobs.delete(Digest.of(layer))
        with pytest.raises(StoreFull, match=r"store\.max_bytes"):
            await bob.read_blob(APP, Digest.of(late))
        assert all(here(bob, data))
        assert bob.registry.evictor.done.refused == 1
        # One that somebody has again may go.
        for layer in data[:4]:
            await alice.read_blob(APP, Digest.of(layer))
        assert await bob.read_blob(APP, Digest.of(late)) == late
        assert here(bob, data)[4:] == [True] * 5
        assert sum(here(bob, data)[:4]) < 3


async def test_with_nobody_in_reach_everything_stays_in_its_order(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with (
        open_site(swarm, tmp_path, "bob", limits=CAP) as bob,
        open_site(swarm, tmp_path, "alice", "bob") as alice,
    ):
        data = layers(9)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        await read_all(bob, data)
        before = [one.info.digest for one in bob.blobs.least_used((-1, -1), 100)]
        swarm.part(bob.endpoint, alice.endpoint)
        assert not await bob.registry.evictor.make_room(3 * MIB)
        assert [one.info.digest for one in bob.blobs.least_used((-1, -1), 100)] == before
        assert all(here(bob, data))


async def test_a_push_has_room_made_for_it(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        data = layers(9)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        await read_all(bob, data)
        (with_length, without) = layers(2, 3 * MIB)
        session = await bob.registry.start_upload(APP)
        await session.expect(len(with_length))
        await session.write(with_length)
        await session.finish(Digest.of(with_length))
        bob.registry.release_upload(session)
        await bob.push_blob(APP, without)
        assert bob.blobs.usage().used <= CAP.max_bytes
        # What was pushed stays, whatever comes.
        await read_all(bob, data)
        assert here(bob, [with_length, without]) == [True, True]
        session = await bob.registry.start_upload(APP)
        with pytest.raises(StoreFull):
            await session.expect(5 * MIB)


async def test_what_a_push_here_relies_on_stays_although_it_was_pulled(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        base, *data = layers(24)
        await push(alice, "base", base)
        for number, layer in enumerate(data):
            await push(alice, f"t{number}", layer)
        await bob.wait_like(alice)
        # The client finds the base in the swarm and does not upload it.
        await bob.push_image(APP, "derived", b"small")
        await bob.push_manifest(APP, "derived", image_of(base, b"small"))
        await read_all(bob, data)
        assert here(bob, [base, b"small", b"{}"]) == [True] * 3


async def test_a_pulled_blob_that_is_pushed_here_stays(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        one, *data = layers(20)
        await push(alice, "all", one, *data)
        await bob.wait_like(alice)
        await bob.read_blob(APP, Digest.of(one))
        await bob.push_blob(OTHER, one)
        await read_all(bob, data)
        assert here(bob, [one]) == [True]


async def test_what_is_being_read_stays_until_it_was_read(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        one, *data = layers(20)
        await push(alice, "all", one, *data)
        await bob.wait_like(alice)
        await bob.read_blob(APP, Digest.of(one))
        async with await bob.registry.open_blob(APP, Digest.of(one)) as blob:
            for layer in data:
                await bob.read_blob(APP, Digest.of(layer))
            assert blob.path is not None
            assert blob.path.read_bytes() == one
        await read_all(bob, data)
        assert here(bob, [one]) == [False]


async def test_manifests_and_repositories_that_are_kept_stay(tmp_path: Path) -> None:
    settings = EvictionSettings(keep=("other/*",))
    async with swarm_of(tmp_path, "alice", "bob", eviction=settings) as sites:
        alice, bob = sites["alice"], sites["bob"]
        one, *data = layers(20)
        pushed = await alice.push_image(OTHER, "one", one)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        await bob.registry.get_manifest(OTHER, pushed.digest)
        for layer in [one, *data]:
            await bob.read_blob(OTHER if layer is one else APP, Digest.of(layer))
        assert here(bob, [one, image_of(one), image_of(*data)]) == [True] * 3


async def test_with_evict_nothing_a_full_store_refuses(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob", eviction=EvictionSettings(evict="nothing")) as sites:
        alice, bob = sites["alice"], sites["bob"]
        data = layers(11)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        for layer in data[:9]:
            await bob.read_blob(APP, Digest.of(layer))
        with pytest.raises(StoreFull):
            await read_all(bob, data[9:])
        assert all(here(bob, data[:9]))


async def test_the_word_of_a_peer_that_is_not_trusted_does_not_count(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob", trusted=frozenset({peer_of("carol")})) as sites:
        alice, bob = sites["alice"], sites["bob"]
        data = layers(11)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        with pytest.raises(StoreFull):
            await read_all(bob, data)


async def test_as_many_copies_stay_as_are_asked_for(tmp_path: Path) -> None:
    settings = EvictionSettings(copies=2)
    async with swarm_of(tmp_path, "alice", "bob", "carol", eviction=settings) as sites:
        alice, bob, carol = sites["alice"], sites["bob"], sites["carol"]
        data = layers(12)
        await push(alice, "all", *data)
        await bob.wait_like(alice)
        await carol.wait_like(alice)
        with pytest.raises(StoreFull):
            await read_all(bob, data)
        await carol.read_blob(APP, Digest.of(data[0]))
        await carol.read_blob(APP, Digest.of(data[1]))
        assert await bob.registry.evictor.make_room(2 * MIB)
        assert here(bob, data)[:3] == [False, False, True]


async def test_nodes_that_make_room_at_once_leave_one_copy_of_everything(tmp_path: Path) -> None:
    names = ("bob", "carol", "dave")
    async with swarm_of(tmp_path, "alice", *names, capped=names) as sites:
        alice, caches = sites["alice"], [sites[name] for name in names]
        data = layers(9)
        await push(alice, "all", *data)
        for cache in caches:
            await cache.wait_like(alice)
            for layer in data:
                await cache.read_blob(APP, Digest.of(layer))
        for layer in data:
            await alice.blobs.delete(Digest.of(layer))
        for round_number in range(4):
            async with trio.open_nursery() as nursery:
                for cache in caches:
                    nursery.start_soon(cache.registry.evictor.make_room, 9 * MIB + round_number)
            copies = [sum(have) for have in zip(*(here(cache, data) for cache in caches), strict=True)]
            assert min(copies) >= 1, copies
        assert sum(copies) < 27, "something went"


async def test_what_arrived_of_a_blob_nobody_fetches_goes_first(tmp_path: Path) -> None:
    async with swarm_of(tmp_path, "alice", "bob") as sites:
        alice, bob = sites["alice"], sites["bob"]
        data, (big,) = layers(2), layers(1, 8 * MIB)
        await push(alice, "all", *data, big)
        await bob.wait_like(alice)
        link = await bob.registry.stat_blob(APP, Digest.of(big))
        partial = await bob.blobs.open_partial(Digest.of(big), link.size, link.root)
        assert not await bob.registry.evictor.make_room(3 * MIB), "somebody fetches it"
        await partial.abandon()
        assert await bob.registry.evictor.make_room(3 * MIB)
        assert Digest.of(big) not in {info.digest for info in bob.blobs.partials()}
        assert bob.registry.evictor.done.partials == 1


async def test_uses_are_remembered_across_a_restart(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, tmp_path, "alice") as alice:
        data = layers(5)
        await push(alice, "all", *data)
        async with open_site(swarm, tmp_path, "bob", "alice", limits=CAP) as bob:
            await bob.wait_like(alice)
            for layer in data:
                await bob.read_blob(APP, Digest.of(layer))
            await trio.sleep(0.002)
            await bob.read_blob(APP, Digest.of(data[0]))
            await bob.blobs.note_uses()
            before = [one.info.digest for one in bob.blobs.least_used((-1, -1), 100)]
            assert before[-1] == Digest.of(data[0])
        async with open_site(MemorySwarm(), tmp_path, "bob", limits=CAP) as bob:
            assert [one.info.digest for one in bob.blobs.least_used((-1, -1), 100)] == before
            assert bob.blobs.usage().pulled >= 5 * MIB

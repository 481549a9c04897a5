from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio
from trio.testing import MockClock

from ipfsreg.crdt.interface import Names, Put
from ipfsreg.testing.names_checks import check_names
from ipfsreg.testing.replicas import ReplicaSwarm, wait_equal


async def test_a_replica_keeps_the_promises_of_names(tmp_path: Path, autojump_clock: MockClock) -> None:
    opened = 0

    @asynccontextmanager
    async def open_names() -> AsyncIterator[Names]:
        nonlocal opened
        opened += 1
        async with ReplicaSwarm(tmp_path).open(f"replica-{opened}") as replica:
            yield replica

    await check_names(open_names)


async def test_what_alice_writes_appears_on_bob(tmp_path: Path, autojump_clock: MockClock) -> None:
    swarm = ReplicaSwarm(tmp_path)
    async with swarm.open("alice") as alice, swarm.open("bob") as bob:
        async with bob.changes() as changes:
            heads = await alice.commit([Put("/a", b"1")])
            with trio.fail_after(1):
                change = await anext(changes)
        assert (change.key, change.old, change.new) == ("/a", None, b"1")
        assert bob.get("/a") == b"1"
        await wait_equal(alice, bob)
        assert bob.heads() == heads

"""The swarm in memory keeps the promises of the real one."""

from __future__ import annotations

import pytest

from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.network_checks import PROMISES, Promise, name_of


@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_the_swarm_in_memory_keeps_its_promises(promise: Promise, autojump_clock: object) -> None:
    swarm = MemorySwarm()
    await promise(swarm.endpoint("alice"), swarm.endpoint("bob"))

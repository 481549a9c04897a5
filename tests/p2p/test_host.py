"""The real host, on loopback sockets: the promises of `Network`, and what only a real host has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio

from ipfsreg.database import open_database
from ipfsreg.errors import AlreadyRunning, ConfigError, PeerUnreachable
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange, PeerEvent, PeerInfo
from ipfsreg.testing.network_checks import PROMISES, Promise, info_of, name_of

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
PSK = bytes(range(32))


@asynccontextmanager
async def open_hosts(count: int, psk: bytes | None = None) -> AsyncIterator[list[Host]]:
    settings = NetworkSettings(listen_addrs=(LOOPBACK,), psk=psk)
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(open_network(Identity.generate(), settings)) for _ in range(count)]


@pytest.mark.parametrize("psk", [None, PSK], ids=["public", "private"])
@pytest.mark.parametrize("promise", PROMISES, ids=name_of)
async def test_the_host_keeps_its_promises(promise: Promise, psk: bytes | None) -> None:
    async with open_hosts(2, psk) as (alice, bob):
        await promise(alice, bob)

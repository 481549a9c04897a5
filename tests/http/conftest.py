"""A registry, and its front door on a loopback port."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from ipfsreg.http.server import Server
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import HttpClient, connect_http


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Server]:
    """The server of an empty registry without peers."""
    async with open_front_door(tmp_path) as server:
        yield server


@pytest.fixture
async def client(door: Server) -> AsyncIterator[HttpClient]:
    """A connection to it."""
    async with connect_http(door.places[0]) as client:
        yield client

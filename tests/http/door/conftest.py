"""A registry behind a closed door."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from ipfsreg.config import load_config
from ipfsreg.http.door.opening import OpenedDoor, open_door
from ipfsreg.http.server import Server
from ipfsreg.testing.closed import ClosedDoor, make_closed_door
from ipfsreg.testing.front_door import open_front_door

OpenClosed = Callable[..., AbstractAsyncContextManager[Server]]


@pytest.fixture
def closed(tmp_path: Path) -> ClosedDoor:
    """Its files."""
    directory = tmp_path / "door"
    return make_closed_door(directory)


@contextmanager
def opened(closed: ClosedDoor, **changes: str) -> Iterator[OpenedDoor]:
    """The door of plain HTTP by its files; *changes* are keys of its configuration."""
    environment = closed.environment(tls=False) | {f"IPFSREG_{key}": value for key, value in changes.items()}
    config = load_config(None, {"IPFSREG_P2P_PROTECTOR_KEY": "ab" * 32, **environment})
    with open_door(config, b"the node's own key") as door:
        yield door


@pytest.fixture
def open_closed(closed: ClosedDoor, tmp_path: Path) -> OpenClosed:
    """Opens a registry behind that door."""

    @asynccontextmanager
    async def open_it(**changes: str) -> AsyncIterator[Server]:
        with opened(closed, **changes) as door:
            async with open_front_door(tmp_path, door=door.door) as server:
                yield server

    return open_it


def rules(*entries: dict[str, object]) -> str:
    """`auth.rules` as the environment has them."""
    return json.dumps(entries)

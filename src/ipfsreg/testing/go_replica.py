"""go-ds-crdt as a replica of tests (tests/interop/go/main.go).

    async with open_go_replica(directory, topic="names", psk=psk) as go:
        await go.connect(host_info)
        await go.commit([Put("/a", b"1")])

Leaving the block kills it; opened on the same directory again, it goes on with the same identity and store.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.pnet import format_swarm_key
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.js_peer import dialable
from ipfsreg.testing.peer_process import INSTALLED, PeerProcess, open_peer_process

RELEASE, NEWEST = "go-replica", "go-replica-newest"
"""What scripts/setup-go-replica builds: of the released go-ds-crdt, and of a checkout of it if it is given one."""

REBROADCAST_S = 2.0
"""Its heads are said so often; go-ds-crdt's default is a minute, which no test can wait for."""


class GoReplica:
    """A replica of go-ds-crdt with libp2p and bitswap below it."""

    def __init__(self, process: PeerProcess, info: PeerInfo) -> None:
        self.process = process
        self.info = info

    @property
    def peer(self) -> PeerId:
        """Its ID."""
        return self.info.peer

    async def connect(self, info: PeerInfo) -> None:
        """Connect to *info*."""
        await self.process.call("connect", addr=dialable(info))

    async def cut(self, peer: PeerId) -> None:
        """Have no connection to *peer*, whoever dials."""
        await self.process.call("block", peer=str(peer))

    async def heal(self, peer: PeerId) -> None:
        """Allow connections to *peer* again; makes none."""
        await self.process.call("unblock", peer=str(peer))

    async def commit(self, changes: Sequence[Change]) -> None:
        """One change with go-ds-crdt's Put or Delete, several with its Batch."""
        if len(changes) != 1:
            ops = [{"key": change.key, "value": _text(change)} for change in changes]
            await self.process.call("batch", ops=ops)
        elif isinstance(changes[0], Delete):
            await self.process.call("delete", key=changes[0].key)
        else:
            await self.process.call("put", key=changes[0].key, value=_text(changes[0]))

    async def get(self, key: str) -> bytes | None:
        """The value of *key*."""
        value = await self.process.call("get", key=key)
        return None if value is None else base64.b64decode(value)

    async def scan(self, prefix: str) -> list[tuple[str, bytes]]:
        """All entries below *prefix*, in byte order of their keys."""
        found = await self.process.call("query", prefix=prefix)
        return sorted((key, base64.b64decode(value)) for key, value in found.items())

    async def heads(self) -> tuple[Cid, ...]:
        """Its heads, in the order of their multihashes."""
        heads = [Cid.parse(text) for text in await self.process.call("heads")]
        return tuple(sorted(heads, key=lambda cid: cid.multihash))


def _text(change: Change) -> str | None:
    return base64.b64encode(change.value).decode() if isinstance(change, Put) else None


@asynccontextmanager
async def open_go_replica(
    directory: Path,
    *,
    topic: str,
    psk: bytes | None = None,
    log: str = "error",
    name: str = "go",
    program: str = RELEASE,
) -> AsyncIterator[GoReplica]:
    """Run a replica of *topic* on loopback, on what *directory* holds, for as long as the block lasts.

    *log*: what it tells on stderr, in the form of its variable GOLOG_LOG_LEVEL.
    """
    await trio.Path(directory).mkdir(parents=True, exist_ok=True)
    settings = {
        "topic": topic,
        "psk": format_swarm_key(psk).decode() if psk else None,
        "rebroadcast_s": REBROADCAST_S,
    }
    command = [str(INSTALLED / program / "replica"), str(directory), json.dumps(settings)]
    async with open_peer_process(name, command, {"GOLOG_LOG_LEVEL": log}) as process:
        ready = process.events[0]
        yield GoReplica(process, PeerInfo(PeerId.parse(ready["peer"]), tuple(ready["addrs"])))

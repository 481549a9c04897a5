"""Kubo as a peer of tests (tests/interop/kubo/peer.py).

    async with open_kubo_peer(directory, psk=psk) as kubo:
        await kubo.dial(host_info)

It is Kubo as a library, which offers less than its command line: it does not tell what identify told it, and it pings
nobody. But it forwards TCP connections over streams of its own, so that any protocol below `/x/` can be spoken with it.
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.pnet import format_swarm_key
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.js_peer import dialable
from ipfsreg.testing.peer_process import INSTALLED, PROGRAMS, PeerProcess, open_peer_process

MOUNTED = "/x/"
"""What Kubo puts before the name of a forwarded protocol."""


class KuboPeer:
    """A Kubo node, with a repository of its own."""

    def __init__(self, process: PeerProcess, info: PeerInfo, directory: Path) -> None:
        self.process = process
        self.info = info
        self.directory = directory

    @property
    def peer(self) -> PeerId:
        """Its ID. Its key is RSA."""
        return self.info.peer

    async def dial(self, info: PeerInfo) -> None:
        """Connect to *info*."""
        await self.process.call("dial", addr=dialable(info))

    async def connections(self) -> list[str]:
        """Who it is connected to: multiaddrs that end in the peer ID."""
        return list(await self.process.call("connections"))

    async def find_peer(self, peer: PeerId, timeout_s: int = 10) -> list[str]:
        """Where it knows or finds *peer*."""
        return list(await self.process.call("find_peer", peer=str(peer), seconds=timeout_s) or [])

    async def forward(self, protocol: str, port: int, peer: PeerId) -> None:
        """Connections to *port* on loopback go to *peer* as streams of `/x/`*protocol* from now on."""
        await self.process.call("forward", protocol=protocol, listen=f"/ip4/127.0.0.1/tcp/{port}", peer=str(peer))

    async def listen(self, protocol: str, port: int) -> None:
        """Streams of `/x/`*protocol* go to *port* on loopback as connections from now on."""
        await self.process.call("listen", protocol=protocol, target=f"/ip4/127.0.0.1/tcp/{port}")

    async def add(self, path: Path) -> str:
        """Import a file as `ipfs add` does (CIDv0, chunks of 256 KiB); return its root."""
        return str(await self.process.call("add", path=str(path), timeout_s=100))

    async def cat(self, cid: str, timeout_s: float = 100.0) -> tuple[str, int]:
        """Fetch a whole file from whoever has it; return its sha256 in hex, and its size."""
        path = await self.get(cid, timeout_s)
        answer = await self.process.call("hash", path=str(path), timeout_s=timeout_s)
        path.unlink()
        return answer["sha256"], answer["size"]

    async def get(self, cid: str, timeout_s: float = 100.0) -> Path:
        """Fetch a whole file from whoever has it; return where it lies now."""
        path = self.directory / f"got-{cid}"
        await self.process.call("get", cid=cid, path=str(path), timeout_s=timeout_s)
        return path

    async def pin(self, cid: str, timeout_s: float = 100.0) -> None:
        """Fetch a whole DAG from whoever has it, and keep it."""
        await self.process.call("pin", cid=cid, timeout_s=timeout_s)

    async def subscribe(self, topic: str) -> None:
        """Be in *topic* from now on."""
        await self.process.call("subscribe", topic=topic)

    async def subscribers(self, topic: str) -> list[PeerId]:
        """Whom it knows to be in *topic*."""
        return [PeerId.parse(peer) for peer in await self.process.call("subscribers", topic=topic)]

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign *data* and publish it."""
        await self.process.call("publish", topic=topic, data=base64.b64encode(data).decode())

    def messages(self, topic: str) -> list[tuple[bytes, PeerId]]:
        """What it got in *topic* until now: data and author, its own messages too."""
        return [
            (base64.b64decode(event["data"]), PeerId.parse(event["from"]))
            for event in self.process.events
            if event["event"] == "message" and topic in event["topics"]
        ]

    async def wait_message(self, topic: str, data: bytes, timeout_s: float = 30.0) -> PeerId:
        """Return the author of the message *data* in *topic* when it has got it."""
        text = base64.b64encode(data).decode()
        event = await self.process.wait_event("message", topics=[topic], data=text, timeout_s=timeout_s)
        return PeerId.parse(event["from"])


@asynccontextmanager
async def open_kubo_peer(
    directory: Path, *, psk: bytes | None = None, log: str = "error", name: str = "kubo", durable: bool = False
) -> AsyncIterator[KuboPeer]:
    """Run a node on loopback for as long as the block lasts; its repository is made in *directory*, which is empty.

    *log*: what it tells on stderr, in the form of its variable GOLOG_LOG_LEVEL. *durable*: what it has survives a power
    cut, as is its default; tests need five times as long then.
    """
    repository = directory / "repository"
    repository.mkdir(parents=True)
    settings = {"psk": format_swarm_key(psk).decode() if psk else None, "durable": durable}
    command = [
        str(INSTALLED / "kubo/bin/python"),
        str(PROGRAMS / "kubo/peer.py"),
        str(repository),
        json.dumps(settings),
    ]
    async with open_peer_process(name, command, {"GOLOG_LOG_LEVEL": log}) as process:
        ready = process.events[0]
        yield KuboPeer(process, PeerInfo(PeerId.parse(ready["peer"]), tuple(ready["addrs"])), directory)

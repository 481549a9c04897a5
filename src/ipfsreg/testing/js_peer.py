"""js-libp2p and Helia as peers of tests (tests/interop/js/peer.mjs).

async with open_js_peer(psk=psk) as js:
    await js.dial(host_info)
"""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from ipfsreg.ipld.builder import V1_2025, Profile
from ipfsreg.p2p.addresses import split_peer
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.pnet import format_swarm_key
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.peer_process import (
    INSTALLED,
    PROGRAMS,
    PeerFailed,
    PeerProcess,
    check_installed,
    open_peer_process,
)

BULK = "/ipfsreg-interop/bulk/1.0.0"
"""Content both ways at once on one stream; see `peer.mjs`, and `bulk.py` for our side of it."""


@dataclass(frozen=True, slots=True)
class Identified:
    """What identify told the peer of somebody."""

    agent: str
    protocols: frozenset[str]
    listen: tuple[str, ...]
    observed: str
    """Where that somebody sees the peer."""


@dataclass(frozen=True, slots=True)
class Published:
    """A message the peer got in a topic, its signature checked by the peer."""

    data: bytes
    author: PeerId
    passed_on_by: PeerId


def dialable(info: PeerInfo) -> str:
    """One address of *info*, with its peer ID: IPv4 loopback where it has that."""
    addrs = sorted(info.addrs, key=lambda addr: not addr.startswith("/ip4/127.0.0.1/"))
    return f"{addrs[0]}/p2p/{info.peer}"


class JsPeer:
    """A js-libp2p peer; with `helia` it has blocks, too."""

    def __init__(self, process: PeerProcess, info: PeerInfo) -> None:
        self.process = process
        self.info = info

    @property
    def peer(self) -> PeerId:
        """Its ID."""
        return self.info.peer

    async def dial(self, info: PeerInfo) -> None:
        """Connect to *info*."""
        answer = await self.process.call("dial", addr=dialable(info))
        assert answer["peer"] == str(info.peer)

    async def hang_up(self, peer: PeerId) -> None:
        """Close the connections to *peer*."""
        await self.process.call("hangUp", peer=str(peer))

    async def connections(self) -> list[dict[str, str]]:
        """Who it is connected to, and where that is."""
        return list(await self.process.call("connections"))

    async def ping(self, peer: PeerId) -> float:
        """Ping a connected peer; seconds."""
        return float(await self.process.call("ping", peer=str(peer))) / 1000

    async def identified(self, peer: PeerId) -> Identified:
        """What identify told it of *peer*; waits for that."""
        told = await self.process.call("identified", peer=str(peer))
        return Identified(told["agent"], frozenset(told["protocols"]), tuple(told["listen"]), told["observed"])

    async def bulk(self, peer: PeerId, *, send: int, want: int, timeout_s: float = 60.0) -> int:
        """Exchange content on a stream it opens; return how many bytes it got with the right hash."""
        answer = await self.process.call("bulk", peer=str(peer), send=send, want=want, timeout_s=timeout_s)
        return int(answer["received"])

    async def subscribe(self, topic: str) -> None:
        """Be in *topic* from now on."""
        await self.process.call("subscribe", topic=topic)

    async def subscribers(self, topic: str) -> list[PeerId]:
        """Whom it knows to be in *topic*."""
        return [PeerId.parse(peer) for peer in await self.process.call("subscribers", topic=topic)]

    async def mesh(self, topic: str) -> list[PeerId]:
        """Its mesh in *topic*."""
        return [PeerId.parse(peer) for peer in await self.process.call("mesh", topic=topic)]

    async def publish(self, topic: str, data: bytes) -> None:
        """Sign *data* and publish it."""
        await self.process.call("publish", topic=topic, data=base64.b64encode(data).decode())

    def messages(self, topic: str) -> list[Published]:
        """What it got in *topic* until now, in order."""
        return [
            Published(base64.b64decode(event["data"]), PeerId.parse(event["from"]), PeerId.parse(event["by"]))
            for event in self.process.events
            if event["event"] == "message" and event["topic"] == topic
        ]

    async def wait_message(self, topic: str, data: bytes, timeout_s: float = 30.0) -> Published:
        """Return the message *data* in *topic* when it has got it."""
        text = base64.b64encode(data).decode()
        event = await self.process.wait_event("message", topic=topic, data=text, type="signed", timeout_s=timeout_s)
        return Published(data, PeerId.parse(event["from"]), PeerId.parse(event["by"]))

    async def provide(self, cid: str) -> int:
        """Announce *cid* in the DHT; return how many peers took that.

        Raises:
            PeerFailed: a query failed.
        """
        answer = await self.process.call("provide", cid=cid)
        if answer["errors"]:
            raise PeerFailed(f"{self.process.name}: {answer['errors']}")
        return int(answer["reached"])

    async def find_providers(self, cid: str) -> dict[PeerId, tuple[str, ...]]:
        """Who has *cid*, and where they are, as the DHT says."""
        found = await self.process.call("findProviders", cid=cid)
        return {PeerId.parse(peer): tuple(addrs) for peer, addrs in found.items()}

    async def find_peer(self, peer: PeerId) -> Sequence[str] | None:
        """Where the DHT says that *peer* is."""
        found: list[str] | None = await self.process.call("findPeer", peer=str(peer))
        return found

    async def dht_peers(self) -> int:
        """How many are in its routing table."""
        return int(await self.process.call("dhtPeers"))

    async def add(self, path: Path, profile: Profile = V1_2025, *, trickled: bool = False) -> str:
        """Import a file as *profile* says; return its root. *trickled*: in the layout made for streams."""
        root = await self.process.call(
            "add",
            path=str(path),
            cidVersion=profile.cid_version,
            rawLeaves=profile.raw_leaves,
            chunk=profile.chunk_bytes,
            width=profile.width,
            trickled=trickled,
        )
        return str(root)

    async def cat(self, cid: str, timeout_s: float = 100.0) -> tuple[str, int]:
        """Fetch a whole file from whoever has it; return its sha256 in hex, and its size."""
        answer = await self.process.call("cat", cid=cid, seconds=timeout_s, timeout_s=timeout_s + 5)
        return answer["sha256"], answer["size"]


@asynccontextmanager
async def open_js_peer(
    *,
    psk: bytes | None = None,
    kad: str = "",
    helia: bool = False,
    meshed: bool = True,
    log: str = "",
    name: str = "js",
) -> AsyncIterator[JsPeer]:
    """Run a peer on loopback for as long as the block lasts.

    *kad*: the protocol of its DHT, if it has one. *meshed*: whether it has a mesh in pubsub, or only gossips.
    *log*: what it tells on stderr, in the form of its variable DEBUG.
    """
    settings = {"psk": format_swarm_key(psk).decode() if psk else None, "kad": kad, "helia": helia, "meshed": meshed}
    check_installed(name, PROGRAMS / "js/node_modules/.installed")
    command = [str(INSTALLED / "nodejs/bin/node"), str(PROGRAMS / "js/peer.mjs"), json.dumps(settings)]
    async with open_peer_process(name, command, {"DEBUG": log}) as process:
        ready = process.events[0]
        addrs = tuple(split_peer(addr)[0] for addr in ready["addrs"])
        yield JsPeer(process, PeerInfo(PeerId.parse(ready["peer"]), addrs))

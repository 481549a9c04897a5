"""A door for py-libp2p's protocols: our network as its `INetworkService`.

    async with open_door(network, ["/their/protocol/1.0.0"]) as door:
        host = BasicHost(network=door)
        host.set_stream_handler("/their/protocol/1.0.0", handler)

Any protocol written for py-libp2p runs on such a host, over our connections, beside our own protocols. Nothing else in
ipfsreg imports this module or its shims, so a node without such protocols does not load py-libp2p's host.

What our network keeps to itself is refused: raw connections, hole punching, several connections to one peer.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p.abc import CMInfo, IListener, IMuxedConn, INetConn, INetStream, INetworkService, INotifee, IRawConnection
from libp2p.crypto.keys import KeyPair, KeyType, PrivateKey, PublicKey
from libp2p.crypto.serialization import deserialize_public_key
from libp2p.custom_types import StreamHandlerFn
from libp2p.network.exceptions import SwarmException
from libp2p.network.stream.net_stream import NetStream
from libp2p.network.tag_store import TagStore
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore, PeerStoreError
from libp2p.tools.anyio_service import Service, background_trio_service
from multiaddr import Multiaddr

from ipfsreg.errors import NetworkError
from ipfsreg.p2p.interface import Network, PeerChange, PeerEvent, PeerInfo, Stream
from ipfsreg.p2p.libp2p_shims import Connection, InboundStream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)


class _OurKey(PrivateKey):
    """Signs with our key, and never shows it."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def sign(self, data: bytes) -> bytes:
        return self._network.sign(data)

    def get_public_key(self) -> PublicKey:
        return deserialize_public_key(self._network.public_key)

    def get_type(self) -> KeyType:
        return self.get_public_key().get_type()

    def to_bytes(self) -> bytes:
        raise SwarmException("the node's private key stays with the node")


class _Listener(IListener):
    """Where our network listens, for whoever asks."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def listen(self, maddr: Multiaddr) -> None:
        raise SwarmException("where the node listens is set in its configuration")

    def get_addrs(self) -> tuple[Multiaddr, ...]:
        return tuple(Multiaddr(addr) for addr in self._network.listen_addrs())

    async def close(self) -> None:
        """The network's owner closes it."""


class Libp2pDoor(Service, INetworkService):
    """Our network as py-libp2p sees it. Built only by `open_door`."""

    def __init__(self, network: Network, protocols: Sequence[str]) -> None:
        self._network = network
        self._protocols = tuple(protocols)
        self._handler: StreamHandlerFn | None = None
        self._notifees: list[INotifee] = []
        self._conns: dict[PeerId, Connection] = {}
        self._tags = TagStore()
        self.started = trio.Event()
        key = _OurKey(network)
        self.peerstore = PeerStore()
        self.peerstore.add_key_pair(self.get_peer_id(), KeyPair(key, key.get_public_key()))
        self.connections = {}
        self.listeners = {"ipfsreg": _Listener(network)}
        self.connection_gate = None

    # ------------------------------------------------------------------ the service

    async def run(self) -> None:
        """Hand streams and news of peers through, until cancelled."""
        async with (
            self._network.accept(self._protocols) as streams,
            self._network.events() as events,
            trio.open_nursery() as nursery,
        ):
            self.started.set()
            nursery.start_soon(self._follow_peers, events)
            async for stream in streams:
                nursery.start_soon(self._hand_over, stream)

    async def _hand_over(self, stream: Stream) -> None:
        connection = self._conn(stream.peer)
        net_stream = connection.keep(NetStream(InboundStream(connection, stream), None, None))
        try:
            if self._handler is not None:
                await self._handler(net_stream)
        except Exception:  # a handler of theirs may raise anything; in py-libp2p that ends the process
            logger.exception("the handler of %s failed; the stream of %s is reset", stream.protocol, stream.peer.short)
            await stream.reset()
        else:
            await stream.aclose()

    async def _follow_peers(self, events: AsyncIterator[PeerEvent]) -> None:
        async for event in events:
            if event.change is PeerChange.IDENTIFIED:
                self._learn(event.peer)
                continue
            connection = self._conn(event.peer)
            gone = event.change is PeerChange.DISCONNECTED
            if gone:
                self._conns.pop(event.peer, None)
                self.connections.pop(connection.peer_id, None)
            else:
                self.connections[connection.peer_id] = [connection]
            for notifee in list(self._notifees):
                told = notifee.disconnected(self, connection) if gone else notifee.connected(self, connection)
                await self._contain(told)

    async def _contain(self, told: Awaitable[None]) -> None:
        try:
            await told
        except Exception:  # as in _hand_over
            logger.exception("somebody who was told of a peer failed")

    def _learn(self, peer: PeerId) -> None:
        """Let their peerstore know what our identify has learned, so that theirs need not ask again."""
        protocols = self._network.protocols_of(peer)
        if protocols is not None:
            self.peerstore.set_protocols(ID(peer.raw), sorted(protocols))

    def _conn(self, peer: PeerId) -> Connection:
        return self._conns.setdefault(peer, Connection(self._network, peer))

    # ------------------------------------------------------------------ INetwork

    def get_peer_id(self) -> ID:
        return ID(self._network.peer_id.raw)

    def get_connections(self, peer_id: ID | None = None) -> list[INetConn]:
        peers = self._network.peers()
        if peer_id is not None:
            wanted = PeerId(peer_id.to_bytes())
            peers = [wanted] if wanted in peers else []
        return [self._conn(peer) for peer in peers]

    def get_connections_map(self) -> dict[ID, list[INetConn]]:
        return {ID(peer.raw): [self._conn(peer)] for peer in self._network.peers()}

    def get_connection(self, peer_id: ID) -> INetConn | None:
        return next(iter(self.get_connections(peer_id)), None)

    async def dial_peer(self, peer_id: ID) -> list[INetConn]:
        try:
            addrs = [str(addr) for addr in self.peerstore.addrs(peer_id)]
        except PeerStoreError:
            addrs = []
        return [await self._dial(peer_id, addrs)]

    async def dial_addr(self, addr: Multiaddr, peer_id: ID, source: tuple[str, int] | None = None) -> INetConn:
        return await self._dial(peer_id, [str(addr)])

    async def _dial(self, peer_id: ID, addrs: list[str]) -> Connection:
        peer = PeerId(peer_id.to_bytes())
        try:
            await self._network.connect(PeerInfo(peer, tuple(addrs)))
        except NetworkError as error:
            raise SwarmException(str(error)) from error
        connection = self._conn(peer)
        # At once: whoever dialled looks there before the event is read.
        self.connections[peer_id] = [connection]
        return connection

    async def dial_addr_as_responder(
        self, addr: Multiaddr, peer_id: ID, source: tuple[str, int] | None = None
    ) -> INetConn:
        raise SwarmException("hole punching is not offered")

    async def new_stream(self, peer_id: ID) -> INetStream:
        if self.get_connection(peer_id) is None:
            await self.dial_peer(peer_id)
        return await self._conn(PeerId(peer_id.to_bytes())).new_stream()

    async def upgrade_outbound_raw_conn(self, raw_conn: IRawConnection, peer_id: ID) -> INetConn:
        raise SwarmException("raw connections are not taken")

    async def upgrade_inbound_raw_conn(self, raw_conn: IRawConnection, maddr: Multiaddr) -> IMuxedConn:
        raise SwarmException("raw connections are not taken")

    def set_stream_handler(self, stream_handler: StreamHandlerFn) -> None:
        self._handler = stream_handler

    async def listen(self, *multiaddrs: Multiaddr) -> bool:
        return bool(self._network.listen_addrs())

    def register_notifee(self, notifee: INotifee) -> None:
        self._notifees.append(notifee)

    def remove_notifee(self, notifee: INotifee) -> None:
        self._notifees.remove(notifee)

    async def close(self) -> None:
        await self.manager.stop()

    async def close_peer(self, peer_id: ID) -> None:
        await self._network.disconnect(PeerId(peer_id.to_bytes()), "closed by a py-libp2p protocol")

    # ------------------------------------------------------------------ health and connection management

    def get_peer_health_summary(self, peer_id: ID) -> dict[str, Any]:
        return {}

    def get_global_health_summary(self) -> dict[str, Any]:
        return {}

    def export_health_metrics(self, format: str = "json") -> str:
        return "{}" if format == "json" else ""

    async def get_health_monitor_status(self) -> dict[str, Any]:
        return {"enabled": False}

    def get_total_connections(self) -> int:
        return len(self._network.peers())

    def get_metrics(self) -> dict[str, int]:
        total = self.get_total_connections()
        return {"total": total, "inbound": 0, "outbound": total, "peers": total}

    def tag_peer(self, peer_id: ID, tag: str, value: int) -> None:
        self._tags.tag_peer(peer_id, tag, value)

    def untag_peer(self, peer_id: ID, tag: str) -> None:
        self._tags.untag_peer(peer_id, tag)

    def get_tag_info(self, peer_id: ID) -> Any:
        return self._tags.get_tag_info(peer_id)

    def protect(self, peer_id: ID, tag: str) -> None:
        self._tags.protect(peer_id, tag)
        self._network.protect(PeerId(peer_id.to_bytes()), tag)

    def unprotect(self, peer_id: ID, tag: str) -> bool:
        self._network.unprotect(PeerId(peer_id.to_bytes()), tag)
        return self._tags.unprotect(peer_id, tag)

    def is_protected(self, peer_id: ID, tag: str = "") -> bool:
        return self._tags.is_protected(peer_id, tag)

    def get_conn_mgr_info(self) -> CMInfo:
        # Trimming is the swarm's business; no watermark is told, as none can be set through this door.
        return CMInfo(0, 0, self.get_total_connections(), 0.0, None)


@asynccontextmanager
async def open_door(network: Network, protocols: Sequence[str]) -> AsyncIterator[Libp2pDoor]:
    """Offer *protocols* in the name of the py-libp2p host that is built on the door, for as long as the block lasts.

    The host's own `run` is not needed: the door runs already.
    """
    door = Libp2pDoor(network, protocols)
    async with background_trio_service(door):
        await door.started.wait()
        yield door

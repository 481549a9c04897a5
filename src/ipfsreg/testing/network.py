"""A swarm in memory: the `Network` promises without sockets, keys on disk or py-libp2p.

    swarm = MemorySwarm()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with alice.accept(["/echo"]) as streams: ...

Everybody can dial everybody until told otherwise: `cut` and `heal` part and join two peers, `delay` slows the bytes
between them, `stall` stops them without closing anything, `kill` takes a peer away.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ipfsreg.errors import ConnectionLost, NetworkError, PeerUnreachable, ProtocolUnsupported, StreamReset
from ipfsreg.p2p.interface import PeerChange, PeerEvent, PeerInfo, Stream
from ipfsreg.p2p.offers import Offers
from ipfsreg.p2p.peer_events import PeerEvents
from ipfsreg.peer_id import PeerId

WINDOW_BYTES = 256 * 1024
"""What a sender may have under way to a receiver that does not read."""


def key_of(name: str) -> Ed25519PrivateKey:
    """The key the test peer *name* always has."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public_key_of(name: str) -> bytes:
    """Its public key in libp2p's protobuf form."""
    return b"\x08\x01\x12\x20" + key_of(name).public_key().public_bytes_raw()


def peer_of(name: str) -> PeerId:
    """Its peer ID."""
    public_key = public_key_of(name)
    return PeerId(bytes((0, len(public_key))) + public_key)


class _Link:
    """What lies between two peers."""

    def __init__(self) -> None:
        self.up = True
        self.delay_s = 0.0
        self.flowing = trio.Event()
        self.flowing.set()


class _Pipe:
    """One direction of a stream."""

    def __init__(self, link: _Link) -> None:
        self._link = link
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._held = 0
        self._changed = trio.Event()
        self.ended = False
        self.error: NetworkError | None = None
        self.unread = False
        self.bytes_carried = 0

    def change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def send(self, data: bytes) -> None:
        for start in range(0, len(data), 65536):
            piece = data[start : start + 65536]
            while self._held >= WINDOW_BYTES and self.error is None and not self.unread:
                await self._changed.wait()
            if self.error is not None:
                raise self.error
            if self.unread:
                continue
            self._held += len(piece)
            self.bytes_carried += len(piece)
            self._pieces.append((trio.current_time() + self._link.delay_s, piece))
            self.change()
        await trio.lowlevel.checkpoint()

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            await self._link.flowing.wait()
            if self.error is not None:
                raise self.error
            if self._pieces:
                ready_at, piece = self._pieces[0]
                if ready_at > trio.current_time():
                    await trio.sleep_until(ready_at)
                    continue
                if len(piece) > max_bytes:
                    self._pieces[0] = (ready_at, piece[max_bytes:])
                    piece = piece[:max_bytes]
                else:
                    self._pieces.popleft()
                self._held -= len(piece)
                self.change()
                await trio.lowlevel.checkpoint()
                return piece
            if self.ended:
                return b""
            await self._changed.wait()

    def fail(self, error: NetworkError) -> None:
        if self.error is None:
            self.error = error
        self.change()


class MemoryStream:
    """One end of a stream between two endpoints. Keeps the `Stream` promises."""

    def __init__(self, peer: PeerId, protocol: str, incoming: _Pipe, outgoing: _Pipe) -> None:
        self.peer = peer
        self.protocol = protocol
        self._in = incoming
        self._out = outgoing

    @property
    def bytes_sent(self) -> int:
        """For tests that count traffic."""
        return self._out.bytes_carried

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        if self._out.ended:
            raise StreamReset("we ended our side before")
        await self._out.send(bytes(data))

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        return await self._in.receive(max_bytes)

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        piece = await self._in.receive(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    async def send_eof(self) -> None:
        self._out.ended = True
        self._out.change()
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        self._out.ended = True
        self._out.change()
        self._in.unread = True
        self._in.change()
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()

    async def reset(self) -> None:
        self.fail(StreamReset("stream reset"))
        with trio.CancelScope(shield=True):
            await trio.lowlevel.checkpoint()

    def fail(self, error: NetworkError) -> None:
        """Break both directions."""
        self._in.fail(error)
        self._out.fail(error)


class MemoryEndpoint:
    """One peer of a `MemorySwarm`. Keeps the `Network` promises."""

    def __init__(self, swarm: MemorySwarm, name: str) -> None:
        self.name = name
        self.peer_id = peer_of(name)
        self.public_key = public_key_of(name)
        self._swarm = swarm
        self._connected: dict[PeerId, list[MemoryStream]] = {}
        self._offers = Offers()
        self._events = PeerEvents()
        self._addrs: dict[PeerId, list[str]] = {}
        self._protected: defaultdict[PeerId, set[str]] = defaultdict(set)
        self.disconnects: list[tuple[PeerId, str]] = []
        """Whom we threw out, and why: for tests."""

    def sign(self, data: bytes) -> bytes:
        return key_of(self.name).sign(data)

    def listen_addrs(self) -> list[str]:
        return [f"/memory/{self.name}"]

    def peers(self) -> list[PeerId]:
        return list(self._connected)

    def protocols_of(self, peer: PeerId) -> frozenset[str] | None:
        if peer not in self._connected:
            return None
        return frozenset(self._swarm.by_id[peer]._offers)

    def addrs_of(self, peer: PeerId) -> list[str]:
        return list(self._addrs.get(peer, []))

    def add_addrs(self, info: PeerInfo, *, ttl_s: float = 3600.0) -> None:
        if info.peer != self.peer_id:
            known = self._addrs.setdefault(info.peer, [])
            known.extend(addr for addr in info.addrs if addr not in known)

    async def connect(self, info: PeerInfo, *, insist: bool = True) -> None:
        await trio.lowlevel.checkpoint()
        self.add_addrs(info)
        self._connect(info.peer)

    def _connect(self, peer: PeerId) -> None:
        if peer in self._connected:
            return
        other = self._swarm.by_id.get(peer)
        gone = self.peer_id not in self._swarm.by_id
        if other is None or other is self or gone or not self._swarm.link(self, other).up:
            raise PeerUnreachable(f"{peer} cannot be reached")
        for here, there in ((self, other), (other, self)):
            here._connected[there.peer_id] = []
            here.add_addrs(PeerInfo(there.peer_id, tuple(there.listen_addrs())))
            here._tell(there.peer_id, PeerChange.CONNECTED)
            here._tell(there.peer_id, PeerChange.IDENTIFIED)

    async def disconnect(self, peer: PeerId, reason: str) -> None:
        await trio.lowlevel.checkpoint()
        self.disconnects.append((peer, reason))
        if peer in self._connected:
            self._swarm.part(self, self._swarm.by_id[peer])

    def lose(self, peer: PeerId) -> None:
        """Drop the connection to *peer* on this side."""
        streams = self._connected.pop(peer, None)
        if streams is None:
            return
        for stream in streams:
            stream.fail(ConnectionLost(f"the connection to {peer} is gone"))
        self._tell(peer, PeerChange.DISCONNECTED)

    async def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> MemoryStream:
        await trio.lowlevel.checkpoint()
        self._connect(peer)
        other = self._swarm.by_id[peer]
        link = self._swarm.link(self, other)
        protocol = next((name for name in protocols if name in other._offers), None)
        if protocol is None:
            raise ProtocolUnsupported(f"{peer} speaks none of {', '.join(protocols)}")
        there, back = _Pipe(link), _Pipe(link)
        ours = MemoryStream(peer, protocol, back, there)
        theirs = MemoryStream(self.peer_id, protocol, there, back)
        self._connected[peer].append(ours)
        other._connected[self.peer_id].append(theirs)
        await other._offers.deliver(theirs)
        return ours

    @asynccontextmanager
    async def accept(self, protocols: Sequence[str], *, max_waiting: int = 256) -> AsyncIterator[AsyncIterator[Stream]]:
        async with self._offers.accept(protocols, max_waiting=max_waiting) as streams:
            self._tell_protocols_changed()
            yield streams
        self._tell_protocols_changed()

    def _tell_protocols_changed(self) -> None:
        for peer in self._connected:
            self._swarm.by_id[peer]._tell(self.peer_id, PeerChange.IDENTIFIED)

    @asynccontextmanager
    async def events(self) -> AsyncIterator[AsyncIterator[PeerEvent]]:
        with self._events.read(self.peers(), self.peers()) as events:
            yield events

    def streams(self) -> list[MemoryStream]:
        """Our ends of all streams of live connections: for tests that count traffic."""
        return [stream for streams in self._connected.values() for stream in streams]

    def _tell(self, peer: PeerId, change: PeerChange) -> None:
        self._events.tell(peer, change)

    def protect(self, peer: PeerId, reason: str) -> None:
        self._protected[peer].add(reason)

    def unprotect(self, peer: PeerId, reason: str) -> None:
        self._protected[peer].discard(reason)


class MemorySwarm:
    """All the endpoints, and what lies between them."""

    def __init__(self) -> None:
        self.by_id: dict[PeerId, MemoryEndpoint] = {}
        self._links: dict[frozenset[PeerId], _Link] = {}

    def endpoint(self, name: str) -> MemoryEndpoint:
        """A new peer."""
        endpoint = MemoryEndpoint(self, name)
        assert endpoint.peer_id not in self.by_id, f"{name} exists already"
        self.by_id[endpoint.peer_id] = endpoint
        return endpoint

    def link(self, one: MemoryEndpoint, other: MemoryEndpoint) -> _Link:
        """What lies between two peers."""
        return self._links.setdefault(frozenset((one.peer_id, other.peer_id)), _Link())

    def part(self, one: MemoryEndpoint, other: MemoryEndpoint) -> None:
        """Close their connection; they may dial again."""
        one.lose(other.peer_id)
        other.lose(one.peer_id)

    def cut(self, one: MemoryEndpoint, other: MemoryEndpoint) -> None:
        """Close their connection and refuse new ones until healed."""
        self.link(one, other).up = False
        self.part(one, other)

    def heal(self, one: MemoryEndpoint, other: MemoryEndpoint) -> None:
        """They can reach each other again."""
        self.link(one, other).up = True

    def delay(self, one: MemoryEndpoint, other: MemoryEndpoint, seconds: float) -> None:
        """Bytes between them take *seconds* each way from now on."""
        self.link(one, other).delay_s = seconds

    def stall(self, one: MemoryEndpoint, other: MemoryEndpoint) -> None:
        """Bytes between them stop; nothing is closed."""
        self.link(one, other).flowing = trio.Event()

    def resume(self, one: MemoryEndpoint, other: MemoryEndpoint) -> None:
        """Bytes flow again."""
        self.link(one, other).flowing.set()

    def kill(self, endpoint: MemoryEndpoint) -> None:
        """The peer is gone, and everybody notices."""
        for peer in endpoint.peers():
            self.part(endpoint, self.by_id[peer])
        del self.by_id[endpoint.peer_id]

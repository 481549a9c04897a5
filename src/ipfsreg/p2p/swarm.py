"""The swarm: every connection we have, how they come about, and how they end.

Each connection is carried by one task, from the handshake to its end, in the swarm's nursery; whatever one peer
provokes ends in that task. A peer may have several connections for a while (two dials that crossed, or a redial after
a loss only one side has noticed): the first in its list is used for new streams, the others are let run dry and are
closed when nothing happens on them any more, so that no stream is lost to the tidying.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

import trio

from ipfsreg.errors import (
    ConnectionLost,
    LimitReached,
    NetworkError,
    PeerUnreachable,
    SwarmKeyMismatch,
)
from ipfsreg.p2p.addressbook import AddressBook
from ipfsreg.p2p.addresses import TcpAddr
from ipfsreg.p2p.connection import Connection, ConnectionLimits, MemoryBudget, secure
from ipfsreg.p2p.dialer import Dialer, Race
from ipfsreg.p2p.doorstep import Doorstep
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.interface import PeerChange
from ipfsreg.p2p.limits import Candidate, Facts, Limits, choose_trimmed, newer_is_better
from ipfsreg.p2p.listening import open_listeners
from ipfsreg.p2p.liveness import DEAD_S, SWEEP_S, Liveness
from ipfsreg.p2p.offers import Offers
from ipfsreg.p2p.peer_events import PeerEvents
from ipfsreg.p2p.resolver import Resolver
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

MAX_PER_PEER = 4
"""Connections to one peer; beyond it the oldest of those that run dry is closed."""
DRY_S = 3.0
"""Seconds without a stream after which a spare connection is closed, by the side with the smaller peer ID…"""
DRY_OTHER_S = 30.0
"""…and by the other side, should that one keep it. One side first: or both might close a different one, and part."""
LOOK_S = 1.0
"""Seconds between two looks at a spare connection."""

_NO_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}


@dataclass(slots=True)
class _Peer:
    """A peer we are connected to."""

    connections: list[Connection]
    """Never empty; the first is used for new streams."""
    since: dict[Connection, float]
    protocols: frozenset[str] | None = None
    agent: str = ""


@dataclass(slots=True, eq=False)
class _Dial:
    """One dial, and everybody who waits for it."""

    race: Race
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    done: trio.Event = field(default_factory=trio.Event)
    failure: NetworkError | None = None
    waiters: int = 0


@dataclass(slots=True)
class SwarmCounters:
    """What happened since the start."""

    dials: int = 0
    """Peers reached, each at one of its addresses."""
    failed_dials: int = 0
    """Peers not reached at any."""
    inbound: int = 0
    """Connections that others made to us, as far as their handshake went well."""
    failed_inbound: int = 0
    """Sockets that did not become a connection: no key, no handshake in time, no room."""


class Swarm:
    """Built only by `open_swarm`."""

    def __init__(
        self,
        nursery: trio.Nursery,
        *,
        identity: Identity,
        psk: bytes | None,
        limits: Limits,
        connection_limits: ConnectionLimits,
        budget: MemoryBudget,
        book: AddressBook,
        listeners: Sequence[trio.SocketListener],
        resolver: Resolver | None,
    ) -> None:
        self.identity = identity
        self.limits = limits
        self.book = book
        self.listeners = listeners
        self.offers = Offers()
        self.events = PeerEvents()
        self._psk = psk
        self._connection_limits = connection_limits
        self._budget = budget
        self._nursery = nursery
        self._peers: dict[PeerId, _Peer] = {}
        self._dials: dict[PeerId, _Dial] = {}
        self._dialer = Dialer(self._secure_dialed, attempts=limits.dials, resolver=resolver, private=psk is not None)
        self._doorstep = Doorstep(limits)
        self._protected: dict[PeerId, set[str]] = {}
        self._closing = False
        self.counters = SwarmCounters()
        self._carried: set[Connection] = set()
        self._past_in = 0
        self._past_out = 0

    # ------------------------------------------------------------------ who is there

    def traffic(self) -> tuple[int, int]:
        """Bytes received and sent on all connections since the start."""
        return (
            self._past_in + sum(connection.bytes_in for connection in self._carried),
            self._past_out + sum(connection.bytes_out for connection in self._carried),
        )

    def peers(self) -> list[PeerId]:
        """Everybody we have a live connection to."""
        return list(self._peers)

    def connection(self, peer: PeerId) -> Connection | None:
        """The connection used for new streams to *peer*."""
        entry = self._peers.get(peer)
        return entry.connections[0] if entry is not None else None

    def connections(self, peer: PeerId) -> list[Connection]:
        """All of them; more than one only for a while."""
        entry = self._peers.get(peer)
        return list(entry.connections) if entry is not None else []

    def protocols_of(self, peer: PeerId) -> frozenset[str] | None:
        """What identify told; None while it has not, or without a connection."""
        entry = self._peers.get(peer)
        return entry.protocols if entry is not None else None

    def agent_of(self, peer: PeerId) -> str:
        """The program *peer* says it runs, or ""."""
        entry = self._peers.get(peer)
        return entry.agent if entry is not None else ""

    def identified(self, peer: PeerId, protocols: frozenset[str], agent: str) -> None:
        """Identify has learned what *peer* speaks."""
        entry = self._peers.get(peer)
        if entry is not None:
            entry.protocols, entry.agent = protocols, agent
            self.events.tell(peer, PeerChange.IDENTIFIED)

    def protect(self, peer: PeerId, reason: str) -> None:
        """Not to be trimmed."""
        self._protected.setdefault(peer, set()).add(reason)

    def unprotect(self, peer: PeerId, reason: str) -> None:
        """One reason less."""
        reasons = self._protected.get(peer, set())
        reasons.discard(reason)
        if not reasons:
            self._protected.pop(peer, None)

    # ------------------------------------------------------------------ dialing

    async def reach(self, peer: PeerId, addrs: Sequence[str] = (), *, insist: bool) -> Connection:
        """Return a connection to *peer*, dialling *addrs* and what the address book has if there is none.

        Any number of callers share one dial, each with the addresses it knows; it ends early when the last of them is
        cancelled.

        Args:
            insist: dial even where every address has failed a moment ago.

        Raises:
            PeerUnreachable, LimitReached.
        """
        for connection in self.connections(peer):
            if connection.reason is not None:
                # It has ended this moment, and the task that carries it has not had its turn yet.
                self._forget(connection)
        usable = self.connection(peer)
        if usable is not None:
            await trio.lowlevel.checkpoint()
            return usable
        if peer == self.identity.peer_id:
            raise PeerUnreachable("that is this node itself")
        dial = self._dials.get(peer)
        if dial is None:
            dial = self._begin_dial(peer, addrs, insist)
        else:
            dial.race.offer(addrs)
        dial.waiters += 1
        try:
            await dial.done.wait()
        finally:
            dial.waiters -= 1
            if dial.waiters == 0 and not dial.done.is_set():
                dial.scope.cancel()
        usable = self.connection(peer)
        if usable is not None:
            return usable
        raise dial.failure or PeerUnreachable(f"{peer} hung up at once")

    def _begin_dial(self, peer: PeerId, addrs: Sequence[str], insist: bool) -> _Dial:
        if self._closing:
            raise PeerUnreachable("the network is closing")
        if len(self._peers) >= self.limits.max_connections and peer not in self._protected:
            raise LimitReached(f"{len(self._peers)} peers are connected, which is the limit")
        if len(self._dials) >= self.limits.waiting_dials:
            raise LimitReached(f"{len(self._dials)} peers are being dialled, which is the limit")
        known = self.book.addrs_of(peer)
        # What worked before, then what the caller says, then hearsay.
        candidates = list(dict.fromkeys([*known[:1], *addrs, *known]))
        if not candidates:
            raise PeerUnreachable(f"no address of {peer} is known")
        now = trio.current_time()
        if not insist and all(self._dialer.backoff.is_paused(peer, addr, now=now) for addr in candidates):
            raise PeerUnreachable(f"{peer} was tried a moment ago at all of its {len(candidates)} addresses")
        dial = self._dials[peer] = _Dial(Race(peer, candidates))
        self._nursery.start_soon(self._run_dial, dial)
        return dial

    async def _run_dial(self, dial: _Dial) -> None:
        peer = dial.race.peer
        dial.failure = PeerUnreachable(f"the dial to {peer} was given up")
        connection: Connection | None = None
        try:
            with dial.scope:
                dialed = await self._dialer.dial(dial.race)
                connection = dialed.connection
                self.book.confirm(peer, dialed.addr)
        except PeerUnreachable as error:
            dial.failure = error
            for addr in dial.race.offered:
                self.book.doubt(peer, addr)
        except Exception as error:  # one peer's answer costs us its connection, not the swarm
            logger.exception("dialling %s failed in a way nobody foresaw", peer)
            dial.failure = PeerUnreachable(f"{peer}: {error!r}")
        finally:
            if connection is not None:
                self.counters.dials += 1
                self._adopt(connection)
            else:
                self.counters.failed_dials += 1
            if self._dials.get(peer) is dial:
                del self._dials[peer]
            dial.done.set()
        if connection is not None:
            await self._carry(connection)

    async def _secure_dialed(self, stream: trio.SocketStream, peer: PeerId, addr: str) -> Connection:
        return await self._secure(stream, dialer=True, expected=peer, remote_addr=addr)

    async def _secure(
        self, stream: trio.SocketStream, *, dialer: bool, expected: PeerId | None, remote_addr: str
    ) -> Connection:
        return await secure(
            stream,
            identity=self.identity,
            psk=self._psk,
            dialer=dialer,
            expected=expected,
            remote_addr=remote_addr,
            limits=self._connection_limits,
            budget=self._budget,
        )

    # ------------------------------------------------------------------ being dialled

    async def _listen(self, listener: trio.SocketListener) -> None:
        while True:
            try:
                stream = await listener.accept()
            except trio.ClosedResourceError:
                return
            except OSError as error:
                if error.errno in _NO_RESOURCES:
                    logger.warning("no connection can be taken: %s", error.strerror)
                    await trio.sleep(0.5)
                continue
            try:
                addr = TcpAddr.of(*stream.socket.getpeername()[:2])
            except OSError:
                stream.socket.close()
                continue
            self._nursery.start_soon(self._receive, stream, addr)

    async def _receive(self, stream: trio.SocketStream, addr: TcpAddr) -> None:
        """One inbound connection, from its first byte to its end."""
        taken = False
        try:
            async with self._doorstep.admit(stream, addr.host) as visit:
                with trio.fail_after(self.limits.handshake_s):
                    connection = await self._secure(stream, dialer=False, expected=None, remote_addr=str(addr))
                visit.finished()
                if self._has_room_for(connection.peer):
                    taken = True
                    self.counters.inbound += 1
                    self._adopt(connection)
                    await self._carry(connection)
                else:
                    await connection.aclose("no room for more connections")
        except SwarmKeyMismatch as error:
            if self._doorstep.worth_telling(addr.host):
                logger.warning("refused %s: %s", addr, error)
        except trio.TooSlowError:
            logger.debug("%s did not finish its handshake within %.0f s", addr, self.limits.handshake_s)
        except (NetworkError, OSError) as error:
            logger.debug("%s did not become a connection: %s", addr, error)
        except Exception:  # what a stranger's bytes provoke must not end the process
            logger.exception("the connection from %s failed in a way nobody foresaw", addr)
        finally:
            # Already closed in nearly every case; certain now.
            stream.socket.close()
            self.counters.failed_inbound += not taken

    def _has_room_for(self, peer: PeerId) -> bool:
        if peer == self.identity.peer_id or self._closing:
            return False
        return len(self._peers) < self.limits.max_connections or peer in self._peers or peer in self._protected

    # ------------------------------------------------------------------ the life of a connection

    def _adopt(self, connection: Connection) -> None:
        """Take a new connection into use. Its `_carry` must follow."""
        peer, now = connection.peer, trio.current_time()
        entry = self._peers.get(peer)
        if entry is None:
            self._peers[peer] = _Peer([connection], {connection: now})
            self.events.tell(peer, PeerChange.CONNECTED)
        else:
            old = entry.connections[0]
            better = newer_is_better(
                Facts(old.dialer, entry.since[old]),
                Facts(connection.dialer, now),
                ours=self.identity.peer_id,
                theirs=peer,
            )
            entry.connections.insert(0 if better else 1, connection)
            entry.since[connection] = now
            if len(entry.connections) > MAX_PER_PEER:
                self._nursery.start_soon(entry.connections[-1].aclose, "too many connections to one peer")
            self._nursery.start_soon(self._run_dry, peer, old if better else connection)
        # Whoever waits for a dial has what it wants, whichever side dialled. The dial itself goes on: were both sides
        # to give up theirs on seeing the other's, none would be left.
        dial = self._dials.pop(peer, None)
        if dial is not None:
            dial.done.set()

    async def _carry(self, connection: Connection) -> None:
        """Pump an adopted connection until it ends."""
        reason: object = "the swarm is closing"
        self._carried.add(connection)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._take_streams, connection)
                reason = await connection.run()
                nursery.cancel_scope.cancel()
        except Exception as error:  # contained as in _receive; the connection is over either way
            logger.exception("the connection to %s failed in a way nobody foresaw", connection.peer)
            reason = error
        finally:
            self._forget(connection)
            with trio.CancelScope(shield=True):
                await connection.aclose("the connection is over")
            self._carried.discard(connection)
            self._past_in += connection.bytes_in
            self._past_out += connection.bytes_out
        logger.debug("connection to %s ended: %s", connection.peer.short, reason)

    async def _take_streams(self, connection: Connection) -> None:
        with suppress(ConnectionLost):
            while True:
                await self.offers.deliver(await connection.accept_stream(self.offers))

    def _forget(self, connection: Connection) -> None:
        """Take a connection out of use. Idempotent."""
        entry = self._peers.get(connection.peer)
        if entry is None or connection not in entry.since:
            return
        del entry.since[connection]
        entry.connections.remove(connection)
        if not entry.connections:
            del self._peers[connection.peer]
            self.events.tell(connection.peer, PeerChange.DISCONNECTED)

    async def _run_dry(self, peer: PeerId, spare: Connection) -> None:
        """Close *spare* once nothing happens on it, unless it is needed again."""
        patience = DRY_S if self.identity.peer_id < peer else DRY_OTHER_S
        idle_since = trio.current_time()
        while not spare.closed.is_set():
            with trio.move_on_after(LOOK_S):
                await spare.closed.wait()
            if spare in self.connections(peer)[:1]:
                return
            if spare.inbound_streams or spare.outbound_streams:
                idle_since = trio.current_time()
            elif trio.current_time() - idle_since >= patience:
                await self._close(spare, "another connection to this peer is kept")

    async def part(self, peer: PeerId, reason: str) -> None:
        """Close whatever connections there are to *peer*. It is gone from `peers` at once."""
        connections = self.connections(peer)
        for connection in connections:
            self._forget(connection)
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.aclose, reason)

    async def _close(self, connection: Connection, reason: str) -> None:
        self._forget(connection)
        await connection.aclose(reason)

    # ------------------------------------------------------------------ keeping watch

    async def _watch(self) -> None:
        """Give up silent peers, and trim when there are too many."""
        liveness: Liveness[Connection] = Liveness()
        while True:
            await trio.sleep(SWEEP_S)
            received = {connection: connection.bytes_in for entry in self._peers.values() for connection in entry.since}
            verdict = liveness.sweep(received, now=trio.current_time())
            for connection in verdict.ask:
                self._nursery.start_soon(self._ping, connection)
            for connection in verdict.dead:
                logger.info("peer %s has been silent for %.0f s: given up", connection.peer, DEAD_S)
                self._nursery.start_soon(self._close, connection, "no sign of life")
            for peer in choose_trimmed(self._candidates(), self.limits, now=trio.current_time()):
                logger.debug("peer %s is trimmed: more than %d connections", peer, self.limits.high_connections)
                self._nursery.start_soon(self.part, peer, "too many connections")

    def _candidates(self) -> list[Candidate]:
        return [
            Candidate(
                peer,
                protected=peer in self._protected,
                connected_at=min(entry.since.values()),
                streams=sum(one.inbound_streams + one.outbound_streams for one in entry.connections),
                dialed=entry.connections[0].dialer,
            )
            for peer, entry in self._peers.items()
        ]

    async def _ping(self, connection: Connection) -> None:
        # The verdict is the next sweep's; this only provokes a sign of life.
        with suppress(NetworkError), trio.move_on_after(DEAD_S):
            await connection.ping()

    async def _close_all(self) -> None:
        self._closing = True
        async with trio.open_nursery() as nursery:
            for peer in self.peers():
                nursery.start_soon(self.part, peer, "shutting down")


@asynccontextmanager
async def open_swarm(
    *,
    identity: Identity,
    psk: bytes | None,
    listen_addrs: Sequence[str],
    book: AddressBook,
    limits: Limits,
    connection_limits: ConnectionLimits,
    budget: MemoryBudget,
    resolver: Resolver | None = None,
) -> AsyncIterator[Swarm]:
    """Listen on *listen_addrs* and carry connections for as long as the block lasts; then close them all.

    Raises:
        AlreadyRunning: a port is in use.
        ConfigError: an address this machine does not have.
    """
    listeners = await open_listeners(listen_addrs)
    async with trio.open_nursery() as nursery:
        swarm = Swarm(
            nursery,
            identity=identity,
            psk=psk,
            limits=limits,
            connection_limits=connection_limits,
            budget=budget,
            book=book,
            listeners=listeners,
            resolver=resolver,
        )
        for listener in listeners:
            nursery.start_soon(swarm._listen, listener)
        nursery.start_soon(swarm._watch)
        try:
            yield swarm
        finally:
            for listener in listeners:
                listener.socket.close()
            with trio.CancelScope(deadline=trio.current_time() + 2, shield=True):
                await swarm._close_all()
            nursery.cancel_scope.cancel()

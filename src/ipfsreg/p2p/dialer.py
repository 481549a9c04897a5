"""Reaching one peer: all its addresses, staggered, until the first proves to be the peer.

The first attempt starts at once and the next one as soon as it has failed, or after STAGGER_S; so an address that
drops packets costs a fifth of a second and not its time-out (the idea of RFC 8305). TCP connections race, handshakes
do not: the peer must not see several connections of ours appear and vanish.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass

import trio

from ipfsreg.errors import NetworkError, PeerUnreachable
from ipfsreg.p2p.addresses import DnsAddr, TcpAddr, parse_dialable
from ipfsreg.p2p.connection import Connection
from ipfsreg.p2p.resolver import Resolver
from ipfsreg.peer_id import PeerId

STAGGER_S = 0.2
"""Seconds between the starts of two attempts."""
TCP_CONNECT_S = 10.0
HANDSHAKE_S = 10.0
TURN_S = 0.5
"""Seconds a handshake may keep the others waiting before they start theirs."""
DIAL_S = 30.0
"""Seconds for all addresses of a peer together."""
MAX_ATTEMPTS = 64
"""Addresses of one peer tried in one dial."""

Secure = Callable[[trio.SocketStream, PeerId, str], Awaitable[Connection]]
"""Make a TCP stream to an address a connection to the peer expected there; closes the stream where it raises."""


class Backoff:
    """Addresses that failed lately. They are tried last, and not at all where nobody asked for this peer by name."""

    FIRST_S, LAST_S = 1.0, 60.0
    MAX_ENTRIES = 4096

    def __init__(self) -> None:
        self._failures: dict[tuple[PeerId, str], tuple[int, float]] = {}

    def failed(self, peer: PeerId, addr: str, *, now: float) -> None:
        """It failed: twice the pause of last time."""
        times, _ = self._failures.pop((peer, addr), (0, 0.0))
        # min() in the exponent: two to the power of a million failures is a number too.
        pause = min(self.LAST_S, self.FIRST_S * 2 ** min(times, 10))
        self._failures[peer, addr] = (times + 1, now + pause)
        if len(self._failures) > self.MAX_ENTRIES:
            del self._failures[next(iter(self._failures))]

    def succeeded(self, peer: PeerId, addr: str) -> None:
        """It worked: forgotten."""
        self._failures.pop((peer, addr), None)

    def is_paused(self, peer: PeerId, addr: str, *, now: float) -> bool:
        """Whether it failed so lately that it is not worth a try."""
        return self._failures.get((peer, addr), (0, 0.0))[1] > now


@dataclass(frozen=True, slots=True)
class Dialed:
    """A dial that worked."""

    connection: Connection
    addr: str
    """The address as it was given, which may be a name."""


class Dialer:
    """Dials peers. One for the swarm: its attempts share one limit."""

    def __init__(
        self, secure: Secure, *, attempts: int, resolver: Resolver | None = None, private: bool = False
    ) -> None:
        """*private*: in a private swarm, where a peer with another key may wait for ever for a word it understands."""
        self._secure = secure
        self.silence = f"no handshake within {HANDSHAKE_S:.0f} s" + (": another swarm key?" if private else "")
        self._slots = trio.CapacityLimiter(attempts)
        self._resolver = resolver or Resolver()
        self.backoff = Backoff()

    async def dial(self, race: Race) -> Dialed:
        """Connect to the peer of *race* at whichever of its addresses answers first.

        Raises:
            PeerUnreachable: none did within 30 s; the text names each with its failure.
        """
        try:
            with trio.move_on_after(DIAL_S) as deadline:
                await race.run(self)
        except BaseException:  # cancelled too: nobody else has the connection
            if race.winner is not None:
                with trio.CancelScope(shield=True):
                    await race.winner.connection.aclose("nobody waits for it any more")
            raise
        if race.winner is not None:
            return race.winner
        why = "; ".join(race.failures) or "no address is known"
        late = f" (given up after {DIAL_S:.0f} s)" if deadline.cancelled_caught else ""
        raise PeerUnreachable(f"{race.peer} cannot be reached{late}: {why}")


class Race:
    """One dial to *peer*. Further addresses may be offered while it runs: somebody may know a newer one."""

    def __init__(self, peer: PeerId, addrs: Iterable[str]) -> None:
        """*addrs*: best first."""
        self.peer = peer
        self._addrs: deque[str] = deque()
        self.offered: set[str] = set()
        self._targets: deque[tuple[str, TcpAddr]] = deque()
        self._seen: set[TcpAddr] = set()
        self._running = 0
        self._changed = trio.Event()
        self._turn = trio.Lock()
        self.winner: Dialed | None = None
        self.failures: list[str] = []
        self.offer(addrs)

    def offer(self, addrs: Iterable[str]) -> None:
        """Try *addrs* too, behind those that wait already; at most `MAX_ATTEMPTS` addresses in all."""
        for addr in addrs:
            if addr not in self.offered and len(self.offered) < MAX_ATTEMPTS:
                self.offered.add(addr)
                self._addrs.append(addr)
        self._tell_changed()

    async def run(self, dialer: Dialer) -> None:
        """Dial, until one address has answered or all have failed."""
        now = trio.current_time()
        self._addrs = deque(sorted(self._addrs, key=lambda addr: dialer.backoff.is_paused(self.peer, addr, now=now)))
        async with trio.open_nursery() as nursery:
            while self.winner is None:
                while self._addrs:
                    self._take(self._addrs.popleft(), dialer, nursery)
                if self._targets:
                    self._running += 1
                    nursery.start_soon(self._attempt, dialer, *self._targets.popleft())
                    with trio.move_on_after(STAGGER_S):
                        await self._wait_changed()
                elif self._running:
                    await self._wait_changed()
                else:
                    return
            nursery.cancel_scope.cancel()

    def _take(self, addr: str, dialer: Dialer, nursery: trio.Nursery) -> None:
        parsed = parse_dialable(addr)
        if parsed is None:
            self.failures.append(f"{addr}: not a transport of ours")
        elif isinstance(parsed, TcpAddr) and parsed.is_ip:
            self._add(addr, parsed)
        else:
            self._running += 1
            nursery.start_soon(self._resolve, dialer, addr, parsed)

    def _add(self, addr: str, target: TcpAddr) -> None:
        if target not in self._seen and len(self._seen) < MAX_ATTEMPTS:
            self._seen.add(target)
            self._targets.append((addr, target))

    async def _wait_changed(self) -> None:
        await self._changed.wait()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _resolve(self, dialer: Dialer, addr: str, parsed: TcpAddr | DnsAddr) -> None:
        try:
            for target in await dialer._resolver.resolve(parsed, self.peer):
                self._add(addr, target)
        except PeerUnreachable as error:
            self.failures.append(str(error))
        self._running -= 1
        self._tell_changed()

    async def _attempt(self, dialer: Dialer, addr: str, target: TcpAddr) -> None:
        backoff = dialer.backoff
        try:
            async with dialer._slots:
                connection = await self._connect(dialer, target)
        except (OSError, NetworkError) as error:
            self.failures.append(f"{target}: {error}")
            backoff.failed(self.peer, addr, now=trio.current_time())
        else:
            backoff.succeeded(self.peer, addr)
            if self.winner is None:
                self.winner = Dialed(connection, addr)
            else:
                await connection.aclose("another address was faster")
        self._running -= 1
        self._tell_changed()

    async def _connect(self, dialer: Dialer, target: TcpAddr) -> Connection:
        try:
            with trio.fail_after(TCP_CONNECT_S):
                stream = await open_tcp(target)
        except trio.TooSlowError:
            raise PeerUnreachable(f"no answer within {TCP_CONNECT_S:.0f} s") from None
        try:
            with trio.move_on_after(TURN_S):
                await self._turn.acquire()
        except BaseException:  # cancelled too: nobody else has the stream
            await trio.aclose_forcefully(stream)
            raise
        try:
            with trio.fail_after(HANDSHAKE_S):
                return await dialer._secure(stream, self.peer, str(target))
        except trio.TooSlowError:
            raise PeerUnreachable(dialer.silence) from None
        except BaseException:  # cancelled too: nobody else has the stream
            # Already closed, as promised; certain now, whatever was raised.
            stream.socket.close()
            raise
        finally:
            if self._turn.statistics().owner is trio.lowlevel.current_task():
                self._turn.release()


async def open_tcp(target: TcpAddr) -> trio.SocketStream:
    """Connect to an IP address and port. Raises OSError."""
    family = socket.AF_INET if target.kind == "ip4" else socket.AF_INET6
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        await sock.connect((target.host, target.port))
    except BaseException:  # cancelled too: nobody else has the socket
        sock.close()
        raise
    if sock.getsockname() == sock.getpeername():
        # TCP's simultaneous open: a port nobody listens on was picked as our own, and we met ourselves.
        sock.close()
        raise ConnectionRefusedError("connected to itself")
    return trio.SocketStream(sock)

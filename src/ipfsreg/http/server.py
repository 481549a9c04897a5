"""An HTTP/1.1 server on trio, for one handler.

    async with open_server(handler, listen=["127.0.0.1:5000"]) as server:
        print(server.urls)

Leaving the block is a graceful stop: no new connections, idle ones closed, requests in flight have
`ServerSettings.drain_s` seconds to finish. Cancelling it from outside stops at once.
"""

from __future__ import annotations

import errno
import logging
import resource
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import trio

from ipfsreg.errors import ConfigError
from ipfsreg.http.accesslog import AccessLog
from ipfsreg.http.answers import Answers
from ipfsreg.http.connection import Connection, Handler, ServerSettings
from ipfsreg.http.holding import Holdings
from ipfsreg.http.listen import close_listener, open_listeners, place_of, split_scheme
from ipfsreg.http.lobby import Lobby, open_lobby
from ipfsreg.http.request import Request
from ipfsreg.http.tally import NO_ROUTE, Tally
from ipfsreg.http.tls import Tls
from ipfsreg.http.wire import TlsWire

logger = logging.getLogger(__name__)

__all__ = ["Handler", "Server", "ServerSettings", "open_server"]

_OUT_OF_RESOURCES = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_ACCEPT_PAUSE_S = 0.1
_ACCEPTS_IN_A_ROW = 64
_TOO_MANY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nRetry-After: 1\r\n"
    b"Content-Length: 21\r\nConnection: close\r\n\r\ntoo many connections\n"
)


class Server:
    """A running server."""

    def __init__(
        self,
        handler: Handler,
        listeners: list[tuple[socket.socket, Tls | None]],
        settings: ServerSettings,
        lobby: Lobby,
        access_log: AccessLog | None = None,
    ) -> None:
        self.places = tuple(place_of(listener) for listener, _ in listeners)
        """Where it listens, with real port numbers."""
        self.urls = tuple(
            f"{'http' if tls is None else 'https'}://{place}"
            for place, (_, tls) in zip(self.places, listeners, strict=True)
        )
        """The same as clients write it."""
        self._handler = handler
        self._settings = settings
        self._lobby = lobby
        self._answers = {secure: Answers() for secure in (False, True)}
        self._max_connections = settings.max_connections
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            self._max_connections = min(settings.max_connections, descriptors // 2)
        self._idle: dict[Connection, None] = {}
        """In the order of `idle_since`."""
        self._one_is_idle: trio.Event | None = None
        """To be set at the next one, if somebody waits for that."""
        self.holdings = Holdings(settings.max_held_bytes)
        self._in_head: dict[Connection, None] = {}
        self._handshaking: dict[Connection, None] = {}
        self._open = 0
        self._none_open = trio.Event()
        self.draining = False
        self.tally = Tally()
        self._access_log = access_log

    @property
    def connections(self) -> int:
        """Open connections."""
        return self._open

    def note_idle(self, connection: Connection) -> None:
        """See `connection.Registrar`."""
        if self._handshaking:
            self._handshaking.pop(connection, None)
        self._idle.pop(connection, None)
        self._idle[connection] = None
        if self._one_is_idle is not None:
            self._one_is_idle.set()
            self._one_is_idle = None

    def note_head(self, connection: Connection) -> None:
        """See `Registrar`."""
        self._idle.pop(connection, None)
        self._in_head[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """See `connection.Registrar`."""
        if self._handshaking:
            self._handshaking.pop(connection, None)
        self._idle.pop(connection, None)
        if self._in_head:
            self._in_head.pop(connection, None)

    def note_answered(self, request: Request, status: int, received: int, sent: int, took_s: float) -> None:
        """See `connection.Registrar`."""
        self.tally.note(request.method, request.route, status, received, sent, took_s)
        if self._access_log is not None:
            self._access_log.note(request, status, received, sent, took_s)

    def note_refused(self, status: int) -> None:
        """See `connection.Registrar`."""
        self.tally.note("other", NO_ROUTE, status, 0, 0, 0.0)

    def note_handshake(self, connection: Connection) -> None:
        """See `connection.Registrar`."""
        if len(self._handshaking) >= self._settings.max_handshakes:
            _close_first(self._handshaking)
        self._handshaking[connection] = None

    async def close_silent(self) -> None:
        """Close connections that have been idle for too long, for ever."""
        while True:
            longest = next(iter(self._idle), None)
            if longest is None:
                self._one_is_idle = trio.Event()
                await self._one_is_idle.wait()
                continue
            due = longest.idle_since + self._settings.idle_timeout_s
            if trio.current_time() >= due:
                _close_first(self._idle)
            else:
                await trio.sleep_until(due)

    async def accept(self, listener: socket.socket, tls: Tls | None, nursery: trio.Nursery) -> None:
        """Take connections from *listener* for ever, each served in *nursery*, with TLS where there is *tls*."""
        in_a_row = 0
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener.fileno())
                in_a_row = 0
                continue
            except OSError as error:
                if error.errno in _OUT_OF_RESOURCES:
                    # One line a pause, not one a refused connection: the log lies on the same machine.
                    logger.warning("cannot accept connections: %s", error.strerror)
                    self._make_room()
                    await trio.sleep(_ACCEPT_PAUSE_S)
                # Anything else is the newcomer's: it was gone before it was accepted (accept(2), "Error handling").
                await trio.lowlevel.checkpoint()
                continue
            sock.setblocking(False)
            self._admit(sock, address[0] if isinstance(address, tuple) else "local", tls, nursery)
            in_a_row += 1
            if in_a_row >= _ACCEPTS_IN_A_ROW:
                await trio.lowlevel.checkpoint()
                in_a_row = 0

    def _admit(self, sock: socket.socket, peer: str, tls: Tls | None, nursery: trio.Nursery) -> None:
        if self._open >= self._max_connections and not self._make_room():
            self.tally.turned_away += 1
            try:
                if tls is None:  # To a TLS client it would not mean anything.
                    sock.send(_TOO_MANY)
            except OSError as error:
                logger.debug("%s: %s", peer, error)
            sock.close()
            return
        wire: socket.socket | TlsWire = sock
        if tls is not None:
            credentials = tls.credentials
            try:
                wire = TlsWire(sock, credentials.context, in_thread=credentials.slow)
            except OSError as error:
                logger.debug("%s: %s", peer, error)
                return
        self._open += 1
        answers = self._answers[tls is not None]
        connection = Connection(wire, peer, self._handler, self, self._settings, self._lobby, answers)
        nursery.start_soon(self._serve, connection)

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()

    def _close_longest_idle(self) -> bool:
        """Whether there was one, or one that was not even through its handshake. It is over at its task's next turn."""
        return _close_first(self._handshaking) or _close_first(self._idle)

    def _make_room(self) -> bool:
        """Close the longest idle connection, or where none is idle, the one that has been at its head for longest."""
        return self._close_longest_idle() or _close_first(self._in_head)

    async def drain(self) -> None:
        """Close what is idle, and wait until what is not has been answered."""
        self._lobby.look(max(1, len(self._idle)))  # Who has asked already is not idle.
        self.draining = True
        while self._close_longest_idle():
            pass
        while self._open:
            self._none_open = trio.Event()
            await self._none_open.wait()


def _close_first(connections: dict[Connection, None]) -> bool:
    connection = next(iter(connections), None)
    if connection is None:
        return False
    del connections[connection]
    connection.close_idle()
    return True


@asynccontextmanager
async def open_server(
    handler: Handler,
    *,
    listen: Sequence[str],
    settings: ServerSettings | None = None,
    tls: Tls | None = None,
    access_log: AccessLog | None = None,
) -> AsyncIterator[Server]:
    """Serve *handler* on every place of *listen* for as long as the block lasts.

    A place that begins with `http://` or `https://` is served so; else with TLS exactly where there is *tls*.

    Raises:
        ConfigError: a place that cannot be listened on, or `https://` without *tls*.
        AlreadyRunning: another process listens there.
    """
    settings = settings or ServerSettings()
    listeners = await _open_listeners(listen, tls)
    try:
        with open_lobby() as lobby:
            server = Server(handler, listeners, settings, lobby, access_log)
            async with trio.open_nursery() as serving:
                serving.start_soon(lobby.run)
                serving.start_soon(server.close_silent)
                async with trio.open_nursery() as accepting:
                    for listener, secure in listeners:
                        accepting.start_soon(server.accept, listener, secure, serving)
                    yield server
                    accepting.cancel_scope.cancel()
                while listeners:
                    close_listener(listeners.pop()[0])
                with trio.move_on_after(settings.drain_s) as patience:
                    await server.drain()
                if patience.cancelled_caught:
                    logger.warning("%d connections did not finish in time", server.connections)
                serving.cancel_scope.cancel()
    finally:
        while listeners:
            close_listener(listeners.pop()[0])


async def _open_listeners(listen: Sequence[str], tls: Tls | None) -> list[tuple[socket.socket, Tls | None]]:
    """All or none."""
    listeners: list[tuple[socket.socket, Tls | None]] = []
    try:
        for text in listen:
            scheme, place = split_scheme(text)
            secure = _tls_of(text, scheme, tls)
            listeners += [(listener, secure) for listener in await open_listeners([place])]
    except BaseException:  # whatever it was, cancellation too: nobody else has them
        for listener, _ in listeners:
            close_listener(listener)
        raise
    return listeners


def _tls_of(text: str, scheme: str, tls: Tls | None) -> Tls | None:
    if scheme == "https" and tls is None:
        raise ConfigError("http.listen", text, "needs a certificate: set http.tls_certificate and http.tls_key")
    return None if scheme == "http" or text.startswith("unix:") else tls

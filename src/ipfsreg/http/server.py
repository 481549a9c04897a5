"""An HTTP/1.1 server on trio, for one handler.

    async with open_server(handler, listen=["127.0.0.1:5000"]) as server:
        print(server.places)

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

from ipfsreg.http.connection import Connection, Handler, ServerSettings
from ipfsreg.http.listen import close_listener, open_listeners, place_of

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

    def __init__(self, handler: Handler, listeners: list[socket.socket], settings: ServerSettings) -> None:
        self.places = tuple(place_of(listener) for listener in listeners)
        """Where it listens, with real port numbers."""
        self._handler = handler
        self._settings = settings
        self._max_connections = settings.max_connections
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if descriptors != resource.RLIM_INFINITY:
            self._max_connections = min(settings.max_connections, descriptors // 2)
        self._idle: dict[Connection, None] = {}
        self._open = 0
        self._none_open = trio.Event()
        self.draining = False

    @property
    def connections(self) -> int:
        """Open connections."""
        return self._open

    def note_idle(self, connection: Connection) -> None:
        """See `connection.Registrar`."""
        self._idle[connection] = None

    def note_busy(self, connection: Connection) -> None:
        """See `connection.Registrar`."""
        self._idle.pop(connection, None)

    async def accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        """Take connections from *listener* for ever, each served in *nursery*."""
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
                    self._close_longest_idle()
                    await trio.sleep(_ACCEPT_PAUSE_S)
                # Anything else is the newcomer's: it was gone before it was accepted (accept(2), "Error handling").
                await trio.lowlevel.checkpoint()
                continue
            sock.setblocking(False)
            self._admit(sock, address[0] if isinstance(address, tuple) else "local", nursery)
            in_a_row += 1
            if in_a_row >= _ACCEPTS_IN_A_ROW:
                await trio.lowlevel.checkpoint()
                in_a_row = 0

    def _admit(self, sock: socket.socket, peer: str, nursery: trio.Nursery) -> None:
        if self._open >= self._max_connections and not self._close_longest_idle():
            try:
                sock.send(_TOO_MANY)
            except OSError as error:
                logger.debug("%s: %s", peer, error)
            sock.close()
            return
        self._open += 1
        nursery.start_soon(self._serve, Connection(sock, peer, self._handler, self, self._settings))

    async def _serve(self, connection: Connection) -> None:
        try:
            await connection.serve()
        finally:
            self._open -= 1
            if not self._open:
                self._none_open.set()

    def _close_longest_idle(self) -> bool:
        """Whether there was one. It is over at its task's next turn."""
        connection = next(iter(self._idle), None)
        if connection is None:
            return False
        del self._idle[connection]
        connection.close_idle()
        return True

    async def drain(self) -> None:
        """Close what is idle, and wait until what is not has been answered."""
        self.draining = True
        while self._close_longest_idle():
            pass
        while self._open:
            self._none_open = trio.Event()
            await self._none_open.wait()


@asynccontextmanager
async def open_server(
    handler: Handler, *, listen: Sequence[str], settings: ServerSettings | None = None
) -> AsyncIterator[Server]:
    """Serve *handler* on every place of *listen* for as long as the block lasts.

    Raises:
        ConfigError: a place that cannot be listened on.
        AlreadyRunning: another process listens there.
    """
    settings = settings or ServerSettings()
    listeners = await open_listeners(list(listen))
    server = Server(handler, listeners, settings)
    try:
        async with trio.open_nursery() as serving:
            async with trio.open_nursery() as accepting:
                for listener in listeners:
                    accepting.start_soon(server.accept, listener, serving)
                yield server
                accepting.cancel_scope.cancel()
            while listeners:
                close_listener(listeners.pop())
            with trio.move_on_after(settings.drain_s) as patience:
                await server.drain()
            if patience.cancelled_caught:
                logger.warning("%d connections did not finish in time", server.connections)
            serving.cancel_scope.cancel()
    finally:
        while listeners:
            close_listener(listeners.pop())

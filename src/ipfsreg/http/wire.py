"""TLS on a non-blocking socket, behind the calls that a connection makes on a plain one.

OpenSSL reads and writes the descriptor itself, so bytes are copied once more than in plain HTTP and no more often. What
it cannot do now raises BlockingIOError, as a plain socket does; every other failure is an OSError.
"""

from __future__ import annotations

import os
import socket
import ssl
from contextlib import suppress
from typing import Protocol

_FILE_BYTES = 256 * 1024
_file_buffer = memoryview(bytearray(_FILE_BYTES))
"""Of all connections: filled and sent without a pause between. What was not sent is read again."""


class Wire(Protocol):
    """What a connection asks of its socket."""

    def fileno(self) -> int: ...

    def recv(self, bufsize: int, /) -> bytes: ...

    def recv_into(self, buffer: bytearray | memoryview, /) -> int: ...

    def send(self, data: bytes | bytearray | memoryview, flags: int = ..., /) -> int: ...

    def setsockopt(self, level: int, option: int, value: int, /) -> None: ...

    def shutdown(self, how: int, /) -> None: ...

    def close(self) -> None: ...


class PlainHttp(Exception):
    """The client began plain HTTP where TLS is spoken."""


class WantsRead(Exception):
    """The handshake waits for the client."""


class WantsWrite(Exception):
    """The handshake waits until the client takes more."""


class TlsWire:
    """One accepted connection, the server's side. Nothing but `shake_hands` before the handshake is over."""

    def __init__(self, sock: socket.socket, context: ssl.SSLContext, *, in_thread: bool) -> None:
        """*in_thread*: the handshake takes so long that it belongs into a worker thread.

        Raises:
            OSError: the client is gone already. *sock* is closed then.
        """
        try:
            sock.getpeername()  # of one that is gone, `wrap_socket` would leave a socket open
            self._tls = context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
        except BaseException:  # also what is no OSError: nobody else has the socket
            sock.close()
            raise
        self.handshake_in_thread = in_thread

    def fileno(self) -> int:
        return self._tls.fileno()

    def shake_hands(self) -> None:
        """Go on with the handshake; it is over on return.

        Raises:
            WantsRead, WantsWrite: not over yet.
            PlainHttp: the client speaks HTTP; it still understands `refuse_plain`.
            OSError: there will be none.
        """
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            raise WantsRead from None
        except ssl.SSLWantWriteError:
            raise WantsWrite from None
        except ssl.SSLError as error:
            if error.reason == "HTTP_REQUEST":
                raise PlainHttp from None
            raise

    def refuse_plain(self, data: bytes) -> None:
        """Say something to a client that does not speak TLS, as far as it is taken at once. Raises OSError."""
        socket.socket.send(self._tls, data)

    def recv(self, bufsize: int, /) -> bytes:
        try:
            return self._tls.recv(bufsize)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def recv_into(self, buffer: bytearray | memoryview, /) -> int:
        try:
            return self._tls.recv_into(buffer)
        except ssl.SSLWantReadError:
            raise BlockingIOError from None

    def send(self, data: bytes | bytearray | memoryview, flags: int = 0, /) -> int:
        """Send at least one record (16 KiB) of *data*. *flags* tell how packets are cut and have no meaning here."""
        view = memoryview(data)
        sent = 0
        try:
            while sent < len(view):
                sent += self._tls.send(view[sent:])
        except ssl.SSLWantWriteError:
            if not sent:
                raise BlockingIOError from None
        return sent

    def send_file(self, descriptor: int, start: int, count: int) -> int:
        """Send up to *count* bytes from *start* of a file, as `os.sendfile`: 0 at its end. May send less.

        After BlockingIOError or less than *count* the next call has to go on from there: OpenSSL keeps the record it
        could not send, and wants to be given the same bytes again.
        """
        filled = os.preadv(descriptor, [_file_buffer[:count]], start)
        return self.send(_file_buffer[:filled]) if filled else 0

    def say_goodbye(self) -> None:
        """Tell the client that nothing was cut off (RFC 8446, 6.1), as far as it is taken at once."""
        # It would wait for the client to say so too, which nobody has to; or the client is gone.
        with suppress(OSError, ValueError):
            self._tls.unwrap()

    def setsockopt(self, level: int, option: int, value: int, /) -> None:
        """As of a socket: it means the bytes below TLS."""
        self._tls.setsockopt(level, option, value)

    def shutdown(self, how: int, /) -> None:
        """As of a socket; from here on what is received is not decrypted."""
        if how == socket.SHUT_WR:
            self.say_goodbye()
        self._tls.shutdown(how)

    def close(self) -> None:
        self._tls.close()

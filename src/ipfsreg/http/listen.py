"""Where to listen: `127.0.0.1:5000`, `[::1]:5000`, `:5000` (every address), `unix:/run/ipfsreg/admin.sock`.

A TCP place may begin with `http://` or `https://`.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import trio

from ipfsreg.errors import AlreadyRunning, ConfigError

_BACKLOG = 1024

MAX_UNIX_PATH_BYTES = 107
"""Of `sockaddr_un.sun_path`."""


class _UnixListener(socket.socket):
    """Knows where it lies: `getsockname` tells only how it was reached when it was bound."""

    path: Path


async def open_listeners(places: list[str]) -> list[socket.socket]:
    """Bind and listen on every one of *places*; all or none.

    Raises:
        ConfigError: not a place, or not one of this machine.
        AlreadyRunning: another process listens there.
    """
    listeners: list[socket.socket] = []
    try:
        for place in places:
            if place.startswith("unix:"):
                listeners.append(_listen_unix(Path(place.removeprefix("unix:"))))
            else:
                listeners += await _listen_tcp(place)
    except BaseException:  # cancelled too: nobody else has the sockets
        for listener in listeners:
            listener.close()
        raise
    return listeners


def split_scheme(text: str) -> tuple[str, str]:
    """`https://127.0.0.1:5000` as `("https", "127.0.0.1:5000")`; the scheme is empty where there is none."""
    scheme, separator, place = text.partition("://")
    return (scheme, place) if separator and scheme in ("http", "https") else ("", text)


def close_listener(listener: socket.socket) -> None:
    """Stop listening; a unix socket leaves no file behind."""
    trio.lowlevel.notify_closing(listener.fileno())
    listener.close()
    if isinstance(listener, _UnixListener):
        listener.path.unlink(missing_ok=True)


def place_of(listener: socket.socket) -> str:
    """What was bound, with the real port where 0 was asked for."""
    if isinstance(listener, _UnixListener):
        return f"unix:{listener.path}"
    name = listener.getsockname()
    host = f"[{name[0]}]" if listener.family == socket.AF_INET6 else name[0]
    return f"{host}:{name[1]}"


async def _listen_tcp(place: str) -> list[socket.socket]:
    host, separator, port = place.rpartition(":")
    if not separator or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError("http.listen", place, 'must be "host:port" or "unix:/path"')
    try:
        found = await trio.socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ConfigError("http.listen", place, f"the host is not known: {error.strerror}") from None
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    for family, _, _, _, address in found:
        try:
            listeners.append(_listen_on(family, address))
        except OSError as error:
            if error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                missing = error  # "localhost" and ":5000" name IPv6 too, which not every machine has.
                continue
            for listener in listeners:
                listener.close()
            if error.errno == errno.EADDRINUSE:
                raise AlreadyRunning(f"another process listens on {place}") from None
            raise ConfigError("http.listen", place, f"cannot be listened on: {error.strerror}") from None
    if not listeners:
        reason = missing.strerror if missing is not None else "it has no address"
        raise ConfigError("http.listen", place, f"cannot be listened on: {reason}")
    return listeners


def _listen_on(family: int, address: tuple[Any, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit it: a response head must not wait for the acknowledgement of the last one.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _listen_unix(path: Path) -> socket.socket:
    """Only the owner may connect. A file left by a process that was killed is replaced, a live one is not."""
    listener = _UnixListener(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.path = path
    try:
        listener.setblocking(False)
        with short_path(path) as short:
            _remove_stale(path, short)
            listener.bind(short)
        # Nobody can connect between bind and listen, so nobody slips in before the mode is right.
        path.chmod(0o600)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError("http.listen", f"unix:{path}", f"cannot be listened on: {error.strerror or error}") from None
    except (AlreadyRunning, ConfigError):
        listener.close()
        raise
    return listener


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """*path* for bind and connect, which take 107 bytes: through an open directory if it has more (unix(7), proc(5)).

    Raises OSError.
    """
    if len(os.fsencode(path)) <= MAX_UNIX_PATH_BYTES:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)


def _remove_stale(path: Path, short: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ConfigError("http.listen", f"unix:{path}", "is there and not a socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(short) not in (errno.ECONNREFUSED, errno.ENOENT):
            raise AlreadyRunning(f"another process listens on {path}")
    path.unlink(missing_ok=True)

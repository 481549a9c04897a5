"""A TCP path to a registry that breaks once, in the middle of a body, and writes down what clients ask for.

with open_cut_proxy(("127.0.0.1", port), after_bytes=4_000_000) as proxy:
    run("docker", "pull", f"{proxy.http}/team/app:1.0")
assert proxy.cuts == 1 and any(asked.start for asked in proxy.asked)
"""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

_PIECE_BYTES = 64 * 1024
_HEAD = re.compile(rb"(GET|HEAD) (\S+) HTTP/1\.1\r\n(.*?)\r\n\r\n", re.DOTALL)
_RANGE = re.compile(rb"^range: *bytes=(\d+)-", re.IGNORECASE | re.MULTILINE)

Address = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Asked:
    """A request without a body that came by."""

    method: str
    path: str
    start: int
    """Of the range asked for, in bytes; 0 without one."""


class CutProxy:
    """The path. The first connection that brings more than so many bytes is closed there, both ways; no other is."""

    def __init__(self, target: Address, after_bytes: int) -> None:
        self.asked: list[Asked] = []
        self.cuts = 0
        self._target = target
        self._after_bytes = after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()

    @property
    def http(self) -> str:
        """`127.0.0.1:PORT`, instead of the registry's."""
        host, port = self._listener.getsockname()
        return f"{host}:{port}"

    def serve(self) -> None:
        """Until `close`."""
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                with self._lock:
                    self._open |= {near, far}
                threading.Thread(target=self._forth, args=(near, far), daemon=True).start()
                threading.Thread(target=self._back, args=(near, far), daemon=True).start()

    def close(self) -> None:
        """End every connection."""
        # Closing alone does not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets, self._open = self._open, set()
        for one in sockets:
            _end(one)
            one.close()

    def _forth(self, near: socket.socket, far: socket.socket) -> None:
        head = b""
        with suppress(OSError):
            while piece := near.recv(_PIECE_BYTES):
                head += piece
                for match in _HEAD.finditer(head):
                    start = _RANGE.search(match[3])
                    self.asked.append(Asked(match[1].decode(), match[2].decode(), int(start[1]) if start else 0))
                    head = head[match.end() :]
                head = head[-_PIECE_BYTES:]
                far.sendall(piece)
        _end(far)

    def _back(self, near: socket.socket, far: socket.socket) -> None:
        passed = 0
        with suppress(OSError):
            while piece := far.recv(_PIECE_BYTES):
                near.sendall(piece)
                passed += len(piece)
                if passed > self._after_bytes:
                    with self._lock:
                        first, self.cuts = not self.cuts, 1
                    if first:
                        _end(far)
                        break
        _end(near)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def open_cut_proxy(target: Address, *, after_bytes: int) -> Iterator[CutProxy]:
    """A path to *target* while the block lasts."""
    proxy = CutProxy(target, after_bytes)
    server = threading.Thread(target=proxy.serve, daemon=True)
    server.start()
    try:
        yield proxy
    finally:
        proxy.close()
        server.join(5)

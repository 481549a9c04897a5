"""A plain HTTP client for tests: sends exactly the bytes it is told to, and reads answers strictly.

async with connect_http(server.places[0]) as client:
    answer = await client.request("GET", "/v2/")
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio


@dataclass(frozen=True, slots=True)
class Answer:
    """One response."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case; repeated ones joined with ", "."""
    body: bytes
    version: str = "HTTP/1.1"


class HttpClient:
    """One connection."""

    def __init__(self, stream: trio.SocketStream, secured: trio.SSLStream | None = None) -> None:
        """*secured*: TLS over *stream*."""
        self.stream = stream
        self.secured = secured
        self._channel: trio.abc.Stream = secured or stream
        self._rest = b""

    async def send(self, data: bytes) -> None:
        """Send *data* as it is."""
        await self._channel.send_all(data)

    async def request(
        self, method: str, target: str, headers: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> Answer:
        """Send a whole request and read its answer."""
        fields = {"Host": "registry.test", **(headers or {})}
        if body is not None:
            fields.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "\r\n"]
        await self.send("\r\n".join(lines).encode("latin-1") + (body or b""))
        return await self.receive(is_head=method == "HEAD")

    async def receive(self, *, is_head: bool = False) -> Answer:
        """Read the next answer, interim ones included. Raises EOFError where the connection ends before its end."""
        answer = await self.receive_head()
        length = 0 if is_head or answer.status in (204, 304) or answer.status < 200 else None
        if length is None:
            length = int(answer.headers["content-length"])
        return Answer(answer.status, answer.headers, await self.receive_exactly(length), answer.version)

    async def receive_head(self) -> Answer:
        """Read up to the empty line."""
        while b"\r\n\r\n" not in self._rest:
            await self._receive_more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status, _ = status_line.split(" ", 2)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = line.partition(": ")
            name = name.lower()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return Answer(int(status), headers, b"", version)

    async def receive_exactly(self, count: int) -> bytes:
        """Read *count* bytes of a body."""
        pieces = [self._rest[:count]]
        missing = count - len(pieces[0])
        self._rest = self._rest[count:]
        while missing:
            piece = await self._channel.receive_some(min(missing, 1024 * 1024))
            if not piece:
                raise EOFError(f"the connection ended {missing} bytes before the end of the body")
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)

    async def receive_end(self) -> bytes:
        """Read until the server closes; what is left."""
        try:
            while True:
                await self._receive_more()
        except EOFError:
            rest, self._rest = self._rest, b""
            return rest

    async def _receive_more(self) -> None:
        piece = await self._channel.receive_some(65536)
        if not piece:
            raise EOFError("the connection ended")
        self._rest += piece


@asynccontextmanager
async def connect_http(place: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[HttpClient]:
    """Connect to *place*, as `Server.places` writes it; with *tls*, for which the server is 127.0.0.1."""
    if place.startswith("unix:"):
        stream = await trio.open_unix_socket(place.removeprefix("unix:"))
    else:
        host, _, port = place.rpartition(":")
        stream = await trio.open_tcp_stream(host.strip("[]"), int(port))
    if tls is not None:
        secured = trio.SSLStream(stream, tls, server_hostname="127.0.0.1", https_compatible=True)
        async with secured:
            yield HttpClient(stream, secured)
        return
    async with stream:
        yield HttpClient(stream)

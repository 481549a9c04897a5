"""A request as handlers see it, and the ways it can fail before or while one runs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Protocol, TypeVar

import trio

from ipfsreg.errors import IpfsregError

T = TypeVar("T")

RELEASE_S = 5.0


class RequestRefused(IpfsregError):
    """Bytes that are not a request we serve. Answered with *status*, and the connection ends."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class BodyTooLarge(RequestRefused):
    """A body above the limit of what reads it."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the request body is larger than {limit} bytes")


class ClientGone(IpfsregError):
    """The client closed, went silent, or crawled below the least speed: there is nobody left to answer."""


class ClientSilent(ClientGone):
    """The client stopped in the middle of its request."""


class Body(Protocol):
    """The bytes after the head, read in order, once, with backpressure: what is not read stays with the client."""

    @property
    def length(self) -> int | None:
        """Bytes in all, as announced; None where the client did not say (chunked)."""

    async def read(self) -> memoryview:
        """The next piece, at most `PIECE_BYTES`; empty at the end.

        A piece stays as it is until the next read. The first read answers `Expect: 100-continue`.

        Raises:
            ClientGone: the body will not become whole.
            RequestRefused: broken chunk framing.
        """

    async def read_into(self, buffer: memoryview) -> int:
        """Fill *buffer* with what follows; return how many bytes.

        Fewer where the client is not that fast, 0 at the end. Raises as `read`. Cancelled: what came into *buffer* is
        lost.
        """

    async def read_all(self, limit: int) -> bytes:
        """The whole body. Raises BodyTooLarge before taking more than *limit* bytes, and what `read` raises."""


class NoBytes:
    """The body of a request that has none. Keeps `Body`."""

    length: int | None = 0

    async def read(self) -> memoryview:
        await trio.lowlevel.checkpoint()
        return memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        """See `Body.read_into`."""
        return 0

    async def read_all(self, limit: int) -> bytes:
        await trio.lowlevel.checkpoint()
        return b""


_NOTHING = NoBytes()
_LOGGED = ("host", "user-agent")


class Request:
    """The head of one request, its body still to be read."""

    __slots__ = (
        "_kept",
        "body",
        "headers",
        "how",
        "may_overwrite",
        "method",
        "path",
        "peer",
        "query",
        "route",
        "secure",
        "sees",
        "target",
        "tried",
        "user",
        "via",
    )

    def __init__(
        self, method: str, target: str, headers: dict[str, str], body: Body, peer: str, *, secure: bool = False
    ) -> None:
        self.method = method
        self.target = target
        """As sent, without scheme and host: path and query, nothing decoded. ASCII, by the parser's rule."""
        self.path, _, self.query = target.partition("?")
        self.headers = headers
        """Names in lower case; several lines of one name are joined with ", " (RFC 9110, 5.3)."""
        self.body = body
        self.peer = peer
        """Address the bytes come from, for logs and limits."""
        self.via = ""
        """The proxy that passed it on for *peer*, by its address, where that is one of ours."""
        self.route = ""
        """What kind of request it is, of a small number of kinds: for the books (`tally`)."""
        self.secure = secure
        """Whether they came by TLS."""
        self.user = ""
        """Who sent it, as far as that was proved; empty: nobody we know."""
        self.how = ""
        """How that was proved."""
        self.tried = ""
        """Who its sender claimed to be and did not prove."""
        self.may_overwrite = True
        """Whether it may move a tag that there is."""
        self.sees: Callable[[str], bool] | None = None
        """Which repositories its sender may know of; None: all."""
        self._kept: AsyncExitStack | None = None

    def spent(self) -> Request:
        """Itself as logs and books want it: without what belongs to the connection, and without secrets."""
        headers = {name: self.headers[name] for name in _LOGGED if name in self.headers}
        again = Request(self.method, self.target, headers, _NOTHING, self.peer, secure=self.secure)
        again.via, again.route, again.user, again.how = self.via, self.route, self.user, self.how
        return again

    async def keep(self, resource: AbstractAsyncContextManager[T]) -> T:
        """Enter *resource* and leave it when the response has been sent, or cannot be."""
        if self._kept is None:
            self._kept = AsyncExitStack()
        return await self._kept.enter_async_context(resource)

    async def release(self) -> None:
        """Leave what was kept. Cancelled: still left, within `RELEASE_S` seconds."""
        if self._kept is not None:
            kept, self._kept = self._kept, None
            with trio.CancelScope(shield=True, deadline=trio.current_time() + RELEASE_S):
                await kept.aclose()

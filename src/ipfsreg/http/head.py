"""PURE: the head of a request, from bytes in any pieces to method, target and headers.

The grammar is llhttp's (httptools) in its strict mode. It is fed exactly the bytes up to the empty line, so that what
follows - a body, or the next request of a pipeline - is never parsed by it: bodies are framed by us, from the same
headers, and two readers of one stream that could disagree about a length are what request smuggling is made of
(RFC 9112, 11.2). Hence the rules below refuse everything two readers might understand differently.
"""

from __future__ import annotations

import httptools

from ipfsreg.http.request import RequestRefused

HEAD_END = b"\r\n\r\n"

_SINGULAR = frozenset(
    (
        "authorization",
        "content-length",
        "content-range",
        "content-type",
        "expect",
        "host",
        "if-range",
        "range",
        "transfer-encoding",
    )
)
"""Headers that mean nothing sent twice: joining them, or taking either, would be a guess."""


class HeadParser:
    """Reads one request head. A parser for each: it costs under a microsecond, and nothing leaks between requests."""

    __slots__ = (
        "_complete",
        "_fields",
        "_keep_alive",
        "_max_bytes",
        "_max_headers",
        "_parser",
        "_size",
        "_tail",
        "_target",
    )

    def __init__(self, max_bytes: int, max_headers: int) -> None:
        """*max_bytes* bounds request line and headers together."""
        self._max_bytes = max_bytes
        self._max_headers = max_headers
        self._parser = httptools.HttpRequestParser(self)
        self._tail = b""
        self._size = 0
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._complete = False
        self._keep_alive = False

    def feed(self, data: bytes) -> int | None:
        """Take in the next bytes. Returns how many of them belong to the head once it is whole, until then None.

        Raises:
            RequestRefused: as soon as the bytes cannot become a head, also before its end.
        """
        joined = self._tail + data if self._tail else data
        end = joined.find(HEAD_END)
        if end < 0:
            used = len(data)
            self._tail = joined[-3:]
        else:
            used = end + 4 - len(self._tail)
        self._size += used
        if self._size > self._max_bytes:
            raise RequestRefused(431, f"the request head is larger than {self._max_bytes} bytes")
        try:
            self._parser.feed_data(data if used == len(data) else data[:used])
        except httptools.HttpParserUpgrade:
            pass  # An offer to speak h2c or WebSocket; staying with HTTP/1.1 is a valid answer.
        except httptools.HttpParserError as error:
            if len(self._fields) > self._max_headers:
                raise RequestRefused(431, f"more than {self._max_headers} headers") from None
            raise RequestRefused(400, f"malformed request: {error}") from None
        if end < 0:
            return None
        if not self._complete:
            raise RequestRefused(400, "malformed request: the head ends too early")
        return used

    @property
    def begun(self) -> bool:
        """Whether any byte of a head has arrived."""
        return self._size > 0

    def take(self) -> Head:
        """The whole head.

        Raises:
            RequestRefused: well-formed, but not acceptable.
        """
        parser = self._parser
        # The parser holds our bound methods: let go, or every request would wait for the cycle collector.
        del self._parser
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise RequestRefused(505, "only HTTP/1.1 and HTTP/1.0 are spoken here")
        headers: dict[str, str] = {}
        for raw_name, raw_value in self._fields:
            name = raw_name.lower().decode("latin-1")
            value = raw_value.decode("latin-1")
            if name in headers:
                if name in _SINGULAR:
                    raise RequestRefused(400, f"header {name} sent twice")
                value = f"{headers[name]}, {value}"
            headers[name] = value
        is_1_1 = version == "1.1"
        if is_1_1 and "host" not in headers:
            raise RequestRefused(400, "an HTTP/1.1 request needs a Host header")
        return Head(
            parser.get_method().decode("ascii"),
            _origin_form(self._target),
            headers,
            is_1_1,
            self._keep_alive,
        )

    def on_url(self, piece: bytes) -> None:
        """Called by httptools, several times where the target comes in pieces."""
        self._target += piece

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by httptools, also for trailers, which are not fed to it."""
        self._fields.append((name, value or b""))
        if len(self._fields) > self._max_headers:
            raise ValueError("too many headers")

    def on_headers_complete(self) -> None:
        """Called by httptools. Only now, before a message without body counts as over, does it know of keep-alive."""
        self._complete = True
        self._keep_alive = self._parser.should_keep_alive()


class Head:
    """One parsed head."""

    __slots__ = ("body_length", "expects_continue", "headers", "is_1_1", "keep_alive", "method", "target")

    def __init__(self, method: str, target: str, headers: dict[str, str], is_1_1: bool, keep_alive: bool) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.is_1_1 = is_1_1
        self.keep_alive = keep_alive
        """Whether the client would send another request on this connection."""
        self.body_length = _body_length(headers, is_1_1)
        """Bytes of body that follow; None: chunked."""
        expect = headers.get("expect")
        if expect is not None and expect.lower() != "100-continue":
            raise RequestRefused(417, "the only expectation met here is 100-continue")
        self.expects_continue = expect is not None and is_1_1


def _origin_form(target: bytes) -> str:
    """Path and query. A full URL is accepted as RFC 9112, 3.2.2 asks; its host plays no part here."""
    text = target.decode("ascii", "surrogateescape")
    if text.startswith("/") or text == "*":
        return text
    scheme, separator, rest = text.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        raise RequestRefused(400, "the request target is not a path")
    slash = rest.find("/")
    return rest[slash:] if slash >= 0 else "/"


def _body_length(headers: dict[str, str], is_1_1: bool) -> int | None:
    coding = headers.get("transfer-encoding")
    length = headers.get("content-length")
    if coding is None:
        if length is None:
            return 0
        if not (length.isascii() and length.isdigit() and len(length) <= 18):
            raise RequestRefused(400, "Content-Length is not a length")
        return int(length)
    if length is not None:
        raise RequestRefused(400, "both Content-Length and Transfer-Encoding")
    if not is_1_1:
        raise RequestRefused(400, "Transfer-Encoding in an HTTP/1.0 request")
    if coding.lower() != "chunked":
        raise RequestRefused(501, "the only transfer coding taken is chunked")
    return None

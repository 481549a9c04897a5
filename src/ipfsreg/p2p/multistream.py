"""multistream-select 1.0, pure: how two peers agree on what a byte stream speaks.

Every message is a varint length, a text and a newline. Both begin with the header; the dialer proposes, the responder
repeats the proposal or says `na`. Nothing stops the dialer from sending header, proposal and first data in one flight:
that is lazy negotiation, and costs no round trip where the proposal is accepted.

Spec: multiformats/multistream-select. `ls` is answered with `na`: nobody uses it, and identify tells protocols better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ipfsreg.errors import MalformedData, PeerMisbehaved, ProtocolUnsupported
from ipfsreg.ipld.varint import encode_varint

HEADER = "/multistream/1.0.0"
NOT_AVAILABLE = "na"

MAX_LINE_BYTES = 1024
"""With its newline; checked before the line is kept."""

MAX_PROPOSALS = 64
"""How often a dialer may be told `na` before it is taken for an attacker."""


def encode_line(text: str) -> bytes:
    """One message."""
    line = text.encode() + b"\n"
    return encode_varint(len(line)) + line


_HEADER_LINE = encode_line(HEADER)
_NOT_AVAILABLE_LINE = encode_line(NOT_AVAILABLE)


class _Lines:
    """Cuts received bytes into lines."""

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        self._buffer += data

    def next(self) -> str | None:
        """The next whole line, or None until more arrives. Raises MalformedData."""
        buffer = self._buffer
        length = shift = 0
        for position, byte in enumerate(buffer[:3]):
            length |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if position == 1:
                raise MalformedData("a line length of more than two bytes")
        else:
            return None
        if not 0 < length <= MAX_LINE_BYTES:
            raise MalformedData(f"a line of {length} bytes, 1 to {MAX_LINE_BYTES} are taken")
        start, end = position + 1, position + 1 + length
        if len(buffer) < end:
            return None
        if buffer[end - 1] != 0x0A:
            raise MalformedData("a line without its newline")
        try:
            text = buffer[start : end - 1].decode()
        except UnicodeDecodeError:
            raise MalformedData("a protocol name that is not UTF-8") from None
        del buffer[:end]
        return text

    def check_header(self) -> None:
        """Raise MalformedData as soon as what is here cannot become the header.

        At the first wrong byte: a peer with another swarm key must not keep us waiting for the rest of a long line.
        """
        start = bytes(self._buffer[: len(_HEADER_LINE)])
        if not _HEADER_LINE.startswith(start):
            raise MalformedData(f"it begins with {start!r}")

    def rest(self) -> bytes:
        rest = bytes(self._buffer)
        self._buffer.clear()
        return rest


class Responder:
    """The side that is asked."""

    __slots__ = ("_greeted", "_lines", "_proposals", "protocol")

    def __init__(self) -> None:
        self._lines = _Lines()
        self._greeted = False
        self._proposals = 0
        self.protocol: str | None = None
        """What was agreed on; `rest` then holds bytes that arrived behind the negotiation."""

    def receive(self, data: bytes | bytearray | memoryview, offered: Callable[[str], bool]) -> bytes:
        """Take in *data*; return what to answer (may be empty). Not to be called once `protocol` is set.

        Raises:
            PeerMisbehaved: not multistream, or too many proposals.
        """
        assert self.protocol is None
        self._lines.feed(data)
        answer = b""
        try:
            if not self._greeted:
                self._lines.check_header()
            while self.protocol is None and (line := self._lines.next()) is not None:
                answer += self._take(line, offered)
        except MalformedData as error:
            raise PeerMisbehaved(f"broken negotiation: {error}") from None
        return answer

    def _take(self, line: str, offered: Callable[[str], bool]) -> bytes:
        if not self._greeted:
            self._greeted = True
            return _HEADER_LINE
        self._proposals += 1
        if self._proposals > MAX_PROPOSALS:
            raise MalformedData(f"more than {MAX_PROPOSALS} proposals")
        if line != "ls" and offered(line):
            self.protocol = line
            return encode_line(line)
        return _NOT_AVAILABLE_LINE

    def rest(self) -> bytes:
        """Bytes received behind the negotiation: they belong to the protocol. Empties itself."""
        return self._lines.rest()


class Dialer:
    """The side that proposes."""

    __slots__ = ("_greeted", "_lines", "_protocols", "_tried", "protocol")

    def __init__(self, protocols: Sequence[str]) -> None:
        """*protocols*: at least one, the preferred first."""
        assert protocols
        self._lines = _Lines()
        self._protocols = tuple(protocols)
        self._tried = 0
        self._greeted = False
        self.protocol: str | None = None

    def begin(self) -> bytes:
        """Header and first proposal."""
        return _HEADER_LINE + encode_line(self._protocols[0])

    def receive(self, data: bytes | bytearray | memoryview) -> bytes:
        """Take in *data*; return what to send next (may be empty). Not to be called once `protocol` is set.

        Raises:
            PeerMisbehaved: not multistream.
            ProtocolUnsupported: the peer refused them all.
        """
        assert self.protocol is None
        self._lines.feed(data)
        answer = b""
        try:
            if not self._greeted:
                self._lines.check_header()
            while self.protocol is None and (line := self._lines.next()) is not None:
                answer += self._take(line)
        except MalformedData as error:
            raise PeerMisbehaved(f"broken negotiation: {error}") from None
        return answer

    def _take(self, line: str) -> bytes:
        if not self._greeted:
            self._greeted = True
            return b""
        if line == self._protocols[self._tried]:
            self.protocol = line
            return b""
        if line != NOT_AVAILABLE:
            raise MalformedData(f"neither yes nor no: {line[:32]!r}")
        self._tried += 1
        if self._tried == len(self._protocols):
            raise ProtocolUnsupported(f"the peer speaks none of {', '.join(self._protocols)}")
        return encode_line(self._protocols[self._tried])

    def rest(self) -> bytes:
        """Bytes received behind the negotiation: they belong to the protocol. Empties itself."""
        return self._lines.rest()

"""One client connection: requests in, responses out, one after the other.

Works on the plain non-blocking socket and waits with trio only where the kernel has nothing: a trio stream would turn
the scheduler for every call, which at ten thousand requests a second is most of the time, and `sendfile` needs the
descriptor anyway (docs/decisions/0040). A TLS connection has the same calls (`wire`), without `sendfile`.

For its next request a plain connection waits in the `Lobby` of all, where what was answered a moment ago is answered
again without waking it (`answers`); a TLS connection waits by itself, for OpenSSL may hold what the kernel does not.

Who may wait for whom, and how long:
- for a TLS handshake: `handshake_timeout_s` for all of it;
- for a head: `idle_timeout_s` for its first byte, then `head_timeout_s` for all of it;
- for a body, and for the client to take a response: as long as `progress_bytes` pass in every `progress_timeout_s`
  spent waiting; time the handler takes is not the client's;
- the handler: as long as it likes. Its own waits are bounded below.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from email.utils import formatdate
from enum import Enum, auto
from typing import Protocol

import trio

from ipfsreg.errors import LimitReached
from ipfsreg.http.answers import MAX_AGE_S, Answer, Answers
from ipfsreg.http.body import ChunkedBody, FixedBody
from ipfsreg.http.head import HEAD_END, Head, HeadParser
from ipfsreg.http.holding import Holdings
from ipfsreg.http.lobby import Lobby
from ipfsreg.http.request import ClientGone, ClientSilent, Request, RequestRefused
from ipfsreg.http.responses import FileBody, NoBody, Response, StreamBody, encode_head
from ipfsreg.http.wire import PlainHttp, TlsWire, WantsRead, WantsWrite, Wire
from ipfsreg.registry.interface import FileRange, Piece

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]

_HEAD_READ_BYTES = 16 * 1024
_GATHER_BYTES = 256 * 1024
_GATHER_S = 0.002
"""A body that comes fast is taken in pieces of at least so much, or what has come in so long."""
_SENDFILE_BYTES = 1024 * 1024
"""At most this much before other tasks have their turn."""
_READ_AHEAD_BYTES = 8 * 1024 * 1024
_JOIN_BYTES = 64 * 1024
"""Bodies up to this travel in one send with their head."""
_SKIP_BYTES = 64 * 1024
"""An unread rest of a body up to this is read and dropped to keep the connection; for more, closing is cheaper."""
_DROPPED = bytearray(64 * 1024)
"""Where what nobody wants goes: of all connections, for thousands of refused ones linger at once."""
_TLS_HANDSHAKE = 0x16
_CLIENT_GONE = 499
"""What the access log says where nobody was left to answer, as nginx writes it."""
_INTERNAL_ERROR = Response(500, (("Content-Type", "text/plain"),), b"internal error\n")
_NO_ROOM = Response(
    503, (("Content-Type", "text/plain"), ("Retry-After", "1")), b"too many large answers are on their way\n"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """Limits of the HTTP server."""

    max_connections: int = 4096
    """Beyond it the longest idle connection makes room; where none is idle, the newcomer is told to come back. Never
    more than half of the file descriptors the process may have: the store needs the others."""
    max_held_bytes: int = 128 * 1024 * 1024
    """Of request bodies read whole and of answers in memory that clients have not taken, of all connections, beside the
    first 64 KiB of each. Beyond it the client that is waited for longest is cut off."""
    max_head_bytes: int = 32 * 1024
    """Request line and headers together. Bearer tokens of some issuers pass 8 KiB."""
    max_headers: int = 100
    head_timeout_s: float = 15.0
    """Seconds for a whole head, from its first byte."""
    handshake_timeout_s: float = 10.0
    """Seconds for a TLS handshake."""
    max_handshakes: int = 512
    """TLS handshakes under way at once. Beyond it the one that has been at it longest makes room."""
    idle_timeout_s: float = 120.0
    """Seconds a connection may wait for its next request. Go clients give up theirs after 90."""
    progress_timeout_s: float = 60.0
    progress_bytes: int = 1024
    """A body has to move this many bytes in each `progress_timeout_s` of waiting for the client."""
    linger_s: float = 2.0
    """Seconds to take and drop what a refused client still sends, so that it reads the answer and not a reset."""
    drain_s: float = 30.0
    """Seconds requests in flight have to finish when the server closes."""


class Phase(Enum):
    """What a connection is at."""

    HANDSHAKE = auto()
    IDLE = auto()
    HEAD = auto()
    REQUEST = auto()


@dataclass(frozen=True, slots=True)
class _Owed:
    """What a client still has to get of an answer that it did not take at once."""

    rest: bytes
    answer: Answer
    received: int
    sent: int
    began: float


class Registrar(Protocol):
    """The server, as its connections see it."""

    @property
    def draining(self) -> bool:
        """Whether responses have to end their connection."""

    @property
    def holdings(self) -> Holdings:
        """What connections hold in memory."""

    def note_idle(self, connection: Connection) -> None:
        """*connection* waits for a request: it may be closed at any time."""

    def note_head(self, connection: Connection) -> None:
        """The head of a request is on its way to *connection*: it may be closed to make room."""

    def note_busy(self, connection: Connection) -> None:
        """A request has begun: its head is whole."""

    def note_handshake(self, connection: Connection) -> None:
        """*connection* is at its TLS handshake: it may be closed at any time, until it is noted idle or busy."""

    def note_answered(self, request: Request, status: int, received: int, sent: int, took_s: float) -> None:
        """*request* is over: this many bytes came and went for it, heads included, in this time."""

    def note_refused(self, status: int) -> None:
        """What a client sent was no request."""


class _Patience:
    """How long one direction of a body may still keep us waiting."""

    __slots__ = ("_bytes", "_left_s", "_mark", "_timeout_s")

    def __init__(self, settings: ServerSettings) -> None:
        self._timeout_s = settings.progress_timeout_s
        self._bytes = settings.progress_bytes
        self._left_s = self._timeout_s
        self._mark = 0

    def renew(self, moved: int) -> None:
        """A new request: what an earlier one used up does not count against it."""
        self._mark, self._left_s = moved, self._timeout_s

    async def wait(self, ready: Callable[[int], Awaitable[None]], descriptor: int, moved: int) -> None:
        """Wait until *descriptor* is *ready*; *moved* counts the bytes so far. Raises ClientSilent."""
        if moved - self._mark >= self._bytes:
            self.renew(moved)
        began = trio.current_time()
        with trio.move_on_after(self._left_s) as scope:
            await ready(descriptor)
        self._left_s -= trio.current_time() - began
        if scope.cancelled_caught:
            raise ClientSilent("the client stopped for too long in the middle of a body")


class Connection:
    """One accepted socket; `serve` owns it to its end."""

    def __init__(
        self,
        sock: Wire,
        peer: str,
        handler: Handler,
        registrar: Registrar,
        settings: ServerSettings,
        lobby: Lobby,
        answers: Answers,
    ) -> None:
        """*answers*: those given over connections of this kind."""
        self._socket = sock
        self._tls = sock if isinstance(sock, TlsWire) else None
        self._descriptor = sock.fileno()
        self._peer = peer
        self._handler = handler
        self._registrar = registrar
        self._settings = settings
        self._lobby = lobby
        self._answers = answers
        self.waiting: trio.lowlevel.Task | None = None
        """The lobby's."""
        self.idle_since = 0.0
        """When it began to wait for its next request."""
        self._scope = trio.CancelScope()
        self._phase = Phase.IDLE
        self._rest = b""
        self._head_bytes = b""
        """Of the request under way, where they came in one piece."""
        self._owed: _Owed | None = None
        self._invitation_due = False
        self._received = 0
        self._sent = 0
        self._accounted = 0
        """Of the bytes received, those of earlier requests."""
        self._read_patience = _Patience(settings)
        self._write_patience = _Patience(settings)

    def fileno(self) -> int:
        """Its descriptor, while it is served."""
        return self._descriptor

    def close_idle(self) -> None:
        """End the connection; only for one that is idle, at its handshake, or at a head that is not whole yet."""
        self._scope.cancel()

    def cut_off(self) -> None:
        """See `holding.Holder`."""
        logger.info("%s: cut off to make room: it kept the server waiting for longest", self._peer)
        self._scope.cancel()

    async def serve(self) -> None:
        """Answer requests until either side is done. Raises nothing but trio.Cancelled; the socket is closed after."""
        try:
            with self._scope:
                if self._tls is not None:
                    await self._shake_hands(self._tls)
                await self._serve()
                if self._tls is not None:
                    self._tls.say_goodbye()
            if self._scope.cancelled_caught and self._phase is Phase.HEAD:
                self._refuse_nowait(RequestRefused(408, "the request head took too long"))
        except ClientGone as gone:
            logger.debug("%s: %s", self._peer, gone)
        except Exception:  # One connection's failure, also one we did not think of, must not end the others.
            logger.exception("connection of %s failed", self._peer)
        finally:
            self._registrar.note_busy(self)
            self._lobby.forget(self)
            trio.lowlevel.notify_closing(self._descriptor)
            self._socket.close()

    async def _serve(self) -> None:
        while True:
            try:
                data = await self._receive_request()
                head = await self._read_head(data) if data else None
                if head is None:
                    return
                keep = await self._exchange(head)
            except RequestRefused as refused:
                self._refuse_nowait(refused)
                await self._linger()
                return
            if not keep:
                return

    async def _shake_hands(self, tls: TlsWire) -> None:
        """Raises ClientGone where it comes to nothing."""
        self._phase = Phase.HANDSHAKE
        self._scope.deadline = trio.current_time() + self._settings.handshake_timeout_s
        self._registrar.note_handshake(self)
        while True:
            try:
                if tls.handshake_in_thread:
                    await trio.to_thread.run_sync(tls.shake_hands)
                else:
                    tls.shake_hands()
                    # It was the work of a whole millisecond.
                    await trio.lowlevel.checkpoint()
            except WantsRead:
                await trio.lowlevel.wait_readable(self._descriptor)
            except WantsWrite:
                await trio.lowlevel.wait_writable(self._descriptor)
            except PlainHttp:
                self._refuse_plain(tls)
                await self._linger()
                raise ClientGone("plain HTTP on a port for TLS") from None
            except OSError as error:
                raise ClientGone(f"no TLS: {error}") from None
            else:
                self._phase = Phase.IDLE
                self._scope.deadline = float("inf")
                return

    def _refuse_plain(self, tls: TlsWire) -> None:
        refused = RequestRefused(400, "this port speaks TLS, the client began plain HTTP: use https://")
        try:
            tls.refuse_plain(_refusal(refused))
        except OSError as error:
            logger.debug("%s: refusal not delivered: %s", self._peer, error)

    # ---------------------------------------------------------------- the head

    async def _receive_request(self) -> bytes:
        """The first bytes of a request that is not answered yet; none where either side is done."""
        while True:
            data, self._rest = self._rest, b""
            if data:
                # A pipeline must not keep the other connections waiting.
                await trio.lowlevel.checkpoint()
            else:
                data = await self._wait_for_request()
                if self._owed is None and (not data or self._registrar.draining):
                    return data
                self._registrar.note_busy(self)
            if self._owed is None:
                end = data.find(HEAD_END) + len(HEAD_END)
                head = data if end == len(data) else data[:end]
                if not self._answer_again(head, trio.current_time()):
                    return data
                self._rest = data[len(head) :]
            if self._owed is not None:
                await self._pay(self._owed)

    async def _wait_for_request(self) -> bytes:
        self._phase = Phase.IDLE
        self._note_idle(trio.current_time())
        if self._registrar.draining:
            return b""
        data = await (self._lobby.wait(self) if self._tls is None else self._receive_some())
        # Told to close while the data was on its way to us: to the client this looks like any closed idle connection.
        return b"" if self._scope.cancel_called else data

    def _note_idle(self, now: float) -> None:
        self.idle_since = now
        self._registrar.note_idle(self)

    def attend(self, now: float) -> bytes | None:
        """See `lobby.Guest`."""
        try:
            data = self._socket.recv(_HEAD_READ_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ClientGone(f"connection lost: {error}") from None
        self._received += len(data)
        if self._answer_again(data, now):
            if self._owed is None:
                self._note_idle(now)
                return None
            data = b""
        # From here on it is not to be closed as one that is idle: its task may take a turn to come to it.
        self._registrar.note_busy(self)
        return data

    def _answer_again(self, head: bytes, now: float) -> bool:
        """Answer the request that *head* is all of, if its answer is remembered; `_owed` is what was not taken at once.

        Raises ClientGone.
        """
        answer = self._answers.find(head, self._peer, now)
        if answer is None:
            return False
        began = time.perf_counter()
        data = answer.dated(_http_date_bytes())
        try:
            sent = self._socket.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._note_again(answer, _CLIENT_GONE, len(head), 0, began)
            raise ClientGone(f"connection lost: {error}") from None
        self._sent += sent
        if sent < len(data):
            self._owed = _Owed(bytes(data[sent:]), answer, len(head), sent, began)
        else:
            self._note_again(answer, answer.status, len(head), sent, began)
        return True

    async def _pay(self, owed: _Owed) -> None:
        """Send what is owed. Raises ClientGone."""
        self._owed = None
        self._write_patience.renew(self._sent)
        sent_before = self._sent - owed.sent
        status = _CLIENT_GONE
        try:
            await self._send(owed.rest)
            status = owed.answer.status
        finally:
            self._note_again(owed.answer, status, owed.received, self._sent - sent_before, owed.began)

    def _note_again(self, answer: Answer, status: int, received: int, sent: int, began: float) -> None:
        self._accounted += received
        if not answer.request.via:
            answer.request.peer = self._peer
        self._registrar.note_answered(answer.request, status, received, sent, time.perf_counter() - began)

    async def _read_head(self, data: bytes) -> Head | None:
        """The head that begins with *data*, or None where the client is done (or the server wants to be)."""
        parser = HeadParser(self._settings.max_head_bytes, self._settings.max_headers)
        self._phase = Phase.HEAD
        self._head_bytes = b""
        is_new = True
        while True:
            if not parser.begun:
                data = data.lstrip(b"\r\n")  # RFC 9112, 2.2: some clients end a body with a line end too many
                if data and data[0] == _TLS_HANDSHAKE:
                    raise RequestRefused(400, "this port speaks plain HTTP, the client began TLS")
            if data:
                used = parser.feed(data)
                if used is not None:
                    self._rest = data[used:]
                    self._registrar.note_busy(self)
                    if is_new:
                        self._head_bytes = data[:used]
                    else:
                        self._scope.deadline = float("inf")
                    if self._scope.cancel_called:
                        return None  # Told to make room while the last of it was on its way.
                    head = parser.take()
                    self._phase = Phase.REQUEST
                    return head
            if is_new:
                self._scope.deadline = trio.current_time() + self._settings.head_timeout_s
                # Thousands that never end their head must not keep out who comes with a whole one.
                self._registrar.note_head(self)
                is_new = False
            data = await self._receive_some()
            if not data:
                return None

    async def _receive_some(self) -> bytes:
        waited = False
        while True:
            try:
                data = self._socket.recv(_HEAD_READ_BYTES)
            except BlockingIOError:
                await trio.lowlevel.wait_readable(self._descriptor)
                waited = True
                continue
            except OSError as error:
                raise ClientGone(f"connection lost: {error}") from None
            if not waited:
                # A client that is always ahead of us must not keep the others waiting.
                await trio.lowlevel.checkpoint()
            self._received += len(data)
            return data

    # ---------------------------------------------------------------- the body (body.Receiver)

    async def receive_into(self, buffer: memoryview) -> int:
        """See `body.Receiver`."""
        count = 0
        try:
            while True:
                try:
                    count = self._socket.recv_into(buffer)
                    break
                except BlockingIOError:
                    await self._read_patience.wait(trio.lowlevel.wait_readable, self._descriptor, self._received)
            while 0 < count < len(buffer):
                # Take all there is: a piece costs its reader a thread switch, whatever its size.
                more = self._socket.recv_into(buffer[count:])
                if not more:
                    break
                count += more
        except BlockingIOError:
            pass
        except OSError as error:
            raise ClientGone(f"connection lost: {error}") from None
        self._received += count
        return count

    async def gather_into(self, buffer: memoryview) -> int:
        """See `body.Receiver`."""
        if self._tls is not None:  # What OpenSSL has read of a record already would be waited for once more.
            return 0
        try:
            try:
                count = self._socket.recv_into(buffer)
            except BlockingIOError:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(len(buffer), _GATHER_BYTES))
                try:
                    with trio.move_on_after(_GATHER_S):
                        await trio.lowlevel.wait_readable(self._descriptor)
                finally:
                    self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)
                count = self._socket.recv_into(buffer)
        except OSError:  # also BlockingIOError: nothing came. What is lost is noticed by the next `receive_into`.
            return 0
        self._received += count
        return count

    async def invite(self) -> None:
        """See `body.Receiver`."""
        if self._invitation_due:
            self._invitation_due = False
            await self._send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def give_back(self, data: bytes) -> None:
        """See `body.Receiver`."""
        self._rest = data

    def hold(self, size: int) -> None:
        """See `body.Receiver`."""
        if self._scope.cancel_called:
            raise ClientGone("cut off while the last bytes were on their way")
        if not self._registrar.holdings.hold(self, size):
            raise LimitReached("too many large requests at once")

    def settle(self) -> None:
        """See `body.Receiver`."""
        self._registrar.holdings.settle(self)

    # ---------------------------------------------------------------- request and response

    async def _exchange(self, head: Head) -> bool:
        """Have one request answered. Returns whether the connection can carry another."""
        began = time.perf_counter()
        first, self._rest = self._rest, b""
        self._read_patience.renew(self._received)
        self._write_patience.renew(self._sent)
        body = ChunkedBody(self, first) if head.body_length is None else FixedBody(self, first, head.body_length)
        self._invitation_due = head.expects_continue and not body.exhausted
        secure = self._tls is not None
        request = Request(head.method, head.target, head.headers, body, self._peer, secure=secure)
        sent_before = self._sent
        status = _CLIENT_GONE
        try:
            try:
                response = await self._handler(request)
            except ClientSilent as silent:
                raise RequestRefused(408, str(silent)) from None
            except (ClientGone, RequestRefused):
                raise
            except Exception:  # The handler's failure is this request's: the client learns of it, the others do not.
                logger.exception("%s %s failed", request.method, request.target)
                response = _INTERNAL_ERROR
            if isinstance(response.body, bytes) and not self._registrar.holdings.hold(self, len(response.body)):
                response = _NO_ROOM
            keep = head.keep_alive and not self._registrar.draining
            if not body.exhausted:
                small = isinstance(body, FixedBody) and body.left <= _SKIP_BYTES and not self._invitation_due
                keep = keep and small
            status = response.status
            option = "close" if not keep else "" if head.is_1_1 else "keep-alive"
            message = self._remember(request, response, option) if keep and head.body_length == 0 else b""
            if message:
                await self._send(message)
            else:
                await self._respond(response, option, is_head=head.method == "HEAD")
        except RequestRefused as refused:
            status = refused.status
            raise
        finally:
            self._registrar.holdings.release(self)
            await request.release()
            received, self._accounted = self._received - self._accounted, self._received
            sent, took_s = self._sent - sent_before, time.perf_counter() - began
            self._registrar.note_answered(request, status, received, sent, took_s)
        if not body.exhausted:
            if not keep:
                await self._linger()
                return False
            while await body.read():
                pass
        return keep

    def _remember(self, request: Request, response: Response, option: str) -> bytes:
        """Keep *response*, if it may be given again; return it whole then."""
        body = response.body
        if response.stands is None or not self._head_bytes or not self._answers.asked_before(self._head_bytes):
            return b""
        if isinstance(body, NoBody) or request.method == "HEAD":
            body = b""
        if not isinstance(body, bytes) or len(body) > _JOIN_BYTES:
            return b""
        message = self._encode_head(response, option) + body
        until = trio.current_time() + MAX_AGE_S
        answer = Answer(request.spent(), response.status, message, response.stands, until)
        self._answers.put(self._head_bytes, answer, secret="authorization" in request.headers)
        return message

    async def _respond(self, response: Response, option: str, *, is_head: bool) -> None:
        """Send *response* whole. Raises ClientGone where that is not possible, with less sent than announced."""
        body = response.body
        if isinstance(body, FileBody) and not is_head:
            try:
                descriptor = os.open(body.path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                logger.exception("cannot serve %s", body.path)
                await self._send_bytes(_INTERNAL_ERROR, option, is_head=False)
                return
            try:
                head = self._encode_head(response, option)
                if body.end - body.start <= _JOIN_BYTES:
                    await self._send(head + _read_small(descriptor, body))
                else:
                    await self._send(head, more=True)
                    await self._send_file(descriptor, body.start, body.end)
            finally:
                os.close(descriptor)
        elif isinstance(body, StreamBody) and not is_head:
            await self._send(self._encode_head(response, option), more=body.length > 0)
            await self._send_stream(body)
        else:
            await self._send_bytes(response, option, is_head=is_head)

    def _encode_head(self, response: Response, option: str) -> bytes:
        try:
            return encode_head(response, _http_date(), option)
        except ValueError:
            # Never sent, so never split: the client sees a closed connection.
            logger.exception("a response to %s has a header that cannot be sent", self._peer)
            raise ClientGone("the response could not be sent") from None

    async def _send_bytes(self, response: Response, option: str, *, is_head: bool) -> None:
        head = self._encode_head(response, option)
        body = response.body
        if is_head or not isinstance(body, bytes) or not body:
            await self._send(head)
        elif len(body) <= _JOIN_BYTES:
            await self._send(head + body)
        else:
            await self._send(head, more=True)
            await self._send(body)

    async def _send(self, data: bytes | memoryview, *, more: bool = False) -> None:
        """Send all of *data*; *more* follows at once, so a short packet may wait for it. Raises ClientGone."""
        flags = socket.MSG_MORE if more else 0
        while True:
            try:
                count = self._socket.send(data, flags)
            except BlockingIOError:
                await self._write_patience.wait(trio.lowlevel.wait_writable, self._descriptor, self._sent)
                continue
            except OSError as error:
                raise ClientGone(f"connection lost: {error}") from None
            self._sent += count
            if count == len(data):
                return
            data = memoryview(data)[count:]

    async def _send_stream(self, body: StreamBody) -> None:
        left = body.length
        try:
            async with _closing(body.pieces):
                async for piece in body.pieces:
                    left -= len(piece)
                    if left < 0:
                        break
                    if isinstance(piece, FileRange):
                        await self._send_file(piece.descriptor, piece.start, piece.end)
                    else:
                        await self._send(piece)
                    del piece  # not to be held while the next one is made
        except ClientGone:
            raise
        except Exception as error:  # Whatever stopped the source, too little was sent: the client has to see that.
            logger.warning("response to %s broken off: %s", self._peer, error)
            raise ClientGone("the response could not be completed") from None
        if left:
            logger.error("response to %s broken off: its source gave another length than announced", self._peer)
            raise ClientGone("the response could not be completed")

    async def _send_file(self, descriptor: int, start: int, end: int) -> None:
        """Raises ClientGone, also where the file turns out shorter than announced."""
        position, advised = start, start
        while position < end:
            if position >= advised:
                # Read ahead in the background: sendfile itself would wait for the disk, and the daemon with it.
                os.posix_fadvise(descriptor, position, 2 * _READ_AHEAD_BYTES, os.POSIX_FADV_WILLNEED)
                advised = position + _READ_AHEAD_BYTES
            count = min(end - position, _SENDFILE_BYTES)
            try:
                if self._tls is None:
                    sent = os.sendfile(self._descriptor, descriptor, position, count)
                else:
                    sent = self._tls.send_file(descriptor, position, count)
            except BlockingIOError:
                await self._write_patience.wait(trio.lowlevel.wait_writable, self._descriptor, self._sent)
                continue
            except OSError as error:
                raise ClientGone(f"connection lost: {error}") from None
            if not sent:
                logger.error("response to %s broken off: its file is shorter than announced", self._peer)
                raise ClientGone("the response could not be completed")
            position += sent
            self._sent += sent
            if sent == count or self._tls is not None:
                await trio.lowlevel.checkpoint()

    # ---------------------------------------------------------------- the end

    def _refuse_nowait(self, refused: RequestRefused) -> None:
        """Answer what is not a request as far as the socket takes it at once; the connection ends after it.

        The version is 1.0: to a TLS client anything that begins with `HTTP/` says that it came to the wrong port, and
        of a client that speaks neither we know nothing.
        """
        if self._phase is Phase.HEAD:  # else it is one of the requests, and was noted as one
            self._registrar.note_refused(refused.status)
        try:
            self._sent += self._socket.send(_refusal(refused))
        except OSError as error:
            logger.debug("%s: refusal not delivered: %s", self._peer, error)

    async def _linger(self) -> None:
        """Take and drop what the client still sends: closing over unread bytes resets the connection, and the reset
        overtakes the answer."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
            with trio.move_on_after(self._settings.linger_s):
                while True:
                    await trio.lowlevel.wait_readable(self._descriptor)
                    if not self._socket.recv_into(_DROPPED):
                        return
        except OSError as error:
            logger.debug("%s: gone while lingering: %s", self._peer, error)


@asynccontextmanager
async def _closing(pieces: AsyncIterator[Piece]) -> AsyncIterator[None]:
    """Generators left before their end have to be closed in their own task."""
    try:
        yield
    finally:
        if isinstance(pieces, AsyncGenerator):
            await pieces.aclose()


def _read_small(descriptor: int, body: FileBody) -> bytes:
    """All of *body*, for one packet with its head. Raises ClientGone where the file is shorter than announced."""
    data = os.pread(descriptor, body.end - body.start, body.start)
    if len(data) != body.end - body.start:
        logger.error("%s is shorter than announced", body.path)
        raise ClientGone("the response could not be completed")
    return data


def _refusal(refused: RequestRefused) -> bytes:
    text = f"{refused}\n".encode("ascii", "replace")
    head = encode_head(Response(refused.status, (("Content-Type", "text/plain"),), text), _http_date(), "close")
    return head.replace(b"HTTP/1.1", b"HTTP/1.0", 1) + text


_date = (0, "", b"")


def _renew_date() -> tuple[int, str, bytes]:
    """The time as HTTP writes it, made once a second."""
    global _date
    now = int(time.time())
    if _date[0] != now:
        text = formatdate(now, usegmt=True)
        _date = (now, text, text.encode())
    return _date


def _http_date() -> str:
    return _renew_date()[1]


def _http_date_bytes() -> bytes:
    return _renew_date()[2]

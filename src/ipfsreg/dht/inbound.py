"""The streams peers open to ask us: read, answered, and bounded so that no peer costs another anything.

A peer may keep a stream open between requests, and most do. One that opens more than its share loses the one that was
silent longest; so does, when all together have too many, whoever has the most. Nobody ever waits for a place.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator

import trio

from ipfsreg.dht.messages import MAX_REQUEST_BYTES, MessageType, decode_message, encode_message
from ipfsreg.dht.records import ProviderRecords
from ipfsreg.dht.server import Answerer
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.errors import MalformedData, NetworkError, PeerMisbehaved, StoreError
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)


class _Guest:
    """A peer that has streams open, and the rate at which it asks."""

    def __init__(self, burst: float, now: float) -> None:
        self.visits: dict[Stream, trio.CancelScope] = {}
        """In order of the last request, the latest last."""
        self._credit = burst
        self._counted_at = now

    def owe(self, settings: DhtSettings, now: float) -> float:
        """Count one request; return how many seconds to wait before the next is read."""
        rate = settings.requests_per_s
        self._credit = min(settings.request_burst, self._credit + (now - self._counted_at) * rate) - 1
        self._counted_at = now
        return max(0.0, -self._credit / rate)


class Reception:
    """Takes streams and answers what comes on them."""

    def __init__(self, answerer: Answerer, records: ProviderRecords, settings: DhtSettings) -> None:
        self._answerer = answerer
        self._records = records
        self._settings = settings
        self._guests: dict[PeerId, _Guest] = {}
        self._count = 0

    async def receive_streams(self, streams: AsyncIterator[Stream]) -> None:
        """Answer on every stream until cancelled; then reset those that are open."""
        async with trio.open_nursery() as nursery:
            async for stream in streams:
                # Admitted before its task runs: a flood of streams is counted as it comes.
                guest, scope = self._admit(stream)
                nursery.start_soon(self._visit, guest, stream, scope)

    def _admit(self, stream: Stream) -> tuple[_Guest, trio.CancelScope]:
        settings = self._settings
        guest = self._guests.get(stream.peer)
        if guest is None:
            self._forget_rested()
            guest = self._guests[stream.peer] = _Guest(settings.request_burst, trio.current_time())
        if len(guest.visits) >= settings.inbound_streams_per_peer:
            self._dismiss(guest)
        elif self._count >= settings.inbound_streams:
            self._dismiss(max(self._guests.values(), key=lambda each: len(each.visits)))
        scope = guest.visits[stream] = trio.CancelScope()
        self._count += 1
        return guest, scope

    def _forget_rested(self) -> None:
        # Not as soon as the last stream ends: some peers open one for every request, and have a rate all the same.
        if len(self._guests) >= 2 * self._settings.inbound_streams:
            self._guests = {peer: guest for peer, guest in self._guests.items() if guest.visits}

    def _dismiss(self, guest: _Guest) -> None:
        stream = next(iter(guest.visits))
        guest.visits.pop(stream).cancel()
        self._count -= 1

    async def _visit(self, guest: _Guest, stream: Stream, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await self._converse(guest, stream)
            except (MalformedData, PeerMisbehaved) as error:
                logger.debug("DHT stream of %s reset: %s", stream.peer, error)
            except (NetworkError, trio.TooSlowError) as error:
                logger.debug("DHT stream of %s: %s", stream.peer, error)
            except StoreError as error:
                logger.warning("a DHT request of %s could not be answered: %s", stream.peer, error)
            except Exception:  # one peer's bytes must not end the service, whatever they led to
                logger.exception("DHT stream of %s", stream.peer)
            else:
                # No reset after a good end: it would take the answer from a peer that has not read it yet.
                await stream.aclose()
                self._leave(guest, stream)
                return
        await stream.reset()
        self._leave(guest, stream)

    def _leave(self, guest: _Guest, stream: Stream) -> None:
        if guest.visits.pop(stream, None) is not None:
            self._count -= 1

    async def _converse(self, guest: _Guest, stream: Stream) -> None:
        settings = self._settings
        reader = MessageReader(stream, MAX_REQUEST_BYTES)
        while True:
            with trio.fail_after(settings.idle_s):
                length = await reader.read_length()
            if length is None:
                return
            with trio.fail_after(settings.message_s):
                request = decode_message(await reader.read_body(length))
            # Its place in the order is that of its last request.
            if stream in guest.visits:
                guest.visits[stream] = guest.visits.pop(stream)
            answer = self._answerer.answer(stream.peer, request)
            if answer is not None:
                with trio.fail_after(settings.message_s):
                    await send_message(stream, encode_message(answer))
            elif request.type is MessageType.ADD_PROVIDER:
                await self._records.wait_room()
            await trio.sleep(guest.owe(settings, trio.current_time()))

"""One outgoing stream to a peer.

Nothing is read on it: peers answer on streams of their own.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from ipfsreg.bitswap.messages import PROTOCOLS, Message, encode_message
from ipfsreg.errors import NetworkError
from ipfsreg.p2p.framing import framed
from ipfsreg.p2p.interface import Network, Stream
from ipfsreg.peer_id import PeerId

_SENT_AT_ONCE = 4 * 65_507
"""So often, in bytes, it is reported how a large block proceeds. This is what four full Noise messages of a connection
carry, which are encrypted and written in one go: a part a little larger costs a fifth message and a second write."""

_WORTH_BREAKING_BYTES = 256 * 1024
"""A message that nobody wants any more is broken off where more than this is left of it. A new stream costs little."""

_SLOWEST_BYTES_PER_S = 12_500
_SLOWEST_S = 10.0


def deadline_for(size: int) -> float:
    """Seconds a peer may take to take or give *size* bytes."""
    return _SLOWEST_S + size / _SLOWEST_BYTES_PER_S


class Voice:
    """One outgoing stream to a peer, opened when there is something to say and again when it broke."""

    def __init__(self, network: Network, peer: PeerId) -> None:
        self._network = network
        self._peer = peer
        self._stream: Stream | None = None
        self.lock = trio.Lock()

    async def say(
        self,
        message: Message,
        *,
        tries: int,
        sent: Callable[[int], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> bool:
        """Send *message*, with the lock held; on a broken stream try again on a new one.

        *sent* is told how many bytes the connection took, as it takes them. Where *wanted* says no and much is left,
        the stream is reset; then this returns False.

        Raises:
            NetworkError: the last try failed.

        Cancelled: the stream is reset.
        """
        size = sum(len(payload.data) for payload in message.payloads)
        for left in reversed(range(tries)):
            try:
                with trio.fail_after(deadline_for(size)):
                    if self._stream is None:
                        self._stream = await self._network.open_stream(self._peer, PROTOCOLS)
                    pieces = encode_message(message, self._stream.protocol)
                    unsent = size
                    for part in framed(*pieces, at_most=_SENT_AT_ONCE):
                        await self._stream.send_all(part)
                        unsent -= len(part)
                        if sent is not None:
                            sent(len(part))
                        if wanted is not None and unsent > _WORTH_BREAKING_BYTES and not wanted():
                            await self.hang_up()
                            return False
            except NetworkError:
                await self.hang_up()
                if not left:
                    raise
            except trio.TooSlowError:
                await self.hang_up()
                raise NetworkError(f"{self._peer} takes nothing") from None
            except trio.Cancelled:
                await self.hang_up()
                raise
            else:
                return True
        raise AssertionError("the last try returns or raises")

    async def hang_up(self) -> None:
        """Reset the stream, if there is one."""
        if self._stream is not None:
            await self._stream.reset()
            self._stream = None

    async def close(self) -> None:
        """End the stream in good order."""
        if self._stream is not None and not self.lock.locked():
            await self._stream.aclose()
            self._stream = None

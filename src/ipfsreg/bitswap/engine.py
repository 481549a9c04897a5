"""The exchange of one node with all its peers, as decisions only: no clock, no socket, no store, no dice of its own.

What happens is told to the engine by its methods; each returns what should be done about it, as events. What to *say*
is not among them: `Speak` means that a peer has to be told something, and `take_message` says what, at the moment when
its stream can take it. So all that happens while a stream is busy becomes one message, a cancel overtakes the want it
cancels, and nothing queues anywhere (docs/decisions/0025).

The asking half is in `asking`, the giving half in `giving`; they share nothing but the peers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ipfsreg.bitswap.asking import Asking, Received
from ipfsreg.bitswap.counters import Counters
from ipfsreg.bitswap.giving import Give, Giving
from ipfsreg.bitswap.messages import Message
from ipfsreg.bitswap.recruiting import FindProviders, Misbehaved, TryPeers
from ipfsreg.bitswap.session import Session, SessionStats
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId

_MESSAGE_PRESENCES = 512


@dataclass(frozen=True, slots=True)
class Speak:
    """There is something to tell *peer*: take it with `take_message` as soon as it can be sent."""

    peer: PeerId


Event = Speak | Give | Received | Misbehaved | TryPeers | FindProviders


class Engine:
    """Decides what is asked of whom, and what is given to whom."""

    def __init__(
        self, own: PeerId, size_of: Callable[[Cid], int | None], draw: Callable[[], float], settings: BitswapSettings
    ) -> None:
        """*own* is ourselves; *size_of* answers from our store's index; *draw* gives random numbers in [0, 1)."""
        self._asking = Asking(own, draw, settings)
        self._giving = Giving(size_of, settings)

    @property
    def counters(self) -> Counters:
        """What was moved until now."""
        return self._asking.counters

    @property
    def wants(self) -> int:
        """Blocks that are wanted of peers now."""
        return self._asking.wants

    # ---------------------------------------------------------------- peers

    def connected(self, peer: PeerId, now: float) -> list[Event]:
        """*peer* is there and speaks bitswap. Idempotent."""
        self._asking.connected(peer, now)
        return self._events(now)

    def disconnected(self, peer: PeerId, now: float) -> list[Event]:
        """*peer* is gone, or turned out not to speak bitswap. What it wanted is forgotten."""
        self._giving.lost(peer)
        self._asking.lost(peer, now)
        return self._events(now)

    def receive_message(self, peer: PeerId, message: Message, now: float) -> list[Event]:
        """Take in what *peer* wants, has and lacks. Blocks come by `receive_block`, once they were hashed."""
        if message.entries or message.full:
            self._giving.receive_wants(peer, message.entries, message.full, now)
            if self._giving.has_presences(peer):
                self._asking.news[peer] = None
            self._asking.receive_interest(peer, [entry.cid for entry in message.entries if not entry.cancel], now)
        if message.haves:
            self._asking.receive_have(peer, message.haves, now)
        if message.dont_haves:
            self._asking.receive_dont_have(peer, message.dont_haves, now)
        return self._events(now)

    def receive_bytes(self, peer: PeerId, count: int, now: float) -> None:
        """*count* bytes of blocks came from *peer*, also of one that is not whole yet. Call before `receive_block`."""
        self._asking.receive_bytes(peer, count, now)

    def receive_block(self, peer: PeerId, block: Block, now: float) -> list[Event]:
        """*peer* sent *block*, whose hash was checked. Blocks we did not ask for are not passed on."""
        self._asking.receive_block(peer, block, now)
        return self._events(now)

    def receive_break(self, peer: PeerId) -> None:
        """A stream from *peer* ended in the middle of a block."""
        self._asking.receive_break(peer)

    def receive_garbage(self, peer: PeerId, what: str, now: float) -> list[Event]:
        """*peer* sent what no honest peer sends."""
        self._asking.receive_offence(peer, what, now)
        return self._events(now)

    def owes(self, peer: PeerId) -> bool:
        """Whether anything is asked of *peer*."""
        return self._asking.owes(peer)

    # -------------------------------------------------------------- telling

    def take_message(self, peer: PeerId, now: float) -> Message | None:
        """What *peer* is told now, without blocks; None where there is nothing more. Counts as said."""
        entries, full = self._asking.take_news(peer, now)
        haves, dont_haves = self._giving.take_presences(peer, _MESSAGE_PRESENCES)
        if not (entries or full or haves or dont_haves):
            return None
        return Message(entries, full, (), haves, dont_haves)

    def tell_again(self, peer: PeerId, now: float) -> list[Event]:
        """The stream to *peer* broke: what was taken for it may not have arrived."""
        self._asking.tell_again(peer)
        return self._events(now)

    # --------------------------------------------------------------- giving

    def is_wanted(self, give: Give, cid: Cid) -> bool:
        """Whether *cid* of *give* is still wanted: ask just before sending it."""
        return self._giving.is_wanted(give, cid)

    def took(self, give: Give, size: int, now: float) -> None:
        """The connection to the peer took *size* more bytes of *give*, a large one."""
        self._giving.took(give, size, now)

    def given(self, give: Give, now: float, *, missing: Sequence[Cid] = ()) -> list[Event]:
        """*give* is over, sent or not; *missing* blocks were not in the store after all."""
        self._giving.given(give, now, missing=missing)
        if missing:
            self._asking.news[give.peer] = None
        return self._events(now)

    def receive_arrivals(self, multihashes: Iterable[bytes], now: float) -> list[Event]:
        """Our store has these blocks now: peers that wait for them get them."""
        for peer in self._giving.receive_arrivals(multihashes, now):
            self._asking.news[peer] = None
        return self._events(now)

    # --------------------------------------------------------------- asking

    def open_session(
        self,
        root: Cid | None,
        first: Iterable[PeerId],
        *,
        dialled_late: Sequence[PeerId] = (),
        spread: bool,
        block_bytes: int,
        now: float,
    ) -> tuple[Session, list[Event]]:
        """A new wanted set (see `Asking.open_session`)."""
        session = self._asking.open_session(
            root, first, dialled_late=dialled_late, spread=spread, block_bytes=block_bytes, now=now
        )
        return session, self._events(now)

    def close_session(self, session: Session, now: float) -> list[Event]:
        """What *session* wanted is wanted no more."""
        self._asking.close_session(session, now)
        return self._events(now)

    def add_provider(self, session: Session, peer: PeerId, now: float) -> list[Event]:
        """*peer* is said to have what *session* wants."""
        self._asking.add_provider(session, peer, now)
        return self._events(now)

    def want(self, session: Session, cids: Iterable[Cid], now: float) -> list[Event]:
        """Want *cids* too, behind what the session wants already."""
        cids = list(cids)
        others: dict[PeerId, list[Cid]] = {}
        for cid in cids:
            for peer in self._giving.waiting_for(cid.multihash):
                others.setdefault(peer, []).append(cid)
        self._asking.want(session, cids, others, now)
        return self._events(now)

    def urge(self, session: Session, cids: Sequence[Cid], now: float) -> list[Event]:
        """A reader waits for *cids*, in this order; those urged before wait with the others again."""
        self._asking.urge(session, cids, now)
        return self._events(now)

    def forget(self, session: Session, cids: Iterable[Cid], now: float) -> list[Event]:
        """*session* no longer wants *cids*."""
        self._asking.forget(session, cids, now)
        return self._events(now)

    def consumed(self, session: Session, size: int, now: float) -> list[Event]:
        """The reader of *session* took *size* bytes of what it received."""
        self._asking.consumed(session, size, now)
        return self._events(now)

    def wanted_as(self, multihash: bytes) -> list[Cid]:
        """The CIDs under which the block *multihash* is wanted of peers."""
        return self._asking.wanted_as(multihash)

    def receive_local(self, block: Block, now: float) -> tuple[tuple[int, ...], list[Event]]:
        """*block* came from our own store; return the sessions it goes to."""
        return self._asking.receive_local(block, now), self._events(now)

    # ----------------------------------------------------------------- time

    def tick(self, now: float) -> list[Event]:
        """Notice what did not happen in time."""
        self._asking.tick(now)
        return self._events(now)

    def next_deadline(self, now: float) -> float | None:
        """When `tick` is due, or None where nothing is waited for."""
        due = [when for when in (self._asking.next_deadline(now), self._giving.next_deadline(now)) if when is not None]
        return min(due, default=None)

    def _events(self, now: float) -> list[Event]:
        events: list[Event] = [*self._asking.events, *self._giving.grants(now)]
        self._asking.events = []
        if self._asking.news:
            events.extend(map(Speak, self._asking.news))
            self._asking.news.clear()
        return events


__all__ = [
    "Engine",
    "Event",
    "FindProviders",
    "Give",
    "Misbehaved",
    "Received",
    "Session",
    "SessionStats",
    "Speak",
    "TryPeers",
]

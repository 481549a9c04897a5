"""What we answer when peers ask. Pure, but for the records it is given.

Whoever asks learns only what anybody may: peers of our routing table, and who said to provide a key. A provider can
announce itself and nobody else; values (IPNS, public keys) are neither kept nor given, because no validator for them
exists here, but the peers closer to their key are told, so that walks pass through us.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from ipfsreg.dht.keys import Contact, position_of
from ipfsreg.dht.messages import MAX_ADDRS, Message, MessageType
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.errors import PeerMisbehaved
from ipfsreg.peer_id import PeerId

MAX_TOLD_PROVIDERS = 100
"""Of one key, the latest word first: 30 KiB at most on average, and more than anybody dials."""


class Records(Protocol):
    """Where records of other peers are kept."""

    def add(self, key: bytes, provider: Contact) -> None:
        """*provider* has said that it provides *key*."""

    def providers_of(self, key: bytes) -> list[Contact]:
        """Who provides *key*, the latest word first."""


class Answerer:
    """Answers requests out of one node's table and records."""

    def __init__(
        self,
        table: RoutingTable,
        records: Records,
        *,
        k: int,
        ourselves: Callable[[], Contact],
        provides: Callable[[bytes], bool],
        locate: Callable[[PeerId], Contact | None],
        believe: Callable[[Contact], Contact],
    ) -> None:
        """*ourselves*: how others reach us now. *provides*: whether we announce a key. *locate*: a connected peer's
        addresses, whether it is a server or not. *believe*: those of the addresses told that may be true."""
        self._table = table
        self._records = records
        self._k = k
        self._ourselves = ourselves
        self._provides = provides
        self._locate = locate
        self._believe = believe

    def answer(self, sender: PeerId, request: Message) -> Message | None:
        """What to say to *request*, or None where nothing is due.

        Raises:
            PeerMisbehaved: a request that cannot be meant, or a value to keep: the stream is to be reset.
            StoreError: the records cannot be read.
        """
        match request.type:
            case MessageType.PING:
                return Message(MessageType.PING)
            case MessageType.PUT_VALUE:
                raise PeerMisbehaved("asked us to keep a value: there is no validator for any")
        if not request.key:
            raise PeerMisbehaved(f"{request.type.name} without a key")
        match request.type:
            case MessageType.FIND_NODE:
                return Message(MessageType.FIND_NODE, closer=self._find(sender, request.key))
            case MessageType.GET_VALUE:
                return Message(MessageType.GET_VALUE, request.key, self._closer(sender, request.key))
            case MessageType.GET_PROVIDERS:
                closer = self._closer(sender, request.key)
                return Message(MessageType.GET_PROVIDERS, request.key, closer, self._providers(request.key))
        self._keep(sender, request)
        return None

    def _keep(self, sender: PeerId, request: Message) -> None:
        for provider in request.providers:
            # Anybody else's word about a provider is worth nothing: it would send the whole swarm to a victim.
            if provider.peer == sender:
                told = self._believe(provider)
                known = told if told.addrs else self._locate(sender) or told
                self._records.add(request.key, known)
                return

    def _providers(self, key: bytes) -> tuple[Contact, ...]:
        providers = self._records.providers_of(key)[:MAX_TOLD_PROVIDERS]
        if self._provides(key):
            providers.insert(0, self._ourselves())
        return tuple(_trimmed(provider) for provider in providers)

    def _find(self, sender: PeerId, key: bytes) -> tuple[Contact, ...]:
        closer = self._closer(sender, key)
        if any(contact.peer.raw == key for contact in closer):
            return closer
        ourselves = self._ourselves()
        target = ourselves if ourselves.peer.raw == key else self._locate(PeerId(key))
        if target is None or not target.addrs or target.peer == sender:
            return closer
        return (_trimmed(target), *closer[: self._k - 1])

    def _closer(self, sender: PeerId, key: bytes) -> tuple[Contact, ...]:
        # One more, because the sender itself may be among them.
        closest = self._table.closest(position_of(key), self._k + 1, sure=True)
        return tuple(_trimmed(each) for each in closest if each.peer != sender and each.addrs)[: self._k]


def _trimmed(contact: Contact) -> Contact:
    return contact if len(contact.addrs) <= MAX_ADDRS else Contact(contact.peer, contact.addrs[:MAX_ADDRS])

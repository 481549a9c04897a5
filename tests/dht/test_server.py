from __future__ import annotations

import pytest

from ipfsreg.dht.keys import Contact, position_of
from ipfsreg.dht.messages import Message, MessageType
from ipfsreg.dht.routing_table import RoutingTable
from ipfsreg.dht.server import MAX_TOLD_PROVIDERS, Answerer
from ipfsreg.errors import PeerMisbehaved
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.dht import MemoryRecords, numbered_contact

OURS = numbered_contact(10**9)
ALICE, BOB = numbered_contact(10**6), numbered_contact(10**6 + 1)
KEY = b"\x12\x20" + bytes(32)


class Node:
    def __init__(self, crowd: int = 60) -> None:
        self.table = RoutingTable(OURS, k=20)
        for number in range(crowd):
            self.table.alive(numbered_contact(number), now=0.0)
        self.records = MemoryRecords()
        self.ours: set[bytes] = set()
        self.connected: dict[PeerId, Contact] = {}
        self.answerer = Answerer(
            self.table,
            self.records,
            k=20,
            ourselves=lambda: OURS,
            provides=lambda key: key in self.ours,
            locate=self.connected.get,
            believe=lambda contact: Contact(contact.peer, tuple(addr for addr in contact.addrs if addr != b"lie")),
        )

    def ask(self, kind: MessageType, key: bytes = b"", *providers: Contact, sender: Contact = ALICE) -> Message | None:
        return self.answerer.answer(sender.peer, Message(kind, key, providers=providers))

    def closest(self, key: bytes, *, without: Contact = ALICE) -> tuple[Contact, ...]:
        members = sorted(self.table, key=lambda contact: contact.position ^ position_of(key))
        return tuple(contact for contact in members if contact != without)[:20]


def test_a_ping_is_answered() -> None:
    assert Node().ask(MessageType.PING) == Message(MessageType.PING)


def test_find_node_tells_the_twenty_closest_without_the_asker() -> None:
    node = Node()
    asker = node.closest(KEY)[0]
    answer = node.ask(MessageType.FIND_NODE, KEY, sender=asker)
    assert answer == Message(MessageType.FIND_NODE, closer=node.closest(KEY, without=asker))
    assert answer is not None
    assert len(answer.closer) == 20


def test_find_node_for_us_and_for_a_connected_client_names_them_first() -> None:
    node = Node()
    answer = node.ask(MessageType.FIND_NODE, OURS.peer.raw)
    assert answer is not None
    assert answer.closer == (OURS, *node.closest(OURS.peer.raw)[:19])
    node.connected[BOB.peer] = BOB
    answer = node.ask(MessageType.FIND_NODE, BOB.peer.raw)
    assert answer is not None
    assert answer.closer[0] == BOB
    # To itself it is not named.
    answer = node.ask(MessageType.FIND_NODE, BOB.peer.raw, sender=BOB)
    assert answer is not None
    assert BOB not in answer.closer


def test_peers_without_addresses_or_in_doubt_are_not_told() -> None:
    node = Node(crowd=0)
    node.table.alive(Contact(BOB.peer), now=0.0)
    doubtful = numbered_contact(5)
    node.table.alive(doubtful, now=0.0)
    node.table.failed(doubtful.peer)
    assert node.ask(MessageType.FIND_NODE, KEY) == Message(MessageType.FIND_NODE)


def test_get_providers_tells_providers_and_closer_peers() -> None:
    node = Node()
    node.records.add(KEY, BOB)
    expected = Message(MessageType.GET_PROVIDERS, KEY, node.closest(KEY), (BOB,))
    assert node.ask(MessageType.GET_PROVIDERS, KEY) == expected


def test_we_tell_of_ourselves_what_we_provide() -> None:
    node = Node()
    node.ours.add(KEY)
    answer = node.ask(MessageType.GET_PROVIDERS, KEY)
    assert answer is not None
    assert answer.providers == (OURS,)


def test_a_popular_key_has_a_bounded_answer() -> None:
    node = Node()
    addrs = tuple(bytes([4, 10, 0, 0, number, 6, 1, 1]) for number in range(100))
    for number in range(500):
        node.records.add(KEY, Contact(numbered_contact(number).peer, addrs))
    answer = node.ask(MessageType.GET_PROVIDERS, KEY)
    assert answer is not None
    assert len(answer.providers) == MAX_TOLD_PROVIDERS
    assert len(answer.providers[0].addrs) == 32


def test_a_provider_announces_itself_and_nobody_else() -> None:
    node = Node()
    assert node.ask(MessageType.ADD_PROVIDER, KEY, BOB) is None
    assert node.records.providers_of(KEY) == []
    assert node.ask(MessageType.ADD_PROVIDER, KEY, BOB, ALICE) is None
    assert node.records.providers_of(KEY) == [ALICE]


def test_addresses_that_cannot_be_true_are_replaced_by_what_is_known() -> None:
    node = Node()
    node.ask(MessageType.ADD_PROVIDER, KEY, Contact(ALICE.peer, (b"lie", *ALICE.addrs)))
    assert node.records.providers_of(KEY) == [ALICE]
    node.connected[BOB.peer] = BOB
    node.ask(MessageType.ADD_PROVIDER, KEY, Contact(BOB.peer, (b"lie",)), sender=BOB)
    assert BOB in node.records.providers_of(KEY)


def test_values_are_neither_kept_nor_given_but_walks_pass_through() -> None:
    node = Node()
    with pytest.raises(PeerMisbehaved, match="value"):
        node.ask(MessageType.PUT_VALUE, b"/ipns/name")
    assert node.ask(MessageType.GET_VALUE, b"/ipns/name") == Message(
        MessageType.GET_VALUE, b"/ipns/name", node.closest(b"/ipns/name")
    )


@pytest.mark.parametrize(
    "kind", [MessageType.FIND_NODE, MessageType.GET_PROVIDERS, MessageType.ADD_PROVIDER, MessageType.GET_VALUE]
)
def test_a_request_without_a_key_is_refused(kind: MessageType) -> None:
    with pytest.raises(PeerMisbehaved, match="without a key"):
        Node().ask(kind)

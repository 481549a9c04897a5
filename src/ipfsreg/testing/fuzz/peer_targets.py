"""Decoders of what peers say in their streams: the messages of each protocol, and the addresses in them."""

from __future__ import annotations

from random import Random

from ipfsreg.bitswap import messages as bitswap
from ipfsreg.bitswap.engine import Engine
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.dht import messages as dht
from ipfsreg.dht.keys import Contact, has_public, is_public, networks_of
from ipfsreg.errors import PeerMisbehaved, StreamReset
from ipfsreg.ipld.block import MAX_BLOCK_BYTES
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.ipld.protobuf import bytes_field
from ipfsreg.p2p import identify
from ipfsreg.p2p.addresses import (
    MAX_ADDR_CHARS,
    claims_worth_keeping,
    decode_addr,
    encode_addr,
    normal_form,
    parse_dialable,
    scope_of,
    split_peer,
)
from ipfsreg.p2p.framing import MessageReader
from ipfsreg.p2p.observed import ObservedAddrs
from ipfsreg.pubsub import messages as gossip
from ipfsreg.pubsub.parameters import Dialect, RouterSettings
from ipfsreg.pubsub.router import Router
from ipfsreg.pubsub.screening import Verdict
from ipfsreg.testing.fuzz.harness import Target, cuts, drive
from ipfsreg.testing.fuzz.wire_targets import ALICE, BOB

_CID, _OTHER_CID = Cid.of(RAW, b"content"), Cid.of(RAW, b"other")
_ECHO = "/echo/1.0.0"

# ------------------------------------------------------------------ addresses


def _address(data: bytes) -> None:
    text = decode_addr(data)
    _check_address(text)
    assert decode_addr(encode_addr(text)) == text, "an address changes when it is passed on"


def _address_text(data: bytes) -> None:
    text = normal_form(data.decode("utf-8", "surrogateescape"))
    _check_address(text)


def _check_address(text: str) -> None:
    assert 0 < len(text) <= MAX_ADDR_CHARS
    assert normal_form(text) == text
    assert len(encode_addr(text)) <= 4 * MAX_ADDR_CHARS
    scope_of(text)
    dialable = parse_dialable(text)
    assert dialable is None or parse_dialable(str(dialable)) == dialable
    claims_worth_keeping([text], seen_from="/ip4/8.8.8.8/tcp/1")
    observed = ObservedAddrs()
    observed.saw(ALICE.peer_id, text, seen_from="/ip4/8.8.8.8/tcp/1")
    observed.saw(BOB.peer_id, text, seen_from="/ip4/9.9.9.9/tcp/1")
    for told in observed.addrs():
        encode_addr(told)


def _split_peer(data: bytes) -> None:
    text, peer = split_peer(data.decode("utf-8", "surrogateescape"))
    assert peer is None or split_peer(f"{text}/p2p/{peer}") == (text, peer)


# -------------------------------------------------------- framing, identify, dht


class _Pieces:
    """A stream that has everything at once."""

    peer, protocol = ALICE.peer_id, _ECHO

    def __init__(self, pieces: list[bytes]) -> None:
        self._pieces = pieces

    async def receive_some(self, max_bytes: int = 65536) -> bytes:
        piece = self._pieces.pop(0) if self._pieces else b""
        if len(piece) > max_bytes:
            self._pieces.insert(0, piece[max_bytes:])
        return piece[:max_bytes]

    async def receive_into(self, buffer: bytearray | memoryview) -> int:
        piece = await self.receive_some(len(buffer))
        buffer[: len(piece)] = piece
        return len(piece)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        raise StreamReset("nobody listens")

    async def send_eof(self) -> None:
        return

    async def aclose(self) -> None:
        return

    async def reset(self) -> None:
        return


def _framing(data: bytes) -> None:
    whole = drive(_read_messages([data]))
    assert drive(_read_messages(cuts(data))) == whole, "the cut of the bytes changes what they say"


async def _read_messages(pieces: list[bytes]) -> list[object]:
    reader = MessageReader(_Pieces(pieces), 4096)
    found: list[object] = []
    try:
        while (message := await reader.read()) is not None:
            found.append(bytes(message))
    except (PeerMisbehaved, StreamReset) as error:
        found.append(type(error))
    return found


def _identify(data: bytes) -> None:
    description = identify.decode(data)
    assert len(description.addrs) <= identify.MAX_ADDRS
    assert len(description.protocols) <= identify.MAX_PROTOCOLS
    again = identify.decode(identify.encode(description))
    assert again.protocols == description.protocols
    assert again.addrs == description.addrs, "an address changes when it is passed on"
    assert again.observed == description.observed


def _dht(data: bytes) -> None:
    message = dht.decode_message(data)
    assert len(message.closer) <= dht.MAX_CLOSER
    assert len(message.providers) <= dht.MAX_PROVIDERS
    assert dht.decode_message(dht.encode_message(message)) == message
    for contact in (*message.closer, *message.providers):
        info = contact.dialable()
        for addr in info.addrs:
            encode_addr(addr)
            assert parse_dialable(addr) is not None
        networks_of(contact)
        has_public(info.addrs)
        for raw in contact.addrs:
            is_public(raw)
        Contact.of(info.peer, info.addrs)


# -------------------------------------------------------------------- bitswap


def _bitswap(data: bytes) -> None:
    message = bitswap.decode_message(data)
    assert len(message.entries) <= bitswap.MAX_ENTRIES
    assert len(message.payloads) <= bitswap.MAX_ENTRIES
    assert len(message.haves) + len(message.dont_haves) <= bitswap.MAX_ENTRIES
    again = bitswap.decode_message(b"".join(bitswap.encode_message(message)))
    assert [entry.cid for entry in again.entries] == [entry.cid for entry in message.entries]
    assert again.payloads == message.payloads
    assert (again.haves, again.dont_haves, again.full) == (message.haves, message.dont_haves, message.full)
    assert again.pending_bytes == message.pending_bytes


def _bitswap_engine(data: bytes) -> None:
    """Two messages of a stranger to an engine that wants one block and has another."""
    engine = Engine(BOB.peer_id, lambda cid: 7 if cid == _CID else None, Random(1).random, BitswapSettings())
    engine.connected(ALICE.peer_id, 0.0)
    session, _ = engine.open_session(_CID, [ALICE.peer_id], spread=True, block_bytes=MAX_BLOCK_BYTES, now=0.0)
    engine.want(session, [_CID, _OTHER_CID], 0.0)
    message = bitswap.decode_message(data)
    for now in (1.0, 2.0):
        engine.receive_message(ALICE.peer_id, message, now)
        answer = engine.take_message(ALICE.peer_id, now)
        if answer is not None:
            bitswap.encode_message(answer)
        engine.tick(now + 0.5)
    engine.disconnected(ALICE.peer_id, 3.0)
    assert engine.take_message(ALICE.peer_id, 3.0) is None, "something is remembered of a peer that is gone"


_BITSWAP = (
    b"".join(
        bitswap.encode_message(
            bitswap.Message(
                (bitswap.Entry(_CID, 5, send_dont_have=True), bitswap.Entry(_CID, cancel=True)),
                True,
                (bitswap.Payload(_CID.prefix, b"content"),),
                (_CID,),
                (_OTHER_CID,),
                100,
            )
        )
    ),
    b"".join(bitswap.encode_message(bitswap.Message((bitswap.Entry(_CID, want_have=True),)))),
    b"".join(
        bitswap.encode_message(
            bitswap.Message(payloads=(bitswap.Payload(_CID.prefix, b"content"),)), bitswap.PROTOCOLS[2]
        )
    ),
)

# --------------------------------------------------------------------- gossip


def _gossip(data: bytes) -> None:
    rpc = gossip.decode_rpc(data)
    assert rpc.entries <= gossip.MAX_FIELDS
    again = gossip.decode_rpc(gossip.encode_rpc(rpc))
    assert (again.subscriptions, again.messages, again.graft) == (rpc.subscriptions, rpc.messages, rpc.graft)
    assert (again.ihave, again.iwant, again.prune, again.idontwant) == (rpc.ihave, rpc.iwant, rpc.prune, rpc.idontwant)
    assert again.malformed == 0
    known = gossip.decode_rpc(data, lambda _: True)
    assert not known.messages
    # Not the same ids: of a message that names its author twice the first is looked at, to be quick.
    assert len(known.known) >= len(rpc.messages)


def _router(data: bytes) -> None:
    """One RPC of a stranger, twice and over some heartbeats, to a router in two topics."""
    router = Router(BOB.peer_id, RouterSettings(), judge=lambda message, _: Verdict.ACCEPT, rng=Random(1))
    rpc = gossip.decode_rpc(data, router.has_seen)
    router.add_peer(ALICE.peer_id, Dialect.V1_2)
    for topic in ("topic", ""):
        router.join(topic, now=0.0)
    for now in (1.0, 2.0, 60.0):
        events = router.receive_control(ALICE.peer_id, rpc, now=now)
        for message in rpc.messages:
            events += router.receive_message(ALICE.peer_id, message, now=now)
        events += router.heartbeat(now=now + 0.5)
        for event in events:
            said = getattr(event, "rpc", None)
            if said is not None:
                gossip.encode_rpc(said)
    router.remove_peer(ALICE.peer_id, now=70.0)


_MESSAGE = gossip.Message(ALICE.peer_id.raw, bytes(8), "topic", b"data", bytes(64), ALICE.public_key)
_GOSSIP = tuple(
    gossip.encode_rpc(rpc)
    for rpc in (
        gossip.Rpc((gossip.Subscription(True, "topic"), gossip.Subscription(False, "")), (_MESSAGE,)),
        gossip.Rpc(ihave=(gossip.IHave("topic", (_MESSAGE.id,)),), iwant=(_MESSAGE.id,), graft=("topic",)),
        gossip.Rpc(
            prune=(gossip.Prune("topic", (gossip.ExchangedPeer(ALICE.peer_id.raw, b"record"),), 2**64 - 1),),
            idontwant=(_MESSAGE.id,),
        ),
    )
)

_ADDRS = tuple(
    encode_addr(text)
    for text in (
        "/ip4/1.2.3.4/tcp/4619",
        "/ip6/2001:db8::1/tcp/80",
        "/dns4/node.example/tcp/443",
        "/dnsaddr/bootstrap.libp2p.io",
        f"/ip4/1.2.3.4/udp/4001/quic-v1/p2p/{ALICE.peer_id}/p2p-circuit",
        f"/ip4/1.2.3.4/tcp/1/p2p/{ALICE.peer_id}",
        "/dns/a/tcp/443/tls/ws",
        "/unix/tmp",
        "/ip6zone/eth0/ip6/fe80::1/tcp/1",
    )
)
_ADDR_TEXTS = tuple(
    text.encode()
    for text in (
        "/ip4/1.2.3.4/tcp/4619",
        "/ip6/::ffff:1.2.3.4/tcp/80",
        "/ip6/fe80::1%eth0/tcp/80",
        f"/dns4/node.example/tcp/443/p2p/{ALICE.peer_id}",
        "/dns/b\u00fccher.example/tcp/1",
    )
)
_DESCRIPTION = identify.encode(
    identify.Description(ALICE.public_key, ("/ip4/1.2.3.4/tcp/4619",), frozenset({_ECHO}), "/ip4/1.1.1.1/tcp/1", "x/1")
)
_DHT = tuple(
    dht.encode_message(message)
    for message in (
        dht.Message(dht.MessageType.FIND_NODE, ALICE.peer_id.raw),
        dht.Message(
            dht.MessageType.GET_PROVIDERS,
            _CID.multihash,
            (Contact(ALICE.peer_id, _ADDRS[:3]),),
            (Contact(BOB.peer_id, _ADDRS[3:]),),
        ),
    )
)

TARGETS = (
    Target("address", _address, _ADDRS, 16384, weight=0.3),
    Target("address_text", _address_text, _ADDR_TEXTS, 16384, weight=0.3),
    Target("split_peer", _split_peer, _ADDR_TEXTS, 65536),
    Target("framing", _framing, (b"\x05hello\x00\x01x", b"\x80\x20" + bytes(100), b"\xff" * 10), 65536, weight=0.5),
    Target(
        "identify",
        _identify,
        (_DESCRIPTION, b"".join(bytes_field(2, addr) for addr in _ADDRS)),
        identify.MAX_MESSAGES * identify.MAX_MESSAGE_BYTES,
        is_protobuf=True,
        weight=0.3,
    ),
    Target("dht_message", _dht, _DHT, dht.MAX_ANSWER_BYTES, is_protobuf=True, weight=0.3),
    Target("bitswap_message", _bitswap, _BITSWAP, bitswap.MAX_MESSAGE_BYTES, is_protobuf=True, weight=0.5),
    Target("bitswap_engine", _bitswap_engine, _BITSWAP, bitswap.MAX_MESSAGE_BYTES, is_protobuf=True, weight=0.1),
    Target("gossip_rpc", _gossip, _GOSSIP, 1024 * 1024, is_protobuf=True, weight=0.5),
    Target("gossip_router", _router, _GOSSIP, 1024 * 1024, is_protobuf=True, weight=0.1),
)

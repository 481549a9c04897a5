"""What peers say in the name store beyond single messages: signatures, dagsync, and what any deltas add up to."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from random import Random

from ipfsreg.crdt import state
from ipfsreg.crdt.dagsync import MAX_HAVES, MAX_REQUEST_BYTES, MAX_WANTS, decode_request, encode_request
from ipfsreg.crdt.delta import Delta, Element, Node, Tombstone, block_id, build_node, node_cid, parse_node
from ipfsreg.crdt.merge import heads_of, state_of
from ipfsreg.crdt.signing import author_of, signed_delta
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import DAG_PB
from ipfsreg.ipld.dag_pb import PBLink, PBNode
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.fuzz.harness import Target
from ipfsreg.testing.network import key_of, peer_of

_LINKS = [build_node((), Delta((Element("/a", bytes((number,))),), (), 1)).multihash for number in range(2)]
_DELTA = Delta((Element("/r/app/_t/1", b"value"),), (Tombstone("/r/app/_t/1", block_id(_LINKS[0])),), 2)


class _Alice:
    """A signer."""

    @property
    def peer_id(self) -> PeerId:
        return peer_of("alice")

    def sign(self, data: bytes) -> bytes:
        return key_of("alice").sign(data)


_SIGNED = signed_delta(_LINKS, _DELTA.encode(), _Alice())


def _signature(data: bytes) -> None:
    """A delta on top of two links."""
    author = author_of(_LINKS, data)
    if author is None:
        return
    for other in (_LINKS[:1], _LINKS[::-1], [*_LINKS, _LINKS[0]]):
        try:
            found = author_of(other, data)
        except MalformedData:
            continue
        raise AssertionError(f"a signature of {author} is one on other links as well, by {found}")
    # Only Alice's is among the seeds, and nobody can make another's.
    assert author != peer_of("bob")


def _request(data: bytes) -> None:
    want, have = decode_request(data)
    assert len(want) <= MAX_WANTS
    assert len(have) <= MAX_HAVES
    assert decode_request(encode_request(want, have)) == (want, have)


class _Tables:
    """Those of a replica, in memory."""

    def __init__(self) -> None:
        self.db = sqlite3.connect(":memory:", isolation_level=None)
        for statement in ";".join(state.SCHEMA).split(";"):
            self.db.execute(statement)

    def put_in(self, db: sqlite3.Connection, blocks: Sequence[Block]) -> None:
        """Blocks are not asked for here."""

    def receive(self, nodes: Sequence[Node]) -> None:
        self.db.execute("BEGIN")
        while state.apply(self, state.Work(arrivals=nodes), self.db).closing_left:
            nodes = ()
        self.db.execute("COMMIT")


def _nodes_in(data: bytes) -> list[Node]:
    """Deltas, each behind its length and a byte that says on which of the last eight nodes it builds."""
    nodes: list[Node] = []
    at = 0
    while at + 3 <= len(data) and len(nodes) < 64:
        below, length = data[at], int.from_bytes(data[at + 1 : at + 3], "big")
        links = [node.multihash for number, node in enumerate(reversed(nodes[-8:])) if below >> number & 1]
        content = PBNode(tuple(PBLink(node_cid(link)) for link in links), data[at + 3 : at + 3 + length])
        at += 3 + length
        try:
            nodes.append(parse_node(Block.of(content.encode(), DAG_PB)))
        except MalformedData:
            continue  # the others count all the same
    return list({node.multihash: node for node in nodes}.values())


def _merge(data: bytes) -> None:
    """In any order, with some twice, nodes add up to what the definition says."""
    nodes = _nodes_in(data)
    rng = Random(data[:8])
    expected, heads = state_of(nodes), heads_of(nodes)
    for _ in range(2):
        tables = _Tables()
        try:
            arrivals = nodes + rng.choices(nodes, k=min(len(nodes), 3)) if nodes else []
            rng.shuffle(arrivals)
            while arrivals:
                size = rng.randint(1, 5)
                tables.receive(arrivals[:size])
                del arrivals[:size]
            assert dict(tables.db.execute("SELECT key, value FROM crdt_names").fetchall()) == expected
            found = tables.db.execute("SELECT multihash FROM crdt_heads JOIN crdt_nodes ON number = node")
            assert {multihash for (multihash,) in found} == heads
            for table in ("crdt_early", "crdt_held", "crdt_waits"):
                assert tables.db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table
        finally:
            tables.db.close()


def _framed(*deltas: tuple[int, bytes]) -> bytes:
    return b"".join(bytes((below,)) + len(delta).to_bytes(2, "big") + delta for below, delta in deltas)


def _delta(priority: int, key: str, value: bytes, *removed: bytes) -> bytes:
    stones = tuple(Tombstone(key, block_id(multihash)) for multihash in removed)
    return Delta((Element(key, value),), stones, priority).encode()


_FIRST = build_node((), Delta((Element("/k", b"1"),), (), 1)).multihash

TARGETS = (
    Target(
        "crdt_signature",
        _signature,
        (_SIGNED, _DELTA.encode(), signed_delta(_LINKS, Delta(priority=1).encode(), _Alice())),
        4096,
        is_protobuf=True,
        weight=0.3,
    ),
    Target("dagsync_request", _request, (encode_request(_LINKS, _LINKS[:1]),), MAX_REQUEST_BYTES, is_protobuf=True),
    Target(
        "crdt_merge",
        _merge,
        (
            _framed((0, _delta(1, "/k", b"1")), (1, _delta(2, "/k", b"2", _FIRST)), (3, _delta(3, "/l", b"3"))),
            _framed((0, _delta(1, "/k", b"1")), (0, _delta(1, "/k", b"2")), (3, Delta(priority=2).encode())),
            _framed((0, _delta(2**40, "/k", b"9")), (1, _delta(2**40 + 1, "/k", b"1")), (0, _delta(1, "/k", b"1"))),
        ),
        16384,
        weight=0.1,
    ),
)

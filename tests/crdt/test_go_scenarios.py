"""What go-ds-crdt did with given blocks and messages, done again by our replica.

The blocks are given to a replica from outside and announced as a Go peer would; value, heads and stored entries must
be those Go ended with. Where we differ on purpose, the test says so and how.

Not here, because they are not about a plain replica or say nothing about us:
    S14-rebroadcast                         test_herald.py
    S15-batch-autocommit, S16-huge-single-put   where Go cuts its batches; ours: test_state.py
    S3x-skiplinks-*                         the blocks were not recorded; ours: test_state.py
    S3x-snapshot-style-republish-resurrects why we never publish a live value again; nothing to replay
    S4x-heal-lost-branch                    mends a state of Go's that ours cannot be in (S13b here)
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from ipfsreg.crdt.delta import (
    Delta,
    Element,
    Head,
    Tombstone,
    block_id,
    build_node,
    encode_broadcasts,
)
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.replica import Replica
from ipfsreg.ipld.block import Block
from ipfsreg.ipld.cid import BLAKE2B_256, DAG_PB, Cid
from ipfsreg.pubsub.interface import TopicMessage
from ipfsreg.testing.network import peer_of
from ipfsreg.testing.replicas import ReplicaSwarm

VECTORS = Path(__file__).parent.parent / "vectors"
SCENARIOS: dict[str, Any] = {
    entry["name"]: entry for entry in json.loads((VECTORS / "crdt_go_scenarios.json").read_text())
}


@pytest.fixture
def swarm(tmp_path: Path) -> ReplicaSwarm:
    return ReplicaSwarm(tmp_path)


def block_of(data: str) -> Block:
    return Block.of(bytes.fromhex(data), DAG_PB)


def recorded(blocks: dict[str, str]) -> dict[str, Block]:
    """The blocks of a scenario by CID, each checked against it."""
    return {cid: Block.verified(Cid.parse(cid), bytes.fromhex(data)) for cid, data in blocks.items()}


def put_block(links: Iterable[Block], priority: int, key: str, value: bytes) -> Block:
    return build_node([link.cid.multihash for link in links], Delta((Element(key, value),), (), priority)).block


async def hear(swarm: ReplicaSwarm, payload: bytes) -> None:
    """Let alice hear *payload* from a Go peer, and let her finish what follows from it."""
    swarm.topics["alice"].push(TopicMessage(payload, peer_of("go"), peer_of("go")))
    await trio.sleep(2)


async def receive(swarm: ReplicaSwarm, *blocks: Block) -> None:
    """Give alice *blocks*, announced one after the other."""
    swarm.give(blocks)
    for block in blocks:
        await hear(swarm, encode_broadcasts([Head(block.cid.multihash)])[0])


def heads_of(replica: Replica) -> set[str]:
    return {str(cid) for cid in replica.heads()}


def go_heads(entry: Any) -> set[str]:
    return {head["cid"] for head in entry}


def check_store(swarm: ReplicaSwarm, store: dict[str, str]) -> None:
    """Compare alice's tables with a dump of Go's keys."""
    database = swarm.databases["alice"]

    def entries(table: str) -> set[tuple[str, str]]:
        rows = database.read(f"SELECT key, multihash FROM crdt_{table} AS entry JOIN crdt_nodes ON number = entry.node")
        return {(key, block_id(multihash)) for key, multihash in rows}

    for table, part in (("elements", "/c/s/s"), ("tombstones", "/c/s/t")):
        dumped = [key.removeprefix(part) for key in store if key.startswith(part)]
        assert entries(table) == {(key[: key.rindex("/")], key[key.rindex("/") :]) for key in dumped}, table
    names = {
        key.removeprefix("/c/s/k").removesuffix("/v"): value
        for key, value in store.items()
        if key.startswith("/c/s/k") and key.endswith("/v") and key.removesuffix("/v") + "/p" in store
    }
    assert {key: value.hex() for key, value in database.read("SELECT key, value FROM crdt_names")} == names
    priorities = {key: int(store[f"/c/s/k{key}/p"], 16) - 1 for key in names}
    assert dict(database.read("SELECT key, priority FROM crdt_names").fetchall()) == priorities


async def test_s1_a_single_replica_writes_the_blocks_go_writes(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    scenario = SCENARIOS["S1-basic-single-replica"]
    # An empty value and a key twice in a batch are what we never write: those two come from outside.
    ours: list[list[Change] | None] = [
        [Put("/a", b"11")],
        [Put("/a", b"22")],
        [Put("/docker/x/_manifests/link", b"sha256:00")],
        [Delete("/a")],
        [Delete("/nope")],
        None,
        None,
        [],
        [Put("/a", b"33")],
    ]
    async with swarm.open("alice") as alice:
        for changes, step in zip(ours, scenario["steps"], strict=True):
            before = len(swarm.topics["alice"].published)
            blocks = recorded(step["blocks"])
            if changes is None:
                await receive(swarm, *blocks.values())
            else:
                await alice.commit(changes)
                await trio.sleep(1)
                said = [data.hex() for data in swarm.topics["alice"].published[before:]]
                assert said == step["broadcasts"], step["op"]
            assert heads_of(alice) == go_heads(step["heads"]), step["op"]
            assert all(swarm.stores[peer_of("alice")].get_nowait(one.cid) == one for one in blocks.values())
            assert alice.status().height == step["heads"][0]["height"]
            # Of a key that stands twice in a delta Go keeps the last value until something is removed; we the greatest.
            check_store(swarm, {key: "01" if key == "/c/s/k/p/v" else value for key, value in step["store"].items()})
        for key, value in (scenario["get"] | {"/p": "01"}).items():
            found = alice.get(key)
            assert (None if found is None else found.hex()) == value


@pytest.mark.parametrize("order", [0, 1])
async def test_s2_equal_priorities_are_settled_by_value_and_joined_by_the_next_write(
    autojump_clock: MockClock, swarm: ReplicaSwarm, order: int
) -> None:
    scenario = SCENARIOS[f"S2-equal-priority-order{order}"]
    blocks = list(recorded(scenario["blocks"]).values())
    async with swarm.open("alice") as alice:
        await receive(swarm, *(reversed(blocks) if order else blocks))
        assert alice.get("/k") == bytes.fromhex(scenario["value"])
        assert heads_of(alice) == go_heads(scenario["heads"])
        merging = SCENARIOS[f"S2b-merge-node-order{order}"]
        await receive(swarm, *recorded(merging["block"]).values())
        assert heads_of(alice) == go_heads(merging["heads"])
        assert alice.get("/m") == b"merge"
        assert alice.status().height == 2


@pytest.mark.parametrize("reverse", [False, True])
async def test_s3_an_addition_wins_over_a_concurrent_removal(
    autojump_clock: MockClock, swarm: ReplicaSwarm, reverse: bool
) -> None:
    scenario = SCENARIOS["S3-add-wins"]
    blocks = recorded(scenario["blocks"])
    async with swarm.open("alice") as alice:
        order = [blocks[cid] for cid in scenario["order"]]
        await receive(swarm, *(one for one in blocks.values() if one not in order))
        await receive(swarm, *(reversed(order) if reverse else order))
        assert alice.get("/k") == bytes.fromhex(scenario["value"])
        check_store(swarm, scenario["store"])


async def test_s3c_a_survivor_comes_back_when_the_winner_is_removed(
    autojump_clock: MockClock, swarm: ReplicaSwarm
) -> None:
    low, base = put_block([], 1, "/k", b"low"), put_block([], 1, "/x", b"1")
    high = put_block([base], 2, "/k", b"high")
    gone = build_node([high.cid.multihash], Delta((), (Tombstone("/k", block_id(high.cid.multihash)),), 3)).block
    async with swarm.open("alice") as alice:
        await receive(swarm, low, high, base, gone)
        value = alice.get("/k")
        assert value is not None
        assert value.hex() == SCENARIOS["S3c-survivor-resurfaces"]["value"]


@pytest.mark.parametrize("values", [["02", "01"], ["01", "02"]])
async def test_s4_a_key_twice_in_a_delta_has_the_greatest_value(
    autojump_clock: MockClock, swarm: ReplicaSwarm, values: list[str]
) -> None:
    # Go takes the last or the greatest, by back-end; the greatest is what its fix chose, and what we take.
    scenario = SCENARIOS[f"S4-dup-key batching=false vals={values}"]
    delta = Delta(tuple(Element("/k", bytes.fromhex(value)) for value in values), (), 1)
    async with swarm.open("alice") as alice:
        await receive(swarm, build_node([], delta).block)
        assert alice.get("/k") == bytes.fromhex(scenario["value"])


async def test_s5_an_empty_value_that_survives_a_removal_is_there(
    autojump_clock: MockClock, swarm: ReplicaSwarm
) -> None:
    # Go takes it for no value at all (fixed on a branch of theirs); the formula says it is present.
    empty = put_block([], 1, "/k", b"")
    full = put_block([empty], 2, "/k", b"zz")
    gone = build_node([full.cid.multihash], Delta((), (Tombstone("/k", block_id(full.cid.multihash)),), 3)).block
    async with swarm.open("alice") as alice:
        await receive(swarm, full, empty)
        assert alice.get("/k") == bytes.fromhex(SCENARIOS["S5-empty-survivor"]["before"])
        await receive(swarm, gone)
        assert alice.get("/k") == b""


async def test_s6_the_messages_of_old_replicas(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    version_0, version_1 = SCENARIOS["S6-legacy-raw-cid-v0"], SCENARIOS["S6-legacy-raw-cid-v1"]
    block = put_block([], 1, "/k", b"leg")
    assert Cid.parse(version_0["heads"][0]["cid"]).multihash == block.cid.multihash
    swarm.give([block])
    async with swarm.open("alice") as alice:
        await hear(swarm, bytes.fromhex(version_1["sent"]))
        assert alice.get("/k") is None
        await hear(swarm, bytes.fromhex(version_0["sent"]))
        assert alice.get("/k") == b"leg"
        # Go keeps the version 0 CID as its head and then does not find it in links of version 1.
        assert heads_of(alice) == {str(block.cid)}


async def test_s7_unknown_fields(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    delta = Delta((Element("/k", b"u"),), (), 1).encode() + b"\x2a\x01x\xa2\x06\x01y"
    block = block_of((b"\x0a" + bytes([len(delta)]) + delta).hex())
    swarm.give([block])
    (message,) = encode_broadcasts([Head(block.cid.multihash)])
    async with swarm.open("alice") as alice:
        await hear(swarm, message + b"\x12\x01x")
        assert alice.get("/k") is None
        inside = message[2:] + b"\x7a\x03sig"
        await hear(swarm, b"\x0a" + bytes([len(inside)]) + inside)
        assert alice.get("/k") == b"u"


async def test_s8_a_named_dag_counts_and_is_not_built_upon(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    scenario = SCENARIOS["S8-dagname"]
    (block,) = recorded(scenario["blocks"]).values()
    swarm.give([block])
    async with swarm.open("alice") as alice:
        await hear(swarm, encode_broadcasts([Head(block.cid.multihash, "repoA")])[0])
        assert alice.get("/k") == b"d"
        await alice.commit([Put("/other", b"1")])
        # Only unnamed heads are ours. The name is read from the delta, so S8b (announced without it) ends alike.
        assert heads_of(alice) == set(scenario["newblock"])
        await trio.sleep(1)
        assert swarm.topics["alice"].published[-1].hex() == scenario["bc"][0]


async def test_s9_a_tombstone_without_its_slash_removes_nothing(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    block = put_block([], 1, "/k", b"v")
    wrong = Delta((), (Tombstone("/k", block_id(block.cid.multihash)[1:]),), 2)
    async with swarm.open("alice") as alice:
        await receive(swarm, block, build_node([block.cid.multihash], wrong).block)
        assert alice.get("/k") == b"v"
        assert SCENARIOS["S9-tomb-id-no-slash"]["value"] == "b'v'"
        assert alice.status().quarantined == 1


async def test_s10_a_key_out_of_form_is_not_mended(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    # Go cleans it and shows /k/x, by the same way by which `..` leaves its namespace.
    async with swarm.open("alice") as alice:
        await receive(swarm, put_block([], 1, "/k//x/", b"v"))
        assert alice.scan("/") == []
        assert alice.status().quarantined == 1


async def test_s11_keys_that_are_paths_of_each_other(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    async with swarm.open("alice") as alice:
        for key, value in (("/a", b"1"), ("/a/v", b"2"), ("/a/p", b"3"), ("/a/v/v", b"4")):
            await alice.commit([Put(key, value)])
        listed = SCENARIOS["S11-vp-segments"]["list"]["entries"]
        assert {key: value.hex() for key, value in alice.scan("/")} == listed
        await alice.commit([Delete("/a")])
        listed = SCENARIOS["S11b-after-delete-a"]["list"]["entries"]
        assert {key: value.hex() for key, value in alice.scan("/")} == listed


@pytest.mark.parametrize(
    ("name", "value", "heads", "quarantined"),
    [
        ("S12-plain", b"e", 1, 0),
        ("S12-bad-delta", None, 0, 1),
        ("S12-unknown-dagpb-field", None, 0, 1),
        ("S12-duplicate-data", None, 0, 1),
        ("S12-no-data-node", None, 1, 1),  # as in Go, and remarked upon
        ("S12-priority-0", None, 1, 1),  # Go lets it count
    ],
)
async def test_s12_malformed_nodes(
    autojump_clock: MockClock, swarm: ReplicaSwarm, name: str, value: bytes | None, heads: int, quarantined: int
) -> None:
    scenario = SCENARIOS[name]
    block = Block.verified(Cid.parse(scenario["cid"]), bytes.fromhex(scenario["node"]))
    async with swarm.open("alice") as alice:
        await receive(swarm, block)
        assert alice.get("/k") == value
        assert len(alice.heads()) == heads == scenario["heads"]
        status = alice.status()
        assert (status.quarantined, status.tips_wanted) == (quarantined, 0)
        assert (await alice.commit([Put("/after", b"1")]))[0] in alice.heads()


async def test_s12_a_raw_block_is_no_head(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    scenario = SCENARIOS["S12-raw-codec-cid"]
    cid = Cid.parse(scenario["cid"])
    async with swarm.open("alice") as alice:
        await hear(swarm, b"\x0a\x26\x0a\x24" + bytes(cid))
        assert (alice.heads(), alice.status().tips_wanted) == ((), 0)


async def test_s13_a_missing_grandchild_hides_nothing_that_is_newer(
    autojump_clock: MockClock, swarm: ReplicaSwarm
) -> None:
    scenario = SCENARIOS["S13-missing-grandchild"]
    first = put_block([], 1, "/k", b"1")
    second = put_block([first], 2, "/k", b"2")
    tip = put_block([second], 3, "/j", b"3")
    assert [str(block.cid) for block in (tip, second, first, first)] == scenario["wants"]
    async with swarm.open("alice") as alice:
        await receive(swarm, tip, second)
        assert [str(alice.get(key)) for key in ("/k", "/j")] == scenario["values_after_partial"]
        # Go has the tip as its head already; we only what is whole.
        assert (alice.heads(), alice.status().tips_wanted) == ((), 2)
        await trio.sleep(120)
        swarm.give([first])
        await trio.sleep(300)
        assert heads_of(alice) == go_heads(scenario["heads_after_repair"]["heads"])
        check_store(swarm, scenario["store"])


async def test_s13b_a_branch_whose_walk_was_interrupted_is_not_lost(
    autojump_clock: MockClock, swarm: ReplicaSwarm
) -> None:
    scenario = SCENARIOS["S13b-missing-with-existing-head (lost branch bug)"]
    own = put_block([], 1, "/own", b"1")
    first = put_block([], 1, "/k", b"1")
    second = put_block([first], 2, "/k", b"2")
    third = put_block([second], 3, "/j", b"3")
    tip = put_block([third], 4, "/j", b"4")
    async with swarm.open("alice") as alice:
        await receive(swarm, own)
        assert heads_of(alice) == go_heads(scenario["heads_after_partial"]["heads"])
        await receive(swarm, third, second)
        assert alice.get("/k") == b"2"
        await receive(swarm, first)
        await trio.sleep(60)
        # Here Go still has its own head alone, and takes its state for clean.
        assert heads_of(alice) == {str(own.cid), str(third.cid)}
        await receive(swarm, tip)
        assert heads_of(alice) == go_heads(scenario["heads_after_new_tip"]["heads"])
        assert alice.get("/j") == b"4"


async def test_s17_a_removal_that_comes_first_hides_what_it_removes(
    autojump_clock: MockClock, swarm: ReplicaSwarm
) -> None:
    blocks = recorded(SCENARIOS["S3-add-wins"]["blocks"])
    added = put_block([], 1, "/k", b"v1")
    removal = next(one for one in blocks.values() if block_id(added.cid.multihash).encode() in bytes(one.data))
    async with swarm.open("alice") as alice:
        await receive(swarm, removal)
        await receive(swarm, added)
        assert alice.get("/k") is None
        stored = swarm.databases["alice"].read("SELECT count(*) FROM crdt_elements").fetchone()
        assert stored == (1,)
        check_store(swarm, dict.fromkeys(SCENARIOS["S17-tomb-first"]["store"], ""))


async def test_s18_s19_links_with_and_without_names_and_sizes(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    scenario = SCENARIOS["S19-minimal-link"]
    (head,) = go_heads(scenario["heads"])
    block = Block.verified(Cid.parse(head), bytes.fromhex(scenario["node"]))
    async with swarm.open("alice") as alice:
        await receive(swarm, put_block([], 1, "/k", b"v1"), block)
        assert str(alice.get("/k")) == scenario["value"]
        assert heads_of(alice) == {head}


async def test_s20_a_lying_priority_neither_wins_nor_lifts_us(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    # Go follows it: its next write has height 2^63 + 1, or 0 after an overflow.
    evil, after = recorded(SCENARIOS["S20b-max-priority"]["blk"]).values()
    async with swarm.open("alice") as alice:
        await receive(swarm, evil, after)
        assert alice.get("/k") is None
        assert alice.status().quarantined == 2
        assert heads_of(alice) == {str(after.cid)}
        await alice.commit([Put("/k", b"good")])
        assert alice.get("/k") == b"good"
        assert alice.status().height == 3


async def test_s3x_a_node_without_content_joins_heads(autojump_clock: MockClock, swarm: ReplicaSwarm) -> None:
    scenario = SCENARIOS["S3x-merge-only-node"]
    heads = [put_block([], 1, "/a", b"1"), put_block([], 1, "/b", b"1")]
    async with swarm.open("alice") as alice:
        await receive(swarm, *heads)
        assert {str(cid)[-6:] for cid in alice.heads()} == {name for name, _ in scenario["before"]}
        await receive(swarm, block_of(scenario["merge_node"]))
        assert [[str(cid)[-6:], alice.status().height] for cid in alice.heads()] == scenario["after"]
        assert alice.scan("/") == [("/a", b"1"), ("/b", b"1")]


@pytest.mark.parametrize("name", ["identity", "blake2b"])
async def test_s3x_heads_with_other_hashes_are_not_followed(
    autojump_clock: MockClock, swarm: ReplicaSwarm, name: str
) -> None:
    # Go takes any hash function it can compute; nobody writes such nodes, and ids of tombstones assume sha2-256.
    data = build_node([], Delta((Element("/k", b"1"),), (), 1)).block.data
    if name == "identity":
        cid = Cid.parse(SCENARIOS["S3x-identity-cid-head"]["wants"][0])
    else:
        cid = Cid(1, DAG_PB, b"\xa0\xe4\x02\x20" + bytes(32))
        assert cid.hash_code == BLAKE2B_256
    swarm.give([Block(cid, data)])
    raw = bytes(cid)
    head = b"\x0a" + bytes([len(raw)]) + raw
    async with swarm.open("alice") as alice:
        await hear(swarm, b"\x0a" + bytes([len(head)]) + head)
        assert (alice.get("/k"), alice.heads(), alice.status().tips_wanted) == (None, (), 0)

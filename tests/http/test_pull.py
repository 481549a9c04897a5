"""Pulling through a node what only another one has: bytes leave for the client while blocks arrive."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.ipld.builder import V1_2025, build
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.registry import catalog
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import Answer, HttpClient, connect_http
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm

IMAGE = "application/vnd.oci.image.manifest.v1+json"
LAYER = os.urandom(8_000_001)
CONFIG = b"{}"
DIGEST = f"sha256:{hashlib.sha256(LAYER).hexdigest()}"
BLOB = f"/v2/team/app/blobs/{DIGEST}"


@dataclass
class Pair:
    """Two nodes that know each other's names, each with a client."""

    swarm: MemorySwarm
    names: MemoryNames
    at_alice: HttpClient
    at_bob: HttpClient
    alice: MemoryEndpoint
    bob: MemoryEndpoint


@asynccontextmanager
async def open_pair(directory: Path, give_up_s: float = 5.0) -> AsyncIterator[Pair]:
    swarm, names = MemorySwarm(), MemoryNames()
    alice, bob = swarm.endpoint("alice"), swarm.endpoint("bob")
    async with (
        open_front_door(directory, names=names, endpoint=alice) as door_of_alice,
        open_front_door(directory, names=names, endpoint=bob, give_up_s=give_up_s) as door_of_bob,
        connect_http(door_of_alice.places[0]) as at_alice,
        connect_http(door_of_bob.places[0]) as at_bob,
    ):
        await bob.connect(PeerInfo(alice.peer_id, tuple(alice.listen_addrs())))
        yield Pair(swarm, names, at_alice, at_bob, alice, bob)


async def push_image(client: HttpClient) -> bytes:
    described = []
    for data in (LAYER, CONFIG):
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        described.append({"mediaType": "application/octet-stream", "digest": digest, "size": len(data)})
        answer = await client.request("POST", f"/v2/team/app/blobs/uploads/?digest={digest}", body=data)
        assert answer.status == 201
    document = {"schemaVersion": 2, "mediaType": IMAGE, "config": described[1], "layers": described[:1]}
    manifest = json.dumps(document).encode()
    answer = await client.request("PUT", "/v2/team/app/manifests/1.0", {"Content-Type": IMAGE}, manifest)
    assert answer.status == 201
    return manifest


async def test_bob_serves_what_only_alice_has(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as pair:
        manifest = await push_image(pair.at_alice)
        head = await pair.at_bob.request("HEAD", BLOB)
        assert head.headers["content-length"] == str(len(LAYER))
        assert (await pair.at_bob.request("GET", "/v2/team/app/manifests/1.0")).body == manifest
        answer = await pair.at_bob.request("GET", BLOB)
        assert (answer.status, answer.body) == (200, LAYER)
        assert answer.headers["x-ipfs-roots"] == head.headers["x-ipfs-roots"]
        pair.swarm.kill(pair.alice)
        assert (await pair.at_bob.request("GET", BLOB)).body == LAYER


async def test_a_cold_pull_begins_in_the_middle(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as pair:
        await push_image(pair.at_alice)
        answer = await pair.at_bob.request("GET", BLOB, {"Range": "bytes=7000000-"})
        assert (answer.status, answer.body) == (206, LAYER[7_000_000:])


async def test_what_nobody_in_reach_has_is_unavailable_and_not_unknown(tmp_path: Path) -> None:
    async with open_pair(tmp_path, give_up_s=0.2) as pair:
        await push_image(pair.at_alice)
        pair.swarm.kill(pair.alice)
        answer = await pair.at_bob.request("GET", BLOB)
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        assert json.loads(answer.body)["errors"][0]["code"] == "UNAVAILABLE"


async def test_a_pull_whose_source_falls_silent_is_seen_as_truncated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_pair(tmp_path, give_up_s=0.5) as pair:
        await push_image(pair.at_alice)
        pair.swarm.delay(pair.alice, pair.bob, 0.01)
        await pair.at_bob.send(f"GET {BLOB} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        head = await pair.at_bob.receive_head()
        assert head.headers["content-length"] == str(len(LAYER))
        assert await pair.at_bob.receive_exactly(1000) == LAYER[:1000]
        pair.swarm.stall(pair.alice, pair.bob)
        rest = await pair.at_bob.receive_end()
        assert len(rest) < len(LAYER) - 1000
        assert LAYER[1000:].startswith(rest)
    assert "broken off" in caplog.text


async def test_a_blob_that_is_not_what_its_record_says_never_looks_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    other = bytes(len(LAYER))
    async with open_pair(tmp_path) as pair:
        digest = f"sha256:{hashlib.sha256(other).hexdigest()}"
        await pair.at_alice.request("POST", f"/v2/team/app/blobs/uploads/?digest={digest}", body=other)
        claimed = Digest.parse(DIGEST)
        record = catalog.LinkRecord(len(other), build(other, V1_2025).root)
        key = catalog.link_key(parse_repository("team/app"), claimed)
        await pair.names.commit([Put(key, record.encode(claimed))])
        await pair.at_bob.send(f"GET {BLOB} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert (await pair.at_bob.receive_head()).status == 200
        with pytest.raises(EOFError):
            await pair.at_bob.receive_exactly(len(other))
    assert "broken off" in caplog.text


async def test_several_clients_of_one_cold_blob_all_get_it(tmp_path: Path) -> None:
    async with open_pair(tmp_path) as pair:
        await push_image(pair.at_alice)
        answers: list[Answer] = []

        async def pull(place: str) -> None:
            async with connect_http(place) as client:
                answers.append(await client.request("GET", BLOB))

        host, port = pair.at_bob.stream.socket.getpeername()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(pull, f"{host}:{port}")
        assert [hashlib.sha256(answer.body).hexdigest() for answer in answers] == [DIGEST.removeprefix("sha256:")] * 8

"""Names end to end: immutable tags, past states, and nodes that lose the right to write."""

from __future__ import annotations

import json
import time

import httpx
import pytest

from ipfsreg.datastore import identity_of
from ipfsreg.testing.daemons import Cluster, Daemon, wait_until

pytestmark = pytest.mark.journey

INDEX = "application/vnd.oci.image.index.v1+json"


def push(node: Daemon, name: str, note: str) -> httpx.Response:
    """Push an index of nothing under *name* (repository:tag)."""
    repository, _, tag = name.partition(":")
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"note": note}}
    url = node.url(f"/v2/{repository}/manifests/{tag}")
    return httpx.put(url, json=document, headers={"Content-Type": INDEX}, timeout=30)


def digest_at(node: Daemon, name: str, heads: str = "") -> str | None:
    """What *name* is at a node that has *heads*; None where there is none."""
    repository, _, tag = name.partition(":")
    headers = {"Ipfsreg-Heads": heads} if heads else {}
    answer = httpx.get(node.url(f"/v2/{repository}/manifests/{tag}"), headers=headers, timeout=30)
    assert answer.status_code in (200, 404), answer.text
    return answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None


def test_an_immutable_tag_is_refused_by_the_nodes_that_have_the_rule(cluster: Cluster) -> None:
    alice = cluster.start("alice", IPFSREG_REGISTRY_IMMUTABLE_TAGS="team/app:v*")
    first = push(alice, "team/app:v1", "one")
    assert first.status_code == 201
    assert push(alice, "team/app:v1", "one").status_code == 201, "the same again is no move"
    for refused in (
        push(alice, "team/app:v1", "two"),
        httpx.delete(alice.url("/v2/team/app/manifests/v1")),
        httpx.delete(alice.url(f"/v2/team/app/manifests/{first.headers['Docker-Content-Digest']}")),
    ):
        assert (refused.status_code, refused.json()["errors"][0]["code"]) == (403, "DENIED")
    assert push(alice, "team/app:edge", "two").status_code == 201
    assert digest_at(alice, "team/app:v1") == first.headers["Docker-Content-Digest"]


def test_a_past_state_is_pulled_from_any_node(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    first = push(alice, "team/app:latest", "one").headers["Docker-Content-Digest"]
    second_of_first = int(time.time())
    wait_until(lambda: int(time.time()) > second_of_first, "the next second has begun")
    answer = push(bob, "team/app:latest", "two")
    heads, second = answer.headers["Ipfsreg-Heads"], answer.headers["Docker-Content-Digest"]

    def at(seconds: float) -> str:
        return time.strftime("team/app:latest--%Y-%m-%dT%H.%M.%SZ", time.gmtime(seconds))

    for node in (alice, bob):
        assert digest_at(node, "team/app:latest", heads) == second
        assert digest_at(node, at(second_of_first + 1e6), heads) == second
        assert digest_at(node, at(second_of_first + 1), heads) in (first, second)
        assert digest_at(node, at(second_of_first - 60), heads) is None
        assert digest_at(node, "team/app:latest--2001-01-01", heads) is None


def test_a_node_that_may_not_write_any_more_loses_what_it_wrote_and_writes(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice])
    pushed = push(alice, "team-a/app:1", "by alice")
    assert digest_at(bob, "team-a/app:1", pushed.headers["Ipfsreg-Heads"]) is not None
    bob.stop()
    beside = push(alice, "team-a/app:2", "while the right is taken away")
    bob_id = str(identity_of(bob.config).peer_id)
    bob.environment["IPFSREG_CRDT_WRITERS"] = json.dumps([{"repositories": "team-a/*", "peers": [bob_id]}])
    bob.start()
    bob.wait_peers(1)
    elsewhere = push(alice, "team-b/app:1", "no rule is for this")
    assert digest_at(bob, "team-b/app:1", elsewhere.headers["Ipfsreg-Heads"]) is not None
    for name, answer in (("team-a/app:1", pushed), ("team-a/app:2", beside)):
        assert digest_at(bob, name, answer.headers["Ipfsreg-Heads"]) is None
        assert digest_at(alice, name) is not None, "rules are each node's own"
    assert bob.status()["replica"]["withheld"] > 0
    assert push(bob, "team-a/app:1", "by bob").status_code == 201
    bob.stop()
    bob.environment.pop("IPFSREG_CRDT_WRITERS")
    bob.start()
    bob.wait_peers(1)
    assert digest_at(bob, "team-a/app:2") == beside.headers["Docker-Content-Digest"], "withheld is not lost"

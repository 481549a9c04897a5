"""Small stores that much is pulled through: they stay below their limits, and lose nothing, whatever happens."""

from __future__ import annotations

import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest

from ipfsreg.testing.daemons import Cluster, Daemon, wait_until
from ipfsreg.testing.pushing import Client, PushedImage

pytestmark = pytest.mark.journey

MIB = 1024 * 1024
CAP = 24 * MIB


def push_images(node: Daemon, count: int, repository: str = "team/app") -> list[PushedImage]:
    with Client(node.http) as client:
        return [client.push_image(repository, f"t{n}", [os.urandom(2 * MIB), os.urandom(MIB)]) for n in range(count)]


def pull(node: Daemon, image: PushedImage) -> int:
    with Client(node.http) as client:
        return client.pull_image(image.repository, image.tag)


def blob_bytes(node: Daemon) -> int:
    """Of the files that a store has on disk."""
    data = node.directory / "data"
    files = [path for part in ("blobs", "arriving", "uploads") for path in (data / part).rglob("*")]
    return sum(path.stat().st_blocks * 512 for path in files if path.is_file())


def test_a_small_store_takes_pulls_and_pushes_without_end_and_survives_kill_9_among_them(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice], IPFSREG_STORE_MAX_BYTES=str(CAP))
    images = push_images(alice, 16)
    own = push_images(bob, 2, "team/own")
    bob.wait_manifest("team/app", "t15")

    def pull_some(seed: int) -> int:
        dice = random.Random(seed)
        with suppress(httpx.HTTPError):
            return sum(pull(bob, dice.choice(images)) for _ in range(6))
        return 0

    for image in images:
        assert pull(bob, image) > 3 * MIB
        assert blob_bytes(bob) < CAP + MIB
    for _ in range(2):
        with ThreadPoolExecutor(4) as crowd:
            pulls = [crowd.submit(pull_some, seed) for seed in range(4)]
            time.sleep(random.uniform(0.2, 0.8))
            bob.kill()
            assert all(pulled.result() is not None for pulled in pulls)
        bob.start()
        bob.wait_peers(1)
        for image in own:
            assert pull(bob, image) > 3 * MIB
    with ThreadPoolExecutor(4) as crowd:
        assert sum(crowd.map(pull_some, range(4))) > 4 * 6 * 3 * MIB
    assert blob_bytes(bob) < CAP + MIB
    status = bob.status()["room"]
    assert status["limit"] == CAP
    assert status["used"] <= CAP
    assert status["evicted_blobs"] > 0
    bob.wait_line(r"blob sha256:\w+ of \d+ bytes went to make room; \S+ has it")
    # What was pushed to bob is his alone, and he still has all of it.
    alice.stop()
    for image in own:
        assert pull(bob, image) > 3 * MIB


def test_a_pull_in_progress_is_not_broken_by_what_makes_room(cluster: Cluster) -> None:
    alice = cluster.start("alice")
    bob = cluster.start("bob", join=[alice], IPFSREG_STORE_MAX_BYTES=str(CAP))
    with Client(alice.http) as client:
        slow = client.push_image("team/app", "slow", [os.urandom(16 * MIB)])
    images = push_images(alice, 8)
    bob.wait_manifest("team/app", "t7")
    pull(bob, slow)
    url = bob.url(f"/v2/team/app/blobs/{slow.layers[0]}")
    with httpx.stream("GET", url, timeout=60) as answer:
        pieces = answer.iter_raw(64 * 1024)
        received = len(next(pieces))
        for image in images:
            with suppress(AssertionError):  # there may be no room beside what is being read
                pull(bob, image)
        received += sum(map(len, pieces))
    assert received == 16 * MIB
    # Now that nobody reads it any more it makes room like everything else.
    for image in images:
        assert pull(bob, image) > 3 * MIB
    wait_until(lambda: blob_bytes(bob) < CAP, "what was read has gone")

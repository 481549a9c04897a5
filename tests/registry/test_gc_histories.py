"""Random histories on two nodes: pushes, mounts, deletions, pulls and collections without any grace, all at the same
time, with partitions and restarts in between. What was acknowledged and not deleted by a client is there at the end.
"""

from __future__ import annotations

import json
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import pytest
import trio

from ipfsreg.crdt.interface import Put
from ipfsreg.errors import (
    BlobUnknown,
    ContentUnavailable,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
)
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, parse_repository, parse_tag
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.registry.gc import GcSettings
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.content import pattern
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import IMAGE, INDEX, Site, image_of, index_of, open_site

REPOSITORIES = (parse_repository("team/one"), parse_repository("team/two"))
LAYERS = tuple(
    f"layer {number}".encode() + pattern((20, 3000, 70_000, 1024 * 1024 + 9)[min(number % 8, 3)])
    for number in range(48)
)
"""Few enough that they meet, so many that most are of no use to anybody at most times."""

SETTINGS = RegistrySettings(give_up_s=0.5, gc=GcSettings(interval_s=0, untagged="delete"))
TASKS, OPERATIONS, ROUNDS = 4, 14, 5


KINDS = {"temporary": 4, "delete": 5, "keep": 2, "index": 1, "again": 1, "pull": 1, "collect": 4}
"""How often clients and nodes do what."""


@dataclass
class History:
    """What clients did, and what they were told."""

    rng: Random
    kept: dict[tuple[RepositoryName, str], tuple[str, bytes, list[bytes]]] = field(default_factory=dict)
    """Acknowledged for good: repository and tag -> the node, the manifest, the manifests below it."""
    deletable: list[tuple[RepositoryName, Digest]] = field(default_factory=list)
    latest: list[tuple[RepositoryName, list[bytes]]] = field(default_factory=list)
    """Layers of images that are to be deleted, or were: those that a push and the collector meet at."""
    serial: int = 0
    refused: int = 0
    deleted: int = 0

    def label(self) -> str:
        """A tag that nobody had before."""
        self.serial += 1
        return f"v{self.serial}"


def labelled(manifest: bytes, label: str) -> bytes:
    document = json.loads(manifest)
    document["annotations"] = {"label": label}
    return json.dumps(document).encode()


async def push_content(site: Site, repository: RepositoryName, layers: list[bytes], rng: Random) -> None:
    """As clients do: ask, mount, and upload only what is not there."""
    for data in (b"{}", *layers):
        digest = Digest.of(data)
        with suppress(BlobUnknown):
            await site.registry.stat_blob(repository, digest)
            continue
        with suppress(BlobUnknown):
            await site.registry.mount_blob(repository, digest, rng.choice(REPOSITORIES))
            continue
        await site.push_blob(repository, data)


async def operate(name: str, site: Site, history: History) -> None:
    rng = history.rng
    repository = rng.choice(REPOSITORIES)
    kind = rng.choices(tuple(KINDS), tuple(KINDS.values()))[0]
    try:
        if kind in ("keep", "temporary", "index"):
            label, layers = history.label(), rng.sample(LAYERS, rng.randint(1, 3))
            if kind != "temporary" and history.latest:
                repository, layers = rng.choice(history.latest[-4:])
            manifest, below, media_type = labelled(image_of(*layers), label), [], IMAGE
            await push_content(site, repository, layers, rng)
            if kind == "index":
                below, media_type = [manifest], INDEX
                await site.push_manifest(repository, None, manifest)
                manifest = labelled(index_of(manifest), label)
            pushed = await site.push_manifest(repository, label, manifest, media_type)
            if kind == "temporary":
                history.deletable.append((repository, pushed.digest))
                history.latest.append((repository, layers))
            else:
                history.kept[repository, label] = (name, manifest, below)
        elif kind == "again" and history.kept:
            # The same manifest under one more tag, perhaps on the other node.
            (repository, _), (_, manifest, below) = rng.choice(list(history.kept.items()))
            label = history.label()
            await site.push_manifest(repository, label, manifest, INDEX if below else IMAGE)
            history.kept[repository, label] = (name, manifest, below)
        elif kind == "delete" and history.deletable:
            repository, digest = history.deletable.pop(rng.randrange(len(history.deletable)))
            await site.registry.delete_manifest(repository, digest)
            history.deleted += 1
        elif kind == "pull" and history.kept:
            (repository, label), _ = rng.choice(list(history.kept.items()))
            await site.registry.get_manifest(repository, parse_tag(label))
            await site.read_blob(repository, Digest.of(rng.choice(LAYERS)))
        elif kind == "collect":
            await site.registry.collector.collect(grace_s=0)
    except (BlobUnknown, ManifestBlobUnknown, ManifestUnknown, NameUnknown, ContentUnavailable):
        history.refused += 1


async def work(name: str, site: Site, history: History) -> None:
    for _ in range(OPERATIONS):
        for _ in range(history.rng.randint(0, 20)):
            await trio.lowlevel.checkpoint()
        await operate(name, site, history)


async def agree(one: Site, other: Site) -> None:
    """Bring both to the same names."""
    await one.endpoint.connect(PeerInfo(other.endpoint.peer_id))
    with trio.fail_after(60):
        while set(one.replica.heads()) != set(other.replica.heads()):
            await one.replica.commit([Put("/said/by/one", b"1")])
            await other.replica.commit([Put("/said/by/other", b"1")])
            await trio.sleep(0.1)


@pytest.mark.parametrize("seed", range(4))
async def test_no_acknowledged_push_is_lost(tmp_path: Path, seed: int) -> None:
    history = History(Random(seed))
    for number in range(ROUNDS):
        swarm = MemorySwarm()
        async with AsyncExitStack() as stack:
            alice = await stack.enter_async_context(open_site(swarm, tmp_path, "alice", settings=SETTINGS))
            bob = await stack.enter_async_context(open_site(swarm, tmp_path, "bob", "alice", settings=SETTINGS))
            await agree(alice, bob)
            if history.rng.random() < 0.6:
                swarm.cut(alice.endpoint, bob.endpoint)
            # In some rounds the nodes are stopped in the middle of everything.
            with trio.move_on_after(history.rng.choice((0.5, 30.0))):
                async with trio.open_nursery() as nursery:
                    for name, site in (("alice", alice), ("bob", bob)):
                        for _ in range(TASKS):
                            nursery.start_soon(work, name, site, history)
            if number == ROUNDS - 1:
                swarm.heal(alice.endpoint, bob.endpoint)
                await agree(alice, bob)
                for _ in range(4):
                    for site in (alice, bob):
                        await site.registry.collector.collect(grace_s=0)
                await agree(alice, bob)
                await check({"alice": alice, "bob": bob}, history)
    assert len(history.kept) > 10, "a history in which nothing happens tells nothing"


async def check(sites: dict[str, Site], history: History) -> None:
    for (repository, label), (acknowledged_by, manifest, below) in history.kept.items():
        needed = {Digest.of(data) for data in below}
        for image in below or [manifest]:
            document = json.loads(image)
            needed |= {Digest.parse(one["digest"]) for one in (document["config"], *document["layers"])}
        here = sites[acknowledged_by]
        for digest in needed:
            assert here.blobs.stat(digest) is not None, f"{acknowledged_by} lost {digest} of {repository}:{label}"
        for name, site in sites.items():
            content = await site.registry.get_manifest(repository, parse_tag(label))
            assert content.data == manifest, f"{repository}:{label} on {name}"
            for data in below:
                assert (await site.registry.get_manifest(repository, Digest.of(data))).data == data
            for digest in needed - {Digest.of(data) for data in below}:
                assert Digest.of(await site.read_blob(repository, digest)) == digest

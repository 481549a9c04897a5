"""The collector beside pushes, cut off before each durable step by a real kill -9."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository, parse_tag
from ipfsreg.registry.gc import GcSettings
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.content import pattern
from ipfsreg.testing.crash_points import every_crash
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import Site, image_of, open_site

APP = parse_repository("team/app")
OLD, NEW = pattern(70_000), b"small"
SETTINGS = RegistrySettings(give_up_s=1.0, gc=GcSettings(interval_s=0))


async def story(directory: Path, acknowledge: Callable[[str], None]) -> None:
    async with open_site(MemorySwarm(), directory, "alice", settings=SETTINGS) as alice:
        old = await alice.push_image(APP, "old", OLD)
        acknowledge("old")
        acknowledge("deleting old")
        await alice.registry.delete_manifest(APP, old.digest)
        acknowledge("deleted old")
        await alice.registry.collector.collect(grace_s=0)
        await alice.push_image(APP, "new", NEW)
        acknowledge("new")
        await alice.registry.collector.collect(grace_s=0)
        await alice.registry.collector.collect(grace_s=0)
        acknowledge("collected")


async def check(directory: Path, acknowledged: Sequence[str]) -> None:
    async with open_site(MemorySwarm(), directory, "alice", settings=SETTINGS) as alice:
        await alice.blobs._shelf.sweep()
        await holds(alice, acknowledged)
        for _ in range(3):
            await alice.registry.collector.collect(grace_s=0)
        await holds(alice, acknowledged)
        if "deleted old" in acknowledged and "new" in acknowledged:
            assert alice.blobs.stat(Digest.of(OLD)) is None, "what was begun is finished after the next start"


async def holds(alice: Site, acknowledged: Sequence[str]) -> None:
    for tag, layer in (("old", OLD), ("new", NEW)):
        if tag in acknowledged and f"deleting {tag}" not in acknowledged:
            content = await alice.registry.get_manifest(APP, parse_tag(tag))
            assert content.data == image_of(layer)
            assert await alice.read_blob(APP, Digest.of(layer)) == layer
    whole = {info.digest.hex for info in alice.blobs.blobs()}
    directory = alice.blobs._shelf.disk.directory
    assert {path.name for path in directory.glob("blobs/*/*/*")} <= whole, "a file without a row"


def test_a_kill_before_any_durable_step_of_a_collection_loses_nothing(tmp_path: Path) -> None:
    assert every_crash(story, check, tmp_path) > 15

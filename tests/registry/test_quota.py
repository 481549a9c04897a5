"""Quotas, on a real store with real names."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel
import trio.testing

from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.errors import QuotaExceeded
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.quota import Quota, Quotas
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import Site, image_of, open_site

APP = parse_repository("team/app")
OTHER = parse_repository("team/other")
ELSEWHERE = parse_repository("elsewhere")
LAYER = bytes(3000)
SETTINGS = RegistrySettings(quotas=(Quota("team/*", 5000),))


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=SETTINGS) as site:
        yield site


async def refused(site: Site, size: int) -> None:
    session = await site.registry.start_upload(APP)
    try:
        with pytest.raises(QuotaExceeded, match=r"team/\* may hold 5000 bytes"):
            await session.expect(size)
        assert session.offset == 0
    finally:
        site.registry.release_upload(session)


async def test_what_does_not_fit_is_refused_before_it_comes(alice: Site) -> None:
    await refused(alice, 5001)
    await alice.push_image(APP, "latest", LAYER)
    await refused(alice, 2000)
    await alice.push_image(ELSEWHERE, "latest", LAYER, bytes(100_000))


async def test_what_does_not_say_its_length_is_taken_until_it_does_not_fit(alice: Site) -> None:
    session = await alice.registry.start_upload(APP)
    await session.expect(None)
    await session.write(LAYER)
    with pytest.raises(QuotaExceeded):
        await session.write(LAYER)
    assert session.offset == len(LAYER)
    await session.finish(Digest.of(LAYER))
    alice.registry.release_upload(session)


async def test_uploads_at_the_same_time_count_together(alice: Site) -> None:
    one = await alice.registry.start_upload(APP)
    other = await alice.registry.start_upload(OTHER)
    await one.expect(3000)
    with pytest.raises(QuotaExceeded):
        await other.expect(3000)
    await one.cancel()
    alice.registry.release_upload(one)
    await other.expect(3000)
    alice.registry.release_upload(other)


async def test_a_blob_that_waits_for_its_manifest_counts(alice: Site) -> None:
    await alice.push_blob(APP, LAYER)
    await refused(alice, 2001)


async def test_a_blob_counts_once_in_all_repositories_of_a_quota(alice: Site) -> None:
    await alice.push_image(APP, "latest", LAYER)
    await alice.registry.mount_blob(OTHER, Digest.of(LAYER), APP)
    await alice.push_blob(OTHER, b"{}")
    await alice.push_manifest(OTHER, "latest", image_of(LAYER))
    with pytest.raises(QuotaExceeded):
        await alice.push_blob(OTHER, bytes(2500))


async def test_a_mount_from_elsewhere_counts(alice: Site) -> None:
    await alice.push_image(ELSEWHERE, "latest", bytes(6000))
    with pytest.raises(QuotaExceeded):
        await alice.registry.mount_blob(APP, Digest.of(bytes(6000)), ELSEWHERE)


async def test_deleting_and_collecting_gives_room(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", LAYER)
    await refused(alice, 3000)
    await alice.registry.delete_manifest(APP, pushed.digest)
    for _ in range(2):
        await alice.registry.collector.collect(grace_s=0)
    await alice.push_image(OTHER, "latest", bytes(3001))


async def test_what_was_named_before_the_start_counts(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=SETTINGS) as alice:
        await alice.push_image(APP, "latest", LAYER)
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=SETTINGS) as alice:
        with trio.fail_after(10):
            await refused(alice, 3000)


async def test_what_waited_for_its_manifest_before_the_start_counts(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=SETTINGS) as alice:
        await alice.push_blob(APP, LAYER)
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=SETTINGS) as alice:
        with trio.fail_after(10):
            await refused(alice, 2001)


async def test_a_blob_that_waits_in_two_repositories_counts_once_and_until_neither_has_it(alice: Site) -> None:
    digest = await alice.push_blob(APP, LAYER)
    await alice.registry.mount_blob(OTHER, digest, APP)
    await alice.registry.mount_blob(OTHER, digest, APP)
    await alice.registry.delete_blob(APP, digest)
    await refused(alice, 2001)
    await alice.registry.delete_blob(OTHER, digest)
    await alice.push_blob(APP, bytes(5000))


async def test_asking_reads_nothing_however_many_blobs_wait(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await alice.push_blob(APP, LAYER)

    def read(sql: str, parameters: object = ()) -> None:
        raise AssertionError(sql)

    with monkeypatch.context() as patch:
        patch.setattr(alice.database, "read", read)
        alice.registry._quotas.check(APP, 2000)
        with pytest.raises(QuotaExceeded):
            alice.registry._quotas.check(APP, 2001)


async def test_names_that_disagree_on_a_size_leave_nothing_behind(alice: Site) -> None:
    digest = Digest.of(LAYER)
    root = (await alice.blobs.put_whole(LAYER)).root
    keys = {catalog.link_key(APP, digest): 10, catalog.link_key(OTHER, digest): 3000}
    for key, size in keys.items():
        await alice.replica.commit([Put(key, LinkRecord(size, root).encode(digest))])
    for key in keys:
        await alice.replica.commit([Delete(key)])
    with trio.fail_after(10):
        while str(digest) in alice.registry._quotas._usages[0].names:
            await trio.lowlevel.checkpoint()
    assert alice.registry._quotas._usages[0].total == 0


async def test_what_was_deleted_while_nobody_followed_does_not_count_any_more(alice: Site) -> None:
    """As after a failure of the store: the same quotas, followed anew."""
    quotas = Quotas(alice.replica, alice.registry._links, SETTINGS.quotas)
    async with trio.open_nursery() as nursery:
        await alice.push_image(APP, "latest", LAYER)
        nursery.start_soon(quotas.run)
        await quotas.wait_ready()
        with pytest.raises(QuotaExceeded):
            quotas.check(APP, 2001)
        nursery.cancel_scope.cancel()
    await alice.replica.commit([Delete(key) for key, _ in alice.replica.scan(f"/r/{APP}/")])
    await alice.push_blob(OTHER, bytes(1000))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(quotas.run)
        await trio.testing.wait_all_tasks_blocked()
        await quotas.wait_ready()
        quotas.check(APP, 4000)
        with pytest.raises(QuotaExceeded):
            quotas.check(APP, 4001)
        nursery.cancel_scope.cancel()

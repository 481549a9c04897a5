"""Pending links on a real database: in pages, counted, and not without end."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from ipfsreg.errors import StoreFull, TooManyRequests
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, parse_repository
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import Site, image_of, open_site

APP = parse_repository("team/app")
OTHER = parse_repository("team-other")
SUB = parse_repository("team/app/sub")


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(MemorySwarm(), tmp_path, "alice") as site:
        yield site


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda number: monkeypatch.setattr("ipfsreg.registry.links.MAX_PENDING", number)


async def test_pages_hold_each_pending_link_once_in_order(alice: Site) -> None:
    links = alice.registry._links
    for repository in (APP, OTHER, SUB):
        for data in (b"1", b"22", b"333"):
            await alice.push_blob(repository, data)
    found = []
    last = None
    while page := links.pending_page(last, 2):
        assert len(page) <= 2
        last = page[-1]
        found += page
    pushed = {
        (repository, Digest.of(data), len(data)) for repository in (APP, OTHER, SUB) for data in (b"1", b"22", b"333")
    }
    assert [(one.repository, str(one.digest)) for one in found] == sorted(
        (name, str(digest)) for name, digest, _ in pushed
    )
    assert {(one.repository, one.digest, one.size) for one in found} == pushed


async def test_when_too_many_blobs_wait_for_their_manifests_no_more_are_taken(
    alice: Site, at_most: Callable[[int], None]
) -> None:
    layer = await alice.push_blob(APP, b"layer")
    await alice.push_blob(APP, b"{}")
    at_most(2)
    with pytest.raises(TooManyRequests, match="2 blobs wait here for their manifests"):
        await alice.registry.start_upload(APP)
    with pytest.raises(TooManyRequests):
        await alice.registry.mount_blob(OTHER, layer, APP)
    await alice.registry.mount_blob(APP, layer, APP)  # waits already
    await alice.push_manifest(APP, "latest", image_of(b"layer"))
    await alice.registry.mount_blob(OTHER, layer, APP)
    await alice.push_blob(OTHER, b"another")
    with pytest.raises(TooManyRequests):
        await alice.push_blob(OTHER, b"one more")
    await alice.registry.delete_blob(OTHER, layer)
    await alice.push_blob(OTHER, b"one more")


async def test_an_upload_that_others_have_overtaken_is_refused_at_its_end(
    alice: Site, at_most: Callable[[int], None]
) -> None:
    at_most(1)
    session = await alice.registry.start_upload(APP)
    await session.write(b"layer")
    await alice.push_blob(APP, b"{}")
    with pytest.raises(TooManyRequests):
        await session.finish(Digest.of(b"layer"))
    alice.registry.release_upload(session)


async def test_what_waits_is_counted_after_a_restart_and_goes_with_the_collector(
    tmp_path: Path, at_most: Callable[[int], None]
) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice") as alice:
        await alice.push_image(OTHER, "latest", b"so that there are names")
        await alice.push_blob(APP, b"layer")
    at_most(1)
    async with open_site(MemorySwarm(), tmp_path, "alice") as alice:
        with pytest.raises(TooManyRequests):
            await alice.registry.start_upload(APP)
        for _ in range(2):
            await alice.registry.collector.collect(grace_s=0)
        await alice.push_blob(APP, b"another")


async def test_of_those_that_come_at_the_same_time_no_more_get_in_than_may(
    alice: Site, at_most: Callable[[int], None]
) -> None:
    at_most(3)
    links, digest = alice.registry._links, await alice.push_blob(APP, b"layer")
    link = links.pending(APP, digest)
    assert link is not None
    outcomes: list[str] = []

    async def add(repository: RepositoryName) -> None:
        try:
            await links.add_pending(repository, digest, link)
            outcomes.append("added")
        except TooManyRequests:
            outcomes.append("refused")

    async with trio.open_nursery() as nursery:
        for number in range(6):
            nursery.start_soon(add, parse_repository(f"team/{number}"))
    assert sorted(outcomes) == ["added"] * 2 + ["refused"] * 4
    assert links._count == len(links.pending_page(None, 100)) == 3


async def test_what_is_counted_is_what_is_there_after_failures_and_cancellations(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    links, digest = alice.registry._links, await alice.push_blob(APP, b"layer")
    link = links.pending(APP, digest)
    assert link is not None
    with trio.CancelScope() as scope:
        scope.cancel()
        await links.add_pending(OTHER, digest, link)
    await links.add_pending(OTHER, digest, LinkRecord(link.size, link.root))
    await links.drop_pending(SUB, [digest])
    assert links._count == len(links.pending_page(None, 100)) == 2

    async def write(work: object) -> None:
        raise StoreFull("no room left for the database")

    with monkeypatch.context() as patch:
        patch.setattr(alice.database, "write", write)
        with pytest.raises(StoreFull):
            await links.add_pending(SUB, digest, link)
        with pytest.raises(StoreFull):
            await links.drop_pending(OTHER, [digest])
    assert links._count == len(links.pending_page(None, 100)) == 2

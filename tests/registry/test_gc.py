"""Garbage collection on real disks with real names, one node and two."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.errors import BlobUnknown, ContentUnavailable, ManifestBlobUnknown, ManifestUnknown
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import Manifest
from ipfsreg.oci.names import RepositoryName, parse_repository, parse_tag
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.registry import catalog
from ipfsreg.registry.gc import GcSettings, Report, _Look
from ipfsreg.registry.reliance import Relied
from ipfsreg.registry.service import RegistrySettings
from ipfsreg.testing.content import pattern
from ipfsreg.testing.network import MemorySwarm
from ipfsreg.testing.sites import INDEX, Site, image_of, index_of, open_site

APP = parse_repository("team/app")
OTHER = parse_repository("team/other")
LATEST = parse_tag("latest")
BIG = pattern(1024 * 1024 + 4)


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(MemorySwarm(), tmp_path, "alice") as site:
        yield site


def deleting_untagged() -> RegistrySettings:
    return RegistrySettings(give_up_s=5.0, gc=GcSettings(untagged="delete"))


async def collect_all(site: Site) -> list[Report]:
    """Look without a grace until nothing is left to find."""
    reports = [await site.registry.collector.collect(grace_s=0)]
    while reports[-1].found:
        reports.append(await site.registry.collector.collect(grace_s=0))
        assert len(reports) < 12
    return reports


def links_of(site: Site, repository: str = APP) -> set[str]:
    return {key.rpartition("/")[2] for key, _ in site.replica.scan(f"/r/{repository}/_l/")}


async def test_what_a_tag_reaches_stays(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", b"small", BIG)
    assert sum(report.found for report in await collect_all(alice)) == 0
    assert await alice.read_blob(APP, Digest.of(BIG)) == BIG
    assert (await alice.registry.get_manifest(APP, LATEST)).stat.digest == pushed.digest


async def test_a_deleted_image_goes_names_first_and_bytes_after(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", b"small", BIG)
    await alice.registry.delete_manifest(APP, pushed.digest)
    assert len(links_of(alice)) == 3
    await collect_all(alice)
    assert links_of(alice) == set()
    assert list(alice.blobs.blobs()) == []
    with pytest.raises(BlobUnknown):
        await alice.read_blob(APP, Digest.of(BIG))


async def test_what_two_repositories_have_stays_until_neither_does(alice: Site) -> None:
    first = await alice.push_image(APP, "latest", b"shared", b"of app")
    second = await alice.push_image(OTHER, "latest", b"shared")
    await alice.registry.delete_manifest(APP, first.digest)
    await collect_all(alice)
    assert links_of(alice) == set()
    assert await alice.read_blob(OTHER, Digest.of(b"shared")) == b"shared"
    assert alice.blobs.stat(Digest.of(b"of app")) is None
    await alice.registry.delete_manifest(OTHER, second.digest)
    await collect_all(alice)
    assert list(alice.blobs.blobs()) == []


async def test_what_two_manifests_share_stays_until_the_last_is_deleted(alice: Site) -> None:
    await alice.push_image(APP, "one", b"base", b"1")
    second = await alice.push_image(APP, "two", b"base", b"2")
    await alice.registry.delete_manifest(APP, second.digest)
    await collect_all(alice)
    assert links_of(alice) == {str(Digest.of(data)) for data in (b"{}", b"base", b"1")}
    assert await alice.read_blob(APP, Digest.of(b"base")) == b"base"


async def test_a_dry_run_tells_and_leaves_no_trace(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", BIG)
    await alice.registry.delete_manifest(APP, pushed.digest)
    before = alice.replica.heads()
    for _ in range(3):
        report = await alice.registry.collector.collect(dry_run=True, grace_s=0)
        assert {(item.what, item.digest) for item in report.items} == {
            ("link", Digest.of(BIG)),
            ("link", Digest.of(b"{}")),
            ("blob", pushed.digest),
        }
        assert (report.deleted_blobs, report.deleted_names) == (0, 0), "nothing has been seen twice"
        assert {item.size for item in report.items if item.digest == Digest.of(BIG)} == {len(BIG)}
        assert {item.why for item in report.items} == {"no manifest names it", "no repository refers to it"}
    assert alice.replica.heads() == before
    await alice.registry.collector.collect(grace_s=0)
    report = await alice.registry.collector.collect(dry_run=True, grace_s=0)
    assert (report.deleted_blobs, report.deleted_names) == (1, 2)
    assert alice.blobs.stat(pushed.digest) is not None
    assert len(links_of(alice)) == 2


async def let_it_run(site: Site, seconds: float) -> None:
    """As if the node had run so long."""
    await site.database.write(lambda db: db.execute("UPDATE gc_clock SET watched = watched + ?", (seconds,)).rowcount)


async def test_nothing_goes_before_its_grace_is_over(alice: Site) -> None:
    await let_it_run(alice, 100_000)
    pushed = await alice.push_image(APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, pushed.digest)
    for _ in range(4):
        report = await alice.registry.collector.collect()
        assert (report.deleted_blobs, report.deleted_names) == (0, 0)
        assert report.waiting == report.found == 3
        assert {item.what: round(item.left_s / 100) for item in report.items} == {"link": 864, "blob": 36}


async def test_the_grace_counts_only_while_the_node_runs(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice") as alice:
        await let_it_run(alice, 100_000)
        pushed = await alice.push_image(APP, "latest", b"layer")
        await alice.registry.delete_manifest(APP, pushed.digest)
        await alice.registry.collector.collect()
        await let_it_run(alice, 3540)
    async with open_site(MemorySwarm(), tmp_path, "alice") as alice:
        assert (await alice.registry.collector.collect()).deleted_blobs == 0
        await let_it_run(alice, 60)
        report = await alice.registry.collector.collect()
        assert report.deleted_blobs == 1, "the manifest"
        assert report.deleted_names == 0, "their grace is a day"


async def test_a_new_database_keeps_all_blobs_for_the_longer_grace(alice: Site) -> None:
    """It may stand in for a damaged one, while the names are with nodes that cannot be reached."""
    pushed = await alice.push_image(APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, pushed.digest)
    await alice.registry.collector.collect()
    await let_it_run(alice, 86_000)
    assert (await alice.registry.collector.collect()).deleted_blobs == 0
    await let_it_run(alice, 500)
    assert (await alice.registry.collector.collect()).deleted_blobs == 1


async def test_blobs_without_any_name_in_the_store_are_left_alone(alice: Site) -> None:
    await alice.push_blob(APP, b"layer")
    for _ in range(3):
        report = await alice.registry.collector.collect(grace_s=0)
        assert report.skipped == "there are no names at all"
    assert len(list(alice.blobs.blobs())) == 1


# ------------------------------------------------------------------------------ pushes that meet the collector


async def test_a_blob_that_is_waiting_for_its_manifest_stays_for_the_grace(alice: Site) -> None:
    await alice.push_blob(APP, b"{}")
    digest = await alice.push_blob(APP, b"layer")
    for _ in range(3):
        await alice.registry.collector.collect()
    await alice.push_manifest(APP, "latest", image_of(b"layer"))
    assert await alice.read_blob(APP, digest) == b"layer"


async def test_a_blob_without_a_manifest_goes_after_the_grace(alice: Site) -> None:
    await alice.push_image(OTHER, "latest", b"another")
    digest = await alice.push_blob(APP, b"layer")
    await collect_all(alice)
    assert alice.blobs.stat(digest) is None
    with pytest.raises(BlobUnknown):
        await alice.registry.stat_blob(APP, digest)


async def test_who_was_told_that_a_blob_is_here_may_name_it_although_its_manifest_goes(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", BIG)
    await alice.registry.delete_manifest(APP, pushed.digest)
    await alice.registry.collector.collect(grace_s=0)
    await alice.registry.stat_blob(APP, Digest.of(BIG))  # the client's HEAD
    await alice.registry.stat_blob(APP, Digest.of(b"{}"))
    for _ in range(3):
        await alice.registry.collector.collect(grace_s=0)
    await alice.push_manifest(APP, "again", image_of(BIG))
    await collect_all(alice)
    assert await alice.read_blob(APP, Digest.of(BIG)) == BIG


async def test_a_mounted_blob_stays_although_its_source_is_deleted(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", BIG)
    for data in (BIG, b"{}"):
        await alice.registry.mount_blob(OTHER, Digest.of(data), APP)
    await alice.registry.delete_manifest(APP, pushed.digest)
    for _ in range(3):
        await alice.registry.collector.collect()
    assert alice.blobs.stat(Digest.of(BIG)) is not None
    await alice.push_manifest(OTHER, "latest", image_of(BIG))
    await collect_all(alice)
    assert await alice.read_blob(OTHER, Digest.of(BIG)) == BIG


async def test_a_push_between_two_looks_begins_the_grace_anew(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, pushed.digest)
    await alice.registry.collector.collect(grace_s=0)
    again = await alice.push_image(APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, again.digest)
    report = await alice.registry.collector.collect(grace_s=0)
    assert report.deleted_names == 0, "these are other writes than those seen before"
    assert len(links_of(alice)) == 2


async def test_a_manifest_pushed_again_while_its_bytes_are_being_collected_has_them(alice: Site) -> None:
    """The bytes of a manifest come before its name: in between nothing speaks of them."""
    pushed = await alice.push_image(APP, "latest", b"layer")
    await alice.push_image(APP, "another", b"layer", b"more")  # so that the links stay
    data = image_of(b"layer")
    for attempt in range(20):
        await alice.registry.delete_manifest(APP, pushed.digest)
        await alice.registry.collector.collect(grace_s=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: alice.registry.collector.collect(grace_s=0))
            for _ in range(attempt):
                await trio.lowlevel.checkpoint()
            await alice.push_manifest(APP, "latest", data)
        assert (await alice.registry.get_manifest(APP, pushed.digest)).data == data
        assert await alice.blobs.read_whole(pushed.digest, 1 << 20) == data


async def test_a_blob_pushed_again_while_it_is_being_collected_is_here(alice: Site) -> None:
    digest = Digest.of(BIG)
    for attempt in range(12):
        await alice.blobs.put_whole(BIG, digest)  # nothing speaks of it
        await alice.registry.collector.collect(grace_s=0)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: alice.registry.collector.collect(grace_s=0))
            for _ in range(3 * attempt):
                await trio.lowlevel.checkpoint()
            await alice.push_blob(APP, BIG)
        assert await alice.read_blob(APP, digest) == BIG
        await alice.registry.delete_blob(APP, digest)


async def test_what_a_client_deletes_is_not_served_because_somebody_asked_for_it_before(alice: Site) -> None:
    digest = await alice.push_blob(APP, b"layer")
    await alice.registry.stat_blob(APP, digest)
    await alice.registry.delete_blob(APP, digest)
    with pytest.raises(BlobUnknown):
        await alice.registry.open_blob(APP, digest)
    await alice.push_blob(APP, b"{}")
    with pytest.raises(ManifestBlobUnknown):
        await alice.push_manifest(APP, "latest", image_of(b"layer"))


# ------------------------------------------------------------------------------------------ untagged manifests


async def test_untagged_manifests_are_kept_unless_told_otherwise(alice: Site) -> None:
    pushed = await alice.push_image(APP, None, b"layer")
    assert sum(report.found for report in await collect_all(alice)) == 0
    assert (await alice.registry.get_manifest(APP, pushed.digest)).stat.digest == pushed.digest


async def test_where_untagged_manifests_go_children_and_referrers_of_tagged_ones_stay(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=deleting_untagged()) as alice:
        children = [image_of(b"amd64"), image_of(b"arm64")]
        await alice.push_image(APP, None, b"amd64")
        await alice.push_image(APP, None, b"arm64")
        index = await alice.push_manifest(APP, "latest", index_of(*children), INDEX)
        signature = await alice.push_image(APP, None, b"signature", subject=index_of(*children))
        of_child = await alice.push_image(APP, None, b"sbom", subject=children[0])
        on_signature = await alice.push_image(
            APP, None, b"countersigned", subject=image_of(b"sbom", subject=children[0])
        )
        stray = await alice.push_image(APP, None, b"stray")
        of_stray = await alice.push_image(APP, None, b"of stray", subject=image_of(b"stray"))
        await collect_all(alice)
        kept = {index.digest, signature.digest, of_child.digest, on_signature.digest, *map(Digest.of, children)}
        assert {key.rpartition("/")[2] for key, _ in alice.replica.scan(f"/r/{APP}/_m/")} == set(map(str, kept))
        assert len(await alice.registry.referrers(APP, index.digest)) == 1
        assert await alice.registry.referrers(APP, stray.digest) == []
        for layer in (b"amd64", b"arm64", b"signature", b"sbom", b"countersigned"):
            assert await alice.read_blob(APP, Digest.of(layer)) == layer
        for gone in (Digest.of(b"stray"), Digest.of(b"of stray"), stray.digest, of_stray.digest):
            assert alice.blobs.stat(gone) is None


async def test_an_image_that_lost_its_tag_goes_with_its_referrers(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=deleting_untagged()) as alice:
        await alice.push_image(APP, "latest", b"one")
        await alice.push_image(APP, None, b"signature", subject=image_of(b"one"))
        await alice.push_image(APP, "latest", b"two")
        await collect_all(alice)
        assert links_of(alice) == {str(Digest.of(data)) for data in (b"{}", b"two")}
        assert len(list(alice.blobs.blobs())) == 3
        assert alice.replica.scan(f"/r/{APP}/_s/") == []


async def test_a_repository_with_a_manifest_that_is_not_here_keeps_its_names(alice: Site) -> None:
    pushed = await alice.push_image(APP, "latest", b"layer")
    gone = await alice.push_image(APP, "other", b"other")
    await alice.registry.delete_manifest(APP, gone.digest)
    await alice.blobs.delete(pushed.digest)
    for _ in range(3):
        report = await alice.registry.collector.collect(grace_s=0)
        assert [repository for repository, _ in report.kept_repositories] == [APP]
    assert len(links_of(alice)) == 3


# ------------------------------------------------------------------------------------------------- two nodes


@asynccontextmanager
async def open_two(
    directory: Path, settings: RegistrySettings | None = None
) -> AsyncIterator[tuple[Site, Site, MemorySwarm]]:
    swarm = MemorySwarm()
    async with (
        open_site(swarm, directory, "alice", settings=settings) as alice,
        open_site(swarm, directory, "bob", "alice", settings=settings) as bob,
    ):
        yield alice, bob, swarm


async def test_one_node_cleans_the_names_and_each_its_own_bytes(tmp_path: Path) -> None:
    async with open_two(tmp_path) as (alice, bob, _):
        pushed = await alice.push_image(APP, "latest", BIG)
        await bob.wait_like(alice)
        assert await bob.read_blob(APP, Digest.of(BIG)) == BIG
        await bob.registry.delete_manifest(APP, pushed.digest)
        await alice.wait_like(bob)
        await collect_all(alice)
        await bob.wait_like(alice)
        assert links_of(bob) == set()
        assert list(alice.blobs.blobs()) == []
        assert bob.blobs.stat(Digest.of(BIG)) is not None
        heads = bob.replica.heads()
        await collect_all(bob)
        assert list(bob.blobs.blobs()) == []
        assert bob.replica.heads() == heads, "nothing was left to delete of the names"


async def test_a_push_elsewhere_beside_the_collection_of_what_it_relies_on_loses_nothing(tmp_path: Path) -> None:
    """Both begin from the same names and do not hear of each other until both are done."""
    async with open_two(tmp_path) as (alice, bob, swarm):
        pushed = await alice.push_image(APP, "latest", BIG)
        await alice.registry.delete_manifest(APP, pushed.digest)
        await bob.wait_like(alice)
        for data in (BIG, b"{}"):
            assert await bob.read_blob(APP, Digest.of(data)) == data
        swarm.cut(alice.endpoint, bob.endpoint)
        await bob.push_manifest(APP, "again", image_of(BIG))
        await collect_all(alice)
        assert links_of(alice) == set()
        assert list(alice.blobs.blobs()) == []
        swarm.heal(alice.endpoint, bob.endpoint)
        await meet(bob, alice)
        for site in (alice, bob):
            assert (await site.registry.get_manifest(APP, parse_tag("again"))).data == image_of(BIG)
            assert await site.read_blob(APP, Digest.of(BIG)) == BIG
        await collect_all(alice)
        await collect_all(bob)
        assert await alice.read_blob(APP, Digest.of(BIG)) == BIG


async def meet(one: Site, other: Site) -> None:
    """Bring both to the same names."""
    await one.endpoint.connect(PeerInfo(other.endpoint.peer_id))
    with trio.fail_after(30):
        while set(one.replica.heads()) != set(other.replica.heads()):
            # Announcements were lost while they were apart. New ones make each ask for what is below.
            await one.replica.commit([Put("/said/by/one", b"1")])
            await other.replica.commit([Put("/said/by/other", b"1")])
            await trio.sleep(0.1)


async def test_a_push_that_skips_an_upload_is_answered_when_its_bytes_are_here(tmp_path: Path) -> None:
    async with open_two(tmp_path) as (alice, bob, _):
        await alice.push_image(APP, "one", BIG)
        await bob.wait_like(alice)
        assert bob.blobs.stat(Digest.of(BIG)) is None
        await bob.push_manifest(APP, "two", image_of(BIG))
        assert bob.blobs.stat(Digest.of(BIG)) is not None
        assert bob.blobs.stat(Digest.of(b"{}")) is not None


async def test_an_index_brings_the_content_of_its_manifests(tmp_path: Path) -> None:
    async with open_two(tmp_path) as (alice, bob, _):
        await alice.push_image(APP, None, BIG)
        await bob.wait_like(alice)
        await bob.push_manifest(APP, "all", index_of(image_of(BIG)), INDEX)
        assert bob.blobs.stat(Digest.of(BIG)) is not None


async def test_a_push_that_relies_on_what_nobody_gives_is_refused_and_the_client_is_asked_for_it(
    tmp_path: Path,
) -> None:
    swarm = MemorySwarm()
    settings = RegistrySettings(give_up_s=0.2)
    async with open_site(swarm, tmp_path, "bob", settings=settings) as bob:
        async with open_site(swarm, tmp_path, "alice", "bob") as alice:
            await alice.push_image(APP, "one", BIG)
            await bob.wait_like(alice)
        await bob.registry.stat_blob(APP, Digest.of(BIG))
        with pytest.raises(ContentUnavailable, match="push it to this node"):
            await bob.push_manifest(APP, "two", image_of(BIG))
        with pytest.raises(ManifestUnknown):
            bob.registry._manifests.resolve(APP, parse_tag("two"))
        with pytest.raises(BlobUnknown):
            await bob.registry.stat_blob(APP, Digest.of(BIG))
        await bob.push_image(APP, "two", BIG)
        assert await bob.read_blob(APP, Digest.of(BIG)) == BIG


async def test_a_push_may_rest_on_other_nodes_where_that_is_wanted(tmp_path: Path) -> None:
    async with open_two(tmp_path, RegistrySettings(give_up_s=5.0, fetch_pushed=False)) as (alice, bob, _):
        await alice.push_image(APP, "one", BIG)
        await bob.wait_like(alice)
        await bob.push_manifest(APP, "two", image_of(BIG))
        assert bob.blobs.stat(Digest.of(BIG)) is None


async def test_nothing_is_collected_while_names_are_missing(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice") as alice:
        pushed = await alice.push_image(APP, "latest", b"layer")
        await alice.registry.delete_manifest(APP, pushed.digest)
        await alice.registry.collector.collect(grace_s=0)
        alice.registry.collector._has_caught_up = lambda: False
        report = await alice.registry.collector.collect(grace_s=0)
        assert report.skipped
        assert len(links_of(alice)) == 2


# --------------------------------------------------------------------------------------------- the transaction


async def test_a_blob_is_deleted_only_in_a_transaction_in_which_no_name_speaks_of_it(alice: Site) -> None:
    """The last word is the database's, so names that were written since the look count."""
    pushed = await alice.push_image(APP, "latest", b"layer")
    digest = Digest.of(b"layer")
    needed: list[tuple[bool, bool]] = []

    def asked(collector: Callable[[sqlite3.Connection], bool]) -> Callable[[sqlite3.Connection | None], bool]:
        def is_needed(db: sqlite3.Connection | None) -> bool:
            assert db is not None
            db.execute("SAVEPOINT look")
            db.execute("DELETE FROM crdt_names WHERE key = ?", (catalog.link_key(APP, digest),))
            without = collector(db)
            db.execute("ROLLBACK TO look")
            needed.append((without, collector(db)))
            return True

        return is_needed

    look = _Look(alice.registry.collector, Report(True), 0.0, 0.0)
    assert not await alice.blobs.collect(digest, asked(lambda db: look.is_needed(digest, db)))
    assert needed == [(False, True)]
    assert alice.blobs.stat(digest) is not None
    assert alice.blobs.stat(pushed.digest) is not None


async def test_a_push_between_a_look_and_its_deletions_keeps_what_it_relies_on(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pushed = await alice.push_image(APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, pushed.digest)
    await alice.registry.collector.collect(grace_s=0)
    commit = alice.replica.commit
    met: list[object] = []

    async def push_first(changes: Sequence[Change]) -> tuple[Cid, ...]:
        if not met and all(isinstance(change, Delete) for change in changes):
            met.append(await alice.push_manifest(APP, "again", image_of(b"layer")))
        return await commit(changes)

    monkeypatch.setattr(alice.replica, "commit", push_first)
    assert (await alice.registry.collector.collect(grace_s=0)).deleted_names == 2
    assert met
    assert links_of(alice) == {str(Digest.of(data)) for data in (b"{}", b"layer")}
    await collect_all(alice)
    assert await alice.read_blob(APP, Digest.of(b"layer")) == b"layer"


async def test_blobs_are_looked_at_some_at_a_time(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipfsreg.registry.gc.BLOBS_AT_ONCE", 3)
    monkeypatch.setattr("ipfsreg.registry.gc.DELETED_AT_ONCE", 2)
    layers = [b"%d" % number for number in range(12)]
    await alice.push_image(APP, "kept", *layers[::2])
    other = await alice.push_image(APP, "deleted", *layers)
    await alice.registry.delete_manifest(APP, other.digest)
    reports = await collect_all(alice)
    assert sum(report.deleted_blobs for report in reports) == 7
    assert len(list(alice.blobs.blobs())) == 8
    assert alice.database.read("SELECT item FROM gc_condemned").fetchall() == []


async def test_pending_links_are_looked_at_some_at_a_time(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ipfsreg.registry.gc.PAGE", 2)
    await alice.push_image(APP, "latest", b"kept")
    for number in range(5):
        for repository in (APP, OTHER):
            await alice.push_blob(repository, b"%d" % number)
    report = await alice.registry.collector.collect(grace_s=0)
    assert report.found == report.waiting == 10
    named = Digest.of(b"3")
    await alice.registry.delete_blob(OTHER, named)
    sentences = "SELECT count(*) FROM gc_condemned WHERE item LIKE 'pending %'"
    assert alice.database.read(sentences).fetchone() == (10,)
    report = await alice.registry.collector.collect(grace_s=0)
    assert report.found == 9 + 5
    assert alice.database.read(sentences).fetchone() == (0,)
    assert alice.registry._links.pending_page(None, 100) == []


# ------------------------------------------------------- deletions that were decided before a push holds its blobs


async def told_of_what_nobody_links(site: Site) -> None:
    """The blobs of an image, here because a client was told so, and for no other reason."""
    pushed = await site.push_image(APP, "latest", BIG)
    for data in (b"{}", BIG):
        await site.registry.stat_blob(APP, Digest.of(data))
    await site.registry.delete_manifest(APP, pushed.digest)
    await site.replica.commit([Delete(catalog.link_key(APP, Digest.of(data))) for data in (b"{}", BIG)])
    assert links_of(site) == set()


def look_at(site: Site) -> _Look:
    return _Look(site.registry.collector, Report(True), 0.0, 0.0)


async def test_the_bytes_that_a_client_was_told_of_stay_for_its_manifest(alice: Site) -> None:
    await told_of_what_nobody_links(alice)
    await collect_all(alice)
    assert alice.blobs.stat(Digest.of(BIG)) is not None
    await alice.push_manifest(APP, "again", image_of(BIG))
    assert await alice.read_blob(APP, Digest.of(BIG)) == BIG


async def test_what_was_told_of_keeps_no_bytes_once_it_is_old(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    await told_of_what_nobody_links(alice)
    monkeypatch.setattr("ipfsreg.registry.holds.TOLD_S", 0.0)
    monkeypatch.setattr("ipfsreg.registry.holds.FORGOTTEN_AT_ONCE", 1)
    await collect_all(alice)
    assert list(alice.blobs.blobs()) == []


async def test_what_a_client_deletes_takes_only_its_own_repository_back(alice: Site) -> None:
    digest = await alice.push_blob(APP, b"layer")
    await alice.push_blob(OTHER, b"layer")
    for repository in (APP, OTHER, OTHER):
        await alice.registry.stat_blob(repository, digest)
    await alice.registry.delete_blob(APP, digest)
    assert look_at(alice).is_needed(digest)
    await alice.registry.delete_blob(OTHER, digest)
    assert not look_at(alice).is_needed(digest)


def delete_when_gathered(
    site: Site, monkeypatch: pytest.MonkeyPatch, nursery: trio.Nursery, digest: Digest
) -> list[bool]:
    """Have a slow writer delete a blob that was found to be of no use just before a push holds it."""
    gather = site.registry._manifests._reliance.gather
    deleted: list[bool] = []
    begun, slow = threading.Event(), threading.Event()

    def be_slow(db: sqlite3.Connection) -> None:
        begun.set()
        assert slow.wait(10)

    async def collect() -> None:
        deleted.append(await site.blobs.collect(digest, lambda db: False))

    async def gather_and_delete(repository: RepositoryName, manifest: Manifest) -> Relied:
        relied = await gather(repository, manifest)
        if not slow.is_set():
            nursery.start_soon(site.database.write, be_slow)
            assert await trio.to_thread.run_sync(begun.wait, 10)
            nursery.start_soon(collect)
            while not site.database.waiting_writes:
                await trio.lowlevel.checkpoint()
            nursery.start_soon(go_on)
        return relied

    async def go_on() -> None:
        await trio.testing.wait_all_tasks_blocked()
        slow.set()

    monkeypatch.setattr(site.registry._manifests._reliance, "gather", gather_and_delete)
    return deleted


@pytest.mark.parametrize("lost", [BIG, b"{}"])
async def test_a_push_is_not_acknowledged_over_a_deletion_that_is_with_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bytes
) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=RegistrySettings(give_up_s=0.1)) as alice:
        await told_of_what_nobody_links(alice)
        async with trio.open_nursery() as nursery:
            deleted = delete_when_gathered(alice, monkeypatch, nursery, Digest.of(lost))
            with pytest.raises(ContentUnavailable, match="push it to this node"):
                await alice.push_manifest(APP, "again", image_of(BIG))
        assert deleted == [True]
        assert alice.replica.scan(f"/r/{APP}/_m/") == []


async def test_a_tag_is_not_rolled_back_over_a_deletion_that_is_with_the_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_site(MemorySwarm(), tmp_path, "alice", settings=RegistrySettings(give_up_s=0.1)) as alice:
        first = await alice.push_image(APP, "latest", BIG)
        second = await alice.push_image(APP, "latest", b"two")
        async with trio.open_nursery() as nursery:
            deleted = delete_when_gathered(alice, monkeypatch, nursery, Digest.of(BIG))
            with pytest.raises(ContentUnavailable, match="push it to this node"):
                await alice.registry.roll_back(APP, LATEST, first.digest)
        assert deleted == [True]
        assert alice.registry._manifests.tag_target(APP, LATEST) == second.digest


async def test_a_manifest_that_is_deleted_while_a_tag_is_rolled_back_to_it_is_told(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await alice.push_image(APP, "latest", BIG)
    await alice.push_image(APP, "latest", b"two")
    async with trio.open_nursery() as nursery:
        deleted = delete_when_gathered(alice, monkeypatch, nursery, first.digest)
        with pytest.raises(ContentUnavailable, match="deleted here just now"):
            await alice.registry.roll_back(APP, LATEST, first.digest)
    assert deleted == [True]


async def test_what_a_push_relies_on_is_held_until_its_names_are_durable(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = alice.replica.commit
    needed: list[bool] = []

    async def commit_looked_at(changes: Sequence[Change]) -> tuple[Cid, ...]:
        digests = [Digest.of(data) for data in (image_of(BIG), b"{}", BIG)]
        for digest in digests:
            alice.registry._holds.take_back(APP, digest)
        await alice.registry._links.drop_pending(APP, digests)
        needed.extend(look_at(alice).is_needed(digest) for digest in digests)
        return await commit(changes)

    await told_of_what_nobody_links(alice)
    monkeypatch.setattr(alice.replica, "commit", commit_looked_at)
    await alice.push_manifest(APP, "again", image_of(BIG))
    assert needed == [True] * 3

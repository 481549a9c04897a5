"""The registry on one node, and on two that share names and exchange blocks."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from ipfsreg.bitswap.service import open_bitswap
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.blockstore.memory import MemoryBlobStore, MemoryBlockstore, MemoryPartial
from ipfsreg.crdt.interface import Change, Delete, Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.database import open_database
from ipfsreg.errors import (
    BlobUnknown,
    ContentUnavailable,
    Denied,
    DigestMismatch,
    ManifestBlobUnknown,
    ManifestUnknown,
    NameUnknown,
    StoreError,
    StoreFull,
    UploadInvalid,
    UploadUnknown,
)
from ipfsreg.ipld.builder import build
from ipfsreg.ipld.cid import RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag, parse_repository, parse_tag
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import LinkRecord, ManifestRecord, MoveRecord
from ipfsreg.registry.interface import BlobStat, FileRange, ManifestPushed, Piece, Registry
from ipfsreg.registry.service import LocalRegistry, RegistrySettings, open_registry
from ipfsreg.testing.content import pattern
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm

APP = parse_repository("team/app")
OTHER = parse_repository("team/other")
LATEST = parse_tag("latest")
IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
BIG = pattern(5 * 1024 * 1024 + 4)


class Site:
    """One node's parts, in memory."""

    def __init__(
        self,
        registry: LocalRegistry,
        store: MemoryBlockstore,
        names: MemoryNames,
        blobs: MemoryBlobStore,
        endpoint: MemoryEndpoint,
    ) -> None:
        self.registry = registry
        self.store = store
        self.names = names
        self.blobs = blobs
        self.endpoint = endpoint

    def learn(self, other: Site) -> None:
        """Take over every name *other* has, as gossip would bring it."""
        theirs = dict(other.names.scan("/"))
        gone = [Delete(key) for key, _ in self.names.scan("/") if key not in theirs]
        self.names.receive([*gone, *(Put(key, value) for key, value in theirs.items())])


@asynccontextmanager
async def open_site(
    swarm: MemorySwarm,
    name: str,
    directory: Path,
    make_blobs: type[MemoryBlobStore] = MemoryBlobStore,
    *,
    give_up_s: float = 5.0,
    finish_without_client: bool = True,
    immutable_tags: tuple[str, ...] = (),
) -> AsyncIterator[Site]:
    store = MemoryBlockstore()
    blobs, names, endpoint = make_blobs(store), MemoryNames(), swarm.endpoint(name)
    settings = RegistrySettings(
        give_up_s=give_up_s, finish_without_client=finish_without_client, immutable_tags=immutable_tags
    )
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(directory / f"{name}.db"))
        bitswap = await stack.enter_async_context(open_bitswap(endpoint, store, None, BitswapSettings()))
        registry = await stack.enter_async_context(
            open_registry(
                database=database,
                names=names,
                blobs=blobs,
                bitswap=bitswap,
                routing=None,
                peer=endpoint.peer_id,
                upload_secret=name.encode() * 8,
                settings=settings,
            )
        )
        yield Site(registry, store, names, blobs, endpoint)


@pytest.fixture
async def alice(tmp_path: Path) -> AsyncIterator[Site]:
    async with open_site(MemorySwarm(), "alice", tmp_path) as site:
        yield site


def content_of(piece: Piece) -> bytes:
    if isinstance(piece, FileRange):
        return os.pread(piece.descriptor, len(piece), piece.start)
    return bytes(piece)


async def push_blob(registry: Registry, repository: RepositoryName, data: bytes) -> BlobStat:
    session = await registry.start_upload(repository)
    try:
        await session.write(data)
        return await session.finish(Digest.of(data))
    finally:
        registry.release_upload(session)


def describe(data: bytes, media_type: str) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(data)), "size": len(data)}


def manifest_of(config: bytes, *layers: bytes, **more: object) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": describe(config, CONFIG),
        "layers": [describe(layer, LAYER) for layer in layers],
        **more,
    }
    return json.dumps(document).encode()


async def push_image(
    registry: Registry, repository: RepositoryName, tag: str, *layers: bytes, **more: object
) -> ManifestPushed:
    config = b'{"os":"linux"}'
    for data in (config, *layers):
        await push_blob(registry, repository, data)
    return await registry.put_manifest(repository, parse_tag(tag), IMAGE, manifest_of(config, *layers, **more))


async def read(registry: Registry, repository: RepositoryName, digest: Digest, start: int = 0, end: int = -1) -> bytes:
    async with await registry.open_blob(repository, digest) as blob:
        pieces = [content_of(piece) async for piece in blob.stream(start, blob.stat.size if end < 0 else end)]
        return b"".join(pieces)


# ----------------------------------------------------------------------------------------- one node


async def test_a_blob_can_be_read_where_it_was_pushed(alice: Site) -> None:
    stat = await push_blob(alice.registry, APP, BIG)
    assert await alice.registry.stat_blob(APP, stat.digest) == stat
    assert await read(alice.registry, APP, stat.digest) == BIG
    assert await read(alice.registry, APP, stat.digest, 1 << 20, (1 << 20) + 7) == BIG[1 << 20 :][:7]


async def test_a_blob_of_one_repository_is_not_seen_in_another(alice: Site) -> None:
    stat = await push_blob(alice.registry, APP, b"secret")
    with pytest.raises(BlobUnknown):
        await alice.registry.stat_blob(OTHER, stat.digest)
    with pytest.raises(BlobUnknown):
        await alice.registry.mount_blob(OTHER, stat.digest, parse_repository("none"))
    with pytest.raises(BlobUnknown):
        await alice.registry.mount_blob(OTHER, stat.digest, None)


async def test_a_mounted_blob_needs_no_upload(alice: Site) -> None:
    stat = await push_blob(alice.registry, APP, b"base layer")
    await alice.registry.mount_blob(OTHER, stat.digest, APP)
    assert await read(alice.registry, OTHER, stat.digest) == b"base layer"


async def test_upload_state_never_enters_the_name_store(alice: Site) -> None:
    stat = await push_blob(alice.registry, APP, b"layer")
    await alice.registry.mount_blob(OTHER, stat.digest, APP)
    assert alice.names.scan("/") == []


async def test_one_manifest_push_is_one_delta(alice: Site) -> None:
    async with alice.names.changes() as changes:
        pushed = await push_image(alice.registry, APP, "latest", b"one", b"two")
        heads = alice.names.heads()
        assert pushed.heads == heads
        kinds = sorted([(await anext(changes)).key.split("/")[4] for _ in range(6)])
    assert kinds == ["_h", "_l", "_l", "_l", "_m", "_t"]


async def test_the_same_push_again_is_no_move_but_writes_again_what_it_relies_on(alice: Site) -> None:
    first = await push_image(alice.registry, APP, "latest", b"one")
    before = {key: (value, alice.names.versions(key)) for key, value in alice.names.scan("/")}
    again = await push_image(alice.registry, APP, "latest", b"one")
    assert (again.digest, again.tags) == (first.digest, first.tags)
    assert dict(alice.names.scan("/")) == {key: value for key, (value, _) in before.items()}
    # What somebody else deletes at this time, having seen the first push only, is there by the second.
    alice.names.receive([Delete(key, versions) for key, (_, versions) in before.items()])
    assert (await alice.registry.get_manifest(APP, LATEST)).stat.digest == first.digest
    assert len(alice.names.scan(f"/r/{APP}/_l/")) == 2


async def test_a_tag_pushed_twice_has_moved_once(alice: Site) -> None:
    await push_image(alice.registry, APP, "latest", b"one")
    await push_image(alice.registry, APP, "latest", b"one")
    assert len(alice.names.scan(catalog.history_prefix(APP, LATEST))) == 1


async def test_a_manifest_is_served_by_tag_and_by_digest(alice: Site) -> None:
    pushed = await push_image(alice.registry, APP, "latest", b"layer")
    by_tag = await alice.registry.get_manifest(APP, LATEST)
    assert by_tag == await alice.registry.get_manifest(APP, pushed.digest)
    assert Digest.of(by_tag.data) == pushed.digest
    assert by_tag.stat == await alice.registry.stat_manifest(APP, LATEST)


async def test_a_manifest_may_not_name_what_the_repository_lacks(alice: Site) -> None:
    await push_blob(alice.registry, OTHER, b"layer")
    await push_blob(alice.registry, APP, b"{}")
    with pytest.raises(ManifestBlobUnknown):
        await alice.registry.put_manifest(APP, LATEST, IMAGE, manifest_of(b"{}", b"layer"))
    assert alice.names.scan("/") == []


async def test_an_index_needs_its_manifests_first(alice: Site) -> None:
    child = manifest_of(b'{"os":"linux"}', b"layer")
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [describe(child, IMAGE)]}).encode()
    with pytest.raises(ManifestBlobUnknown):
        await alice.registry.put_manifest(APP, LATEST, INDEX, index)
    await push_image(alice.registry, APP, "amd64", b"layer")
    pushed = await alice.registry.put_manifest(APP, LATEST, INDEX, index)
    assert (await alice.registry.get_manifest(APP, LATEST)).stat.digest == pushed.digest


async def test_a_manifest_under_a_digest_that_is_not_its_own_is_refused(alice: Site) -> None:
    await push_blob(alice.registry, APP, b"{}")
    with pytest.raises(DigestMismatch):
        await alice.registry.put_manifest(APP, Digest.of(b"another"), IMAGE, manifest_of(b"{}"))


async def test_every_move_of_a_tag_is_kept(alice: Site) -> None:
    one = await push_image(alice.registry, APP, "latest", b"one")
    two = await push_image(alice.registry, APP, "latest", b"two")
    await alice.registry.delete_manifest(APP, LATEST)
    moves = [MoveRecord.decode(value) for _, value in alice.names.scan(catalog.history_prefix(APP, LATEST))]
    assert [(move.before, move.to) for move in moves] == [
        (None, one.digest),
        (one.digest, two.digest),
        (two.digest, None),
    ]


async def test_a_tag_is_rolled_back_by_steps_and_by_digest_and_its_history_goes_on(alice: Site) -> None:
    first, second, third = [
        (await push_image(alice.registry, APP, "latest", text)).digest for text in (b"1", b"2", b"3")
    ]
    await alice.registry.roll_back(APP, LATEST, 2)
    assert (await alice.registry.stat_manifest(APP, LATEST)).digest == first
    move = await alice.registry.roll_back(APP, LATEST, second)
    assert (move.step, move.to, move.before) == (0, second, first)
    assert [move.to for move in alice.registry.history(APP, LATEST)] == [second, first, third, second, first]
    assert await alice.registry.roll_back(APP, LATEST, 0) == move, "to where it is, is no move"
    with pytest.raises(ManifestUnknown, match="5 moves ago"):
        await alice.registry.roll_back(APP, LATEST, 5)
    await alice.registry.delete_manifest(APP, third)
    with pytest.raises(ManifestUnknown):
        await alice.registry.roll_back(APP, LATEST, 2)
    with pytest.raises(ManifestUnknown):
        alice.registry.history(APP, parse_tag("none"))


async def test_a_past_state_is_pulled_by_a_tag_with_a_time(alice: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    digests = []
    for day, text in ((1, b"first"), (2, b"second")):
        monkeypatch.setattr("time.time_ns", lambda day=day: day * 86400 * 10**9)
        digests.append((await push_image(alice.registry, APP, "latest", text)).digest)
    past = {
        "1970-01-02": digests[0],
        "1970-01-02T23.59.59Z": digests[0],
        "1970-01-03": digests[1],
        "2026-01-01": digests[1],
    }
    for time, digest in past.items():
        assert (await alice.registry.get_manifest(APP, parse_tag(f"latest--{time}"))).stat.digest == digest
    for time in ("1970-01-01", "yesterday", "1970-01-32"):
        with pytest.raises(ManifestUnknown):
            await alice.registry.stat_manifest(APP, parse_tag(f"latest--{time}"))
    real = await push_image(alice.registry, APP, "latest--1970-01-02", b"a tag of that very name")
    assert (await alice.registry.stat_manifest(APP, parse_tag("latest--1970-01-02"))).digest == real.digest


async def test_an_immutable_tag_is_set_once(tmp_path: Path) -> None:
    async with open_site(MemorySwarm(), "alice", tmp_path, immutable_tags=("team/*:v*",)) as alice:
        v1 = parse_tag("v1")
        pushed = await push_image(alice.registry, APP, "v1", b"1")
        assert (await push_image(alice.registry, APP, "v1", b"1")).digest == pushed.digest, "the same again is no move"
        other = await push_image(alice.registry, APP, "latest", b"2")
        blobs = len(list(alice.blobs.blobs()))
        refused = manifest_of(b'{"os":"linux"}', b"2", annotations={"a": "b"})
        with pytest.raises(Denied):
            await alice.registry.put_manifest(APP, v1, IMAGE, refused)
        with pytest.raises(Denied):
            await alice.registry.put_manifest(APP, parse_tag("v2"), IMAGE, refused, (v1,))
        assert len(list(alice.blobs.blobs())) == blobs, "nothing is kept of what was refused"
        with pytest.raises(Denied):
            await alice.registry.delete_manifest(APP, v1)
        with pytest.raises(Denied):
            await alice.registry.delete_manifest(APP, pushed.digest)
        with pytest.raises(Denied):
            await alice.registry.roll_back(APP, v1, other.digest)
        assert (await alice.registry.stat_manifest(APP, v1)).digest == pushed.digest
        await push_image(alice.registry, APP, "latest", b"3")


@pytest.mark.parametrize("why", ["the tag is immutable", "the pushers may only create"])
async def test_of_many_who_set_a_tag_at_once_that_may_be_set_once_one_does(tmp_path: Path, why: str) -> None:
    immutable = ("team/*:v*",) if why == "the tag is immutable" else ()
    async with open_site(MemorySwarm(), "alice", tmp_path, immutable_tags=immutable) as alice:
        await push_image(alice.registry, APP, "latest", b"layer")
        v1 = parse_tag("v1")
        outcomes: list[str] = []

        async def push(number: int) -> None:
            data = manifest_of(b'{"os":"linux"}', b"layer", annotations={"number": str(number)})
            try:
                pushed = await alice.registry.put_manifest(APP, v1, IMAGE, data, overwrite=bool(immutable))
            except Denied:
                outcomes.append("denied")
            else:
                outcomes.append(str(pushed.digest))

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(push, number)
        (winner,) = [outcome for outcome in outcomes if outcome != "denied"]
        assert str((await alice.registry.stat_manifest(APP, v1)).digest) == winner
        # And nothing stays behind of who was setting it.
        with pytest.raises(Denied, match=f"is at {winner}|immutable"):
            await push_later(alice, v1, overwrite=bool(immutable))


async def push_later(alice: Site, tag: Tag, *, overwrite: bool) -> None:
    data = manifest_of(b'{"os":"linux"}', b"layer", annotations={"number": "later"})
    await alice.registry.put_manifest(APP, tag, IMAGE, data, overwrite=overwrite)


async def test_deleting_a_tag_leaves_its_manifest(alice: Site) -> None:
    pushed = await push_image(alice.registry, APP, "latest", b"layer")
    await alice.registry.delete_manifest(APP, LATEST)
    with pytest.raises(ManifestUnknown):
        await alice.registry.stat_manifest(APP, LATEST)
    assert (await alice.registry.stat_manifest(APP, pushed.digest)).digest == pushed.digest
    with pytest.raises(ManifestUnknown):
        await alice.registry.delete_manifest(APP, LATEST)


async def test_deleting_a_manifest_takes_its_tags_along(alice: Site) -> None:
    pushed = await push_image(alice.registry, APP, "latest", b"layer")
    await push_image(alice.registry, APP, "stable", b"layer")
    other = await push_image(alice.registry, APP, "next", b"newer")
    await alice.registry.delete_manifest(APP, pushed.digest)
    assert (await alice.registry.tags(APP, limit=10)).names == ("next",)
    with pytest.raises(ManifestUnknown):
        await alice.registry.get_manifest(APP, pushed.digest)
    assert (await alice.registry.get_manifest(APP, other.digest)).stat.digest == other.digest


async def test_a_deleted_blob_is_gone_from_its_repository_only(alice: Site) -> None:
    pushed = await push_image(alice.registry, APP, "latest", b"layer")
    await push_image(alice.registry, OTHER, "latest", b"layer")
    digest = Digest.of(b"layer")
    await alice.registry.delete_blob(APP, digest)
    with pytest.raises(BlobUnknown):
        await alice.registry.stat_blob(APP, digest)
    assert await read(alice.registry, OTHER, digest) == b"layer"
    assert (await alice.registry.stat_manifest(APP, LATEST)).digest == pushed.digest


async def test_unknown_names_are_told_from_unknown_tags(alice: Site) -> None:
    with pytest.raises(NameUnknown):
        await alice.registry.stat_manifest(APP, LATEST)
    with pytest.raises(NameUnknown):
        await alice.registry.tags(APP, limit=10)
    await push_blob(alice.registry, APP, b"layer")
    with pytest.raises(ManifestUnknown):
        await alice.registry.stat_manifest(APP, LATEST)
    assert (await alice.registry.tags(APP, limit=10)).names == ()


async def test_tags_and_repositories_come_in_pages(alice: Site) -> None:
    for tag in ("c", "a", "b"):
        await push_image(alice.registry, APP, tag, b"layer")
    for name in ("team", "team/app/inner", "team-b/app", "zoo"):
        await push_image(alice.registry, parse_repository(name), "latest", b"layer")
    page = await alice.registry.tags(APP, limit=2)
    assert (page.names, page.more) == (("a", "b"), True)
    page = await alice.registry.tags(APP, limit=2, last="b")
    assert (page.names, page.more) == (("c",), False)
    everything = (await alice.registry.repositories(limit=100)).names
    assert sorted(everything) == ["team", "team-b/app", "team/app", "team/app/inner", "zoo"]
    walked: list[str] = []
    while True:
        page = await alice.registry.repositories(limit=2, last=walked[-1] if walked else "")
        walked += page.names
        if not page.more:
            break
    assert tuple(walked) == everything


async def test_referrers_of_a_subject_that_need_not_exist_are_listed(alice: Site) -> None:
    subject = Digest.of(b"not here")
    more = {"subject": {"mediaType": IMAGE, "digest": str(subject), "size": 8}, "artifactType": "application/sbom"}
    pushed = await push_image(alice.registry, APP, "sbom", b"{}", annotations={"a": "1"}, **more)
    assert pushed.subject == subject
    (found,) = await alice.registry.referrers(APP, subject)
    assert (found.digest, found.artifact_type, dict(found.annotations)) == (
        pushed.digest,
        "application/sbom",
        {"a": "1"},
    )
    assert await alice.registry.referrers(APP, subject, "application/other") == []
    assert await alice.registry.referrers(OTHER, subject) == []
    await alice.registry.delete_manifest(APP, pushed.digest)
    assert await alice.registry.referrers(APP, subject) == []


async def test_a_record_of_a_peer_that_cannot_be_read_counts_as_absent(alice: Site) -> None:
    await push_image(alice.registry, APP, "latest", b"layer")
    alice.names.receive(
        [Put(catalog.tag_key(APP, LATEST), b"\xff"), Put("/r/odd/_m/no-digest", b"x"), Put("/other", b"x")]
    )
    with pytest.raises(ManifestUnknown):
        await alice.registry.stat_manifest(APP, LATEST)
    assert await alice.registry.referrers(APP, Digest.of(b"")) == []


async def test_a_record_whose_media_type_would_split_a_header_counts_as_absent(alice: Site) -> None:
    digest = Digest.of(b"{}")
    record = ManifestRecord("text/plain\r\nSet-Cookie: a=b", 2, Cid.from_sha256(RAW, digest.raw))
    alice.names.receive([Put(catalog.manifest_key(APP, digest), record.encode(digest))])
    with pytest.raises(ManifestUnknown):
        await alice.registry.stat_manifest(APP, digest)


@pytest.mark.parametrize("size", [-1, (1 << 40) + 1, 1 << 200])
async def test_a_link_that_claims_an_absurd_size_counts_as_absent(alice: Site, size: int) -> None:
    digest = Digest.of(b"x")
    alice.names.receive([Put(catalog.link_key(APP, digest), LinkRecord(size, build(BIG).root).encode(digest))])
    with pytest.raises(BlobUnknown):
        await alice.registry.stat_blob(APP, digest)


async def test_two_pushes_of_one_tag_at_once_both_count_and_one_wins(alice: Site) -> None:
    config = b"{}"
    await push_blob(alice.registry, APP, config)
    documents = [manifest_of(config, annotations={"n": str(number)}) for number in range(20)]
    async with trio.open_nursery() as nursery:
        for document in documents:
            nursery.start_soon(alice.registry.put_manifest, APP, LATEST, IMAGE, document)
    digests = {Digest.of(document) for document in documents}
    moves = [MoveRecord.decode(value).to for _, value in alice.names.scan(catalog.history_prefix(APP, LATEST))]
    assert len(moves) == len(digests)
    assert set(moves) == digests
    assert (await alice.registry.stat_manifest(APP, LATEST)).digest in digests
    for digest in digests:
        assert (await alice.registry.stat_manifest(APP, digest)).digest == digest


async def test_moves_of_a_tag_keep_their_order_when_the_clock_steps_back(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([5_000_000_000_000, 5_000_000_000_000, 1_000_000_000])
    monkeypatch.setattr("ipfsreg.registry.manifests.time.time_ns", lambda: next(clock))
    await push_blob(alice.registry, APP, b"{}")
    documents = [manifest_of(b"{}", annotations={"n": str(number)}) for number in range(3)]
    for document in documents:
        await alice.registry.put_manifest(APP, LATEST, IMAGE, document)
    moves = [MoveRecord.decode(value).to for _, value in alice.names.scan(catalog.history_prefix(APP, LATEST))]
    assert moves == [Digest.of(document) for document in documents]


async def test_a_store_that_fails_the_work_behind_does_not_end_the_registry(
    tmp_path: Path, autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    tried: list[float] = []

    class Failing(MemoryBlobStore):
        async def expire_uploads(self, older_than_s: float) -> int:
            tried.append(trio.current_time())
            if len(tried) == 1:
                raise StoreError("the disk is slow today")
            return await super().expire_uploads(older_than_s)

    async with open_site(MemorySwarm(), "alice", tmp_path, Failing) as alice:
        await trio.sleep(3 * 3600)
        await push_image(alice.registry, APP, "latest", b"layer")
    assert len(tried) > 2
    assert "the disk is slow today" in caplog.text


async def test_a_manifest_may_name_more_blobs_than_one_delta_takes(
    alice: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ipfsreg.registry.manifests.MAX_CHANGES_PER_DELTA", 10)
    sizes: list[int] = []

    class Counting(MemoryNames):
        async def commit(self, changes: Sequence[Change]) -> tuple[Cid, ...]:
            sizes.append(len(changes))
            return await super().commit(changes)

    alice.names.__class__ = Counting
    layers = [number.to_bytes(4, "big") for number in range(25)]
    await push_image(alice.registry, OTHER, "latest", *layers)
    assert len(alice.names.scan(f"/r/{OTHER}/_l/")) == len(layers) + 1
    assert sizes == [10, 10, 7 + len(["tag", "history"])], "the manifest first, what shows it last"


# ----------------------------------------------------------------------------------------- uploads


async def test_an_upload_goes_on_where_it_stopped(alice: Site) -> None:
    session = await alice.registry.start_upload(APP)
    await session.write(b"first ")
    alice.registry.release_upload(session)
    resumed = await alice.registry.resume_upload(APP, session.id)
    assert resumed.offset == 6
    await resumed.write(b"second")
    assert (await resumed.finish(Digest.of(b"first second"))).size == 12


async def test_an_upload_belongs_to_its_repository(alice: Site) -> None:
    session = await alice.registry.start_upload(APP)
    alice.registry.release_upload(session)
    for upload_id in (session.id, session.id.partition(".")[0], "", "none.none", session.id + "0", "é"):
        with pytest.raises(UploadUnknown):
            await alice.registry.resume_upload(OTHER, upload_id)


async def test_an_upload_is_held_by_one_request(alice: Site) -> None:
    session = await alice.registry.start_upload(APP)
    with pytest.raises(UploadInvalid):
        await alice.registry.resume_upload(APP, session.id)
    alice.registry.release_upload(session)
    assert (await alice.registry.resume_upload(APP, session.id)).id == session.id


async def test_a_wrong_digest_publishes_nothing(alice: Site) -> None:
    session = await alice.registry.start_upload(APP)
    await session.write(b"content")
    with pytest.raises(DigestMismatch):
        await session.finish(Digest.of(b"other"))
    alice.registry.release_upload(session)
    with pytest.raises(BlobUnknown):
        await alice.registry.stat_blob(APP, Digest.of(b"content"))
    with pytest.raises(UploadUnknown):
        await alice.registry.resume_upload(APP, session.id)


# ---------------------------------------------------------------------------------------- two nodes


async def test_what_alice_has_bob_serves(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        await bob.endpoint.connect(_info(alice))
        bob.learn(alice)
        digest = Digest.of(BIG)
        assert await bob.registry.stat_blob(APP, digest) == await alice.registry.stat_blob(APP, digest)
        assert (await bob.registry.get_manifest(APP, LATEST)) == await alice.registry.get_manifest(APP, LATEST)
        assert await read(bob.registry, APP, digest) == BIG
        assert bob.blobs.stat(digest) == alice.blobs.stat(digest)
        async with await bob.registry.open_blob(APP, digest) as blob:
            assert blob.path is not None


async def test_many_readers_of_one_cold_blob_cause_one_fetch(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        await bob.endpoint.connect(_info(alice))
        bob.learn(alice)
        got: list[bytes] = []

        async def pull(start: int) -> None:
            got.append(await read(bob.registry, APP, Digest.of(BIG), start))

        async with trio.open_nursery() as nursery:
            for start in (0, 0, 3_000_000, len(BIG) - 1, 0):
                nursery.start_soon(pull, start)
        assert sorted(map(len, got)) == sorted(len(BIG) - start for start in (0, 0, 3_000_000, len(BIG) - 1, 0))
        assert all(BIG.endswith(piece) for piece in got)
        sent = sum(stream.bytes_sent for stream in alice.endpoint.streams())
        assert sent < 2 * len(BIG)


async def test_a_manifest_is_fetched_as_soon_as_its_name_arrives(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        pushed = await push_image(alice.registry, APP, "latest", b"layer")
        await bob.endpoint.connect(_info(alice))
        async with bob.store.arrivals() as arrivals:
            bob.learn(alice)
            await anext(arrivals)
        await trio.testing.wait_all_tasks_blocked()
        swarm.kill(alice.endpoint)
        assert (await bob.registry.get_manifest(APP, LATEST)).stat.digest == pushed.digest


async def test_a_blob_nobody_has_is_a_clear_error_in_time(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path, give_up_s=0.5) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        bob.learn(alice)
        began = trio.current_time()
        with pytest.raises(ContentUnavailable):
            await read(bob.registry, APP, Digest.of(BIG))
        assert 0.5 <= trio.current_time() - began < 5
        await bob.endpoint.connect(_info(alice))
        assert await read(bob.registry, APP, Digest.of(BIG)) == BIG


async def test_a_pull_goes_on_from_what_came_before_the_holder_left(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path, give_up_s=0.5) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        await bob.endpoint.connect(_info(alice))
        swarm.delay(alice.endpoint, bob.endpoint, 0.01)
        bob.learn(alice)
        got = bytearray()

        async def pull() -> None:
            async with await bob.registry.open_blob(APP, Digest.of(BIG)) as blob:
                async for piece in blob.stream(0, len(BIG)):
                    got.extend(content_of(piece))
                    swarm.cut(alice.endpoint, bob.endpoint)

        with pytest.raises(ContentUnavailable):
            await pull()
        assert 0 < len(got) < len(BIG)
        assert BIG.startswith(got)
        swarm.heal(alice.endpoint, bob.endpoint)
        await bob.endpoint.connect(_info(alice))
        assert await read(bob.registry, APP, Digest.of(BIG)) == BIG


async def test_a_root_that_is_not_the_blob_never_ends_as_if_it_were(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        lie = bytes(len(BIG))
        await push_image(alice.registry, APP, "latest", BIG)
        root = (await push_blob(alice.registry, APP, lie)).root
        await bob.endpoint.connect(_info(alice))
        bob.learn(alice)
        digest = Digest.of(BIG)
        bob.names.receive([Put(catalog.link_key(APP, digest), LinkRecord(len(BIG), root).encode(digest))])
        got = bytearray()

        async def pull() -> None:
            async with await bob.registry.open_blob(APP, digest) as blob:
                async for piece in blob.stream(0, len(BIG)):
                    got.extend(content_of(piece))

        with pytest.raises(DigestMismatch):
            await pull()
        assert len(got) < len(BIG)
        assert bob.blobs.stat(digest) is None


@pytest.mark.parametrize("size", [len(BIG) - 1, len(BIG) + 1, 1 << 40])
async def test_a_link_of_the_wrong_size_is_an_error_of_the_network_and_not_of_the_client(
    tmp_path: Path, size: int
) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        root = (await alice.registry.stat_blob(APP, Digest.of(BIG))).root
        await bob.endpoint.connect(_info(alice))
        digest = Digest.of(BIG)
        bob.names.receive([Put(catalog.link_key(APP, digest), LinkRecord(size, root).encode(digest))])
        with pytest.raises((ContentUnavailable, StoreFull)):
            await read(bob.registry, APP, digest)
        assert bob.blobs.stat(digest) is None


class FullBlobStore(MemoryBlobStore):
    """Has no room for what peers have."""

    async def open_partial(self, digest: Digest, size: int, root: Cid) -> MemoryPartial:
        raise StoreFull("no room left")


async def test_a_push_that_names_what_finds_no_room_here_says_so(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with (
        open_site(swarm, "alice", tmp_path) as alice,
        open_site(swarm, "bob", tmp_path, FullBlobStore) as bob,
    ):
        await push_image(alice.registry, APP, "latest", BIG, b"another layer")
        await bob.endpoint.connect(_info(alice))
        bob.learn(alice)
        with pytest.raises(StoreFull):
            await bob.registry.put_manifest(APP, LATEST, IMAGE, manifest_of(b'{"os":"linux"}', BIG, b"another layer"))


async def test_a_lie_of_one_repository_does_not_spoil_the_blob_for_another(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        root = (await push_blob(alice.registry, APP, bytes(len(BIG)))).root
        await bob.endpoint.connect(_info(alice))
        swarm.delay(alice.endpoint, bob.endpoint, 0.05)
        bob.learn(alice)
        digest = Digest.of(BIG)
        bob.names.receive([Put(catalog.link_key(OTHER, digest), LinkRecord(len(BIG), root).encode(digest))])

        async def pull_lie() -> None:
            with pytest.raises((DigestMismatch, ContentUnavailable)):
                await read(bob.registry, OTHER, digest)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pull_lie)
            await trio.testing.wait_all_tasks_blocked()
            assert await read(bob.registry, APP, digest) == BIG
        assert await read(bob.registry, OTHER, digest) == BIG


async def test_who_comes_while_a_fetch_is_being_stopped_gets_a_new_one(tmp_path: Path) -> None:
    swarm = MemorySwarm()
    async with (
        open_site(swarm, "alice", tmp_path) as alice,
        open_site(swarm, "bob", tmp_path, finish_without_client=False) as bob,
    ):
        await push_image(alice.registry, APP, "latest", BIG)
        await bob.endpoint.connect(_info(alice))
        swarm.delay(alice.endpoint, bob.endpoint, 0.01)
        bob.learn(alice)
        async with await bob.registry.open_blob(APP, Digest.of(BIG)):
            pass
        assert await read(bob.registry, APP, Digest.of(BIG)) == BIG


async def test_a_failure_nobody_thought_of_ends_the_fetch_and_not_the_node(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(MemoryBlobStore):
        async def open_partial(self, digest: Digest, size: int, root: Cid) -> MemoryPartial:
            raise RuntimeError("not thought of")

    swarm = MemorySwarm()
    async with open_site(swarm, "alice", tmp_path) as alice, open_site(swarm, "bob", tmp_path, Failing) as bob:
        await push_image(alice.registry, APP, "latest", BIG)
        bob.learn(alice)
        with pytest.raises(ContentUnavailable, match="internal error"):
            await read(bob.registry, APP, Digest.of(BIG))
        assert "not thought of" in caplog.text
        await push_image(bob.registry, APP, "still-alive", b"layer")


@pytest.mark.parametrize("finish", [True, False])
async def test_policy_says_whether_a_fetch_outlives_its_readers(tmp_path: Path, finish: bool) -> None:
    swarm = MemorySwarm()
    async with (
        open_site(swarm, "alice", tmp_path) as alice,
        open_site(swarm, "bob", tmp_path, finish_without_client=finish) as bob,
    ):
        await push_image(alice.registry, APP, "latest", BIG)
        await bob.endpoint.connect(_info(alice))
        swarm.delay(alice.endpoint, bob.endpoint, 0.01)
        bob.learn(alice)
        digest = Digest.of(BIG)
        async with await bob.registry.open_blob(APP, digest):
            pass
        with trio.move_on_after(10 if finish else 1):
            while bob.blobs.stat(digest) is None:
                await trio.testing.wait_all_tasks_blocked(0.01)
        assert (bob.blobs.stat(digest) is not None) is finish


def _info(site: Site) -> PeerInfo:
    return PeerInfo(site.endpoint.peer_id, tuple(site.endpoint.listen_addrs()))


class Slow(MemoryBlobStore):
    """Takes a turn for each read, and knows how many are under way at most."""

    under_way = most = 0

    async def read_whole(self, digest: Digest, max_bytes: int) -> bytes:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await trio.testing.wait_all_tasks_blocked()
            return await super().read_whole(digest, max_bytes)
        finally:
            self.under_way -= 1


@pytest.mark.parametrize(("size", "most"), [(3_000_000, 4), (100_000, 4), (1_000, 30)])
async def test_of_large_manifests_few_are_read_at_once(tmp_path: Path, size: int, most: int) -> None:
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"a": "x" * size}}
    async with open_site(MemorySwarm(), "alice", tmp_path, Slow) as alice:
        data = json.dumps(document).encode()
        await alice.registry.put_manifest(APP, LATEST, INDEX, data, ())
        right = []

        async def get() -> None:
            right.append((await alice.registry.get_manifest(APP, LATEST)).data == data)

        async with trio.open_nursery() as nursery:
            for _ in range(30):
                nursery.start_soon(get)
        assert right == [True] * 30
        assert isinstance(alice.blobs, Slow)
        assert alice.blobs.most <= most

"""The shared checks of the `Blockstore` and `BlobStore` promises, which the memory store and the one on disk pass."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager

import trio
from trio.testing import wait_all_tasks_blocked

from ipfsreg.blockstore.interface import BlobInfo, BlobStore, Blockstore, PartialBlob
from ipfsreg.errors import (
    BlobUnknown,
    BlockNotFound,
    DigestMismatch,
    IpfsregError,
    SizeInvalid,
    StoreError,
    UploadUnknown,
)
from ipfsreg.ipld.block import MAX_BLOCK_BYTES, Block
from ipfsreg.ipld.builder import KUBO_V1, LITE, V0_2015, V1_2025, Profile, build
from ipfsreg.ipld.cid import DAG_PB, RAW, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.content import file_blocks, pattern

OpenStore = Callable[[str], AbstractAsyncContextManager[tuple[Blockstore, BlobStore]]]
"""Opens the store of that name: empty the first time, and the same again every time after."""

CHUNK = V1_2025.chunk_bytes

INTERESTING_SIZES = (0, 1, 64 * 1024, 64 * 1024 + 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7)
"""Sizes at which a store may change its mind: nothing, what is kept inline, one leaf, several."""


async def check_blockstore(open_store: OpenStore) -> None:
    """Raise AssertionError unless *open_store* keeps the `Blockstore` promises."""
    for check in (_blocks, _refusals, _names_of_one_block, _deletion, _arrivals, _folded_arrivals, _many_writers):
        async with open_store(check.__name__) as (blocks, _):
            await check(blocks)
    await _reopened_blocks(open_store)


async def check_blobstore(open_store: OpenStore) -> None:
    """Raise AssertionError unless *open_store* keeps the `BlobStore` promises."""
    for check in (
        _pushes,
        _wrong_digests,
        _other_algorithms,
        _small_blobs,
        _uploads_end,
        _same_blob_at_once,
        _collected_blobs,
        _deleted_blobs,
        _shared_leaves,
        _blocks_of_blobs_stay_theirs,
        _listing,
        _fetches,
        _fetch_of_one_range,
        _one_leaf_everywhere,
        _leaf_of_two_nodes,
        _readers_of_a_fetch,
        _served_while_arriving,
        _unwanted_blocks,
        _lying_roots,
        _abandoned_fetches,
        _another_root,
        _dropped_fetches,
        _expired_fetches,
        _pushed_while_fetched,
        _pushed_after_fetched_in_another_layout,
        _verified,
    ):
        async with open_store(check.__name__) as (blocks, blobs):
            await check(blocks, blobs)
    await _reopened_blobs(open_store)
    await _reopened_uploads(open_store)
    await _reopened_fetches(open_store)


async def _raises(kind: type[IpfsregError], run: Callable[..., object], *args: object) -> None:
    """Check that *run* raises *kind*, called or awaited."""
    try:
        result = run(*args)
        if isinstance(result, Awaitable):
            await result
    except kind:
        return
    raise AssertionError(f"{kind.__name__} was not raised")


# --------------------------------------------------------------------- blocks


async def _blocks(blocks: Blockstore) -> None:
    for size in (*INTERESTING_SIZES, MAX_BLOCK_BYTES):
        if size > MAX_BLOCK_BYTES:
            continue
        block = Block.of(pattern(size))
        assert not blocks.has(block.cid)
        assert blocks.size_of(block.cid) is None
        await blocks.put(block)
        assert blocks.has(block.cid)
        assert blocks.size_of(block.cid) == size
        assert bytes((await blocks.get(block.cid)).data) == block.data
        await blocks.put(block)
        assert bytes((await blocks.get(block.cid)).data) == block.data, "putting it again changes nothing"


async def _refusals(blocks: Blockstore) -> None:
    await _raises(BlockNotFound, blocks.get, Cid.of(RAW, b"never put"))
    inline = Cid(1, RAW, b"\x00\x05hello")
    assert blocks.has(inline), "what its CID says is everywhere"
    assert blocks.size_of(inline) == 5
    assert bytes((await blocks.get(inline)).data) == b"hello"


async def _names_of_one_block(blocks: Blockstore) -> None:
    data = b"one block under several names"
    await blocks.put(Block.of(data, DAG_PB))
    for cid in (Cid.of(RAW, data), Cid(0, DAG_PB, Cid.of(RAW, data).multihash)):
        assert blocks.has(cid)
        found = await blocks.get(cid)
        assert found.cid == cid, "under the name it was asked for"
        assert bytes(found.data) == data


async def _deletion(blocks: Blockstore) -> None:
    first, second = Block.of(b"first"), Block.of(b"second")
    await blocks.put_many([first, second, first])
    await blocks.delete([first.cid, Cid.of(RAW, b"never put")])
    assert (blocks.has(first.cid), blocks.has(second.cid)) == (False, True)
    await _raises(BlockNotFound, blocks.get, first.cid)
    await blocks.put(first)
    assert bytes((await blocks.get(first.cid)).data) == b"first", "what was deleted can come back"


async def _arrivals(blocks: Blockstore) -> None:
    old, new = Block.of(b"here already"), Block.of(b"new")
    await blocks.put(old)
    async with blocks.arrivals() as arrivals:
        await blocks.put(old)
        await blocks.put(new)
        assert await anext(arrivals) == {new.cid.multihash}


async def _folded_arrivals(blocks: Blockstore) -> None:
    many = [Block.of(str(number).encode()) for number in range(50)]
    async with blocks.arrivals() as slow, blocks.arrivals() as quick:
        await blocks.put(many[0])
        assert await anext(quick) == {many[0].cid.multihash}
        for block in many[1:]:
            await blocks.put(block)
        assert await anext(slow) == {block.cid.multihash for block in many}
        assert await anext(quick) == {block.cid.multihash for block in many[1:]}
        with trio.move_on_after(0.01):
            await anext(slow)
            raise AssertionError("the same news twice")


async def _many_writers(blocks: Blockstore) -> None:
    async def write(start: int) -> None:
        for number in range(start, start + 10):
            block = Block.of(f"block {number}".encode())
            await blocks.put(block)
            assert bytes((await blocks.get(block.cid)).data) == block.data

    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            for start in range(0, 100, 5):
                nursery.start_soon(write, start)
    assert not scope.cancelled_caught
    for number in range(105):
        assert blocks.has(Cid.of(RAW, f"block {number}".encode()))


async def _reopened_blocks(open_store: OpenStore) -> None:
    kept = [Block.of(pattern(size)) for size in INTERESTING_SIZES if size <= MAX_BLOCK_BYTES]
    gone = Block.of(b"gone")
    async with open_store("reopened blocks") as (blocks, _):
        await blocks.put_many([*kept, gone])
        await blocks.delete([gone.cid])
    async with open_store("reopened blocks") as (blocks, _):
        for block in kept:
            assert bytes((await blocks.get(block.cid)).data) == block.data
        assert not blocks.has(gone.cid)


# ---------------------------------------------------------------------- blobs


async def _push(blobs: BlobStore, data: bytes, *, piece: int = 300_000, algorithm: str = "sha256") -> BlobInfo:
    upload = await blobs.create_upload(algorithm)
    for start in range(0, len(data), piece):
        await upload.write(data[start : start + piece])
    assert upload.offset == len(data)
    return await upload.commit(Digest.of(data, algorithm))


async def _pour(blobs: BlobStore, data: bytes) -> BlobInfo:
    """The same through the store's own buffers."""
    upload = await blobs.create_upload()
    start = 0
    while start < len(data):
        buffer = await upload.buffer()
        assert (await upload.buffer()).obj is buffer.obj
        piece = data[start : start + len(buffer)]
        buffer[: len(piece)] = piece
        upload.append(len(piece))
        start += len(piece)
        assert upload.offset == start
    await upload.settle()
    return await upload.commit(Digest.of(data))


async def _assert_whole(
    blocks: Blockstore, blobs: BlobStore, data: bytes, profile: Profile = V1_2025, algorithm: str = "sha256"
) -> None:
    """The blob is here, with every block of its DAG."""
    layout, its_blocks = file_blocks(data, profile)
    info = BlobInfo(Digest.of(data, algorithm), len(data), layout.root)
    assert blobs.stat(info.digest) == info
    assert await blobs.read_whole(info.digest, len(data)) == data
    file = blobs.open(info.digest)
    assert file.info == info
    assert await trio.Path(file.path).read_bytes() == data
    for cid, block in its_blocks.items():
        assert blocks.has(cid)
        assert blocks.size_of(cid) == len(block.data)
        found = await blocks.get(cid)
        assert (found.cid, bytes(found.data)) == (cid, bytes(block.data))


def _assert_gone(blocks: Blockstore, blobs: BlobStore, data: bytes) -> None:
    its_blocks = file_blocks(data)[1]
    assert blobs.stat(Digest.of(data)) is None
    assert not any(blocks.has(cid) for cid in its_blocks)


async def _pushes(blocks: Blockstore, blobs: BlobStore) -> None:
    for number, size in enumerate(INTERESTING_SIZES):
        data = bytes((number,)) * min(size, 1) + pattern(max(size, 1))[1:]
        data = data[:size]
        for piece in (max(size, 1), 300_000):
            info = await _push(blobs, data, piece=piece)
            assert info == BlobInfo(Digest.of(data), size, build(data).root)
            assert await _pour(blobs, data) == info
            await _assert_whole(blocks, blobs, data)


async def _wrong_digests(blocks: Blockstore, blobs: BlobStore) -> None:
    for data in (b"small", pattern(CHUNK + 1)):
        upload = await blobs.create_upload()
        await upload.write(data)
        await _raises(DigestMismatch, upload.commit, Digest.of(b"something else"))
        assert blobs.stat(Digest.of(b"something else")) is None
        _assert_gone(blocks, blobs, data)
        await _raises(UploadUnknown, blobs.resume_upload, upload.id)
        await _raises(UploadUnknown, upload.write, b"more")
        await _raises(UploadUnknown, upload.buffer)
        await _raises(UploadUnknown, upload.commit, Digest.of(data))
    await _raises(DigestMismatch, blobs.put_whole, b"data", Digest.of(b"other data"))
    assert list(blobs.blobs()) == []


async def _other_algorithms(blocks: Blockstore, blobs: BlobStore) -> None:
    for data in (b"small", pattern(CHUNK + 1)):
        digest = Digest.of(data, "sha512")
        assert (await _push(blobs, data, algorithm="sha512")).digest == digest
        await _assert_whole(blocks, blobs, data, algorithm="sha512")
        upload = await blobs.create_upload()
        await upload.write(data)
        await upload.commit(digest)
        assert blobs.stat(Digest.of(data)) is None, "known by the digest it was pushed under, and no other"
        await blobs.delete(digest)
        _assert_gone(blocks, blobs, data)


async def _small_blobs(blocks: Blockstore, blobs: BlobStore) -> None:
    for size in INTERESTING_SIZES:
        data = pattern(size)
        info = await blobs.put_whole(data)
        assert info == await blobs.put_whole(data, Digest.of(data))
        assert info == BlobInfo(Digest.of(data), size, build(data).root)
        await _assert_whole(blocks, blobs, data)
        if size:
            await _raises(SizeInvalid, blobs.read_whole, info.digest, info.size - 1)
    await _raises(BlobUnknown, blobs.read_whole, Digest.of(b"unknown"), 10)
    await _raises(BlobUnknown, blobs.open, Digest.of(b"unknown"))


async def _uploads_end(blocks: Blockstore, blobs: BlobStore) -> None:
    upload = await blobs.create_upload()
    other = await blobs.create_upload()
    assert upload.id != other.id
    await upload.write(b"some")
    assert (await blobs.resume_upload(upload.id)).offset == 4
    await upload.abort()
    await upload.abort()
    await _raises(UploadUnknown, blobs.resume_upload, upload.id)
    await _raises(UploadUnknown, upload.write, b"more")
    for nonsense in ("", "..", "../blobs", "x" * 10_000, other.id + "0", other.id[:-1], other.id.upper() + "/"):
        await _raises(UploadUnknown, blobs.resume_upload, nonsense)
    assert await blobs.expire_uploads(3600) == 0
    assert (await blobs.resume_upload(other.id)).offset == 0
    assert await blobs.expire_uploads(-60) == 1
    await _raises(UploadUnknown, blobs.resume_upload, other.id)
    await _raises(UploadUnknown, other.write, b"more")


async def _same_blob_at_once(blocks: Blockstore, blobs: BlobStore) -> None:
    for data in (b"small", pattern(2 * CHUNK + 1)):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(_push, blobs, data)
        await _assert_whole(blocks, blobs, data)


async def _collected_blobs(blocks: Blockstore, blobs: BlobStore) -> None:
    small, large = pattern(100), pattern(V1_2025.chunk_bytes + 5)
    for data in (small, large):
        info = await blobs.put_whole(data)
        assert not await blobs.collect(info.digest, lambda db: True)
        assert blobs.stat(info.digest) == info
        assert blobs.open(info.digest).path.read_bytes() == data
        assert await blobs.collect(info.digest, lambda db: False)
        assert blobs.stat(info.digest) is None
        assert not blocks.has(info.root)
        assert not await blobs.collect(info.digest, lambda db: False), "it is gone already"


async def _deleted_blobs(blocks: Blockstore, blobs: BlobStore) -> None:
    for data in (b"", b"small", pattern(2 * CHUNK)):
        digest = (await _push(blobs, data)).digest
        path = blobs.open(digest).path
        with path.open("rb") as file:
            await blobs.delete(digest)
            assert file.read() == data, "who has it open reads on"
        assert not path.exists()
        _assert_gone(blocks, blobs, data)
        await _raises(BlobUnknown, blobs.delete, digest)
        await _raises(BlobUnknown, blobs.open, digest)
        await _push(blobs, data)
        await _assert_whole(blocks, blobs, data)


async def _shared_leaves(blocks: Blockstore, blobs: BlobStore) -> None:
    start = pattern(2 * CHUNK)
    one, two = start + b"one", start + b"two, which is longer"
    await _push(blobs, one)
    await _push(blobs, two)
    await blobs.delete(Digest.of(one))
    await _assert_whole(blocks, blobs, two)
    assert not blocks.has(build(one).root)
    await _push(blobs, one)
    await blobs.delete(Digest.of(two))
    await _assert_whole(blocks, blobs, one)
    await blobs.delete(Digest.of(one))
    _assert_gone(blocks, blobs, one)
    _assert_gone(blocks, blobs, two)


async def _blocks_of_blobs_stay_theirs(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK + 1)
    its_blocks = file_blocks(data)[1]
    await _push(blobs, data)
    await blocks.delete(its_blocks)
    await _assert_whole(blocks, blobs, data)
    await blocks.put_many(list(its_blocks.values()))
    await blobs.delete(Digest.of(data))
    for cid, block in its_blocks.items():
        assert bytes((await blocks.get(cid)).data) == bytes(block.data), "put by itself, so it stays"
    await blocks.delete(its_blocks)
    _assert_gone(blocks, blobs, data)


async def _listing(blocks: Blockstore, blobs: BlobStore) -> None:
    infos = [await blobs.put_whole(f"blob {number}".encode()) for number in range(20)]
    assert list(blobs.blobs()) == sorted(infos, key=lambda info: info.digest)


# -------------------------------------------------------------------- fetches


async def _fetch(partial: PartialBlob, source: Mapping[Cid, Block], *, start: int = 0, end: int | None = None) -> int:
    """Give *partial* what it wants, the last first; return how many blocks."""
    given = 0
    while wanted := partial.wanted(start, end, limit=7):
        for cid in reversed(wanted):
            await partial.put(source[cid])
            given += 1
    return given


async def _fetches(blocks: Blockstore, blobs: BlobStore) -> None:
    for profile in (V1_2025, KUBO_V1, LITE, V0_2015):
        chunk = profile.chunk_bytes
        # 45 MiB, once: the smallest DAG of a real profile with more than one level of inner nodes.
        deep = (175 * chunk,) if profile is LITE else ()
        for size in (0, 1, chunk - 1, chunk, chunk + 1, 2 * chunk, *deep):
            data = profile.name.encode()[:size] + pattern(size)[len(profile.name) :]
            layout, source = file_blocks(data, profile)
            partial = await blobs.open_partial(Digest.of(data), size, layout.root)
            assert (partial.digest, partial.size, partial.root) == (Digest.of(data), size, layout.root)
            await _fetch(partial, source)
            assert partial.missing_bytes == 0
            assert await partial.read(0, size) == data
            info = await partial.complete()
            assert info == await partial.complete()
            await _assert_whole(blocks, blobs, data, profile)
            assert await partial.read(0, size) == data, "a reader may still be on its way"
            assert list(blobs.partials()) == []
            await blobs.delete(info.digest)
            assert not any(blocks.has(cid) for cid in source)


async def _fetch_of_one_range(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(9 * CHUNK)
    layout, source = file_blocks(data, KUBO_V1)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    start, end = 5 * CHUNK + 1, 5 * CHUNK + 10
    assert partial.wanted(start, end) == [layout.root]
    await partial.put(source[layout.root])
    (leaf,) = partial.wanted(start, end)
    assert not partial.has_range(start, end)
    await partial.put(source[leaf])
    assert partial.has_range(start, end)
    assert partial.wanted(start, end) == []
    assert await partial.read(start, end) == data[start:end]
    assert partial.missing_bytes == len(data) - KUBO_V1.chunk_bytes
    assert len(partial.wanted()) == 35
    assert len(partial.wanted(limit=3)) == 3


async def _one_leaf_everywhere(blocks: Blockstore, blobs: BlobStore) -> None:
    data = bytes(5 * CHUNK) + b"end"
    for profile in (V1_2025, LITE):
        layout, source = file_blocks(data, profile)
        partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
        assert await _fetch(partial, source) == 3, "root, zeros, and the end"
        info = await partial.complete()
        await _assert_whole(blocks, blobs, data, profile)
        await blobs.delete(info.digest)


async def _leaf_of_two_nodes(blocks: Blockstore, blobs: BlobStore) -> None:
    """A block is wanted once: when another node names it later, the store has it already."""
    data = bytes(174 * LITE.chunk_bytes) + b"between" + bytes(LITE.chunk_bytes - 7) + bytes(LITE.chunk_bytes)
    layout, source = file_blocks(data, LITE)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    given: list[Cid] = []
    while wanted := partial.wanted(limit=1):
        given += wanted
        await partial.put(source[wanted[0]])
    assert len(given) == len(set(given)) == len(source)
    await partial.complete()
    assert await blobs.read_whole(Digest.of(data), len(data)) == data
    for cid, block in source.items():
        assert bytes((await blocks.get(cid)).data) == bytes(block.data)


async def _readers_of_a_fetch(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(4 * CHUNK)
    layout, source = file_blocks(data)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    done: list[tuple[int, int]] = []

    async def read(start: int, end: int) -> None:
        await partial.wait_range(start, end)
        assert await partial.read(start, end) == data[start:end]
        done.append((start, end))

    async with trio.open_nursery() as nursery:
        for start, end in ((0, 10), (CHUNK - 5, CHUNK + 5), (2 * CHUNK, 4 * CHUNK), (0, 4 * CHUNK)):
            nursery.start_soon(read, start, end)
        await partial.put(source[layout.root])
        await wait_all_tasks_blocked(0.01)
        assert done == []
        for index, expected in ((1, 0), (0, 2), (3, 2), (2, 4)):
            await partial.put(source[layout.leaves[index]])
            with trio.fail_after(5):
                while len(done) < expected:
                    await wait_all_tasks_blocked(0.001)
            await wait_all_tasks_blocked(0.001)
            assert len(done) == expected
    await partial.complete()
    await partial.wait_range(0, len(data))


async def _served_while_arriving(blocks: Blockstore, blobs: BlobStore) -> None:
    for profile in (V1_2025, V0_2015):
        data = pattern(3 * CHUNK + 5)
        layout, source = file_blocks(data, profile)
        partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
        async with blocks.arrivals() as arrivals:
            for cid in (layout.root, *layout.leaves):
                assert not blocks.has(cid)
                await partial.put(source[cid])
                assert await anext(arrivals) == {cid.multihash}
                assert blocks.has(cid)
                assert blocks.size_of(cid) == len(source[cid].data)
                assert bytes((await blocks.get(cid)).data) == bytes(source[cid].data)
        assert blobs.stat(Digest.of(data)) is None, "not whole before it is complete"
        await partial.complete()
        await blobs.delete(Digest.of(data))


async def _unwanted_blocks(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK)
    layout, source = file_blocks(data)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    await partial.put(Block.of(b"unasked for"))
    await partial.put(source[layout.leaves[0]])  # nobody has named it yet
    assert partial.missing_bytes == len(data)
    assert not blocks.has(Cid.of(RAW, b"unasked for"))
    await partial.put(source[layout.root])
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(partial.put, source[layout.leaves[0]])
    assert partial.missing_bytes == CHUNK


async def _lying_roots(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK)
    layout, source = file_blocks(data)
    for digest, size in ((Digest.of(b"another blob"), len(data)), (Digest.of(data), len(data) - 1)):
        partial = await blobs.open_partial(digest, size, layout.root)
        failures: list[str] = []

        async def read(partial: PartialBlob = partial, failures: list[str] = failures) -> None:
            try:
                await partial.wait_range(0, partial.size)
                await partial.complete()
            except DigestMismatch:
                failures.append("reader")

        async def fetch(partial: PartialBlob = partial, failures: list[str] = failures) -> None:
            try:
                await _fetch(partial, source)
                await partial.complete()
            except DigestMismatch:
                failures.append("fetcher")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await wait_all_tasks_blocked(0.001)
            nursery.start_soon(fetch)
        assert sorted(failures) == ["fetcher", "reader"]
        assert not any(blocks.has(cid) for cid in source), "all of it is thrown away"
        assert list(blobs.partials()) == []
    impossible = Cid.of(RAW, b"tiny")
    partial = await blobs.open_partial(Digest.of(data), 1000, impossible)
    await _raises(DigestMismatch, partial.put, Block.of(b"tiny"))
    await _raises(DigestMismatch, blobs.open_partial, Digest.of(data), 10 * MAX_BLOCK_BYTES, impossible)
    assert list(blobs.partials()) == []


async def _abandoned_fetches(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(3 * CHUNK)
    layout, source = file_blocks(data)
    digest = Digest.of(data)
    partial = await blobs.open_partial(digest, len(data), layout.root)
    await partial.put(source[layout.root])
    await partial.put(source[layout.leaves[1]])
    failures: list[int] = []

    async def read(start: int) -> None:
        try:
            await partial.wait_range(start, len(data))
        except BlockNotFound:
            failures.append(start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 0)
        nursery.start_soon(read, 2 * CHUNK)
        await wait_all_tasks_blocked(0.001)
        await partial.abandon()
        await partial.abandon()
    assert sorted(failures) == [0, 2 * CHUNK]
    await partial.wait_range(CHUNK, 2 * CHUNK)
    assert blocks.has(layout.leaves[1]), "it goes on being served"
    again = await blobs.open_partial(digest, len(data), layout.root)
    assert again.wanted() == [layout.leaves[0], layout.leaves[2]]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(again.wait_range, 0, len(data))
        await _fetch(again, source)
    await again.complete()
    await _assert_whole(blocks, blobs, data)


async def _another_root(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK)
    digest = Digest.of(data)
    ours, source = file_blocks(data)
    theirs, their_source = file_blocks(data, V0_2015)
    partial = await blobs.open_partial(digest, len(data), theirs.root)
    assert await blobs.open_partial(digest, len(data), theirs.root) is partial
    await partial.put(their_source[theirs.root])
    await _raises(StoreError, blobs.open_partial, digest, len(data), ours.root)
    await partial.abandon()
    partial = await blobs.open_partial(digest, len(data), ours.root)
    assert not blocks.has(theirs.root)
    await _fetch(partial, source)
    await partial.complete()
    await _assert_whole(blocks, blobs, data)


async def _dropped_fetches(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK)
    layout, source = file_blocks(data)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    await partial.put(source[layout.root])
    await partial.put(source[layout.leaves[0]])
    assert list(blobs.partials()) == [BlobInfo(Digest.of(data), len(data), layout.root)]
    await blobs.drop_partial(Digest.of(data))
    await blobs.drop_partial(Digest.of(data))
    await _raises(BlockNotFound, partial.wait_range, CHUNK, CHUNK + 1)
    assert list(blobs.partials()) == []
    assert not blocks.has(layout.root)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    assert partial.wanted() == [layout.root]


async def _expired_fetches(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK)
    layout, source = file_blocks(data)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    await partial.put(source[layout.root])
    assert await blobs.expire_partials(-60) == 0, "somebody works on it"
    await partial.abandon()
    assert await blobs.expire_partials(3600) == 0
    assert list(blobs.partials()) != []
    assert await blobs.expire_partials(-60) == 1
    assert list(blobs.partials()) == []
    assert not blocks.has(layout.root)


async def _pushed_while_fetched(blocks: Blockstore, blobs: BlobStore) -> None:
    data = pattern(2 * CHUNK + 3)
    layout, source = file_blocks(data)
    partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
    await partial.put(source[layout.root])
    await partial.put(source[layout.leaves[0]])
    await _push(blobs, data)
    await _assert_whole(blocks, blobs, data)
    await _fetch(partial, source)
    await partial.complete()
    await _assert_whole(blocks, blobs, data)


async def _pushed_after_fetched_in_another_layout(blocks: Blockstore, blobs: BlobStore) -> None:
    for size in (1, 3000, 64 * 1024, CHUNK + 1):
        data = pattern(size)
        layout, source = file_blocks(data, V0_2015)
        partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
        await _fetch(partial, source)
        await partial.complete()
        await _push(blobs, data)
        await blobs.verify(Digest.of(data))
        await _assert_whole(blocks, blobs, data, V0_2015)


async def _verified(blocks: Blockstore, blobs: BlobStore) -> None:
    for size in INTERESTING_SIZES:
        data = pattern(size)
        await _push(blobs, data)
        await blobs.verify(Digest.of(data))
        await _assert_whole(blocks, blobs, data)
    await _raises(BlobUnknown, blobs.verify, Digest.of(b"unknown"))


# ------------------------------------------------------------------- reopened


async def _reopened_blobs(open_store: OpenStore) -> None:
    contents = [pattern(size) for size in INTERESTING_SIZES]
    gone = pattern(CHUNK + 2)
    async with open_store("reopened blobs") as (_, blobs):
        for data in (*contents, gone):
            await _push(blobs, data)
        await blobs.delete(Digest.of(gone))
    async with open_store("reopened blobs") as (blocks, blobs):
        for data in contents:
            await _assert_whole(blocks, blobs, data)
        assert blobs.stat(Digest.of(gone)) is None
        assert len(list(blobs.blobs())) == len(contents)


async def _reopened_uploads(open_store: OpenStore) -> None:
    contents = [pattern(size) for size in INTERESTING_SIZES]
    async with open_store("reopened uploads") as (_, blobs):
        ids = []
        for data in contents:
            upload = await blobs.create_upload()
            await upload.write(data[: len(data) // 2])
            ids.append(upload.id)
    async with open_store("reopened uploads") as (blocks, blobs):
        for upload_id, data in zip(ids, contents, strict=True):
            upload = await blobs.resume_upload(upload_id)
            assert upload.offset == len(data) // 2
            await upload.write(data[upload.offset :])
            await upload.commit(Digest.of(data))
            await _assert_whole(blocks, blobs, data)
            await _raises(UploadUnknown, blobs.resume_upload, upload_id)


async def _reopened_fetches(open_store: OpenStore) -> None:
    for profile in (V1_2025, KUBO_V1, V0_2015):
        data = pattern(5 * CHUNK + 1)
        layout, source = file_blocks(data, profile)
        half = random.Random(5).sample(layout.leaves, len(layout.leaves) // 2)
        async with open_store(profile.name) as (_, blobs):
            partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
            await partial.put(source[layout.root])
            for cid in half:
                await partial.put(source[cid])
            await partial.abandon()
        async with open_store(profile.name) as (blocks, blobs):
            assert list(blobs.partials()) == [BlobInfo(Digest.of(data), len(data), layout.root)]
            partial = await blobs.open_partial(Digest.of(data), len(data), layout.root)
            assert partial.wanted() == [cid for cid in layout.leaves if cid not in half], "only what is missing"
            assert all(blocks.has(cid) for cid in half)
            await _fetch(partial, source)
            await partial.complete()
            await _assert_whole(blocks, blobs, data, profile)

"""The shared check of the `Names` promises. `MemoryNames` and the replica both pass it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import trio

from ipfsreg.crdt.interface import Change, Delete, KeyChanged, Names, Put
from ipfsreg.ipld.cid import DAG_PB, Cid

OpenNames = Callable[[], AbstractAsyncContextManager[Names]]
"""Opens an empty store of names whose `ends_in` knows the mark `/_l/`."""


async def check_names(open_names: OpenNames) -> None:
    """Raise AssertionError unless *open_names* keeps the `Names` promises."""
    for check in _CHECKS:
        async with open_names() as names:
            await check(names)


async def _values(names: Names) -> None:
    assert names.get("/a") is None
    await names.commit([Put("/a", b"1"), Put("/b/c", b"\x00\xff")])
    assert (names.get("/a"), names.get("/b/c"), names.get("/b")) == (b"1", b"\x00\xff", None)
    await names.commit([Put("/a", b"2")])
    assert names.get("/a") == b"2"
    await names.commit([Delete("/a")])
    assert names.get("/a") is None
    await names.commit([Put("/a", b"1")])
    assert names.get("/a") == b"1", "what was deleted can come back"


async def _generation(names: Names) -> None:
    await names.commit([Put("/a", b"1")])
    for value in (b"2", b"3"):
        before = names.generation
        async with trio.open_nursery() as nursery:
            nursery.start_soon(names.commit, [Put("/a", value)])
            while names.get("/a") != value:
                await trio.lowlevel.checkpoint()
        assert names.generation != before, "who sees the new value must not go by the old one"
    before = names.generation
    assert (names.get("/a"), names.generation) == (b"3", before)


async def _scans(names: Names) -> None:
    keys = ["/a", "/a/b", "/a/b/c", "/aa", "/b", "/b/\U0010ffff", "/b/\ue000", "/é"]
    await names.commit([Put(key, key.encode()) for key in keys])
    everything = [(key, key.encode()) for key in sorted(keys, key=str.encode)]
    assert names.scan("/") == everything
    assert names.scan("") == everything
    assert [key for key, _ in names.scan("/a/")] == ["/a/b", "/a/b/c"]
    assert [key for key, _ in names.scan("/a")] == ["/a", "/a/b", "/a/b/c", "/aa"]
    assert [key for key, _ in names.scan("/a", after="/a/b")] == ["/a/b/c", "/aa"]
    assert [key for key, _ in names.scan("/a", after="/a/b", limit=1)] == ["/a/b/c"]
    assert names.scan("/a", limit=0) == []
    assert names.scan("/a", after="/b") == []
    assert [key for key, _ in names.scan("/b/")] == ["/b/\ue000", "/b/\U0010ffff"]
    assert names.scan("/b/\U0010ffff") == [("/b/\U0010ffff", "/b/\U0010ffff".encode())]


async def _refusals(names: Names) -> None:
    refused: list[list[Change]] = [
        [Put("/a", b"")],
        [Put("a", b"1")],
        [Put("/a/../b", b"1")],
        [Put("/a//b", b"1")],
        [Put("/a/", b"1")],
        [Put("/", b"1")],
        [Put("/a\0", b"1")],
        [Put("/" + "x" * 1024, b"1")],
        [Put("/a", b"1"), Delete("/a")],
        [Put("/a", bytes(1024 * 1024 + 1))],
    ]
    for changes in refused:
        try:
            await names.commit(changes)
        except ValueError:
            continue
        raise AssertionError(f"{changes[0].key!r} was taken")
    assert names.scan("/") == []


async def _heads(names: Names) -> None:
    assert names.heads() == ()
    assert await names.commit([Delete("/a")]) == ()
    first = await names.commit([Put("/a", b"1")])
    assert len(first) == 1
    assert first == names.heads()
    second = await names.commit([Put("/a", b"2")])
    assert second == names.heads()
    assert second != first
    assert await names.commit([Delete("/nothing")]) == second, "deleting nothing is not a change"
    assert await names.commit([]) == second


async def _news(names: Names) -> None:
    await names.commit([Put("/a/old", b"0")])
    async with names.changes(["/a/"]) as changes:
        await names.commit([Put("/b", b"1"), Put("/a/x", b"1")])
        assert await anext(changes) == KeyChanged("/a/x", None, b"1")
        await names.commit([Put("/a/x", b"2")])
        assert await anext(changes) == KeyChanged("/a/x", b"1", b"2")
        await names.commit([Delete("/a/x"), Delete("/a/none")])
        assert await anext(changes) == KeyChanged("/a/x", b"2", None)
        with trio.move_on_after(0.01) as scope:
            await anext(changes)
        assert scope.cancelled_caught, "nothing else changed"


async def _folding(names: Names) -> None:
    async with names.changes() as slow, names.changes() as other:
        await names.commit([Put("/a", b"1")])
        assert (await anext(other)).new == b"1"
        await names.commit([Put("/b", b"1")])
        await names.commit([Put("/a", b"2")])
        await names.commit([Put("/a", b"3")])
        told = {change.key: change for change in (await anext(slow), await anext(slow))}
        assert told == {"/a": KeyChanged("/a", None, b"3"), "/b": KeyChanged("/b", None, b"1")}


async def _many_writers(names: Names) -> None:
    async def write(number: int) -> None:
        heads = await names.commit([Put(f"/k/{number:03}", str(number).encode()), Put("/shared", str(number).encode())])
        assert heads
        assert names.get(f"/k/{number:03}") == str(number).encode()

    async with trio.open_nursery() as nursery:
        for number in range(100):
            nursery.start_soon(write, number)
    assert len(names.scan("/k/")) == 100
    assert names.get("/shared") is not None


async def _versions(names: Names) -> None:
    assert names.versions("/a") == frozenset()
    await names.commit([Put("/a", b"1"), Put("/b", b"1")])
    first = names.versions("/a")
    assert len(first) == 1
    await names.commit([Put("/a", b"1")])
    both = names.versions("/a")
    assert both > first
    assert len(both) == 2, "writing the same value again is a write"
    async with names.changes() as changes:
        await names.commit([Delete("/a", first)])
        assert names.get("/a") == b"1", "a write that the deletion did not know stays"
        assert names.versions("/a") == both - first
        heads = names.heads()
        assert await names.commit([Delete("/a", first)]) == heads, "what is gone already is no change"
        await names.commit([Put("/c", b"1")])
        assert (await anext(changes)).key == "/c", "what keeps its value is no news"
    await names.commit([Delete("/a", both)])
    assert names.get("/a") is None
    assert names.versions("/a") == frozenset()
    assert names.get("/b") == b"1"


async def _endings(names: Names) -> None:
    digests = [f"sha256:{one * 64}" for one in "abc"]
    await names.commit([Put(f"/r/team/app/_l/{digests[0]}", b"1"), Put(f"/r/x/_l/{digests[0]}", b"1")])
    await names.commit([Put(f"/r/x/_l/{digests[1][:-1]}B", b"1"), Put(f"/r/x/_m/{digests[2]}", b"1")])
    assert [names.ends_in("/_l/", digest) for digest in digests] == [True, False, False]
    await names.commit([Delete(f"/r/team/app/_l/{digests[0]}")])
    assert names.ends_in("/_l/", digests[0])
    await names.commit([Delete(f"/r/x/_l/{digests[0]}")])
    assert not names.ends_in("/_l/", digests[0])


async def _waiting(names: Names) -> None:
    await names.wait_merged([])
    first = await names.commit([Put("/a", b"1")])
    await names.commit([Put("/a", b"2")])
    with trio.fail_after(1):
        await names.wait_merged(first)
        await names.wait_merged(names.heads())
    with trio.move_on_after(0.01) as scope:
        await names.wait_merged([*first, Cid.of(DAG_PB, b"of somebody else")])
    assert scope.cancelled_caught, "one that is missing is enough to wait"


async def _cancelled_commit(names: Names) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        await names.commit([Put("/a", b"1"), Put("/b", b"1")])
    await names.commit([Put("/c", b"1")])
    assert (names.get("/a") is None) == (names.get("/b") is None), "all or nothing"


_CHECKS = (
    _values,
    _generation,
    _scans,
    _versions,
    _endings,
    _refusals,
    _heads,
    _news,
    _folding,
    _many_writers,
    _cancelled_commit,
    _waiting,
)

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfsreg.crdt.feed import ChangeFeed
from ipfsreg.crdt.interface import KeyChanged


async def test_changes_of_one_key_are_folded_to_first_old_and_last_new() -> None:
    feed = ChangeFeed()
    with feed.reader(["/"]) as reader:
        feed.publish([KeyChanged("/a", None, b"1"), KeyChanged("/b", b"x", None), KeyChanged("/a", b"1", b"2")])
        assert await anext(reader) == KeyChanged("/b", b"x", None)
        assert await anext(reader) == KeyChanged("/a", None, b"2")


async def test_what_returns_to_the_value_last_seen_is_no_news(autojump_clock: MockClock) -> None:
    feed = ChangeFeed()
    with feed.reader(["/"]) as reader:
        feed.publish([KeyChanged("/a", b"1", b"2"), KeyChanged("/a", b"2", b"1")])
        with trio.move_on_after(1) as scope:
            await anext(reader)
        assert scope.cancelled_caught


async def test_a_reader_hears_only_its_prefixes_and_only_inside_the_block() -> None:
    feed = ChangeFeed()
    with feed.reader(["/a/", "/c"]) as reader:
        feed.publish(KeyChanged(key, None, b"1") for key in ("/a", "/a/b", "/b", "/cd"))
        assert [(await anext(reader)).key, (await anext(reader)).key] == ["/a/b", "/cd"]
    feed.publish([KeyChanged("/a/c", None, b"1")])
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(reader)
    assert scope.cancelled_caught, "it was for no one inside any more"


async def test_a_waiting_reader_is_woken(nursery: trio.Nursery) -> None:
    feed = ChangeFeed()
    got: list[KeyChanged] = []

    async def read() -> None:
        got.append(await anext(reader))

    with feed.reader(["/"]) as reader:
        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        assert got == []
        feed.publish([KeyChanged("/a", None, b"1")])
        await wait_all_tasks_blocked()
        assert got == [KeyChanged("/a", None, b"1")]

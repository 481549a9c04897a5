import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfsreg.crdt.delta import Delta, Element, Node, build_node
from ipfsreg.crdt.intake import MAX_ARRIVALS, MAX_COMMITS, MAX_WAITING_BYTES, Intake
from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.state import MAX_WANTED_TIPS, VoidNode
from ipfsreg.errors import StoreError, StoreFull


def node(number: int, size: int = 1) -> Node:
    return build_node([], Delta((Element(f"/{number}", bytes(size)),), (), 1))


async def taken(intake: Intake) -> object:
    batch = await intake.take()
    assert batch is not None
    intake.taken_in(batch.work.arrivals)
    batch.finish()
    return batch.work


async def test_what_waits_is_taken_together_and_once() -> None:
    intake = Intake()
    await taken(intake)
    tip, arrival = b"tip", node(1)
    assert intake.add_tip(tip)
    await intake.add_arrival(arrival)
    await intake.add_arrival(arrival)
    batch = await intake.take()
    assert batch is not None
    assert (batch.work.tips, batch.work.arrivals) == ([tip], [arrival])
    assert intake.holds(arrival.multihash), "until it is in the tables"
    intake.taken_in(batch.work.arrivals)
    assert not intake.holds(arrival.multihash)


async def test_a_commit_returns_when_it_is_durable_or_failed(nursery: trio.Nursery) -> None:
    intake = Intake()
    await taken(intake)
    log: list[str] = []

    async def commit(key: str) -> None:
        try:
            await intake.commit([Put(key, b"1")])
            log.append(f"{key} is durable")
        except StoreFull:
            log.append(f"{key} failed")

    for error in (None, StoreFull("full")):
        nursery.start_soon(commit, "/bad" if error else "/good")
        await wait_all_tasks_blocked()
        batch = await intake.take()
        assert batch is not None
        await wait_all_tasks_blocked()
        assert len(log) == bool(error)
        batch.finish(error)
        await wait_all_tasks_blocked()
    assert log == ["/good is durable", "/bad failed"]


async def test_who_brings_more_than_the_disk_takes_waits(nursery: trio.Nursery) -> None:
    intake = Intake()
    await taken(intake)
    brought: list[int] = []

    async def bring() -> None:
        for number in range(12):
            await intake.add_arrival(node(number, 1_000_000))
            brought.append(number)

    nursery.start_soon(bring)
    await wait_all_tasks_blocked()
    assert len(brought) == MAX_WAITING_BYTES // 1_000_000 + 1
    await taken(intake)
    await wait_all_tasks_blocked()
    assert len(brought) == 2 * (MAX_WAITING_BYTES // 1_000_000 + 1)
    await taken(intake)
    await wait_all_tasks_blocked()
    assert len(brought) == 12


async def test_a_node_that_comes_twice_takes_room_once(autojump_clock: MockClock) -> None:
    intake = Intake()
    for _ in range(5):
        await intake.add_arrival(node(1, 1_500_000))
    with trio.fail_after(1):
        await intake.add_arrival(node(2))


async def test_a_transaction_is_bounded_and_the_rest_follows(nursery: trio.Nursery) -> None:
    intake = Intake()
    for number in range(MAX_ARRIVALS + 1):
        await intake.add_arrival(VoidNode(b"%d" % number, "nonsense"))
    for number in range(MAX_COMMITS + 1):
        nursery.start_soon(intake.commit, [Put(f"/{number}", b"1")])
    await wait_all_tasks_blocked()
    sizes = []
    for _ in range(2):
        batch = await intake.take()
        assert batch is not None
        sizes.append((len(batch.work.arrivals), len(batch.work.commits)))
        intake.taken_in(batch.work.arrivals)
        batch.finish()
    assert sizes == [(MAX_ARRIVALS, MAX_COMMITS), (1, 1)]


def test_tips_beyond_the_limit_must_be_announced_again() -> None:
    intake = Intake()
    assert all(intake.add_tip(b"%d" % number) for number in range(MAX_WANTED_TIPS))
    assert not intake.add_tip(b"one more")


async def test_closing_lets_what_waits_be_taken_and_nothing_new_in(nursery: trio.Nursery) -> None:
    intake = Intake()
    nursery.start_soon(intake.commit, [Put("/a", b"1")])
    await wait_all_tasks_blocked()
    intake.close()
    with pytest.raises(StoreError):
        await intake.commit([Put("/b", b"1")])
    assert await taken(intake)
    assert await intake.take() is None

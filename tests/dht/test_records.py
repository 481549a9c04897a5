from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from ipfsreg.dht.records import MAX_UNWRITTEN, ProviderRecords, open_records
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.errors import StoreFull
from ipfsreg.testing.dht import numbered_contact
from ipfsreg.testing.inline_database import InlineDatabase, open_inline_database

KEY = b"\x12\x20" + bytes(32)
HOUR = 3600.0


class Clock:
    now = 1.7e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@asynccontextmanager
async def opened(
    tmp_path: Path, clock: Clock, settings: DhtSettings | None = None
) -> AsyncIterator[tuple[ProviderRecords, InlineDatabase]]:
    async with (
        open_inline_database(tmp_path / "db") as database,
        open_records(database, settings or DhtSettings(), clock) as records,
    ):
        yield records, database


def key(number: int) -> bytes:
    return b"\x12\x20" + number.to_bytes(32, "big")


async def test_a_record_is_known_at_once_and_after_a_restart(
    autojump_clock: MockClock, tmp_path: Path, clock: Clock
) -> None:
    alice, bob = numbered_contact(1), numbered_contact(2)
    async with opened(tmp_path, clock) as (records, _):
        records.add(KEY, alice)
        assert records.providers_of(KEY) == [alice]
        await trio.sleep(2)
        clock.now += 1
        records.add(KEY, bob)
        assert records.providers_of(KEY) == [bob, alice]
        assert records.providers_of(key(1)) == []
    async with opened(tmp_path, clock) as (records, _):
        assert records.providers_of(KEY) == [bob, alice]
        assert len(records) == 2


async def test_a_record_runs_out_after_two_days_unless_renewed(
    autojump_clock: MockClock, tmp_path: Path, clock: Clock
) -> None:
    alice, bob = numbered_contact(1), numbered_contact(2)
    async with opened(tmp_path, clock) as (records, database):
        records.add(KEY, alice)
        records.add(KEY, bob)
        await records.flush()
        clock.now += 47 * HOUR
        records.add(KEY, alice)
        await records.flush()
        clock.now += 2 * HOUR
        assert records.providers_of(KEY) == [alice]
        await records.expire()
        assert len(records) == 1
        # The provider without records is forgotten, with its addresses.
        assert [row[0] for row in database.read("SELECT peer FROM dht_providers")] == [alice.peer.raw]


async def test_the_latest_addresses_hold_for_all_records_of_a_provider(
    autojump_clock: MockClock, tmp_path: Path, clock: Clock
) -> None:
    old = numbered_contact(1, b"\x04\x01\x01\x01\x01\x06\x0f\xa1")
    new = numbered_contact(1, b"\x04\x02\x02\x02\x02\x06\x0f\xa1")
    async with opened(tmp_path, clock) as (records, _):
        records.add(key(1), old)
        await records.flush()
        records.add(key(2), new)
        await records.flush()
        assert records.providers_of(key(1)) == [new]


async def test_a_provider_gets_its_share_and_no_more(autojump_clock: MockClock, tmp_path: Path, clock: Clock) -> None:
    settings = DhtSettings(max_records_per_provider=10)
    greedy, modest = numbered_contact(1), numbered_contact(2)
    async with opened(tmp_path, clock, settings) as (records, _):
        for number in range(25):
            records.add(key(number), greedy)
            if number == 12:
                await records.flush()
        records.add(key(99), modest)
        await records.flush()
        assert len(records) == 11
        assert records.providers_of(key(99)) == [modest]
        # Those it has can still be renewed.
        clock.now += 47 * HOUR
        records.add(key(3), greedy)
        await records.flush()
        clock.now += 2 * HOUR
        assert records.providers_of(key(3)) == [greedy]


async def test_all_records_together_are_bounded(autojump_clock: MockClock, tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock, DhtSettings(max_records=20)) as (records, database):
        for number in range(100):
            records.add(key(number), numbered_contact(number))
        await records.flush()
        assert len(records) == 20
        assert database.read("SELECT COUNT(*) FROM dht_records").fetchone() == (20,)
        assert database.read("SELECT COUNT(*) FROM dht_providers").fetchone() == (20,)


async def test_for_one_key_the_oldest_makes_way(autojump_clock: MockClock, tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock, DhtSettings(max_records_per_key=3)) as (records, database):
        contacts = [numbered_contact(number) for number in range(5)]
        for contact in contacts:
            clock.now += 1
            records.add(KEY, contact)
        await records.flush()
        assert records.providers_of(KEY) == contacts[:1:-1]
        assert len(records) == 3
        assert database.read("SELECT SUM(records) FROM dht_providers").fetchone() == (3,)


async def test_whoever_brings_more_than_can_be_written_waits(
    autojump_clock: MockClock, tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as (records, _), trio.open_nursery() as nursery:
        greedy = numbered_contact(1)
        for number in range(MAX_UNWRITTEN + 10):
            records.add(key(number), greedy)
        assert len(records) == MAX_UNWRITTEN
        nursery.start_soon(records.wait_room)
        await wait_all_tasks_blocked()
        assert nursery.child_tasks
        await trio.sleep(3)
        assert not nursery.child_tasks
        assert len(records) == MAX_UNWRITTEN


async def test_a_full_disk_costs_records_and_holds_nobody_up(
    autojump_clock: MockClock, tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as (records, database):
        database.fail_with = StoreFull("no room")
        records.add(KEY, numbered_contact(1))
        await trio.sleep(5)
        assert len(records) == 1
        for number in range(MAX_UNWRITTEN):
            records.add(key(number), numbered_contact(2))
        with trio.fail_after(5):
            await records.wait_room()
        database.fail_with = None
        records.add(KEY, numbered_contact(3))
        await trio.sleep(2)
        assert [contact.peer for contact in records.providers_of(KEY)] == [numbered_contact(3).peer]


async def test_what_a_wrong_clock_wrote_goes(autojump_clock: MockClock, tmp_path: Path, clock: Clock) -> None:
    clock.now += 1e9
    async with opened(tmp_path, clock) as (records, _):
        records.add(KEY, numbered_contact(1))
    clock.now -= 1e9
    async with opened(tmp_path, clock) as (records, _):
        assert len(records) == 0

"""Addresses of peers: bounded, ordered by what worked, and still there after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from ipfsreg.database import open_database
from ipfsreg.p2p import addressbook
from ipfsreg.p2p.addressbook import AddressBook, open_addressbook
from ipfsreg.peer_id import PeerId
from ipfsreg.testing.network import peer_of

US, ALICE, BOB = peer_of("us"), peer_of("alice"), peer_of("bob")
ONE, TWO, THREE = (f"/ip4/10.0.0.{n}/tcp/4619" for n in (1, 2, 3))


class Clock:
    """Stands still until told."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def stranger(number: int) -> PeerId:
    return PeerId(b"\x12\x20" + number.to_bytes(32, "big"))


def test_what_worked_comes_before_what_was_claimed() -> None:
    clock = Clock()
    book = AddressBook(US, clock)
    book.add(ALICE, [ONE, TWO, THREE], ttl_s=60)
    book.confirm(ALICE, TWO)
    clock.now += 1
    book.confirm(ALICE, THREE)
    assert book.addrs_of(ALICE) == [THREE, TWO, ONE]


def test_claims_expire_and_confirmed_addresses_live_longer() -> None:
    clock = Clock()
    book = AddressBook(US, clock)
    book.add(ALICE, [ONE, TWO], ttl_s=60)
    book.confirm(ALICE, TWO)
    clock.now += 61
    assert book.addrs_of(ALICE) == [TWO]
    clock.now += addressbook.CONFIRMED_TTL_S
    assert book.addrs_of(ALICE) == []
    assert book.remembered() == []


def test_an_address_that_keeps_failing_comes_last_and_is_not_forgotten() -> None:
    clock = Clock()
    book = AddressBook(US, clock)
    book.confirm(ALICE, ONE)
    clock.now -= 1
    book.confirm(ALICE, TWO)
    book.add(ALICE, [THREE], ttl_s=60)
    for _ in range(addressbook.FAILURES_TO_DOUBT):
        assert book.addrs_of(ALICE) == [ONE, TWO, THREE]
        book.doubt(ALICE, ONE)
    assert book.addrs_of(ALICE) == [TWO, THREE, ONE]
    for _ in range(100):
        book.doubt(ALICE, TWO)
    assert [info.peer for info in book.remembered()] == [ALICE], "as after a day without any network"
    clock.now += 2
    book.confirm(ALICE, ONE)
    assert book.addrs_of(ALICE) == [ONE, THREE, TWO]


def test_our_own_addresses_are_nobody_elses() -> None:
    book = AddressBook(US, Clock())
    book.set_own_addrs([ONE])
    book.add(ALICE, [ONE, TWO], ttl_s=60)
    book.add(US, [THREE], ttl_s=60)
    assert book.addrs_of(ALICE) == [TWO]
    assert book.addrs_of(US) == []


def test_nonsense_is_left_out() -> None:
    book = AddressBook(US, Clock())
    book.add(ALICE, ["nonsense", "", ONE + "/p2p/" + str(ALICE), "/ip4/10.0.0.1/udp/1/quic-v1"], ttl_s=60)
    assert book.addrs_of(ALICE) == [ONE, "/ip4/10.0.0.1/udp/1/quic-v1"]


def test_a_flood_of_claims_pushes_out_no_address_that_worked() -> None:
    book = AddressBook(US, Clock())
    book.confirm(ALICE, ONE)
    for number in range(addressbook.MAX_CLAIMED_PEERS + 100):
        book.add(stranger(number), [TWO], ttl_s=10**9)
    book.add(ALICE, [f"/ip4/10.0.0.1/tcp/{port}" for port in range(1, 1000)], ttl_s=10**9)
    assert book.addrs_of(ALICE)[0] == ONE
    assert len(book.addrs_of(ALICE)) == addressbook.MAX_ADDRS_PER_PEER
    assert book.addrs_of(stranger(0)) == []
    known = sum(bool(book.addrs_of(stranger(number))) for number in range(addressbook.MAX_CLAIMED_PEERS + 100))
    assert known == addressbook.MAX_CLAIMED_PEERS


async def test_addresses_survive_a_restart(tmp_path: Path) -> None:
    clock = Clock()
    async with open_database(tmp_path / "db") as database:
        async with open_addressbook(US, database, clock) as book:
            book.add(ALICE, [ONE], ttl_s=60)
            book.confirm(ALICE, TWO)
            book.add(BOB, [THREE], ttl_s=60)
        async with open_addressbook(US, database, clock) as book:
            assert book.addrs_of(ALICE) == [TWO, ONE]
            assert book.addrs_of(BOB) == [THREE]
            assert [info.peer for info in book.remembered()] == [ALICE]
            clock.now += 61
        async with open_addressbook(US, database, clock) as book:
            assert book.addrs_of(ALICE) == [TWO]
            assert book.addrs_of(BOB) == []


async def test_changes_are_written_while_running_and_peers_pushed_out_are_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addressbook, "WRITE_EVERY_S", 0.01)
    monkeypatch.setattr(addressbook, "MAX_CLAIMED_PEERS", 2)
    async with open_database(tmp_path / "db") as database, open_addressbook(US, database) as book:
        for number in range(3):
            book.add(stranger(number), [ONE], ttl_s=60)
            with trio.fail_after(10):
                while (stranger(number).raw,) not in database.read("SELECT peer FROM addresses").fetchall():  # noqa: ASYNC110 - a table tells nobody
                    await trio.sleep(0.01)
        rows = database.read("SELECT peer FROM addresses").fetchall()
        assert sorted(rows) == sorted([(stranger(1).raw,), (stranger(2).raw,)])


async def test_rows_nobody_understands_are_skipped(tmp_path: Path) -> None:
    clock = Clock()
    async with open_database(tmp_path / "db") as database:
        async with open_addressbook(US, database, clock) as book:
            book.add(ALICE, [ONE], ttl_s=60)
        await database.write(lambda db: db.execute("INSERT INTO addresses VALUES (x'00', 'x', NULL, 1e300)"))
        await database.write(lambda db: db.execute("UPDATE addresses SET expires = 1e300"))
        async with open_addressbook(US, database, clock) as book:
            assert book.addrs_of(ALICE) == [ONE]
            clock.now += addressbook.MAX_TTL_S + 1
            assert book.addrs_of(ALICE) == []

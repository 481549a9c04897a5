from __future__ import annotations

import os
from pathlib import Path

import trio
from trio.testing import MockClock

from ipfsreg.blockstore.checked import CHECK_AGAIN_S, MAX_ENTRIES, Checked, stamp_of

FILE = (1, 100, 1_700_000_000_000_000_000)


async def test_what_was_checked_is_trusted_for_a_while(mock_clock: MockClock) -> None:
    checked = Checked()
    checked.add("leaf", FILE)
    mock_clock.jump(CHECK_AGAIN_S - 1)
    assert checked.stamp("leaf") == FILE
    assert checked.stamp("other") is None
    mock_clock.jump(2)
    assert checked.stamp("leaf") is None
    checked.add("leaf", FILE)
    assert checked.stamp("leaf") == FILE
    await trio.lowlevel.checkpoint()


async def test_only_so_many_are_remembered_and_the_oldest_go_first() -> None:
    checked = Checked()
    for number in range(MAX_ENTRIES + 10):
        checked.add(number, FILE)
    assert checked.stamp(9) is None
    assert checked.stamp(10) == FILE
    assert checked.stamp(MAX_ENTRIES + 9) == FILE


def test_a_file_that_was_written_to_or_replaced_has_another_stamp(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"data")
    first = stamp_of(path.stat())
    assert stamp_of(path.stat()) == first
    os.utime(path, ns=(0, 5))
    assert stamp_of(path.stat()) != first
    (tmp_path / "other").write_bytes(b"data")
    os.utime(tmp_path / "other", ns=(0, 5))
    second = stamp_of(path.stat())
    os.rename(tmp_path / "other", path)
    assert stamp_of(path.stat()) != second

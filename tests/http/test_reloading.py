"""Files that are read again when they change."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from ipfsreg.errors import ConfigError
from ipfsreg.http import reloading
from ipfsreg.http.reloading import Reloaded, Reloads, open_reloads


class Words:
    """A file that is read whole; one that says `bad` is refused."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.read: list[str] = []

    def reload(self) -> None:
        text = self.path.read_text()
        if text == "bad":
            raise ConfigError("words", text, "must be good")
        self.read.append(text)


@pytest.fixture
def words(tmp_path: Path) -> Words:
    path = tmp_path / "words"
    path.write_text("one")
    return Words(path)


async def test_only_what_has_changed_is_read_again(words: Words) -> None:
    reloads = Reloads([Reloaded((words.path,), words.reload)])
    await reloads.reload(changed_only=True)
    assert words.read == []
    words.path.write_text("three")
    await reloads.reload(changed_only=True)
    await reloads.reload(changed_only=True)
    assert words.read == ["three"]


async def test_everything_is_read_again_when_somebody_says_so(words: Words) -> None:
    reloads = Reloads([Reloaded((words.path,), words.reload)])
    await reloads.reload()
    assert words.read == ["one"]


async def test_a_file_that_was_swapped_for_one_of_the_same_size_has_changed(words: Words, tmp_path: Path) -> None:
    stat = words.path.stat()
    reloads = Reloads([Reloaded((words.path,), words.reload)])
    beside = tmp_path / "beside"
    beside.write_text("two")
    os.utime(beside, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    beside.rename(words.path)
    await reloads.reload(changed_only=True)
    assert words.read == ["two"]


async def test_a_symbolic_link_that_points_elsewhere_has_changed(words: Words, tmp_path: Path) -> None:
    link = Words(tmp_path / "link")
    link.path.symlink_to(words.path)
    reloads = Reloads([Reloaded((link.path,), link.reload)])
    other = tmp_path / "other"
    other.write_text("two")
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").rename(link.path)
    await reloads.reload(changed_only=True)
    assert link.read == ["two"]


async def test_what_is_refused_is_told_and_tried_again_at_its_next_change(
    words: Words, caplog: pytest.LogCaptureFixture
) -> None:
    reloads = Reloads([Reloaded((words.path,), words.reload)])
    words.path.write_text("bad")
    await reloads.reload(changed_only=True)
    await reloads.reload(changed_only=True)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "must be good" in caplog.text
    words.path.write_text("better")
    await reloads.reload(changed_only=True)
    assert words.read == ["better"]


async def test_changes_are_noticed_while_the_block_lasts(words: Words, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reloading, "INTERVAL_S", 0.01)
    read = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def reload() -> None:
        trio.from_thread.run_sync(read.set, trio_token=token)

    async with open_reloads([Reloaded((words.path,), reload)]):
        words.path.write_text("changed")
        with trio.fail_after(5):
            await read.wait()

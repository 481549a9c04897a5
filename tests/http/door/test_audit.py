"""The audit log as a file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ipfsreg.errors import ConfigError
from ipfsreg.http.door.audit import AuditLog


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_in_the_file_at_once_and_cannot_be_forged(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.write("push", user='alice"\n{"event":"push"}', status=201, peer=None, agent="")
    (line,) = lines(tmp_path / "audit")
    assert line == {"time": line["time"], "event": "push", "user": 'alice"\n{"event":"push"}', "status": 201}
    log.close()


def test_what_strangers_choose_is_cut(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit")
    log.write("refused", agent="a" * 30_000)
    assert len((tmp_path / "audit").read_text()) < 700
    log.close()


def test_a_log_that_was_moved_away_is_gone_on_with_under_its_name(tmp_path: Path) -> None:
    path = tmp_path / "audit"
    log = AuditLog(path)
    log.write("one")
    path.rename(tmp_path / "audit.1")
    log.write("two")
    log.reopen()
    log.write("three")
    assert [line["event"] for line in lines(tmp_path / "audit.1")] == ["one", "two"]
    assert [line["event"] for line in lines(path)] == ["three"]
    log.close()


def test_a_start_goes_on_in_the_same_file(tmp_path: Path) -> None:
    for event in ("one", "two"):
        log = AuditLog(tmp_path / "audit")
        log.write(event)
        log.close()
    assert [line["event"] for line in lines(tmp_path / "audit")] == ["one", "two"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"audit\.path"):
        AuditLog(tmp_path / "missing" / "audit")


def test_a_full_disk_is_told_once_and_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    log = AuditLog(Path("/dev/full"))
    for _ in range(3):
        log.write("push")
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "No space left" in caplog.text
    log.close()

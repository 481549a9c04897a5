"""`ipfsreg passwd`."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ipfsreg.cli import passwd
from ipfsreg.cli.main import main
from ipfsreg.http.door import htpasswd
from ipfsreg.http.door.htpasswd import Passwords


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwd, "make_hash", lambda password: htpasswd.make_hash(password, 4))


def run(*arguments: str, stdin: str = "") -> tuple[int, str]:
    result = CliRunner().invoke(main, ["passwd", *arguments], input=stdin)
    return result.exit_code, result.output


def test_a_user_is_added_and_their_password_changed(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    assert run("--stdin", str(path), "alice", stdin="one\n") == (0, "added alice\n")
    assert path.stat().st_mode & 0o777 == 0o600
    assert run("--stdin", str(path), "bob", stdin="two\n") == (0, "added bob\n")
    assert run("--stdin", str(path), "alice", stdin="three\n") == (0, "changed alice\n")
    passwords = Passwords(path)
    assert passwords.check("alice", b"three")
    assert not passwords.check("alice", b"one")
    assert passwords.check("bob", b"two")


def test_a_password_is_asked_for_twice_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    status, output = run(str(path), "alice", stdin="one\ntwo\none\none\n")
    assert status == 0
    assert "do not match" in output
    assert "one" not in output.replace("one of", "")
    assert Passwords(path).check("alice", b"one")


def test_a_user_is_taken_out(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    run("--stdin", str(path), "alice", stdin="one\n")
    assert run("--delete", str(path), "alice") == (0, "removed alice\n")
    assert path.read_text() == ""
    status, output = run("--delete", str(path), "alice")
    assert status == 1
    assert "is not in" in output


def test_comments_and_the_mode_of_the_file_stay(tmp_path: Path) -> None:
    path = tmp_path / "htpasswd"
    path.write_text("# the team\n")
    path.chmod(0o640)
    run("--stdin", str(path), "alice", stdin="one\n")
    assert path.read_text().startswith("# the team\nalice:")
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("")
    link = tmp_path / "htpasswd"
    link.symlink_to("real")
    run("--stdin", str(link), "alice", stdin="one\n")
    assert link.is_symlink()
    assert (tmp_path / "real").read_text().startswith("alice:")


@pytest.mark.parametrize(
    ("user", "password", "told"),
    [
        ("a:b", "x", "no colon"),
        ("@team", "x", "not beginning with @"),
        ("alice", "p" * 73, "1 to 72 bytes"),
        ("alice", "", "1 to 72 bytes"),
    ],
)
def test_what_cannot_be_a_user_or_a_password_is_told(tmp_path: Path, user: str, password: str, told: str) -> None:
    path = tmp_path / "htpasswd"
    status, output = run("--stdin", str(path), user, stdin=f"{password}\n")
    assert status == 1
    assert told in output
    assert not path.exists()


def test_a_file_that_is_no_password_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text("[node]\n")
    status, output = run("--stdin", str(path), "alice", stdin="one\n")
    assert status == 1
    assert "line 1" in output
    assert path.read_text() == "[node]\n"

"""The password file."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import bcrypt
import pytest

from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.http.door.htpasswd import Passwords, make_hash, parse_htpasswd

HASH = "$2y$05$" + "a" * 53


def hash_of(password: bytes, cost: int = 4) -> str:
    return make_hash(password, cost).decode()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "htpasswd"
    path.write_text(f"# ours\n\nalice:{hash_of(b'secret')}\nbøb:{hash_of('pässword'.encode(), 5)}\n")
    return path


def test_the_right_password_of_a_user_is_right(path: Path) -> None:
    passwords = Passwords(path)
    assert passwords.check("alice", b"secret")
    assert passwords.check("bøb", "pässword".encode())
    assert not passwords.check("alice", b"secret2")
    assert not passwords.check("alice", b"")
    assert not passwords.check("carol", b"secret")
    assert not passwords.check("", b"")
    assert passwords.knows("alice")
    assert not passwords.knows("carol")


def test_what_apaches_htpasswd_writes_is_read(path: Path) -> None:
    program = shutil.which("htpasswd")
    assert program is not None, "apache2-utils is not there: scripts/setup --dev installs it"
    subprocess.run([program, "-bB", "-C", "4", path, "carol", "hers"], check=True, capture_output=True)
    assert Passwords(path).check("carol", b"hers")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("alice", "line 2: not a bcrypt hash"),
        ("alice:secret", "line 2: not a bcrypt hash"),
        ("alice:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "not a bcrypt hash"),
        ("alice:$apr1$lZL6V/ci$eIMz/iKDkbtys/uU7LEK00", "not a bcrypt hash"),
        (f"alice:{HASH}x", "not a bcrypt hash"),
        (f"alice:{HASH.replace('05', '31')}", "a bcrypt cost of 31; from 4 to 16"),
        (f"alice:{HASH.replace('05', '03')}", "a bcrypt cost of 3"),
        (f":{HASH}", "cannot be the name of a user"),
        (f"*:{HASH}", "cannot be the name of a user"),
        (f"@team:{HASH}", "cannot be the name of a user"),
        (f"a\x00b:{HASH}", "cannot be the name of a user"),
        (f"first:{HASH}", "user 'first' a second time"),
    ],
)
def test_a_line_that_is_none_is_told_with_its_number(line: str, told: str) -> None:
    with pytest.raises(MalformedData, match=told):
        parse_htpasswd(f"first:{HASH}\n{line}\n")


def test_a_file_that_is_none_is_told(path: Path) -> None:
    for content in (b"\xff\xfe", b"alice:x"):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=r"auth\.htpasswd"):
            Passwords(path)
    with path.open("wb") as file:
        file.truncate(1 << 30)
    with pytest.raises(ConfigError, match="larger than"):
        Passwords(path)
    path.unlink()
    with pytest.raises(ConfigError, match="No such file"):
        Passwords(path)


def test_a_changed_file_is_taken_and_a_broken_one_is_not(path: Path) -> None:
    passwords = Passwords(path)
    generation = passwords.generation
    path.write_text("alice:broken")
    with pytest.raises(ConfigError):
        passwords.reload()
    assert passwords.check("alice", b"secret")
    assert passwords.generation == generation
    path.write_text(f"alice:{hash_of(b'new')}\n")
    passwords.reload()
    assert passwords.check("alice", b"new")
    assert not passwords.check("alice", b"secret")
    assert not passwords.knows("bøb")
    assert passwords.generation > generation


def test_somebody_unknown_is_checked_as_slowly_as_the_slowest_hash(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passwords = Passwords(path)
    costs: list[int] = []
    check = bcrypt.checkpw

    def noting(password: bytes, hashed: bytes) -> bool:
        costs.append(int(hashed[4:6]))
        return check(password, hashed)

    monkeypatch.setattr(bcrypt, "checkpw", noting)
    assert not passwords.check("carol", b"x")
    assert not passwords.check("alice", b"a\0b")
    assert costs == [5, 5]


def test_the_decoys_password_is_nobodys(path: Path) -> None:
    assert not Passwords(path).check("carol", b"nobody's")


def test_a_long_password_is_cut_off_as_whoever_hashed_it_did(path: Path) -> None:
    path.write_text(f"alice:{hash_of(b'p' * 72)}\n")
    passwords = Passwords(path)
    assert passwords.check("alice", b"p" * 80)
    assert not passwords.check("alice", b"p" * 71)


@pytest.mark.parametrize("password", [b"", b"p" * 73, b"a\0b"])
def test_no_password_is_made_that_bcrypt_would_not_read_whole(password: bytes) -> None:
    with pytest.raises(MalformedData, match="1 to 72 bytes"):
        make_hash(password)

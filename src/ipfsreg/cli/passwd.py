"""`ipfsreg passwd`: users in a password file for `auth.htpasswd`."""

from __future__ import annotations

import os
from pathlib import Path

from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.http.door.htpasswd import is_user, make_hash, parse_htpasswd


def set_password(path: Path, user: str, password: str) -> bool:
    """Give *user* a password in the file at *path*, which is made if it is not there. Returns whether the user is new.

    Raises:
        ConfigError: the file is none, the name cannot be one, or the password is too long. Nothing was changed.
    """
    if not is_user(user):
        raise ConfigError("USER", user, "1 to 255 characters, no colon, not beginning with @, * or a blank")
    try:
        hashed = make_hash(password.encode())
    except MalformedData as error:
        raise ConfigError("password", "…", str(error)) from None
    lines = _lines(path)
    kept = [line for line in lines if line.partition(":")[0] != user]
    _write(path, [*kept, f"{user}:{hashed.decode()}"])
    return len(kept) == len(lines)


def remove_user(path: Path, user: str) -> None:
    """Take *user* out of the file at *path*. Raises ConfigError: there is no such user, or the file is none."""
    lines = _lines(path)
    kept = [line for line in lines if line.partition(":")[0] != user]
    if len(kept) == len(lines):
        raise ConfigError("USER", user, f"is not in {path}")
    _write(path, kept)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        parse_htpasswd(text)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError("FILE", str(path), f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, MalformedData) as error:
        raise ConfigError("FILE", str(path), str(error)) from None
    return text.splitlines()


def _write(path: Path, lines: list[str]) -> None:
    """All of it or nothing, with the mode the file had: a running node may read it at any moment."""
    path = path.resolve()
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
        try:
            with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
                file.write("".join(f"{line}\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            beside.rename(path)
        finally:
            beside.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError("FILE", str(path), f"cannot be written: {error.strerror}") from None

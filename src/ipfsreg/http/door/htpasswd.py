"""Passwords in an htpasswd file, bcrypt alone.

A line is `user:hash`, as `htpasswd -B` and `ipfsreg passwd` write it; empty lines and those that begin with `#` are
passed over. Other hashes of htpasswd (MD5, SHA-1, crypt) are refused: they are guessed by the billion.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path

import bcrypt

from ipfsreg.errors import ConfigError, MalformedData

KEY = "auth.htpasswd"

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_COST = 16
"""Each step doubles the time: 12 takes about a quarter of a second, 16 takes four."""
COST = 12
"""Of hashes made here."""

MAX_PASSWORD_BYTES = 72
"""What bcrypt reads. Longer ones are cut off by whoever made the hash, so they are here too, but none is made."""

_HASH = re.compile(r"\$2[abxy]\$(\d\d)\$[./A-Za-z0-9]{53}", re.ASCII)
_USER = re.compile(r"[^\x00-\x20:@*\x7f][^\x00-\x1f:\x7f]{0,254}")


def parse_htpasswd(text: str) -> dict[str, bytes]:
    """User -> hash.

    Raises:
        MalformedData: naming the line and what would be right.
    """
    hashes: dict[str, bytes] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        user, _, hashed = line.partition(":")
        if not is_user(user):
            raise MalformedData(f"line {number}: {user[:40]!r} cannot be the name of a user")
        found = _HASH.fullmatch(hashed)
        if found is None:
            raise MalformedData(f"line {number}: not a bcrypt hash, as `htpasswd -B` or `ipfsreg passwd` write it")
        if not 4 <= int(found[1]) <= MAX_COST:
            raise MalformedData(f"line {number}: a bcrypt cost of {int(found[1])}; from 4 to {MAX_COST} is taken")
        if user in hashes:
            raise MalformedData(f"line {number}: user {user!r} a second time")
        hashes[user] = hashed.encode("ascii")
    return hashes


def is_user(name: str) -> bool:
    """Whether a user can have *name*: 1 to 255 characters, no colon, nothing that rules read otherwise."""
    return _USER.fullmatch(name) is not None


def make_hash(password: bytes, cost: int = COST) -> bytes:
    """A new bcrypt hash. Raises MalformedData: a password that is empty, longer than bcrypt reads, or holds a NUL."""
    if not 1 <= len(password) <= MAX_PASSWORD_BYTES or b"\0" in password:
        raise MalformedData(f"a password has 1 to {MAX_PASSWORD_BYTES} bytes, none of them zero")
    return bcrypt.hashpw(password, bcrypt.gensalt(cost))


class Passwords:
    """The file as it was read last. Checking and reloading may happen in different threads."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError."""
        self.path = path
        self.generation = 0
        """Goes up when the file was read again: what was found out before may be wrong now."""
        self._lock = threading.Lock()
        self._hashes: Mapping[str, bytes] = {}
        self._decoy = b""
        self._read()

    def reload(self) -> None:
        """Read the file again. Raises ConfigError: what was read before stays in use."""
        self._read()

    def _read(self) -> None:
        try:
            with self.path.open("rb") as file:
                data = file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            raise ConfigError(KEY, str(self.path), f"cannot be read: {error.strerror}") from None
        if len(data) > MAX_FILE_BYTES:
            raise ConfigError(KEY, str(self.path), f"is larger than {MAX_FILE_BYTES} bytes")
        try:
            hashes = parse_htpasswd(data.decode("utf-8"))
        except (UnicodeDecodeError, MalformedData) as error:
            raise ConfigError(KEY, str(self.path), str(error)) from None
        costs = [int(hashed[4:6]) for hashed in hashes.values()]
        decoy = bcrypt.hashpw(b"nobody's", bcrypt.gensalt(max(costs, default=COST)))
        with self._lock:
            self._hashes, self._decoy = hashes, decoy
            self.generation += 1

    def knows(self, user: str) -> bool:
        """Whether there is a line for *user*."""
        return user in self._hashes

    def check(self, user: str, password: bytes) -> bool:
        """Whether *password* is *user*'s. Slow, and for unknown users as slow: belongs into a worker thread."""
        with self._lock:
            hashed, decoy = self._hashes.get(user), self._decoy
        if b"\0" in password:
            password, hashed = b"", None
        right = bcrypt.checkpw(password[:MAX_PASSWORD_BYTES], hashed or decoy)
        return right and hashed is not None

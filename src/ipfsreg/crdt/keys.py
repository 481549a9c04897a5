"""Keys: go-datastore paths in normal form, and ranges of them.

Go cleans keys silently, so that `/a/../../h/x` from a peer lands outside the set. Here a key is either normal or
refused; nothing is mended.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipfsreg.crdt.interface import Change, Put

MAX_KEY_BYTES = 1024
"""UTF-8 bytes of the longest key taken from us or from a peer."""

MAX_VALUE_BYTES = 1024 * 1024
"""A larger value would not fit a block every peer takes."""

MAX_COMMIT_BYTES = 1536 * 1024
"""Keys and values of one commit, which must fit one block of at most 2 MiB."""


def is_normal_key(key: str) -> bool:
    """Whether *key* is a non-root path in normal form: `/`-led, no empty, `.` or `..` segment, no NUL, bounded."""
    if not key.startswith("/") or "\0" in key:
        return False
    try:
        if len(key.encode()) > MAX_KEY_BYTES:
            return False
    except UnicodeEncodeError:  # lone surrogates: no peer could send them, no database stores them
        return False
    return not any(segment in ("", ".", "..") for segment in key[1:].split("/"))


def end_of_prefix(prefix: str) -> str | None:
    """The first string behind all that begin with *prefix*, in byte order of UTF-8; None where there is no end."""
    while prefix:
        last = ord(prefix[-1])
        if last < 0x10FFFF:
            # Surrogates are no characters: the one behind U+D7FF is U+E000.
            return prefix[:-1] + chr(0xE000 if last == 0xD7FF else last + 1)
        prefix = prefix[:-1]
    return None


def check_changes(changes: Sequence[Change]) -> None:
    """Raise ValueError unless *changes* may be one commit: normal keys, one change for each, no empty or huge value."""
    seen = set()
    for change in changes:
        if not is_normal_key(change.key):
            raise ValueError(f"{change.key!r} is not a key in normal form")
        if change.key in seen:
            raise ValueError(f"{change.key!r} is changed twice in one commit")
        seen.add(change.key)
        if isinstance(change, Put) and not 0 < len(change.value) <= MAX_VALUE_BYTES:
            raise ValueError(
                f"{change.key!r}: a value of {len(change.value)} bytes, allowed are 1 to {MAX_VALUE_BYTES}"
            )
    if (
        sum(len(change.key) + (len(change.value) if isinstance(change, Put) else 0) for change in changes)
        > MAX_COMMIT_BYTES
    ):
        raise ValueError(f"a commit of more than {MAX_COMMIT_BYTES} bytes")

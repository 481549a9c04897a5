"""The audit log: who did what to which name, from where, and what came of it. One JSON object a line.

A line is written to the kernel before the answer leaves, so `kill -9` loses none; a power cut may lose the last
seconds. Never in it: passwords, tokens, or anything else of an Authorization header.
"""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

from ipfsreg.errors import ConfigError

logger = logging.getLogger(__name__)

_MAX_TEXT = 512


class AuditLog:
    """An open file. `reopen` is safe while others write."""

    def __init__(self, path: Path) -> None:
        """Raises ConfigError: it cannot be written."""
        self.path = path
        self._descriptor = self._open()
        self._failing = False

    def _open(self) -> int:
        try:
            return os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
        except OSError as error:
            raise ConfigError("audit.path", str(self.path), f"cannot be written: {error.strerror}") from None

    def reopen(self) -> None:
        """Go on in the file that has the name now: the one before was moved away. Raises ConfigError: no change."""
        fresh = self._open()
        # The descriptor stays the same number, so that whoever writes just now writes into one of the two.
        os.dup2(fresh, self._descriptor, inheritable=False)
        os.close(fresh)

    def write(self, event: str, **fields: object) -> None:
        """Append one line; fields that are None or empty are left out. What cannot be written is told once."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        told = {name: _bounded(value) for name, value in fields.items() if value not in (None, "")}
        line = json.dumps({"time": now, "event": event, **told}, separators=(",", ":")) + "\n"
        try:
            os.write(self._descriptor, line.encode())
        except OSError as error:
            if not self._failing:
                logger.error("the audit log %s cannot be written: %s", self.path, error.strerror)  # noqa: TRY400 - no trace needed
            self._failing = True
        else:
            self._failing = False

    def close(self) -> None:
        """The last line is behind it."""
        os.close(self._descriptor)


def _bounded(value: object) -> object:
    return value[:_MAX_TEXT] if isinstance(value, str) else value

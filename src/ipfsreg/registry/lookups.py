"""PURE: what was looked up since something was last committed."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Lookups(Generic[K, V]):
    """Values found under one version of all that they come from, up to *max_entries*."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._version: int | None = None
        self._found: dict[K, V] = {}

    def get(self, version: int | None, key: K) -> V | None:
        """What was found for *key*, if that was under *version*, the present one; None is no version."""
        return self._found.get(key) if version == self._version else None

    def put(self, version: int | None, key: K, value: V) -> None:
        """*value* was found for *key*, and *version* was the present one before anybody looked."""
        if version != self._version:
            self._version = version
            self._found.clear()
        if version is not None:
            if len(self._found) >= self._max_entries:
                del self._found[next(iter(self._found))]
            self._found[key] = value

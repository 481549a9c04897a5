"""PURE: content that was asked for lately, by digest."""

from __future__ import annotations

from collections import OrderedDict

from ipfsreg.oci.digest import Digest


class RecentContent:
    """The last *max_bytes* of whole contents that were put here. What has a digest never changes, so nothing here can
    be out of date; whether somebody may have it is decided before it is asked for."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Digest, bytes] = OrderedDict()
        self.bytes_held = 0

    def get(self, digest: Digest) -> bytes | None:
        """The content of *digest*, if it is here still."""
        data = self._entries.get(digest)
        if data is not None:
            self._entries.move_to_end(digest)
        return data

    def put(self, digest: Digest, data: bytes) -> None:
        """Keep *data*, which was verified to be *digest*, in place of what was asked for longest ago.

        One content may take a quarter of the room, a larger one is not kept.
        """
        if digest in self._entries or len(data) > self._max_bytes // 4:
            return
        self._entries[digest] = data
        self.bytes_held += len(data)
        while self.bytes_held > self._max_bytes:
            self.bytes_held -= len(self._entries.popitem(last=False)[1])

"""What the exchange of a node has moved since it was opened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Counters:
    """Blocks from and to all peers."""

    blocks_received: int = 0
    """Blocks that were wanted, each the first time it came."""
    bytes_received: int = 0
    duplicate_blocks: int = 0
    """Blocks that came from a peer and were not wanted any more."""
    duplicate_bytes: int = 0
    blocks_sent: int = 0
    """Blocks whose last byte a connection took."""
    bytes_sent: int = 0

    def receive(self, size: int) -> None:
        """A wanted block of *size* bytes came."""
        self.blocks_received += 1
        self.bytes_received += size

    def receive_again(self, size: int) -> None:
        """A block of *size* bytes came for nothing."""
        self.duplicate_blocks += 1
        self.duplicate_bytes += size

    def send(self, blocks: int, size: int) -> None:
        """*blocks* of *size* bytes together were sent."""
        self.blocks_sent += blocks
        self.bytes_sent += size

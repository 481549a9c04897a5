"""What may be set about the block exchange."""

from __future__ import annotations

from dataclasses import dataclass

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class BitswapSettings:
    """Block exchange."""

    patience_s: float = 1.0
    """Seconds that connected peers may take to show they have a block before content routing is asked."""
    search_again_s: float = 60.0
    """Longest pause between two searches for a block nobody has; the first pauses are shorter."""
    outstanding_bytes: int = 4 * MIB
    """What one peer is asked for at a time while it is unmeasured; later by its rate, never above four times this."""
    session_bytes: int = 24 * MIB
    """What one session has under way and not yet taken by its reader."""
    total_bytes: int = 96 * MIB
    """The same for all sessions; each may always have one block under way."""
    upload_slots: int = 4
    """How many peers are sent large blocks at full speed at a time. Peers whose own link is slow count for less.

    Few at a time is what makes a swarm fast: a block can be passed on only once it has arrived whole.
    """
    upload_bytes_per_s: int | None = None
    """Limit for large blocks to all peers together."""
    in_flight_bytes: int = 4 * MIB
    """What one peer may be sent at a time."""
    total_in_flight_bytes: int = 64 * MIB
    """The same for all peers."""

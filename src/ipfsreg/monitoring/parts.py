"""The parts of a node as its watchers see them: set one after the other while the node opens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ipfsreg.metrics import Histogram

if TYPE_CHECKING:
    from ipfsreg.bitswap.service import Bitswap
    from ipfsreg.blockstore.blobs import DiskBlobStore
    from ipfsreg.crdt.replica import Replica
    from ipfsreg.database import Database
    from ipfsreg.http.accesslog import AccessLog
    from ipfsreg.http.server import Server
    from ipfsreg.http.tls import Tls
    from ipfsreg.notifications.service import Notifications
    from ipfsreg.p2p.host import Host
    from ipfsreg.pubsub.service import JoinedTopic
    from ipfsreg.registry.service import LocalRegistry

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Bounds of how late a task that slept wakes up."""


@dataclass(slots=True)
class Parts:
    """What there is to watch; None: not open yet."""

    database: Database | None = None
    blobs: DiskBlobStore | None = None
    host: Host | None = None
    topic: JoinedTopic | None = None
    bitswap: Bitswap | None = None
    replica: Replica | None = None
    registry: LocalRegistry | None = None
    front: Server | None = None
    tls: Tls | None = None
    """None also where no listener speaks it."""
    access_log: AccessLog | None = None
    notifications: Notifications | None = None
    """None also where there are no endpoints."""
    stopping: bool = False
    """The node was told to stop."""
    lag_seconds: Histogram = field(default_factory=lambda: Histogram(LAG_SECONDS))
    """How late the event loop was, four times a second."""

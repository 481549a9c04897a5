"""Notifications as they are configured; a node without endpoints loads none of their code."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ipfsreg.config import EndpointConfig, NotificationsConfig
from ipfsreg.crdt.interface import Names
from ipfsreg.database import Database
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.interface import Registry

if TYPE_CHECKING:
    from ipfsreg.notifications.service import Notifications, Subscription


@asynccontextmanager
async def open_webhooks(
    settings: NotificationsConfig, database: Database, registry: Registry, names: Names, *, peer: PeerId, addr: str
) -> AsyncIterator[Notifications | None]:
    """Tell the endpoints of *settings* for as long as the block lasts; None where there are none.

    Raises:
        ConfigError, StoreError: as `open_notifications`.
    """
    if not settings.endpoints:
        yield None
        return
    from ipfsreg.notifications.service import open_notifications  # here, because httpx costs a tenth of a second

    subscriptions = [_subscription(endpoint) for endpoint in settings.endpoints]
    async with open_notifications(database, registry, names, subscriptions, peer=peer, addr=addr) as notifications:
        yield notifications


def _subscription(endpoint: EndpointConfig) -> Subscription:
    from ipfsreg.notifications.delivery import Endpoint
    from ipfsreg.notifications.service import Subscription

    return Subscription(
        endpoint=Endpoint(
            name=endpoint.name,
            url=endpoint.url,
            headers=tuple(endpoint.headers.items()),
            timeout_s=endpoint.timeout_s,
            threshold=endpoint.threshold,
            backoff_s=endpoint.backoff_s,
            ca=endpoint.ca or None,
        ),
        ignore_actions=frozenset(endpoint.ignore_actions),
        ignore_media_types=frozenset(endpoint.ignore_media_types),
        merged=endpoint.merged,
        max_queued=endpoint.max_queued,
    )

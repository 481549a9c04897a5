"""Notifications: what happens in the registry is told to endpoints, as distribution tells it.

    async with open_notifications(database, registry, names, endpoints, ...) as notifications:
        app = make_app(registry, witness=notifications.note)

A push, a mount or a deletion is on disk, with its event, before the client hears of success: what was acknowledged is
told, also after a crash. Where the event cannot be stored, the push counts all the same; that is logged and counted.

By default a node tells what its own clients did. In a swarm that is each thing once, by the node it was done at. With
`merged` an endpoint also hears of tags that other nodes moved or deleted, as soon as this node has merged that, and as
far as they still stand then: for whoever can only be told by one node.
"""

from __future__ import annotations

import logging
import random
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import trio

from ipfsreg.crdt.interface import KeyChanged, Names
from ipfsreg.database import Database
from ipfsreg.errors import IpfsregError, MalformedData, RegistryError, StoreError
from ipfsreg.http.paths import Action as RequestAction
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response
from ipfsreg.notifications.delivery import Delivery, Endpoint, trust_of
from ipfsreg.notifications.events import Asked, Event, Source, Target
from ipfsreg.notifications.queue import Queue
from ipfsreg.notifications.witness import witness
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_repository, parse_tag
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.catalog import TagRecord
from ipfsreg.registry.history import Move, read_move
from ipfsreg.registry.interface import Registry

logger = logging.getLogger(__name__)

MAX_BEHIND = 1000
"""Merged events that wait for the disk; then the reading of news waits, which folds it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscription:
    """An endpoint, and what it hears of."""

    endpoint: Endpoint
    ignore_actions: frozenset[str] = frozenset()
    ignore_media_types: frozenset[str] = frozenset()
    merged: bool = False
    max_queued: int = 10_000

    def wants(self, event: Event) -> bool:
        """Whether *event* is not ignored."""
        return event.action not in self.ignore_actions and event.target.media_type not in self.ignore_media_types


class Notifications:
    """Built only by `open_notifications`."""

    def __init__(
        self,
        registry: Registry,
        names: Names,
        subscriptions: Sequence[Subscription],
        queue: Queue,
        source: Source,
        peer: PeerId,
    ) -> None:
        self._registry = registry
        self._names = names
        self._subscriptions = tuple(subscriptions)
        self._queue = queue
        self._source = source
        self._peer = peer
        self._behind: list[Event] = []
        self._work = trio.Event()
        self._room = trio.Event()
        self.deliveries: dict[str, Delivery] = {}
        self.lost = 0
        """Events that could not be stored."""

    @property
    def queue(self) -> Queue:
        """What waits."""
        return self._queue

    async def note(self, request: Request, action: RequestAction, response: Response) -> None:
        """A request was answered, or is about to be. See `witness`."""
        durable: list[tuple[str, bytes]] = []
        request_id = ""
        for kind, target in witness(request, action, response):
            if all(kind in one.ignore_actions for one in self._subscriptions):
                continue
            request_id = request_id or str(uuid.uuid4())
            event = Event(
                id=str(uuid.uuid4()),
                when_us=time.time_ns() // 1000,
                action=kind,
                target=target if kind in ("pull", "delete") else await self._measured(target),
                actor=request.user,
                asked=_asked(request, request_id),
            )
            encoded = event.encode(self._source)
            for subscription in self._subscriptions:
                if not subscription.wants(event):
                    continue
                if kind == "pull":
                    self._queue.put_pull(subscription.endpoint.name, encoded)
                else:
                    durable.append((subscription.endpoint.name, encoded))
        if durable:
            await self._store(durable)

    async def _store(self, events: list[tuple[str, bytes]]) -> None:
        try:
            await self._queue.put(events)
        except StoreError as error:
            self.lost += len(events)
            logger.error("%d notifications are lost: %s", len(events), error)  # noqa: TRY400 (the text says it all)

    async def _measured(self, target: Target) -> Target:
        """*target* with what the registry knows of it beyond its digest."""
        repository = parse_repository(target.repository)
        try:
            digest = Digest.parse(target.digest)
            if target.is_manifest:
                stat = await self._registry.stat_manifest(repository, digest)
                return replace(target, media_type=stat.media_type, size=stat.size)
            return replace(target, size=self._registry.blob_size(repository, digest))
        except RegistryError as error:  # deleted again meanwhile
            logger.debug("%s: %s", target, error)
        except StoreError as error:  # what is told has been committed, and is told without a size
            logger.warning("told without its size: %s: %s", target, error)
        return target

    # ----------------------------------------------------------------- merged

    async def follow(self) -> None:
        """Tell what other nodes did to tags, for ever."""
        async with self._names.changes([catalog.ROOT]) as changes:
            async for change in changes:
                if change.new is None or "/_h/" not in change.key:
                    continue
                try:
                    event = await self._event_of(change, change.new)
                except IpfsregError as error:  # what is no move, by its key or its value, is told by whoever reads it
                    logger.debug("%s is no move: %s", change.key, error)
                    continue
                if event is not None:
                    while len(self._behind) >= MAX_BEHIND:
                        self._room = trio.Event()
                        await self._room.wait()
                    self._behind.append(event)
                    self._work.set()

    async def _event_of(self, change: KeyChanged, value: bytes) -> Event | None:
        """What a new entry of a tag's history is an event of: a move by another node that stands."""
        name, _, rest = change.key.removeprefix(catalog.ROOT).partition("/_h/")
        tag, _, suffix = rest.partition("/")
        move = read_move(suffix, value)
        repository = parse_repository(name)
        if move.peer == self._peer or not self._stands(catalog.tag_key(repository, parse_tag(tag)), move):
            return None
        target = Target(
            repository=repository, tag=tag, digest="" if move.to is None else str(move.to), is_manifest=True
        )
        return Event(
            id=str(uuid.uuid4()),
            when_us=move.when_us,
            action="delete" if move.to is None else "push",
            target=target if move.to is None else await self._measured(target),
            actor=str(move.peer),
        )

    def _stands(self, key: str, move: Move) -> bool:
        record = self._names.get(key)
        try:
            return (None if record is None else TagRecord.decode(record).digest) == move.to
        except MalformedData:
            return False

    async def store_behind(self) -> None:
        """Bring merged events to the disk, many at a time, for ever."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            events, self._behind = self._behind, []
            self._room.set()
            await self._store(
                [
                    (one.endpoint.name, encoded)
                    for event in events
                    for encoded in (event.encode(self._source),)
                    for one in self._subscriptions
                    if one.merged and one.wants(event)
                ]
            )


def _asked(request: Request, request_id: str) -> Asked:
    headers = request.headers
    return Asked(
        request_id,
        request.peer,
        headers.get("host", ""),
        request.method,
        headers.get("user-agent", ""),
        request.secure,
    )


@asynccontextmanager
async def open_notifications(
    database: Database,
    registry: Registry,
    names: Names,
    subscriptions: Sequence[Subscription],
    *,
    peer: PeerId,
    addr: str,
) -> AsyncIterator[Notifications]:
    """Deliver events to the endpoints of *subscriptions* for as long as the block lasts. What waits then is kept.

    *addr*: host and port of this registry, as endpoints are told.

    Raises:
        ConfigError: a file of authorities that is none.
        StoreError.
    """
    trusts = {one.endpoint.name: await trust_of(one.endpoint) for one in subscriptions}
    queue = await Queue.open(database, {one.endpoint.name: one.max_queued for one in subscriptions})
    notifications = Notifications(registry, names, subscriptions, queue, Source(addr, str(uuid.uuid4())), peer)
    rng = random.Random()  # noqa: S311 (spreads attempts, guards nothing)
    async with trio.open_nursery() as nursery:
        for subscription in subscriptions:
            endpoint = subscription.endpoint
            delivery = notifications.deliveries[endpoint.name] = Delivery(endpoint, queue, rng, trusts[endpoint.name])
            nursery.start_soon(delivery.run)
        if any(one.merged for one in subscriptions):
            nursery.start_soon(notifications.follow)
            nursery.start_soon(notifications.store_behind)
        yield notifications
        nursery.cancel_scope.cancel()

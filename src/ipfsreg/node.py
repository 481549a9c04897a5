"""One node: every part opened bottom-up, closed top-down. The one place that knows every implementation.

    async with open_node(config) as node:
        await stopped.wait()

What the start tells at INFO, and in which order, is a contract: people copy the multiaddrs from it and scripts wait
for its last line (docs/operations.md).
"""

from __future__ import annotations

import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import trio

from ipfsreg import __version__
from ipfsreg.bitswap.service import Bitswap, open_bitswap
from ipfsreg.bitswap.settings import BitswapSettings
from ipfsreg.blockstore.blobs import DiskBlobStore
from ipfsreg.blockstore.index import ARRIVING
from ipfsreg.blockstore.room import StoreLimits
from ipfsreg.blockstore.store import open_blobstore
from ipfsreg.config import Config
from ipfsreg.crdt.census import count_names
from ipfsreg.crdt.claims import STATE_NAMES, CheckpointStatus
from ipfsreg.crdt.epochs import open_epoch, topic_of
from ipfsreg.crdt.replica import Replica, open_replica
from ipfsreg.database import Database, open_database
from ipfsreg.datastore import admin_socket_of, alone_on, identity_of, psk_of
from ipfsreg.dht.service import open_dht
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.errors import ConfigError, MalformedData, NetworkError, StoreDamaged, StoreError
from ipfsreg.http.accesslog import AccessLog, open_access_log
from ipfsreg.http.admin import make_admin
from ipfsreg.http.app import make_app
from ipfsreg.http.connection import ServerSettings
from ipfsreg.http.door.opening import open_door
from ipfsreg.http.listen import open_listeners, split_scheme
from ipfsreg.http.reloading import Reloaded, Reloads, open_reloads
from ipfsreg.http.server import open_server
from ipfsreg.http.tls import Tls
from ipfsreg.monitoring.health import Health, open_health
from ipfsreg.monitoring.parts import Parts
from ipfsreg.monitoring.spans import open_tracing
from ipfsreg.notifications.opening import open_webhooks
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName, Tag, parse_repository, parse_tag
from ipfsreg.p2p.addresses import split_peer
from ipfsreg.p2p.host import Host, NetworkSettings, open_network
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.p2p.pnet import fingerprint
from ipfsreg.p2p.redial import Redial, open_redial
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.service import JoinedTopic, open_pubsub
from ipfsreg.registry.catalog import ROOT
from ipfsreg.registry.evicting import EvictionSettings
from ipfsreg.registry.gc import GcSettings, Item, Report
from ipfsreg.registry.history import Move, format_time
from ipfsreg.registry.quota import Quota
from ipfsreg.registry.service import LocalRegistry, RegistrySettings, derive_upload_secret, open_registry
from ipfsreg.trust import replica_settings_of, writers_among

logger = logging.getLogger(__name__)

MAX_WITHHELD_SHOWN = 100

MAX_GRACE_S = 31_536_000.0
"""Of a look that is told its grace: a year, as in the configuration."""

FIRST_DIAL_S = 2.0
"""How long the start waits for bootstrappers before it tells how it stands with them."""


@dataclass(frozen=True, slots=True)
class Node:
    """A running node."""

    config: Config
    database: Database
    host: Host
    redial: Redial
    topic: JoinedTopic
    blobs: DiskBlobStore
    bitswap: Bitswap
    replica: Replica
    registry: LocalRegistry
    reloads: Reloads
    started_at: float
    """On trio's clock."""

    async def status(self) -> dict[str, Any]:
        """What `ipfsreg status` shows, as JSON has it."""
        tags, _ = await count_names(self.database, ROOT, "/_t/")
        _, repositories = await count_names(self.database, ROOT, "/_m/")
        census = await self.blobs.census()
        blobs = [counted for state, counted in census.blobs.items() if state != ARRIVING]
        replica = self.replica.status()
        return {
            "version": __version__,
            "peer_id": str(self.host.peer_id),
            "up_s": trio.current_time() - self.started_at,
            "private": self.config.is_private,
            "topic": self.topic.name,
            "listen": [f"{addr}/p2p/{self.host.peer_id}" for addr in self.host.listen_addrs()],
            "peers": [
                {
                    "peer_id": str(peer.peer),
                    "addr": peer.addr,
                    "dialed": peer.dialed,
                    "agent": peer.agent,
                    "rtt_s": peer.rtt_s,
                    "bytes_in": peer.bytes_in,
                    "bytes_out": peer.bytes_out,
                }
                for peer in self.host.status()
            ],
            "bootstrappers": [
                {"addr": f"{state.addrs[0] if state.addrs else ''}/p2p/{state.peer}", "state": _describe(state)}
                for state in self.redial.states()
            ],
            "replica": {
                "ready": replica.synced,
                "heads": [str(head) for head in replica.heads],
                "height": replica.height,
                "names": replica.names,
                "tips_wanted": replica.tips_wanted,
                "nodes_wanted": replica.nodes_wanted,
                "quarantined": replica.quarantined,
                "checkpoint": _show_checkpoint(replica.checkpoint),
                "withheld": replica.withheld,
                "withheld_names": [
                    {"key": key, "node": str(node), "author": author and str(author)}
                    for key, node, author in self.replica.withheld(MAX_WITHHELD_SHOWN)
                ],
                "last_merge_at": replica.last_merge_at,
            },
            "repositories": repositories,
            "tags": tags,
            "gossip": self.topic.status(),
            "bitswap": self.bitswap.status(),
            "blobs": sum(count for count, _ in blobs),
            "bytes": sum(size for _, size in blobs),
            "room": self._room(),
            "damage": self.database.damage and str(self.database.damage),
        }

    def _room(self) -> dict[str, Any] | None:
        try:
            usage, done = self.blobs.usage(), self.registry.evictor.done
        except StoreError:
            return None  # `damage` says why
        return {
            "limit": usage.limit,
            "used": usage.used,
            "pulled": usage.pulled,
            "evicted_blobs": done.blobs,
            "evicted_bytes": done.bytes,
            "dropped_arrivals": done.partials,
            "spared": done.spared,
            "refused": done.refused,
        }

    async def epoch(self) -> dict[str, Any]:
        """What `ipfsreg epoch status` shows."""
        replica = self.replica.status()
        seed, names = await self.replica.next_seed()
        return {
            "epoch": self.replica.epoch.number,
            "sealed": self.replica.epoch.sealed,
            "topic": self.topic.name,
            "heads": [str(head) for head in replica.heads],
            "tips_wanted": replica.tips_wanted,
            "nodes_wanted": replica.nodes_wanted,
            "names": names,
            "next_head": seed and str(seed),
        }

    async def seal(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """What `ipfsreg epoch seal` does."""
        await self.replica.seal(sealed=not fields.get("undo"))
        return await self.epoch()

    async def log(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """What `ipfsreg log` shows: the moves of a tag, the latest first."""
        repository, tag = _name_in(fields)
        return {"moves": [_show(move) for move in self.registry.history(repository, tag)]}

    async def roll_back(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """What `ipfsreg rollback` does: move a tag back, as a move like any other."""
        repository, tag = _name_in(fields)
        to = fields.get("to", "")
        target = int(to) if to.isascii() and to.isdigit() and len(to) < 10 else Digest.parse(to)
        return {"move": _show(await self.registry.roll_back(repository, tag, target))}

    async def collect(self, fields: Mapping[str, str]) -> dict[str, Any]:
        """What `ipfsreg gc` does: look for garbage now, and delete it unless it is a dry run."""
        text = fields.get("grace_s")
        try:
            grace_s = None if text is None else float(text)
        except ValueError:
            grace_s = -1.0
        if grace_s is not None and not 0 <= grace_s <= MAX_GRACE_S:
            raise MalformedData(f"a grace of {text} is not a number of seconds from 0 to {MAX_GRACE_S:.0f}")
        dry_run = fields.get("dry_run") == "true"
        return _show_report(await self.registry.collector.collect(dry_run=dry_run, grace_s=grace_s))


def _show_report(report: Report) -> dict[str, Any]:
    return {
        "dry_run": report.dry_run,
        "deleted_blobs": report.deleted_blobs,
        "deleted_bytes": report.deleted_bytes,
        "deleted_names": report.deleted_names,
        "waiting": report.waiting,
        "skipped": report.skipped or None,
        "names_skipped": report.names_skipped or None,
        "kept_repositories": [{"repository": repository, "why": why} for repository, why in report.kept_repositories],
        "items": list(map(_show_item, report.items)),
        "items_left_out": report.found - len(report.items),
        "took_s": report.took_s,
    }


def _show_item(item: Item) -> dict[str, Any]:
    return {
        "what": item.what,
        "digest": str(item.digest),
        "bytes": item.size,
        "repository": item.repository,
        "why": item.why,
        "left_s": item.left_s,
    }


def _name_in(fields: Mapping[str, str]) -> tuple[RepositoryName, Tag]:
    return parse_repository(fields.get("repository", "")), parse_tag(fields.get("tag", ""))


def _show(move: Move) -> dict[str, Any]:
    return {
        "step": move.step,
        "time": format_time(move.when_us),
        "when_us": move.when_us,
        "peer": str(move.peer),
        "from": move.before and str(move.before),
        "to": move.to and str(move.to),
    }


def _show_checkpoint(checkpoint: CheckpointStatus | None) -> dict[str, Any] | None:
    if checkpoint is None:
        return None
    return {
        "signer": str(checkpoint.signer),
        "state": STATE_NAMES[checkpoint.state],
        "taken_us": checkpoint.taken_us,
        "for_every_name": checkpoint.whole,
        "differing": checkpoint.differing,
    }


def _describe(state: Any) -> str:
    if state.connected:
        return "connected"
    return f"not reached in {state.failures} attempts: {state.last_error}" if state.failures else "not dialled yet"


def _peer_infos(multiaddrs: tuple[str, ...]) -> list[PeerInfo]:
    """One entry a peer, with all its addresses."""
    addrs: dict[PeerId, list[str]] = {}
    for text in multiaddrs:
        try:
            addr, peer = split_peer(text)
        except MalformedData as error:
            raise ConfigError("p2p.bootstrappers", text, str(error)) from None
        assert peer is not None  # config.py checked that
        addrs.setdefault(peer, []).append(addr)
    return [PeerInfo(peer, tuple(known)) for peer, known in addrs.items()]


def _store_limits(config: Config) -> StoreLimits:
    return StoreLimits(
        reserve_bytes=config.store.reserve_bytes,
        max_bytes=config.store.max_bytes,
        max_uploads=config.store.max_uploads,
        max_upload_bytes=config.store.max_upload_bytes,
    )


# --------------------------------------------------------------------------------------- running


@asynccontextmanager
async def open_node(config: Config) -> AsyncIterator[Node]:
    """Run a node for as long as the block lasts. Leaving finishes the requests in flight (bounded), then closes.

    Raises:
        AlreadyRunning: its datastore or one of its ports is in use.
        ConfigError: a key whose value does not work on this machine.
        StoreDamaged: the datastore's database cannot be read.
    """
    started_at = trio.current_time()
    parts = Parts()
    directory = Path(config.node.datastore_path)
    psk = psk_of(config)
    bootstrappers = _peer_infos(config.bootstrappers)
    tls = _tls_of(config)
    async with AsyncExitStack() as stack:
        stack.enter_context(alone_on(directory))
        await _check_places(config.http.listen)
        identity = identity_of(config)
        front_door = stack.enter_context(open_door(config, identity.to_protobuf()))
        replica_settings = replica_settings_of(config, identity.peer_id)
        if await trio.Path(directory / "node.db.repaired").exists():
            raise StoreDamaged(f"a repair of {directory} was cut off near its end: run `ipfsreg repair` again")
        database = await stack.enter_async_context(open_database(directory / "node.db"))
        store, blobs = await stack.enter_async_context(open_blobstore(directory, database, _store_limits(config)))
        parts.database, parts.blobs = database, blobs
        parts.access_log = await stack.enter_async_context(_open_access_log(config))
        health = await stack.enter_async_context(open_health(parts))
        await stack.enter_async_context(_open_metrics(config, parts, health))
        traced = await stack.enter_async_context(open_tracing(config.tracing, instance=str(identity.peer_id)))
        logger.info("datastore %s", directory)
        logger.info("peer ID %s", identity.peer_id)
        network = NetworkSettings(
            listen_addrs=config.p2p.listen_addrs, announce_addrs=config.p2p.announce_addrs, psk=psk
        )
        host = await stack.enter_async_context(open_network(identity, network, database))
        for addr in host.listen_addrs():
            logger.info("listening on %s/p2p/%s", addr, identity.peer_id)
        pubsub = await stack.enter_async_context(open_pubsub(host))
        epoch = await open_epoch(database, config.crdt.epoch)
        writers = writers_among(config, replica_settings.trusted_peers, epoch.seed)
        replica_settings = replace(replica_settings, writers=writers)
        topic = await stack.enter_async_context(pubsub.join(topic_of(config.crdt.pubsub_topic, epoch.number)))
        logger.info("topic %s", topic.name)
        logger.info("swarm %s", "public" if psk is None else f"private, key fingerprint {fingerprint(psk)}")
        dht = await stack.enter_async_context(open_dht(host, database, DhtSettings(private=psk is not None)))
        exchange = BitswapSettings(
            patience_s=config.fetch.patience_s, upload_bytes_per_s=config.fetch.upload_bytes_per_s or None
        )
        bitswap = await stack.enter_async_context(open_bitswap(host, store, dht, exchange))
        parts.host, parts.topic, parts.bitswap = host, topic, bitswap
        if config.p2p.mdns:
            await stack.enter_async_context(_open_lan(host, None if psk is None else fingerprint(psk)))
        redial = await stack.enter_async_context(open_redial(host, bootstrappers, remembered=host.remembered))
        replica = await stack.enter_async_context(
            open_replica(database, store, bitswap, topic, replica_settings, signer=host, network=host)
        )
        parts.replica = replica
        await _tell_bootstrappers(redial)
        await replica.wait_synced()
        logger.info("replica ready, %d heads at height %d", len(replica.heads()), replica.status().height)
        registry = await stack.enter_async_context(
            open_registry(
                database=database,
                names=replica,
                blobs=blobs,
                bitswap=bitswap,
                routing=dht,
                peer=identity.peer_id,
                upload_secret=derive_upload_secret(identity.to_protobuf()),
                settings=RegistrySettings(
                    give_up_s=config.fetch.give_up_s,
                    finish_without_client=config.fetch.finish_without_client,
                    fetch_pushed=config.registry.fetch_pushed,
                    upload_expiry_s=config.store.upload_expiry_s,
                    quotas=tuple(Quota(one.repositories, one.max_bytes) for one in config.registry.quotas),
                    gc=GcSettings(
                        interval_s=config.gc.interval_s,
                        grace_s=config.gc.grace_s,
                        blob_grace_s=config.gc.blob_grace_s,
                        untagged=config.gc.untagged,
                    ),
                    eviction=EvictionSettings(
                        evict=config.store.evict, copies=config.store.evict_copies, keep=config.store.keep
                    ),
                    immutable_tags=config.registry.immutable_tags,
                    wait_heads_s=config.registry.wait_heads_s,
                ),
                has_caught_up=replica.has_caught_up,
                network=host,
                trusted_peers=replica_settings.trusted_peers,
            )
        )
        parts.registry = registry
        addr = f"{socket.gethostname()}:{config.http.listen[0].rpartition(':')[2]}"
        told = parts.notifications = await stack.enter_async_context(
            open_webhooks(config.notifications, database, registry, replica, peer=identity.peer_id, addr=addr)
        )
        reloaded = [Reloaded(tls.paths, tls.reload)] if tls is not None else []
        reloaded += front_door.reloaded
        reloads = await stack.enter_async_context(open_reloads(reloaded))
        node = Node(config, database, host, redial, topic, blobs, bitswap, replica, registry, reloads, started_at)
        admin = make_admin(
            {"/status": node.status, "/epoch": node.epoch},
            {"/log": node.log},
            {"/rollback": node.roll_back, "/gc": node.collect, "/seal": node.seal},
        )
        door = f"unix:{admin_socket_of(config)}"
        await stack.enter_async_context(open_server(admin, listen=[door], settings=ServerSettings(drain_s=1.0)))
        front = ServerSettings(drain_s=config.node.drain_s)
        server = await stack.enter_async_context(
            open_server(
                health.answering(traced(make_app(registry, front_door.door, told.note if told is not None else None))),
                listen=config.http.listen,
                settings=front,
                tls=tls,
                access_log=parts.access_log,
            )
        )
        parts.front, parts.tls = server, tls
        for url in server.urls:
            logger.info("registry at %s", url)
        yield node
        parts.stopping = True
        await trio.sleep(config.node.unready_s)
        logger.info("stopping: no new requests, %d connections to finish", server.connections)


def _tls_of(config: Config) -> Tls | None:
    certificate, key = config.http.tls_certificate, config.http.tls_key
    if certificate and key:
        return Tls(Path(certificate), Path(key))
    if certificate or key:
        missing = "http.tls_key" if certificate else "http.tls_certificate"
        raise ConfigError(
            missing, "", f"a certificate and its key belong together; the other is {certificate or key!r}"
        )
    return None


def _open_access_log(config: Config) -> AbstractAsyncContextManager[AccessLog | None]:
    settings = config.access_log
    silent = settings.format == "text" and config.node.log_level in ("warning", "error")
    return open_access_log("off" if silent else settings.format, Path(settings.path) if settings.path else None)


@asynccontextmanager
async def _open_metrics(config: Config, parts: Parts, health: Health) -> AsyncIterator[None]:
    if not config.metrics.listen:
        yield
        return
    from ipfsreg.monitoring.door import open_watch_door  # here, because it costs a tenth of a second and is often off

    async with open_watch_door(config.metrics.listen, parts, health) as server:
        for place in server.places:
            logger.info("metrics at http://%s/metrics", place)
        yield


async def _check_places(places: Sequence[str]) -> None:
    """Say at once what would keep the registry's door from opening, and not when the replica is ready.

    Nothing listens there until then: clients that came earlier would wait without an answer.

    Raises:
        ConfigError, AlreadyRunning: as `open_server`.
    """
    for listener in await open_listeners([split_scheme(place)[1] for place in places]):
        listener.close()


@asynccontextmanager
async def _open_lan(host: Host, swarm: str | None) -> AsyncIterator[None]:
    """Connect to every node of the *swarm* (its key's fingerprint) that multicast DNS finds on the LAN."""
    from ipfsreg.dht.mdns import open_mdns  # here, because zeroconf costs a tenth of a second and is often off

    async with open_mdns(host, fingerprint=swarm) as found, trio.open_nursery() as nursery:
        nursery.start_soon(_connect_all, host, found)
        yield
        nursery.cancel_scope.cancel()


async def _connect_all(host: Host, found: AsyncIterator[PeerInfo]) -> None:
    async for info in found:
        try:
            await host.connect(info)
        except NetworkError as error:
            logger.info("found %s on the LAN, but: %s", info.peer, error)


async def _tell_bootstrappers(redial: Redial) -> None:
    if not redial.states():
        logger.info("bootstrappers none")
        return
    with trio.move_on_after(FIRST_DIAL_S):
        while not any(state.connected or state.failures for state in redial.states()):
            await redial.wait_changed()
    for state in redial.states():
        logger.info("bootstrapper %s", state)

"""Everything a node tells in numbers, as families of Prometheus. docs/operations.md lists them, and a test compares.

Nothing here walks over names, blobs or peers on the event loop, and no label is chosen by a stranger: the number of
lines has a bound, whatever the swarm and its clients do. What has to be counted in the database was counted beside the
loop and is given here as a `Counts`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from ipfsreg import __version__
from ipfsreg.blockstore.index import ARRIVING, FILE, INLINE, Census
from ipfsreg.crdt.state import Tally
from ipfsreg.errors import StoreError
from ipfsreg.http.tally import SECONDS
from ipfsreg.metrics import Histogram
from ipfsreg.monitoring.parts import Parts

_STATES = {FILE: "file", INLINE: "inline", ARRIVING: "arriving"}


@dataclass(frozen=True, slots=True)
class Counts:
    """What was counted beside the event loop; None: it could not be."""

    census: Census | None = None
    tally: Tally | None = None
    room: tuple[int, int] | None = None
    """Bytes free and bytes in all."""


def families(parts: Parts, counts: Counts) -> Iterator[Metric]:
    """All there is to tell now."""
    info = GaugeMetricFamily("ipfsreg_info", "1; the version of the program is its label.", labels=["version"])
    info.add_metric([__version__], 1)
    yield info
    yield _histogram("ipfsreg_loop_lag_seconds", "How late the event loop was, four times a second.", parts.lag_seconds)
    yield from _http(parts)
    yield from _blobs(parts, counts)
    yield from _database(parts)
    yield from _bitswap(parts)
    yield from _replica(parts, counts)
    yield from _peers(parts)
    yield from _notifications(parts)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _counters(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for of, value in values:
        family.add_metric([of], value)
    return family


def _gauges(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for of, value in values:
        family.add_metric([of], value)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.cumulated(), sum_value=histogram.total)


# ------------------------------------------------------------------------ http


def _http(parts: Parts) -> Iterator[Metric]:
    if parts.front is None:
        return
    tally = parts.front.tally
    requests = CounterMetricFamily(
        "ipfsreg_http_requests", "Requests answered; 499: the client had gone.", labels=["method", "route", "code"]
    )
    took: dict[tuple[str, str], Histogram] = {}
    received: dict[str, int] = {}
    sent: dict[str, int] = {}
    for method, route, status, row in tally.rows():
        requests.add_metric([method, route, str(status)], row.count)
        took.setdefault((method, route), Histogram(SECONDS)).add(row.seconds)
        received[route] = received.get(route, 0) + row.received
        sent[route] = sent.get(route, 0) + row.sent
    yield requests
    seconds = HistogramMetricFamily(
        "ipfsreg_http_request_seconds",
        "Time from the head of a request to the last byte of its answer.",
        labels=["method", "route"],
    )
    for (method, route), histogram in took.items():
        seconds.add_metric([method, route], histogram.cumulated(), histogram.total)
    yield seconds
    yield _counters("ipfsreg_http_received_bytes", "Bytes of requests.", "route", received.items())
    yield _counters("ipfsreg_http_sent_bytes", "Bytes of answers.", "route", sent.items())
    yield _gauge("ipfsreg_http_connections", "Open connections of clients.", parts.front.connections)
    if parts.tls is not None:
        expires = parts.tls.credentials.not_after.timestamp()
        yield _gauge("ipfsreg_tls_certificate_expires_timestamp_seconds", "When the certificate in use ends.", expires)
    yield _counter("ipfsreg_http_turned_away", "Connections of clients for which there was no room.", tally.turned_away)
    if parts.access_log is not None:
        yield _counter(
            "ipfsreg_access_log_dropped_lines",
            "Lines of the access log that could not be written.",
            parts.access_log.dropped,
        )


# ----------------------------------------------------------------------- store


def _evictions(parts: Parts) -> Iterator[Metric]:
    if parts.registry is None or parts.blobs is None:
        return
    try:
        usage = parts.blobs.usage()
    except StoreError:
        return  # the database is damaged, and has said so
    done = parts.registry.evictor.done
    yield _gauge("ipfsreg_store_limit_bytes", "What the store may hold; 0: what the disk holds.", usage.limit)
    yield _gauge(
        "ipfsreg_store_used_bytes", "What counts against it: blobs, uploads, and what is promised.", usage.used
    )
    yield _gauge("ipfsreg_store_pulled_bytes", "Of blobs that may go, as far as others have them.", usage.pulled)
    yield _counter("ipfsreg_evicted_blobs", "Blobs that went to make room.", done.blobs)
    yield _counter("ipfsreg_evicted_bytes", "Their bytes.", done.bytes)
    yield _counter("ipfsreg_spared_blobs", "Times that a blob stayed, because too few others had it.", done.spared)
    yield _counter("ipfsreg_room_refused", "Pulls and pushes for which not enough room could be made.", done.refused)


def _blobs(parts: Parts, counts: Counts) -> Iterator[Metric]:
    census = counts.census
    if census is not None:
        states = {name: census.blobs.get(state, (0, 0)) for state, name in _STATES.items()}
        yield _gauges(
            "ipfsreg_blobs",
            "Blobs here: files of their own, small ones in the database, and those that are arriving.",
            "state",
            ((name, count) for name, (count, _) in states.items()),
        )
        yield _gauges(
            "ipfsreg_blobs_bytes",
            "Their bytes; of arriving ones the bytes they will have.",
            "state",
            ((name, size) for name, (_, size) in states.items()),
        )
        yield _gauges(
            "ipfsreg_blocks",
            "Blocks that can be given to peers: leaves in files of blobs, and small ones in the database.",
            "kind",
            (("leaf", census.leaves), ("small", census.small_blocks)),
        )
    yield from _evictions(parts)
    if counts.room is not None:
        free, total = counts.room
        yield _gauge("ipfsreg_disk_free_bytes", "What can still be written to the file system of the store.", free)
        yield _gauge("ipfsreg_disk_bytes", "Size of the file system of the store.", total)
    if parts.blobs is not None:
        yield _gauge("ipfsreg_uploads", "Pushes of blobs under way.", parts.blobs.open_uploads)
        yield _histogram(
            "ipfsreg_blob_publish_seconds",
            "Time to make the file of a pushed or fetched blob survive a power cut (fsync).",
            parts.blobs.publish_seconds,
        )
    if parts.registry is not None:
        yield _gauge("ipfsreg_fetches", "Blobs that are being fetched from peers.", parts.registry.fetches_under_way)


def _database(parts: Parts) -> Iterator[Metric]:
    database = parts.database
    if database is None:
        return
    yield _histogram(
        "ipfsreg_database_commit_seconds", "Time of a transaction, its fsync included.", database.commit_seconds
    )
    yield _counter("ipfsreg_database_writes", "Writes; many share a transaction.", database.writes)
    yield _counter("ipfsreg_database_failed_commits", "Transactions that were lost.", database.failed_commits)
    yield _gauge("ipfsreg_database_waiting_writes", "Writes the disk has not come to.", database.waiting_writes)


# ----------------------------------------------------------------------- swarm


def _bitswap(parts: Parts) -> Iterator[Metric]:
    if parts.bitswap is None:
        return
    status = parts.bitswap.status()
    directions = (("in", "received"), ("out", "sent"))
    yield _counters(
        "ipfsreg_bitswap_blocks",
        "Blocks that were wanted and came, and blocks given.",
        "direction",
        ((direction, status[f"blocks_{done}"]) for direction, done in directions),
    )
    yield _counters(
        "ipfsreg_bitswap_bytes",
        "Their bytes.",
        "direction",
        ((direction, status[f"bytes_{done}"]) for direction, done in directions),
    )
    yield _counter(
        "ipfsreg_bitswap_duplicate_blocks", "Blocks that came and were not wanted any more.", status["duplicate_blocks"]
    )
    yield _counter("ipfsreg_bitswap_duplicate_bytes", "Their bytes.", status["duplicate_bytes"])
    yield _gauge("ipfsreg_bitswap_wants", "Blocks wanted of peers now.", status["wants"])
    yield _gauge("ipfsreg_bitswap_sessions", "Sets of blocks wanted together now.", status["sessions"])


def _replica(parts: Parts, counts: Counts) -> Iterator[Metric]:
    replica = parts.replica
    if replica is None:
        return
    yield _gauge("ipfsreg_replica_ready", "1 once the node has caught up with the swarm's names.", replica.synced)
    yield _gauge("ipfsreg_replica_heads", "Heads of the names' DAG.", len(replica.heads()))
    yield _gauge("ipfsreg_replica_height", "Height of its highest head.", replica.height)
    yield _gauge(
        "ipfsreg_replica_oldest_wait_seconds",
        "Since when the longest-awaited announced head is waited for; 0 where none is.",
        replica.oldest_wait_s,
    )
    yield _histogram(
        "ipfsreg_replica_merge_seconds",
        "Time from hearing of a head to having merged all below it.",
        replica.merge_seconds,
    )
    if replica.last_merge_at is not None:
        yield _gauge(
            "ipfsreg_replica_last_change_timestamp_seconds",
            "When a name last changed, by whomever, since the start.",
            replica.last_merge_at,
        )
    tally = counts.tally
    if tally is None:
        return
    yield _gauge("ipfsreg_names", "Names, of all kinds.", tally.names)
    yield _gauge("ipfsreg_replica_wanted_tips", "Announced heads that are not here wholly.", tally.tips)
    yield _gauge("ipfsreg_replica_wanted_nodes", "Nodes known to be missing.", tally.nodes_wanted)
    yield _gauge("ipfsreg_replica_quarantined", "Nodes that break a rule and do not count.", tally.quarantined)
    yield _gauge("ipfsreg_replica_withheld", "Values that do not count because of who wrote them.", tally.withheld)


_GOSSIP = ("peers", "mesh")


def _peers(parts: Parts) -> Iterator[Metric]:
    host = parts.host
    if host is not None:
        peers = host.status()
        dialed = sum(peer.dialed for peer in peers)
        yield _gauges(
            "ipfsreg_peers",
            "Peers connected, by who dialled.",
            "direction",
            (("in", len(peers) - dialed), ("out", dialed)),
        )
        yield _gauge("ipfsreg_peer_streams", "Streams open with peers.", sum(peer.streams for peer in peers))
        received, sent = host.traffic()
        yield _counters(
            "ipfsreg_peer_bytes", "Bytes from and to peers.", "direction", (("in", received), ("out", sent))
        )
        counters = host.counters
        yield _counters(
            "ipfsreg_peer_dials",
            "Dials of peers, each at all of its addresses.",
            "result",
            (("ok", counters.dials), ("failed", counters.failed_dials)),
        )
        yield _counters(
            "ipfsreg_peer_inbound",
            "Connections made to us; failed: without the key, too slow, or no room.",
            "result",
            (("ok", counters.inbound), ("failed", counters.failed_inbound)),
        )
    if parts.topic is not None:
        status = parts.topic.status()
        yield _gauge("ipfsreg_gossip_peers", "Peers in our topic.", status["peers"])
        yield _gauge("ipfsreg_gossip_mesh", "Peers in the mesh of our topic.", status["mesh"])
        yield _counters(
            "ipfsreg_gossip_events",
            "What happened to messages, by kind.",
            "kind",
            ((kind, count) for kind, count in status.items() if kind not in _GOSSIP),
        )


# --------------------------------------------------------------- notifications


def _notifications(parts: Parts) -> Iterator[Metric]:
    notifications = parts.notifications
    if notifications is None:
        return
    waiting, deliveries = notifications.queue.waiting, notifications.deliveries
    yield _gauges(
        "ipfsreg_notifications_waiting",
        "Events that were not delivered yet.",
        "endpoint",
        ((name, len(queue)) for name, queue in waiting.items()),
    )
    yield _counters(
        "ipfsreg_notifications_delivered",
        "Events that were taken.",
        "endpoint",
        ((name, delivery.counts.events) for name, delivery in deliveries.items()),
    )
    yield _counters(
        "ipfsreg_notifications_failures",
        "Deliveries that were not answered 2xx in time.",
        "endpoint",
        ((name, delivery.counts.failures) for name, delivery in deliveries.items()),
    )
    yield _counters(
        "ipfsreg_notifications_dropped",
        "Events that found no room in the queue.",
        "endpoint",
        ((name, queue.dropped) for name, queue in waiting.items()),
    )
    yield _counter("ipfsreg_notifications_lost", "Events that could not be stored.", notifications.lost)

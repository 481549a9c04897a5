"""A replica of the names: reads answered from its tables, writes gathered into deltas, gossip in both directions.

Four tasks beside the callers:

    the writer    takes whatever waits (commits, fetched nodes, announced tips) into one transaction after the other,
                  and tells the news afterwards; nobody else writes these tables
    the listener  empties the topic at once into queues: a message costs it microseconds, never a wait
    the walker    fetches nodes that are missing (walker.py)
    the herald    says our heads when there is reason to (herald.py)

Wire format and rules: delta.py, merge.py, state.py.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from random import Random

import trio

from ipfsreg import tracing
from ipfsreg.blockstore.interface import BlockService, DatabaseBlockstore
from ipfsreg.crdt import checkpointing, state
from ipfsreg.crdt.checkpointing import answer_checkpoints, take_checkpoint
from ipfsreg.crdt.claims import DROPPED, SETTLED, SPEAKING, CheckpointStatus, last_checkpoint, speaks_of
from ipfsreg.crdt.dagsync import Dagsync, answer_all
from ipfsreg.crdt.delta import Head, decode_broadcast, encode_broadcasts, node_cid
from ipfsreg.crdt.entries import (
    ending_in,
    ends_in,
    index_endings,
    read_authors,
    read_name,
    read_versions,
    scan_names,
)
from ipfsreg.crdt.epochs import FIRST, read_epoch, seed_of, write_epoch
from ipfsreg.crdt.feed import ChangeFeed
from ipfsreg.crdt.frontier import Frontier
from ipfsreg.crdt.herald import Herald
from ipfsreg.crdt.intake import Batch, Intake
from ipfsreg.crdt.interface import Change, KeyChanged
from ipfsreg.crdt.keys import check_changes
from ipfsreg.crdt.signing import Signer
from ipfsreg.crdt.walker import Walker
from ipfsreg.crdt.writers import EVERYBODY, Writers
from ipfsreg.database import Database
from ipfsreg.errors import Denied, IpfsregError, MalformedData, NetworkError, NotReady, StoreError
from ipfsreg.ipld.cid import Cid
from ipfsreg.metrics import Histogram
from ipfsreg.p2p.interface import Network
from ipfsreg.peer_id import PeerId
from ipfsreg.pubsub.interface import MessagesDropped, PeerJoined, Topic, TopicEvent, TopicMessage

logger = logging.getLogger(__name__)

MAX_HEADS_HEARD = 4096
"""Heads of one message that are looked at; a legal one can carry 26,000."""

HEADS_AT_ONCE = 128
"""Heads looked up, about 10 us each, before other tasks get their turn."""

ANNOUNCEMENT_GAP_S = 0.02
"""Between two announcements: a hundred writes a second are not a hundred messages."""


MERGE_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 3600.0)
"""Bounds of the time from hearing of a head to having all below it."""

MAX_TIMED = 4096
"""Announced heads whose time is taken."""

TIP_PERIOD_S = 6 * 3600.0
"""A head that nobody announced for a whole such period, and that is not here wholly, is given up."""

CHOICE_S = 2.0
"""How long an empty replica waits to learn whether those it met offer checkpoints."""

MAX_CHECKPOINTS_TRIED = 3

CHECKPOINT_PATIENCE_S = 600.0
"""A checkpoint whose heads cannot be had is dropped when no node has come for so long."""

WRITE_RETRY_S = 1.0
"""Pause after a transaction that failed: a full disk does not get emptier by trying."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """How one replica behaves."""

    trusted_peers: frozenset[PeerId] | None = None
    """Whose announcements count, by the author of the signed envelope; None: everybody's."""
    alone_s: float = 1.0
    """An empty replica that meets nobody for so long is ready."""
    silence_s: float = 3.0
    """One that met peers but heard of no head for so long is ready: they have none, or do not greet."""
    stalled_s: float = 15.0
    """A first walk that gets no node for so long does not hold up readiness any more."""
    max_heads: int = 8
    """More heads than this are joined by a node without content when nobody writes."""
    quiet_s: tuple[float, float] = (10.0, 40.0)
    """How long nothing must have changed before, drawn anew each time: of many replicas one should do it."""
    marks: tuple[str, ...] = ()
    """What `Names.ends_in` can be asked for, as `/_l/`."""
    checkpoint_peers: frozenset[PeerId] | None = None
    """Whose checkpoints are taken for every name; None: of those whose announcements count, for what each may write."""
    checkpoint_required: bool = False
    """Be ready by a checkpoint for every name, or with all history, and by nothing less."""
    checkpoint_nodes: int = 256
    """With less history none is offered: it comes as fast."""
    writers: Writers = EVERYBODY
    """Who may write what. Others than at the last start: everything is judged anew, which takes a moment."""


def trusting(peers: Sequence[str]) -> frozenset[PeerId] | None:
    """Read `trusted_peers` of the configuration: peer IDs, or "*" for everybody. Raises MalformedData."""
    return None if "*" in peers else frozenset(map(PeerId.parse, peers))


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica in numbers, for the operator."""

    synced: bool
    heads: tuple[Cid, ...]
    height: int
    names: int
    tips_wanted: int
    """Announced nodes that we do not have wholly."""
    nodes_wanted: int
    """Nodes known to be missing."""
    quarantined: int
    """Nodes that break a rule and do not count. More than 0 deserves a look."""
    checkpoint: CheckpointStatus | None
    """The last that was taken."""
    withheld: int
    """Values that do not count because their authors may not write them here."""
    last_merge_at: float | None
    """Unix time of the last change of a name by a peer or us since the start."""


class Replica:
    """Keeps `Names`. Built only by `open_replica`."""

    def __init__(
        self,
        database: Database,
        store: DatabaseBlockstore,
        blocks: BlockService,
        topic: Topic,
        settings: ReplicaSettings,
        rng: Random,
        first: state.Outcome,
        signer: Signer | None,
        network: Network | None,
    ) -> None:
        self._database = database
        self._store = store
        self._topic = topic
        self._settings = settings
        self._signer = signer
        self._rng = rng
        self._rules = bytes.fromhex(settings.writers.fingerprint())
        self._feed = ChangeFeed()
        self._intake = Intake()
        self._network = network
        self.epoch = read_epoch(database) or FIRST
        """Which history this is."""
        self._checkpoint = last_checkpoint(database)
        self._walker = Walker(
            database,
            blocks,
            self._intake,
            Frontier(rng),
            None if network is None else Dagsync(network, database),
            epoch=self.epoch.number,
        )
        self._herald = Herald(rng, now=trio.current_time())
        self._herald_wake = trio.Event()
        self._heads = first.heads
        self._height = first.height
        self._tips_left = first.tips_left
        self._last_merge_at: float | None = None
        self._announced_at: dict[bytes, float] = {}
        self.merge_seconds = Histogram(MERGE_SECONDS)
        """How long it took from hearing of a head to having all below it."""
        self._changed = trio.Event()
        self._hears = False
        self._met = trio.Event()
        self._heard = trio.Event()
        self._synced = trio.Event()

    # ----------------------------------------------------------------- names

    @property
    def generation(self) -> int | None:
        return self._database.generation

    def get(self, key: str) -> bytes | None:
        return read_name(self._database, key)

    def scan(self, prefix: str, *, after: str = "", limit: int | None = None) -> list[tuple[str, bytes]]:
        return scan_names(self._database, prefix, after, limit)

    def versions(self, key: str) -> frozenset[bytes]:
        return read_versions(self._database, key)

    def authors(self, key: str) -> tuple[PeerId, ...]:
        return read_authors(self._database, key)

    def ends_in(self, mark: str, ending: str, db: sqlite3.Connection | None = None) -> bool:
        return ends_in(mark, ending, self._database.read if db is None else db.execute)

    def ending_in(self, mark: str, ending: str, limit: int) -> list[str]:
        return ending_in(self._database, mark, ending, limit)

    async def commit(self, changes: Sequence[Change]) -> tuple[Cid, ...]:
        check_changes(changes)
        ourselves = None if self._signer is None else self._signer.peer_id
        for change in changes:
            if not self._settings.writers.allow(change.key, ourselves):
                raise Denied(f"this node may not write {change.key}: see crdt.writers and crdt.require_signed")
        if self.epoch.sealed:
            raise NotReady("names are not written now: the next epoch is about to begin (`ipfsreg epoch`)")
        await trio.lowlevel.checkpoint_if_cancelled()
        await self._intake.commit(changes)
        return self.heads()

    async def seal(self, *, sealed: bool = True) -> None:
        """Write nothing from now on, also after a restart; on return all that was being written is durable.

        *sealed* False: write again.
        """
        self.epoch = replace(self.epoch, sealed=sealed)
        epoch = self.epoch
        await self._database.write(lambda db: write_epoch(db, epoch))
        await self._intake.commit(())

    async def next_seed(self) -> tuple[Cid | None, int]:
        """The head that the next epoch would begin with, and of how many names. Reads all of them, in a thread."""
        async with self._database.snapshot() as snapshot:
            nodes = await snapshot.run(seed_of)
        names = sum(len(node.delta.elements) for node in nodes)
        return (node_cid(nodes[-1].multihash) if nodes else None), names

    def heads(self) -> tuple[Cid, ...]:
        return tuple(node_cid(head.multihash) for head in self._own_heads())

    async def wait_merged(self, heads: Sequence[Cid]) -> None:
        await trio.lowlevel.checkpoint()
        waiting = {head.multihash for head in heads}
        while waiting := {one for one in waiting if not self._has_merged(one)}:
            await self._changed.wait()

    def _has_merged(self, multihash: bytes) -> bool:
        return state.state_of_node(self._database, multihash) == state.CLOSED or speaks_of(self._database, multihash)

    @asynccontextmanager
    async def changes(self, prefixes: Iterable[str] = ("/",)) -> AsyncIterator[AsyncIterator[KeyChanged]]:
        with self._feed.reader(prefixes) as reader:
            yield reader

    # ---------------------------------------------------------------- status

    @property
    def synced(self) -> bool:
        """Whether the first catching up is over, or there was nobody to catch up with. Once true, stays true."""
        return self._synced.is_set()

    def has_caught_up(self) -> bool:
        """Whether all that was announced is here, for now."""
        return self.synced and not self._tips_left and not state.wanted_nodes(self._database, 1)

    async def wait_synced(self) -> None:
        """Return once `synced`. Bounded: a replica that is alone, or whose peers do not deliver, gets there too."""
        await self._synced.wait()

    def status(self) -> ReplicaStatus:
        """The replica in numbers."""
        tally = state.tally(self._database)
        return ReplicaStatus(
            synced=self.synced,
            heads=self.heads(),
            height=self._height,
            names=tally.names,
            tips_wanted=tally.tips,
            nodes_wanted=tally.nodes_wanted,
            quarantined=tally.quarantined,
            checkpoint=self._checkpoint,
            withheld=tally.withheld,
            last_merge_at=self._last_merge_at,
        )

    @property
    def height(self) -> int:
        """Of the DAG's highest head."""
        return self._height

    @property
    def last_merge_at(self) -> float | None:
        """Unix time of the last change of a name since the start."""
        return self._last_merge_at

    @property
    def oldest_wait_s(self) -> float:
        """How long the longest-awaited of the announced heads has been waited for; 0 where none is."""
        return trio.current_time() - min(self._announced_at.values()) if self._announced_at else 0.0

    async def tally(self) -> state.Tally:
        """Counts of what is there, made beside the event loop. Raises StoreError."""
        return await state.tally_beside(self._database)

    def quarantined(self) -> list[tuple[Cid, str]]:
        """The nodes that do not count, the latest first, each with the rule it breaks."""
        return [(node_cid(multihash), fault) for multihash, fault in state.quarantined_nodes(self._database)]

    def withheld(self, limit: int = 1000) -> list[tuple[str, Cid, PeerId | None]]:
        """Values that do not count because of who wrote them: key, node, author (None: unsigned)."""
        return [
            (key, node_cid(multihash), None if author is None else PeerId(author))
            for key, multihash, author in state.withheld_values(self._database, limit)
        ]

    def _own_heads(self) -> list[Head]:
        """The heads of the DAG we write to. Named ones of Go replicas are merged, but neither built upon nor said:
        releases of go-ds-crdt that do not know names would mix them up."""
        return [head for head in self._heads if not head.dag_name]

    # ---------------------------------------------------------------- writer

    async def _write_all(self) -> None:
        told = ""
        while (batch := await self._intake.take()) is not None:
            try:
                outcome = await self._write(batch)
            except StoreError as error:
                if str(error) != told:
                    told = str(error)
                    logger.error("the name store cannot write, and tries again: %s", error)  # noqa: TRY400 (says it all)
                self._intake.taken_in(batch.work.arrivals)
                self._walker.failed(arrival.multihash for arrival in batch.work.arrivals)
                batch.finish(error)
                if self._intake.is_closed:
                    return  # what was announced is announced again; a store that cannot write must not keep us
                if batch.work.claims:
                    self._intake.drop_claims()
                for tip in batch.work.tips:
                    self._intake.add_tip(tip)
                self._intake.again()
                await trio.sleep(WRITE_RETRY_S)
            else:
                told = ""
                self._intake.taken_in(batch.work.arrivals)
                self._tell(outcome, batch)
                self._walker.written()

    async def _write(self, batch: Batch) -> state.Outcome:
        work = batch.work
        with tracing.span("crdt.merge", detached=True) as span:
            outcome = await self._database.write(
                partial(state.apply, self._store, work, writers=self._settings.writers, signer=self._signer)
            )
            if tracing.is_on():
                span.set_attribute("ipfsreg.announced", len(work.tips))
                span.set_attribute("ipfsreg.fetched", len(work.arrivals))
                span.set_attribute("ipfsreg.commits", len(work.commits))
                span.set_attribute("ipfsreg.changes", len(outcome.changes))
                span.set_attribute("ipfsreg.heads", len(outcome.heads))
                span.set_attribute("ipfsreg.height", outcome.height)
            return outcome

    def _tell(self, outcome: state.Outcome, batch: Batch) -> None:
        """A transaction is durable: let everybody know."""
        self._heads, self._height, self._tips_left = outcome.heads, outcome.height, outcome.tips_left
        self._store.committed(outcome.stored)
        for multihash, fault in outcome.faults:
            logger.warning("node %s breaks a rule and does not count: %s", node_cid(multihash), fault)
        for multihash, key in outcome.withheld:
            logger.warning("node %s writes %s, which its author may not: it does not count", node_cid(multihash), key)
        if outcome.forgotten:
            logger.warning("%d nodes that nobody announces any more are given up", len(outcome.forgotten))
            self._walker.forget(outcome.forgotten)
        if outcome.checkpoint_changed:
            self._tell_of_checkpoint()
        if outcome.changes:
            self._last_merge_at = time.time()
        self._take_time(outcome)
        self._feed.publish(outcome.changes)
        batch.finish()
        if outcome.written:
            self._herald.wrote(Head(outcome.written[-1].multihash))
            self._herald_wake.set()
        if outcome.closing_left:
            self._intake.again()
        self._changed.set()
        self._changed = trio.Event()

    def _take_time(self, outcome: state.Outcome) -> None:
        """See which of the announced heads are merged: those that are heads now, and all when none is wanted."""
        if not self._announced_at:
            return
        now = trio.current_time()
        if not outcome.tips_left and not self._intake.has_tips:
            merged = list(self._announced_at)
        else:
            merged = [head.multihash for head in outcome.heads if head.multihash in self._announced_at]
        for multihash in merged:
            self.merge_seconds.observe(now - self._announced_at.pop(multihash))

    def _tell_of_checkpoint(self) -> None:
        checkpoint = self._checkpoint = last_checkpoint(self._database)
        assert checkpoint is not None
        if checkpoint.state == SPEAKING:
            logger.info("names are read by a checkpoint of %s while the history comes", checkpoint.signer)
        elif checkpoint.state == SETTLED and checkpoint.differing:
            logger.warning(
                "the checkpoint of %s was wrong in %d places; the history has put them right",
                checkpoint.signer,
                checkpoint.differing,
            )
        elif checkpoint.state == SETTLED:
            logger.info("the history has come and says what the checkpoint of %s said", checkpoint.signer)
        elif checkpoint.state == DROPPED:
            logger.warning("the checkpoint of %s was dropped", checkpoint.signer)

    # ---------------------------------------------------------------- gossip

    async def _listen(self) -> None:
        async for event in self._topic.events():
            try:
                await self._hear(event)
            except StoreError as error:
                # Nothing is lost: whoever has these heads says them again. A node that cannot read its names goes on
                # with what it can do.
                logger.info("an announcement could not be looked at: %s", error)

    async def _hear(self, event: TopicEvent) -> None:
        now = trio.current_time()
        if isinstance(event, TopicMessage):
            await self._hear_heads(event)
        elif isinstance(event, PeerJoined):
            self._met.set()
            self._walker.hint(event.peer)
            self._herald.greet(now=now, newcomer=True)
        elif isinstance(event, MessagesDropped):
            logger.warning("%d announcements were dropped unread", event.count)
            # There is no question in this protocol. But who hears heads that are not the newest says its own.
            self._herald.greet(now=now, newcomer=False)
        self._herald_wake.set()

    async def _hear_heads(self, message: TopicMessage) -> None:
        trusted = self._settings.trusted_peers
        if trusted is not None and message.author not in trusted:
            logger.debug("ignored heads announced by %s, who is not trusted", message.author)
            return
        try:
            heads = decode_broadcast(message.data, MAX_HEADS_HEARD)
        except MalformedData as error:
            logger.info("ignored an announcement by %s: %s", message.author, error)
            return
        self._herald.heard(heads)
        ours = {head.multihash for head in self._heads}
        for count, head in enumerate(heads, 1):
            if count % HEADS_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
            known = state.state_of_node(self._database, head.multihash)
            if known == state.CLOSED:
                if head.multihash not in ours:
                    self._herald.greet(now=trio.current_time(), newcomer=False)
            elif known != state.VOID and self._intake.add_tip(head.multihash):
                if len(self._announced_at) < MAX_TIMED:
                    self._announced_at.setdefault(head.multihash, trio.current_time())
                self._walker.want(head.multihash, dict.fromkeys((message.received_from, message.author)))
                if known == state.STORED:
                    self._walker.hint(message.author)
        if heads:
            self._hears = True
            self._met.set()
            self._heard.set()

    async def _announce(self) -> None:
        while True:
            self._herald_wake = trio.Event()
            messages = encode_broadcasts(self._herald.due(self._own_heads(), now=trio.current_time()))
            for message in messages:
                try:
                    await self._topic.publish(message)
                except IpfsregError as error:
                    logger.info("could not announce our heads, will do so later: %s", error)
            if messages:
                await trio.sleep(ANNOUNCEMENT_GAP_S)
            with trio.move_on_at(self._herald.next_deadline()):
                await self._herald_wake.wait()

    # ------------------------------------------------------------- occasions

    async def _take_checkpoint(self) -> None:
        """If nothing of what others wrote is here: ask somebody for all names, then let the history come."""
        try:
            network, tried = self._network, set[PeerId]()
            if network is None or not self._is_new(network.peer_id):
                return
            await self._met.wait()
            choose_until = trio.current_time() + CHOICE_S
            while len(tried) < MAX_CHECKPOINTS_TRIED:
                peers = [peer for peer in self._topic.peers() if peer not in tried and self._trusts_checkpoint(peer)]
                spoken = {peer: network.protocols_of(peer) for peer in peers}
                peer = next((one for one in peers if checkpointing.PROTOCOL in (spoken[one] or ())), None)
                if peer is not None:
                    tried.add(peer)
                    if await self._take_checkpoint_of(network, peer):
                        return
                elif trio.current_time() >= choose_until or None not in spoken.values():
                    return
                else:
                    await trio.sleep(0.05)
        finally:
            self._walker.release()

    async def _take_checkpoint_of(self, network: Network, peer: PeerId) -> bool:
        settings = self._settings
        everything = settings.checkpoint_peers is not None
        try:
            return await take_checkpoint(
                network, peer, self._topic.name, self._rules, self._intake, everything=everything
            )
        except (NetworkError, MalformedData, StoreError) as error:
            logger.warning("the checkpoint of %s is not taken: %s", peer, error)
            return False

    def _is_new(self, ourselves: PeerId) -> bool:
        if self._settings.checkpoint_peers == frozenset():
            return False
        ended = self._checkpoint is None or self._checkpoint.state in (SETTLED, DROPPED)
        return ended and not state.has_nodes_of_others(self._database, ourselves)

    def _trusts_checkpoint(self, peer: PeerId) -> bool:
        trusted = self._settings.checkpoint_peers
        if trusted is None:
            trusted = self._settings.trusted_peers
        return trusted is None or peer in trusted

    async def _watch_checkpoint(self) -> None:
        """Drop a checkpoint that nobody can prove, or whose signer is not trusted any more."""
        checkpoint = self._checkpoint
        if checkpoint is not None and checkpoint.state == SPEAKING and not self._trusts_checkpoint(checkpoint.signer):
            self._intake.drop_claims()
        while True:
            while self._checkpoint is None or self._checkpoint.state != SPEAKING:
                await self._changed.wait()
            patient_until = self._walker.last_arrival_at + CHECKPOINT_PATIENCE_S
            if trio.current_time() >= patient_until:
                self._intake.drop_claims()
                await self._changed.wait()
            else:
                await trio.sleep_until(patient_until)

    async def _expire_tips(self) -> None:
        while True:
            # Who hears nobody cannot tell what is not announced any more.
            self._hears = False
            await trio.sleep(TIP_PERIOD_S)
            if self._hears:
                self._intake.expire_tips()

    async def _find_sync(self) -> None:
        """Decide when the replica is ready."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._find_history)
            nursery.start_soon(self._find_checkpoint)
            await self._synced.wait()
            nursery.cancel_scope.cancel()

    async def _find_checkpoint(self) -> None:
        while self._checkpoint is None or not self._checkpoint.is_answering:
            await self._changed.wait()
        self._synced.set()

    async def _find_history(self) -> None:
        settings = self._settings
        if not self._heads:
            with trio.move_on_after(settings.alone_s):
                await self._met.wait()
            if self._met.is_set():
                with trio.move_on_after(settings.silence_s):
                    await self._heard.wait()
            if self._heard.is_set():
                await self._wait_first_walk()
        while settings.checkpoint_required and (not self._heads or self._tips_left):
            await self._changed.wait()
        self._synced.set()

    async def _wait_first_walk(self) -> None:
        heard_at = trio.current_time()
        while not self._heads or self._tips_left:
            stalled_at = max(heard_at, self._walker.last_arrival_at) + self._settings.stalled_s
            if trio.current_time() >= stalled_at:
                logger.warning("%d announced heads cannot be completed now; going on without", self._tips_left)
                return
            with trio.move_on_at(stalled_at):
                await self._changed.wait()

    async def _join_heads(self) -> None:
        """Join the heads when there are many and nobody writes: every new node would have to link to them all."""
        while True:
            heads = self._own_heads()
            if len(heads) <= self._settings.max_heads:
                await self._changed.wait()
                continue
            await trio.sleep(self._rng.uniform(*self._settings.quiet_s))
            if self._own_heads() == heads:
                self._intake.join_heads()
                await self._changed.wait()


@asynccontextmanager
async def open_replica(
    database: Database,
    store: DatabaseBlockstore,
    blocks: BlockService,
    topic: Topic,
    settings: ReplicaSettings | None = None,
    *,
    signer: Signer | None = None,
    network: Network | None = None,
    rng: Random | None = None,
) -> AsyncIterator[Replica]:
    """Be a replica of *topic* for as long as the block lasts; commits under way are finished first.

    *store* must keep its blocks in *database*. *signer* signs what we write. With *network* whole stretches of the
    DAG are asked of peers and given to them (dagsync.py). Readers may use the replica at once; see `Replica.synced`.

    Raises:
        StoreError: the tables cannot be read or brought up to date.
    """
    await database.prepare("crdt", state.SCHEMA)
    settings = settings or ReplicaSettings()
    marks = settings.marks
    if marks:
        await database.write(lambda db: index_endings(db, marks))
    first = await database.write(
        partial(state.apply, store, state.Work(starting=True), writers=settings.writers, signer=signer)
    )
    rng = rng or Random()  # noqa: S311 (spreads waits, guards nothing)
    replica = Replica(database, store, blocks, topic, settings, rng, first, signer, network)
    async with trio.open_nursery() as writing:
        writing.start_soon(replica._write_all)
        async with trio.open_nursery() as nursery:
            for task in (
                replica._listen,
                replica._walker.run,
                replica._announce,
                replica._find_sync,
                replica._take_checkpoint,
                replica._watch_checkpoint,
                replica._expire_tips,
                replica._join_heads,
            ):
                nursery.start_soon(task)
            if network is not None:
                nursery.start_soon(answer_all, network, database, store)
                offering = partial(answer_checkpoints, least_nodes=settings.checkpoint_nodes)
                nursery.start_soon(offering, network, database, topic.name, replica._rules)
            yield replica
            nursery.cancel_scope.cancel()
        replica._intake.close()

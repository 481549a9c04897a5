"""Blobs that peers have and we lack: one fetch a blob, however many clients read it.

A fetch takes blocks from the exchange in whatever order peers give them and puts them into a partial blob; each reader
follows at its own place and tells the exchange what it waits for. The last piece of a blob reaches no reader before
the OCI digest over the whole has been checked: per-block hashes prove each block, not that the record which named
the root was true.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import trio

from ipfsreg import tracing
from ipfsreg.bitswap.blocksession import Arrival, BlockSession
from ipfsreg.bitswap.service import Bitswap
from ipfsreg.blockstore.interface import BlobStore, PartialBlob
from ipfsreg.errors import BlockNotFound, ContentUnavailable, DigestMismatch, IpfsregError, LimitReached, StoreFull
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.evicting import Evictor
from ipfsreg.registry.holds import Holds
from ipfsreg.registry.interface import BlobContent, BlobStat, FileRange, Piece
from ipfsreg.registry.local import LocalBlob, LocalBlobs
from ipfsreg.registry.providing import Providing
from ipfsreg.registry.pushers import Pushers

logger = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
"""What a reader is given at a time: one leaf of our layout."""

READ_AHEAD_BYTES = 2 * 1024 * 1024
"""What is asked for in order ahead of a waiting reader; beyond it the order is the exchange's.

Little, because nodes that pull the same image at once all ask the first holder for the same pieces here.
"""

ROOM_TRIES = 3
"""Times that room is made for a blob."""

MAX_FETCHES = 256
"""Blobs on their way at a time: each has an open file and a wanted list at many peers."""

WRITES_AT_ONCE = 4
"""Blocks on their way to the disk while further ones come in."""

DECIDING_S = 0.02
"""So long, when the root has come, the first reader has to say where it reads, before it is taken to read all."""

WANTED_BLOCKS = 256
"""Blocks that are wanted of the exchange at a time, which looks at half as many for an order. Each is looked up in our
own index first: a thousand of them at once, as one inner node names, would take tens of milliseconds."""

WANTED_AT_ONCE = 32
"""Blocks that are looked up before other tasks get their turn."""


class Fetch:
    """One blob on its way."""

    def __init__(
        self,
        digest: Digest,
        link: LinkRecord,
        blobs: BlobStore,
        holds: Holds,
        evictor: Evictor,
        pushers: Sequence[PeerId],
        dials: bool,
    ) -> None:
        """*pushers* are asked first; *dials*: they are also dialled."""
        self.stat = BlobStat(digest, link.size, link.root)
        self._pushers = pushers
        self._dials = dials
        self.readers = 0
        self._blobs = blobs
        self._holds = holds
        self._evictor = evictor
        self._partial: PartialBlob | None = None
        self._session: BlockSession | None = None
        self._requested: set[Cid] = set()
        self._written = trio.Event()
        self._waiting: dict[object, tuple[int, int]] = {}
        self._undecided = 0
        """Readers that have not said where they read."""
        self._decided = trio.Event()
        self._scope = trio.CancelScope()
        self._error: IpfsregError | None = None
        self._begun = trio.Event()
        self._ended = trio.Event()
        self._stages = tracing.Stages()

    async def run(self, bitswap: Bitswap, give_up_s: float) -> None:
        """Fetch until the blob is whole, or cannot be had. What has come is kept for the next attempt."""
        self._stages.enter("fetch.find")
        with self._scope:
            try:
                await self._fetch(bitswap, give_up_s)
            except BaseExceptionGroup as group:  # what is no Exception is raised again
                # Writers run in a nursery, which wraps what they raise. What is left may be our own cancellation.
                failures, rest = group.split(Exception)
                if failures is not None:
                    self._error = self._explain(failures)
                if rest is not None:
                    raise rest from None
            except Exception as error:  # One fetch's failure, also one we did not think of, must not end the node.
                self._error = self._explain(error)
        if self._error is None and self._scope.cancelled_caught:
            self._error = ContentUnavailable(f"the fetch of {self.stat.digest} was stopped")
        if self._error is None:
            logger.info("blob %s is here, %d bytes", self.stat.digest, self.stat.size)
        else:
            logger.info("blob %s did not arrive: %s", self.stat.digest, self._error)
            if self._partial is not None:
                with trio.CancelScope(shield=True):
                    await self._partial.abandon()
        self._stages.leave()
        self._begun.set()
        self._ended.set()

    def _explain(self, failure: BaseException) -> IpfsregError:
        while isinstance(failure, BaseExceptionGroup):
            failure = failure.exceptions[0]
        if isinstance(failure, BlockNotFound):
            return ContentUnavailable(f"blob {self.stat.digest} is with no peer in reach now: {failure}")
        if isinstance(failure, IpfsregError):
            return failure
        logger.error("the fetch of %s failed", self.stat.digest, exc_info=failure)
        return ContentUnavailable(f"blob {self.stat.digest} could not be fetched: internal error")

    def stop(self) -> None:
        """End it; what has come is kept."""
        self._scope.cancel()

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to end."""
        return self._scope.cancel_called

    @property
    def _arriving(self) -> PartialBlob:
        assert self._partial is not None
        return self._partial

    async def _fetch(self, bitswap: Bitswap, give_up_s: float) -> None:
        with bitswap.session(self.stat.root, likely=self._pushers, dial_likely=self._dials) as session:
            # While the disk is busy with the new file and its row, the question is on its way.
            self._requested.add(self.stat.root)
            session.want([self.stat.root])
            # May hash what lies on disk from an earlier attempt, a second for each GiB.
            self._partial = await self._open_partial()
            self._session = session
            try:
                async with trio.open_nursery() as nursery:
                    await self._take_blocks(session, nursery, give_up_s)
                await self._arriving.complete()
            except DigestMismatch as error:
                givers = ", ".join(f"{peer} ({count} bytes)" for peer, count in session.stats.by_peer.items())
                logger.warning("root %s is not blob %s: %s; from %s", self.stat.root, self.stat.digest, error, givers)
                raise
            finally:
                self._session = None

    async def _open_partial(self) -> PartialBlob:
        for _ in range(ROOM_TRIES):
            try:
                return await self._blobs.open_partial(self.stat.digest, self.stat.size, self.stat.root)
            except StoreFull:
                # Others may take the room that was made. Whoever comes too late for it often enough is refused.
                if not await self._evictor.make_room(self.stat.size):
                    raise
        return await self._blobs.open_partial(self.stat.digest, self.stat.size, self.stat.root)

    async def _take_blocks(self, session: BlockSession, nursery: trio.Nursery, give_up_s: float) -> None:
        slots = trio.Semaphore(WRITES_AT_ONCE)
        while self._want_more():
            await trio.lowlevel.checkpoint()
        while True:
            arrival = await session.receive_within(give_up_s)
            if arrival is not None:
                await slots.acquire()
                nursery.start_soon(self._write, arrival, slots)
                self._want_more()
            elif slots.value < WRITES_AT_ONCE:
                # Nothing is asked for any more; an inner node on its way to the disk may change that.
                await self._written.wait()
            elif not self._want_more():
                return

    async def _write(self, arrival: Arrival, slots: trio.Semaphore) -> None:
        try:
            await self._arriving.put(arrival.block)
            if arrival.peer is not None:
                # Somebody gives it. What was here already does not mean that the rest can be had.
                self._stages.enter("fetch.transfer")
                self._begun.set()
            if arrival.block.cid.codec == DAG_PB:
                # An inner node: now we know more of what is missing, and what readers wait for.
                await self._want()
        finally:
            slots.release()
        self._written.set()
        self._written = trio.Event()

    async def _want(self) -> None:
        """Ask for what has become known of the DAG: first, and in order, what readers wait for."""
        if self._undecided:
            with trio.move_on_after(DECIDING_S):
                await self._decided.wait()
        self._hurry()
        await trio.lowlevel.checkpoint()
        while self._want_more():
            await trio.lowlevel.checkpoint()

    def _want_more(self) -> bool:
        """Ask for some more of what is missing, unless enough is wanted; return whether there was something."""
        assert self._session is not None
        if self._session.missing > WANTED_BLOCKS - WANTED_AT_ONCE:
            return False
        limit = WANTED_BLOCKS
        while True:
            wanted = self._arriving.wanted(limit=limit)
            new = [cid for cid in wanted if cid not in self._requested]
            if new or len(wanted) < limit:
                break
            limit *= 2
        self._request(new[:WANTED_AT_ONCE])
        return bool(new)

    def _hurry(self) -> None:
        """Have what readers wait for come first."""
        if self._session is not None:
            urgent = self._urgent()
            self._request(urgent)
            self._session.urge(urgent)

    def _request(self, cids: Sequence[Cid]) -> None:
        """Ask for those of *cids* that were not asked for before."""
        assert self._session is not None
        new = [cid for cid in cids if cid not in self._requested]
        self._requested.update(new)
        self._session.want(new)

    @property
    def is_whole(self) -> bool:
        """Whether it has ended well."""
        return self._ended.is_set() and self._error is None

    # ---------------------------------------------------------------- readers

    async def wait_begun(self) -> None:
        """Return when the first block is here. Raises what ended the fetch instead."""
        await self._begun.wait()
        if self._error is not None:
            raise self._error

    async def wait_over(self) -> None:
        """Return when it has ended, however."""
        await self._ended.wait()

    async def wait_ended(self) -> None:
        """Return when the blob is whole and its digest was checked. Raises what ended the fetch instead."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    def expect(self) -> None:
        """A reader comes that will say where it reads."""
        self._undecided += 1

    def decide(self) -> None:
        """It has said so, or is gone."""
        self._undecided -= 1
        self._decided.set()
        self._decided = trio.Event()

    def await_at(self, reader: object, start: int, end: int) -> None:
        """*reader* waits for the beginning of [start, end), or for nothing where that is empty."""
        if start < end:
            self._waiting[reader] = (start, self._piece_end(start, end))
            self._hurry()
        else:
            self._waiting.pop(reader, None)

    @staticmethod
    def _piece_end(start: int, end: int) -> int:
        return min(end, (start // PIECE_BYTES + 1) * PIECE_BYTES)

    async def stream(self, reader: object, start: int, end: int) -> AsyncIterator[Piece]:
        """Yield [start, end) as it arrives."""
        descriptor = self._arriving.open_file()
        try:
            while start < end:
                stop = self._piece_end(start, end)
                if stop == self.stat.size:
                    self.await_at(reader, start, stop)
                    await self.wait_ended()
                else:
                    await self._wait_range(reader, start, stop)
                if descriptor is not None:
                    # The same file, whatever becomes of its name.
                    stop = end if self.is_whole else stop
                    yield FileRange(descriptor, start, stop)
                elif self.is_whole:
                    async for piece in LocalBlob(self._blobs.open(self.stat.digest), self._holds).stream(start, end):
                        yield piece
                    return
                else:
                    yield await self._arriving.read(start, stop)
                start = stop
        finally:
            self.await_at(reader, 0, 0)
            if descriptor is not None:
                os.close(descriptor)

    async def _wait_range(self, reader: object, start: int, stop: int) -> None:
        if self._arriving.has_range(start, stop) or self._ended.is_set():
            await trio.lowlevel.checkpoint()
        else:
            self.await_at(reader, start, stop)
            try:
                await self._arriving.wait_range(start, stop)
            except BlockNotFound as error:
                raise self._error or ContentUnavailable(str(error)) from error
        self.await_at(reader, 0, 0)
        if self._error is not None:
            raise self._error

    def _urgent(self) -> list[Cid]:
        """What readers wait for, and a little more. Who has not said in time where it reads begins at the start."""
        if self._partial is None:
            return []
        places = list(self._waiting.values())
        if self._undecided:
            places.append((0, min(self.stat.size, PIECE_BYTES)))
        urgent: dict[Cid, None] = {}
        for start, stop in places:
            end = min(self.stat.size, stop + READ_AHEAD_BYTES)
            urgent.update(dict.fromkeys(self._partial.wanted(start, end)))
        return list(urgent)


class FetchedBlob:
    """A blob that is still arriving, opened for one client. Keeps `BlobContent`."""

    path: Path | None = None
    data: bytes | None = None

    def __init__(self, fetch: Fetch, fetches: Fetches) -> None:
        self._fetch = fetch
        self._fetches = fetches
        self._is_decided = False

    @property
    def stat(self) -> BlobStat:
        return self._fetch.stat

    def stream(self, start: int, end: int) -> AsyncIterator[Piece]:
        # At once: the answer's head is sent before anybody iterates, and until then blocks nobody waits for are asked.
        self._fetch.await_at(self, start, end)
        self._decide()
        return self._fetch.stream(self, start, end)

    def _decide(self) -> None:
        if not self._is_decided:
            self._is_decided = True
            self._fetch.decide()

    async def __aenter__(self) -> FetchedBlob:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._decide()
        self._fetch.await_at(self, 0, 0)
        self._fetches.leave(self._fetch)


class Fetches:
    """All the fetches of a node."""

    def __init__(
        self,
        nursery: trio.Nursery,
        blobs: BlobStore,
        local: LocalBlobs,
        bitswap: Bitswap,
        providing: Providing,
        pushers: Pushers,
        holds: Holds,
        evictor: Evictor,
        give_up_s: float,
        finish_without_client: bool,
    ) -> None:
        self._nursery = nursery
        self._blobs = blobs
        self._local = local
        self._bitswap = bitswap
        self._providing = providing
        self._pushers = pushers
        self._holds = holds
        self._evictor = evictor
        self._give_up_s = give_up_s
        self._finish_without_client = finish_without_client
        self._running: dict[Digest, Fetch] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def open(self, repository: RepositoryName, digest: Digest, link: LinkRecord) -> BlobContent:
        """Join the fetch of a blob of *repository*, or begin it; return when a peer has given its first block.

        Raises:
            ContentUnavailable: no peer gave a block in time, or what they have under this root is not the blob.
            LimitReached: too many blobs are on their way.
            StoreFull, StoreError.
        """
        fetch = await self._join(repository, digest, link)
        if fetch is None:
            blob = await self._local.open(digest)
            if blob is not None:
                return blob
            # It has made room for another just now, or was found to be damaged.
            fetch = await self._join(repository, digest, link)
            if fetch is None:
                raise ContentUnavailable(f"blob {digest} was damaged here just now; try again")
        fetch.expect()
        try:
            await fetch.wait_begun()
        except BaseException as error:  # also when cancelled: this reader is gone, whatever the reason
            fetch.decide()
            self.leave(fetch)
            if isinstance(error, DigestMismatch):
                raise ContentUnavailable(str(error)) from error  # The client asked for the right thing.
            raise
        return FetchedBlob(fetch, self)

    async def fetch_whole(
        self, repository: RepositoryName, digest: Digest, link: LinkRecord, *, dials: bool = True
    ) -> None:
        """Return when the blob is here and durable. Raises as `open`.

        *dials*: dial who pushed it, if nobody near has it. What a whole swarm fetches unasked must not.
        """
        fetch = await self._join(repository, digest, link, dials=dials)
        if fetch is None:
            return
        try:
            await fetch.wait_ended()
        except DigestMismatch as error:
            raise ContentUnavailable(str(error)) from error
        finally:
            self.leave(fetch)

    async def _join(
        self, repository: RepositoryName, digest: Digest, link: LinkRecord, *, dials: bool = True
    ) -> Fetch | None:
        """The fetch of *digest* with one more reader, or None when the blob is here meanwhile."""
        with trio.move_on_after(self._give_up_s):
            while self._blobs.stat(digest) is None:
                fetch = self._running.get(digest)
                if fetch is None:
                    fetch = self._begin(repository, digest, link, dials)
                elif fetch.is_stopping or (fetch.stat.size, fetch.stat.root) != (link.size, link.root):
                    # By another repository's root. One of the two may be a lie, so it is not shared.
                    await fetch.wait_over()
                    continue
                fetch.readers += 1
                return fetch
            return None
        raise ContentUnavailable(f"blob {digest} is being fetched by another root now; try again")

    def _begin(self, repository: RepositoryName, digest: Digest, link: LinkRecord, dials: bool) -> Fetch:
        if len(self._running) >= MAX_FETCHES:
            raise LimitReached(f"{MAX_FETCHES} blobs are on their way to this node already; try again")
        pushers = self._pushers.of(repository, digest)
        fetch = self._running[digest] = Fetch(digest, link, self._blobs, self._holds, self._evictor, pushers, dials)
        self._nursery.start_soon(self._run, fetch)
        return fetch

    async def _run(self, fetch: Fetch) -> None:
        try:
            with self._holds.hold(fetch.stat.digest), tracing.span("fetch") as span:
                if tracing.is_on():
                    span.set_attribute("ipfsreg.digest", str(fetch.stat.digest))
                    span.set_attribute("ipfsreg.root", str(fetch.stat.root))
                    span.set_attribute("ipfsreg.size", fetch.stat.size)
                await fetch.run(self._bitswap, self._give_up_s)
                span.set_attribute("ipfsreg.whole", fetch.is_whole)
            if fetch.is_whole:
                self._local.hashed(fetch.stat.digest)
                self._providing.add(fetch.stat.root)
        finally:
            del self._running[fetch.stat.digest]

    def leave(self, fetch: Fetch) -> None:
        """One reader less; by policy the last one ends the fetch."""
        fetch.readers -= 1
        if not fetch.readers and not self._finish_without_client:
            fetch.stop()

"""Blobs that peers have and we lack: one fetch a blob, however many clients read it.

A fetch takes blocks from the exchange in whatever order peers give them and puts them into a partial blob; each reader
follows at its own place and tells the exchange what it waits for. The last piece of a blob reaches no reader before
the OCI digest over the whole has been checked: per-block hashes prove each block, not that the record which named
the root was true.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from ipfsreg.bitswap.service import Arrival, Bitswap, BlockSession
from ipfsreg.blockstore.interface import BlobStore, PartialBlob
from ipfsreg.errors import BlockNotFound, ContentUnavailable, DigestMismatch, IpfsregError
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.registry.catalog import LinkRecord
from ipfsreg.registry.interface import BlobStat
from ipfsreg.registry.opened import LocalBlob
from ipfsreg.registry.providing import Providing

logger = logging.getLogger(__name__)

PIECE_BYTES = 1024 * 1024
"""What a reader is given at a time: one leaf of our layout."""

READ_AHEAD_BYTES = 2 * 1024 * 1024
"""What is asked for in order ahead of a waiting reader; beyond it the order is the exchange's.

Little, because nodes that pull the same image at once all ask the first holder for the same pieces here.
"""

WRITES_AT_ONCE = 4
"""Blocks on their way to the disk while further ones come in."""


class Fetch:
    """One blob on its way."""

    def __init__(self, digest: Digest, link: LinkRecord, partial: PartialBlob, blobs: BlobStore) -> None:
        self.stat = BlobStat(digest, link.size, link.root)
        self.scope = trio.CancelScope()
        self.readers = 0
        self._partial = partial
        self._blobs = blobs
        self._session: BlockSession | None = None
        self._requested: set[Cid] = set()
        self._written = trio.Event()
        self._waiting: dict[object, tuple[int, int]] = {}
        self._error: IpfsregError | None = None
        self._begun = trio.Event()
        self._ended = trio.Event()

    async def run(self, bitswap: Bitswap, give_up_s: float) -> None:
        """Fetch until the blob is whole, or cannot be had. What has come is kept for the next attempt."""
        with self.scope:
            try:
                await self._fetch(bitswap, give_up_s)
            except BlockNotFound as error:
                self._error = ContentUnavailable(f"blob {self.stat.digest} is with no peer in reach now: {error}")
            except IpfsregError as error:
                self._error = error
            except BaseExceptionGroup as group:
                # Writers run in a nursery, which wraps what they raise.
                self._error = _failure_in(group)
        if self._error is None and not self.scope.cancelled_caught:
            logger.info("blob %s is here, %d bytes", self.stat.digest, self.stat.size)
        elif self.scope.cancelled_caught:
            self._error = ContentUnavailable(f"the fetch of {self.stat.digest} was stopped")
        if self._error is not None:
            logger.info("blob %s did not arrive: %s", self.stat.digest, self._error)
            with trio.CancelScope(shield=True):
                await self._partial.abandon()
        self._begun.set()
        self._ended.set()

    async def _fetch(self, bitswap: Bitswap, give_up_s: float) -> None:
        with bitswap.session(self.stat.root) as session:
            self._session = session
            try:
                async with trio.open_nursery() as nursery:
                    await self._take_blocks(session, nursery, give_up_s)
                await self._partial.complete()
            except DigestMismatch as error:
                givers = ", ".join(f"{peer} ({count} bytes)" for peer, count in session.stats.by_peer.items())
                logger.warning("root %s is not blob %s: %s; from %s", self.stat.root, self.stat.digest, error, givers)
                raise
            finally:
                self._session = None

    async def _take_blocks(self, session: BlockSession, nursery: trio.Nursery, give_up_s: float) -> None:
        slots = trio.Semaphore(WRITES_AT_ONCE)
        self._want()
        while True:
            arrival = await session.receive_within(give_up_s)
            if arrival is not None:
                await slots.acquire()
                nursery.start_soon(self._write, arrival, slots)
            elif slots.value < WRITES_AT_ONCE:
                # Nothing is asked for any more; an inner node on its way to the disk may change that.
                await self._written.wait()
            else:
                return

    async def _write(self, arrival: Arrival, slots: trio.Semaphore) -> None:
        try:
            await self._partial.put(arrival.block)
        finally:
            slots.release()
        self._begun.set()
        if arrival.block.cid.codec == DAG_PB:
            # An inner node: now we know more of what is missing, and what readers wait for.
            self._want()
        self._written.set()
        self._written = trio.Event()

    def _want(self) -> None:
        """Ask for what has become known of the DAG: first, and in order, what readers wait for."""
        assert self._session is not None
        urgent = self._urgent()
        for part in (urgent, self._partial.wanted()):
            new = [cid for cid in part if cid not in self._requested]
            self._requested.update(new)
            self._session.want(new)
            self._session.urge(urgent)

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

    async def wait_ended(self) -> None:
        """Return when the blob is whole and its digest was checked. Raises what ended the fetch instead."""
        await self._ended.wait()
        if self._error is not None:
            raise self._error

    async def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        """Yield [start, end) as it arrives."""
        while start < end:
            stop = min(end, (start // PIECE_BYTES + 1) * PIECE_BYTES)
            if stop == self.stat.size:
                with self._waiting_for(start, stop):
                    await self.wait_ended()
            else:
                await self._wait_range(start, stop)
            if self.is_whole:
                async for piece in LocalBlob(self._blobs.open(self.stat.digest)).stream(start, end):
                    yield piece
                return
            yield await self._partial.read(start, stop)
            start = stop

    async def _wait_range(self, start: int, stop: int) -> None:
        if self._partial.has_range(start, stop) or self._ended.is_set():
            await trio.lowlevel.checkpoint()
        else:
            with self._waiting_for(start, stop):
                try:
                    await self._partial.wait_range(start, stop)
                except BlockNotFound as error:
                    raise self._error or ContentUnavailable(str(error)) from error
        if self._error is not None:
            raise self._error

    @contextmanager
    def _waiting_for(self, start: int, stop: int) -> Iterator[None]:
        place = object()
        self._waiting[place] = (start, stop)
        if self._session is not None:
            self._session.urge(self._urgent())
        try:
            yield
        finally:
            del self._waiting[place]

    def _urgent(self) -> list[Cid]:
        """What readers wait for, and a little more. A reader that has not said where it reads begins at the start."""
        places = list(self._waiting.values())
        if len(places) < self.readers:
            places.append((0, min(self.stat.size, PIECE_BYTES)))
        urgent: dict[Cid, None] = {}
        for start, stop in places:
            end = min(self.stat.size, stop + READ_AHEAD_BYTES)
            urgent.update(dict.fromkeys(self._partial.wanted(start, end)))
        return list(urgent)


def _failure_in(group: BaseExceptionGroup[BaseException]) -> IpfsregError:
    """The failure of ours in *group*; anything else in it goes on as it is."""
    ours, rest = group.split(IpfsregError)
    if ours is None or rest is not None:
        raise group
    first: BaseException = ours
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, IpfsregError)
    if isinstance(first, BlockNotFound):
        return ContentUnavailable(str(first))
    return first


class FetchedBlob:
    """A blob that is still arriving, opened for one client. Keeps `BlobContent`."""

    path: Path | None = None

    def __init__(self, fetch: Fetch, fetches: Fetches) -> None:
        self._fetch = fetch
        self._fetches = fetches

    @property
    def stat(self) -> BlobStat:
        return self._fetch.stat

    def stream(self, start: int, end: int) -> AsyncIterator[bytes | memoryview]:
        return self._fetch.stream(start, end)

    async def __aenter__(self) -> FetchedBlob:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._fetches.leave(self._fetch)


class Fetches:
    """All the fetches of a node."""

    def __init__(
        self,
        nursery: trio.Nursery,
        blobs: BlobStore,
        bitswap: Bitswap,
        providing: Providing,
        give_up_s: float,
        finish_without_client: bool,
    ) -> None:
        self._nursery = nursery
        self._blobs = blobs
        self._bitswap = bitswap
        self._providing = providing
        self._give_up_s = give_up_s
        self._finish_without_client = finish_without_client
        self._running: dict[Digest, Fetch] = {}
        self._opening = trio.Lock()

    async def open(self, digest: Digest, link: LinkRecord) -> FetchedBlob | LocalBlob:
        """Join the fetch of a blob, or begin it; return when its first block is here.

        Raises:
            ContentUnavailable: no peer gave a block in time.
            StoreFull.
        """
        fetch = await self._join(digest, link)
        if fetch is None:
            return LocalBlob(self._blobs.open(digest))
        try:
            await fetch.wait_begun()
        except BaseException:  # also when cancelled: this reader is gone, whatever the reason
            self.leave(fetch)
            raise
        return FetchedBlob(fetch, self)

    async def fetch_whole(self, digest: Digest, link: LinkRecord) -> None:
        """Return when the blob is here and durable. Raises as `open`, or DigestMismatch."""
        fetch = await self._join(digest, link)
        if fetch is None:
            return
        try:
            await fetch.wait_ended()
        finally:
            self.leave(fetch)

    async def _join(self, digest: Digest, link: LinkRecord) -> Fetch | None:
        """The fetch of *digest* with one more reader, or None when the blob is here meanwhile."""
        # One at a time: opening a partial blob may hash what lies on disk, and two callers must get one fetch.
        async with self._opening:
            if self._blobs.stat(digest) is not None:
                return None
            fetch = self._running.get(digest)
            if fetch is None:
                fetch = Fetch(digest, link, await self._blobs.open_partial(digest, link.size, link.root), self._blobs)
                self._running[digest] = fetch
                self._nursery.start_soon(self._run, fetch)
            fetch.readers += 1
            return fetch

    async def _run(self, fetch: Fetch) -> None:
        try:
            await fetch.run(self._bitswap, self._give_up_s)
            if fetch.is_whole:
                self._providing.add(fetch.stat.root)
        finally:
            del self._running[fetch.stat.digest]

    def leave(self, fetch: Fetch) -> None:
        """One reader less; by policy the last one ends the fetch."""
        fetch.readers -= 1
        if not fetch.readers and not self._finish_without_client:
            fetch.scope.cancel()

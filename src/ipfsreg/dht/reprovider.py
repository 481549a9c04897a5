"""Announces what we provide, to the peers that keep the records.

`provided.py` says what is due, `region.py` which peers are closest; here one region after the other is looked up and
told. A hundred thousand roots are a sweep over the regions of the keyspace, not a hundred thousand lookups.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import trio

from ipfsreg.dht.keys import Contact, position_of, random_key
from ipfsreg.dht.messages import Message, MessageType, encode_message
from ipfsreg.dht.messenger import Messenger
from ipfsreg.dht.provided import ProvidedRoots, Root
from ipfsreg.dht.region import Region
from ipfsreg.dht.settings import DhtSettings
from ipfsreg.dht.walks import Walker
from ipfsreg.errors import NetworkError, StoreError

logger = logging.getLogger(__name__)

TELLING = 16
"""Peers told at a time."""
ROOTS_PER_TURN = 32
"""Roots placed before others get a turn."""
LOOK_S = 300.0
"""The longest sleep: clocks are set, and machines sleep."""
MOST_DOUBLINGS = 5


class Reprovider:
    """Keeps the roots announced for as long as `run` runs."""

    def __init__(
        self,
        roots: ProvidedRoots,
        walker: Walker,
        messenger: Messenger,
        settings: DhtSettings,
        ourselves: Callable[[], Contact],
        random_bytes: Callable[[int], bytes],
    ) -> None:
        self._roots = roots
        self._walker = walker
        self._messenger = messenger
        self._settings = settings
        self._ourselves = ourselves
        self._random_bytes = random_bytes
        self._wake = trio.Event()
        self._failures = 0
        self.announcements = 0
        """Roots announced so far; each counts again whenever its time has come."""
        self.lookups = 0
        """What it took."""

    def wake(self) -> None:
        """Something was added, or there is somebody to tell at last."""
        self._wake.set()

    async def run(self) -> None:
        """Announce whatever is due, until cancelled."""
        while True:
            try:
                self._wake = trio.Event()
                first = self._roots.first_due()
                wait_s = LOOK_S if first is None else min(LOOK_S, first[1] - self._roots.now())
                if first is not None and wait_s <= 0 and not self._walker.knows_anybody:
                    wait_s = LOOK_S
                elif first is not None and wait_s <= 0:
                    await self._announce_region(first[0])
                    continue
            except StoreError as error:
                logger.warning("what we provide cannot be announced now: %s", error)
                wait_s = self._settings.retry_s
            with trio.move_on_after(wait_s):
                await self._wake.wait()
                # More of the same kind is on its way, as a rule.
                await trio.sleep(self._settings.gather_s)

    async def _announce_region(self, root: Root) -> None:
        region = await self._explore(root)
        roots = self._roots.due_within(region.prefix, region.bits)
        told = await self._tell(region, roots)
        self.announcements += len(told)
        await self._roots.announced([root for root in roots if root in told])
        untold = [root for root in roots if root not in told]
        if not untold:
            self._failures = 0
            return
        delay_s = self._settings.retry_s * 2 ** min(self._failures, MOST_DOUBLINGS)
        self._failures += 1
        logger.debug("nobody could be told of %d roots; again in %g s", len(untold), delay_s)
        await self._roots.postpone(untold, delay_s)

    async def _explore(self, root: Root) -> Region:
        region = Region(root.position, k=self._settings.k)
        while (search := region.next_search()) is not None:
            position, bits = search
            # The root has a key itself; elsewhere one that lies near enough is made up.
            key = root.key if position == root.position else random_key(position, bits, self._random_bytes)
            self.lookups += 1
            region.receive(position_of(key), await self._walker.find_closest(key))
        return region

    async def _tell(self, region: Region, roots: list[Root]) -> set[Root]:
        """Announce *roots* to those who are to keep them; return those that reached anybody."""
        ourselves = self._ourselves()
        shares: dict[Contact, list[Root]] = {}
        requests: dict[Root, bytes] = {}
        for number, root in enumerate(roots):
            requests[root] = encode_message(Message(MessageType.ADD_PROVIDER, root.key, providers=(ourselves,)))
            for contact in region.closest(root.position):
                shares.setdefault(contact, []).append(root)
            if number % ROOTS_PER_TURN == 0:
                await trio.lowlevel.checkpoint()
        told: set[Root] = set()
        places = trio.CapacityLimiter(TELLING)

        async def tell(contact: Contact, share: list[Root]) -> None:
            try:
                async with places:
                    await self._messenger.announce(contact, [requests[root] for root in share])
                    told.update(share)
            except NetworkError as error:
                logger.debug("%s could not be told of %d roots: %s", contact.peer, len(share), error)

        async with trio.open_nursery() as nursery:
            for contact, share in shares.items():
                nursery.start_soon(tell, contact, share)
        return told

"""Staying in the swarm: bootstrappers are redialled for ever, and peers of former runs while nobody else is there.

async with open_redial(network, bootstrappers, remembered=host.remembered) as redial:
    redial.states()
"""

from __future__ import annotations

import logging
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from ipfsreg.errors import NetworkError
from ipfsreg.p2p.interface import Network, PeerChange, PeerInfo
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LAST_PAUSE_S = 1.0, 60.0
"""Between two dials: doubled each time, and shortened by up to a half at random, so that a swarm that lost its
bootstrapper does not come back in one wave."""
WANTED_PEERS = 4
"""With fewer than this many, peers of former runs are dialled too."""
REMEMBERED_AT_ONCE = 4
MAX_REMEMBERED = 64
"""Peers of former runs dialled in one round, the latest."""
PROTECTION = "bootstrapper"


@dataclass(frozen=True, slots=True)
class BootstrapperState:
    """How it stands with one bootstrapper."""

    peer: PeerId
    addrs: tuple[str, ...]
    connected: bool = False
    failures: int = 0
    """Dials in a row that failed."""
    last_error: str = ""

    def __str__(self) -> str:
        if self.connected:
            return f"{self.peer}: connected"
        if self.failures:
            return f"{self.peer}: not reached in {self.failures} attempts: {self.last_error}"
        return f"{self.peer}: not dialled yet"


class Redial:
    """Built only by `open_redial`."""

    def __init__(
        self,
        network: Network,
        bootstrappers: Sequence[PeerInfo],
        remembered: Callable[[], list[PeerInfo]],
        rng: random.Random,
    ) -> None:
        self._network = network
        self._remembered = remembered
        self._rng = rng
        # Several lines may name one peer, and a list shared by all nodes names ourselves.
        addrs: dict[PeerId, list[str]] = {}
        for info in bootstrappers:
            if info.peer != network.peer_id:
                addrs.setdefault(info.peer, []).extend(info.addrs)
        self._states = {peer: BootstrapperState(peer, tuple(known)) for peer, known in addrs.items()}
        self._changed = trio.Event()

    def states(self) -> list[BootstrapperState]:
        """Every bootstrapper as it stands now."""
        return list(self._states.values())

    async def wait_changed(self) -> None:
        """Return after the next change of any state."""
        await self._changed.wait()

    def _tell_changed(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    def _set(self, state: BootstrapperState) -> None:
        before, self._states[state.peer] = self._states[state.peer], state
        if state != before:
            self._tell_changed()
        if state.connected and not before.connected:
            logger.info("bootstrapper %s: connected", state.peer)
        elif before.connected and not state.connected:
            logger.warning("bootstrapper %s: connection lost, dialling again", state.peer)
        elif state.failures == 1:
            logger.warning("bootstrapper %s: %s; trying again for as long as it takes", state.peer, state.last_error)

    async def _follow_peers(self) -> None:
        async with self._network.events() as events:
            async for event in events:
                state = self._states.get(event.peer)
                if state is not None and event.change is not PeerChange.IDENTIFIED:
                    connected = event.change is PeerChange.CONNECTED
                    if connected != state.connected:
                        self._set(BootstrapperState(state.peer, state.addrs, connected))
                else:
                    self._tell_changed()

    async def _keep(self, peer: PeerId) -> None:
        """Dial one bootstrapper whenever it is not there."""
        self._network.protect(peer, PROTECTION)
        try:
            while True:
                state = self._states[peer]
                if state.connected:
                    await self._changed.wait()
                    continue
                error = await self._dial(PeerInfo(peer, state.addrs))
                if peer in self._network.peers():
                    self._set(BootstrapperState(peer, state.addrs, True))
                    continue
                failures = self._states[peer].failures + 1
                self._set(BootstrapperState(peer, state.addrs, False, failures, error or "it hung up at once"))
                with trio.move_on_after(self._pause(failures)):
                    await self._wait_connected(peer)
        finally:
            self._network.unprotect(peer, PROTECTION)

    async def _dial(self, info: PeerInfo) -> str:
        """Dial, and return why it failed; "" if it did not."""
        try:
            await self._network.connect(info)
        except NetworkError as error:
            return str(error)
        return ""

    async def _wait_connected(self, peer: PeerId) -> None:
        while not self._states[peer].connected:
            await self._changed.wait()

    def _pause(self, failures: int) -> float:
        longest = min(LAST_PAUSE_S, FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))
        return longest * self._rng.uniform(0.5, 1.0)

    async def _rejoin(self) -> None:
        """While hardly anybody is there, dial those who were there before."""
        rounds = 0
        while True:
            if len(self._network.peers()) >= WANTED_PEERS:
                rounds = 0
                await self._changed.wait()
                continue
            known = self._remembered()[:MAX_REMEMBERED]
            self._rng.shuffle(known)
            slots = trio.CapacityLimiter(REMEMBERED_AT_ONCE)
            async with trio.open_nursery() as nursery:
                for info in known:
                    nursery.start_soon(self._dial_remembered, info, slots)
            rounds += 1
            await trio.sleep(self._pause(rounds))

    async def _dial_remembered(self, info: PeerInfo, slots: trio.CapacityLimiter) -> None:
        async with slots:
            if len(self._network.peers()) >= WANTED_PEERS or info.peer in self._states:
                return
            error = await self._dial(info)
            if error:
                logger.debug("%s, known from before, is not there: %s", info.peer, error)


@asynccontextmanager
async def open_redial(
    network: Network,
    bootstrappers: Sequence[PeerInfo],
    *,
    remembered: Callable[[], list[PeerInfo]] = list,
    rng: random.Random | None = None,
) -> AsyncIterator[Redial]:
    """Keep dialling for as long as the block lasts. *remembered*: peers of former runs, worth a try."""
    # Jitter needs no secrecy.
    redial = Redial(network, bootstrappers, remembered, rng or random.Random())  # noqa: S311
    async with trio.open_nursery() as nursery:
        nursery.start_soon(redial._follow_peers)
        nursery.start_soon(redial._rejoin)
        for state in redial.states():
            nursery.start_soon(redial._keep, state.peer)
        yield redial
        nursery.cancel_scope.cancel()

"""What content and peer routing promises to the packages above it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Protocol

from ipfsreg.ipld.cid import Cid
from ipfsreg.p2p.interface import PeerInfo
from ipfsreg.peer_id import PeerId


class Routing(Protocol):
    """Who has a block, and where a peer is."""

    async def provide(self, cids: Iterable[Cid]) -> None:
        """From now on announce that we have *cids*, soon and again before each announcement expires.

        Returns when the wish is kept durably; the announcing goes on behind. Idempotent.
        """

    async def unprovide(self, cids: Iterable[Cid]) -> None:
        """Stop announcing them. Records already given out run out by themselves."""

    def find_providers(self, cid: Cid, *, count: int = 20) -> AsyncIterator[PeerInfo]:
        """Yield up to *count* peers that say they have *cid*, each once, as answers come in.

        Ends by itself when the lookup has nothing more to ask. We are never among them.
        """

    async def find_peer(self, peer: PeerId) -> PeerInfo | None:
        """Addresses of *peer*, asked of the network if need be."""

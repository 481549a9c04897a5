"""Asking peers what they have, on wires in memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.blockstore.interface import BlobInfo
from ipfsreg.blockstore.memory import MemoryBlobStore
from ipfsreg.errors import MalformedData
from ipfsreg.ipld.cid import Cid
from ipfsreg.oci.digest import Digest
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import PeerChange, PeerInfo, Stream
from ipfsreg.registry.holders import (
    PIECE_BYTES,
    PROTOCOL,
    Holders,
    answer_all,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    prove,
)
from ipfsreg.testing.content import pattern
from ipfsreg.testing.network import MemoryEndpoint, MemorySwarm, peer_of

BIG = pattern(60_000)
"""Read without a thread, which a clock that jumps would not wait for."""
SMALL = b"small"


@asynccontextmanager
async def having(
    swarm: MemorySwarm, name: str, *data: bytes, stays: Callable[[Digest], bool] = lambda digest: True
) -> AsyncIterator[tuple[MemoryEndpoint, MemoryBlobStore]]:
    """A peer that has *data* and says so."""
    endpoint, blobs = swarm.endpoint(name), MemoryBlobStore()
    for one in data:
        await blobs.put_whole(one)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_all, endpoint, blobs, stays)
        yield endpoint, blobs
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def lying(swarm: MemorySwarm, name: str, answer: bytes | None) -> AsyncIterator[MemoryEndpoint]:
    """A peer that answers everybody with *answer*; None: never."""
    endpoint = swarm.endpoint(name)

    async def say(stream: Stream) -> None:
        await MessageReader(stream, 1 << 20).read()
        if answer is None:
            await trio.sleep_forever()
        else:
            await send_message(stream, answer)
            await stream.aclose()

    async def run() -> None:
        async with endpoint.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
            async for stream in streams:
                nursery.start_soon(say, stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        yield endpoint
        nursery.cancel_scope.cancel()


async def identified(asker: MemoryEndpoint, *names: str) -> None:
    missing = set(map(peer_of, names))
    for peer in missing:
        await asker.connect(PeerInfo(peer))
    async with asker.events() as events:
        async for event in events:
            if event.change is PeerChange.IDENTIFIED:
                missing.discard(event.peer)
            if not missing:
                return


async def test_peers_prove_what_they_have(autojump_clock: trio.abc.Clock) -> None:
    swarm = MemorySwarm()
    async with (
        having(swarm, "alice", BIG, SMALL) as (alice, blobs),
        having(swarm, "bob", BIG, b""),
        having(swarm, "carol"),
    ):
        await identified(alice, "bob", "carol")
        await blobs.put_whole(b"")
        infos = list(blobs.blobs())
        found, answers = await Holders(alice, blobs, None, None).find(infos, 1)
        assert found[Digest.of(BIG)] == found[Digest.of(b"")] == [peer_of("bob")]
        assert found[Digest.of(SMALL)] == []
        assert answers == 2


async def test_who_may_let_it_go_itself_says_that_it_has_it_not(autojump_clock: trio.abc.Clock) -> None:
    swarm = MemorySwarm()
    leaving = Digest.of(BIG)
    async with (
        having(swarm, "alice", BIG, SMALL) as (alice, blobs),
        having(swarm, "bob", BIG, SMALL, stays=lambda digest: digest != leaving),
    ):
        await identified(alice, "bob")
        found, _ = await Holders(alice, blobs, None, None).find(list(blobs.blobs()), 1)
        assert found == {Digest.of(BIG): [], Digest.of(SMALL): [peer_of("bob")]}


@pytest.mark.parametrize("answer", [b"", b"\xff", encode_answer([b"", b""]), encode_answer([bytes(32)] * 200), None])
async def test_lies_and_silence_prove_nothing(autojump_clock: trio.abc.Clock, answer: bytes | None) -> None:
    swarm = MemorySwarm()
    async with having(swarm, "alice", BIG, SMALL) as (alice, blobs), lying(swarm, "mallory", answer):
        await identified(alice, "mallory")
        with trio.fail_after(10):
            found, _ = await Holders(alice, blobs, None, None).find(list(blobs.blobs()), 1)
        assert found == {Digest.of(BIG): [], Digest.of(SMALL): []}


async def test_a_proof_is_good_for_one_question(autojump_clock: trio.abc.Clock) -> None:
    blobs = MemoryBlobStore()
    await blobs.put_whole(BIG)
    piece = (Digest.of(BIG), 17)
    assert await prove(blobs, b"one", piece) != await prove(blobs, b"two", piece)
    assert await prove(blobs, b"one", (Digest.of(SMALL), 0)) == b""
    assert await prove(blobs, b"one", (Digest.of(BIG), len(BIG))) == b""
    assert len(await prove(blobs, b"one", (Digest.of(BIG), len(BIG) - PIECE_BYTES // 2))) == 32


class Known:
    """Content routing that knows who has what."""

    def __init__(self, providers: dict[Cid, list[PeerInfo]]) -> None:
        self._providers = providers

    async def provide(self, cids: Iterable[Cid]) -> None: ...

    async def unprovide(self, cids: Iterable[Cid]) -> None: ...

    async def find_providers(self, cid: Cid, *, count: int = 20) -> AsyncIterator[PeerInfo]:
        for provider in self._providers.get(cid, []):
            yield provider

    async def find_peer(self, peer: Any) -> PeerInfo | None: ...


async def test_content_routing_is_asked_for_what_no_connected_peer_has(autojump_clock: trio.abc.Clock) -> None:
    swarm = MemorySwarm()
    async with having(swarm, "alice", BIG) as (alice, blobs), having(swarm, "bob"), having(swarm, "dave", BIG):
        await identified(alice, "bob")
        infos: list[BlobInfo] = list(blobs.blobs())
        routing = Known({infos[0].root: [PeerInfo(peer_of("nobody")), PeerInfo(peer_of("dave"))]})
        found, _ = await Holders(alice, blobs, routing, None).find(infos, 1)
        assert found[Digest.of(BIG)] == [peer_of("dave")]
        found, _ = await Holders(alice, blobs, routing, frozenset({peer_of("bob")})).find(infos, 1)
        assert found[Digest.of(BIG)] == []


def test_a_request_says_what_was_asked() -> None:
    pieces = [(Digest.of(BIG), 0), (Digest.of(SMALL), 1 << 40)]
    assert decode_request(encode_request(b"nonce", pieces)) == (b"nonce", pieces)
    assert decode_answer(encode_answer([b"", b"x" * 32])) == [b"", b"x" * 32]


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(data: bytes) -> None:
    for decode in (decode_request, decode_answer):
        with suppress(MalformedData):
            decode(data)

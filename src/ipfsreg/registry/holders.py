"""`/ipfsreg/holders/1.0.0`: whether a peer has certain blobs and is not about to let them go.

    asker     one message  Request { bytes nonce = 1; repeated Piece piece = 2; }
                           Piece { string digest = 1; uint64 offset = 2; }
    answerer  one message  Answer { repeated bytes proof = 1; }

There is a proof for each piece, in their order: SHA-256 over the nonce and the `PIECE_BYTES` of the blob from the
offset on, fewer at its end. Empty: the blob is not there, no name there speaks of it, or the answerer is itself about
to decide whether it lets it go (docs/decisions/0108-a-store-that-makes-room.md says why that keeps one copy). The asker
has the blob, so it knows what the proof must be; who does not have the bytes cannot make one up.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import trio

from ipfsreg.blockstore.interface import BlobInfo, BlobStore
from ipfsreg.dht.interface import Routing
from ipfsreg.errors import BlobUnknown, DigestInvalid, IpfsregError, MalformedData, NetworkError, StoreError
from ipfsreg.ipld.protobuf import bytes_field, expect_bytes, expect_int, read_fields, varint_field
from ipfsreg.oci.digest import Digest
from ipfsreg.p2p.framing import MessageReader, send_message
from ipfsreg.p2p.interface import Network, PeerInfo, Stream
from ipfsreg.peer_id import PeerId

logger = logging.getLogger(__name__)

PROTOCOL = "/ipfsreg/holders/1.0.0"

PIECE_BYTES = 4096

MAX_PIECES = 128
"""Blobs asked for at a time."""

MAX_MESSAGE_BYTES = 32 * 1024

MAX_ANSWERS = 4
"""Given at a time: each reads the disk."""

ASK_S = 5.0
"""A peer that has not answered by then is not asked any more."""

PEERS_AT_ONCE = 8

MAX_PEERS = 64
"""Peers asked about the same blobs."""

SEARCH_S = 5.0
SEARCHES = 16
"""Blobs that content routing is asked for, when no connected peer has them."""

_SMALL_BYTES = 64 * 1024

Piece = tuple[Digest, int]
"""A blob and an offset in it."""


def encode_request(nonce: bytes, pieces: Iterable[Piece]) -> bytes:
    """The Request message."""
    asked = (bytes_field(1, str(digest).encode()) + varint_field(2, offset) for digest, offset in pieces)
    return bytes_field(1, nonce) + b"".join(bytes_field(2, piece) for piece in asked)


def decode_request(data: bytes | memoryview) -> tuple[bytes, list[Piece | None]]:
    """The nonce and the pieces; None for one that cannot be. Raises MalformedData."""
    nonce = b""
    pieces: list[Piece | None] = []
    for number, value in read_fields(data):
        if number == 1:
            nonce = bytes(expect_bytes(value))
        elif number == 2 and len(pieces) < MAX_PIECES:
            pieces.append(_decode_piece(expect_bytes(value)))
    return nonce, pieces


def _decode_piece(data: memoryview) -> Piece | None:
    digest: Digest | None = None
    offset = 0
    for number, value in read_fields(data):
        if number == 1:
            try:
                digest = Digest.parse(bytes(expect_bytes(value)).decode())
            except (DigestInvalid, UnicodeDecodeError):
                return None
        elif number == 2:
            offset = expect_int(value)
    return None if digest is None else (digest, offset)


def encode_answer(proofs: Iterable[bytes]) -> bytes:
    """The Answer message."""
    return b"".join(bytes_field(1, proof) for proof in proofs)


def decode_answer(data: bytes | memoryview) -> list[bytes]:
    """The proofs. Raises MalformedData."""
    return [bytes(expect_bytes(value)) for number, value in read_fields(data) if number == 1]


async def prove(blobs: BlobStore, nonce: bytes, piece: Piece) -> bytes:
    """The proof that *piece* is here; empty where it is not."""
    digest, offset = piece
    info = blobs.stat(digest)
    if info is None or not 0 <= offset < max(info.size, 1):
        return b""
    try:
        if info.size <= _SMALL_BYTES:
            data = (await blobs.read_whole(digest, _SMALL_BYTES))[offset : offset + PIECE_BYTES]
        else:
            data = await trio.to_thread.run_sync(_read, blobs.open(digest).path, offset)
    except (BlobUnknown, StoreError, OSError) as error:
        logger.debug("blob %s cannot be read for a proof: %s", digest, error)
        return b""
    if len(data) != min(PIECE_BYTES, info.size - offset):
        return b""
    return hashlib.sha256(nonce + data).digest()


def _read(path: Path, offset: int) -> bytes:
    """Raises OSError."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, PIECE_BYTES, offset)
    finally:
        os.close(file)


# ------------------------------------------------------------------- answering


async def answer_all(network: Network, blobs: BlobStore, will_stay: Callable[[Digest], bool]) -> None:
    """Answer whoever asks. *will_stay*: whether this node is not about to let a blob go. Never returns."""
    places = trio.Semaphore(MAX_ANSWERS)

    async def answer(stream: Stream) -> None:
        try:
            with trio.fail_after(ASK_S):
                request = await MessageReader(stream, MAX_MESSAGE_BYTES).read()
                if request is not None:
                    nonce, pieces = decode_request(request)
                    # What is decided here from now on is decided after this answer: see the module docstring.
                    staying = [piece if piece is not None and will_stay(piece[0]) else None for piece in pieces]
                    proofs = [await prove(blobs, nonce, piece) if piece is not None else b"" for piece in staying]
                    await send_message(stream, encode_answer(proofs))
                await stream.send_eof()
                await stream.aclose()
        except (IpfsregError, trio.TooSlowError) as error:
            logger.debug("the answer to %s was given up: %s", stream.peer, error)
            await stream.reset()
        finally:
            places.release()

    async with network.accept([PROTOCOL]) as streams, trio.open_nursery() as nursery:
        async for stream in streams:
            await places.acquire()
            nursery.start_soon(answer, stream)


# ---------------------------------------------------------------------- asking


class Holders:
    """Finds out which other nodes have blobs."""

    def __init__(
        self, network: Network, blobs: BlobStore, routing: Routing | None, trusted: frozenset[PeerId] | None
    ) -> None:
        """*trusted*: whose word counts; None: everybody's."""
        self._network = network
        self._blobs = blobs
        self._routing = routing
        self._trusted = trusted
        self._useful: dict[PeerId, None] = {}
        """Peers that had something, the last one last."""

    async def find(self, infos: Sequence[BlobInfo], copies: int) -> tuple[dict[Digest, list[PeerId]], int]:
        """Who has the blobs *infos*, at most `MAX_PIECES` that are here; asks until each is with *copies* others.

        Returns also how many peers answered. Takes some seconds at most.
        """
        search = _Search(self._network, self._blobs, infos[:MAX_PIECES], copies)
        await search.prepare()
        await search.ask_all(self._connected())
        if self._routing is not None:
            await search.ask_all([peer for peer in await self._search(search.open()) if peer not in search.asked])
        for peer in search.useful:
            self._useful.pop(peer, None)
            self._useful[peer] = None
        while len(self._useful) > MAX_PEERS:
            del self._useful[next(iter(self._useful))]
        return search.found, search.answers

    def _is_trusted(self, peer: PeerId) -> bool:
        return self._trusted is None or peer in self._trusted

    def _connected(self) -> list[PeerId]:
        """Peers that can be asked, first those that had something the last times."""
        peers = [
            peer
            for peer in self._network.peers()
            if PROTOCOL in (self._network.protocols_of(peer) or ()) and self._is_trusted(peer)
        ]
        order = {peer: place for place, peer in enumerate(reversed(self._useful))}
        return sorted(peers, key=lambda peer: order.get(peer, len(order)))[:MAX_PEERS]

    async def _search(self, infos: Sequence[BlobInfo]) -> list[PeerId]:
        """Peers that content routing names for some of *infos*, connected to."""
        found: dict[PeerId, PeerInfo] = {}

        async def search(info: BlobInfo) -> None:
            assert self._routing is not None
            try:
                async for provider in self._routing.find_providers(info.root):
                    if self._is_trusted(provider.peer):
                        found[provider.peer] = provider
            except NetworkError as error:
                logger.debug("no providers found for %s: %s", info.root, error)

        async def connect(provider: PeerInfo) -> None:
            try:
                await self._network.connect(provider)
            except NetworkError as error:
                logger.debug("provider %s cannot be asked: %s", provider.peer, error)

        with trio.move_on_after(SEARCH_S):
            async with trio.open_nursery() as nursery:
                for info in infos[:SEARCHES]:
                    nursery.start_soon(search, info)
        known = list(found.values())[:PEERS_AT_ONCE]
        with trio.move_on_after(SEARCH_S):
            async with trio.open_nursery() as nursery:
                for provider in known:
                    nursery.start_soon(connect, provider)
        connected = set(self._network.peers())
        return [provider.peer for provider in known if provider.peer in connected]


class _Search:
    """One question to several peers."""

    def __init__(self, network: Network, blobs: BlobStore, infos: Sequence[BlobInfo], copies: int) -> None:
        self._network = network
        self._blobs = blobs
        self._infos = {info.digest: info for info in infos}
        self._copies = copies
        self._nonce = secrets.token_bytes(16)
        self._pieces: dict[Digest, Piece] = {}
        self._proofs: dict[Digest, bytes] = {}
        self.found: dict[Digest, list[PeerId]] = {info.digest: [] for info in infos}
        self.asked: set[PeerId] = set()
        self.answers = 0
        self.useful: set[PeerId] = set()

    async def prepare(self) -> None:
        """Choose a piece of each blob, and see what its proof must be."""
        for digest, info in self._infos.items():
            piece = (digest, secrets.randbelow(max(1, info.size - PIECE_BYTES)))
            proof = await prove(self._blobs, self._nonce, piece)
            if proof:  # what cannot be read here goes nowhere
                self._pieces[digest], self._proofs[digest] = piece, proof

    def open(self) -> list[BlobInfo]:
        """Blobs that not enough others were found to have."""
        return [self._infos[digest] for digest in self._pieces if len(self.found[digest]) < self._copies]

    async def ask_all(self, peers: Sequence[PeerId]) -> None:
        """Ask *peers*, some at a time, as long as anything is open."""
        for start in range(0, len(peers), PEERS_AT_ONCE):
            if not self.open():
                return
            async with trio.open_nursery() as nursery:
                for peer in peers[start : start + PEERS_AT_ONCE]:
                    self.asked.add(peer)
                    nursery.start_soon(self._ask, peer, [self._pieces[info.digest] for info in self.open()])

    async def _ask(self, peer: PeerId, pieces: Sequence[Piece]) -> None:
        stream: Stream | None = None
        try:
            with trio.fail_after(ASK_S):
                stream = await self._network.open_stream(peer, [PROTOCOL])
                await send_message(stream, encode_request(self._nonce, pieces))
                await stream.send_eof()
                answer = await MessageReader(stream, MAX_MESSAGE_BYTES).read()
            proofs = [] if answer is None else decode_answer(answer)
        except (NetworkError, MalformedData, trio.TooSlowError) as error:
            logger.debug("%s was asked what it has: %s", peer, error or "no answer")
            return
        finally:
            if stream is not None:
                await stream.reset()
        self.answers += 1
        # A proof is sent for each piece; a shorter answer proves less.
        for (digest, _), proof in zip(pieces, proofs, strict=False):
            if proof and proof == self._proofs[digest]:
                self.found[digest].append(peer)
                self.useful.add(peer)

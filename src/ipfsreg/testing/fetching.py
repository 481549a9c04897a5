"""Fetching one file by its root, as the least that can be done with the exchange and the store."""

from __future__ import annotations

import hashlib
from pathlib import Path

import trio

from ipfsreg.bitswap.service import Bitswap
from ipfsreg.blockstore.interface import BlobStore
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.oci.digest import Digest

GIVE_UP_S = 20.0


async def fetch_file(bitswap: Bitswap, blobs: BlobStore, path: Path, root: str) -> None:
    """Fetch what the file at *path* holds by *root*, from whoever has it, into a blob whose digest is checked.

    Raises:
        BlockNotFound: nothing came for 20 s.
        DigestMismatch: what came is another file.
    """
    digest, size = await trio.to_thread.run_sync(_describe, path)
    partial = await blobs.open_partial(digest, size, Cid.parse(root))
    with bitswap.session(Cid.parse(root)) as session:
        session.want(partial.wanted())
        while session.missing:
            arrival = await session.receive_within(GIVE_UP_S)
            assert arrival is not None
            await partial.put(arrival.block)
            if arrival.block.cid.codec == DAG_PB:
                session.want(partial.wanted())
    info = await partial.complete()
    assert (info.digest, info.size) == (digest, size)


def _describe(path: Path) -> tuple[Digest, int]:
    with path.open("rb") as file:
        return Digest.parse(f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"), path.stat().st_size

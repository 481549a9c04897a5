"""Who pushed what: the peers a blob is asked of first.

Whoever wrote the link to a blob had it then: a push is acknowledged only when all that it names is on that node
(reliance.py). So the authors of the writes that the link rests on are who announced it first, whoever said the heads
since. Names of an epoch's first nodes bear no signature; for those it is who moved the first tags of the repository.

It is a guess: they may have thrown it away, or be gone. And it is a claim, as all names are; who lies gains a dial to
an address that this node knew already.
"""

from __future__ import annotations

from itertools import chain, islice

from ipfsreg.crdt.interface import Names
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName
from ipfsreg.peer_id import PeerId
from ipfsreg.registry import catalog
from ipfsreg.registry.records import Records

MAX_PUSHERS = 4
"""Peers that are asked first for one blob."""

TAGS_READ = 16


class Pushers:
    """Tells them from the names."""

    def __init__(self, names: Names, records: Records) -> None:
        self._names = names
        self._records = records

    def of(self, repository: RepositoryName, digest: Digest) -> list[PeerId]:
        """Who probably has the blob *digest* of *repository*, the likeliest first. Raises StoreError."""
        keys = (catalog.link_key(repository, digest), catalog.manifest_key(repository, digest))
        signed = dict.fromkeys(chain.from_iterable(map(self._names.authors, keys)))
        if not signed:
            signed = dict.fromkeys(record.peer for _, record in self._records.tags(repository, TAGS_READ))
        return list(islice(signed, MAX_PUSHERS))

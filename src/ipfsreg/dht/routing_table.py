"""Whom we know, most of them near us: the k-buckets. Pure.

A bucket holds the peers that share exactly n leading bits with us, at most k. A peer that answers stays for ever; a
newcomer to a full bucket waits until one of its members fails. So a flood of new identities pushes nobody out, and
a limit on peers of one IP network keeps it from filling the places that are free.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from ipfsreg.dht.keys import MAX_FOUND_BITS, Contact, common_bits, networks_of
from ipfsreg.peer_id import PeerId

FAILURES_TO_DROP = 2
"""In a row. After the first a peer is no longer told to others, and makes way if somebody waits."""


@dataclass(slots=True)
class _Entry:
    contact: Contact
    networks: frozenset[str]
    alive_at: float
    failures: int = 0


@dataclass(slots=True)
class _Bucket:
    members: dict[PeerId, _Entry] = field(default_factory=dict)
    """In order of last sign of life, the latest last."""
    waiting: dict[PeerId, _Entry] = field(default_factory=dict)
    """Likewise."""
    refreshed_at: float = float("-inf")


class RoutingTable:
    """The peers one node knows. Times are in seconds of any one clock."""

    def __init__(
        self,
        ours: Contact,
        *,
        k: int,
        per_network_in_table: int | None = None,
        per_network_in_bucket: int | None = None,
    ) -> None:
        self._ours = ours
        self._k = k
        self._per_table = per_network_in_table
        self._per_bucket = per_network_in_bucket
        self._buckets: dict[int, _Bucket] = {}
        self._networks: Counter[str] = Counter()
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __contains__(self, peer: object) -> bool:
        return isinstance(peer, PeerId) and self.get(peer) is not None

    def __iter__(self) -> Iterator[Contact]:
        for bucket in self._buckets.values():
            for entry in bucket.members.values():
                yield entry.contact

    def get(self, peer: PeerId) -> Contact | None:
        """What is known of *peer*, if it is in the table."""
        entry = self._bucket_of(Contact(peer)).members.get(peer)
        return entry.contact if entry is not None else None

    def bucket_sizes(self) -> dict[int, int]:
        """Shared bits -> peers, without empty buckets."""
        return {bits: len(bucket.members) for bits, bucket in sorted(self._buckets.items()) if bucket.members}

    # ------------------------------------------------------------------ changes

    def alive(self, contact: Contact, *, now: float) -> bool:
        """*contact* speaks the protocol, and has just shown that it lives. Return whether it is in the table now."""
        if contact.peer == self._ours.peer:
            return False
        bucket = self._bucket_of(contact)
        known = bucket.members.pop(contact.peer, None)
        if known is not None:
            self._count(known, -1)
            if not contact.addrs:
                contact = known.contact
        entry = _Entry(contact, networks_of(contact), now)
        bucket.waiting.pop(contact.peer, None)
        if not self._is_welcome(bucket, entry):
            return False
        if len(bucket.members) >= self._k:
            doubtful = next((peer for peer, each in bucket.members.items() if each.failures), None)
            if doubtful is None:
                bucket.waiting[contact.peer] = entry
                if len(bucket.waiting) > self._k:
                    del bucket.waiting[next(iter(bucket.waiting))]
                return False
            self._count(bucket.members.pop(doubtful), -1)
        bucket.members[contact.peer] = entry
        self._count(entry, +1)
        return True

    def failed(self, peer: PeerId) -> None:
        """*peer* did not answer. It makes way for one that waits, or goes after some failures in a row."""
        bucket = self._bucket_of(Contact(peer))
        bucket.waiting.pop(peer, None)
        entry = bucket.members.get(peer)
        if entry is None:
            return
        entry.failures += 1
        if entry.failures >= FAILURES_TO_DROP or bucket.waiting:
            self.remove(peer)

    def remove(self, peer: PeerId) -> None:
        """*peer* is no server any more. One that waits takes its place."""
        bucket = self._bucket_of(Contact(peer))
        bucket.waiting.pop(peer, None)
        entry = bucket.members.pop(peer, None)
        if entry is None:
            return
        self._count(entry, -1)
        while bucket.waiting and len(bucket.members) < self._k:
            newcomer, waiting = bucket.waiting.popitem()
            if self._is_welcome(bucket, waiting):
                bucket.members[newcomer] = waiting
                self._count(waiting, +1)

    def _is_welcome(self, bucket: _Bucket, entry: _Entry) -> bool:
        """Whether its networks have places left."""
        if self._per_table is not None and any(self._networks[each] >= self._per_table for each in entry.networks):
            return False
        if self._per_bucket is None:
            return True
        here = Counter(each for member in bucket.members.values() for each in member.networks)
        return all(here[each] < self._per_bucket for each in entry.networks)

    def _count(self, entry: _Entry, change: int) -> None:
        self._size += change
        for network in entry.networks:
            self._networks[network] += change
            if not self._networks[network]:
                del self._networks[network]

    def _bucket_of(self, contact: Contact) -> _Bucket:
        return self._buckets.setdefault(common_bits(self._ours.position, contact.position), _Bucket())

    # ---------------------------------------------------------------- questions

    def closest(self, position: int, count: int, *, sure: bool = False) -> list[Contact]:
        """Up to *count* members, the closest to *position* first. *sure*: without those whose last query failed."""
        members = (
            entry.contact
            for bucket in self._buckets.values()
            for entry in bucket.members.values()
            if not (sure and entry.failures)
        )
        return heapq.nsmallest(count, members, key=lambda contact: contact.position ^ position)

    def silent_since(self, before: float) -> list[Contact]:
        """Members without a sign of life since *before*, the longest silent first."""
        silent = [
            entry for bucket in self._buckets.values() for entry in bucket.members.values() if entry.alive_at < before
        ]
        return [entry.contact for entry in sorted(silent, key=lambda entry: entry.alive_at)]

    def looked_at(self, position: int, *, now: float) -> None:
        """A lookup for *position* was made, which refreshes the bucket it lies in."""
        bits = common_bits(self._ours.position, position)
        self._buckets.setdefault(bits, _Bucket()).refreshed_at = now

    def stale_buckets(self, before: float) -> list[int]:
        """The shared bits of buckets no lookup went to since *before*, up to one beyond the nearest peer.

        Nearer ones are covered by the lookup for ourselves.
        """
        filled = [bits for bits, bucket in self._buckets.items() if bucket.members]
        if not filled:
            return []
        last = min(max(filled) + 1, MAX_FOUND_BITS - 1)
        return [bits for bits in range(last + 1) if self._refreshed_at(bits) < before]

    def _refreshed_at(self, bits: int) -> float:
        bucket = self._buckets.get(bits)
        return bucket.refreshed_at if bucket is not None else float("-inf")

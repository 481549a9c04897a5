"""Counting names behind the back of everybody who reads and writes them."""

from __future__ import annotations

from ipfsreg.crdt.keys import end_of_prefix
from ipfsreg.database import Database


async def count_names(database: Database, prefix: str, mark: str) -> tuple[int, int]:
    """How many keys below *prefix* contain *mark*, and how many different beginnings they have before it.

    Reads all of them in a thread: about a second for a million. *prefix* ends in a slash. Raises StoreError.
    """
    ((count, beginnings),) = await database.count(
        "SELECT count(*), count(DISTINCT substr(key, 1, instr(key, ?1))) FROM crdt_names"
        " WHERE key >= ?2 AND key < ?3 AND instr(key, ?1) > 0",
        (mark, prefix, end_of_prefix(prefix)),
    )
    return count, beginnings

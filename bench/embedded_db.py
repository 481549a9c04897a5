"""SQLite (WAL) against LMDB for what the node keeps in its embedded database.

    .venv/bin/python bench/embedded_db.py [--rows 1000000] [--dir DIR]

Rows have a 34-byte key (a multihash) and a value of 20 bytes (where a leaf lies) or 80 (a name). Measured in turns
in the same run: bulk load, size on disk for each row, point lookups (present and absent) through the Python
binding as the trio thread does them, ordered scans of 1,000 under a prefix, durable writes one by one and in groups.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import random
import shutil
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import lmdb

VALUE = bytes(range(20))
NAME_VALUE = b"n" * 80


def key(number: int) -> bytes:
    return b"\x12\x20" + hashlib.sha256(number.to_bytes(8, "big")).digest()


def name(number: int) -> bytes:
    return b"/r/team-%03d/t/%06d" % (number // 1000, number % 1000)


class Store(Protocol):
    label: str

    def write(self, table: str, rows: list[tuple[bytes, bytes]]) -> None:
        """All of *rows* in one durable transaction."""

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]: ...

    def size(self) -> int: ...

    def close(self) -> None: ...


class Sqlite:
    label = f"SQLite {sqlite3.sqlite_version}"

    def __init__(self, directory: Path) -> None:
        self._path = directory / "db"
        self._writer, self._reader = self._connect(), self._connect()
        for table in ("blocks", "names"):
            self._writer.execute(f"CREATE TABLE {table} (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "cache_size = -8192"):
            db.execute(f"PRAGMA {pragma}")
        return db

    def write(self, table: str, rows: list[tuple[bytes, bytes]]) -> None:
        self._writer.execute("BEGIN IMMEDIATE")
        self._writer.executemany(f"INSERT INTO {table} VALUES (?, ?)", rows)
        self._writer.execute("COMMIT")

    def get(self, table: str, key: bytes) -> bytes | None:
        row = self._reader.execute(f"SELECT value FROM {table} WHERE key = ?", (key,)).fetchone()
        return None if row is None else row[0]

    def scan(self, table: str, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        sql = f"SELECT key, value FROM {table} WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
        return self._reader.execute(sql, (prefix, prefix + b"\xff", limit)).fetchall()

    def size(self) -> int:
        self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return self._path.stat().st_size

    def close(self) -> None:
        self._reader.close()
        self._writer.close()


class Lmdb:
    label = f"LMDB {'.'.join(map(str, lmdb.version()))}"

    def __init__(self, directory: Path) -> None:
        self._path = directory
        directory.mkdir()
        self._env = lmdb.open(str(directory), map_size=64 << 30, max_dbs=4)
        self._tables = {table: self._env.open_db(table.encode()) for table in ("blocks", "names")}

    def write(self, table: str, rows: list[tuple[bytes, bytes]]) -> None:
        with self._env.begin(write=True, db=self._tables[table]) as transaction:
            for row in rows:
                transaction.put(*row)

    def get(self, table: str, key: bytes) -> bytes | None:
        with self._env.begin(db=self._tables[table]) as transaction:
            value: bytes | None = transaction.get(key)
            return value

    def scan(self, table: str, prefix: bytes, limit: int) -> list[tuple[bytes, bytes]]:
        found: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._tables[table]) as transaction, transaction.cursor() as cursor:
            cursor.set_range(prefix)
            for row in cursor:
                if len(found) == limit or not row[0].startswith(prefix):
                    break
                found.append(row)
        return found

    def size(self) -> int:
        return (self._path / "data.mdb").stat().st_blocks * 512

    def close(self) -> None:
        self._env.close()


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


Results = dict[str, list[float]]
"""What was measured -> microseconds, unless the label says otherwise."""


def load(store: Store, rows: int, results: Results) -> None:
    batch = 10_000
    start = time.perf_counter()
    for first in range(0, rows, batch):
        store.write("blocks", [(key(number), VALUE) for number in range(first, min(first + batch, rows))])
    results["bulk load, us a row"] = [(time.perf_counter() - start) / rows * 1e6]
    results["bytes on disk a row"] = [store.size() / rows]
    for first in range(0, 100_000, batch):
        store.write("names", [(name(number), NAME_VALUE) for number in range(first, first + batch)])


def read(store: Store, rows: int, results: Results) -> None:
    dice = random.Random(1)
    present = [key(dice.randrange(rows)) for _ in range(10_000)]
    absent = [key(rows + number) for number in range(10_000)]
    prefixes = [b"/r/team-%03d/" % dice.randrange(100) for _ in range(50)]
    assert store.get("blocks", present[0]) == VALUE
    assert store.get("blocks", absent[0]) is None
    assert len(store.scan("names", prefixes[0], 1000)) == 1000
    for what, run, count in (
        ("lookup, present, us", lambda: [store.get("blocks", one) for one in present], len(present)),
        ("lookup, absent, us", lambda: [store.get("blocks", one) for one in absent], len(absent)),
        ("scan of 1,000, us", lambda: [store.scan("names", one, 1000) for one in prefixes], len(prefixes)),
    ):
        results.setdefault(what, []).append(timed(run) / count * 1e6)


def write(store: Store, fresh: Iterator[int], results: Results) -> None:
    for group in (1, 16, 256):
        rows = [(key(next(fresh)), VALUE) for _ in range(group)]
        taken = timed(lambda rows=rows: store.write("blocks", rows))  # type: ignore[misc]
        results.setdefault(f"durable write of {group}, us", []).append(taken * 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dir", type=Path, default=Path(tempfile.gettempdir()))
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=args.dir))
    try:
        stores: list[Store] = [Sqlite(directory), Lmdb(directory / "lmdb")]
        results: dict[str, Results] = {store.label: {} for store in stores}
        for store in stores:
            load(store, args.rows, results[store.label])
        # In turns, so that whatever else the machine does falls on both.
        for _ in range(7):
            for store in stores:
                read(store, args.rows, results[store.label])
        fresh = itertools.count(args.rows + 1_000_000)
        for _ in range(200):
            for store in stores:
                write(store, fresh, results[store.label])
        for store in stores:
            store.close()
    finally:
        shutil.rmtree(directory)
    first, second = results
    print(f"{args.rows} rows, {os.cpu_count()} cores; medians")
    print(f"{'':24}{first:>16}{second:>16}{'ratio':>8}")
    for what in results[first]:
        ours, others = (statistics.median(results[label][what]) for label in (first, second))
        print(f"{what:24}{ours:16.1f}{others:16.1f}{ours / others:8.2f}")


if __name__ == "__main__":
    main()

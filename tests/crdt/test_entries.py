from pathlib import Path

from ipfsreg.crdt import state
from ipfsreg.crdt.entries import read_name, scan_names
from ipfsreg.testing.inline_database import InlineDatabase, open_inline_database


async def filled(database: InlineDatabase, keys: int) -> None:
    await database.prepare("crdt", state.SCHEMA)
    rows = [(f"/k/{number:06}", 1, b"%d" % number) for number in range(keys)]
    await database.write(lambda db: db.executemany("INSERT INTO crdt_names VALUES (?, ?, ?)", rows) and None)


def steps(database: InlineDatabase) -> list[int]:
    """Count the virtual machine's progress on reads, in thousands of steps."""
    counted = [0]

    def tick() -> int:
        counted[0] += 1
        return 0

    database._reader.set_progress_handler(tick, 1000)
    return counted


async def test_reading_a_few_names_of_many_reads_only_those(tmp_path: Path) -> None:
    async with open_inline_database(tmp_path / "names.db") as database:
        await filled(database, 50_000)
        counted = steps(database)
        assert read_name(database, "/k/049999") == b"49999"
        assert [key for key, _ in scan_names(database, "/k/0499", "", 2)] == ["/k/049900", "/k/049901"]
        assert [key for key, _ in scan_names(database, "/k/", "/k/049990", 2)] == ["/k/049991", "/k/049992"]
        assert [key for key, _ in scan_names(database, "", "/k/049998", None)] == ["/k/049999"]
        assert counted[0] == 0, "a scan of the whole table takes hundreds"
        assert len(scan_names(database, "/k/", "", None)) == 50_000
        assert counted[0] > 100

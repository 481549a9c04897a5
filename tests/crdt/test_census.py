from pathlib import Path

from ipfsreg.crdt.census import count_names
from ipfsreg.crdt.interface import Delete, Put
from ipfsreg.testing.replicas import ReplicaSwarm


async def test_names_are_counted_by_what_stands_in_their_keys(tmp_path: Path) -> None:
    swarm = ReplicaSwarm(tmp_path)
    async with swarm.open("alice") as alice:
        await alice.commit(
            [
                *(Put(f"/r/team/app/_t/{number}", b"1") for number in range(5)),
                Put("/r/team/app/inner/_t/1", b"1"),
                Put("/r/team/_m/1", b"1"),
                Put("/r/team/_l/1", b"1"),
                Put("/rr/other/_t/1", b"1"),
            ]
        )
        await alice.commit([Delete("/r/team/app/_t/3")])
        database = swarm.databases["alice"]
        assert await count_names(database, "/r/", "/_t/") == (5, 2)
        assert await count_names(database, "/r/", "/_m/") == (1, 1)
        assert await count_names(database, "/r/", "/_s/") == (0, 0)

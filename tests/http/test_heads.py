"""Reading one's writes at another node."""

from pathlib import Path

import pytest
import trio

from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.memory import MemoryNames
from ipfsreg.http.heads import MAX_HEADS, heads_headers
from ipfsreg.ipld.cid import DAG_PB, Cid
from ipfsreg.testing.front_door import open_front_door
from ipfsreg.testing.http_client import connect_http

UNKNOWN = Cid.of(DAG_PB, b"of somebody else")
CHANGE = [Put("/r/team/app/_t/1.0", b"1")]


@pytest.mark.parametrize("path", ["/v2/team/app/manifests/1.0", "/v2/team/app/tags/list", "/v2/_catalog"])
async def test_a_read_waits_for_the_heads_it_carries(tmp_path: Path, path: str) -> None:
    names, twin = MemoryNames(), MemoryNames()
    twin.receive(CHANGE)
    (head,) = twin.heads()
    async with (
        open_front_door(tmp_path, names=names) as door,
        connect_http(door.places[0]) as client,
        trio.open_nursery() as nursery,
    ):

        async def read() -> None:
            answer = await client.request("GET", path, headers={"Ipfsreg-Heads": f"{head}"})
            assert names.get(CHANGE[0].key) is not None, "not before it was here"
            assert answer.status != 503

        nursery.start_soon(read)
        await trio.sleep(0.05)
        names.receive(CHANGE)


async def test_a_node_that_does_not_get_the_heads_says_so_in_bounded_time(tmp_path: Path) -> None:
    async with open_front_door(tmp_path, wait_heads_s=0.05) as door, connect_http(door.places[0]) as client:
        answer = await client.request("HEAD", "/v2/team/app/manifests/1.0", headers={"Ipfsreg-Heads": str(UNKNOWN)})
        assert (answer.status, answer.headers["retry-after"]) == (503, "5")
        answer = await client.request("GET", "/v2/_catalog", headers={"Ipfsreg-Heads": str(UNKNOWN)})
        assert answer.status == 503
        assert b"UNAVAILABLE" in answer.body
        answer = await client.request(
            "POST", "/v2/team/app/blobs/uploads/", headers={"Ipfsreg-Heads": str(UNKNOWN)}, body=b""
        )
        assert answer.status == 202, "writes do not depend on what was read"


@pytest.mark.parametrize("text", ["nonsense", f"{UNKNOWN}, x", ", ".join([str(UNKNOWN)] * (MAX_HEADS + 1))])
async def test_what_are_no_heads_is_a_bad_request(tmp_path: Path, text: str) -> None:
    async with open_front_door(tmp_path) as door, connect_http(door.places[0]) as client:
        assert (await client.request("GET", "/v2/_catalog", headers={"Ipfsreg-Heads": text})).status == 400
        assert (await client.request("GET", "/v2/_catalog", headers={"Ipfsreg-Heads": ""})).status == 200


def test_heads_that_no_request_could_carry_back_are_not_told() -> None:
    assert heads_headers(()) == []
    assert heads_headers([UNKNOWN] * (MAX_HEADS + 1)) == []
    assert heads_headers([UNKNOWN, UNKNOWN]) == [("Ipfsreg-Heads", f"{UNKNOWN}, {UNKNOWN}")]

"""A small crowd on links of its own: what `bench/flash_crowd.py` measures, as a story that must end well."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfsreg.testing.crowd import Pull, make_layers, pull_at_once, push_layers, start_crowd
from ipfsreg.testing.daemons import HTTP_PORT, Cluster
from ipfsreg.testing.namespaces import Lan, open_lan, unavailable

pytestmark = [
    pytest.mark.journey,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]

SIZE = 5_000_000


@pytest.fixture
def lan() -> Iterator[Lan]:
    with open_lan(["alice", "bob", "carol", "dave"], mbit_per_s=20) as lan:
        yield lan
    assert not list(Path("/run/netns").glob(f"{lan.name}-*")), "nothing of it is left"


def test_everybody_gets_the_image_and_the_holder_does_not_send_it_to_each(tmp_path: Path, lan: Lan) -> None:
    with Cluster(tmp_path) as cluster:
        nodes = start_crowd(cluster, lan)
        holder, others = lan.machines[0], lan.machines[1:]
        image = push_layers(holder, make_layers(SIZE), "crowd/app", "1.0", HTTP_PORT)
        for node in nodes:
            assert node.wait_manifest("crowd/app", "1.0") == image.digest
        _, sent_before = holder.traffic()
        pull_at_once([Pull(machine, image) for machine in others])
        _, sent = holder.traffic()
        assert sent - sent_before < 2.5 * SIZE
        exchanged = [node.status()["bitswap"] for node in nodes]
        assert all(one["bytes_received"] >= SIZE for one in exchanged[1:])
        assert sum(one["bytes_sent"] for one in exchanged[1:]) > SIZE / 2, "they gave to each other"

"""A swarm of real daemon processes for each story."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from ipfsreg.testing.daemons import Cluster


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path) as cluster:
        yield cluster

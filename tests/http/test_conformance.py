"""The OCI's own conformance suite against our front door, for the released specification and for what comes next."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import trio

from ipfsreg.config import load_config
from ipfsreg.http.door.opening import open_door
from ipfsreg.http.server import Server
from ipfsreg.http.tls import Tls
from ipfsreg.testing.closed import make_closed_door
from ipfsreg.testing.front_door import open_front_door

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

CACHE = Path(__file__).parents[2] / ".cache"


@pytest.fixture(scope="module")
def suite() -> Path:
    """The suite's program."""
    found = sorted(CACHE.glob("conformance-*/conformance"))
    assert found, "the conformance suite is not there: scripts/setup --dev installs it"
    return found[-1]


@pytest.mark.parametrize(("version", "at_least"), [("1.1", 850), ("dev", 975)])
async def test_the_suite_finds_no_failure(
    suite: Path, door: Server, tmp_path: Path, version: str, at_least: int
) -> None:
    await run_suite(suite, tmp_path, version, at_least, {"OCI_REGISTRY": door.places[0], "OCI_TLS": "disabled"})


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "passwords"])
async def test_the_suite_finds_no_failure_at_a_closed_door_over_tls(suite: Path, tmp_path: Path, tokens: bool) -> None:
    closed = make_closed_door(tmp_path / "door")
    values = {"IPFSREG_P2P_PROTECTOR_KEY": "ab" * 32, **closed.environment(tokens=tokens)}
    config = load_config(None, values)
    tls = Tls(Path(config.http.tls_certificate), Path(config.http.tls_key))
    with open_door(config, b"the node's own key") as door:
        async with open_front_door(tmp_path, door=door.door, tls=tls) as server:
            environment = {
                "OCI_REGISTRY": server.places[0],
                "OCI_TLS": "enabled",
                "SSL_CERT_FILE": str(closed.authority.certificate),
                "OCI_USERNAME": "alice",
                "OCI_PASSWORD": closed.users["alice"],
            }
            await run_suite(suite, tmp_path, "dev", 970, environment)


async def run_suite(suite: Path, tmp_path: Path, version: str, at_least: int, where: dict[str, str]) -> None:
    environment = {
        **os.environ,
        **where,
        "OCI_REPO1": "conformance/one",
        "OCI_REPO2": "conformance/two",
        "OCI_VERSION": version,
        "OCI_RESULTS_DIR": str(tmp_path),
    }
    done = await trio.run_process([str(suite)], env=environment, cwd=tmp_path, capture_stdout=True, check=False)
    report = ElementTree.parse(tmp_path / "junit.xml")
    failed = [
        case.get("name") for case in report.iter("testcase") if {"failure", "error"} & {part.tag for part in case}
    ]
    assert failed == []
    assert done.returncode == 0, done.stdout[-2000:]
    (counts,) = report.iter("testsuite")
    assert counts.get("failures") == counts.get("errors") == "0"
    # A suite that stopped early has no failures either.
    assert int(counts.get("tests", 0)) - int(counts.get("skipped", 0)) - int(counts.get("disabled", 0)) >= at_least

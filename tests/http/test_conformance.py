"""The OCI's own conformance suite against our front door, for the released specification and for what comes next.

The suite is a Go program. A binary is built once and kept in `~/.cache/ipfsreg-tests`: from the folder that
`IPFSREG_CONFORMANCE_SOURCE` names (a checkout's `conformance/`), else through Go's module proxy.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import trio

from ipfsreg.http.server import Server

pytestmark = [pytest.mark.clients, pytest.mark.timeout(600)]

COMMIT = "967efdc079b91785ad18c77cc4f8991a47feefbf"
MODULE = f"github.com/opencontainers/distribution-spec/conformance@{COMMIT}"
CACHE = Path.home() / ".cache" / "ipfsreg-tests"


def build(binary: Path) -> str | None:
    """Build the suite as *binary*; the reason where that is not possible here."""
    go = shutil.which("go") or "/usr/local/go/bin/go"
    if not Path(go).exists():
        return "no Go toolchain"
    CACHE.mkdir(parents=True, exist_ok=True)
    environment = {
        **os.environ,
        "GOPATH": str(CACHE / "gopath"),
        "GOBIN": str(CACHE / "gobin"),
        "GOFLAGS": "-modcacherw",
    }
    source = os.environ.get("IPFSREG_CONFORMANCE_SOURCE")
    if source is not None:
        command, made = [go, "build", "-o", str(binary), "."], binary
    else:
        command, made = [go, "install", MODULE], CACHE / "gobin" / "conformance"
    done = subprocess.run(command, cwd=source or CACHE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"the suite cannot be built here: {done.stderr.strip()[-300:]}"
    if made != binary:
        made.rename(binary)
    return None


@pytest.fixture(scope="module")
def suite() -> Path:
    """The suite's program."""
    binary = CACHE / f"conformance-{COMMIT[:12]}"
    if not binary.exists() and (reason := build(binary)) is not None:
        pytest.skip(reason)
    return binary


@pytest.mark.parametrize(("version", "at_least"), [("1.1", 850), ("dev", 975)])
async def test_the_suite_finds_no_failure(
    suite: Path, door: Server, tmp_path: Path, version: str, at_least: int
) -> None:
    environment = {
        **os.environ,
        "OCI_REGISTRY": door.places[0],
        "OCI_TLS": "disabled",
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

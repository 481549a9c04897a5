"""docs/clients.md says what the tests show."""

from __future__ import annotations

import re

import pytest

from ipfsreg.testing.clients.known import IMAGE_CLIENTS, KNOWN
from ipfsreg.testing.clients.programs import GO_MODULES
from ipfsreg.testing.clients.table import PAGE, Column, cells, committed, render, unproved, versions_in, with_table

pytestmark = pytest.mark.clients


def test_the_committed_table_is_what_a_run_writes_but_for_debians_versions(pytestconfig: pytest.Config) -> None:
    if pytestconfig.getoption("--clients-table", False):
        pytest.skip("this run writes it")
    if absent := GO_MODULES.missing(["crane"]):
        pytest.skip(f"{absent} is not built: scripts/setup --dev does it")
    table = committed(PAGE.read_text())
    versions = versions_in(table, KNOWN)
    assert table == render(KNOWN, versions), "scripts/test tests/clients --clients-table writes it anew"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+\S*", version) for version in versions.values()), versions


def test_the_page_has_a_recipe_for_every_client() -> None:
    page = PAGE.read_text()
    assert [known.program for known in KNOWN if f"\n## {known.program}" not in page] == []


def test_what_no_test_has_shown_is_not_written() -> None:
    known = IMAGE_CLIENTS[0]
    everything = {known.name: {str(column) for column in cells(known)}}
    assert unproved([known], everything) == []
    assert unproved([known], {known.name: everything[known.name] - {Column.CUT}}) == [f"{known.name}: {Column.CUT}"]
    assert len(unproved([known], {})) == len(cells(known))


def test_another_table_replaces_the_one_that_is_there() -> None:
    page, known = PAGE.read_text(), IMAGE_CLIENTS[0]
    table = render([known], {known.name: "1.2.3"})
    assert committed(with_table(page, table)) == table
    assert with_table(with_table(page, table), committed(page)) == page
    assert table.count("\n") == 3
    assert "| 1.2.3 | Debian 12 |" in table

"""The table of docs/clients.md: which client in which version did what, as a run of the tests has seen it.

A test notes what it has shown. A run with `--clients-table` writes the table if everything it says was shown; without,
the committed table is compared with what the tests would write, but for the versions of what Debian has today.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path

from ipfsreg.testing.clients.interface import RegistryClient
from ipfsreg.testing.clients.known import COSIGN, HELM, IMAGE_CLIENTS, MANY_LAYERS, ORAS, Known
from ipfsreg.testing.clients.programs import GO_MODULES

PAGE = Path(__file__).parents[4] / "docs" / "clients.md"
BEGIN = "<!-- table: `scripts/test tests/clients --clients-table` writes it -->\n"
END = "<!-- end of the table -->\n"


class Column(StrEnum):
    """What a client can be shown to do."""

    IMAGE = "push, pull"
    INDEX = "several architectures"
    MANY = "100 layers"
    CUT = "a pull cut in a layer"
    PASSWORD = "password, over TLS"
    TOKEN = "token, over TLS"
    MORE = "more"


def cells(known: Known[RegistryClient]) -> dict[Column, str]:
    """What the tests show of a client, in the words of the table."""
    said = {Column.PASSWORD: "yes", Column.TOKEN: "yes"}
    if known in IMAGE_CLIENTS:
        said[Column.IMAGE] = "yes"
        said[Column.INDEX] = "push, pull" if known.pushes_indexes else "pull"
        said[Column.CUT] = "goes on" if known.resumes else "starts anew"
    if known in MANY_LAYERS:
        said[Column.MANY] = "yes"
    more = {HELM: "charts: push, pull, show", COSIGN: "sign, verify", ORAS: "attach, discover"}
    if known.program == "containerd":
        said[Column.MORE] = "hosts.toml, mirrors"
    elif known in more:
        said[Column.MORE] = more[known]
    return said


def render(clients: Sequence[Known[RegistryClient]], versions: Mapping[str, str]) -> str:
    """The table. *versions*: by the names of clients."""
    heads = ["client", "version", "from", *Column]
    rows = []
    for known in clients:
        said = cells(known)
        name = " ".join(filter(None, (known.program, known.variant and f"({known.variant})")))
        rows.append([name, versions[known.name], known.origin.name, *(said.get(column, "") for column in Column)])
    lines = ["|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in (heads, *rows)]
    return "\n".join([lines[0], "|---" * len(heads) + "|", *lines[1:], ""])


def unproved(clients: Sequence[Known[RegistryClient]], proved: Mapping[str, set[str]]) -> list[str]:
    """What the table would say and no test has shown."""
    return [
        f"{known.name}: {column}"
        for known in clients
        for column in cells(known)
        if column not in proved.get(known.name, set())
    ]


def committed(page: str) -> str:
    """The table of the page. Raises ValueError."""
    start = page.index(BEGIN) + len(BEGIN)
    return page[start : page.index(END, start)]


def with_table(page: str, table: str) -> str:
    """The page with another table."""
    return page.replace(committed(page), table)


def versions_in(table: str, clients: Sequence[Known[RegistryClient]]) -> dict[str, str]:
    """The versions a table has for *clients*, in their order; of modules those that are built here now."""
    rows = table.splitlines()[2:]
    said = [row.split("|")[2].strip() for row in rows]
    return {
        known.name: known.origin.module_version(known.programs[0]) if known.origin == GO_MODULES else version
        for known, version in zip(clients, said, strict=True)
    }

"""`Ipfsreg-Heads`: what a client carries from a write at one node to a read at another.

The answer to a manifest's PUT or DELETE has the heads of the name store that contain it. A GET or HEAD that has them as
a request header is answered from a state with that write in it: the node waits for it, bounded, or says 503.
"""

from __future__ import annotations

from collections.abc import Sequence

from ipfsreg.errors import MalformedData
from ipfsreg.http.paths import QueryInvalid
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Header
from ipfsreg.ipld.cid import Cid
from ipfsreg.registry.interface import Registry

NAME = "Ipfsreg-Heads"

MAX_HEADS = 32
"""In one header. A node that writes joins the heads it has, so an answer has one, and a few where others write, too."""


def heads_headers(heads: Sequence[Cid]) -> list[Header]:
    """The header that tells *heads*; none for none, or for more than a request may carry."""
    return [(NAME, ", ".join(map(str, heads)))] if 0 < len(heads) <= MAX_HEADS else []


async def heed_heads(registry: Registry, request: Request) -> None:
    """Wait until *registry* has the heads that a reading *request* carries.

    Raises:
        QueryInvalid: they are none.
        NotReady: it does not have them in time.
    """
    text = request.headers.get(NAME.lower())
    if text is None or request.method not in ("GET", "HEAD"):
        return
    parts = [part.strip() for part in text.split(",")]
    if len(parts) > MAX_HEADS:
        raise QueryInvalid(f"{NAME} with {len(parts)} heads, allowed are {MAX_HEADS}")
    try:
        heads = [Cid.parse(part) for part in parts if part]
    except MalformedData as error:
        raise QueryInvalid(f"{NAME}: {error}") from None
    await registry.wait_heads(heads)

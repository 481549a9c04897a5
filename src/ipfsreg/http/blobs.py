"""Blobs: HEAD, GET with ranges and conditions, DELETE. Spec: distribution-spec, "Pulling blobs".

Content-Type is always octet-stream and Content-Encoding never set: a layer is bytes with a digest, and a byte
transcoded on the way is another layer.
"""

from __future__ import annotations

from ipfsreg.errors import RangeInvalid
from ipfsreg.http.answers import while_unchanged
from ipfsreg.http.errors import error_body
from ipfsreg.http.paths import DeleteBlob, GetBlob
from ipfsreg.http.request import Request
from ipfsreg.http.responses import FileBody, Header, NoBody, Response, StreamBody
from ipfsreg.oci.ranges import parse_range
from ipfsreg.registry.interface import BlobStat, Registry

IMMUTABLE: Header = ("Cache-Control", "private, max-age=31536000, immutable")
"""What a digest names never changes; `private`, because a shared cache would go on serving what was deleted here."""


async def get_blob(registry: Registry, request: Request, action: GetBlob) -> Response:
    """GET and HEAD."""
    stands = while_unchanged(registry, registry.version)
    if request.method == "HEAD":
        stat = await registry.stat_blob(action.repository, action.digest)
        return Response(200, _headers(stat), NoBody(stat.size), stands)
    condition = request.headers.get("if-none-match")
    if condition is not None:
        stat = await registry.stat_blob(action.repository, action.digest)
        if matches(condition, str(stat.digest)):
            return Response(304, _headers(stat), stands=stands)
    content = await registry.open_blob(action.repository, action.digest)
    if content.data is None:
        await request.keep(content)
    stat = content.stat
    headers = _headers(stat)
    start, end, status = 0, stat.size, 200
    wanted = request.headers.get("range")
    if wanted is not None and matches(request.headers.get("if-range", "*"), str(stat.digest)):
        try:
            found = parse_range(wanted, stat.size)
        except RangeInvalid as error:
            refusal = (("Content-Type", "application/json"), ("Content-Range", f"bytes */{stat.size}"))
            return Response(416, refusal, error_body("SIZE_INVALID", str(error)))
        if found is not None:
            start, end = found
            status = 206
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{stat.size}"))
    if content.data is not None:
        return Response(status, headers, content.data[start:end], stands)
    if content.path is not None:
        return Response(status, headers, FileBody(content.path, start, end))
    return Response(status, headers, StreamBody(end - start, content.stream(start, end)))


async def delete_blob(registry: Registry, request: Request, action: DeleteBlob) -> Response:
    """DELETE."""
    await registry.delete_blob(action.repository, action.digest)
    return Response(202)


def matches(condition: str, digest: str) -> bool:
    """Whether one of the entity tags in *condition* is the one of *digest* (RFC 9110, 13.1.2; weak ones count too)."""
    if condition.strip() == "*":
        return True
    return any(tag.strip().removeprefix("W/").strip('"') == digest for tag in condition.split(","))


def _headers(stat: BlobStat) -> list[Header]:
    digest = str(stat.digest)
    return [
        ("Content-Type", "application/octet-stream"),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        ("Accept-Ranges", "bytes"),
        IMMUTABLE,
        ("X-Ipfs-Roots", str(stat.root)),
    ]

"""Manifests: GET, HEAD, PUT, DELETE. Spec: distribution-spec, "Pulling manifests", "Pushing Manifests"."""

from __future__ import annotations

from ipfsreg.errors import ManifestTooLarge
from ipfsreg.http.answers import while_unchanged
from ipfsreg.http.blobs import IMMUTABLE, matches
from ipfsreg.http.heads import heads_headers
from ipfsreg.http.paths import DeleteManifest, GetManifest, PutManifest
from ipfsreg.http.request import BodyTooLarge, Request
from ipfsreg.http.responses import Header, NoBody, Response
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES
from ipfsreg.registry.interface import ManifestStat, Registry

_REVALIDATE: Header = ("Cache-Control", "no-cache")


async def get_manifest(registry: Registry, request: Request, action: GetManifest) -> Response:
    """GET and HEAD.

    The stored type is served, whatever Accept says: converting would change the digest, and refusing has broken
    clients that understand more than they claim. Clients name what they got by Content-Type.
    """
    by_digest = isinstance(action.reference, Digest)
    stands = while_unchanged(registry, registry.version)
    condition = request.headers.get("if-none-match")
    if request.method == "HEAD" or condition is not None:
        stat = await registry.stat_manifest(action.repository, action.reference)
        if condition is not None and matches(condition, str(stat.digest)):
            return Response(304, _headers(stat, by_digest), stands=stands)
        if request.method == "HEAD":
            return Response(200, _headers(stat, by_digest), NoBody(stat.size), stands)
    content = await registry.get_manifest(action.repository, action.reference)
    return Response(200, _headers(content.stat, by_digest), content.data, stands)


async def put_manifest(registry: Registry, request: Request, action: PutManifest) -> Response:
    """PUT."""
    try:
        data = await request.body.read_all(MAX_MANIFEST_BYTES)
    except BodyTooLarge:
        raise ManifestTooLarge(f"a manifest is at most {MAX_MANIFEST_BYTES} bytes") from None
    # Without one, the manifest's own mediaType counts.
    media_type = request.headers.get("content-type", "").partition(";")[0].strip()
    pushed = await registry.put_manifest(
        action.repository, action.reference, media_type, data, action.tags, overwrite=request.may_overwrite
    )
    headers: list[Header] = [
        ("Location", f"/v2/{action.repository}/manifests/{pushed.digest}"),
        ("Docker-Content-Digest", str(pushed.digest)),
    ]
    if pushed.subject is not None:
        headers.append(("OCI-Subject", str(pushed.subject)))
    headers += [("OCI-Tag", tag) for tag in action.tags]
    return Response(201, [*headers, *heads_headers(pushed.heads)])


async def delete_manifest(registry: Registry, request: Request, action: DeleteManifest) -> Response:
    """DELETE."""
    return Response(202, heads_headers(await registry.delete_manifest(action.repository, action.reference)))


def _headers(stat: ManifestStat, by_digest: bool) -> list[Header]:
    digest = str(stat.digest)
    return [
        ("Content-Type", stat.media_type),
        ("Docker-Content-Digest", digest),
        ("ETag", f'"{digest}"'),
        IMMUTABLE if by_digest else _REVALIDATE,
    ]

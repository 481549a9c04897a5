"""Lists: tags, repositories, referrers. Specs: distribution-spec, "Content Discovery"; `_catalog` is distribution's."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, urlencode

import trio

from ipfsreg.http.answers import while_unchanged
from ipfsreg.http.paths import ListReferrers, ListRepositories, ListTags
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Header, Response
from ipfsreg.oci.manifest import Descriptor
from ipfsreg.registry.interface import Page, Registry

_INDEX = "application/vnd.oci.image.index.v1+json"
_JSON: Header = ("Content-Type", "application/json")
_LOOKED_AT_ONCE = 1000
"""Repositories between two turns of others, where only some of them are shown."""
_MAX_REFERRERS_BYTES = 3 * 1024 * 1024
"""Clients read a referrers index as they read a manifest, up to 4 MiB."""


async def list_tags(registry: Registry, request: Request, action: ListTags) -> Response:
    """GET tags/list."""
    stands = while_unchanged(registry, registry.version)
    page = await registry.tags(action.repository, limit=action.limit, last=action.last)
    path = f"/v2/{action.repository}/tags/list"
    body = _json(name=action.repository, tags=page.names)
    return Response(200, _page_headers(path, action.limit, page), body, stands)


async def list_repositories(registry: Registry, request: Request, action: ListRepositories) -> Response:
    """GET _catalog."""
    stands = while_unchanged(registry, registry.version)
    page = await registry.repositories(limit=action.limit, last=action.last)
    if request.sees is not None:
        page = await _visible(registry, action.limit, page, request.sees)
    body = _json(repositories=page.names)
    return Response(200, _page_headers("/v2/_catalog", action.limit, page), body, stands)


async def _visible(registry: Registry, limit: int, page: Page, sees: Callable[[str], bool]) -> Page:
    """Up to *limit* of the repositories that the caller *sees*, from *page* on, however many others lie between."""
    found: list[str] = []
    while True:
        for name in page.names:
            if sees(name):
                if len(found) == limit:
                    return Page(tuple(found), more=True)
                found.append(name)
        if not page.more or not page.names:
            return Page(tuple(found), more=False)
        await trio.lowlevel.checkpoint()
        page = await registry.repositories(limit=_LOOKED_AT_ONCE, last=page.names[-1])


async def list_referrers(registry: Registry, request: Request, action: ListReferrers) -> Response:
    """GET referrers: an index, in pages where it would pass what clients take, in the order of digests."""
    stands = while_unchanged(registry, registry.version)
    found = await registry.referrers(action.repository, action.subject, action.artifact_type)
    found = sorted((entry for entry in found if str(entry.digest) > action.last), key=lambda entry: str(entry.digest))
    texts = _fitting(found)
    headers: list[Header] = [("Content-Type", _INDEX)]
    parameters: dict[str, str] = {}
    if action.artifact_type is not None:
        headers.append(("OCI-Filters-Applied", "artifactType"))
        parameters["artifactType"] = action.artifact_type
    if len(texts) < len(found):
        parameters["last"] = str(found[len(texts) - 1].digest)
        headers.append(_link(f"/v2/{action.repository}/referrers/{action.subject}", parameters))
    body = f'{{"schemaVersion":2,"mediaType":"{_INDEX}","manifests":[{",".join(texts)}]}}'
    return Response(200, headers, body.encode(), stands)


def _fitting(entries: list[Descriptor]) -> list[str]:
    """As many of *entries*, as JSON, as one page holds; at least one."""
    texts: list[str] = []
    size = 0
    for entry in entries:
        text = json.dumps(_descriptor(entry), separators=(",", ":"))
        size += len(text) + 1
        if size > _MAX_REFERRERS_BYTES and texts:
            break
        texts.append(text)
    return texts


def _descriptor(entry: Descriptor) -> dict[str, Any]:
    document: dict[str, Any] = {"mediaType": entry.media_type, "digest": str(entry.digest), "size": entry.size}
    if entry.artifact_type:
        document["artifactType"] = entry.artifact_type
    if entry.annotations:
        document["annotations"] = dict(entry.annotations)
    return document


def _page_headers(path: str, limit: int, page: Page) -> list[Header]:
    headers = [_JSON]
    if page.more and page.names:
        headers.append(_link(path, {"n": str(limit), "last": page.names[-1]}))
    return headers


def _link(path: str, parameters: dict[str, str]) -> Header:
    return "Link", f'<{path}?{urlencode(parameters, quote_via=quote)}>; rel="next"'


def _json(**document: object) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()

"""PURE: what a request and its answer are an event of.

Told is what distribution tells: manifests and blobs pushed, pulled, mounted and deleted, and tags deleted. A HEAD, a
304 and the answer to a range are no pull; a pull is told when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator

from ipfsreg.http import paths
from ipfsreg.http.request import Request
from ipfsreg.http.responses import Response, body_length
from ipfsreg.notifications.events import Action, Target
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import Reference, RepositoryName

BLOB_TYPE = "application/octet-stream"


def witness(request: Request, action: paths.Action, response: Response) -> Iterator[tuple[Action, Target]]:
    """What has happened, with sizes and types as far as the answer tells them."""
    if not 200 <= response.status < 300:
        return
    match action:
        case paths.GetManifest(repository, reference) if request.method == "GET" and response.status == 200:
            yield "pull", _manifest(repository, reference, response, body_length(response))
        case paths.GetBlob(repository, digest) if request.method == "GET" and response.status == 200:
            yield "pull", _blob(repository, str(digest), body_length(response))
        case paths.PutManifest(repository, reference, tags):
            references: list[Reference] = [reference, *tags]
            named = [one for one in dict.fromkeys(references) if not isinstance(one, Digest)]
            for one in named or references:
                yield "push", _manifest(repository, one, response, None)
        case paths.DeleteManifest(repository, reference):
            if isinstance(reference, Digest):
                yield "delete", Target(repository=repository, digest=str(reference), is_manifest=True)
            else:
                yield "delete", Target(repository=repository, tag=reference, is_manifest=True)
        case paths.FinishUpload(repository) if response.status == 201:
            yield "push", _blob(repository, _header(response, "Docker-Content-Digest"), None)
        case paths.StartUpload(repository, digest, mount, source) if response.status == 201:
            mounted = mount is not None and _header(response, "Docker-Content-Digest") == str(mount) != str(digest)
            origin = source if mounted and source is not None else ""
            yield (
                "mount" if mounted else "push",
                _blob(repository, _header(response, "Docker-Content-Digest"), None, origin),
            )
        case paths.DeleteBlob(repository, digest):
            yield "delete", Target(repository=repository, digest=str(digest))


def _manifest(repository: RepositoryName, reference: Reference, response: Response, size: int | None) -> Target:
    return Target(
        repository=repository,
        digest=_header(response, "Docker-Content-Digest"),
        media_type=_header(response, "Content-Type"),
        size=size,
        tag="" if isinstance(reference, Digest) else reference,
        is_manifest=True,
    )


def _blob(repository: RepositoryName, digest: str, size: int | None, source: str = "") -> Target:
    return Target(repository=repository, digest=digest, media_type=BLOB_TYPE, size=size, from_repository=source)


def _header(response: Response, name: str) -> str:
    return next((value for header, value in response.headers if header == name), "")

"""Pushing blobs: POST, PATCH, PUT, GET and DELETE of an upload, and mounts. Spec: distribution-spec, "Pushing blobs".

Locations are relative: they are right behind every proxy, under every host name and for every scheme, and every client
resolves them against the URL it asked (RFC 9110, 10.2.2).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import trio

from ipfsreg.errors import BlobUnknown, IpfsregError, NameUnknown, RangeInvalid, SizeInvalid
from ipfsreg.http.errors import error_body
from ipfsreg.http.paths import AppendUpload, CancelUpload, FinishUpload, GetUpload, StartUpload
from ipfsreg.http.request import Body, Request
from ipfsreg.http.responses import Header, Response
from ipfsreg.oci.names import RepositoryName
from ipfsreg.oci.ranges import parse_content_range
from ipfsreg.registry.interface import BlobStat, Registry, UploadSession

_DISCARD_S = 5.0
_CHUNK_MIN_BYTES = 64 * 1024
"""Below this a chunk costs more to ask for than to send. Advice: smaller ones are taken."""


class OutOfOrder(RangeInvalid):
    """A chunk that does not begin where the upload ends."""


async def start_upload(registry: Registry, request: Request, action: StartUpload) -> Response:
    """POST: a mount, a whole blob, or the beginning of an upload."""
    repository = action.repository
    if action.mount is not None:
        try:
            return _created(repository, await registry.mount_blob(repository, action.mount, action.source))
        except (BlobUnknown, NameUnknown):
            pass  # The client goes on with an upload, as the specification says.
    session = await registry.start_upload(repository, action.algorithm, owner=request.user)
    if action.digest is None:
        registry.release_upload(session)
        return Response(202, [*_progress(session), ("OCI-Chunk-Min-Length", str(_CHUNK_MIN_BYTES))])
    try:
        await _receive(request, session)
        return _created(repository, await session.finish(action.digest))
    except BaseException:  # Whatever ended it, cancellation too: its id was never told, so nobody could go on with it.
        await _discard(session)
        raise
    finally:
        registry.release_upload(session)


async def get_upload(registry: Registry, request: Request, action: GetUpload) -> Response:
    """GET: how far it is."""
    async with _holding(registry, request, action.repository, action.upload_id) as session:
        return Response(204, _progress(session))


async def append_upload(registry: Registry, request: Request, action: AppendUpload) -> Response:
    """PATCH: more bytes. What has arrived counts, also when the client goes away in the middle."""
    async with _holding(registry, request, action.repository, action.upload_id) as session:
        try:
            await _receive(request, session)
        except OutOfOrder as error:
            return _out_of_order(session, error)
        return Response(202, _progress(session))


async def finish_upload(registry: Registry, request: Request, action: FinishUpload) -> Response:
    """PUT: the last bytes, if any, and what the whole is."""
    async with _holding(registry, request, action.repository, action.upload_id) as session:
        try:
            await _receive(request, session)
        except OutOfOrder as error:
            return _out_of_order(session, error)
        return _created(action.repository, await session.finish(action.digest))


async def cancel_upload(registry: Registry, request: Request, action: CancelUpload) -> Response:
    """DELETE: throw it away."""
    async with _holding(registry, request, action.repository, action.upload_id) as session:
        await session.cancel()
    return Response(204)


@asynccontextmanager
async def _holding(
    registry: Registry, request: Request, repository: RepositoryName, upload_id: str
) -> AsyncIterator[UploadSession]:
    session = await registry.resume_upload(repository, upload_id, owner=request.user)
    try:
        yield session
    finally:
        registry.release_upload(session)


async def _receive(request: Request, session: UploadSession) -> None:
    """Append the body of *request*.

    Raises:
        OutOfOrder: before a byte is taken.
        SizeInvalid: Content-Range names another length than the body has. Bytes up to the one named were taken.
    """
    body = request.body
    content_range = request.headers.get("content-range")
    left: int | None = None
    if content_range is not None:
        start, end = parse_content_range(content_range)
        left = end - start
        if body.length is not None and body.length != left:
            raise SizeInvalid(f"Content-Range names {left} bytes, Content-Length {body.length}")
        if start != session.offset:
            raise OutOfOrder(f"the next byte is {session.offset}, the chunk begins at {start}")
    await session.expect(body.length if left is None else left)
    if body.length == 0:
        return
    try:
        await _pour(body, session, left)
    except BaseException:  # whatever it is: what has come is written, and the buffer is given back
        with suppress(IpfsregError):
            await session.settle()
        raise
    await session.settle()


async def _pour(body: Body, session: UploadSession, left: int | None) -> None:
    """*left*: bytes it has to have. Raises SizeInvalid where it has not, and what `read_into` and `buffer` raise."""
    while count := await body.read_into(await session.buffer()):
        if left is not None:
            left -= count
            if left < 0:
                raise SizeInvalid("the body is longer than its Content-Range")
        await session.append(count)
    if left:
        raise SizeInvalid(f"the body is {left} bytes shorter than its Content-Range")


async def _discard(session: UploadSession) -> None:
    with trio.CancelScope(shield=True, deadline=trio.current_time() + _DISCARD_S):
        await session.cancel()


def _created(repository: RepositoryName, stat: BlobStat) -> Response:
    return Response(
        201,
        (
            ("Location", f"/v2/{repository}/blobs/{stat.digest}"),
            ("Docker-Content-Digest", str(stat.digest)),
            ("X-Ipfs-Roots", str(stat.root)),
        ),
    )


def _progress(session: UploadSession) -> list[Header]:
    # An empty upload has no last byte; clients know "0-0" from distribution.
    return [
        ("Location", f"/v2/{session.repository}/blobs/uploads/{session.id}"),
        ("Range", f"0-{max(session.offset - 1, 0)}"),
        ("Docker-Upload-UUID", session.id),
    ]


def _out_of_order(session: UploadSession, error: OutOfOrder) -> Response:
    headers = [*_progress(session), ("Content-Type", "application/json")]
    return Response(416, headers, error_body("BLOB_UPLOAD_INVALID", str(error)))

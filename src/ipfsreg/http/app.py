"""The front door: one request in, the registry asked, one answer out.

async with open_server(make_app(registry), listen=["127.0.0.1:5000"]): ...
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from ipfsreg.errors import IpfsregError
from ipfsreg.http import blobs, listing, manifests, paths, uploads
from ipfsreg.http.connection import Handler
from ipfsreg.http.door.service import Door
from ipfsreg.http.errors import error_response
from ipfsreg.http.heads import NAME as HEADS
from ipfsreg.http.heads import heed_heads
from ipfsreg.http.request import ClientGone, Request
from ipfsreg.http.responses import Header, Response, Stands
from ipfsreg.registry.interface import Registry

_API_VERSION: Header = ("Docker-Distribution-API-Version", "registry/2.0")
_PONG = Response(200, (("Content-Type", "application/json"),), b"{}", lambda peer: True)

# Each takes the action its path parses to; the table pairs them, which the type system cannot say.
_HANDLERS: dict[type[paths.Action], Callable[[Registry, Request, Any], Awaitable[Response]]] = {
    paths.ListRepositories: listing.list_repositories,
    paths.ListTags: listing.list_tags,
    paths.ListReferrers: listing.list_referrers,
    paths.GetBlob: blobs.get_blob,
    paths.DeleteBlob: blobs.delete_blob,
    paths.StartUpload: uploads.start_upload,
    paths.GetUpload: uploads.get_upload,
    paths.AppendUpload: uploads.append_upload,
    paths.FinishUpload: uploads.finish_upload,
    paths.CancelUpload: uploads.cancel_upload,
    paths.GetManifest: manifests.get_manifest,
    paths.PutManifest: manifests.put_manifest,
    paths.DeleteManifest: manifests.delete_manifest,
}

_ROUTES: dict[type[paths.Action], str] = {
    paths.Ping: "ping",
    paths.ListRepositories: "catalog",
    paths.ListTags: "tags",
    paths.ListReferrers: "referrers",
    paths.GetBlob: "blob",
    paths.DeleteBlob: "blob",
    paths.StartUpload: "uploads",
    paths.GetUpload: "upload",
    paths.AppendUpload: "upload",
    paths.FinishUpload: "upload",
    paths.CancelUpload: "upload",
    paths.GetManifest: "manifest",
    paths.PutManifest: "manifest",
    paths.DeleteManifest: "manifest",
}
"""What the books call them."""


Witness = Callable[[Request, paths.Action, Response], Awaitable[None]]
"""Is told of each answer before the client is. It does not fail."""


def make_app(registry: Registry, door: Door | None = None, witness: Witness | None = None) -> Handler:
    """The handler that serves *registry* by distribution-spec 1.1 and its development additions.

    Without a *door* everybody may do everything.
    """

    async def answer(request: Request) -> Response:
        action: paths.Action | None = None
        try:
            if door is not None and door.serves(request.path):
                request.route = "token"
                response = await door.give_token(request)
            else:
                action = paths.parse_action(request.method, request.path, request.query)
                request.route = _ROUTES[type(action)]
                if door is not None:
                    action = await door.admit(request, action)
                if isinstance(action, paths.Ping):
                    response = _PONG
                else:
                    await heed_heads(registry, request)
                    response = await _HANDLERS[type(action)](registry, request, action)
                    if witness is not None:
                        await witness(request, action, response)
        except ClientGone:
            raise
        except IpfsregError as error:
            response = error_response(error)
        if door is not None:
            door.note(request, action, response.status)
        headers = (_API_VERSION, *response.headers)
        return Response(response.status, headers, response.body, lasting(request, action, response))

    def lasting(request: Request, action: paths.Action | None, response: Response) -> Stands | None:
        """Until when *response* is the answer to others, too."""
        stands = response.stands
        if stands is None or action is None or HEADS.lower() in request.headers:
            return None
        # Whoever is told of pulls is told of each.
        if witness is not None and request.method == "GET" and isinstance(action, paths.GetManifest | paths.GetBlob):
            return None
        if door is None:
            return stands
        let_in = door.again(request, action)
        # In this order: whom the door lets in, it counts.
        return None if let_in is None else lambda peer: stands(peer) and let_in(peer)

    return answer

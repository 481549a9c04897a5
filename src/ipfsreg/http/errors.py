"""The one place where failures become OCI answers. Spec: distribution-spec, "Error Codes".

The nearest ancestor in the table wins. Codes of 5xx answers are distribution's, as the specification has none for them.
"""

from __future__ import annotations

import json
import logging
import math

from ipfsreg.errors import (
    BlobUnknown,
    ContentUnavailable,
    Denied,
    DigestInvalid,
    IpfsregError,
    LimitReached,
    ManifestBlobUnknown,
    ManifestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameInvalid,
    NameUnknown,
    NetworkError,
    NotReady,
    RangeInvalid,
    SizeInvalid,
    StoreDamaged,
    StoreFull,
    TagInvalid,
    TooManyRequests,
    Unauthorized,
    Unsupported,
    UploadInvalid,
    UploadUnknown,
)
from ipfsreg.http.paths import MethodUnsupported, QueryInvalid, RouteUnknown
from ipfsreg.http.request import BodyTooLarge, RequestRefused
from ipfsreg.http.responses import Header, Response

logger = logging.getLogger(__name__)

OCI_ERRORS: dict[type[IpfsregError], tuple[int, str]] = {
    NameInvalid: (400, "NAME_INVALID"),
    NameUnknown: (404, "NAME_UNKNOWN"),
    TagInvalid: (400, "TAG_INVALID"),
    DigestInvalid: (400, "DIGEST_INVALID"),
    BlobUnknown: (404, "BLOB_UNKNOWN"),
    ManifestUnknown: (404, "MANIFEST_UNKNOWN"),
    ManifestInvalid: (400, "MANIFEST_INVALID"),
    ManifestTooLarge: (413, "MANIFEST_INVALID"),
    ManifestBlobUnknown: (400, "MANIFEST_BLOB_UNKNOWN"),
    UploadUnknown: (404, "BLOB_UPLOAD_UNKNOWN"),
    UploadInvalid: (409, "BLOB_UPLOAD_INVALID"),
    RangeInvalid: (416, "BLOB_UPLOAD_INVALID"),
    SizeInvalid: (400, "SIZE_INVALID"),
    Unauthorized: (401, "UNAUTHORIZED"),
    Denied: (403, "DENIED"),
    TooManyRequests: (429, "TOOMANYREQUESTS"),
    Unsupported: (405, "UNSUPPORTED"),
    MethodUnsupported: (405, "UNSUPPORTED"),
    QueryInvalid: (400, "UNSUPPORTED"),
    RouteUnknown: (404, "UNSUPPORTED"),
    BodyTooLarge: (413, "SIZE_INVALID"),
    # The name is known and somebody had the bytes: "not found" would make clients and mirrors give up for good.
    ContentUnavailable: (503, "UNAVAILABLE"),
    NotReady: (503, "UNAVAILABLE"),
    LimitReached: (503, "UNAVAILABLE"),
    NetworkError: (503, "UNAVAILABLE"),
    StoreFull: (507, "UNKNOWN"),
    # Another node may have it; and this one is not to be given up because of one damaged page.
    StoreDamaged: (503, "UNAVAILABLE"),
    IpfsregError: (500, "UNKNOWN"),
}

_RETRY_AFTER_S = 5
_JSON: Header = ("Content-Type", "application/json")


def error_response(error: IpfsregError) -> Response:
    """What the client is told. What it cannot have caused is logged, with its trace, and not explained to it."""
    status, code = _classify(error)
    message = str(error)
    if status == 500:
        logger.error("a request failed", exc_info=error)
        message = "internal error"
    elif status > 500:
        logger.warning("%s: %s", type(error).__name__, error)
    if isinstance(error, StoreDamaged):
        message = "the store of this node is damaged"
    headers: list[Header] = [_JSON]
    if isinstance(error, MethodUnsupported):
        headers.append(("Allow", error.allow))
    if isinstance(error, Unauthorized) and error.challenge:
        headers.append(("WWW-Authenticate", error.challenge))
    if isinstance(error, TooManyRequests):
        headers.append(("Retry-After", str(max(1, math.ceil(error.retry_after_s)))))
    elif status == 503:
        headers.append(("Retry-After", str(_RETRY_AFTER_S)))
    return Response(status, headers, error_body(code, message))


def error_body(code: str, message: str) -> bytes:
    """The document of "Error Codes"."""
    return json.dumps({"errors": [{"code": code, "message": message, "detail": None}]}).encode()


def _classify(error: IpfsregError) -> tuple[int, str]:
    for ancestor in type(error).__mro__:
        if ancestor in OCI_ERRORS:
            if isinstance(error, RequestRefused) and ancestor is IpfsregError:
                return error.status, "UNSUPPORTED"
            return OCI_ERRORS[ancestor]
    raise AssertionError("every failure of ours is an IpfsregError")

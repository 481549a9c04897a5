"""Failures as clients see them."""

import inspect
import json
import logging

import pytest

from ipfsreg import errors
from ipfsreg.http.errors import OCI_ERRORS, error_response
from ipfsreg.http.paths import MethodUnsupported, RouteUnknown
from ipfsreg.http.request import BodyTooLarge, RequestRefused
from ipfsreg.http.responses import Response

SPECIFIED = {
    "BLOB_UNKNOWN", "BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN",
    "MANIFEST_INVALID", "MANIFEST_UNKNOWN", "NAME_INVALID", "NAME_UNKNOWN", "SIZE_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS", "TAG_INVALID",
}  # fmt: skip


def code_of(response: Response) -> str:
    assert isinstance(response.body, bytes)
    (entry,) = json.loads(response.body)["errors"]
    assert set(entry) == {"code", "message", "detail"}
    return str(entry["code"])


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (errors.BlobUnknown("x"), 404, "BLOB_UNKNOWN"),
        (errors.DigestMismatch("x"), 400, "DIGEST_INVALID"),
        (errors.ManifestTooLarge("x"), 413, "MANIFEST_INVALID"),
        (errors.StoreFull("x"), 507, "UNKNOWN"),
        (errors.PeerUnreachable("x"), 503, "UNAVAILABLE"),
        (errors.StoreDamaged("x"), 503, "UNAVAILABLE"),
        (errors.StoreError("x"), 500, "UNKNOWN"),
        (BodyTooLarge(5), 413, "SIZE_INVALID"),
        (RequestRefused(400, "x"), 400, "UNSUPPORTED"),
        (RouteUnknown("x"), 404, "UNSUPPORTED"),
    ],
)
def test_the_nearest_ancestor_in_the_table_decides(error: errors.IpfsregError, status: int, code: str) -> None:
    response = error_response(error)
    assert (response.status, code_of(response)) == (status, code)


def test_every_failure_of_a_registry_has_a_line_of_its_own() -> None:
    for _, error in inspect.getmembers(errors, inspect.isclass):
        if issubclass(error, errors.RegistryError) and error is not errors.RegistryError:
            assert any(ancestor in OCI_ERRORS for ancestor in error.__mro__[:2]), error


def test_codes_of_client_errors_are_those_of_the_specification() -> None:
    assert {code for status, code in OCI_ERRORS.values() if status < 500} <= SPECIFIED


@pytest.mark.parametrize("kind", [errors.StoreError, errors.StoreDamaged])
def test_what_a_client_cannot_have_caused_is_logged_and_not_explained(
    caplog: pytest.LogCaptureFixture, kind: type[errors.StoreError]
) -> None:
    caplog.set_level(logging.WARNING)
    response = error_response(kind("secret path /var/lib/x"))
    assert isinstance(response.body, bytes)
    assert b"secret" not in response.body
    assert "secret path /var/lib/x" in caplog.text


def test_a_method_that_is_not_offered_names_those_that_are() -> None:
    assert ("Allow", "GET, HEAD") in error_response(MethodUnsupported("PUT", "GET, HEAD")).headers


def test_a_shortage_asks_to_come_back() -> None:
    assert ("Retry-After", "5") in error_response(errors.ContentUnavailable("x")).headers

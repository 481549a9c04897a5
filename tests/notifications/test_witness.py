"""What a request and its answer are an event of."""

from __future__ import annotations

from pathlib import Path

import pytest

from ipfsreg.http import paths
from ipfsreg.http.request import Request
from ipfsreg.http.responses import FileBody, Response
from ipfsreg.notifications.events import Target
from ipfsreg.notifications.witness import BLOB_TYPE, witness
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import RepositoryName

DIGEST = "sha256:" + "ab" * 32
OTHER = "sha256:" + "cd" * 32
TYPE = "application/vnd.oci.image.manifest.v1+json"
REPOSITORY = RepositoryName("team/app")


class NoBody:
    length: int | None = 0

    async def read(self) -> memoryview:
        return memoryview(b"")

    async def read_into(self, buffer: memoryview) -> int:
        return 0

    async def read_all(self, limit: int) -> bytes:
        return b""


def seen(
    method: str, target: str, status: int, body: bytes | FileBody = b"", **headers: str
) -> list[tuple[str, Target]]:
    request = Request(method, "/v2/team/app" + target, {}, NoBody(), "192.0.2.1")
    action = paths.parse_action(request.method, request.path, request.query)
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return list(witness(request, action, Response(status, [("Docker-Content-Digest", DIGEST), *named], body)))


MANIFEST = Target(repository=REPOSITORY, digest=DIGEST, media_type=TYPE, size=4, tag="1.0", is_manifest=True)


def test_a_manifest_pulled_by_tag_has_its_tag_and_size() -> None:
    assert seen("GET", "/manifests/1.0", 200, b"1234", Content_Type=TYPE) == [("pull", MANIFEST)]


def test_a_manifest_pushed_has_an_event_for_each_tag() -> None:
    assert [(kind, target.tag, target.digest) for kind, target in seen("PUT", "/manifests/1.0?tag=a&tag=1.0", 201)] == [
        ("push", "1.0", DIGEST),
        ("push", "a", DIGEST),
    ]
    assert [target.tag for _, target in seen("PUT", f"/manifests/{DIGEST}?tag=a&tag=b", 201)] == ["a", "b"]
    assert [target.tag for _, target in seen("PUT", f"/manifests/{DIGEST}", 201)] == [""]


def test_deletions_are_of_a_tag_a_manifest_or_a_blob() -> None:
    assert seen("DELETE", "/manifests/1.0", 202) == [
        ("delete", Target(repository=REPOSITORY, tag="1.0", is_manifest=True))
    ]
    assert seen("DELETE", f"/manifests/{DIGEST}", 202) == [
        ("delete", Target(repository=REPOSITORY, digest=DIGEST, is_manifest=True))
    ]
    assert seen("DELETE", f"/blobs/{DIGEST}", 202) == [("delete", Target(repository=REPOSITORY, digest=DIGEST))]


BLOB = Target(repository=REPOSITORY, digest=DIGEST, media_type=BLOB_TYPE)


def test_a_blob_is_pushed_by_the_request_that_finishes_it() -> None:
    assert seen("POST", "/blobs/uploads/", 202) == []
    assert seen("PATCH", "/blobs/uploads/x", 202) == []
    assert seen("PUT", f"/blobs/uploads/x?digest={DIGEST}", 201) == [("push", BLOB)]
    assert seen("POST", f"/blobs/uploads/?digest={DIGEST}", 201) == [("push", BLOB)]
    assert seen("DELETE", "/blobs/uploads/x", 204) == []


def test_a_mount_names_where_the_blob_came_from_and_a_mount_that_failed_is_nothing() -> None:
    query = f"/blobs/uploads/?mount={DIGEST}&from=team/base"
    ((kind, target),) = seen("POST", query, 201)
    assert (kind, target.from_repository, target.digest) == ("mount", "team/base", DIGEST)
    assert seen("POST", query, 202) == []
    ((kind, target),) = seen("POST", f"/blobs/uploads/?mount={OTHER}&from=team/base&digest={DIGEST}", 201)
    assert (kind, target.from_repository) == ("push", "")


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("HEAD", "/manifests/1.0", 200),
        ("GET", "/manifests/1.0", 304),
        ("GET", "/manifests/1.0", 404),
        ("HEAD", f"/blobs/{DIGEST}", 200),
        ("GET", f"/blobs/{DIGEST}", 206),
        ("PUT", "/manifests/1.0", 400),
        ("DELETE", "/manifests/1.0", 404),
        ("GET", "/tags/list", 200),
    ],
)
def test_what_changes_and_moves_nothing_is_no_event(method: str, target: str, status: int) -> None:
    assert seen(method, target, status) == []


def test_a_pulled_blob_has_the_size_of_the_answer() -> None:
    ((kind, target),) = seen("GET", f"/blobs/{DIGEST}", 200, FileBody(Path("x"), 0, 12345))
    assert (kind, target.size, target.media_type) == ("pull", 12345, BLOB_TYPE)
    assert Digest.parse(target.digest)

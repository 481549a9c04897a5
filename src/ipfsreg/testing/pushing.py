"""A small registry client for tests: pushes and pulls images over plain HTTP, as distribution-spec 1.1 says."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ipfsreg.oci.digest import Digest

IMAGE = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
PIECE_BYTES = 1 << 20
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class PushedImage:
    """What was pushed."""

    repository: str
    tag: str
    digest: str
    layers: tuple[str, ...]
    heads: str
    """The heads that contain the push, as the node answered."""


class Client:
    """Talks to one node."""

    def __init__(self, address: str) -> None:
        """*address*: `127.0.0.1:PORT`."""
        self._http = httpx.Client(base_url=f"http://{address}", timeout=TIMEOUT_S)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def push_blob(self, repository: str, content: bytes | Path) -> str:
        """Push a blob by POST, streamed PATCH and PUT; return its digest."""
        answer = self._http.post(f"/v2/{repository}/blobs/uploads/")
        _expect(answer, 202)
        hasher = hashlib.sha256()
        answer = self._http.patch(answer.headers["Location"], content=_pieces(content, hasher))
        _expect(answer, 202)
        digest = f"sha256:{hasher.hexdigest()}"
        location = answer.headers["Location"]
        _expect(self._http.put(f"{location}{'&' if '?' in location else '?'}digest={digest}"), 201)
        return digest

    def push_manifest(
        self, repository: str, reference: str, document: bytes, media_type: str = IMAGE
    ) -> httpx.Response:
        """Push a manifest; return the answer to its PUT."""
        answer = self._http.put(
            f"/v2/{repository}/manifests/{reference}", content=document, headers={"Content-Type": media_type}
        )
        _expect(answer, 201)
        return answer

    def push_image(self, repository: str, tag: str, layers: Sequence[bytes | Path]) -> PushedImage:
        """Push an image of *layers*; they need not be real tars."""
        config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
        descriptors = [
            {"mediaType": LAYER, "digest": self.push_blob(repository, layer), "size": _size(layer)} for layer in layers
        ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": IMAGE,
            "config": {"mediaType": CONFIG, "digest": self.push_blob(repository, config), "size": len(config)},
            "layers": descriptors,
        }
        document = json.dumps(manifest).encode()
        answer = self.push_manifest(repository, tag, document)
        return PushedImage(
            repository,
            tag,
            str(Digest.of(document)),
            tuple(str(descriptor["digest"]) for descriptor in descriptors),
            answer.headers.get("Ipfsreg-Heads", ""),
        )

    def manifest(self, repository: str, reference: str) -> dict[str, Any]:
        """Pull a manifest whose bytes hash to what the answer says."""
        answer = self._http.get(f"/v2/{repository}/manifests/{reference}")
        _expect(answer, 200)
        assert str(Digest.of(answer.content)) == answer.headers["Docker-Content-Digest"]
        document = answer.json()
        assert isinstance(document, dict)
        return document

    def pull_blob(self, repository: str, digest: str) -> int:
        """Pull a blob, checking its digest; return its length. Raises AssertionError, httpx.HTTPError."""
        hasher, length = hashlib.sha256(), 0
        with self._http.stream("GET", f"/v2/{repository}/blobs/{digest}") as answer:
            if answer.status_code != 200:
                answer.read()
            _expect(answer, 200)
            for piece in answer.iter_raw(PIECE_BYTES):
                hasher.update(piece)
                length += len(piece)
        assert f"sha256:{hasher.hexdigest()}" == digest
        return length

    def pull_image(self, repository: str, reference: str) -> int:
        """Pull a manifest, its config and layers; return the bytes of the blobs."""
        document = self.manifest(repository, reference)
        return sum(self.pull_blob(repository, one["digest"]) for one in [document["config"], *document["layers"]])

    def tags(self, repository: str) -> list[str]:
        """All tags; none for a repository that is not known."""
        answer = self._http.get(f"/v2/{repository}/tags/list")
        return list(answer.json()["tags"]) if answer.status_code == 200 else []


def _expect(answer: httpx.Response, status: int) -> None:
    request = answer.request
    assert answer.status_code == status, f"{request.method} {request.url}: {answer.status_code} {answer.text[:500]}"


def _size(content: bytes | Path) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


def _pieces(content: bytes | Path, hasher: Any) -> Iterator[bytes]:
    if isinstance(content, bytes):
        hasher.update(content)
        yield content
        return
    with content.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            hasher.update(piece)
            yield piece

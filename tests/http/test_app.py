"""The registry's front door as its clients use it: each story is what one of them was seen to send."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import pytest
import trio
import trio.testing

from ipfsreg.http.server import Server
from ipfsreg.testing.http_client import Answer, HttpClient, connect_http

IMAGE = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
LAYER = bytes(range(256)) * 16
CONFIG = b'{"architecture":"amd64","os":"linux"}'


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def manifest_of(*layers: bytes, **fields: object) -> bytes:
    def descriptor(data: bytes, media_type: str) -> dict[str, object]:
        return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}

    document = {
        "schemaVersion": 2,
        "mediaType": IMAGE,
        "config": descriptor(CONFIG, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar") for layer in layers],
        **fields,
    }
    return json.dumps(document).encode()


async def push_blob(client: HttpClient, data: bytes, repository: str = "team/app") -> None:
    answer = await client.request("POST", f"/v2/{repository}/blobs/uploads/?digest={digest_of(data)}", body=data)
    assert answer.status == 201


async def push_manifest(client: HttpClient, data: bytes, reference: str, media_type: str = IMAGE) -> Answer:
    headers = {"Content-Type": media_type}
    return await client.request("PUT", f"/v2/team/app/manifests/{reference}", headers, data)


async def push_image(client: HttpClient, reference: str = "1.0", **fields: object) -> bytes:
    await push_blob(client, LAYER)
    await push_blob(client, CONFIG)
    manifest = manifest_of(LAYER, **fields)
    assert (await push_manifest(client, manifest, reference)).status == 201
    return manifest


def error_of(answer: Answer) -> tuple[int, str]:
    assert answer.headers["content-type"] == "application/json"
    return answer.status, json.loads(answer.body)["errors"][0]["code"]


async def test_the_ping_says_what_this_is(client: HttpClient) -> None:
    for path in ("/v2/", "/v2"):
        answer = await client.request("GET", path)
        assert answer.status == 200
        assert answer.headers["docker-distribution-api-version"] == "registry/2.0"


# ---------------------------------------------------------------- pushes, as each client does them


async def test_docker_pushes_a_layer_in_one_chunked_patch(client: HttpClient) -> None:
    answer = await client.request("POST", "/v2/team/app/blobs/uploads/", body=b"")
    assert answer.status == 202
    assert answer.headers["range"] == "0-0"
    location = answer.headers["location"]
    assert answer.headers["docker-upload-uuid"] in location
    await client.send(
        f"PATCH {location} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        + b"800\r\n"
        + LAYER[:2048]
        + b"\r\n800\r\n"
        + LAYER[2048:]
        + b"\r\n0\r\n\r\n"
    )
    answer = await client.receive()
    assert (answer.status, answer.headers["range"]) == (202, "0-4095")
    answer = await client.request("PUT", f"{answer.headers['location']}?digest={digest_of(LAYER)}", body=b"")
    assert answer.status == 201
    assert answer.headers["docker-content-digest"] == digest_of(LAYER)
    assert (await client.request("GET", answer.headers["location"])).body == LAYER


async def test_containerd_pushes_a_layer_in_one_put(client: HttpClient) -> None:
    answer = await client.request("POST", f"/v2/team/app/blobs/uploads/?mount={digest_of(LAYER)}&from=other/repo")
    assert answer.status == 202
    answer = await client.request("PUT", f"{answer.headers['location']}?digest={digest_of(LAYER)}", body=LAYER)
    assert answer.status == 201


async def test_regctl_pushes_a_layer_in_ranges(client: HttpClient) -> None:
    answer = await client.request("POST", "/v2/team/app/blobs/uploads/")
    assert int(answer.headers["oci-chunk-min-length"]) > 0
    for start in range(0, 4096, 1024):
        headers = {"Content-Range": f"{start}-{start + 1023}"}
        location = answer.headers["location"]
        answer = await client.request("PATCH", location, headers, LAYER[start : start + 1024])
        assert (answer.status, answer.headers["range"]) == (202, f"0-{start + 1023}")
    answer = await client.request("PUT", f"{answer.headers['location']}?digest={digest_of(LAYER)}")
    assert answer.status == 201


async def test_a_layer_is_pushed_in_one_post(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    assert (await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}")).body == LAYER


async def test_a_layer_is_pushed_by_sha512(client: HttpClient) -> None:
    digest = digest_of(LAYER, "sha512")
    answer = await client.request("POST", "/v2/team/app/blobs/uploads/?digest-algorithm=sha512")
    answer = await client.request("PUT", f"{answer.headers['location']}?digest={digest}", body=LAYER)
    assert answer.status == 201
    assert (await client.request("HEAD", answer.headers["location"])).headers["docker-content-digest"] == digest


async def test_a_blob_is_mounted_from_another_repository(client: HttpClient) -> None:
    await push_blob(client, LAYER, "team/base")
    answer = await client.request("POST", f"/v2/team/app/blobs/uploads/?mount={digest_of(LAYER)}&from=team/base")
    assert answer.status == 201
    assert answer.headers["location"] == f"/v2/team/app/blobs/{digest_of(LAYER)}"
    assert (await client.request("GET", answer.headers["location"])).body == LAYER


async def test_a_mount_that_is_not_possible_becomes_an_upload(client: HttpClient) -> None:
    for source in ("&from=nobody/here", ""):
        answer = await client.request("POST", f"/v2/team/app/blobs/uploads/?mount={digest_of(LAYER)}{source}")
        assert answer.status == 202
        assert "location" in answer.headers


# ---------------------------------------------------------------- uploads that go wrong


async def start(client: HttpClient) -> str:
    return (await client.request("POST", "/v2/team/app/blobs/uploads/")).headers["location"]


async def test_a_chunk_out_of_order_is_refused_and_the_upload_goes_on(client: HttpClient) -> None:
    location = await start(client)
    for bad in ("10-19", "1-10"):
        answer = await client.request("PATCH", location, {"Content-Range": bad}, LAYER[:10])
        assert error_of(answer) == (416, "BLOB_UPLOAD_INVALID")
        assert answer.headers["range"] == "0-0"
    await client.request("PATCH", location, {"Content-Range": "0-9"}, LAYER[:10])
    for method, target in (("PATCH", location), ("PUT", f"{location}?digest={digest_of(LAYER)}")):
        answer = await client.request(method, target, {"Content-Range": "0-9"}, LAYER[:10])
        assert answer.status == 416
        assert answer.headers["range"] == "0-9"
    answer = await client.request("GET", location)
    assert (answer.status, answer.headers["range"]) == (204, "0-9")
    headers = {"Content-Range": "10-4095"}
    answer = await client.request("PUT", f"{location}?digest={digest_of(LAYER)}", headers, LAYER[10:])
    assert answer.status == 201


async def test_a_chunk_of_another_length_than_it_says_is_refused(client: HttpClient) -> None:
    location = await start(client)
    answer = await client.request("PATCH", location, {"Content-Range": "0-99"}, LAYER[:10])
    assert error_of(answer) == (400, "SIZE_INVALID")


async def test_another_digest_than_promised_is_refused_and_nothing_published(client: HttpClient) -> None:
    location = await start(client)
    wrong = digest_of(b"something else")
    assert error_of(await client.request("PUT", f"{location}?digest={wrong}", body=LAYER)) == (400, "DIGEST_INVALID")
    assert (await client.request("HEAD", f"/v2/team/app/blobs/{wrong}")).status == 404
    assert error_of(await client.request("GET", location)) == (404, "BLOB_UPLOAD_UNKNOWN")
    answer = await client.request("POST", f"/v2/team/app/blobs/uploads/?digest={wrong}", body=LAYER)
    assert error_of(answer) == (400, "DIGEST_INVALID")


async def test_a_malformed_digest_is_refused_and_the_upload_goes_on(client: HttpClient) -> None:
    location = await start(client)
    for bad in ("", "?digest=", "?digest=sha256:short", "?digest=md5:00", "?digest=sha256:..%2F.."):
        answer = await client.request("PUT", location + bad, body=LAYER)
        assert error_of(answer) == (400, "DIGEST_INVALID")
    assert (await client.request("PUT", f"{location}?digest={digest_of(LAYER)}", body=LAYER)).status == 201


async def test_an_upload_is_of_no_use_under_another_repository(client: HttpClient) -> None:
    location = (await start(client)).replace("team/app", "team/other")
    for method in ("GET", "PATCH", "DELETE"):
        assert error_of(await client.request(method, location)) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_an_upload_is_cancelled(client: HttpClient) -> None:
    location = await start(client)
    assert (await client.request("DELETE", location)).status == 204
    assert error_of(await client.request("GET", location)) == (404, "BLOB_UPLOAD_UNKNOWN")


async def test_an_upload_cut_off_goes_on_where_it_was(door: Server, client: HttpClient) -> None:
    location = await start(client)
    async with connect_http(door.places[0]) as broken:
        await broken.send(f"PATCH {location} HTTP/1.1\r\nHost: h\r\nContent-Length: 4096\r\n\r\n".encode())
        await broken.send(LAYER[:1000])
        await trio.testing.wait_all_tasks_blocked()
        assert error_of(await client.request("GET", location)) == (409, "BLOB_UPLOAD_INVALID")
    await trio.testing.wait_all_tasks_blocked()
    answer = await client.request("GET", location)
    assert (answer.status, answer.headers["range"]) == (204, "0-999")
    answer = await client.request("PUT", f"{location}?digest={digest_of(LAYER)}", body=LAYER[1000:])
    assert answer.status == 201


# ---------------------------------------------------------------- blobs


async def test_a_blob_tells_its_digest_size_and_root(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    for method in ("HEAD", "GET"):
        answer = await client.request(method, f"/v2/team/app/blobs/{digest_of(LAYER)}")
        assert answer.status == 200
        assert answer.headers["content-length"] == "4096"
        assert answer.headers["docker-content-digest"] == digest_of(LAYER)
        assert answer.headers["etag"] == f'"{digest_of(LAYER)}"'
        assert answer.headers["accept-ranges"] == "bytes"
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-ipfs-roots"].startswith("bafkrei")


async def test_a_blob_is_never_transcoded(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    headers = {"Accept-Encoding": "zstd, gzip, deflate"}
    answer = await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}?ns=docker.io", headers)
    assert answer.body == LAYER
    assert "content-encoding" not in answer.headers


async def test_an_empty_blob_is_a_blob(client: HttpClient) -> None:
    await push_blob(client, b"")
    answer = await client.request("GET", f"/v2/team/app/blobs/{digest_of(b'')}")
    assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")


@pytest.mark.parametrize(
    ("wanted", "start", "end"), [("bytes=4000-", 4000, 4096), ("bytes=0-0", 0, 1), ("bytes=-6", 4090, 4096)]
)
async def test_a_pull_is_resumed_by_range(client: HttpClient, wanted: str, start: int, end: int) -> None:
    await push_blob(client, LAYER)
    answer = await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}", {"Range": wanted})
    assert (answer.status, answer.body) == (206, LAYER[start:end])
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/4096"


async def test_a_range_outside_of_the_blob_is_refused(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    answer = await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}", {"Range": "bytes=4096-"})
    assert answer.status == 416
    assert answer.headers["content-range"] == "bytes */4096"


async def test_a_range_for_another_version_is_answered_with_the_whole(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    headers = {"Range": "bytes=5-", "If-Range": '"sha256:old"'}
    assert (await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}", headers)).status == 200


async def test_what_a_client_has_is_not_sent_again(client: HttpClient) -> None:
    manifest = await push_image(client)
    for path, data in (("blobs/" + digest_of(LAYER), LAYER), ("manifests/1.0", manifest)):
        headers = {"If-None-Match": f'"sha256:other", W/"{digest_of(data)}"'}
        answer = await client.request("GET", f"/v2/team/app/{path}", headers)
        assert (answer.status, answer.body) == (304, b"")
        headers = {"If-None-Match": '"sha256:other"'}
        assert (await client.request("GET", f"/v2/team/app/{path}", headers)).body == data


async def test_a_blob_that_is_not_there_is_unknown(client: HttpClient) -> None:
    assert error_of(await client.request("GET", f"/v2/team/app/blobs/{digest_of(b'x')}")) == (404, "BLOB_UNKNOWN")
    await push_blob(client, LAYER, "other/repo")
    answer = await client.request("GET", f"/v2/team/app/blobs/{digest_of(LAYER)}")
    assert error_of(answer) == (404, "BLOB_UNKNOWN")


async def test_a_deleted_blob_is_gone_from_its_repository(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    await push_blob(client, LAYER, "other/repo")
    path = f"/v2/team/app/blobs/{digest_of(LAYER)}"
    assert (await client.request("DELETE", path)).status == 202
    assert (await client.request("GET", path)).status == 404
    assert (await client.request("DELETE", path)).status == 404
    assert (await client.request("GET", f"/v2/other/repo/blobs/{digest_of(LAYER)}")).status == 200


# ---------------------------------------------------------------- manifests


async def test_a_manifest_is_pulled_by_tag_and_digest(client: HttpClient) -> None:
    manifest = await push_image(client)
    for reference in ("1.0", digest_of(manifest)):
        for method in ("GET", "HEAD"):
            answer = await client.request(method, f"/v2/team/app/manifests/{reference}")
            assert answer.status == 200
            assert answer.headers["content-type"] == IMAGE
            assert answer.headers["content-length"] == str(len(manifest))
            assert answer.headers["docker-content-digest"] == digest_of(manifest)
            assert answer.body == (manifest if method == "GET" else b"")
        assert ("immutable" in answer.headers["cache-control"]) == (reference != "1.0")


async def test_docker_names_what_it_accepts_in_six_lines(client: HttpClient) -> None:
    manifest = await push_image(client)
    await client.send(
        b"GET /v2/team/app/manifests/1.0 HTTP/1.1\r\nHost: h\r\n"
        b"Accept: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n"
        b"Accept: application/json\r\nAccept: application/vnd.docker.distribution.manifest.v2+json\r\n"
        b"Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n"
        b"Accept: application/vnd.oci.image.index.v1+json\r\n"
        b"Accept: application/vnd.oci.image.manifest.v1+json\r\n\r\n"
    )
    answer = await client.receive()
    assert (answer.headers["content-type"], answer.body) == (IMAGE, manifest)


async def test_a_push_tells_where_it_is_and_which_heads_have_it(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    await push_blob(client, CONFIG)
    manifest = manifest_of(LAYER)
    answer = await push_manifest(client, manifest, "1.0")
    assert answer.headers["location"] == f"/v2/team/app/manifests/{digest_of(manifest)}"
    assert answer.headers["docker-content-digest"] == digest_of(manifest)
    assert answer.headers["ipfsreg-heads"].startswith("baf")


async def test_a_manifest_is_pushed_with_several_tags(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    await push_blob(client, CONFIG)
    manifest = manifest_of(LAYER)
    tags = [f"v{i}" for i in range(10)]
    answer = await push_manifest(client, manifest, f"{digest_of(manifest)}?tag=" + "&tag=".join(tags))
    assert answer.headers["oci-tag"].split(", ") == tags
    for tag in tags:
        assert (await client.request("GET", f"/v2/team/app/manifests/{tag}")).body == manifest


async def test_a_manifest_that_names_what_is_not_there_is_refused(client: HttpClient) -> None:
    await push_blob(client, CONFIG)
    answer = await push_manifest(client, manifest_of(LAYER), "1.0")
    assert error_of(answer) == (400, "MANIFEST_BLOB_UNKNOWN")


@pytest.mark.parametrize(
    ("data", "media_type"),
    [
        (b"", IMAGE),
        (b"not json", IMAGE),
        (b"[" * 100_000, IMAGE),
        (b'{"a":' * 50_000, IMAGE),
        (b'{"schemaVersion":2,"mediaType":"' + INDEX.encode() + b'","manifests":[]}', IMAGE),
        (b'{"schemaVersion":2,"mediaType":"' + IMAGE.encode() + b'","manifests":[],"layers":[]}', IMAGE),
        (b'{"schemaVersion":1,"name":"a","tag":"b"}', "application/vnd.docker.distribution.manifest.v1+prettyjws"),
        (b'{"schemaVersion":1,"name":"a","tag":"b"}', "application/vnd.docker.distribution.manifest.v1+json"),
        (b"{}", "text plain"),
    ],
)
async def test_what_is_no_manifest_is_refused(client: HttpClient, data: bytes, media_type: str) -> None:
    answer = await push_manifest(client, data, "1.0", media_type)
    assert answer.status == 400
    assert (await client.request("GET", "/v2/team/app/manifests/1.0")).status == 404


async def test_a_manifest_with_parameters_on_its_type_or_without_one_is_taken(client: HttpClient) -> None:
    manifest = await push_image(client)
    assert (await push_manifest(client, manifest, "2.0", f"{IMAGE}; charset=utf-8")).status == 201
    assert (await client.request("PUT", "/v2/team/app/manifests/3.0", body=manifest)).status == 201
    for tag in ("2.0", "3.0"):
        answer = await client.request("HEAD", f"/v2/team/app/manifests/{tag}")
        assert answer.headers["content-type"] == IMAGE


async def test_a_manifest_of_4_mib_is_taken_and_one_byte_more_is_not_read(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    await push_blob(client, CONFIG)
    limit = 4 * 1024 * 1024
    manifest = manifest_of(LAYER, annotations={"pad": ""})
    manifest = manifest.replace(b'"pad": ""', b'"pad": "' + b"x" * (limit - len(manifest)) + b'"')
    assert len(manifest) == limit
    assert (await push_manifest(client, manifest, "1.0")).status == 201
    await client.send(b"PUT /v2/team/app/manifests/2.0 HTTP/1.1\r\nHost: h\r\nContent-Length: 4194305\r\n\r\n")
    answer = await client.receive()
    assert error_of(answer) == (413, "MANIFEST_INVALID")
    assert answer.headers["connection"] == "close"


async def test_a_manifest_that_never_says_its_length_is_cut_off_at_the_limit(client: HttpClient) -> None:
    head = b"PUT /v2/team/app/manifests/1.0 HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    await client.send(head + b"500000\r\n" + bytes(0x500000))
    assert error_of(await client.receive()) == (413, "MANIFEST_INVALID")


async def test_a_manifest_under_another_digest_is_refused(client: HttpClient) -> None:
    await push_blob(client, LAYER)
    await push_blob(client, CONFIG)
    for reference in (digest_of(b"other"), "sha256:baddigeststring"):
        assert error_of(await push_manifest(client, manifest_of(LAYER), reference)) == (400, "DIGEST_INVALID")


async def test_a_tag_is_deleted_alone_and_a_manifest_with_its_tags(client: HttpClient) -> None:
    manifest = await push_image(client)
    await push_manifest(client, manifest, "2.0")
    assert (await client.request("DELETE", "/v2/team/app/manifests/1.0")).status == 202
    assert error_of(await client.request("GET", "/v2/team/app/manifests/1.0")) == (404, "MANIFEST_UNKNOWN")
    assert (await client.request("GET", f"/v2/team/app/manifests/{digest_of(manifest)}")).status == 200
    assert (await client.request("DELETE", f"/v2/team/app/manifests/{digest_of(manifest)}")).status == 202
    assert (await client.request("GET", "/v2/team/app/manifests/2.0")).status == 404


async def test_a_repository_nobody_pushed_to_is_unknown(client: HttpClient) -> None:
    for path in ("manifests/latest", "tags/list"):
        assert error_of(await client.request("GET", f"/v2/no/such/{path}")) == (404, "NAME_UNKNOWN")


# ---------------------------------------------------------------- lists


async def test_tags_are_listed_in_pages(client: HttpClient) -> None:
    manifest = await push_image(client, "a")
    for tag in ("c", "b", "d"):
        await push_manifest(client, manifest, tag)
    answer = await client.request("GET", "/v2/team/app/tags/list")
    assert json.loads(answer.body) == {"name": "team/app", "tags": ["a", "b", "c", "d"]}
    assert "link" not in answer.headers
    assert await walk(client, "/v2/team/app/tags/list?n=3", "tags") == ["a", "b", "c", "d"]
    answer = await client.request("GET", "/v2/team/app/tags/list?n=0")
    assert json.loads(answer.body)["tags"] == []
    assert "link" not in answer.headers
    answer = await client.request("GET", "/v2/team/app/tags/list?last=b")
    assert json.loads(answer.body)["tags"] == ["c", "d"]


async def walk(client: HttpClient, target: str, key: str) -> list[str]:
    """Follow Link from *target*."""
    names: list[str] = []
    while True:
        answer = await client.request("GET", target)
        names += json.loads(answer.body)[key]
        link = answer.headers.get("link")
        if link is None:
            return names
        target, _, relation = link.partition("; ")
        assert relation == 'rel="next"'
        target = target.strip("<>")


async def test_repositories_are_listed_in_pages(client: HttpClient) -> None:
    await push_image(client)
    for name in ("a", "a/b", "z"):
        for data in (LAYER, CONFIG):
            await push_blob(client, data, name)
        headers = {"Content-Type": IMAGE}
        assert (await client.request("PUT", f"/v2/{name}/manifests/1", headers, manifest_of(LAYER))).status == 201
    answer = await client.request("GET", "/v2/_catalog")
    assert json.loads(answer.body) == {"repositories": ["a", "a/b", "team/app", "z"]}
    assert await walk(client, "/v2/_catalog?n=1", "repositories") == ["a", "a/b", "team/app", "z"]


@pytest.mark.parametrize("n", ["-1", "x", "1.5", "0x10", "%20"])
async def test_a_page_of_no_number_is_refused(client: HttpClient, n: str) -> None:
    assert (await client.request("GET", f"/v2/_catalog?n={n}")).status == 400


async def test_a_page_of_a_huge_number_is_bounded(client: HttpClient) -> None:
    assert (await client.request("GET", "/v2/_catalog?n=" + "9" * 1000)).status == 200


async def test_referrers_are_listed_and_filtered(client: HttpClient) -> None:
    subject = await push_image(client)
    about = {"mediaType": IMAGE, "digest": digest_of(subject), "size": len(subject)}
    sbom = manifest_of(LAYER, subject=about, artifactType="application/vnd.example.sbom", annotations={"k": "v"})
    signature = manifest_of(LAYER, subject=about, artifactType="application/vnd.example.signature")
    for data in (sbom, signature):
        answer = await push_manifest(client, data, digest_of(data))
        assert answer.headers["oci-subject"] == digest_of(subject)
    answer = await client.request("GET", f"/v2/team/app/referrers/{digest_of(subject)}")
    index = json.loads(answer.body)
    assert answer.headers["content-type"] == index["mediaType"] == INDEX
    assert {entry["digest"] for entry in index["manifests"]} == {digest_of(sbom), digest_of(signature)}
    target = f"/v2/team/app/referrers/{digest_of(subject)}?artifactType=application/vnd.example.sbom"
    answer = await client.request("GET", target)
    assert answer.headers["oci-filters-applied"] == "artifactType"
    (entry,) = json.loads(answer.body)["manifests"]
    assert entry == {
        "mediaType": IMAGE,
        "digest": digest_of(sbom),
        "size": len(sbom),
        "artifactType": "application/vnd.example.sbom",
        "annotations": {"k": "v"},
    }


async def test_nothing_refers_to_what_is_not_there(client: HttpClient) -> None:
    answer = await client.request("GET", f"/v2/no/such/referrers/{digest_of(b'x')}")
    assert (answer.status, json.loads(answer.body)["manifests"]) == (200, [])
    assert error_of(await client.request("GET", "/v2/team/app/referrers/sha256:x")) == (400, "DIGEST_INVALID")


# ---------------------------------------------------------------- the door itself


@pytest.mark.parametrize(
    ("target", "status", "code"),
    [
        ("/v2/Team/app/tags/list", 400, "NAME_INVALID"),
        ("/v2/team%2Fapp/tags/list", 400, "NAME_INVALID"),
        ("/v2/a/%2e%2e/b/tags/list", 400, "NAME_INVALID"),
        (f"/v2/team/app/blobs/sha256:{'A' * 64}", 400, "DIGEST_INVALID"),
        ("/v2/team/app/blobs/sha256:..%2f..%2fetc%2fpasswd", 400, "DIGEST_INVALID"),
        ("/v2/team/app/manifests/..", 400, "TAG_INVALID"),
        ("/", 404, "UNSUPPORTED"),
        ("/v1/_ping", 404, "UNSUPPORTED"),
    ],
)
async def test_a_url_that_is_none_is_refused(client: HttpClient, target: str, status: int, code: str) -> None:
    assert error_of(await client.request("GET", target)) == (status, code)


async def test_a_method_that_is_not_offered_names_those_that_are(client: HttpClient) -> None:
    answer = await client.request("POST", "/v2/team/app/tags/list", body=b"")
    assert error_of(answer) == (405, "UNSUPPORTED")
    assert answer.headers["allow"] == "GET, HEAD"


async def test_locations_are_right_under_every_host_name(client: HttpClient) -> None:
    headers: Mapping[str, str] = {"Host": "registry.example.org", "X-Forwarded-Proto": "https"}
    answer = await client.request("POST", "/v2/team/app/blobs/uploads/", headers)
    assert answer.headers["location"].startswith("/v2/team/app/blobs/uploads/")

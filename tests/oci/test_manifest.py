import base64
import json
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import ManifestInvalid, ManifestTooLarge
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import MAX_MANIFEST_BYTES, MAX_NESTING, ManifestKind, parse_manifest
from ipfsreg.oci.media_types import (
    DOCKER_FOREIGN_LAYER,
    DOCKER_MANIFEST,
    DOCKER_MANIFEST_LIST,
    OCI_ARTIFACT_MANIFEST,
    OCI_CONFIG,
    OCI_EMPTY,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    SCHEMA1_TYPES,
)


def descriptor(content: bytes, media_type: str = OCI_LAYER_GZIP, **more: object) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": str(Digest.of(content)), "size": len(content), **more}


def image(**changes: object) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptor(b"config", OCI_CONFIG),
        "layers": [descriptor(b"one"), descriptor(b"three")],
    }
    return changed(document, changes)


def index(**changes: object) -> dict[str, Any]:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            descriptor(b"amd64", OCI_MANIFEST, platform={"os": "linux", "architecture": "amd64"}),
            descriptor(b"arm", OCI_MANIFEST, platform={"os": "linux", "architecture": "arm", "variant": "v7"}),
        ],
    }
    return changed(document, changes)


GONE = object()


def changed(document: dict[str, Any], changes: dict[str, object]) -> dict[str, Any]:
    return {key: value for key, value in {**document, **changes}.items() if value is not GONE}


def digests(*contents: bytes) -> list[Digest]:
    return [Digest.of(content) for content in contents]


def parse(document: object, content_type: str | None = None) -> Any:
    return parse_manifest(json.dumps(document).encode(), content_type)


# ----------------------------------------------------------------- what it takes


@pytest.mark.parametrize("media_type", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_an_image_names_its_config_and_layers(media_type: str) -> None:
    manifest = parse(image(mediaType=media_type), media_type)
    assert (manifest.kind, manifest.media_type) == (ManifestKind.IMAGE, media_type)
    assert manifest.config.digest == Digest.of(b"config")
    assert [layer.size for layer in manifest.layers] == [3, 5]
    assert [blob.digest for blob in manifest.blobs] == digests(b"config", b"one", b"three")
    assert manifest.manifests == ()
    assert manifest.artifact_type == OCI_CONFIG


@pytest.mark.parametrize("media_type", [OCI_INDEX, DOCKER_MANIFEST_LIST])
def test_an_index_names_its_manifests_and_their_platforms(media_type: str) -> None:
    manifest = parse(index(mediaType=media_type), media_type)
    assert manifest.kind == ManifestKind.INDEX
    assert [entry.digest for entry in manifest.manifests] == digests(b"amd64", b"arm")
    assert [entry.platform for entry in manifest.entries] == ["linux/amd64", "linux/arm/v7"]
    assert (manifest.blobs, manifest.artifact_type, manifest.subject) == ((), None, None)


def test_an_artifact_refers_to_its_subject() -> None:
    document = image(
        artifactType="application/vnd.example.sbom",
        config=descriptor(b"{}", OCI_EMPTY, data=base64.b64encode(b"{}").decode()),
        layers=[descriptor(b"{}", OCI_EMPTY)],
        subject=descriptor(b"subject", OCI_MANIFEST),
        annotations={"org.example.key": "wért"},
    )
    manifest = parse(document)
    assert manifest.subject.digest == Digest.of(b"subject")
    assert manifest.artifact_type == "application/vnd.example.sbom"
    assert manifest.annotations == {"org.example.key": "wért"}
    assert [blob.digest for blob in manifest.blobs] == digests(b"{}")


def test_an_artifact_manifest_of_the_release_candidate_is_read() -> None:
    document = {
        "mediaType": OCI_ARTIFACT_MANIFEST,
        "artifactType": "a/b",
        "blobs": [descriptor(b"sbom")],
        "subject": descriptor(b"s"),
    }
    manifest = parse(document, OCI_ARTIFACT_MANIFEST)
    assert (manifest.kind, manifest.artifact_type) == (ManifestKind.ARTIFACT, "a/b")
    assert [blob.digest for blob in manifest.blobs] == digests(b"sbom")


def test_what_may_be_left_out_may_be_left_out() -> None:
    assert parse(image(mediaType=GONE), OCI_MANIFEST + "; charset=utf-8").kind == ManifestKind.IMAGE
    assert parse(image(layers=[])).layers == ()
    assert parse(image(layers=None, subject=None, annotations=None, manifests=None)).layers == ()
    assert parse(index(manifests=[])).manifests == ()
    assert parse(image(artifactType="")).artifact_type == OCI_CONFIG


def test_keys_we_do_not_know_are_left_alone() -> None:
    manifest = parse(image(custom="x", **{"org.example.deep": {"layers": [[]], "Layers": 1}}))
    assert len(manifest.layers) == 2


def test_layers_that_may_only_be_had_elsewhere_need_not_be_here() -> None:
    urls = ["https://example.com/layer"]
    foreign = [
        descriptor(b"base", DOCKER_FOREIGN_LAYER, urls=urls),
        descriptor(b"nd", "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"),
        descriptor(b"mirrored", OCI_LAYER, urls=urls),
    ]
    manifest = parse(image(layers=foreign))
    assert manifest.layers[0].urls == ("https://example.com/layer",)
    assert [blob.digest for blob in manifest.blobs] == digests(b"config", b"mirrored")


def test_a_cache_of_buildkit_lists_blobs_in_an_index() -> None:
    cache = [
        descriptor(b"layer"),
        descriptor(b"cfg", "application/vnd.buildkit.cacheconfig.v0"),
        descriptor(b"m", OCI_INDEX),
    ]
    manifest = parse(index(manifests=cache))
    assert [blob.digest for blob in manifest.blobs] == digests(b"layer", b"cfg")
    assert [entry.digest for entry in manifest.manifests] == digests(b"m")


def test_the_same_layer_twice_is_needed_once() -> None:
    manifest = parse(image(layers=[descriptor(b"x"), descriptor(b"x")]))
    assert len(manifest.layers) == 2
    assert [blob.digest for blob in manifest.blobs] == digests(b"config", b"x")


def test_a_manifest_of_a_type_we_do_not_know_is_kept_with_what_can_be_read_of_it() -> None:
    document = {"layers": [descriptor(b"x"), "y", 5], "manifests": 7, "config": [], "subject": descriptor(b"s")}
    manifest = parse(document, "application/vnd.example+json")
    assert (manifest.kind, manifest.media_type) == (ManifestKind.OTHER, "application/vnd.example+json")
    assert [blob.digest for blob in manifest.blobs] == digests(b"x")
    assert manifest.subject.digest == Digest.of(b"s")
    with pytest.raises(ManifestInvalid):
        parse({"subject": "s"}, "application/vnd.example+json")


def test_sha512_is_a_digest_like_another() -> None:
    layer = {"mediaType": OCI_LAYER, "digest": str(Digest.of(b"x", "sha512")), "size": 1}
    assert parse(image(layers=[layer])).layers[0].digest.algorithm == "sha512"


# --------------------------------------------------------------- what it refuses


def refuses(document: object, content_type: str | None = None, match: str | None = None) -> None:
    with pytest.raises(ManifestInvalid, match=match):
        parse(document, content_type)


def test_a_manifest_above_4_mib_is_not_even_parsed() -> None:
    padding = "x" * (MAX_MANIFEST_BYTES - len(json.dumps(image(padding=""))))
    assert parse(image(padding=padding)).kind == ManifestKind.IMAGE
    with pytest.raises(ManifestTooLarge):
        parse(image(padding=padding + "x"))
    with pytest.raises(ManifestTooLarge):
        parse_manifest(b"\x00" * (MAX_MANIFEST_BYTES + 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b'"x"',
        b"{",
        b"\xff\xfe{\x00}\x00",
        b"\xef\xbb\xbf{}",
        b"{} {}",
        b'{"schemaVersion": NaN}',
        b'{"schemaVersion": ' + b"9" * 5000 + b"}",
        b'{"a": "\xff"}',
    ],
)
def test_what_is_not_a_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ManifestInvalid):
        parse_manifest(data, OCI_MANIFEST)


def test_a_document_that_is_image_and_index_at_once_is_refused() -> None:
    refuses(image(manifests=index()["manifests"]), match="two ways")
    refuses(index(layers=image()["layers"]), match="two ways")
    refuses(index(config=image()["config"]), match="two ways")
    refuses(image(blobs=[]), match="two ways")
    refuses(image(manifests=index()["manifests"], mediaType=GONE), OCI_MANIFEST, match="two ways")


def test_a_media_type_that_is_not_the_content_type_is_refused() -> None:
    refuses(image(), OCI_INDEX, match="pushed as")
    refuses(image(), DOCKER_MANIFEST, match="pushed as")
    refuses(image(mediaType=GONE), match="says what the manifest is")
    refuses(image(mediaType=5))
    refuses(image(), "not a media type")


def test_what_go_reads_in_another_way_is_refused() -> None:
    refuses(image(Manifests=[]), match="which some read as 'manifests'")
    refuses(image(MEDIATYPE=OCI_INDEX), match="which some read as 'mediaType'")
    refuses(image(layers=[{**descriptor(b"x"), "Digest": "y"}]), match="which some read as 'digest'")
    twice = json.dumps(image())[:-1] + ', "layers": []}'
    with pytest.raises(ManifestInvalid, match="twice"):
        parse_manifest(twice.encode())


def test_schema_1_is_recognised() -> None:
    for media_type in SCHEMA1_TYPES:
        refuses({"schemaVersion": 1, "name": "x"}, media_type, match="schema 1")
    refuses({"schemaVersion": 1, "name": "x", "fsLayers": []}, "application/json", match="schema 1")


@pytest.mark.parametrize("version", [GONE, 1, 3, "2", True, None, 2.5])
def test_another_schema_version_is_refused(version: object) -> None:
    refuses(image(schemaVersion=version))
    refuses(index(schemaVersion=version))


@pytest.mark.parametrize(
    "bad",
    [
        None,
        "x",
        [],
        {},
        {**descriptor(b"x"), "mediaType": None},
        {**descriptor(b"x"), "mediaType": ""},
        {**descriptor(b"x"), "mediaType": "a/b\r\nX-Evil: 1"},
        {**descriptor(b"x"), "digest": "sha256:../../etc/passwd"},
        {**descriptor(b"x"), "digest": "md5:d41d8cd98f00b204e9800998ecf8427e"},
        {**descriptor(b"x"), "digest": 5},
        {**descriptor(b"x"), "size": -1},
        {**descriptor(b"x"), "size": 2**63},
        {**descriptor(b"x"), "size": 1.5},
        {**descriptor(b"x"), "size": "1"},
        {**descriptor(b"x"), "size": True},
        {**descriptor(b"x"), "size": None},
        {**descriptor(b"x"), "urls": "https://example.com"},
        {**descriptor(b"x"), "urls": [5]},
        {**descriptor(b"x"), "annotations": {"a": 5}},
        {**descriptor(b"x"), "annotations": []},
        {**descriptor(b"x"), "annotations": {"a": "\ud800"}},
        {**descriptor(b"x"), "annotations": {"\udfff": "a"}},
        {**descriptor(b"x"), "artifactType": 5},
        {**descriptor(b"x"), "data": 5},
        {**descriptor(b"x"), "data": "!"},
        {**descriptor(b"x"), "data": base64.b64encode(b"y").decode()},
    ],
)
def test_a_malformed_descriptor_is_refused_wherever_it_stands(bad: object) -> None:
    refuses(image(layers=[descriptor(b"one"), bad]))
    refuses(index(manifests=[bad]))
    if bad is not None:
        refuses(image(subject=bad))
    refuses(image(config=bad))


@pytest.mark.parametrize("bad", [{}, "x", 5, {"0": 1}])
def test_a_list_that_is_none_is_refused(bad: object) -> None:
    refuses(image(layers=bad))
    refuses(index(manifests=bad))


def test_what_is_required_is_required() -> None:
    refuses(image(layers=GONE))
    refuses(image(config=GONE))
    refuses(index(manifests=GONE))


def test_sizes_that_cannot_be_are_refused() -> None:
    refuses(image(layers=[descriptor(b"x"), {**descriptor(b"x"), "size": 2}]), match="different sizes")
    refuses(index(manifests=[{**descriptor(b"x", OCI_MANIFEST), "size": MAX_MANIFEST_BYTES + 1}]), match="claims to be")


def test_an_odd_platform_is_no_reason_to_refuse() -> None:
    odd = [
        {**descriptor(b"%d" % n, OCI_MANIFEST), "platform": p}
        for n, p in enumerate([5, {}, {"os": 5}, {"os": "linux"}])
    ]
    assert [entry.platform for entry in parse(index(manifests=odd)).entries] == [None, None, None, "linux"]


def test_nesting_is_bounded() -> None:
    deep: object = 1
    for _ in range(MAX_NESTING - 1):
        deep = [deep]
    assert parse(image(deep=deep)).kind == ManifestKind.IMAGE
    refuses(image(deep=[deep]), match="nested")
    with pytest.raises(ManifestInvalid):
        parse_manifest(b'{"a":' + b"[" * 2_000_000 + b"]" * 2_000_000 + b"}", OCI_MANIFEST)
    with pytest.raises(ManifestInvalid):
        parse_manifest(b'{"a":' * 500_000 + b"1" + b"}" * 500_000, OCI_MANIFEST)


@pytest.mark.parametrize("filler", [b"[],", b"0,", b'{"a":0},', b'"",', b'"', b'\\"', b'"\\"", ', b"\\"])
def test_no_4_mib_take_long_to_read_or_much_memory(filler: bytes) -> None:
    data = b'{"mediaType":"a/b","x":[' + filler * (MAX_MANIFEST_BYTES // len(filler) - 20) + b"0]}"
    began = time.process_time()
    tracemalloc.start()
    try:
        with pytest.raises(ManifestInvalid):
            parse_manifest(data)
        assert tracemalloc.get_traced_memory()[1] < 40 * 1024 * 1024
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10  # generous: machines differ, what is to be seen is anything quadratic


def test_as_many_descriptors_as_fit_into_4_mib_are_read() -> None:
    entry = json.dumps({"mediaType": OCI_MANIFEST, "digest": str(Digest.of(b"x")), "size": 1}, separators=(",", ":"))
    entries = ",".join([entry] * (MAX_MANIFEST_BYTES // (len(entry) + 1) - 2))
    data = f'{{"schemaVersion":2,"mediaType":"{OCI_INDEX}","manifests":[{entries}]}}'.encode()
    assert len(parse_manifest(data).entries) > 20_000


def test_brackets_and_commas_in_a_text_are_no_values() -> None:
    text = "[{,\\" * (MAX_MANIFEST_BYTES // 6)
    assert parse(image(annotations={"a": text[:-100]})).annotations


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from([image, index]),
    st.sampled_from(["config", "layers", "manifests", "subject", "annotations"]),
    json_values,
)
def test_any_json_in_any_place_is_read_or_refused(make: Any, key: str, value: object) -> None:
    try:
        manifest = parse(make(**{key: value}))
    except ManifestInvalid:
        return
    assert manifest.kind in (ManifestKind.IMAGE, ManifestKind.INDEX)

import pytest

from ipfsreg.errors import ManifestInvalid
from ipfsreg.oci.media_types import (
    DOCKER_FOREIGN_LAYER,
    MANIFEST_TYPES,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    is_distributable,
    parse_media_type,
)


@pytest.mark.parametrize("text", [*sorted(MANIFEST_TYPES), "application/octet-stream", "text/x.y-z+json"])
def test_media_types_are_taken_as_they_are(text: str) -> None:
    assert parse_media_type(text) == text


def test_parameters_are_no_part_of_the_type() -> None:
    assert parse_media_type(OCI_MANIFEST + "; charset=utf-8") == OCI_MANIFEST
    assert parse_media_type(f" {OCI_MANIFEST}\t;") == OCI_MANIFEST


@pytest.mark.parametrize(
    "text", ["", "json", "a/", "/b", "a/b/c", "a b/c", "a/b\n", "a/b\r\nX: y", "ä/b", "a/" + "b" * 200]
)
def test_what_is_no_media_type_is_refused(text: str) -> None:
    with pytest.raises(ManifestInvalid):
        parse_media_type(text)


def test_layers_that_may_only_be_had_elsewhere_are_known() -> None:
    assert is_distributable(OCI_LAYER_GZIP)
    assert is_distributable("application/vnd.oci.image.layer.v1.tar+zstd")
    assert not is_distributable(DOCKER_FOREIGN_LAYER)
    assert not is_distributable("application/vnd.oci.image.layer.nondistributable.v1.tar")
    assert not is_distributable("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd")

"""The media types registries meet. Specs: image-spec media-types.md, docker "Image Manifest V 2, Schema 2"."""

from __future__ import annotations

import re

from ipfsreg.errors import ManifestInvalid

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT_MANIFEST = "application/vnd.oci.artifact.manifest.v1+json"
"""Of a release candidate of image-spec 1.1, withdrawn since; some signatures and SBOMs still carry it."""
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_EMPTY = "application/vnd.oci.empty.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_MANIFEST_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_FOREIGN_LAYER = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_MANIFEST_LIST})
MANIFEST_TYPES = IMAGE_TYPES | INDEX_TYPES | {OCI_ARTIFACT_MANIFEST}

SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
"""Docker before 1.10. Their digest leaves out part of their bytes, so they cannot be served by content. Refused."""

_NON_DISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"

_NAME = r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
_MEDIA_TYPE = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)


def is_distributable(layer_type: str) -> bool:
    """Whether a layer of this type has to be in the registry. Others may only be had from elsewhere (base layers)."""
    return layer_type != DOCKER_FOREIGN_LAYER and not layer_type.startswith(_NON_DISTRIBUTABLE)


def parse_media_type(text: str) -> str:
    """Check *text* as a media type (RFC 6838) and return it without parameters. Raises ManifestInvalid."""
    bare = text.partition(";")[0].strip(" \t")
    if not _MEDIA_TYPE.fullmatch(bare):
        raise ManifestInvalid(f"{text[:160]!r} is not a media type")
    return bare

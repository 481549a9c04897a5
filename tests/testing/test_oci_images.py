import gzip
import hashlib
import json
import platform
import subprocess
from pathlib import Path

import pytest

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import Manifest, parse_manifest
from ipfsreg.oci.media_types import OCI_INDEX, OCI_LAYER, OCI_MANIFEST
from ipfsreg.testing.oci_images import ImageLayout, main, parse_size, write_layout


def read_manifest(layout: ImageLayout, digest: Digest) -> Manifest:
    return parse_manifest(layout.blob_path(digest).read_bytes())


def check_image(layout: ImageLayout, digest: Digest) -> None:
    """Every reference of an image is there, with its size, and diff IDs are the hashes of its tars."""
    manifest = read_manifest(layout, digest)
    assert manifest.config is not None
    config = json.loads(layout.blob_path(manifest.config.digest).read_bytes())
    diff_ids = []
    for layer in manifest.layers:
        data = layout.blob_path(layer.digest).read_bytes()
        assert len(data) == layer.size
        tar = data if layer.media_type == OCI_LAYER else gzip.decompress(data)
        diff_ids.append(f"sha256:{hashlib.sha256(tar).hexdigest()}")
    assert config["rootfs"]["diff_ids"] == diff_ids
    assert len(config["history"]) == len(diff_ids)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("compressible", [True, False])
def test_an_image_is_whole_and_named_by_its_hashes(tmp_path: Path, packed: bool, compressible: bool) -> None:
    layout = write_layout(tmp_path, [3_000_000, 300, 0], gzip=packed, compressible=compressible)
    assert layout.media_type == OCI_MANIFEST
    assert layout.manifests == (layout.digest,)
    assert len(layout.layers) == 3
    check_image(layout, layout.digest)
    for digest, size in layout.sizes.items():
        data = layout.blob_path(digest).read_bytes()
        assert (Digest.of(data), len(data)) == (digest, size)
    assert len(list((tmp_path / "blobs/sha256").iterdir())) == len(layout.sizes) == 5
    smallest = layout.sizes[layout.layers[0]]
    assert smallest < 1_000_000 if compressible and packed else 3_000_000 < smallest < 3_010_000


def test_the_entry_files_lead_to_the_image(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, tag="2.1", name="x/y")
    (entry,) = json.loads((tmp_path / "index.json").read_text())["manifests"]
    assert entry["digest"] == str(layout.digest)
    assert entry["annotations"]["org.opencontainers.image.ref.name"] == "2.1"
    assert json.loads((tmp_path / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (archive,) = json.loads((tmp_path / "manifest.json").read_text())
    assert archive["RepoTags"] == ["x/y:2.1"]
    assert all((tmp_path / file).is_file() for file in (archive["Config"], *archive["Layers"]))


def test_the_same_arguments_make_the_same_image_and_another_seed_another(tmp_path: Path) -> None:
    first = write_layout(tmp_path / "a", [2000, 10])
    assert write_layout(tmp_path / "b", [2000, 10]).digest == first.digest
    other = write_layout(tmp_path / "c", [2000, 10], seed=1)
    assert not set(other.layers) & set(first.layers)


def test_an_index_has_an_image_for_each_architecture(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, [100, 2000], architectures=("amd64", "arm64", "s390x"))
    assert layout.media_type == OCI_INDEX
    index = read_manifest(layout, layout.digest)
    assert [entry.digest for entry in index.manifests] == list(layout.manifests)
    assert [entry.platform for entry in index.entries] == ["linux/amd64", "linux/arm64", "linux/s390x"]
    assert len(layout.layers) == 4
    for digest in layout.manifests:
        check_image(layout, digest)
    assert not (tmp_path / "manifest.json").exists()


def test_a_hundred_tiny_layers_are_a_hundred_different_layers(tmp_path: Path) -> None:
    layout = write_layout(tmp_path, [300] * 100)
    assert len(layout.layers) == 100
    check_image(layout, layout.digest)


def unpack(archive: Path, target: Path) -> None:
    """With the system's tar: Python's of Debian 12 asks for no filter, later ones warn where none is given."""
    target.mkdir(exist_ok=True)
    subprocess.run(["tar", "-xf", archive, "-C", target], check=True)


def test_layers_unpack_to_files_of_the_sizes_asked_for(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [17 << 20, 5])
    for layer in layout.layers:
        unpack(layout.blob_path(layer), tmp_path / "root")
    files = {
        str(file.relative_to(tmp_path / "root")): file.stat().st_size
        for file in (tmp_path / "root").rglob("*")
        if file.is_file()
    }
    hello = files.pop("hello")
    assert files == {
        "etc/architecture": 6,
        "srv/layer-000/000": 16 << 20,
        "srv/layer-000/001": 1 << 20,
        "srv/layer-001/000": 5,
    }
    assert hello < 300


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the executable is for amd64")
def test_the_command_of_the_image_runs(tmp_path: Path) -> None:
    layout = write_layout(tmp_path / "image", [1])
    unpack(layout.blob_path(layout.layers[0]), tmp_path)
    done = subprocess.run([tmp_path / "hello"], check=True, capture_output=True, timeout=10)
    assert done.stdout == b"Hello from an image that ipfsreg made.\n"


@pytest.mark.parametrize(("text", "size"), [("300", 300), ("20MB", 20_000_000), ("1.5kb", 1500), ("1GiB", 1 << 30)])
def test_sizes_are_read_with_their_units(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "MB", "5 apples", "-1", "1MM"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_size(text)


def test_the_command_line_says_what_it_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(tmp_path), "--layers", "3", "--layer-size", "2KB", "--arch", "amd64,arm64", "--tag", "9"])
    printed = capsys.readouterr().out
    (entry,) = json.loads((tmp_path / "index.json").read_text())["manifests"]
    assert printed.startswith(f"{entry['digest']}  oci:{tmp_path}:9\n4 layers, ")

"""Container images out of nothing: OCI image layouts on disk, the same bytes for the same arguments.

    python -m ipfsreg.testing.oci_images OUT --layers 5 --layer-size 20MB
    skopeo copy oci:OUT:1.0 docker://127.0.0.1:5000/team/app:1.0

Layers are real tar files that every container engine unpacks, with right diff IDs. The content of large ones is a
keystream, so nothing on the way can shrink it and a layer costs about a second per 500 MB. On amd64 the image runs: its
command is an executable of 200 bytes that says hello.

A layout of one architecture has a `manifest.json` too, so that `tar -C OUT -c . | docker load` works.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import struct
import tarfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.media_types import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_LAYER_GZIP, OCI_MANIFEST

MADE = "2024-01-01T00:00:00Z"
_MADE_S = 1_704_067_200
_PIECE_BYTES = 1 << 20
_FILE_BYTES = 16 << 20
"""Large layers hold several files of this size."""

_MESSAGE = b"Hello from an image that ipfsreg made.\n"


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """An image on disk."""

    path: Path
    tag: str
    digest: Digest
    """Of what the tag names: the manifest, or the index where there are several architectures."""
    media_type: str
    manifests: tuple[Digest, ...]
    """One for each architecture."""
    layers: tuple[Digest, ...]
    """Each once: all but the first are shared by the architectures."""
    sizes: Mapping[Digest, int]
    """Bytes of everything in the layout: manifests, configs, layers."""

    @property
    def total_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(self.sizes.values())

    def blob_path(self, digest: Digest) -> Path:
        """The file with a blob's, config's or manifest's bytes."""
        return self.path / "blobs" / digest.algorithm / digest.hex


def write_layout(
    path: Path,
    layer_sizes: Sequence[int] = (1000, 1000),
    *,
    architectures: Sequence[str] = ("amd64",),
    tag: str = "1.0",
    name: str = "ipfsreg.test/demo",
    seed: int = 0,
    gzip: bool = True,
    compressible: bool = False,
) -> ImageLayout:
    """Write an image whose layers (at least one) hold so many content bytes each, as the OCI image layout *path*.

    Several architectures make an index; they share all layers but the first. Compressible content is compressed for
    real; the other kind is only framed as gzip.
    """
    writer = _Writer(path)
    content = _Content(seed, compressible)
    shared = [
        writer.layer(content.layer(index, size), gzip=gzip, level=1 if compressible else 0)
        for index, size in enumerate(layer_sizes)
        if index
    ]
    entries, layers = [], []
    for architecture in architectures:
        files = [("hello", 0o755, _hello(architecture)), ("etc/architecture", 0o644, architecture.encode() + b"\n")]
        first = writer.layer(content.layer(0, layer_sizes[0], files), gzip=gzip, level=1 if compressible else 0)
        layers.append(first)
        entries.append(writer.image(architecture, [first, *shared]))
    if len(entries) == 1:
        top = {key: entries[0][key] for key in ("mediaType", "digest", "size")}
        writer.docker_archive(top["digest"], f"{name}:{tag}")
    else:
        top = writer.json({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}, OCI_INDEX)
    writer.finish(top, name, tag)
    unique = dict.fromkeys(Digest.parse(layer.descriptor["digest"]) for layer in [*layers, *shared])
    manifests = tuple(Digest.parse(entry["digest"]) for entry in entries)
    digest = Digest.parse(top["digest"])
    return ImageLayout(path, tag, digest, top["mediaType"], manifests, tuple(unique), writer.sizes)


# -------------------------------------------------------------------- content


class _Content:
    """The tar files of layers, as pieces of bytes."""

    def __init__(self, seed: int, compressible: bool) -> None:
        self._seed = seed
        self._compressible = compressible

    def layer(self, index: int, size: int, files: Sequence[tuple[str, int, bytes]] = ()) -> Iterator[bytes]:
        """A layer of *files* (path, mode, content) and *size* bytes more."""
        own = f"srv/layer-{index:03}"
        paths = [PurePosixPath(path) for path in (f"{own}/000", *(path for path, _, _ in files))]
        for folder in sorted({str(parent) for path in paths for parent in path.parents} - {"."}):
            yield _header(folder + "/", 0o755, 0, tarfile.DIRTYPE)
        for path, mode, content in files:
            yield _header(path, mode, len(content)) + content + _padding(len(content))
        stream = self._stream(index)
        for part, start in enumerate(range(0, size, _FILE_BYTES)):
            length = min(_FILE_BYTES, size - start)
            yield _header(f"{own}/{part:03}", 0o644, length)
            for offset in range(0, length, _PIECE_BYTES):
                yield next(stream)[: length - offset]
            yield _padding(length)
        yield bytes(2 * tarfile.BLOCKSIZE)

    def _stream(self, index: int) -> Iterator[bytes]:
        """Endless content in pieces of a mebibyte, another one for each layer."""
        key = hashlib.sha256(f"ipfsreg test image {self._seed} {index}".encode()).digest()
        if self._compressible:
            piece = "".join(f"{key.hex()} line {line:08}\n" for line in range(_PIECE_BYTES // 79 + 1))
            while True:
                yield piece.encode()[:_PIECE_BYTES]
        keystream = Cipher(algorithms.ChaCha20(key, bytes(16)), None).encryptor()
        zeros = bytes(_PIECE_BYTES)
        while True:
            yield keystream.update(zeros)


def _header(path: str, mode: int, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.mode, entry.size, entry.mtime, entry.type = mode, size, _MADE_S, kind
    entry.uname = entry.gname = "root"
    return entry.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % tarfile.BLOCKSIZE)


def _hello(architecture: str) -> bytes:
    """An executable without libraries that prints a line; on what we have no code for, only the line."""
    if architecture != "amd64":
        return _MESSAGE
    base, head = 0x400000, 64 + 56
    code = b"".join(
        (
            b"\xb8\x01\x00\x00\x00",  # mov eax, 1 (write)
            b"\xbf\x01\x00\x00\x00",  # mov edi, 1 (standard output)
            b"\xbe" + struct.pack("<I", base + head + 34),  # mov esi, the message behind this code
            b"\xba" + struct.pack("<I", len(_MESSAGE)),  # mov edx, its length
            b"\x0f\x05",  # syscall
            b"\xb8\x3c\x00\x00\x00",  # mov eax, 60 (exit)
            b"\x31\xff",  # xor edi, edi
            b"\x0f\x05",  # syscall
        )
    ).ljust(34, b"\x90")
    size = head + len(code) + len(_MESSAGE)
    elf = b"\x7fELF\x02\x01\x01".ljust(16, b"\x00")
    elf += struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + head, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    elf += struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000)
    return elf + code + _MESSAGE


# ------------------------------------------------------------------- the disk


@dataclass(frozen=True, slots=True)
class _Layer:
    descriptor: dict[str, Any]
    diff_id: str


class _Writer:
    """One layout on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._blobs = path / "blobs" / "sha256"
        self._blobs.mkdir(parents=True, exist_ok=True)
        self.sizes: dict[Digest, int] = {}

    def layer(self, tar: Iterator[bytes], *, gzip: bool, level: int) -> _Layer:
        """Write a layer in one pass, hashed before and after compression."""
        plain, packed, size = hashlib.sha256(), hashlib.sha256(), 0
        compressor = zlib.compressobj(level, wbits=31) if gzip else None
        unfinished = self._blobs / "unfinished"
        with unfinished.open("wb") as file:

            def write(data: bytes) -> int:
                packed.update(data)
                return file.write(data)

            for piece in tar:
                plain.update(piece)
                size += write(compressor.compress(piece) if compressor else piece)
            if compressor:
                size += write(compressor.flush())
        digest = (packed if compressor else plain).hexdigest()
        unfinished.replace(self._blobs / digest)
        self.sizes[Digest("sha256", digest)] = size
        media_type = OCI_LAYER_GZIP if gzip else OCI_LAYER
        return _Layer(_descriptor(media_type, digest, size), f"sha256:{plain.hexdigest()}")

    def json(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        """Write a small blob and return its descriptor."""
        data = json.dumps(document, indent=1).encode()
        digest = hashlib.sha256(data).hexdigest()
        (self._blobs / digest).write_bytes(data)
        self.sizes[Digest("sha256", digest)] = len(data)
        return _descriptor(media_type, digest, len(data))

    def image(self, architecture: str, layers: Sequence[_Layer]) -> dict[str, Any]:
        """Write config and manifest; return the manifest's entry for an index."""
        config = {
            "created": MADE,
            "architecture": architecture,
            "os": "linux",
            "config": {"Env": ["PATH=/"], "Cmd": ["/hello"], "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
            "history": [{"created": MADE, "created_by": f"layer {index}"} for index in range(len(layers))],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": self.json(config, OCI_CONFIG),
            "layers": [layer.descriptor for layer in layers],
        }
        platform = {"os": "linux", "architecture": architecture}
        return {**self.json(manifest, OCI_MANIFEST), "platform": platform}

    def docker_archive(self, manifest: str, reference: str) -> None:
        """Add what `docker load` looks for."""
        document = json.loads((self._blobs / Digest.parse(manifest).hex).read_bytes())
        files = ["blobs/" + part["digest"].replace(":", "/") for part in (document["config"], *document["layers"])]
        entry = {"Config": files[0], "RepoTags": [reference], "Layers": files[1:]}
        (self._path / "manifest.json").write_text(json.dumps([entry]))

    def finish(self, top: dict[str, Any], name: str, tag: str) -> None:
        """Write the entry files: with these the layout is whole."""
        # The first is the specification's, the second is what containerd's importers take for the whole name.
        names = {"org.opencontainers.image.ref.name": tag, "io.containerd.image.name": f"{name}:{tag}"}
        entry = {**top, "annotations": names}
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
        (self._path / "index.json").write_text(json.dumps(index, indent=1))
        (self._path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _descriptor(media_type: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": size}


# ------------------------------------------------------------------------ CLI

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30}


def parse_size(text: str) -> int:
    """Bytes of `300`, `20MB`, `1GiB`. Raises ValueError."""
    number = text.rstrip("BKMGIbkmgi")
    unit = text[len(number) :].upper()
    if unit not in _UNITS or float(number) < 0:
        raise ValueError(f"{text!r} is not a size like 300, 20MB or 1GiB")
    return int(float(number) * _UNITS[unit])


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a layout and print what is in it."""
    parser = argparse.ArgumentParser(prog="python -m ipfsreg.testing.oci_images", description="Make a test image.")
    parser.add_argument("out", type=Path, help="folder to write the OCI image layout to")
    parser.add_argument("--layers", type=int, default=5, metavar="N")
    parser.add_argument("--layer-size", type=parse_size, default="1MB", metavar="SIZE", help="as 300, 20MB, 1GiB")
    parser.add_argument("--arch", default="amd64", metavar="LIST", help="as amd64,arm64; several make an index")
    parser.add_argument("--tag", default="1.0")
    parser.add_argument("--name", default="ipfsreg.test/demo", help="repository that docker load gives the image")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other layers")
    parser.add_argument("--plain", action="store_true", help="layers without gzip")
    parser.add_argument("--compressible", action="store_true", help="content that gzip shrinks")
    given = parser.parse_args(arguments)
    if given.layers < 1:
        parser.error("an image needs a layer")
    layout = write_layout(
        given.out,
        [given.layer_size] * given.layers,
        architectures=given.arch.split(","),
        tag=given.tag,
        name=given.name,
        seed=given.seed,
        gzip=not given.plain,
        compressible=given.compressible,
    )
    print(f"{layout.digest}  oci:{layout.path}:{layout.tag}")
    print(f"{len(layout.layers)} layers, {layout.total_bytes / 1e6:.1f} MB")


if __name__ == "__main__":
    main()

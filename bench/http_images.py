"""Whole images by skopeo: a large one, and one of many tiny layers, beside other registries in one run.

    .venv/bin/python bench/http_images.py [--mib 1024] [--layers 100] [--rounds 3] [--dir /dev/shm]

Seconds of wall time for `skopeo copy` to the registry and back into a directory, medians of rounds that take turns.
Each round pushes to a repository that is empty, what it holds being deleted before: a blob that is there already is
not sent. Where the peers come from: bench/registries.py.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from registries import Registry, open_registries, show, show_heading, take_turns

from ipfsreg.testing.oci_images import ImageLayout, write_layout

LARGE_LAYERS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dir", type=Path, default=Path("/dev/shm"), help="where all of them keep their files")
    args = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-bench-", dir=args.dir))
    try:
        with open_registries(directory, ["distribution", "olareg", "docker-registry"]) as registries:
            show_heading(registries)
            for name, sizes in (
                (f"{args.mib} MiB in {LARGE_LAYERS} layers", [(args.mib << 20) // LARGE_LAYERS] * LARGE_LAYERS),
                (f"{args.layers} layers of 1 KiB", [1024] * args.layers),
            ):
                rounds = [
                    write_layout(directory / f"layout-{len(sizes)}-{number}", sizes, seed=number)
                    for number in range(args.rounds)
                ]
                for way, test in (("push", pushing(rounds)), ("pull", pulling(rounds, directory))):
                    figures = take_turns(registries, args.rounds, test, lower_is_better=True)
                    show(f"skopeo {way}, {name}, s", registries, *figures)
                for layout in rounds:
                    shutil.rmtree(layout.path)
    finally:
        shutil.rmtree(directory)


def pushing(layouts: list[ImageLayout]) -> Callable[[Registry], float]:
    """Each round pushes another image, so that no registry has any of it."""
    done: dict[str, int] = {}

    def push(registry: Registry) -> float:
        number = done.get(registry.name, 0)
        done[registry.name] = number + 1
        layout = layouts[number]
        return _skopeo(f"oci:{layout.path}:{layout.tag}", _place(registry, layout, number), "--dest-tls-verify=false")

    return push


def pulling(layouts: list[ImageLayout], directory: Path) -> Callable[[Registry], float]:
    """Each round pulls what that round pushed."""
    done: dict[str, int] = {}

    def pull(registry: Registry) -> float:
        number = done.get(registry.name, 0)
        done[registry.name] = number + 1
        target = directory / "pulled"
        seconds = _skopeo(_place(registry, layouts[number], number), f"dir:{target}", "--src-tls-verify=false")
        shutil.rmtree(target)
        return seconds

    return pull


def _place(registry: Registry, layout: ImageLayout, number: int) -> str:
    return f"docker://{registry.address}/bench/{layout.path.name}:v{number}"


def _skopeo(source: str, target: str, *options: str) -> float:
    began = time.perf_counter()
    subprocess.run(["skopeo", "copy", "-q", *options, source, target], check=True, stdin=subprocess.DEVNULL)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()

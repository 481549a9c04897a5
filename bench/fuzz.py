"""Coverage-guided fuzzing of every decoder: `python bench/fuzz.py --inputs 12000000`.

Each target (`ipfsreg.testing.fuzz.targets`) runs in a process of its own under atheris, whose libFuzzer sees the
branches of our Python code and of multiaddr's. Half of the inputs are its own changes, half are ours, which know
protobuf fields. Then the corpus it found is blown up to the largest sizes and tried without instrumentation, where time
and memory are measured. What breaks a promise is printed and ends the run with status 1.

    pip install -e .[fuzz]
    nice -n 19 python bench/fuzz.py --inputs 12000000             # 20 minutes on half a busy core
    nice -n 19 python bench/fuzz.py --seconds 300 --save          # short; keep new inputs in tests/vectors/fuzz
    python bench/fuzz.py --only gossip_rpc yamux --seconds 60
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VECTORS = Path(__file__).parent.parent / "tests" / "vectors" / "fuzz"

SAVED_BYTES = 2048
"""Of each target's corpus, in tests/vectors/fuzz."""

SHARE_OF_SWELLING = 0.15
"""Of the time of a target, for large inputs."""

MAX_LENGTH = 4096
"""Of inputs whose coverage is watched: what large ones add is size, and that is tried afterwards."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000_000, help="in all")
    parser.add_argument("--seconds", type=float, help="for all targets together; stops earlier where inputs run out")
    parser.add_argument("--only", nargs="*", help="names of targets")
    parser.add_argument("--corpus", type=Path, help="directory kept between runs; a temporary one by default")
    parser.add_argument("--save", action="store_true", help="keep some of what was found in tests/vectors/fuzz")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--swell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        fuzz_one(*options.child)
    elif options.swell:
        swell_one(*options.swell)
    else:
        sys.exit(fuzz_all(options))


# ------------------------------------------------------------------ the whole


def fuzz_all(options: argparse.Namespace) -> int:
    from ipfsreg.testing.fuzz.targets import TARGETS, load_corpus, save_corpus

    chosen = [TARGETS[name] for name in options.only or TARGETS]
    total_weight = sum(target.weight for target in chosen)
    failures, inputs, began = [], 0, time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ipfsreg-fuzz-") as temporary:
        corpora = options.corpus or Path(temporary)
        print(f"{'target':24}{'inputs':>12}{'a second':>10}{'branches':>10}{'corpus':>8}{'swollen':>9}", flush=True)
        for target in chosen:
            directory = corpora / target.name
            directory.mkdir(parents=True, exist_ok=True)
            for number, seed in enumerate([*target.seeds, *load_corpus(VECTORS, target)]):
                (directory / f"seed-{number}").write_bytes(seed)
            runs = max(1000, round(options.inputs * target.weight / total_weight))
            seconds = options.seconds / len(chosen) if options.seconds else 24 * 3600.0
            part = time.monotonic()
            output = run("--child", target.name, str(directory), f"{runs}:{seconds * (1 - SHARE_OF_SWELLING):.0f}")
            took = time.monotonic() - part
            done = int((re.findall(r"^Done (\d+) runs", output, re.M) or ["0"])[0])
            coverage = max(map(int, re.findall(r"cov: (\d+)", output)), default=0)
            swell_s = SHARE_OF_SWELLING * min(seconds, max(took, 20.0))
            swollen = run("--swell", target.name, str(directory), str(swell_s))
            large = int((re.findall(r"^swollen (\d+)", swollen, re.M) or ["0"])[0])
            inputs += done + large
            corpus = len(list(directory.iterdir()))
            print(f"{target.name:24}{done:>12,}{done / took:>10,.0f}{coverage:>10,}{corpus:>8,}{large:>9,}", flush=True)
            broken = [line for line in (output + swollen).splitlines() if line.startswith("BROKEN ")]
            if broken or "Done " not in output or "swollen" not in swollen:
                failures.append(target.name)
                for line in broken or [output[-3000:], swollen[-3000:]]:
                    print(line, flush=True)
            if options.save:
                save_corpus(VECTORS, target, some_of(target.name, directory))
    took = time.monotonic() - began
    print(f"{inputs:,} inputs in {took:.0f} s, {inputs / took:,.0f} a second; {len(failures)} targets broken")
    return 1 if failures else 0


def run(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return done.stdout.decode("utf-8", "replace")


def some_of(name: str, directory: Path) -> list[bytes]:
    """A share of what libFuzzer kept in *directory*, each of which reached something new when it was found."""
    inputs = [path.read_bytes() for path in sorted(directory.iterdir()) if not path.name.startswith("seed-")]
    inputs = [each for each in inputs if 0 < len(each) <= SAVED_BYTES // 5]
    random.Random(name).shuffle(inputs)
    kept, size = [], 0
    for each in inputs:
        size += len(each)
        if size <= SAVED_BYTES:
            kept.append(each)
    return kept


# ----------------------------------------------------------------- one target


def fuzz_one(name: str, directory: str, extent: str) -> None:
    """In a process of its own: atheris ends it."""
    import atheris

    with atheris.instrument_imports(include=["ipfsreg", "multiaddr"], enable_loader_override=False):
        from ipfsreg.testing.fuzz.harness import Broken, check
        from ipfsreg.testing.fuzz.mutation import Mutator
        from ipfsreg.testing.fuzz.targets import TARGETS

    target = TARGETS[name]
    length = min(target.max_bytes, MAX_LENGTH)

    def try_one(data: bytes) -> None:
        try:
            check(target, data)
        except Broken as broken:
            print(f"BROKEN {broken}", flush=True)
            raise

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        if seed & 1:
            return bytes(atheris.Mutate(data, max_size))
        mutator = Mutator(random.Random(seed), max_bytes=max_size, is_protobuf=target.is_protobuf)
        return mutator.mutate(data)

    flags = ["-print_final_stats=1", "-rss_limit_mb=1024", "-timeout=20", f"-max_len={length}", "-verbosity=1"]
    runs, seconds = extent.split(":")
    extents = [f"-runs={runs}", f"-max_total_time={seconds}", f"-artifact_prefix={directory}/"]
    atheris.Setup(["fuzz", *extents, *flags, directory], try_one, custom_mutator=mutate)
    atheris.Fuzz()


def swell_one(name: str, directory: str, seconds: str) -> None:
    """Inputs as large as may be, out of the corpus; every second one with its memory watched."""
    from ipfsreg.testing.fuzz.harness import Broken, check
    from ipfsreg.testing.fuzz.mutation import Mutator
    from ipfsreg.testing.fuzz.targets import TARGETS

    target = TARGETS[name]
    rng = random.Random(os.urandom(8))
    mutator = Mutator(rng, max_bytes=target.max_bytes, is_protobuf=target.is_protobuf)
    inputs = [path.read_bytes() for path in sorted(Path(directory).iterdir())]
    count, deadline = 0, time.monotonic() + float(seconds)
    while time.monotonic() < deadline:
        data = mutator.swell(rng.choice(inputs))
        count += 1
        try:
            check(target, data, memory=count % 2 == 0)
        except Broken as broken:
            print(f"BROKEN {broken}", flush=True)
            kept = Path(tempfile.gettempdir()) / f"broken-{name}"
            kept.write_bytes(data)
            print(f"BROKEN the input is in {kept}", flush=True)
            break
    print(f"swollen {count}")


if __name__ == "__main__":
    main()

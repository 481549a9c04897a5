"""How much faster four providers are than one, each on a link of its own.

    python bench/providers.py                      # 4 against 1, 50 Mbit/s each, a layer of 200 MB; five minutes

The taker's link is as wide as all of theirs together. The providers get the image before, over links that are not
limited; the taker has never seen it. Needs root (ipfsreg.testing.namespaces).
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from ipfsreg.testing.crowd import Pull, Usage, pull_at_once, push_layers, start_crowd
from ipfsreg.testing.daemons import HTTP_PORT, Cluster
from ipfsreg.testing.namespaces import open_lan


def measure(directory: Path, providers: int, options: argparse.Namespace) -> tuple[float, float]:
    """Seconds of the pull by the least one provider's link allows, and what the processors were busy with."""
    size = int(options.mb * 1e6)
    names = [f"provider{number}" for number in range(providers)]
    with open_lan([*names, "taker"]) as lan, Cluster(directory) as cluster:
        nodes = start_crowd(cluster, lan)
        image = push_layers(lan.machines[0], [os.urandom(size)], "bench/layer", "1.0", HTTP_PORT)
        for node in nodes:
            node.wait_manifest("bench/layer", "1.0")
        pull_at_once([Pull(machine, image) for machine in lan.machines[:-1]])
        for machine in lan.machines[:-1]:
            machine.shape(options.mbit)
        lan["taker"].shape(options.mbit * providers)
        usage = Usage()
        (seconds,) = pull_at_once([Pull(lan["taker"], image)])
        return seconds / (size * 8 / (options.mbit * 1e6)), usage.share()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--providers", type=int, default=4)
    parser.add_argument("--mbit", type=float, default=50)
    parser.add_argument("--mb", type=float, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-providers."))
    shares: dict[int, list[float]] = {1: [], options.providers: []}
    try:
        for round_ in range(options.rounds):
            for count, taken in shares.items():
                share, busy = measure(directory / f"{round_}-{count}", count, options)
                taken.append(share)
                print(f"{count} providers: {share:.2f} x what one link needs; processors {busy:.0%}", flush=True)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    one, many = (statistics.median(taken) for taken in shares.values())
    print(f"{options.providers} providers are {one / many:.2f} times as fast as one, medians of {options.rounds}")


if __name__ == "__main__":
    main()

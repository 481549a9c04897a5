"""The DHT's engines in simulated swarms: hops, queries, table sizes, and what survives the death of a fifth.

    python bench/dht.py [--nodes 100 1000] [--keys 1000] [--dead 0.2] [--seed 1]

No network and no waiting: tables, lookups and answers are the real ones, messages are handed over, and the clock jumps.
A query takes 20 to 180 simulated ms, one to a dead node 10 s. Everybody joins through one earlier node.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time

from ipfsreg.dht.keys import position_of
from ipfsreg.dht.region import Region
from ipfsreg.testing.dht import DhtSimulation, Found, SimulatedNode

K = 20


def expected_table(nodes: int) -> float:
    """Peers in a table as theory has it: k in each bucket that can be filled, everybody in the nearer ones."""
    return sum(min(float(K), nodes / 2.0 ** (bits + 1)) for bits in range(64))


def centile(values: list[float], share: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(what: str, found: list[Found], owners: list[SimulatedNode]) -> None:
    hits = [each for each, owner in zip(found, owners, strict=True) if owner.contact in each.providers]
    hops = [float(each.hops) for each in hits if each.hops is not None]
    took = [each.first_s for each in hits if each.first_s is not None]
    queries = [float(each.lookup.queries) for each in hits]
    print(
        f"{what:<22} {len(hits):5} of {len(found)} found ({len(hits) / len(found):.1%});"
        f" hops {statistics.median(hops):.0f}/{centile(hops, 0.99):.0f}/{max(hops):.0f} (median/99 %/most);"
        f" queries {statistics.median(queries):.0f}; {statistics.median(took):.2f} s"
        f" (99 %: {centile(took, 0.99):.2f} s)"
    )


def missing_holders(sim: DhtSimulation, keys: list[bytes]) -> float:
    """Share of the k truly closest peers that a lookup does not name."""
    missed = 0
    for key in keys:
        place = position_of(key)
        asker = sim.rng.choice(sim.living())
        others = [node.contact for node in sim.living() if node is not asker]
        truth = sorted(others, key=lambda contact: contact.position ^ place)[:K]
        missed += len(set(truth) - set(sim.find_closest(asker, key)))
    return missed / (K * len(keys))


def sweep(sim: DhtSimulation, roots: int) -> tuple[int, int]:
    """Lookups and regions it takes one node to announce so many roots."""
    node = sim.living()[0]
    waiting = sorted((position_of(key), key) for key in (sim.rng.randbytes(32) for _ in range(roots)))
    lookups = regions = 0
    while waiting:
        position, key = waiting[0]
        region = Region(position, k=K)
        while (search := region.next_search()) is not None:
            near, bits = search
            # Any position will do as a target here: the simulation's lookups take keys, so one is found by trying.
            target = key if near == position else sim.key_near(near, bits)
            region.receive(position_of(target), sim.find_closest(node, target))
            lookups += 1
        regions += 1
        free = 256 - region.bits
        waiting = [each for each in waiting if each[0] >> free != position >> free]
    return lookups, regions


def main(args: argparse.Namespace) -> None:
    for size in args.nodes:
        started = time.perf_counter()
        sim = DhtSimulation(size, seed=args.seed)
        sim.fill_tables()
        sizes = sim.table_sizes()
        print(f"\n{size} nodes, k = {K}, alpha = 10")
        print(
            f"{'table':<22} {sizes[0]}/{statistics.median(sizes):.0f}/{sizes[-1]} peers (least/median/most);"
            f" theory: {expected_table(size):.0f}"
        )
        print(f"{'closest peers missed':<22} {missing_holders(sim, [sim.rng.randbytes(32) for _ in range(100)]):.2%}")
        keys = [sim.rng.randbytes(32) for _ in range(args.keys)]
        owners = [sim.rng.choice(sim.nodes) for _ in keys]
        for key, owner in zip(keys, owners, strict=True):
            sim.provide(owner, key)
        report("find", [sim.find_providers(sim.rng.choice(sim.nodes), key) for key in keys], owners)
        lookups, regions = sweep(sim, 100_000 if size >= 1000 else 10_000)
        print(f"{'announcing everything':<22} {lookups} lookups in {regions} regions, whatever the number of roots")
        sim.kill(args.dead)
        what = f"find, {args.dead:.0%} just dead"
        report(what, [sim.find_providers(sim.rng.choice(sim.living()), key) for key in keys], owners)
        print(f"{'theory':<22} log2(n / k) = {math.log2(size / K):.1f} bits to gain, several of them a hop")
        print(f"{'took':<22} {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, nargs="+", default=[100, 1000])
    parser.add_argument("--keys", type=int, default=1000)
    parser.add_argument("--dead", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=1)
    main(parser.parse_args())

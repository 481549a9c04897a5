"""How soon the first byte of a cold layer is there, in round trips to the only node that has it.

    python bench/first_byte.py                     # 1 GiB, 40 ms; a minute, most of it the push

Two daemons on loopback; all they say to each other passes a delay proxy, whose round trip is measured. The client asks
the near node for a blob it does not have: from the request to the first byte of the body, and to the whole of it.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from ipfsreg.p2p.addresses import split_peer
from ipfsreg.testing.daemons import Cluster
from ipfsreg.testing.delay_proxy import delay_proxy_process
from ipfsreg.testing.pushing import Client

MIB = 1024 * 1024


def write_layer(path: Path, mib: int) -> None:
    with path.open("wb") as file:
        for _ in range(0, mib, 16):
            file.write(os.urandom(min(16, mib) * MIB))


def first_byte(address: str, repository: str, digest: str) -> tuple[float, float, int]:
    """Seconds to the first byte and to the last, and how many there were."""
    connection = http.client.HTTPConnection(address, timeout=300)
    connection.connect()
    began = time.perf_counter()
    connection.request("GET", f"/v2/{repository}/blobs/{digest}")
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    buffer = memoryview(bytearray(MIB))
    received = answer.readinto(buffer[:1])
    first = time.perf_counter() - began
    while count := answer.readinto(buffer):
        received += count
    connection.close()
    return first, time.perf_counter() - began, received


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rtt-ms", type=float, default=40)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5, help="of which the first pulls --mib, the others 64 MiB")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="ipfsreg-first-byte."))
    try:
        with Cluster(directory) as cluster:
            alice = cluster.start("alice")
            host, port = alice.multiaddr.split("/")[2], int(alice.multiaddr.split("/")[4])
            with delay_proxy_process((host, port), rtt_s=options.rtt_ms / 1000) as proxy:
                addr, peer = split_peer(alice.multiaddr)
                far = f"/ip4/{proxy.address[0]}/tcp/{proxy.address[1]}/p2p/{peer}"
                # Bob must not find the short way: he is told of nobody but through the proxy, and dials first.
                bob = cluster.add("bob", IPFSREG_P2P_BOOTSTRAPPERS=far)
                bob.start().wait_peers(1)
                assert [one["addr"] for one in bob.status()["peers"]] != [addr]
                print(f"round trip {proxy.measured_rtt_s * 1000:.1f} ms measured ({options.rtt_ms:g} asked for)")
                ratios = []
                for round_ in range(options.rounds):
                    mib = options.mib if round_ == 0 else min(options.mib, 64)
                    layer = directory / "layer"
                    write_layer(layer, mib)
                    with Client(alice.http) as client:
                        image = client.push_image("bench/layer", f"v{round_}", [layer])
                    bob.wait_manifest("bench/layer", f"v{round_}", 60)
                    first, whole, size = first_byte(bob.http, "bench/layer", image.layers[0])
                    assert size == mib * MIB
                    ratios.append(first / proxy.measured_rtt_s)
                    print(
                        f"{mib:5} MiB: first byte after {first * 1000:6.0f} ms = {ratios[-1]:.1f} round trips; "
                        f"all of it at {size / 1e6 / whole:.0f} MB/s",
                        flush=True,
                    )
                print(f"first byte after {statistics.median(ratios):.1f} round trips, median of {options.rounds}")
    finally:
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()

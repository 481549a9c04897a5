"""The test network must be what it says, or every figure measured in it is wrong."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipfsreg.testing.namespaces import Lan, Machine, open_lan, remove_leftovers, unavailable

pytestmark = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.fixture
def lan() -> Iterator[Lan]:
    with open_lan(["alice", "bob", "carol"]) as lan:
        yield lan


def can_connect(near: Machine, far: Machine) -> bool:
    with far.entered():
        listener = socket.create_server((far.address, 7000))
    with listener, near.entered():
        try:
            socket.create_connection((far.address, 7000), timeout=0.5).close()
        except TimeoutError:
            return False
        return True


def seconds_to_send(near: Machine, far: Machine, size: int) -> float:
    with far.entered():
        listener = socket.create_server((far.address, 7000))

    def receive() -> None:
        taker, _ = listener.accept()
        with taker:
            while taker.recv(1 << 16):
                pass
            taker.sendall(b".")

    thread = threading.Thread(target=receive)
    thread.start()
    with listener:
        with near.entered():
            giver = socket.create_connection((far.address, 7000))
        with giver:
            began = time.monotonic()
            giver.sendall(bytes(size))
            giver.shutdown(socket.SHUT_WR)
            giver.recv(1)
            took = time.monotonic() - began
        thread.join()
    return took


def test_machines_reach_each_other_and_nothing_else(lan: Lan) -> None:
    alice, bob, _ = lan.machines
    assert can_connect(alice, bob)
    with alice.entered(), pytest.raises(OSError, match="unreachable"):
        socket.create_connection(("192.0.2.1", 80), timeout=0.5)
    with socket.socket() as ours, pytest.raises(OSError, match="assign"):
        ours.bind((alice.address, 0))


def test_a_link_carries_what_it_should_and_counts_it(lan: Lan) -> None:
    alice, bob, _ = lan.machines
    for machine in (alice, bob):
        machine.shape(40)
    size = 5_000_000
    before = alice.traffic()
    assert 0.8 < seconds_to_send(alice, bob, size) < 2.0
    assert size < alice.traffic()[1] - before[1] < 1.15 * size
    for machine in (alice, bob):
        machine.shape(None)
    assert seconds_to_send(alice, bob, size) < 0.8


def test_a_partition_cuts_both_ways_until_it_is_healed(lan: Lan) -> None:
    alice, bob, carol = lan.machines
    lan.partition([alice], [bob, carol])
    assert not can_connect(alice, bob)
    assert not can_connect(carol, alice)
    assert can_connect(bob, carol)
    lan.heal([alice], [bob, carol])
    assert can_connect(alice, bob)


def test_loss_is_what_comes_in(lan: Lan) -> None:
    alice, bob, _ = lan.machines
    bob.lose(1.0)
    assert not can_connect(alice, bob)
    bob.lose(0)
    assert can_connect(alice, bob)


def test_only_the_thread_that_enters_is_there(lan: Lan) -> None:
    def place() -> int:
        return os.stat("/proc/thread-self/ns/net").st_ino

    home = place()
    with ThreadPoolExecutor(1) as other:
        assert other.submit(place).result() == home
        with lan["alice"].entered():
            assert place() != home
            assert other.submit(place).result() == home
    assert place() == home


def test_leaving_ends_what_runs_in_the_machines() -> None:
    with open_lan(["alice"]) as lan:
        process = subprocess.Popen([*lan["alice"].prefix, "sleep", "1000"])
        time.sleep(0.1)
    assert process.wait(5) == -9
    assert not list(Path("/run/netns").glob(f"{lan.name}-*"))


def test_what_a_killed_run_left_is_removed_by_the_next() -> None:
    script = (
        "import os, subprocess; from ipfsreg.testing.namespaces import open_lan\n"
        "with open_lan(['alice']) as lan:\n"
        "    subprocess.Popen([*lan['alice'].prefix, 'sleep', '1000'], stdout=subprocess.DEVNULL)\n"
        "    print(lan.name, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    name = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=False).stdout.strip()
    assert list(Path("/run/netns").glob(f"{name}-*"))
    assert any(gone.startswith(f"{name}-") for gone in remove_leftovers())
    assert not list(Path("/run/netns").glob(f"{name}-*"))

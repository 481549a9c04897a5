"""Real daemons under partitions, kills, pauses, loss and wrong clocks: do names keep what docs/consistency.md promises?

    .venv/bin/python bench/histories.py [--minutes 20] [--nodes 5] [--seed N] [--turn 40] [--dir DIR]

Root, on machines that it makes out of network namespaces. In every turn clients push, delete and read tags of a new
repository at all nodes while trouble comes and goes; then everybody is together again, and what clients were told is
held against the tags, logs and DAG of every node (ipfsreg.testing.histories). In the end the nodes are stopped, and
their tables compared with each other and with what the blocks of the DAG add up to. Ends with status 1 and the
findings if a promise was broken; the seed repeats the trouble, not the moments in which it hits.

Clocks are wrong by days, and by others after each restart, where Debian's `faketime` is installed.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx

from ipfsreg.cli.status import NotRunning, ask
from ipfsreg.crdt.delta import node_cid, parse_node
from ipfsreg.crdt.merge import heads_of, state_of
from ipfsreg.datastore import identity_of
from ipfsreg.ipld.block import Block
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.daemons import Cluster, Daemon
from ipfsreg.testing.heartbeat import Heartbeat, wait_beats
from ipfsreg.testing.histories import (
    FIXED,
    OWN,
    History,
    LoggedMove,
    MoveKey,
    Read,
    Shown,
    Write,
    judge,
    moves_below,
)
from ipfsreg.testing.namespaces import Lan, open_lan

INDEX = "application/vnd.oci.image.index.v1+json"
SHARED = ("latest", "1.0", "edge")
FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")
ANSWER_S = 60.0
"""More than any trouble but a kill lasts: who gets no answer for so long has found something."""

START_S = 120.0
STOP_S = 60.0

AGREE_S = 240.0
"""After the trouble; an announcement that nothing else brings is made every 78 s at the latest."""

SKEWS = ("-40d", "-3d", "-1h", "-2s", "+0s", "+2s", "+1h", "+2d", "+400d")


def manifest(number: int, seed: int) -> bytes:
    """An index of nothing, so that one request is one push; none is like another."""
    document = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [], "annotations": {"n": f"{seed}/{number}"}}
    return json.dumps(document).encode()


class Swarm:
    """The daemons, and what happens to them."""

    def __init__(self, cluster: Cluster, lan: Lan, seed: int) -> None:
        self.rng = random.Random(seed)
        self.seed = seed
        self.lan = lan
        self.nodes: dict[str, Daemon] = {}
        self.troubles: Counter[str] = Counter()
        self.findings: list[str] = []
        self.heartbeat = Heartbeat()
        self.heartbeat.start()
        for machine in lan.machines:
            node = cluster.add(
                machine.name,
                list(self.nodes.values()),
                machine,
                IPFSREG_REGISTRY_IMMUTABLE_TAGS=f"*:{FIXED}*",
                IPFSREG_NODE_LOG_LEVEL="warning",
            )
            self.nodes[node.name] = node
        self.peers = {name: str(identity_of(node.config).peer_id) for name, node in self.nodes.items()}
        for name in self.nodes:
            self.start(name)

    def start(self, name: str) -> None:
        """Start a node with a clock that is wrong in a new way."""
        node = self.nodes[name]
        if FAKETIME.exists():
            node.environment |= {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": self.rng.choice(SKEWS),
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        node.start(wait=False)

    def wait_up(self) -> None:
        """Return when all nodes answer."""
        for node in self.nodes.values():
            if not wait_beats(partial(is_up, node), START_S):
                self.findings.append(f"{node.name} does not answer {START_S:.0f} s after its start")

    def note_ends(self) -> None:
        """Find what ended by itself, and what the logs complain of."""
        for name, node in self.nodes.items():
            assert node.process is not None
            if node.process.poll() is not None:
                self.findings.append(f"{name} ended by itself with {node.process.returncode}")
            for line in node.lines:
                if any(word in line for word in (" CRITICAL ", " ERROR ", "Traceback", "Error: ")):
                    self.findings.append(f"{name} says: {line}")

    # -------------------------------------------------------------- trouble

    def trouble(self) -> None:
        """One trouble, from its beginning to its end."""
        names = list(self.nodes)
        kind = self.rng.choice(["partition", "partition", "kill", "kill", "kill all", "pause", "loss", "rest"])
        self.troubles[kind] += 1
        some = self.rng.sample(names, self.rng.randrange(1, len(names)))
        if kind == "partition":
            groups = self._groups(names)
            self.lan.partition(*groups)
            self._sleep(1, 25)
            self.lan.heal(*groups)
        elif kind in ("kill", "kill all"):
            for name in names if kind == "kill all" else some:
                self.nodes[name].kill()
            self._sleep(0, 3)
            for name in names if kind == "kill all" else some:
                self.start(name)
        elif kind == "pause":
            for name in some:
                self.nodes[name].pause()
            self._sleep(1, 20)
            for name in some:
                self.nodes[name].wake()
        elif kind == "loss":
            for name in some:
                self.lan[name].lose(self.rng.choice([0.02, 0.1, 0.3]))
            self._sleep(3, 15)
            for name in some:
                self.lan[name].lose(0)
        self._sleep(0, 6)

    def _groups(self, names: list[str]) -> list[list[Any]]:
        groups: list[list[Any]] = [[] for _ in range(self.rng.choice([2, 2, 3]))]
        for name in self.rng.sample(names, len(names)):
            self.rng.choice(groups).append(self.lan[name])
        return [group for group in groups if group]

    def _sleep(self, least: float, most: float) -> None:
        time.sleep(self.rng.uniform(least, most))


def is_up(node: Daemon) -> bool:
    try:
        with node.inside():
            return httpx.get("http://127.0.0.1:5000/v2/", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


class Caller(threading.Thread):
    """One client: random requests of one kind, one after the other, until it is told to stop."""

    numbers = iter(range(1 << 30))
    _counting = threading.Lock()

    def __init__(self, swarm: Swarm, history: History, repository: str, node: str, kind: str, seed: int) -> None:
        super().__init__()
        self._swarm = swarm
        self._history = history
        self._repository = repository
        self._node = node
        self._kind = kind
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._clients: dict[str, httpx.Client] = {}
        self.refused: Counter[str] = Counter()

    def stop(self) -> None:
        """Send nothing more."""
        self._stopping.set()

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stopping.is_set():
                self._step()
                self._stopping.wait(self._rng.choice([0, 0.02, 0.1, 0.4]))
        finally:
            for client in self._clients.values():
                client.close()

    def _step(self) -> None:
        dice = self._rng.random()
        if self._kind == "own":
            tag = f"{OWN}{self._node}"
        else:
            tag = self._rng.choice([*SHARED, *SHARED, f"{FIXED}{self._rng.randrange(40)}"])
        if dice < 0.45:
            self._push(tag)
        elif dice < 0.6 and not tag.startswith(FIXED):
            self._remove(tag)
        elif dice < 0.8:
            self._read(self._node, tag, None)
        else:
            done = [write for write in list(self._history.writes) if write.heads]
            if done:
                write = self._rng.choice(done[-20:])
                self._read(self._rng.choice(list(self._swarm.nodes)), write.tag, write)

    def _request(self, node: str, method: str, reference: str, **content: Any) -> httpx.Response | None:
        """None: no answer came, and what was asked may have been done."""
        daemon = self._swarm.nodes[node]
        began = time.monotonic()
        with daemon.inside():
            client = self._clients.get(node)
            if client is None:
                client = self._clients[node] = httpx.Client(base_url="http://127.0.0.1:5000", timeout=ANSWER_S)
            try:
                return client.request(method, f"/v2/{self._repository}/manifests/{reference}", **content)
            except httpx.ConnectError:
                time.sleep(0.2)  # it is down
                return httpx.Response(599)
            except httpx.TimeoutException:
                if not self._swarm.heartbeat.stood_still_since(began):
                    self._swarm.findings.append(f"{method} {reference} at {node} had no answer for {ANSWER_S:.0f} s")
                return None
            except httpx.TransportError:
                return None

    def _push(self, tag: str) -> None:
        with Caller._counting:
            number = next(Caller.numbers)
        data = manifest(number, self._swarm.seed)
        began = time.monotonic()
        answer = self._request(self._node, "PUT", tag, content=data, headers={"Content-Type": INDEX})
        self._note(tag, str(Digest.of(data)), began, answer)

    def _remove(self, tag: str) -> None:
        began = time.monotonic()
        self._note(tag, None, began, self._request(self._node, "DELETE", tag))

    def _note(self, tag: str, to: str | None, began: float, answer: httpx.Response | None) -> None:
        ended = time.monotonic()
        if answer is None:
            outcome = "unknown"
        elif answer.is_success:
            outcome = "done"
        else:
            outcome = "refused"
            self.refused[f"{'push' if to else 'delete'} {answer.status_code}"] += 1
        heads = answer.headers.get("Ipfsreg-Heads", "") if answer is not None else ""
        if outcome != "refused" or to is not None:
            self._history.add(Write(self._node, tag, to, began, ended, outcome, heads))

    def _read(self, node: str, tag: str, after: Write | None) -> None:
        headers = {"Ipfsreg-Heads": after.heads} if after else {}
        began = time.monotonic()
        answer = self._request(node, "HEAD", tag, headers=headers)
        ended = time.monotonic()
        if answer is None or answer.status_code not in (200, 404):
            self.refused[f"read {answer.status_code if answer is not None else 'cut off'}"] += 1
            return
        found = answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None
        self._history.add(Read(node, tag, found, began, ended, after))


# ----------------------------------------------------------------------------------- looking afterwards


@contextmanager
def read_tables(node: Daemon) -> Iterator[sqlite3.Connection]:
    """The node's database, for reading only."""
    db = sqlite3.connect(f"file:{node.directory / 'data' / 'node.db'}?mode=ro", uri=True)
    try:
        yield db
    finally:
        db.close()


@dataclass(frozen=True)
class Dag:
    """What a node's tables say of the moves of one repository."""

    places: dict[str, int]
    """In which node of the DAG each history key stands."""
    children: dict[int, list[int]]
    tombstones: dict[str, list[tuple[int, int]]]
    """By the key of a tag: a node whose value is removed, and the node that does so."""


def read_dag(node: Daemon, repository: str) -> Dag:
    with read_tables(node) as db:
        prefix = f"/r/{repository}/_h/"
        rows = db.execute("SELECT key, node FROM crdt_elements WHERE key >= ? AND key < ?", (prefix, prefix + "\x7f"))
        places = dict(rows.fetchall())
        children: dict[int, list[int]] = {}
        for parent, child in db.execute("SELECT parent, child FROM crdt_links"):
            children.setdefault(parent, []).append(child)
        tombstones: dict[str, list[tuple[int, int]]] = {}
        prefix = f"/r/{repository}/_t/"
        for key, removed, by in db.execute(
            "SELECT key, node, by FROM crdt_tombstones WHERE key >= ? AND key < ?", (prefix, prefix + "\x7f")
        ):
            tombstones.setdefault(key, []).append((removed, by))
    return Dag(places, children, tombstones)


def agree(swarm: Swarm) -> bool:
    """Whether all nodes come to have the same heads and to miss nothing."""

    def have_agreed() -> bool:
        try:
            replicas = [ask(node.config)["replica"] for node in swarm.nodes.values()]
        except NotRunning:
            return False  # it stood still
        heads = {tuple(replica["heads"]) for replica in replicas}
        return len(heads) == 1 and not any(replica["tips_wanted"] or replica["nodes_wanted"] for replica in replicas)

    return wait_beats(have_agreed, AGREE_S)


def look(swarm: Swarm, repository: str, tags: list[str]) -> dict[str, Shown]:
    """What every node shows."""
    shown = {}
    for name, node in swarm.nodes.items():
        dag = read_dag(node, repository)
        values: dict[str, str | None] = {}
        logs: dict[str, tuple[LoggedMove, ...]] = {}
        with node.inside(), httpx.Client(base_url="http://127.0.0.1:5000", timeout=ANSWER_S) as client:
            for tag in tags:
                answer = patiently(swarm, client, "GET", f"/v2/{repository}/manifests/{tag}")
                values[tag] = answer.headers["Docker-Content-Digest"] if answer.status_code == 200 else None
                if answer.status_code not in (200, 404):
                    swarm.findings.append(f"{name}: {repository}:{tag} is answered {answer.status_code} {answer.text}")
                logs[tag] = log_of(swarm, node, repository, tag, dag)
                for move in logs[tag]:
                    path = f"/v2/{repository}/manifests/{move.to}"
                    if move.to is not None and patiently(swarm, client, "HEAD", path).status_code != 200:
                        swarm.findings.append(f"{name}: {move.to} is in the log of {tag} and is no manifest here")
        shown[name] = Shown(values, logs)
    return shown


def patiently(swarm: Swarm, client: httpx.Client, method: str, path: str) -> httpx.Response:
    """Ask again where everything stood still meanwhile."""
    while True:
        began = time.monotonic()
        try:
            return client.request(method, path)
        except httpx.TimeoutException:
            if not swarm.heartbeat.stood_still_since(began):
                raise


def ask_patiently(swarm: Swarm, node: Daemon, path: str, fields: dict[str, str]) -> dict[str, Any]:
    """The same at the admin door."""
    while True:
        began = time.monotonic()
        try:
            return ask(node.config, path, fields)
        except NotRunning:
            if not swarm.heartbeat.stood_still_since(began):
                raise


def log_of(swarm: Swarm, node: Daemon, repository: str, tag: str, dag: Dag) -> tuple[LoggedMove, ...]:
    mark = f"/r/{repository}/_h/{tag}/"
    mine = {key[len(mark) :]: place for key, place in dag.places.items() if key.startswith(mark)}
    if not mine:
        return ()
    moves = ask_patiently(swarm, node, "/log", {"repository": repository, "tag": tag})["moves"]
    keys = [(move["when_us"], move["peer"]) for move in moves]
    by_time = {int(suffix.partition("-")[0], 16): place for suffix, place in mine.items()}
    found: dict[MoveKey, int] = {key: by_time[key[0]] for key in keys}
    below = moves_below(found, dag.children)
    at = {place: key for key, place in found.items()}
    removed: dict[MoveKey, set[MoveKey]] = {key: set() for key in keys}
    for push, by in dag.tombstones.get(f"/r/{repository}/_t/{tag}", ()):
        if push in at and by in at:
            removed[at[by]].add(at[push])
    return tuple(
        LoggedMove(
            move["peer"], move["when_us"], move["to"], move["from"], move["step"], below[key], frozenset(removed[key])
        )
        for move, key in zip(moves, keys, strict=True)
    )


def compare_tables(swarm: Swarm) -> None:
    """Of stopped nodes: equal names, and those that the blocks of the DAG add up to."""
    reference: dict[str, bytes] | None = None
    for name, node in swarm.nodes.items():
        with read_tables(node) as db:
            names = dict(db.execute("SELECT key, value FROM crdt_names").fetchall())
            heads = {
                multihash
                for (multihash,) in db.execute("SELECT multihash FROM crdt_nodes JOIN crdt_heads ON node = number")
            }
            known = [multihash for (multihash,) in db.execute("SELECT multihash FROM crdt_nodes WHERE state = 3")]
            (check,) = db.execute("PRAGMA integrity_check").fetchone()
            blocks = {bytes(key): data for key, data in db.execute(BLOCKS)}
        if check != "ok":
            swarm.findings.append(f"{name}: SQLite says {check}")
        nodes = [parse_node(Block.verified(node_cid(multihash), blocks[multihash])) for multihash in known]
        if state_of(nodes) != names:
            swarm.findings.append(f"{name}: the names are not what the blocks of the DAG add up to")
        if heads_of(nodes) != heads:
            swarm.findings.append(f"{name}: the heads are not those of the DAG")
        if reference is None:
            reference = names
            print(f"{len(names):,} names in {len(nodes):,} nodes of the DAG")
        elif names != reference:
            swarm.findings.append(f"{name}: other names than the first node's")


BLOCKS = "SELECT hash, data FROM small_blocks"


def stop(swarm: Swarm, node: Daemon) -> None:
    """SIGTERM, and wait for the end."""
    process = node.process
    assert process is not None
    process.terminate()
    if not wait_beats(lambda: process.poll() is not None, STOP_S):
        swarm.findings.append(f"{node.name} did not stop within {STOP_S:.0f} s")
        node.kill()
    elif process.returncode:
        swarm.findings.append(f"{node.name} ended with {process.returncode}")


def turn(swarm: Swarm, number: int, length_s: float) -> None:
    """Trouble for *length_s*, then peace, then judgement."""
    repository = f"hist/r{number}"
    history = History(swarm.peers)
    callers = [
        Caller(swarm, history, repository, name, kind, swarm.rng.randrange(1 << 30))
        for name in swarm.nodes
        for kind in ("own", "shared", "shared")
    ]
    for caller in callers:
        caller.start()
    until = time.monotonic() + length_s
    try:
        while time.monotonic() < until:
            swarm.trouble()
    finally:
        for caller in callers:
            caller.stop()
        for caller in callers:
            caller.join()
    swarm.wait_up()
    began = time.monotonic()
    if not agree(swarm):
        swarm.findings.append(f"turn {number}: the nodes did not agree within {AGREE_S:.0f} s")
        return
    agreed_s = time.monotonic() - began
    tags = sorted({write.tag for write in history.writes})
    verdict = judge(history, look(swarm, repository, tags))
    swarm.findings += [f"turn {number}: {finding}" for finding in verdict.findings]
    swarm.note_ends()
    outcomes = Counter(write.outcome for write in history.writes)
    refused = sum((caller.refused for caller in callers), Counter[str]())
    print(
        f"turn {number}: {outcomes['done']} writes done, {outcomes['unknown']} unknown, {len(history.reads)} reads, "
        f"agreed after {agreed_s:.1f} s, {verdict.early} of {len(tags)} tags moved while catching up; "
        f"refused {dict(refused)}; {len(swarm.findings)} findings",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--nodes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--turn", type=float, default=40, help="seconds of trouble before all is judged")
    parser.add_argument("--dir", type=Path, default=None, help="where the nodes lie; kept if something was found")
    options = parser.parse_args()
    print(f"seed {options.seed}, {options.nodes} nodes, clocks {'wrong' if FAKETIME.exists() else 'right'}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the nodes end with us
    directory = Path(tempfile.mkdtemp(dir=options.dir, prefix="histories-"))
    until = time.monotonic() + options.minutes * 60
    names = [f"n{number}" for number in range(options.nodes)]
    with open_lan(names) as lan, Cluster(directory) as cluster:
        swarm = Swarm(cluster, lan, options.seed)
        swarm.wait_up()
        number = 0
        while time.monotonic() < until and not swarm.findings:
            number += 1
            turn(swarm, number, options.turn)
        for node in swarm.nodes.values():
            stop(swarm, node)
        compare_tables(swarm)
    print(f"{number} turns, troubles {dict(swarm.troubles)}")
    for finding in swarm.findings[:100]:
        print("FINDING", finding)
    if swarm.findings:
        for node in swarm.nodes.values():
            (directory / f"{node.name}.log").write_text("\n".join(node.lines))
        print(f"{len(swarm.findings)} findings; the nodes' data is in {directory}")
        sys.exit(1)
    shutil.rmtree(directory)
    print("every promise kept")


if __name__ == "__main__":
    main()

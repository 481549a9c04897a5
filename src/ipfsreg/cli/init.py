"""`ipfsreg init`: a directory with everything one node needs to start."""

from __future__ import annotations

import json
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ipfsreg.config import load_config
from ipfsreg.config_checks import parse_host_port
from ipfsreg.datastore import identity_of
from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.p2p.pnet import PSK_BYTES, format_swarm_key, parse_swarm_key
from ipfsreg.peer_id import PeerId

FIRST_PEER_PORT = 4619
FIRST_HTTP_PORT = 5000
PORTS_TRIED = 100

_NODE_TOML = """\
# One ipfsreg node. Every key is optional and can also come from the environment
# (IPFSREG_P2P_LISTEN_ADDRS=…). What each of them means: docs/configuration.md.

[node]
datastore_path = {datastore}
log_level = "info"                # debug, info, warning, error

[p2p]
# Where other nodes reach this one. The daemon prints each in full when it starts.
listen_addrs = [{listen}]
# Nodes of the swarm to enter it by, each with its /p2p/<peer ID>.
bootstrappers = [{bootstrappers}]
# Find nodes with the same swarm key on this LAN by multicast DNS, without bootstrappers.
mdns = false
# The swarm's pre-shared key: who has this file is in. Copy it to the other nodes, keep it secret.
protector_key = {swarm_key}

[crdt]
# Nodes replicate names with whoever is in this topic of the same swarm.
pubsub_topic = "ipfs-registry"
# Peer IDs whose writes are taken; "*" is everybody who has the swarm key.
trusted_peers = ["*"]

# Without this the store may fill the disk but for a reserve. With it what was only pulled through this node, and other
# nodes have, makes room for what is pulled next.
# [store]
# max_bytes = 100_000_000_000

[http]
# Where docker, podman, containerd and skopeo reach the registry. On loopback it needs no more. For a network:
# a certificate, and passwords below. `http://` or `https://` before an address says which of the two it speaks.
listen = [{http}]
# tls_certificate = "/etc/ipfsreg/tls.crt"
# tls_key = "/etc/ipfsreg/tls.key"

# Without this section everybody who reaches the registry may push and delete.
# [auth]
# htpasswd = "/etc/ipfsreg/htpasswd"      # ipfsreg passwd FILE USER
# anonymous_pull = true
# admins = ["root"]

# Who may do what: the first that fits a repository decides. None at all: whoever has logged in, everything.
# [[auth.rules]]
# repositories = "team-a/*"
# pull = ["*"]
# push = ["alice"]
# delete = ["alice"]

# [audit]
# path = "/var/log/ipfsreg/audit.jsonl"
"""


@dataclass(frozen=True, slots=True)
class Initialised:
    """What was written."""

    config: Path
    swarm_key: Path
    peer_id: PeerId


def initialise(
    directory: Path, *, joins: Sequence[str], swarm_key: Path | None, listen: str | None, http: str | None
) -> Initialised:
    """Write node.toml, swarm.key and an identity into *directory*; nothing that exists is overwritten.

    Raises:
        ConfigError: there is a node already, the directory cannot be written, or an argument is not what it should be.
            Then no file of ours is left there.
    """
    if joins and swarm_key is None:
        right = "needs --swarm-key FILE, the swarm.key of that node: with a new one nobody there would answer"
        raise ConfigError("--join", joins[0], right)
    directory = directory.absolute()
    config_path, key_path = directory / "node.toml", directory / "swarm.key"
    if swarm_key is not None:
        _check_swarm_key(swarm_key)
    written: list[Path] = []
    try:
        _check_free(config_path, None)
        _check_free(key_path, swarm_key)
        listen = listen or f"/ip4/0.0.0.0/tcp/{_free_port('0.0.0.0', FIRST_PEER_PORT)}"  # noqa: S104 - peers come from anywhere
        http = http or f"127.0.0.1:{_free_port('127.0.0.1', FIRST_HTTP_PORT)}"
        parse_host_port("--http", http)
        directory.mkdir(parents=True, exist_ok=True)
        if not key_path.exists():
            key = format_swarm_key(secrets.token_bytes(PSK_BYTES)) if swarm_key is None else swarm_key.read_bytes()
            written.append(key_path)
            _write_new(key_path, key, 0o600)
        text = _NODE_TOML.format(
            datastore=_quote(str(directory / "data")),
            listen=_quote(listen),
            bootstrappers=", ".join(map(_quote, joins)),
            swarm_key=_quote(str(key_path)),
            http=_quote(http),
        )
        written.append(config_path)
        _write_new(config_path, text.encode(), 0o644)
        return Initialised(config_path, key_path, identity_of(load_config(config_path, {})).peer_id)
    except (ConfigError, OSError) as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ConfigError("--dir", str(directory), f"cannot be written: {error.strerror}") from None
        raise


def _check_free(path: Path, source: Path | None) -> None:
    if path.exists() and not (source and path.samefile(source)):
        raise ConfigError("--dir", str(path.parent), f"{path.name} exists already; choose another directory")


def _check_swarm_key(path: Path) -> None:
    try:
        parse_swarm_key(path.read_bytes())
    except OSError as error:
        raise ConfigError("--swarm-key", str(path), f"cannot be read: {error.strerror}") from None
    except MalformedData as error:
        raise ConfigError("--swarm-key", str(path), str(error)) from None


def _quote(text: str) -> str:
    """*text* as a TOML string: what JSON escapes, TOML reads the same way."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _write_new(path: Path, data: bytes, mode: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        file.write(data)


def _free_port(host: str, first: int) -> int:
    """The first port from *first* on that nothing listens at now, so that several nodes on one machine just start."""
    for port in range(first, first + PORTS_TRIED):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return port
    raise ConfigError("--http", f"{host}:{first}", f"no free port in the {PORTS_TRIED} from {first} on; give one")

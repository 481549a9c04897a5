"""One node in this process: what its datastore holds, what it refuses, and what ends it."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest
import trio

from ipfsreg.cli.status import ask
from ipfsreg.config import Config, load_config
from ipfsreg.datastore import admin_socket_of, identity_of, psk_of
from ipfsreg.errors import AlreadyRunning, ConfigError, StoreDamaged
from ipfsreg.node import open_node
from ipfsreg.testing.http_client import connect_http


def config_of(datastore: Path, **environment: str) -> Config:
    values = {
        "NODE_DATASTORE_PATH": str(datastore),
        "P2P_PROTECTOR_KEY": "ab" * 32,
        "P2P_LISTEN_ADDRS": "/ip4/127.0.0.1/tcp/0",
        "HTTP_LISTEN": "127.0.0.1:0",
        **environment,
    }
    return load_config(None, {f"IPFSREG_{name}": value for name, value in values.items()})


def only_failure(error: BaseException) -> BaseException:
    """What a part said, out of the nurseries it failed in."""
    while isinstance(error, BaseExceptionGroup):
        assert len(error.exceptions) == 1
        error = error.exceptions[0]
    return error


# ------------------------------------------------------------------------------------- identity


def test_an_identity_is_made_once_and_kept_to_the_owner(tmp_path: Path) -> None:
    config = config_of(tmp_path / "data")
    first = identity_of(config)
    assert identity_of(config).peer_id == first.peer_id
    assert os.listdir(tmp_path / "data") == ["identity.key"]
    assert (tmp_path / "data" / "identity.key").stat().st_mode & 0o777 == 0o600


def test_a_key_in_the_configuration_wins_and_leaves_no_file(tmp_path: Path) -> None:
    text = (tmp_path / "other").joinpath("identity.key")
    other = identity_of(config_of(tmp_path / "other"))
    assert identity_of(config_of(tmp_path / "data", NODE_PRIVATE_KEY=text.read_text())).peer_id == other.peer_id
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", "é".encode(), b"AAAA", b"not base64"])
def test_a_damaged_identity_is_told_and_never_replaced(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"identity\.key.*not the base64 of a libp2p Ed25519 private key"):
        identity_of(config_of(tmp_path))
    assert path.read_bytes() == content


@pytest.mark.parametrize("text", ["é", "AAAA", "%"])
def test_a_private_key_that_is_none_is_told_without_being_shown(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"node\.private_key = '…'"):
        identity_of(config_of(tmp_path, NODE_PRIVATE_KEY=text))


@pytest.mark.parametrize("text", ["ab" * 31, "zz" * 32, "/nowhere/swarm.key", "/", "/dev/zero"])
def test_a_protector_key_that_is_none_is_told(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match=r"p2p\.protector_key"):
        psk_of(config_of(tmp_path, P2P_PROTECTOR_KEY=text))


# ---------------------------------------------------------------------------------------- start


async def test_a_node_answers_its_operator_however_long_its_path_is(tmp_path: Path) -> None:
    config = config_of(tmp_path / ("x" * 120))
    async with open_node(config) as node:
        status = await trio.to_thread.run_sync(ask, config)
        assert status["peer_id"] == str(node.host.peer_id)
        assert status["gossip"]["peers"] == status["gossip"]["dropped"] == 0
    assert not admin_socket_of(config).exists()


async def test_a_node_listens_on_ipv6(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ipfsreg")
    async with open_node(config_of(tmp_path, P2P_LISTEN_ADDRS="/ip6/::1/tcp/0", HTTP_LISTEN="[::1]:0")) as node:
        (place,) = [line.split("http://")[1] for line in caplog.messages if "registry at" in line]
        async with connect_http(place) as client:
            assert (await client.request("GET", "/v2/")).status == 200
        assert [addr.rsplit("/", 1)[0] for addr in node.host.listen_addrs()] == ["/ip6/::1/tcp"]


async def test_a_second_node_on_the_datastore_is_refused(tmp_path: Path) -> None:
    async with open_node(config_of(tmp_path)):
        with pytest.raises(AlreadyRunning, match=f"process {os.getpid()}"):
            async with open_node(config_of(tmp_path)):
                pass


async def test_a_taken_http_port_is_told_before_anything_is_waited_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "ipfsreg")
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(AlreadyRunning, match=place):
            async with open_node(config_of(tmp_path, HTTP_LISTEN=place)):
                pass
    assert not caplog.messages, "not even the datastore was opened"


async def test_a_database_that_is_none_is_named_and_left_alone(tmp_path: Path) -> None:
    garbage = os.urandom(20_000)
    (tmp_path / "node.db").write_bytes(garbage)
    with pytest.raises(StoreDamaged, match=str(tmp_path / "node.db")):
        async with open_node(config_of(tmp_path)):
            pass
    assert (tmp_path / "node.db").read_bytes() == garbage


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("P2P_LISTEN_ADDRS", "/ip4/127.0.0.1/udp/4619/quic-v1", r"p2p\.listen_addrs = .*tcp/<port>"),
        ("P2P_LISTEN_ADDRS", "/ip4/192.0.2.77/tcp/4619", r"p2p\.listen_addrs = '/ip4/192.0.2.77/tcp/4619'"),
        ("HTTP_LISTEN", "192.0.2.77:5000", r"http\.listen = '192.0.2.77:5000'"),
        ("HTTP_TLS_KEY", "/nowhere/tls.key", r"http\.tls_certificate = '': a certificate and its key belong together"),
        ("CRDT_TRUSTED_PEERS", "somebody", r"crdt\.trusted_peers = \['somebody'\]: peer IDs"),
        ("CRDT_CHECKPOINT_PEERS", "somebody", r"crdt\.checkpoint_peers = 'somebody': a peer ID"),
        ("NODE_PRIVATE_KEY", "AAAA", r"node\.private_key"),
        ("NODE_DATASTORE_PATH", "/etc/passwd", r"node\.datastore_path = '/etc/passwd': must be a directory"),
        ("CRDT_TRUSTED_PEERS", "bob", r"crdt\.trusted_peers = .*: 'bob' is not a peer ID"),
        ("NODE_DATASTORE_PATH", "/proc/nowhere", r"node\.datastore_path = '/proc/nowhere': cannot be created"),
    ],
)
async def test_what_does_not_work_on_this_machine_is_told_by_its_key(
    tmp_path: Path, key: str, value: str, told: str
) -> None:
    config = config_of(tmp_path, **{key: value})
    with pytest.raises((ConfigError, BaseExceptionGroup)) as raised:
        async with open_node(config):
            pass
    error = only_failure(raised.value)
    assert isinstance(error, ConfigError)
    with pytest.raises(ConfigError, match=told):
        raise error


async def test_a_node_that_names_itself_as_bootstrapper_starts(tmp_path: Path) -> None:
    me = identity_of(config_of(tmp_path)).peer_id
    async with open_node(config_of(tmp_path, P2P_BOOTSTRAPPERS=f"/ip4/127.0.0.1/tcp/1/p2p/{me}")) as node:
        assert node.redial.states() == []

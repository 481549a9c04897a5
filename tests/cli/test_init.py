"""`ipfsreg init`: what it writes, and what it leaves behind when it cannot."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from ipfsreg.cli.init import Initialised, initialise
from ipfsreg.config import load_config
from ipfsreg.datastore import identity_of, psk_of
from ipfsreg.errors import ConfigError

PEER = "12D3KooWEZ4BxLMHaBzmMbCRAkbkD77nYwwmdLVe8F5DLKEsMZAV"


def init(
    directory: Path, *joins: str, swarm_key: Path | None = None, listen: str | None = None, http: str | None = None
) -> Initialised:
    return initialise(directory, joins=joins, swarm_key=swarm_key, listen=listen, http=http)


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.rglob("*") if path.is_file()) if directory.exists() else []


def test_a_new_node_has_a_configuration_a_swarm_key_and_an_identity(tmp_path: Path) -> None:
    made = init(tmp_path / "a")
    config = load_config(made.config, {})
    assert files(tmp_path) == ["identity.key", "node.toml", "swarm.key"]
    assert identity_of(config).peer_id == made.peer_id
    assert config.is_private
    for secret in (made.swarm_key, tmp_path / "a" / "data" / "identity.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_a_second_node_joins_with_the_key_of_the_first(tmp_path: Path) -> None:
    first = init(tmp_path / "a")
    second = init(tmp_path / "b", f"/ip4/127.0.0.1/tcp/4619/p2p/{first.peer_id}", swarm_key=first.swarm_key)
    config = load_config(second.config, {})
    assert config.bootstrappers == (f"/ip4/127.0.0.1/tcp/4619/p2p/{first.peer_id}",)
    assert psk_of(config) == psk_of(load_config(first.config, {}))
    assert second.peer_id != first.peer_id


def test_a_swarm_key_that_lies_in_the_directory_already_may_be_given(tmp_path: Path) -> None:
    key = tmp_path / "a" / "swarm.key"
    key.parent.mkdir()
    key.write_bytes(init(tmp_path / "other").swarm_key.read_bytes())
    before = key.read_bytes()
    assert init(tmp_path / "a", swarm_key=key).swarm_key == key
    assert key.read_bytes() == before


def test_a_directory_with_quotes_and_line_ends_in_its_name_is_taken(tmp_path: Path) -> None:
    directory = tmp_path / 'a "quoted" \\ name\nof two lines\x7f'
    assert load_config(init(directory).config, {}).node.datastore_path == str(directory / "data")


@pytest.mark.parametrize(
    ("joins", "listen", "http", "told"),
    [
        (["/ip4/192.0.2.1/tcp/4619"], None, None, "must end in /p2p/"),
        ([], "0.0.0.0:4619", None, "not a multiaddr"),
        ([], None, "5000", "--http = '5000': an address and a port"),
    ],
)
def test_a_wrong_argument_leaves_nothing_in_the_way_of_a_right_one(
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    joins: list[str],
    listen: str | None,
    http: str | None,
    told: str,
) -> None:
    key = init(tmp_path_factory.mktemp("other")).swarm_key
    with pytest.raises(ConfigError, match=told):
        init(tmp_path / "a", *joins, swarm_key=key, listen=listen, http=http)
    assert files(tmp_path) == []
    init(tmp_path / "a", f"/ip4/192.0.2.1/tcp/4619/p2p/{PEER}", swarm_key=key)


def test_nobody_joins_a_swarm_with_a_new_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--join .*needs --swarm-key FILE"):
        init(tmp_path / "a", f"/ip4/192.0.2.1/tcp/4619/p2p/{PEER}")
    assert files(tmp_path) == []


@pytest.mark.parametrize("name", ["node.toml", "swarm.key"])
def test_nothing_that_exists_is_overwritten(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"{name} exists already"):
        init(tmp_path)
    assert (tmp_path / name).read_text() == "mine"
    assert files(tmp_path) == [name]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--dir.*cannot be written: Not a directory"):
        init(tmp_path / "file" / "a")


def test_a_swarm_key_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("secret")
    with pytest.raises(ConfigError, match="begins with the line"):
        init(tmp_path / "a", swarm_key=tmp_path / "key")
    assert not (tmp_path / "a").exists()

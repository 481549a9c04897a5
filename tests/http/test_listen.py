"""Places to listen on."""

import socket
import stat
from pathlib import Path

import pytest

from ipfsreg.errors import AlreadyRunning, ConfigError
from ipfsreg.http.listen import close_listener, open_listeners, place_of


@pytest.mark.parametrize("place", ["5000", "localhost", "127.0.0.1:http", "127.0.0.1:70000", "no.such.host.invalid:1"])
async def test_what_is_no_place_is_named(place: str) -> None:
    with pytest.raises(ConfigError) as error:
        await open_listeners([place])
    assert repr(place) in str(error.value)


async def test_an_address_of_another_machine_is_named() -> None:
    with pytest.raises(ConfigError):
        await open_listeners(["192.0.2.1:0"])


async def test_a_port_in_use_is_told_and_nothing_stays_open() -> None:
    (first,) = await open_listeners(["127.0.0.1:0"])
    with pytest.raises(AlreadyRunning):
        await open_listeners(["127.0.0.1:0", place_of(first)])
    close_listener(first)


async def test_an_empty_host_is_every_address() -> None:
    listeners = await open_listeners([":0"])
    assert listeners
    for listener in listeners:
        close_listener(listener)


async def test_a_unix_socket_is_its_owners_alone_and_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    (listener,) = await open_listeners([f"unix:{path}"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert place_of(listener) == f"unix:{path}"
    close_listener(listener)
    assert not path.exists()


async def test_a_unix_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
        dead.listen()
    (listener,) = await open_listeners([f"unix:{path}"])
    close_listener(listener)


async def test_a_unix_socket_in_use_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    (listener,) = await open_listeners([f"unix:{path}"])
    with pytest.raises(AlreadyRunning):
        await open_listeners([f"unix:{path}"])
    close_listener(listener)


async def test_a_file_that_is_no_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "admin.sock"
    path.write_text("mine")
    with pytest.raises(ConfigError):
        await open_listeners([f"unix:{path}"])
    assert path.read_text() == "mine"

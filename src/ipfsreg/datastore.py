"""What lies in the datastore beside the store: the identity, the lock, the operator's socket; and the swarm's key."""

from __future__ import annotations

import base64
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ipfsreg.config import Config
from ipfsreg.errors import AlreadyRunning, ConfigError, MalformedData
from ipfsreg.p2p.identity import Identity
from ipfsreg.p2p.pnet import MAX_SWARM_KEY_BYTES, PSK_BYTES, parse_swarm_key


def admin_socket_of(config: Config) -> Path:
    """Where the node on this datastore answers its operator."""
    return Path(config.node.datastore_path) / "admin.sock"


def identity_of(config: Config) -> Identity:
    """The node's identity: the configured key, or the datastore's, made on first use.

    Raises:
        ConfigError: a key that is none, or a datastore that cannot be written.
    """
    if config.node.private_key:
        return _read_key("node.private_key", config.node.private_key, shown="…")
    path = Path(config.node.datastore_path) / "identity.key"
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _make_identity(path)
        return _read_key(str(path), path.read_bytes(), shown="…")
    except OSError as error:
        right = f"a directory that can be read and written: {error.strerror}"
        raise ConfigError("node.datastore_path", str(path.parent), right) from None


def _make_identity(path: Path) -> None:
    """Write a new identity, all of it or nothing; one that another process makes just now is left alone."""
    beside = path.with_suffix(f".{os.getpid()}")
    try:
        with os.fdopen(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(base64.b64encode(Identity.generate().to_protobuf()) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(beside, path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links
            beside.rename(path)
    finally:
        beside.unlink(missing_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _read_key(key: str, text: str | bytes, shown: str) -> Identity:
    try:
        return Identity.from_protobuf(base64.b64decode(text.strip(), validate=True))
    except (ValueError, MalformedData) as error:
        raise ConfigError(key, shown, f"not the base64 of a libp2p Ed25519 private key: {error}") from None


def psk_of(config: Config) -> bytes | None:
    """The swarm's key: hex digits or a swarm.key file. Raises ConfigError; its text never shows the key."""
    text = config.p2p.protector_key
    if not text:
        return None
    if len(text) == 2 * PSK_BYTES and not Path(text).exists():
        try:
            return bytes.fromhex(text)
        except ValueError:
            raise ConfigError("p2p.protector_key", "…", "64 hex digits, or the path of a swarm.key file") from None
    try:
        with open(text, "rb") as file:
            return parse_swarm_key(file.read(MAX_SWARM_KEY_BYTES + 1))
    except OSError as error:
        right = f"64 hex digits, or the path of a swarm.key file ({error.strerror})"
        raise ConfigError("p2p.protector_key", text if "/" in text else "…", right) from None
    except MalformedData as error:
        raise ConfigError("p2p.protector_key", text, f"is not a swarm.key file: {error}") from None


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except (FileExistsError, NotADirectoryError):
        raise ConfigError("node.datastore_path", str(path), "must be a directory, and there is a file") from None
    except OSError as error:
        raise ConfigError("node.datastore_path", str(path), f"cannot be created: {error.strerror}") from None


@contextmanager
def alone_on(directory: Path) -> Iterator[None]:
    """Be the only process on this datastore. The lock goes with the process, however that ends."""
    _make_directory(directory)
    try:
        descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError("node.datastore_path", str(directory), f"cannot be written: {error.strerror}") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise AlreadyRunning(f"another ipfsreg (process {holder}) runs on the datastore {directory}") from None
        # Only told to whoever is refused: no reason not to start on a full disk.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)

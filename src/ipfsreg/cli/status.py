"""What the running node says and does through its admin door: `ipfsreg status`, `log`, `rollback`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from ipfsreg.config import Config
from ipfsreg.datastore import admin_socket_of
from ipfsreg.errors import IpfsregError
from ipfsreg.http.listen import short_path

TIMEOUT_S = 10.0


class NotRunning(IpfsregError):
    """No node answers at the admin door."""


class Refused(IpfsregError):
    """The node says why not."""


def ask(config: Config, path: str = "/status", fields: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Ask the node that runs on *config*'s datastore.

    Raises:
        NotRunning: none does.
        Refused: what is asked for is not there.
    """
    return _exchange(config, "GET", path, params=fields)


def tell(config: Config, path: str, fields: Mapping[str, str], *, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """Let that node do something. Raises as `ask`; when it raises `Refused`, nothing was done."""
    return _exchange(config, "POST", path, timeout_s=timeout_s, json=dict(fields))


def _exchange(
    config: Config, method: str, path: str, *, timeout_s: float = TIMEOUT_S, **content: Any
) -> dict[str, Any]:
    door = admin_socket_of(config)
    try:
        with (
            short_path(door) as socket,
            httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=timeout_s) as client,
        ):
            response = client.request(method, f"http://admin{path}", **content)
            answer = response.json()
            if response.status_code == 400:
                raise Refused(answer["error"])
            response.raise_for_status()
    except (httpx.HTTPError, OSError) as error:
        raise NotRunning(f"no running node answers at {door}: {error}") from error
    assert isinstance(answer, dict)
    return answer


def describe(answer: dict[str, Any]) -> str:
    """*answer* for a person, a line a fact."""
    rows = [
        ("peer ID", answer["peer_id"]),
        ("version", answer["version"]),
        ("up", f"{answer['up_s']:.0f} s"),
        ("swarm", "private" if answer["private"] else "public"),
        ("replica", "ready" if answer["replica"]["ready"] else "catching up"),
        ("heads", f"{len(answer['replica']['heads'])} at height {answer['replica']['height']}"),
        ("repositories", answer["repositories"]),
        ("tags", answer["tags"]),
        ("blobs", f"{answer['blobs']}, {human_bytes(answer['bytes'])}"),
        ("room", describe_room(answer["room"])),
        ("peers", len(answer["peers"])),
    ]
    lines = [f"{name:<13} {value}" for name, value in rows]
    if answer["damage"]:
        lines.append(f"DAMAGED       {answer['damage']}")
    lines += [f"  {peer['peer_id']}  {peer['addr']}" for peer in answer["peers"]]
    lines += [f"  bootstrapper {one['addr']}: {one['state']}" for one in answer["bootstrappers"]]
    return "\n".join(lines)


def describe_room(room: dict[str, Any] | None) -> str:
    """How full the store is, for a person."""
    if room is None:
        return "not known"
    limit = f"of {human_bytes(room['limit'])} " if room["limit"] else ""
    text = f"{human_bytes(room['used'])} {limit}used, {human_bytes(room['pulled'])} of it pulled"
    if room["evicted_blobs"]:
        text += f"; {room['evicted_blobs']} blobs, {human_bytes(room['evicted_bytes'])}, went to make room"
    return text


def human_bytes(count: int) -> str:
    """*count* bytes, in the largest unit that gives at least one."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def describe_epoch(answer: dict[str, Any]) -> str:
    """The epoch of a node for a person, a line a fact."""
    missing = answer["tips_wanted"] or answer["nodes_wanted"]
    rows = [
        ("epoch", f"{answer['epoch']}, {'sealed' if answer['sealed'] else 'open'}"),
        ("topic", answer["topic"]),
        ("heads", ", ".join(answer["heads"]) or "none"),
        ("missing", f"{answer['tips_wanted']} heads, {answer['nodes_wanted']} nodes" if missing else "nothing"),
        ("names", answer["names"]),
        ("next head", answer["next_head"] or "none: there are no names"),
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in rows)

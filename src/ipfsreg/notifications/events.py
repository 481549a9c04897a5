"""PURE: registry events as distribution writes them, so that what listens to one can listen to the other.

Format: distribution's "Work with notifications", media type `application/vnd.docker.distribution.events.v2+json`: an
envelope with a list of events, each with `id`, `timestamp`, `action`, `target`, `request`, `actor` and `source`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import msgspec

MEDIA_TYPE = "application/vnd.docker.distribution.events.v2+json"

Action = Literal["push", "pull", "mount", "delete"]

MAX_TEXT_CHARACTERS = 512
"""Of what a client said of itself."""

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}", re.ASCII)
_encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What something happened to. Of a deletion only its names are known."""

    repository: str
    digest: str = ""
    media_type: str = ""
    size: int | None = None
    tag: str = ""
    from_repository: str = ""
    """Where a mounted blob came from."""
    is_manifest: bool = False


@dataclass(frozen=True, slots=True)
class Asked:
    """The request that brought it about; all empty where none of this node did."""

    id: str = ""
    peer: str = ""
    host: str = ""
    method: str = ""
    user_agent: str = ""
    secure: bool = False


@dataclass(frozen=True, slots=True)
class Source:
    """The node that tells."""

    addr: str
    instance_id: str
    """Another one after each start."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened."""

    id: str
    """Unique; the same however often it is delivered."""
    when_us: int
    """Microseconds since 1970."""
    action: Action
    target: Target
    actor: str = ""
    asked: Asked = field(default_factory=Asked)

    def encode(self, source: Source) -> bytes:
        """As one element of an envelope."""
        return _encode(
            {
                "id": self.id,
                "timestamp": datetime.fromtimestamp(self.when_us / 1e6, UTC).isoformat().replace("+00:00", "Z"),
                "action": self.action,
                "target": _target(self.target, self.asked),
                "request": _kept(
                    {
                        "id": self.asked.id,
                        "addr": self.asked.peer,
                        "host": _cut(self.asked.host),
                        "method": self.asked.method,
                        "useragent": _cut(self.asked.user_agent),
                    }
                ),
                "actor": _kept({"name": _cut(self.actor)}),
                "source": {"addr": source.addr, "instanceID": source.instance_id},
            }
        )


def _target(target: Target, asked: Asked) -> Mapping[str, Any]:
    url = ""
    if target.size is not None and _HOST.fullmatch(asked.host):
        kind = "manifests" if target.is_manifest else "blobs"
        scheme = "https" if asked.secure else "http"
        url = f"{scheme}://{asked.host}/v2/{target.repository}/{kind}/{target.digest}"
    return _kept(
        {
            "mediaType": target.media_type,
            "size": target.size,
            "digest": target.digest,
            "length": target.size,
            "repository": target.repository,
            "fromRepository": target.from_repository,
            "url": url,
            "tag": target.tag,
        }
    )


def _kept(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value not in ("", None)}


def _cut(text: str) -> str:
    # Bytes of a header that are no characters came as surrogates, which JSON cannot hold.
    return text[:MAX_TEXT_CHARACTERS].encode("utf-8", "replace").decode()


def envelope(events: Sequence[bytes]) -> bytes:
    """The body of one delivery."""
    return b'{"events":[' + b",".join(events) + b"]}"

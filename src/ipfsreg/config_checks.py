"""What a configuration's values may be. Raises ConfigError, naming the key, the value and what would be right.

Types and names of keys are checked where the file is read (config.py); what is checked here is what a type cannot say.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from ipfsreg.errors import ConfigError

if TYPE_CHECKING:
    from ipfsreg.config import AuthConfig, Config, EndpointConfig, HttpConfig, IssuerConfig, TracingConfig

DEFAULT_TOPIC = "ipfs-registry"
"""For private swarms; on the public network it is refused."""

LEAST_UPLOAD = 65_536
"""Bytes per second. With less a block of a mebibyte takes longer than a peer waits for it."""


def check(config: Config) -> None:
    """What the types alone cannot say."""
    for name in ("listen_addrs", "announce_addrs"):
        for addr in getattr(config.p2p, name):
            _check_multiaddr(f"p2p.{name}", addr, "/ip4/0.0.0.0/tcp/4619")
    for addr in config.p2p.bootstrappers or ():
        _check_multiaddr("p2p.bootstrappers", addr, "/ip4/192.0.2.1/tcp/4619/p2p/12D3KooW…")
        if addr.split("/")[-2] != "p2p":
            raise ConfigError("p2p.bootstrappers", addr, "must end in /p2p/<peer ID>, as the other node prints it")
    if not config.http.listen:
        raise ConfigError("http.listen", [], 'at least one address and port, as ["127.0.0.1:5000"]')
    _check_listen(config.http)
    _check_auth(config.auth)
    for key, low, high in (("requests_per_s", 0, 1e6), ("requests_burst", 1, 1e6), ("requests_at_once", 0, 1e6)):
        value = getattr(config.http, key)
        if not low <= value <= high:
            raise ConfigError(f"http.{key}", value, f"a number from {low} to {high:.0f}")
    if "\0" in config.audit.path:
        raise ConfigError("audit.path", config.audit.path, "the path of a file")
    places = {parse_host_port("http.listen", split_place(address)) for address in config.http.listen}
    for address in config.metrics.listen:
        place = parse_host_port("metrics.listen", address)
        if place in places and place[1]:
            raise ConfigError(
                "metrics.listen", address, "is where clients come already (http.listen): choose another port"
            )
    for pattern in config.registry.immutable_tags:
        if not re.search(r"[:*?\[]", pattern):
            raise ConfigError("registry.immutable_tags", pattern, 'fits no tag; a pattern is as "team-a/*:v*"')
    _check_endpoints(config.notifications.endpoints)
    _check_tracing(config.tracing)
    if "\0" in config.access_log.path:
        raise ConfigError("access_log.path", config.access_log.path, "the path of a file")
    for key in ("patience_s", "give_up_s"):
        value = getattr(config.fetch, key)
        if not 0 < value <= 86400:
            raise ConfigError(f"fetch.{key}", value, "seconds above 0 and at most 86400")
    for quota in config.registry.quotas:
        if quota.max_bytes < 0:
            raise ConfigError("registry.quotas.max_bytes", quota.max_bytes, "a whole number of bytes from 0 on")
    for key in ("reserve_bytes", "max_bytes", "max_uploads", "max_upload_bytes"):
        if not 0 <= getattr(config.store, key) < 1 << 60:
            raise ConfigError(f"store.{key}", getattr(config.store, key), "a whole number from 0 on")
    if not 1 <= config.store.evict_copies <= 16:
        right = "how many other nodes must have a blob, from 1 to 16"
        raise ConfigError("store.evict_copies", config.store.evict_copies, right)
    if not 60 <= config.store.upload_expiry_s <= 31_536_000:
        raise ConfigError("store.upload_expiry_s", config.store.upload_expiry_s, "seconds from 60 to 31536000, a year")
    limit = config.fetch.upload_bytes_per_s
    if limit and not LEAST_UPLOAD <= limit <= 2**40:
        right = f"0 for no limit, or bytes a second from {LEAST_UPLOAD} to {2**40}"
        raise ConfigError("fetch.upload_bytes_per_s", limit, right)
    for key in ("interval_s", "grace_s", "blob_grace_s"):
        value = getattr(config.gc, key)
        if not 0 <= value <= 31_536_000:
            raise ConfigError(f"gc.{key}", value, "seconds from 0 to 31536000, which is a year")
    if not 0 <= config.registry.wait_heads_s <= 3600:
        raise ConfigError("registry.wait_heads_s", config.registry.wait_heads_s, "seconds from 0 to 3600")
    for key in ("drain_s", "unready_s"):
        value = getattr(config.node, key)
        if not 0 <= value <= 3600:
            raise ConfigError(f"node.{key}", value, "seconds from 0 to 3600")
    if not config.node.datastore_path or "\0" in config.node.datastore_path:
        raise ConfigError("node.datastore_path", config.node.datastore_path, "must be a directory")
    if "\0" in config.p2p.protector_key:
        raise ConfigError("p2p.protector_key", "…", "64 hex digits, or the path of a swarm.key file")
    if not 1 <= config.crdt.epoch <= 1_000_000:
        raise ConfigError("crdt.epoch", config.crdt.epoch, "a number from 1 to 1000000")
    topic = config.crdt.pubsub_topic
    if not 0 < len(topic.encode()) <= 255:
        raise ConfigError("crdt.pubsub_topic", topic, "1 to 255 bytes of text")
    if not config.is_private and topic == DEFAULT_TOPIC:
        raise ConfigError(
            "crdt.pubsub_topic",
            topic,
            "this is the default topic and the node is on the public network, where anybody could be in it: set "
            "p2p.protector_key to make the swarm private, or crdt.pubsub_topic to a name of your own",
        )


def split_place(address: str) -> str:
    """The `host:port` of *address*, which may say before it whether it is TLS."""
    return address.removeprefix("http://").removeprefix("https://")


def _check_listen(http: HttpConfig) -> None:
    for network in http.trusted_proxies:
        try:
            ipaddress.ip_network(network, strict=False)
        except ValueError:
            right = "an address or a network, as 127.0.0.1 or 10.0.0.0/8"
            raise ConfigError("http.trusted_proxies", network, right) from None
    for address in http.listen:
        parse_host_port("http.listen", split_place(address))
        if address.startswith("https://") and not http.tls_certificate:
            raise ConfigError(
                "http.listen",
                address,
                "needs a certificate: set http.tls_certificate and http.tls_key, paths of PEM files",
            )


_SERVICE = re.compile(r"[A-Za-z0-9._:/ -]{1,200}", re.ASCII)


def _check_auth(auth: AuthConfig) -> None:
    if not 10 <= auth.token_s <= 86400:
        raise ConfigError("auth.token_s", auth.token_s, "seconds from 10 to 86400")
    if not 0 <= auth.failed_logins_per_min <= 1e6:
        raise ConfigError("auth.failed_logins_per_min", auth.failed_logins_per_min, "a number from 0 to 1000000")
    if not _SERVICE.fullmatch(auth.service):
        raise ConfigError("auth.service", auth.service, "1 to 200 letters, digits or any of . _ : / -")
    if auth.realm and not re.fullmatch(r"https?://[!#-\[\]-~]{1,500}", auth.realm):
        raise ConfigError("auth.realm", auth.realm, "a URL, as https://registry.example/token")
    groups = {group.name for group in auth.groups}
    named = [("auth.admins", auth.admins), ("auth.catalog", auth.catalog)]
    for rule in auth.rules:
        named += [(f"auth.rules.{right}", getattr(rule, right)) for right in ("pull", "push", "create", "delete")]
    for key, names in named:
        for name in names:
            if name.startswith("@") and name[1:] not in groups:
                raise ConfigError(
                    key, name, f"no such group; [[auth.groups]] has {', '.join(sorted(groups)) or 'none'}"
                )
    if "*" in auth.admins:
        raise ConfigError("auth.admins", list(auth.admins), "names of users and groups; not everybody can be one")
    for group in auth.groups:
        for user in group.users:
            if user == "*" or user.startswith("@"):
                raise ConfigError("auth.groups.users", user, "the name of a user")
    for issuer in auth.issuers:
        _check_issuer(issuer)


def _check_issuer(issuer: IssuerConfig) -> None:
    scheme, separator, rest = issuer.jwks.partition("://")
    local = rest.startswith(("127.0.0.1", "localhost", "[::1]"))
    if not issuer.jwks or (separator and scheme != "https" and not (scheme == "http" and local)):
        raise ConfigError("auth.issuers.jwks", issuer.jwks, "the path of a file, or an https URL")
    if not issuer.issuer:
        raise ConfigError("auth.issuers.issuer", "", "what its tokens say as iss")


_ACTIONS = ("push", "pull", "mount", "delete")
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", re.ASCII)
_ENDPOINT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}", re.ASCII)


def _check_endpoints(endpoints: tuple[EndpointConfig, ...]) -> None:
    for endpoint in endpoints:
        key = "notifications.endpoints"
        if not _ENDPOINT_NAME.fullmatch(endpoint.name):
            raise ConfigError(f"{key}.name", endpoint.name, "1 to 64 letters, digits, dots, dashes and underscores")
        if sum(other.name == endpoint.name for other in endpoints) > 1:
            raise ConfigError(f"{key}.name", endpoint.name, "each endpoint has a name of its own")
        key = f"{key} {endpoint.name}:"
        _check_url(f"{key} url", endpoint.url)
        _check_headers(f"{key} headers", endpoint.headers)
        for action in endpoint.ignore_actions:
            if action not in _ACTIONS:
                raise ConfigError(f"{key} ignore_actions", action, f"must be of {', '.join(_ACTIONS)}")
        if not 0 < endpoint.timeout_s <= 300:
            raise ConfigError(f"{key} timeout_s", endpoint.timeout_s, "seconds above 0 and at most 300")
        if not 0 < endpoint.backoff_s <= 86400:
            raise ConfigError(f"{key} backoff_s", endpoint.backoff_s, "seconds above 0 and at most 86400")
        if not 1 <= endpoint.threshold <= 1000:
            raise ConfigError(f"{key} threshold", endpoint.threshold, "1 to 1000 failures")
        if not 1 <= endpoint.max_queued <= 1_000_000:
            raise ConfigError(f"{key} max_queued", endpoint.max_queued, "1 to 1000000 events")


def _check_tracing(tracing: TracingConfig) -> None:
    if tracing.endpoint:
        _check_url("tracing.endpoint", tracing.endpoint)
    _check_headers("tracing.headers", tracing.headers)
    if not 0 <= tracing.sample_ratio <= 1:
        raise ConfigError("tracing.sample_ratio", tracing.sample_ratio, "a number from 0 to 1")


def _check_headers(key: str, headers: Mapping[str, str]) -> None:
    for name, value in headers.items():
        # Values may be secrets, so they are never shown.
        if not _HEADER_NAME.fullmatch(name) or not (value.isascii() and value.isprintable()):
            raise ConfigError(key, {name: "…"}, "names and values of headers, in printable ASCII")


def _check_url(key: str, text: str) -> None:
    right = "http:// or https://, a host, and no user or password (those go into headers)"
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        raise ConfigError(key, "…", right) from None
    if not usable or parts.username is not None or parts.password is not None or not text.isprintable():
        raise ConfigError(key, "…", right)


def _check_multiaddr(key: str, text: str, example: str) -> None:
    import multiaddr  # here, because it takes a tenth of a second that `ipfsreg --help` need not wait

    try:
        multiaddr.Multiaddr(text)
    except Exception as error:  # multiaddr's parsers raise many kinds; each means the same here
        raise ConfigError(key, text, f"not a multiaddr ({error}); one looks like {example}") from None


def parse_host_port(key: str, text: str) -> tuple[str, int]:
    """Read `127.0.0.1:5000` or `[::1]:5000`. Raises ConfigError naming *key*."""
    host, colon, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        colon = ""
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 5 or int(port) > 65535:
        raise ConfigError(key, text, "an address and a port, as 127.0.0.1:5000 or [::1]:5000")
    return host, int(port)

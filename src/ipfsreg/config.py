"""Configuration: frozen, with units in the names. TOML and environment are read here and nowhere else.

Every key is optional. A key can also come from the environment as `IPFSREG_<SECTION>_<KEY>` (lists separated by
commas), which wins over the file. An unknown key, a wrong type or a bad value stops the start with a ConfigError
naming the key, the value and what would be right. All keys: docs/configuration.md.
"""

from __future__ import annotations

import json
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ipfsreg.config_checks import DEFAULT_TOPIC, check
from ipfsreg.errors import ConfigError

PUBLIC_BOOTSTRAPPERS = (
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb",
    "/dnsaddr/bootstrap.libp2p.io/p2p/QmcZf59bWwK5XFi76CZX8cbJ4BhTzzA3gU1ZjYZcYW3dwt",
    "/ip4/104.131.131.82/tcp/4001/p2p/QmaCpDMGvV2BGHeYERUEnRQAwe3N8SzbUtfsmvsqQLuvuJ",
)
"""Where the public IPFS network is entered; the default there and only there."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class NodeConfig(_Section, frozen=True):
    """`[node]`: the process."""

    datastore_path: str = "/var/lib/ipfsreg"
    """Directory of everything the node keeps."""
    log_level: typing.Literal["debug", "info", "warning", "error"] = "info"
    private_key: str = ""
    """Base64 of a libp2p private key; empty: generated once and kept in the datastore."""
    drain_s: float = 20.0
    """Seconds that requests in flight may take to finish after SIGTERM."""
    unready_s: float = 0.0
    """Seconds after SIGTERM in which requests are still taken while `/readyz` says no: for load balancers to notice."""


class P2pConfig(_Section, frozen=True):
    """`[p2p]`: the swarm."""

    listen_addrs: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/4619",)
    announce_addrs: tuple[str, ...] = ()
    """What to tell peers instead of the listen addresses: for nodes behind NAT or in containers."""
    bootstrappers: tuple[str, ...] | None = None
    """Multiaddrs with `/p2p/…`. Unset: none in a private swarm, the public IPFS list without a protector key."""
    mdns: bool = False
    """Find nodes of the swarm on the same LAN by multicast DNS, without bootstrappers."""
    protector_key: str = ""
    """64 hex digits, or the path of a swarm.key file. Empty: the public network."""


class FormerWriterConfig(_Section, frozen=True):
    """One of `former` in `[[crdt.writers]]`: a peer that may not write there any more."""

    peer: str
    heads: tuple[str, ...] = ()
    """CIDs of heads: what it wrote in the nodes at or below them counts."""


class WriterConfig(_Section, frozen=True):
    """`[[crdt.writers]]`: who may write the names of some repositories."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too."""
    peers: tuple[str, ...]
    """Peer IDs."""
    former: tuple[FormerWriterConfig, ...] = ()


class CrdtConfig(_Section, frozen=True):
    """`[crdt]`: the replicated names."""

    pubsub_topic: str = DEFAULT_TOPIC
    epoch: int = 1
    """The epoch in which an empty node begins."""
    trusted_peers: tuple[str, ...] | None = None
    """Peer IDs whose announcements are taken, or "*". Unset: everybody in a private swarm, nobody else outside."""
    checkpoint_peers: tuple[str, ...] | None = None
    """Peer IDs whose checkpoints are taken for every name. Unset: those of the trusted, for what each may write."""
    checkpoint_required: bool = False
    """Do not open the door before all names are here, by a checkpoint or with all history."""
    require_signed: bool = False
    """Only what its author signed counts, and where `trusted_peers` has peer IDs, only their signatures."""
    unsigned_heads: tuple[str, ...] = ()
    """CIDs of heads: what nobody signed counts in the nodes at or below them all the same."""
    writers: tuple[WriterConfig, ...] = ()


class QuotaConfig(_Section, frozen=True):
    """`[[registry.quotas]]`: how much some repositories may hold together."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too."""
    max_bytes: int


class RegistryConfig(_Section, frozen=True):
    """`[registry]`: repositories and tags."""

    immutable_tags: tuple[str, ...] = ()
    """Patterns of `repository:tag`; such a tag is set once."""
    quotas: tuple[QuotaConfig, ...] = ()
    fetch_pushed: bool = True
    """Before a manifest push is answered, fetch what it names and this node lacks."""
    wait_heads_s: float = 10.0
    """Seconds that a read waits for the writes it says it has seen elsewhere (`Ipfsreg-Heads`)."""


class StoreConfig(_Section, frozen=True):
    """`[store]`: how much this node takes."""

    reserve_bytes: int = 256 * 1024 * 1024
    """Bytes that are kept free on the disk, of a small one a twentieth at most."""
    max_bytes: int = 0
    """Bytes of all blobs; 0: what the disk holds."""
    evict: typing.Literal["pulled", "nothing"] = "pulled"
    """What may go when there is no room: what was only pulled through this node, as far as others have it."""
    evict_copies: int = 1
    """How many other nodes must have it."""
    keep: tuple[str, ...] = ()
    """Patterns of repositories whose blobs stay."""
    max_uploads: int = 10_000
    """Uploads that may be unfinished at a time; 0: any number."""
    max_upload_bytes: int = 0
    """Bytes of unfinished uploads; 0: any number."""
    upload_expiry_s: float = 86400.0
    """Seconds after the last byte of an upload until it is thrown away."""


class GcConfig(_Section, frozen=True):
    """`[gc]`: what no repository refers to."""

    interval_s: float = 3600.0
    """Seconds between two looks, on average. 0: only `ipfsreg gc` looks."""
    grace_s: float = 86400.0
    """Seconds that a name must have been of no use, counted while the node runs."""
    blob_grace_s: float = 3600.0
    """Seconds that a blob must have had no name."""
    untagged: typing.Literal["keep", "delete"] = "keep"
    """What becomes of manifests that no tag reaches, in all the swarm."""


class HttpConfig(_Section, frozen=True):
    """`[http]`: the registry's front door."""

    listen: tuple[str, ...] = ("127.0.0.1:5000",)
    """Places; each may begin with `http://` or `https://`, and is TLS without one where there is a certificate."""
    tls_certificate: str = ""
    """Path of a PEM file: the certificate, then its chain. Read again when it changes."""
    tls_key: str = ""
    """Path of a PEM file with the certificate's private key."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies that tell by X-Forwarded-For and X-Forwarded-Proto who the client is."""
    requests_per_s: float = 0.0
    """Requests that one client may send each second; 0: any number."""
    requests_burst: float = 200.0
    """How many of them may come at once after a pause."""
    requests_at_once: int = 0
    """Requests of one client under way at once; 0: any number."""


class GroupConfig(_Section, frozen=True):
    """One of `[[auth.groups]]`: users under one name."""

    name: str
    users: tuple[str, ...]


class RuleConfig(_Section, frozen=True):
    """One of `[[auth.rules]]`: who may do what in some repositories. The first that fits a repository decides."""

    repositories: str
    """A pattern: `*` stands for any text, slashes too."""
    pull: tuple[str, ...] = ()
    """Users, `@` and a group, or `*`."""
    push: tuple[str, ...] = ()
    create: tuple[str, ...] = ()
    """Who may push, but not move tags that there are."""
    delete: tuple[str, ...] = ()


class IssuerConfig(_Section, frozen=True):
    """One of `[[auth.issuers]]`: somebody else's tokens to accept."""

    issuer: str
    jwks: str
    """Path or https URL of its public keys."""
    audience: str = ""
    """What its tokens have to be for. Empty: `auth.service`."""
    repositories: str = "*"
    """A pattern: what its tokens may be about."""


class AuthConfig(_Section, frozen=True):
    """`[auth]`: who may do what over HTTP. Without passwords and issuers everybody may do everything."""

    htpasswd: str = ""
    """Path of a password file with bcrypt hashes. Read again when it changes."""
    anonymous_pull: bool = False
    """Let `*` stand for those who have not logged in, too, where it is about pulling."""
    admins: tuple[str, ...] = ()
    """Who may do everything everywhere."""
    catalog: tuple[str, ...] = ("*",)
    """Who may list repositories; each sees those it may pull from."""
    groups: tuple[GroupConfig, ...] = ()
    rules: tuple[RuleConfig, ...] = ()
    """None: whoever has logged in may pull, push and delete everywhere."""
    tokens: bool = True
    """Ask clients for a token of the token service. Else for the password with every request."""
    realm: str = ""
    """URL of the token service. Empty: this node's own, under the name clients reach it by."""
    service: str = "ipfsreg"
    """What tokens are for. Nodes behind one name need the same."""
    token_key: str = ""
    """Path of a PEM file with the key that signs tokens. Empty: a key of this node alone."""
    token_s: float = 300.0
    """Seconds that a token is good for."""
    issuers: tuple[IssuerConfig, ...] = ()
    failed_logins_per_min: float = 30.0
    """Failed logins of one address, before it has to wait; 0: any number."""


class AuditConfig(_Section, frozen=True):
    """`[audit]`: who did what, as JSON lines."""

    path: str = ""
    """A file to append to, opened anew on SIGHUP. Empty: no audit log."""
    pulls: bool = False
    """Pulls, too. Else pushes, deletions, logins and what was refused."""


class FetchConfig(_Section, frozen=True):
    """`[fetch]`: blobs that peers have and we lack."""

    patience_s: float = 1.0
    """Seconds to wait for connected peers before the DHT is asked."""
    give_up_s: float = 30.0
    """Seconds without progress after which a pull fails with a clear error."""
    finish_without_client: bool = True
    """Go on fetching a blob when the client that asked for it has gone."""
    upload_bytes_per_s: int = 0
    """Bytes of blobs a second to all peers together; 0: as many as the link takes."""


class AccessLogConfig(_Section, frozen=True):
    """`[access_log]`: a line for each HTTP request."""

    format: typing.Literal["text", "combined", "json", "off"] = "text"
    """`text` obeys `node.log_level`: at `warning` there are no such lines."""
    path: str = ""
    """A file to append to. Empty: standard error."""


class MetricsConfig(_Section, frozen=True):
    """`[metrics]`: what Prometheus asks for."""

    listen: tuple[str, ...] = ()
    """Where `/metrics`, `/healthz` and `/readyz` are answered, without a password. Empty: nowhere."""


class EndpointConfig(_Section, frozen=True):
    """`[[notifications.endpoints]]`: who is told what happens."""

    name: str
    """Names its queue: another name is another queue."""
    url: str
    headers: dict[str, str] = {}
    timeout_s: float = 5.0
    threshold: int = 5
    """Failures in a row after which it is left alone for `backoff_s`, and longer each time."""
    backoff_s: float = 10.0
    ignore_actions: tuple[str, ...] = ()
    """Of push, pull, mount, delete."""
    ignore_media_types: tuple[str, ...] = ()
    merged: bool = False
    """Tell what other nodes did to tags, too."""
    max_queued: int = 10_000
    """Events that wait before the oldest is dropped."""
    ca: str = ""
    """File of certificate authorities to trust instead of the system's."""


class NotificationsConfig(_Section, frozen=True):
    """`[notifications]`: webhooks."""

    endpoints: tuple[EndpointConfig, ...] = ()


class TracingConfig(_Section, frozen=True):
    """`[tracing]`: OpenTelemetry."""

    endpoint: str = ""
    """Where spans go, by OTLP over HTTP, as `http://127.0.0.1:4318/v1/traces`. Empty: there are none."""
    headers: dict[str, str] = {}
    sample_ratio: float = 1.0
    """Of the requests, and of everything that is nobody's child."""
    service_name: str = "ipfsreg"
    heed_traceparent: bool = False
    """Let clients say whose child a request is, and whether it is sampled."""


class Config(_Section, frozen=True):
    """The whole file."""

    node: NodeConfig = NodeConfig()
    p2p: P2pConfig = P2pConfig()
    crdt: CrdtConfig = CrdtConfig()
    registry: RegistryConfig = RegistryConfig()
    store: StoreConfig = StoreConfig()
    gc: GcConfig = GcConfig()
    http: HttpConfig = HttpConfig()
    auth: AuthConfig = AuthConfig()
    audit: AuditConfig = AuditConfig()
    fetch: FetchConfig = FetchConfig()
    access_log: AccessLogConfig = AccessLogConfig()
    metrics: MetricsConfig = MetricsConfig()
    notifications: NotificationsConfig = NotificationsConfig()
    tracing: TracingConfig = TracingConfig()

    @property
    def is_private(self) -> bool:
        """Whether a pre-shared key closes the swarm."""
        return bool(self.p2p.protector_key)

    @property
    def bootstrappers(self) -> tuple[str, ...]:
        """Those configured, or the default of the kind of network."""
        if self.p2p.bootstrappers is not None:
            return self.p2p.bootstrappers
        return () if self.is_private else PUBLIC_BOOTSTRAPPERS


def load_config(path: Path | None, environment: Mapping[str, str]) -> Config:
    """Read the TOML file at *path* (None: defaults alone) and lay *environment* over it.

    Raises:
        ConfigError: naming the key, its value and what would be right.
    """
    values = _read_toml(path) if path is not None else {}
    _check_names(values)
    _lay_over(values, environment)
    config = _convert(values)
    check(config)
    return config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError("--config", str(path), "no such file; `ipfsreg init --dir DIR` writes one") from None
    except OSError as error:
        raise ConfigError("--config", str(path), f"cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ConfigError("--config", str(path), "is nested too deeply") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError("--config", str(path), f"is not TOML: {error}") from None


def _sections() -> dict[str, dict[str, Any]]:
    """Section -> key -> type."""
    return {
        name: typing.get_type_hints(section)
        for name, section in typing.get_type_hints(Config).items()
        if isinstance(section, type) and issubclass(section, _Section)
    }


_HIDDEN = "…"
"""In place of a value that is a secret, or may be one: what is mistyped may be the name of one."""

_SECRET_KEYS = ("p2p.protector_key", "node.private_key")
_SECRET_SECTIONS = ("notifications", "tracing")
"""For their headers."""


def _check_names(values: dict[str, Any]) -> None:
    sections = _sections()
    for section, table in values.items():
        if section not in sections:
            raise ConfigError(section, _HIDDEN, f"no such section; there are {', '.join(sections)}")
        if not isinstance(table, dict):
            raise ConfigError(section, _HIDDEN, f"is a section: write [{section}]")
        for key in table:
            if key not in sections[section]:
                right = f"no such key; [{section}] has {', '.join(sections[section])}"
                raise ConfigError(f"{section}.{key}", _HIDDEN, right)


# What Kubernetes and docker's links put into the environment of a container beside a service called `ipfsreg-node`.
_SERVICE_VARIABLE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$")


def _lay_over(values: dict[str, Any], environment: Mapping[str, str]) -> None:
    sections = _sections()
    known = {
        f"IPFSREG_{section}_{key}".upper(): (section, key, kind)
        for section, keys in sections.items()
        for key, kind in keys.items()
    }
    prefixes = tuple(f"IPFSREG_{section}_".upper() for section in sections)
    for name, text in environment.items():
        if name in known:
            section, key, kind = known[name]
            values.setdefault(section, {})[key] = _read_variable(name, text, kind)
        elif name.startswith(prefixes) and not _SERVICE_VARIABLE.search(name):
            raise ConfigError(name, _HIDDEN, "no such key; the keys are in docs/configuration.md")


def _read_variable(name: str, text: str, kind: Any) -> Any:
    """*text* as a value of *kind*. Raises ConfigError."""
    if _holds_tables(kind) or _is_table(kind):
        try:
            return msgspec.json.decode(text)
        except msgspec.DecodeError:
            shown = _HIDDEN if kind == tuple[EndpointConfig, ...] or _is_table(kind) else text
            raise ConfigError(name, shown, "must be JSON: " + _right(kind, None)) from None
    if _is_list(kind):
        return [item.strip() for item in text.split(",") if item.strip()]
    try:
        # Not strict: in the environment numbers and booleans are text.
        return msgspec.convert(text, kind, strict=False)
    except msgspec.ValidationError:
        raise ConfigError(name, text, _right(kind, None)) from None


def _is_list(kind: Any) -> bool:
    if isinstance(kind, types.UnionType):
        return any(_is_list(one) for one in typing.get_args(kind))
    return typing.get_origin(kind) is tuple


def _is_table(kind: Any) -> bool:
    return typing.get_origin(kind) is dict


def _holds_tables(kind: Any) -> bool:
    return any(isinstance(one, type) and issubclass(one, _Section) for one in typing.get_args(kind))


_TABLES = {
    WriterConfig: '[[crdt.writers]] with repositories = "team/*", peers = ["12D3KooW…"] and perhaps '
    'former = [{peer = "12D3KooW…", heads = ["bafy…"]}]',
    QuotaConfig: '[[registry.quotas]] with repositories = "team-a/*" and max_bytes = 100000000000',
    GroupConfig: '[[auth.groups]] with name = "team-a" and users = ["alice", "bob"]',
    RuleConfig: '[[auth.rules]] with repositories = "team-a/*" and any of pull = ["*"], push = ["@team-a"], '
    'create = ["ci"], delete = ["alice"]',
    IssuerConfig: '[[auth.issuers]] with issuer = "https://login.example", jwks = "https://login.example/jwks.json" '
    'and perhaps audience = "registry" and repositories = "team-a/*"',
    EndpointConfig: '[[notifications.endpoints]] with name = "ci", url = "https://ci.example/hook" and perhaps '
    'headers = {Authorization = "Bearer …"}, ignore_actions = ["pull"]',
}


def _right(kind: Any, default: Any) -> str:
    """What a value of *kind* looks like."""
    for table in typing.get_args(kind):
        if table in _TABLES:
            return f"must be tables, each as {_TABLES[table]}"
    if _is_table(kind):
        return 'must be a table of texts, as {Authorization = "Bearer …"}'
    if _is_list(kind):
        return f"must be a list of texts, as {json.dumps(default or ['…', '…'], ensure_ascii=False)}"
    if typing.get_origin(kind) is typing.Literal:
        return f"must be one of {', '.join(typing.get_args(kind))}"
    numbers = {bool: "must be true or false", float: "must be a number", int: "must be a whole number"}
    return numbers.get(kind, "must be text in quotes")


def _convert(values: dict[str, Any]) -> Config:
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        _, _, path = str(error).partition(" - at ")
        key = path.strip("`").removeprefix("$.").removesuffix("[...]")
        section, _, name = re.sub(r"\[.*", "", key).partition(".")
        right = _right(_sections()[section][name], getattr(getattr(Config(), section), name))
        is_secret = section in _SECRET_SECTIONS or f"{section}.{name}" in _SECRET_KEYS
        raise ConfigError(key, _HIDDEN if is_secret else _look_up(values, key), right) from None


def _look_up(values: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        try:
            values = values[int(step)] if isinstance(values, list) else values[step]
        except (KeyError, IndexError, ValueError, TypeError):
            return None
    return values

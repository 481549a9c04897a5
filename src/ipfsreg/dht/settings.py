"""How a node takes part in the DHT."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

PUBLIC_PROTOCOL = "/ipfs/kad/1.0.0"
LAN_PROTOCOL = "/ipfs/lan/kad/1.0.0"


class Mode(Enum):
    """Whether others may ask us."""

    AUTO = "auto"
    """A server while others can reach us."""
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True, kw_only=True)
class DhtSettings:
    """The DHT. The defaults are those of a private swarm."""

    private: bool = True
    """Whether everybody in it holds the swarm's key. Outside, addresses of private networks are not believed, and no
    one network may hold too many places."""
    protocols: tuple[str, ...] = ()
    """What is spoken, best first. Empty: Kubo's public and LAN protocol in a private swarm, the public one outside."""
    mode: Mode = Mode.AUTO
    k: int = 20
    """Peers in a bucket, in an answer, and holding each record."""
    alpha: int = 10
    """Queries of one lookup under way."""
    patience_s: float = 2.0
    """After this a query no longer counts against alpha: the lookup asks another peer beside it."""
    query_s: float = 10.0
    """A query, with the dial it may need."""
    lookup_s: float = 60.0
    """A whole lookup."""
    max_queries: int = 200
    """Peers asked in one lookup. Thirty is usual; somebody may lead us on for ever."""
    refresh_s: float = 600.0
    """Seconds between looks at the routing table."""
    bootstrap_delay_s: float = 0.2
    """Seconds after the first peer came, in which more may come, until we look for ourselves."""
    mode_check_s: float = 5.0
    record_ttl_s: float = 48 * 3600.0
    """How long a provider is remembered."""
    reprovide_s: float = 22 * 3600.0
    """Every root is announced once in this time."""
    gather_s: float = 1.0
    """Seconds from `provide` to the first announcement, in which neighbours may join it."""
    retry_s: float = 30.0
    """Seconds after an announcement that reached nobody. Doubled with every further one, to thirty times it."""
    max_records: int = 2_000_000
    max_records_per_provider: int = 250_000
    max_records_per_key: int = 256
    inbound_streams: int = 2048
    inbound_streams_per_peer: int = 16
    """Beyond either the stream that was silent longest is reset: the peer's own first."""
    idle_s: float = 60.0
    """An inbound stream without a request for this long is reset, as go-libp2p does."""
    message_s: float = 10.0
    """A request whose length is known may take this long, and so may the peer with our answer."""
    requests_per_s: float = 500.0
    request_burst: float = 2000.0
    """Of one peer. Above, its streams are read more slowly."""

    @property
    def spoken(self) -> tuple[str, ...]:
        """The protocols, best first."""
        if self.protocols:
            return self.protocols
        return (PUBLIC_PROTOCOL, LAN_PROTOCOL) if self.private else (PUBLIC_PROTOCOL,)

    @property
    def per_network_in_table(self) -> int | None:
        """Peers of one IP network in the routing table; None: any number."""
        return None if self.private else 3

    @property
    def per_network_in_bucket(self) -> int | None:
        """Peers of one IP network in one bucket."""
        return None if self.private else 2

    @property
    def per_network_in_lookup(self) -> int | None:
        """Peers of one IP network among the k closest of a lookup."""
        return None if self.private else 4

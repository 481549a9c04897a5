"""PURE: how much one client may ask for. The time is passed in; a table of clients has a bound of its own."""

from __future__ import annotations

from collections import OrderedDict
from ipaddress import IPv6Address, ip_address

MAX_CLIENTS = 10_000
"""Beyond it the client that has been quiet for longest is forgotten, which gives it its whole allowance back."""


class Allowances:
    """An allowance for each client that fills up by *per_s* each second, up to *burst*."""

    def __init__(self, per_s: float, burst: float, max_clients: int = MAX_CLIENTS) -> None:
        self._per_s = per_s
        self._burst = burst
        self._max_clients = max_clients
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """Take one of *client*'s; 0.0 where it had one, else the seconds until it has, and nothing is taken."""
        left, at = self._left.pop(client, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_s)
        wait_s = 0.0 if left >= 1 else (1 - left) / self._per_s
        self._left[client] = (left - 1 if left >= 1 else left, now)
        if len(self._left) > self._max_clients:
            self._left.popitem(last=False)
        return wait_s

    def give_back(self, client: str) -> None:
        """What *client* took last does not count."""
        if client in self._left:
            left, at = self._left[client]
            self._left[client] = (min(self._burst, left + 1), at)


class AtOnce:
    """How many things each client has under way."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._under_way: dict[str, int] = {}

    def begin(self, client: str) -> bool:
        """Whether *client* may have one more; if so, `end` has to follow."""
        count = self._under_way.get(client, 0)
        if count >= self._most:
            return False
        self._under_way[client] = count + 1
        return True

    def end(self, client: str) -> None:
        """One of *client*'s is over."""
        count = self._under_way[client] - 1
        if count:
            self._under_way[client] = count
        else:
            del self._under_way[client]


def client_of(address: str) -> str:
    """Whom an address belongs to: all of an IPv6 /64 is one client, who could use any address in it."""
    try:
        parsed = ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(IPv6Address(int(parsed) >> 64 << 64)) + "/64"
    return address

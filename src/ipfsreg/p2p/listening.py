"""Sockets that peers connect to, and the addresses they can be reached at."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from contextlib import ExitStack

import ifaddr
import trio

from ipfsreg.errors import AlreadyRunning, ConfigError
from ipfsreg.p2p.addresses import TcpAddr, parse_dialable, scope_of_ip

BACKLOG = 1024

_RIGHT = "/ip4/<address>/tcp/<port> or /ip6/<address>/tcp/<port>, an address of this machine"


async def open_listeners(addrs: Sequence[str]) -> list[trio.SocketListener]:
    """Listen on all of *addrs*, or on none.

    Raises:
        AlreadyRunning: the port is in use.
        ConfigError: not an address this machine has, or not allowed.
    """
    with ExitStack() as opened:
        listeners = []
        for addr in addrs:
            listener = await _listen(addr)
            opened.callback(listener.socket.close)
            listeners.append(listener)
        opened.pop_all()
        return listeners


async def _listen(addr: str) -> trio.SocketListener:
    parsed = parse_dialable(addr)
    if not isinstance(parsed, TcpAddr) or not parsed.is_ip:
        raise ConfigError("p2p.listen_addrs", addr, _RIGHT)
    family = socket.AF_INET if parsed.kind == "ip4" else socket.AF_INET6
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        # REUSEADDR lets us start while connections of a former run linger; it does not share a port that is in use.
        # REUSEPORT would: a second daemon would silently take half of the connections.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Else [::] would take the IPv4 port of the same number as well.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        await sock.bind((parsed.host, parsed.port))
        sock.listen(BACKLOG)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise AlreadyRunning(f"{addr} is in use: another program, or another ipfsreg, listens there") from None
        raise ConfigError("p2p.listen_addrs", addr, f"{_RIGHT} ({error.strerror})") from None
    except BaseException:  # nobody else has the socket
        sock.close()
        raise
    return trio.SocketListener(sock)


def reachable_at(listeners: Sequence[trio.SocketListener]) -> list[TcpAddr]:
    """The real addresses of *listeners*: a wildcard is every interface's address, port 0 is what the system chose.

    Those that reach furthest come first. Link-local IPv6 addresses are left out: they need a zone to be dialled.
    """
    found: list[TcpAddr] = []
    for listener in listeners:
        addr = TcpAddr.of(*listener.socket.getsockname()[:2])
        found += [TcpAddr.of(host, addr.port) for host in _interface_hosts(addr.kind)] if addr.is_wildcard else [addr]
    return sorted(dict.fromkeys(found), key=lambda addr: -scope_of_ip(addr.host))


def _interface_hosts(kind: str) -> list[str]:
    hosts = []
    for adapter in ifaddr.get_adapters():
        for ip in adapter.ips:
            host = ip.ip if isinstance(ip.ip, str) else ip.ip[0]
            if ip.is_IPv4 == (kind == "ip4") and not host.lower().startswith("fe80:"):
                hosts.append(host)
    return hosts or ["127.0.0.1" if kind == "ip4" else "::1"]

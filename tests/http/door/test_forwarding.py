"""Who a request is from that a proxy passed on."""

from __future__ import annotations

import pytest

from ipfsreg.http.door.forwarding import TrustedProxies

PROXIES = TrustedProxies(["127.0.0.1", "10.0.0.0/8", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("peer", "said", "client"),
    [
        ("127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("10.1.2.3", "192.0.2.7, 10.9.9.9", "192.0.2.7"),
        ("::ffff:127.0.0.1", "192.0.2.7", "192.0.2.7"),
        ("2001:db8::1", "2001:470::7", "2001:470::7"),
        # What the client wrote itself stands before what the proxy added.
        ("127.0.0.1", "198.51.100.1, 192.0.2.7", "192.0.2.7"),
        ("127.0.0.1", "127.0.0.1, 192.0.2.7", "192.0.2.7"),
        # Somebody else's word counts for nothing.
        ("192.0.2.9", "192.0.2.7", "192.0.2.9"),
        ("192.0.2.9", "10.0.0.1", "192.0.2.9"),
        # What is no address ends the reading.
        ("127.0.0.1", "", "127.0.0.1"),
        ("127.0.0.1", "unknown", "127.0.0.1"),
        ("127.0.0.1", "evil, 10.0.0.1", "10.0.0.1"),
        ("127.0.0.1", "192.0.2.7:1234", "127.0.0.1"),
        ("127.0.0.1", "192.0.2.7, " * 5000 + "10.0.0.1", "192.0.2.7"),
        ("local", "192.0.2.7", "local"),
    ],
)
def test_the_list_is_read_from_its_end_as_far_as_our_proxies_wrote_it(peer: str, said: str, client: str) -> None:
    assert PROXIES.client(peer, {"x-forwarded-for": said}) == client


def test_without_the_header_the_proxy_is_the_client() -> None:
    assert PROXIES.client("127.0.0.1", {}) == "127.0.0.1"


@pytest.mark.parametrize(
    ("peer", "said", "secure"),
    [
        ("127.0.0.1", "https", True),
        ("127.0.0.1", "http", False),
        ("127.0.0.1", "http, HTTPS", True),
        ("127.0.0.1", "", None),
        ("127.0.0.1", "gopher", None),
        ("192.0.2.9", "https", None),
    ],
)
def test_a_proxy_says_whether_the_client_speaks_tls(peer: str, said: str, secure: bool | None) -> None:
    assert PROXIES.is_secure(peer, {"x-forwarded-proto": said}) is secure


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError):
        TrustedProxies(["proxy.example"])

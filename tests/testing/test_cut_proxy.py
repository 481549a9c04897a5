"""The path that breaks once."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from ipfsreg.testing.cut_proxy import Asked, open_cut_proxy

BODY = bytes(range(256)) * 4096


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY)

    def log_message(self, *arguments: object) -> None:
        """Nothing."""


@pytest.fixture
def server() -> Iterator[tuple[str, int]]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Server) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield "127.0.0.1", server.server_port
        server.shutdown()
        thread.join()


def test_it_breaks_once_after_so_many_bytes_and_writes_down_what_was_asked(server: tuple[str, int]) -> None:
    with open_cut_proxy(server, after_bytes=300_000) as proxy:
        first = http.client.HTTPConnection(proxy.http)
        first.request("GET", "/blob")
        with pytest.raises(http.client.IncompleteRead) as cut:
            first.getresponse().read()
        first.close()
        assert 200_000 < len(cut.value.partial) < len(BODY)
        assert proxy.cuts == 1

        second = http.client.HTTPConnection(proxy.http)
        for headers in ({"Range": "bytes=200000-"}, {}):
            second.request("GET", "/rest", headers=headers)
            assert second.getresponse().read() == BODY
        second.close()
        assert proxy.cuts == 1
    assert proxy.asked == [Asked("GET", "/blob", 0), Asked("GET", "/rest", 200_000), Asked("GET", "/rest", 0)]

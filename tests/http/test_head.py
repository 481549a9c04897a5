"""Request heads: cut anywhere, and everything two readers could disagree about."""

import pytest

from ipfsreg.http.head import Head, HeadParser
from ipfsreg.http.request import RequestRefused

PLAIN = b"GET /v2/team/app/manifests/1.0?ns=docker.io HTTP/1.1\r\nHost: a:5000\r\nAccept: x/y\r\nAccept: z/*\r\n\r\n"


def parse(data: bytes, max_bytes: int = 4096, max_headers: int = 20) -> Head:
    parser = HeadParser(max_bytes, max_headers)
    assert parser.feed(data) == len(data)
    return parser.take()


def test_a_head_is_read_and_repeated_lines_are_joined() -> None:
    head = parse(PLAIN)
    assert (head.method, head.target) == ("GET", "/v2/team/app/manifests/1.0?ns=docker.io")
    assert head.headers == {"host": "a:5000", "accept": "x/y, z/*"}
    assert head.keep_alive
    assert head.body_length == 0


def test_every_cut_of_a_head_reads_the_same() -> None:
    for cut in range(1, len(PLAIN)):
        parser = HeadParser(4096, 20)
        assert parser.feed(PLAIN[:cut]) is None
        assert parser.feed(PLAIN[cut:] + b"more") == len(PLAIN) - cut
        assert parser.take().headers == {"host": "a:5000", "accept": "x/y, z/*"}


def test_a_head_comes_one_byte_at_a_time() -> None:
    parser = HeadParser(4096, 20)
    used = [parser.feed(PLAIN[i : i + 1]) for i in range(len(PLAIN))]
    assert used == [None] * (len(PLAIN) - 1) + [1]
    assert parser.take().target == "/v2/team/app/manifests/1.0?ns=docker.io"


def test_bytes_after_the_head_are_never_parsed() -> None:
    parser = HeadParser(4096, 20)
    assert parser.feed(PLAIN + b"\x00\x01 not http") == len(PLAIN)


@pytest.mark.parametrize(
    "lines",
    [
        b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nContent-Length: 3\r\n",
        b"Content-Length: 3\r\nContent-Length: 4\r\n",
        b"Content-Length: 3, 3\r\n",
        b"Content-Length: +3\r\n",
        b"Content-Length: -3\r\n",
        b"Content-Length: 0x3\r\n",
        b"Content-Length: 3 3\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 99999999999999999999\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b" Content-Length: 3\r\n",
        b"X: a\r\n Content-Length: 3\r\n",
        b"X: a\nContent-Length: 3\r\n",
        b"X: a\rContent-Length: 3\r\n",
        b"X: \x00\r\n",
        b"Host: b\r\n",
        b": x\r\n",
        b"X y: z\r\n",
        b"Expect: 200-maybe\r\n",
    ],
)
def test_what_two_readers_could_understand_differently_is_refused(lines: bytes) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse(b"POST / HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n")
    assert refused.value.status in (400, 417)


def test_transfer_codings_other_than_chunked_are_not_implemented() -> None:
    with pytest.raises(RequestRefused) as refused:
        parse(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n")
    assert refused.value.status == 501


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),  # no Host
        (b"GET /\r\n\r\n", 505),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET / HTTP/1.9\r\nHost: a\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /a b HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET /\xff HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    ],
)
def test_a_request_line_that_is_none_is_refused(line: bytes, status: int) -> None:
    with pytest.raises(RequestRefused) as refused:
        parse(line)
    assert refused.value.status == status


def test_a_head_that_can_never_be_one_is_refused_before_its_end() -> None:
    parser = HeadParser(4096, 20)
    with pytest.raises(RequestRefused):
        parser.feed(b"GET / HTTP/1.1\nHost")


def test_a_head_too_large_is_refused_before_its_end() -> None:
    parser = HeadParser(100, 20)
    with pytest.raises(RequestRefused) as refused:
        parser.feed(b"GET / HTTP/1.1\r\nX: " + b"a" * 100)
    assert refused.value.status == 431


def test_too_many_headers_are_refused_before_the_end() -> None:
    parser = HeadParser(4096, 3)
    with pytest.raises(RequestRefused) as refused:
        parser.feed(b"GET / HTTP/1.1\r\n" + b"".join(b"X%d: y\r\n" % i for i in range(6)))
    assert refused.value.status == 431


def test_an_absolute_target_counts_by_its_path() -> None:
    assert parse(b"GET http://h:1/v2/?n=1 HTTP/1.1\r\nHost: a\r\n\r\n").target == "/v2/?n=1"
    assert parse(b"GET http://h HTTP/1.1\r\nHost: a\r\n\r\n").target == "/"


def test_an_offer_to_upgrade_is_passed_over() -> None:
    head = parse(b"GET /v2/ HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert head.target == "/v2/"


def test_keep_alive_follows_version_and_connection_header() -> None:
    assert not parse(b"GET / HTTP/1.0\r\n\r\n").keep_alive
    assert parse(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n").keep_alive
    assert not parse(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").keep_alive


def test_a_body_is_announced_by_length_or_chunked() -> None:
    assert parse(b"PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\n\r\n").body_length == 7
    head = parse(b"PATCH / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: Chunked\r\nExpect: 100-Continue\r\n\r\n")
    assert head.body_length is None
    assert head.expects_continue


def test_an_empty_header_keeps_its_place() -> None:
    assert parse(b"GET / HTTP/1.1\r\nHost:\r\nX:\r\nY: 1\r\n\r\n").headers == {"host": "", "x": "", "y": "1"}

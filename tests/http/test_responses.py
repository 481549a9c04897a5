"""Response heads."""

from pathlib import Path

import pytest

from ipfsreg.http.responses import FileBody, NoBody, Response, encode_head

DATE = "Tue, 24 Nov 2026 20:00:00 GMT"


def test_a_head_has_status_date_headers_and_length() -> None:
    head = encode_head(Response(200, (("Content-Type", "text/plain"),), b"hello"), DATE, "")
    assert head == (
        b"HTTP/1.1 200 OK\r\nDate: Tue, 24 Nov 2026 20:00:00 GMT\r\nContent-Type: text/plain\r\n"
        b"Content-Length: 5\r\n\r\n"
    )


def test_a_file_and_an_absent_body_announce_their_length() -> None:
    assert b"Content-Length: 7\r\n" in encode_head(Response(206, (), FileBody(Path("x"), 3, 10)), DATE, "")
    assert b"Content-Length: 1073741824\r\n" in encode_head(Response(200, (), NoBody(1 << 30)), DATE, "")


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_body_announces_none(status: int) -> None:
    assert b"Content-Length" not in encode_head(Response(status), DATE, "")


def test_the_connection_header_is_sent_where_needed() -> None:
    assert encode_head(Response(200), DATE, "close").endswith(b"Connection: close\r\n\r\n")


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: x", "a\nb", "a\rb", "a\0b", "snow ☃"])
def test_a_value_that_would_end_its_line_is_never_sent(value: str) -> None:
    with pytest.raises(ValueError):
        encode_head(Response(200, (("Content-Type", value),)), DATE, "")

"""Decoders of the registry's front door."""

from __future__ import annotations

from ipfsreg.errors import IpfsregError, RegistryError
from ipfsreg.http.body import ChunkDecoder
from ipfsreg.http.errors import error_response
from ipfsreg.http.head import Head, HeadParser
from ipfsreg.http.paths import parse_action
from ipfsreg.http.request import RequestRefused
from ipfsreg.http.responses import encode_head
from ipfsreg.oci.digest import Digest
from ipfsreg.testing.fuzz.harness import Target, cuts

MAX_HEAD_BYTES = 32768
MAX_HEADERS = 100

_DIGEST = Digest.of(b"layer")


def _head(data: bytes) -> None:
    """However the bytes arrive, the same head comes out, or a refusal."""
    whole, cut = _read_head([data]), _read_head(cuts(data))
    if isinstance(whole, RequestRefused):
        assert isinstance(cut, RequestRefused)
        raise whole
    assert cut == whole, "the cut of the bytes changes what they say"


def _read_head(pieces: list[bytes]) -> tuple[object, ...] | RequestRefused | None:
    parser = HeadParser(MAX_HEAD_BYTES, MAX_HEADERS)
    used = 0
    try:
        for piece in pieces:
            taken = parser.feed(piece)
            if taken is not None:
                head: Head = parser.take()
                assert head.target.startswith("/") or head.target == "*"
                assert head.body_length is None or head.body_length >= 0
                said = (head.method, head.target, head.headers, head.is_1_1, head.body_length, head.expects_continue)
                return (*said, used + taken)
            used += len(piece)
    except RequestRefused as refused:
        return refused
    return None


def _chunks(data: bytes) -> None:
    """However the bytes arrive, the same payload comes out, or a refusal."""
    whole = _read_chunks([data])
    cut = _read_chunks(cuts(data))
    if isinstance(whole, RequestRefused):
        assert isinstance(cut, RequestRefused)
        raise whole
    assert cut == whole
    assert len(whole[0]) <= len(data)


def _read_chunks(pieces: list[bytes]) -> tuple[bytes, bool, int] | RequestRefused:
    decoder = ChunkDecoder()
    payload, used = bytearray(), 0
    try:
        for piece in pieces:
            buffer = memoryview(bytearray(piece))
            size, taken = decoder.decode(buffer)
            assert size <= taken <= len(piece)
            payload += buffer[:size]
            used += taken
            if decoder.finished:
                break
            assert taken == len(piece)
    except RequestRefused as refused:
        return refused
    return bytes(payload), decoder.finished, used


def _path(data: bytes) -> None:
    """`METHOD path?query`; whatever refuses it must be possible to answer."""
    method, _, target = data.decode("latin-1").partition(" ")
    if not target.isascii() or not target.isprintable():
        return  # the parser of heads lets no other bytes through
    path, _, query = target.partition("?")
    try:
        action = parse_action(method, path, query)
    except IpfsregError as error:
        encode_head(error_response(error), "now", "")
        raise
    for name in ("repository", "source"):
        value = getattr(action, name, None)
        assert value is None or (".." not in value and "%" not in value and len(value) <= 255)


TARGETS = (
    Target(
        "http_head",
        _head,
        (
            b"GET /v2/ HTTP/1.1\r\nHost: a\r\n\r\n",
            b"PUT /v2/a/blobs/uploads/1?digest=x HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\nhello",
            b"PATCH http://a:5/v2/ HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nRange: 0-1\r\n\r\n",
            b"HEAD /v2/ HTTP/1.0\r\nConnection: keep-alive\r\nAccept: a/b\r\nAccept: c/d\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        ),
        MAX_HEAD_BYTES + 4096,
        (RequestRefused,),
        weight=0.5,
    ),
    Target(
        "http_chunks",
        _chunks,
        (
            b"5\r\nhello\r\n0\r\n\r\n",
            b"5;a=b\r\nhello\r\n1 \r\nx\r\n0\r\nTrailer: x\r\n\r\nnext",
            b"fffffffffffffff\r\n",
        ),
        256 * 1024,
        (RequestRefused,),
    ),
    Target(
        "http_path",
        _path,
        tuple(
            text.encode()
            for text in (
                "GET /v2/",
                "GET /v2/_catalog?n=100&last=a",
                f"DELETE /v2/team/app/blobs/{_DIGEST}",
                f"PUT /v2/team%2Fapp/manifests/{_DIGEST}?tag=a&tag=b",
                "POST /v2/a/blobs/uploads/?mount=x&from=b",
                f"POST /v2/a/blobs/uploads?digest={_DIGEST}&digest-algorithm=sha512",
                f"PUT /v2/a/blobs/uploads/abc-1?digest={_DIGEST}",
                f"GET /v2/a/referrers/{_DIGEST}?artifactType=a/b+c",
                "GET /v2/a/tags/list?n=5",
            )
        ),
        MAX_HEAD_BYTES,
        (RegistryError,),
        memory_factor=160,  # each percent sign is an object, for a moment
    ),
)

"""Negotiation of protocols."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.errors import PeerMisbehaved, ProtocolUnsupported
from ipfsreg.p2p.multistream import MAX_PROPOSALS, Dialer, Responder, encode_line
from ipfsreg.testing.connections import deliveries

HEADER = b"\x13/multistream/1.0.0\n"


def offers(*names: str) -> Callable[[str], bool]:
    return names.__contains__


def feed(receive: Callable[[bytes], bytes], pieces: list[bytes]) -> None:
    for piece in pieces:
        receive(piece)


def test_a_line_is_a_varint_a_text_and_a_newline() -> None:
    assert encode_line("/multistream/1.0.0") == HEADER
    assert encode_line("x" * 200)[:2] == b"\xc9\x01"


def test_the_first_common_protocol_is_agreed_on() -> None:
    dialer, responder = Dialer(["/a", "/b", "/c"]), Responder()
    wire = dialer.begin()
    while responder.protocol is None or dialer.protocol is None:
        wire = dialer.receive(responder.receive(wire, offers("/c", "/b")))
    assert dialer.protocol == responder.protocol == "/b"


def test_the_header_is_answered_before_a_proposal_comes() -> None:
    assert Responder().receive(HEADER, offers()) == HEADER


@pytest.mark.parametrize("pieces", deliveries(HEADER + b"\x03/x\n" + b"\x03/a\n" + b"first request"))
def test_lazy_negotiation_survives_every_cut(pieces: list[bytes]) -> None:
    responder = Responder()
    answer, behind = b"", b""
    for piece in pieces:
        if responder.protocol is None:
            answer += responder.receive(piece, offers("/a"))
        else:
            behind += piece
    assert responder.protocol == "/a"
    assert answer == HEADER + b"\x03na\n" + b"\x03/a\n"
    assert responder.rest() + behind == b"first request"


@pytest.mark.parametrize("pieces", deliveries(HEADER + b"\x03na\n" + b"\x03/b\n" + b"first answer"))
def test_the_dialer_survives_every_cut(pieces: list[bytes]) -> None:
    dialer = Dialer(["/a", "/b"])
    sent, behind = dialer.begin(), b""
    for piece in pieces:
        if dialer.protocol is None:
            sent += dialer.receive(piece)
        else:
            behind += piece
    assert dialer.protocol == "/b"
    assert sent == HEADER + b"\x03/a\n" + b"\x03/b\n"
    assert dialer.rest() + behind == b"first answer"


def test_a_dialer_refused_everything_says_what_was_tried() -> None:
    dialer = Dialer(["/a", "/b"])
    dialer.receive(HEADER + b"\x03na\n")
    with pytest.raises(ProtocolUnsupported, match="/a, /b"):
        dialer.receive(b"\x03na\n")


def test_ls_is_not_available() -> None:
    assert Responder().receive(HEADER + b"\x03ls\n", lambda name: True) == HEADER + b"\x03na\n"


@pytest.mark.parametrize(
    "wire",
    [
        b"GET / HTTP/1.1\r\n",
        b"\x00",
        b"\x13/multistream/2.0.0\n",
        HEADER + b"\x00",
        HEADER + b"\xff\xff\xff\xff\x0f",
        HEADER + b"\x81\x08",
        HEADER + b"\x80\x80",
        HEADER + b"\x03/aX",
        HEADER + b"\x04\xff\xfe\xfd\n",
    ],
)
def test_what_is_not_multistream_costs_the_stream(wire: bytes) -> None:
    for pieces in deliveries(wire):
        responder, dialer = Responder(), Dialer(["/a"])
        with pytest.raises(PeerMisbehaved):
            feed(partial(responder.receive, offered=offers("/a")), pieces)
        with pytest.raises(PeerMisbehaved):
            feed(dialer.receive, pieces)


def test_the_first_wrong_byte_is_enough() -> None:
    with pytest.raises(PeerMisbehaved):
        Responder().receive(b"\x12", offers())


def test_endless_proposals_end() -> None:
    responder = Responder()
    responder.receive(HEADER, offers())
    for _ in range(MAX_PROPOSALS):
        assert responder.receive(b"\x03/x\n", offers()) == b"\x03na\n"
    with pytest.raises(PeerMisbehaved, match="proposals"):
        responder.receive(b"\x03/x\n", offers())


def test_an_answer_that_was_not_proposed_costs_the_stream() -> None:
    with pytest.raises(PeerMisbehaved, match="neither"):
        Dialer(["/a"]).receive(HEADER + b"\x03/b\n")


@given(st.lists(st.binary(max_size=40), max_size=20))
def test_garbage_behind_the_header_is_bounded_and_contained(pieces: list[bytes]) -> None:
    responder, dialer = Responder(), Dialer(["/a"])
    for side in (lambda piece: responder.receive(piece, offers("/a")), dialer.receive):
        try:
            side(HEADER)
            for piece in pieces:
                if responder.protocol is None and dialer.protocol is None:
                    side(piece)
        except (PeerMisbehaved, ProtocolUnsupported):
            continue

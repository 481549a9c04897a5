"""Request bodies: framing in any cut, buffers that take turns, bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipfsreg.http.body import PIECE_BYTES, ChunkDecoder, ChunkedBody, FixedBody
from ipfsreg.http.request import BodyTooLarge, ClientGone, RequestRefused


class Wire:
    """Delivers the given pieces, one a call."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.returned = b""
        self.invitations = 0
        self.held = 0
        self.settled = False
        self.gathered = 0

    async def receive_into(self, buffer: memoryview) -> int:
        if not self.pieces:
            return 0
        piece = self.pieces.pop(0)
        count = min(len(piece), len(buffer))
        buffer[:count] = piece[:count]
        if piece[count:]:
            self.pieces.insert(0, piece[count:])
        return count

    async def gather_into(self, buffer: memoryview) -> int:
        self.gathered += 1
        return await self.receive_into(buffer)

    async def invite(self) -> None:
        self.invitations += 1

    def give_back(self, data: bytes) -> None:
        self.returned = data

    def hold(self, size: int) -> None:
        self.held = size

    def settle(self) -> None:
        self.settled = True


CHUNKED = b'5\r\nhello\r\n00A;name="v"\r\n, chunked \r\n1 \r\n!\r\n0\r\nTrailer: x\r\n\r\n'
PAYLOAD = b"hello, chunked !"


async def test_a_chunked_body_reads_the_same_in_every_cut() -> None:
    for first in range(len(CHUNKED) + 1):
        for cut in range(first, len(CHUNKED)):
            wire = Wire(CHUNKED[first:cut] or CHUNKED[cut : cut + 1], *([CHUNKED[cut:]] if cut > first else []))
            if first == cut:
                wire.pieces.append(CHUNKED[cut + 1 :])
            wire.pieces = [piece for piece in wire.pieces if piece]
            body = ChunkedBody(wire, CHUNKED[:first])
            assert await body.read_all(100) == PAYLOAD
            assert body.exhausted


async def test_what_follows_a_chunked_body_goes_back() -> None:
    wire = Wire(CHUNKED[3:] + b"GET /next")
    body = ChunkedBody(wire, CHUNKED[:3])
    assert await body.read_all(100) == PAYLOAD
    assert wire.returned == b"GET /next"
    assert not await body.read()


async def test_what_follows_a_chunked_body_that_came_with_the_head_goes_back_whole() -> None:
    following = b"x" * (PIECE_BYTES + 10)
    wire = Wire()
    body = ChunkedBody(wire, CHUNKED + following)
    assert await body.read_all(100) == PAYLOAD
    assert wire.returned == following


async def test_many_small_chunks_become_one_piece() -> None:
    wire = Wire(b"".join(b"3\r\nabc\r\n" for _ in range(1000)) + b"0\r\n\r\n")
    body = ChunkedBody(wire, b"")
    assert bytes(await body.read()) == b"abc" * 1000
    assert not await body.read()


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=8), st.lists(st.integers(1, 50), min_size=1))
@settings(max_examples=200)
def test_the_decoder_gives_back_what_was_chunked(chunks: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    decoder = ChunkDecoder()
    out = b""
    position = turn = 0
    while position < len(wire):
        piece = bytearray(wire[position : position + cuts[turn % len(cuts)]])
        payload, used = decoder.decode(memoryview(piece))
        out += piece[:payload]
        position += used
        turn += 1
    assert decoder.finished
    assert out == b"".join(chunks)


def decode_all(wire: bytes, step: int) -> None:
    decoder = ChunkDecoder()
    for start in range(0, len(wire), step):
        decoder.decode(memoryview(bytearray(wire[start : start + step])))


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"x\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"1_0\r\n",
        b"5\nhello\r\n",
        b"5\r\rhello\r\n",
        b"5\r\nhelloo\r\n",
        b"5\r\nhello5\r\n",
        b"5\r\nhello\n0\r\n\r\n",
        b"ffffffffffffffff\r\n",
        b"5;" + b"a" * 300 + b"\r\n",
        b"0\r\n" + b"T: x\r\n" * 3000,
    ],
)
def test_broken_framing_is_refused(wire: bytes) -> None:
    for step in (1, 7, len(wire)):
        with pytest.raises(RequestRefused):
            decode_all(wire, step)


async def test_a_fixed_body_takes_exactly_its_length() -> None:
    wire = Wire()
    body = FixedBody(wire, b"hello world GET", 11)
    assert wire.returned == b" GET"
    assert await body.read_all(11) == b"hello world"
    assert body.exhausted


async def test_a_fixed_body_never_reads_into_the_next_request() -> None:
    wire = Wire(b"llo worldGET /")
    body = FixedBody(wire, b"he", 11)
    assert await body.read_all(11) == b"hello world"
    assert wire.pieces == [b"GET /"]


async def read_into(body: FixedBody | ChunkedBody, size: int) -> tuple[bytes, int]:
    """All of *body* through buffers of *size*, and how many were filled."""
    whole, count = b"", 0
    buffer = memoryview(bytearray(size))
    while filled := await body.read_into(buffer):
        whole += buffer[:filled]
        count += 1
    return whole, count


@pytest.mark.parametrize("size", [1, 7, 8, 30, 1000])
async def test_a_body_fills_the_buffers_of_its_reader(size: int) -> None:
    for first in range(len(PAYLOAD) + 1):
        rest = PAYLOAD[first:]
        wire = Wire(*(rest[start : start + 3] for start in range(0, len(rest), 3)))
        body = FixedBody(wire, PAYLOAD[:first], len(PAYLOAD))
        assert await read_into(body, size) == (PAYLOAD, -(-len(PAYLOAD) // size))
        assert body.exhausted
        assert wire.returned == b""


@pytest.mark.parametrize("size", [1, 7, 8, 30, 1000])
async def test_a_chunked_body_reads_the_same_into_buffers_of_any_size(size: int) -> None:
    for first in range(len(CHUNKED) + 1):
        for step in (1, 2, 5, 100):
            rest = CHUNKED[first:] + b"GET"
            wire = Wire(*(rest[start : start + step] for start in range(0, len(rest), step)))
            body = ChunkedBody(wire, CHUNKED[:first])
            assert (await read_into(body, size))[0] == PAYLOAD
            assert body.exhausted
            assert (wire.returned + b"".join(wire.pieces)) == b"GET"


async def test_a_stream_of_chunks_fills_the_buffer_and_a_small_one_is_not_waited_for() -> None:
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    wire = Wire(*[chunk + chunk] * 5, b"0\r\n\r\n")
    body = ChunkedBody(wire, b"")
    assert await read_into(body, 1 << 20) == (bytes(10 * 0x8000), 1)
    small = Wire(b"5\r\nhello\r\n", b"0\r\n\r\n")
    assert await read_into(ChunkedBody(small, b""), 1 << 20) == (b"hello", 1)
    assert small.gathered == 0, "its sender may wait for the answer already"


async def test_what_came_before_the_client_was_gone_is_given_first() -> None:
    body = FixedBody(Wire(b"ab", b"c"), b"", 4)
    buffer = memoryview(bytearray(10))
    assert await body.read_into(buffer) == 3
    with pytest.raises(ClientGone):
        await body.read_into(buffer)


async def test_the_client_is_invited_only_when_its_body_is_wanted() -> None:
    wire = Wire(b"abc")
    body = FixedBody(wire, b"", 3)
    assert wire.invitations == 0
    await body.read()
    assert wire.invitations == 1


async def test_a_client_that_ends_early_is_gone() -> None:
    with pytest.raises(ClientGone):
        await FixedBody(Wire(b"ab"), b"", 3).read_all(10)
    with pytest.raises(ClientGone):
        await ChunkedBody(Wire(b"3\r\nab"), b"").read_all(10)


async def test_a_body_announced_too_large_is_refused_unread() -> None:
    wire = Wire(b"x" * 11)
    with pytest.raises(BodyTooLarge):
        await FixedBody(wire, b"", 11).read_all(10)
    assert wire.pieces == [b"x" * 11]
    assert wire.invitations == 0


async def test_a_chunked_body_is_refused_when_it_becomes_too_large() -> None:
    with pytest.raises(BodyTooLarge):
        await ChunkedBody(Wire(b"b\r\nhello world\r\n" * 3), b"").read_all(20)


async def test_a_small_body_takes_a_small_buffer() -> None:
    body = FixedBody(Wire(b"abc"), b"", 3)
    assert len((await body.read()).obj) == 3  # type: ignore[arg-type]


async def test_a_body_that_is_read_whole_tells_what_it_holds_and_when_it_is_whole() -> None:
    wire = Wire(b"a" * 1000, b"b" * 500)
    body = FixedBody(wire, b"", 1500)
    assert await body.read_all(2000) == b"a" * 1000 + b"b" * 500
    assert (wire.held, wire.settled) == (1500, True)


async def test_a_body_that_does_not_become_whole_is_never_settled() -> None:
    wire = Wire(b"a" * 1000)
    with pytest.raises(ClientGone):
        await FixedBody(wire, b"", 1500).read_all(2000)
    assert (wire.held, wire.settled) == (1000, False)

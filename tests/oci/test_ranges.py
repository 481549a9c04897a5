"""Byte ranges."""

import pytest

from ipfsreg.errors import RangeInvalid
from ipfsreg.oci.ranges import parse_content_range, parse_range


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=500-1499", (500, 1500)),
        ("bytes=500-", (500, 2048)),
        ("bytes=-500", (1548, 2048)),
        ("bytes=-5000", (0, 2048)),
        ("bytes=2000-5000", (2000, 2048)),
        ("bytes=2047-", (2047, 2048)),
        ("Bytes=0-9", (0, 10)),
        ("bytes= 0-9 ", (0, 10)),
    ],
)
def test_a_range_is_read_and_cut_to_what_there_is(text: str, expected: tuple[int, int]) -> None:
    assert parse_range(text, 2048) == expected


@pytest.mark.parametrize("text", ["items=0-5", "bytes=0-1,5-6", "bytes", ""])
def test_what_may_be_answered_with_the_whole_is(text: str) -> None:
    assert parse_range(text, 2048) is None


@pytest.mark.parametrize(
    "text",
    ["bytes=500-0", "bytes=2048-", "bytes=5000-10000", "bytes=-0", "bytes=-", "bytes=a-b", "bytes=--1", "bytes=1",
     "bytes=", "bytes=1-2-3", "bytes=+1-2", "bytes=99999999999999999999-", "bytes=\u0661-2"],
)  # fmt: skip
def test_a_range_outside_of_the_content_is_refused(text: str) -> None:
    with pytest.raises(RangeInvalid):
        parse_range(text, 2048)


def test_nothing_is_a_range_of_an_empty_blob() -> None:
    with pytest.raises(RangeInvalid):
        parse_range("bytes=0-", 0)


@pytest.mark.parametrize("text", ["0-1048575", "bytes 0-1048575/2097152", "bytes 0-1048575/*", " 0-1048575 "])
def test_a_chunk_says_where_it_belongs(text: str) -> None:
    assert parse_content_range(text) == (0, 1048576)


@pytest.mark.parametrize("text", ["", "5", "5-", "-5", "9-8", "a-b", "bytes=0-5", "0-5/", "0-5/x", "1" * 30 + "-2"])
def test_a_chunk_whose_place_is_none_is_refused(text: str) -> None:
    with pytest.raises(RangeInvalid):
        parse_content_range(text)

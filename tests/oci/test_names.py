import time

import pytest

from ipfsreg.errors import DigestInvalid, NameInvalid, TagInvalid
from ipfsreg.oci.digest import Digest
from ipfsreg.oci.names import parse_reference, parse_repository, parse_tag


@pytest.mark.parametrize(
    "text",
    ["a", "0", "team/app", "a/b/c/d", "a.b_c__d-e---f", "library/debian", "192.168.0.1/x", "a" * 255, "a/" * 127 + "b"],
)
def test_repository_names_of_the_spec_are_taken(text: str) -> None:
    assert parse_repository(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "a/",
        "/a",
        "a//b",
        "A",
        "a/B",
        "a..b",
        "a___b",
        "a._b",
        "-a",
        "a-",
        ".a",
        "a/../b",
        "a/./b",
        "a b",
        "a\n",
        "a:b",
        "a@b",
        "a%2fb",
        "é",
        "a\x00",
        "a" * 256,
    ],
)
def test_other_repository_names_are_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        parse_repository(text)


def test_no_name_takes_long_to_refuse() -> None:
    began = time.process_time()
    for text in ("a-" * 127, "a" + "-" * 253, "a/" * 126 + "a!", "a__" * 84 + "!", "a" * 254 + "!"):
        with pytest.raises(NameInvalid):
            parse_repository(text)
    assert time.process_time() - began < 1


@pytest.mark.parametrize("text", ["latest", "1.0", "_", "A", "v1.2.3-rc.1_x", "sha256-abc", "a" * 128])
def test_tags_of_the_spec_are_taken(text: str) -> None:
    assert parse_tag(text) == parse_reference(text) == text


@pytest.mark.parametrize("text", ["", ".a", "-a", "a/b", "a b", "a\n", "..", "é", "a" * 129, "a%3ab"])
def test_other_tags_are_refused(text: str) -> None:
    with pytest.raises(TagInvalid):
        parse_reference(text)


def test_a_reference_with_a_colon_is_a_digest_or_nothing() -> None:
    digest = Digest.of(b"")
    assert parse_reference(str(digest)) == digest
    with pytest.raises(DigestInvalid):
        parse_reference("latest:1")
    with pytest.raises(TagInvalid):
        parse_tag(str(digest))

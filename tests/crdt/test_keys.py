import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.crdt.interface import Put
from ipfsreg.crdt.keys import MAX_COMMIT_BYTES, MAX_KEY_BYTES, check_changes, end_of_prefix, is_normal_key


@pytest.mark.parametrize(
    "key", ["/a", "/a/b", "/a.b/..c", "/é", "/ ", "/r/team/app/_t/1.0", "/" + "k" * (MAX_KEY_BYTES - 1)]
)
def test_normal_keys(key: str) -> None:
    assert is_normal_key(key)


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "a", "a/b", "/a/", "//a", "/a//b", "/.", "/..", "/a/..", "/a/../b", "/a/./b", "/a\0b", "/\ud800"),
        "/" + "k" * MAX_KEY_BYTES,
        "/" + "é" * (MAX_KEY_BYTES // 2),
    ],
)
def test_keys_that_are_not_normal(key: str) -> None:
    assert not is_normal_key(key)


TEXT = st.text(alphabet="a/\ud7ff\ue000\uffff\U00010000\U0010ffff", max_size=5)


@given(TEXT, TEXT)
def test_the_end_of_a_prefix_parts_what_begins_with_it_from_what_comes_after(prefix: str, text: str) -> None:
    end = end_of_prefix(prefix)
    inside = text >= prefix and (end is None or text < end)
    assert inside == text.startswith(prefix) or (not prefix and end is None)


def test_a_commit_that_fits_no_block_is_refused() -> None:
    half = bytes(MAX_COMMIT_BYTES // 2)
    with pytest.raises(ValueError, match="bytes"):
        check_changes([Put("/a", half), Put("/b", half)])
    check_changes([Put("/a", half), Put("/b", half[:-4])])

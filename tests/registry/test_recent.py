from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.oci.digest import Digest
from ipfsreg.registry.recent import RecentContent


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    recent = RecentContent(400)
    contents = [bytes([number]) * 100 for number in range(5)]
    digests = [Digest.of(content) for content in contents]
    for digest, content in zip(digests[:4], contents[:4], strict=True):
        recent.put(digest, content)
    assert recent.get(digests[0]) == contents[0]
    recent.put(digests[4], contents[4])
    assert [recent.get(digest) is not None for digest in digests] == [True, False, True, True, True]


def test_one_large_content_does_not_drive_out_the_others() -> None:
    recent = RecentContent(400)
    recent.put(Digest.of(b"small"), b"small")
    recent.put(Digest.of(bytes(101)), bytes(101))
    assert recent.get(Digest.of(bytes(101))) is None
    assert recent.get(Digest.of(b"small")) == b"small"


@given(st.lists(st.binary(max_size=60), max_size=60))
def test_it_never_holds_more_than_it_may_nor_anything_wrong(contents: list[bytes]) -> None:
    recent = RecentContent(200)
    for content in contents:
        recent.put(Digest.of(content), content)
        assert recent.bytes_held <= 200
        assert recent.get(Digest.of(content)) in (None, content)
    held = [recent.get(digest) for digest in {Digest.of(content) for content in contents}]
    assert sum(len(content) for content in held if content is not None) == recent.bytes_held

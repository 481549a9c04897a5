"""What was looked up counts under its own version alone."""

from __future__ import annotations

from ipfsreg.registry.lookups import Lookups


def test_what_was_found_is_found_again_until_something_is_committed() -> None:
    lookups: Lookups[str, int] = Lookups(10)
    lookups.put(2, "a", 1)
    assert lookups.get(2, "a") == 1
    assert lookups.get(2, "b") is None
    assert lookups.get(4, "a") is None
    lookups.put(4, "b", 2)
    assert (lookups.get(4, "a"), lookups.get(4, "b")) == (None, 2)


def test_while_something_is_committed_nothing_counts() -> None:
    lookups: Lookups[str, int] = Lookups(10)
    assert lookups.get(None, "a") is None
    lookups.put(None, "a", 1)
    assert lookups.get(None, "a") is None
    lookups.put(2, "a", 1)
    lookups.put(None, "a", 2)
    assert lookups.get(None, "a") is None


def test_what_comes_late_from_an_older_version_is_never_taken_for_now() -> None:
    lookups: Lookups[str, int] = Lookups(10)
    lookups.put(4, "a", 2)
    lookups.put(2, "a", 1)
    assert lookups.get(4, "a") is None


def test_no_more_is_kept_than_allowed() -> None:
    lookups: Lookups[int, int] = Lookups(10)
    for number in range(100):
        lookups.put(2, number, number)
    assert sum(lookups.get(2, number) is not None for number in range(100)) == 10
    assert lookups.get(2, 99) == 99

"""The judge of images must find what is broken, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ipfsreg.testing.soak import GONE, WHOLE, Image, Ledger, Push, Removal, Shown, due_of, judge

APP = Image("app", "m1", frozenset(["config", "layer"]))
CHILD = Image("app", "m2", frozenset(["layer"]))
INDEX = Image("app", "index", frozenset(), (CHILD,))
SIGNATURE = Image("app", "m3", frozenset(["layer"]), (), "m1")

NEVER = float("inf")


def push(image: Image, tag: str | None, at: float, outcome: str = "done", node: str = "alice") -> Push:
    return Push(node, image, tag, at, NEVER if outcome == "unknown" else at + 1, outcome)


def removal(kind: str, what: str, at: float, outcome: str = "done", node: str = "alice") -> Removal:
    return Removal(node, "app", kind, what, at, NEVER if outcome == "unknown" else at + 1, outcome)


def ledger(*entries: Push | Removal) -> Ledger:
    made = Ledger()
    for entry in entries:
        made.add(entry)
    return made


def right(made: Ledger) -> Shown:
    """What a node without fault shows, if the last push of each tag won and nothing hangs in the balance."""
    due = due_of(made)
    tags: dict[tuple[str, str], str | None] = {}
    for one in made.pushes:
        if one.tag is not None:
            stays = ("app", one.image.digest) in due.manifests
            tags["app", one.tag] = one.image.digest if stays else None
    for gone in made.removals:
        if gone.kind == "tag":
            tags["app", gone.what] = None
    referrers = {
        ("app", one.image.subject): frozenset([one.image.digest] if ("app", one.image.digest) in due.manifests else [])
        for one in made.pushes
        if one.image.subject is not None
    }
    manifests = dict.fromkeys(due.gone, GONE) | dict.fromkeys(due.manifests, WHOLE)
    return Shown(tags, manifests, dict.fromkeys(due.blobs, WHOLE), referrers)


def test_what_was_acknowledged_is_due_with_all_below_it() -> None:
    made = ledger(push(APP, "1.0", 0), push(INDEX, "2.0", 0), push(SIGNATURE, None, 5))
    due = due_of(made)
    assert set(due.manifests) == {("app", "m1"), ("app", "index"), ("app", "m2"), ("app", "m3")}
    assert set(due.blobs) == {("app", "config"), ("app", "layer")}
    assert judge(made, {"alice": right(made), "bob": right(made)}) == []


@pytest.mark.parametrize("outcome", ["refused", "unknown"])
def test_what_was_not_acknowledged_is_not_due(outcome: str) -> None:
    made = ledger(push(APP, "1.0", 0, outcome))
    assert due_of(made).manifests == {}
    shown = Shown({("app", "1.0"): None}, {("app", "m1"): GONE}, {}, {})
    assert judge(made, {"alice": shown}) == []


def test_a_deletion_excuses_what_was_pushed_before_it_ended() -> None:
    assert due_of(ledger(push(APP, "1.0", 0), removal("manifest", "m1", 0.5))).manifests == {}
    assert due_of(ledger(push(APP, "1.0", 0), removal("manifest", "m1", 9, "unknown"))).manifests == {}
    assert ("app", "layer") not in due_of(ledger(push(APP, "1.0", 0), removal("blob", "layer", 9))).blobs


def test_a_push_after_a_deletion_is_due() -> None:
    made = ledger(push(APP, "1.0", 0), removal("manifest", "m1", 2), removal("blob", "layer", 2), push(APP, "1.0", 4))
    assert set(due_of(made).manifests) == {("app", "m1")}
    assert ("app", "layer") in due_of(made).blobs
    assert due_of(ledger(push(APP, "1.0", 0), removal("manifest", "m1", 2, "refused"))).manifests


def test_an_index_pushed_later_keeps_what_it_lists() -> None:
    assert ("app", "m2") in due_of(
        ledger(push(CHILD, None, 0), removal("manifest", "m2", 2), push(INDEX, "1", 4))
    ).manifests


def test_a_deletion_by_who_knew_all_is_for_good() -> None:
    assert due_of(ledger(push(APP, "1.0", 0), removal("manifest", "m1", 2))).gone
    assert due_of(ledger(push(APP, "1.0", 0), push(APP, "1.1", 2), removal("manifest", "m1", 4))).gone
    elsewhere = push(APP, "1.1", 2, node="bob")
    assert not due_of(ledger(push(APP, "1.0", 0), elsewhere, removal("manifest", "m1", 4))).gone


@pytest.mark.parametrize(
    ("broken", "finding"),
    [
        ({"manifests": {("app", "m1"): GONE, ("app", "m3"): WHOLE}}, "manifest m1 of app is gone"),
        ({"blobs": {("app", "config"): WHOLE, ("app", "layer"): "503 no peer"}}, "blob layer of app is 503 no peer"),
        ({"referrers": {("app", "m1"): frozenset()}}, "m3 is no referrer of m1"),
        ({"tags": {("app", "1.0"): None}}, "app:1.0 is gone, and nobody deleted it"),
        ({"tags": {("app", "1.0"): "m9"}}, "app:1.0 is m9, which nobody pushed"),
    ],
)
def test_each_broken_promise_is_found(broken: dict[str, object], finding: str) -> None:
    made = ledger(push(APP, "1.0", 0), push(SIGNATURE, None, 2))
    shown = replace(right(made), **broken)  # type: ignore[arg-type]
    assert any(finding in found for found in judge(made, {"alice": shown}))


def test_nodes_must_show_the_same_tag() -> None:
    made = ledger(push(APP, "1.0", 0), push(INDEX, "1.0", 0))
    one = right(made)
    other = replace(one, tags={("app", "1.0"): "m1"})
    assert any("differs" in found for found in judge(made, {"alice": one, "bob": other}))


def test_what_was_deleted_must_not_be_back() -> None:
    made = ledger(push(SIGNATURE, "1.0", 0), removal("manifest", "m3", 2))
    back = Shown({("app", "1.0"): "m3"}, {("app", "m3"): WHOLE}, {}, {("app", "m1"): frozenset(["m3"])})
    found = judge(made, {"alice": back})
    assert any("m3 of app is back" in one for one in found)
    assert any("still, and was deleted" in one for one in found)


def test_a_tag_must_not_point_at_what_is_gone() -> None:
    made = ledger(push(APP, "1.0", 0, node="bob"), push(APP, "1.1", 0), removal("manifest", "m1", 4))
    dangling = Shown({("app", "1.0"): "m1", ("app", "1.1"): None}, {("app", "m1"): GONE}, {}, {})
    assert judge(made, {"alice": dangling}) == ["alice: app:1.0 points at m1, which is gone"]


def test_what_was_taken_by_force_is_excused() -> None:
    made = ledger(push(APP, "1.0", 0))
    shown = replace(right(made), blobs={("app", "config"): WHOLE, ("app", "layer"): "503 no peer"})
    assert judge(made, {"alice": shown}, lost={"layer"}) == []


def test_a_deletion_is_known_from_when_it_is_asked_for() -> None:
    made = ledger(push(APP, "1.0", 0))
    asked = removal("manifest", "m1", 5, "unknown")
    made.add(asked)
    assert made.removed_since("app", "manifest", "m1", 100)
    made.settle(asked, replace(asked, ended=6, outcome="done"))
    assert not made.removed_since("app", "manifest", "m1", 100)
    assert made.removed_since("app", "manifest", "m1", 5.5)

from hypothesis import given
from hypothesis import strategies as st

from ipfsreg.oci.digest import Digest
from ipfsreg.oci.manifest import parse_manifest
from ipfsreg.registry.marking import References, Sentence, judge, reached, references_of, unnamed
from ipfsreg.testing.sites import image_of, index_of

A, B, C, D, E = (Digest.of(text) for text in (b"a", b"b", b"c", b"d", b"e"))


def names(*content: Digest, subject: Digest | None = None) -> References:
    return References(frozenset(content), subject)


def test_a_manifest_names_its_content_and_its_subject() -> None:
    subject = image_of(b"one")
    found = references_of(parse_manifest(image_of(b"layer", subject=subject)))
    assert found == References(frozenset({Digest.of(b"{}"), Digest.of(b"layer")}), Digest.of(subject))
    assert references_of(parse_manifest(index_of(subject))).content == {Digest.of(subject)}


def test_what_may_be_had_from_elsewhere_is_named_too() -> None:
    foreign = b"application/vnd.oci.image.layer.nondistributable.v1.tar"
    data = image_of(b"layer").replace(b"application/vnd.oci.image.layer.v1.tar", foreign)
    assert Digest.of(b"layer") in references_of(parse_manifest(data)).content


def test_children_of_what_is_reached_are_reached() -> None:
    assert reached([A], {A: names(B), B: names(C), C: names(D), E: names()}) == {A, B, C}


def test_referrers_of_what_is_reached_are_reached_with_all_they_need() -> None:
    manifests = {A: names(B), B: names(), C: names(D, subject=B), D: names(), E: names(subject=C)}
    assert reached([A], manifests) == {A, B, C, D, E}


def test_a_referrer_of_what_is_not_reached_is_not() -> None:
    assert reached([A], {A: names(), B: names(), C: names(subject=B), D: names(subject=E)}) == {A}


def test_circles_end() -> None:
    assert reached([A], {A: names(B), B: names(A), C: names(subject=C)}) == {A, B}


def test_a_tag_may_point_at_what_is_not_there() -> None:
    assert reached([E], {A: names()}) == set()


def test_a_link_stays_while_any_manifest_names_its_blob() -> None:
    assert unnamed([A, B, C], {D: names(A), E: names(A, B)}) == [C]
    assert unnamed([A], {}) == [A]


def test_what_was_garbage_for_the_whole_grace_is_due() -> None:
    known = {"old": Sentence(b"1", 0.0), "young": Sentence(b"1", 60.0)}
    verdict = judge(known, {"old": b"1", "young": b"1", "new": b"1"}, (), now_s=100.0, grace_s=100.0)
    assert verdict.due == ["old"]
    assert verdict.condemned == {"new": Sentence(b"1", 100.0)}
    assert verdict.pardoned == []


def test_another_version_begins_anew() -> None:
    verdict = judge({"a": Sentence(b"1", 0.0)}, {"a": b"2"}, (), now_s=100.0, grace_s=10.0)
    assert verdict.due == []
    assert verdict.condemned == {"a": Sentence(b"2", 100.0)}


def test_what_is_needed_again_or_held_is_pardoned() -> None:
    known = {"named": Sentence(b"1", 0.0), "held": Sentence(b"1", 0.0)}
    verdict = judge(known, {"held": b"1"}, {"held"}, now_s=100.0, grace_s=10.0)
    assert verdict.due == []
    assert verdict.condemned == {}
    assert sorted(verdict.pardoned) == ["held", "named"]


def test_nothing_is_due_at_the_first_look_even_without_a_grace() -> None:
    assert judge({}, {"a": b"1"}, (), now_s=5.0, grace_s=0.0).due == []
    assert judge({"a": Sentence(b"1", 5.0)}, {"a": b"1"}, (), now_s=5.0, grace_s=0.0).due == ["a"]


def test_a_clock_that_was_set_back_makes_nothing_due_for_ever_or_at_once() -> None:
    verdict = judge({"a": Sentence(b"1", 500.0)}, {"a": b"1"}, (), now_s=5.0, grace_s=10.0)
    assert verdict.due == []
    assert verdict.condemned == {"a": Sentence(b"1", 5.0)}


DIGESTS = [Digest.of(bytes([number])) for number in range(8)]


@given(
    st.dictionaries(
        st.sampled_from(DIGESTS),
        st.builds(
            References,
            st.frozensets(st.sampled_from(DIGESTS), max_size=3),
            st.none() | st.sampled_from(DIGESTS),
        ),
    ),
    st.sets(st.sampled_from(DIGESTS), max_size=3),
)
def test_what_is_reached_is_closed_and_grows_with_its_roots(
    manifests: dict[Digest, References], roots: set[Digest]
) -> None:
    live = reached(roots, manifests)
    assert roots & manifests.keys() <= live <= manifests.keys()
    for digest, refers in manifests.items():
        if digest in live:
            assert refers.content & manifests.keys() <= live
        if refers.subject in live:
            assert digest in live
    for root in roots:
        assert reached([root], manifests) <= live

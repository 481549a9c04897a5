"""The fast share of `bench/fuzz.py`: every decoder on saved inputs, on changes of them, and on very large ones."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from ipfsreg.testing.fuzz import harness
from ipfsreg.testing.fuzz.harness import Broken, Target, check, cuts
from ipfsreg.testing.fuzz.mutation import Mutator, read_tree
from ipfsreg.testing.fuzz.targets import TARGETS, load_corpus, save_corpus

CORPUS = Path(__file__).parent / "vectors" / "fuzz"

CHANGED, SWOLLEN = 6000, 2
"""Inputs for each target, by its weight; the seconds go to the large ones."""


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_keeps_its_promises_on_any_bytes(name: str) -> None:
    target = TARGETS[name]
    inputs = [*target.seeds, *load_corpus(CORPUS, target)]
    assert any(check(target, data) for data in inputs) or name.startswith("noise_"), "nothing valid to begin from"
    rng = Random(name)
    mutator = Mutator(rng, max_bytes=min(target.max_bytes, 4096), is_protobuf=target.is_protobuf)
    for _ in range(max(20, round(CHANGED * target.weight))):
        check(target, mutator.mutate(rng.choice(inputs), rng.choice(inputs)))


@pytest.mark.parametrize("name", TARGETS)
def test_a_decoder_is_bounded_on_the_largest_inputs(name: str) -> None:
    target = TARGETS[name]
    rng = Random(name)
    mutator = Mutator(rng, max_bytes=target.max_bytes, is_protobuf=target.is_protobuf)
    inputs = [*target.seeds, *load_corpus(CORPUS, target)]
    for _ in range(SWOLLEN):
        check(target, mutator.swell(rng.choice(inputs)))
    # Watching memory costs ten times as much: smaller inputs show the same factor.
    smaller = Mutator(rng, max_bytes=min(target.max_bytes, 128 * 1024), is_protobuf=target.is_protobuf)
    check(target, smaller.swell(rng.choice(inputs)), memory=True)


# ------------------------------------------------------------------ the tools themselves


def broken(run: str) -> Target:
    """A target that misbehaves in the way named."""

    def misbehave(data: bytes) -> None:
        match run:
            case "fails":
                raise KeyError("x")
            case "hoards":
                hoard = [bytearray(1000) for _ in range(10_000)]
                assert hoard
            case _:
                sum(range(1_000_000))

    return Target(run, misbehave, (b"x",), 100)


def test_what_breaks_a_promise_is_told_with_its_input(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Broken, match="fails: KeyError: 'x', given 616263") as told:
        check(broken("fails"), b"abc")
    assert told.value.data == b"abc"
    with pytest.raises(Broken, match="bytes of memory"):
        check(broken("hoards"), b"abc", memory=True)
    monkeypatch.setattr(harness, "MAX_CPU_S", 0.001)
    with pytest.raises(Broken, match="s of CPU"):
        check(broken("dawdles"), b"abc")


def test_pieces_are_the_whole_and_cut_alike_each_time() -> None:
    data = Random(1).randbytes(1000)
    assert b"".join(cuts(data)) == data
    assert cuts(data) == cuts(data)
    assert len(cuts(data)) > 10


def test_a_message_is_changed_inside_its_lengths() -> None:
    seed = TARGETS["gossip_rpc"].seeds[1]
    mutator = Mutator(Random(3), max_bytes=65536, is_protobuf=True)
    swollen = [mutator.swell(seed) for _ in range(20)]
    assert sum(read_tree(data) is not None for data in swollen) > 8
    assert all(60_000 < len(data) <= 65536 for data in swollen)


def test_a_corpus_survives_being_saved(tmp_path: Path) -> None:
    target = TARGETS["cid"]
    assert load_corpus(tmp_path, target) == []
    save_corpus(tmp_path, target, [b"long", b"", b"x", b"x"])
    assert load_corpus(tmp_path, target) == [b"x", b"long"]

"""What a decoder promises about any bytes at all, and how that is checked.

A `Target` is one decoder and what must hold of everything it accepts. `check` gives it one input and raises `Broken`
unless what came of it is right: accepted, or refused with an error its docstring names; soon; and, where asked, within
memory that its input accounts for.

Whoever runs the targets brings the inputs: `bench/fuzz.py` lets coverage guide them, `tests/test_fuzz.py` has saved
ones and a fixed seed.
"""

from __future__ import annotations

import time
import tracemalloc
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ipfsreg.errors import MalformedData

T = TypeVar("T")

MAX_CPU_S = 1.0
"""CPU seconds one input may take, whatever its size and whatever the target does with it besides decoding."""

MEMORY_FACTOR = 48
"""Bytes of Python objects that a byte of input may become: a field of two bytes is an object or two."""

MEMORY_FLOOR_BYTES = 1024 * 1024
"""What a decoder may take for itself."""


class Broken(AssertionError):
    """A decoder broke a promise; the input is in `data`."""

    def __init__(self, target: Target, data: bytes, how: str) -> None:
        shown = data.hex() if len(data) <= 512 else f"{data[:256].hex()}… ({len(data)} bytes)"
        super().__init__(f"{target.name}: {how}, given {shown}")
        self.data = data


@dataclass(frozen=True, slots=True)
class Target:
    """One decoder."""

    name: str
    run: Callable[[bytes], None]
    """Decodes, and asserts what must hold of what was decoded."""
    seeds: tuple[bytes, ...]
    """Valid inputs, to begin from."""
    max_bytes: int
    """The largest input that gets as far as the decoder in the product."""
    allowed: tuple[type[Exception], ...] = (MalformedData,)
    """What refusing may look like."""
    is_protobuf: bool = False
    """Whether inputs are nested protobufs, and so are best changed field by field."""
    memory_factor: int = MEMORY_FACTOR
    """Another one where the input is small anyhow."""
    weight: float = field(default=1.0, compare=False)
    """Share of the inputs of a run, where one costs much more than elsewhere."""


def check(target: Target, data: bytes, *, memory: bool = False) -> bool:
    """Give *data* to *target*; return whether it was accepted.

    Args:
        memory: watch the memory as well, which takes ten times as long.

    Raises:
        Broken: something happened that must not.
    """
    took = _run(target, data, memory=memory)
    if abs(took) > MAX_CPU_S and not memory:
        # Another process may have taken the cache, or the collector its turn: only what is always slow counts.
        took = min(abs(took), *(abs(_run(target, data, memory=False)) for _ in range(2)))
        if took > MAX_CPU_S:
            raise Broken(target, data, f"it took {took:.2f} s of CPU")
    return took >= 0


def _run(target: Target, data: bytes, *, memory: bool) -> float:
    """CPU seconds it took; negative where it was refused."""
    sign = 1.0
    if memory:
        tracemalloc.start()
    began = time.thread_time()
    try:
        target.run(data)
    except target.allowed:
        sign = -1.0
    except Exception as error:  # what a decoder may not raise is what is looked for
        raise Broken(target, data, f"{type(error).__name__}: {error}") from error
    finally:
        took = time.thread_time() - began
        if memory:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
    if memory and peak > MEMORY_FLOOR_BYTES + target.memory_factor * len(data):
        raise Broken(target, data, f"it took {peak} bytes of memory")
    return sign * max(took, 1e-9)


def drive(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as finished:
        result: T = finished.value
        return result
    coroutine.close()
    raise AssertionError("it waits")


def cuts(data: bytes) -> list[bytes]:
    """*data* in pieces, of sizes that follow from its bytes: the same input is always cut alike."""
    pieces, position = [], 0
    step = 1 + (data[0] if data else 0) % 17
    while position < len(data):
        pieces.append(data[position : position + step])
        position += step
        step = 1 + (step * 7 + pieces[-1][-1]) % 61
    return pieces

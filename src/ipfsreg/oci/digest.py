"""Content digests as the OCI writes them: `sha256:` and 64 hex digits. Spec: image-spec descriptor.md, "Digests"."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ipfsreg.errors import DigestInvalid

if TYPE_CHECKING:
    from hashlib import _Hash

_HEX_DIGITS = {"sha256": 64, "sha512": 128}
_FORM = re.compile(r"(sha256|sha512):([0-9a-f]+)", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """An algorithm we know and the lower-case hex of its hash. Holding one proves its form was checked."""

    algorithm: str
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Read the text form.

        Raises:
            DigestInvalid: unknown algorithm, wrong length, upper case, or anything else that is not a digest.
        """
        match = _FORM.fullmatch(text)
        if match is None or len(match[2]) != _HEX_DIGITS[match[1]]:
            raise DigestInvalid(f"{text[:160]!r} is not a sha256 or sha512 digest")
        return cls(match[1], match[2])

    @classmethod
    def of(cls, data: bytes | memoryview, algorithm: str = "sha256") -> Digest:
        """The digest of *data*."""
        return cls(algorithm, hashlib.new(algorithm, data).hexdigest())

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"

    @property
    def raw(self) -> bytes:
        """The hash as bytes."""
        return bytes.fromhex(self.hex)

    def hasher(self) -> _Hash:
        """A fresh hash object of this digest's algorithm."""
        return hashlib.new(self.algorithm)

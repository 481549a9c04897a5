"""What the cipher and the hash alone allow, measured beside whatever is compared with it."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

MIB = 1024 * 1024
NOISE_BYTES = 65519
"""The plaintext of a full Noise message."""


@dataclass(frozen=True)
class Ideal:
    """Bytes per second on one core."""

    cipher: float
    hash: float

    @property
    def in_turn(self) -> float:
        """One after the other, as one core would do it that does nothing else."""
        return 1 / (1 / self.cipher + 1 / self.hash)

    def __str__(self) -> str:
        return (
            f"ChaCha20-Poly1305 {self.cipher / 1e6:.0f} MB/s, sha256 {self.hash / 1e6:.0f} MB/s, "
            f"in turn {self.in_turn / 1e6:.0f} MB/s"
        )


def measure_ideal() -> Ideal:
    """OpenSSL's ChaCha20-Poly1305 on Noise messages and its sha256 on blocks, medians of nine; half a second."""
    cipher, nonce = ChaCha20Poly1305(bytes(32)), bytes(12)
    data, out = os.urandom(NOISE_BYTES), bytearray(NOISE_BYTES + 16)
    block = os.urandom(MIB)
    ciphered, hashed = [], []
    for _ in range(9):
        began = time.perf_counter()
        for _ in range(320):
            cipher.encrypt_into(nonce, data, None, out)
        ciphered.append(320 * NOISE_BYTES / (time.perf_counter() - began))
        began = time.perf_counter()
        for _ in range(20):
            hashlib.sha256(block).digest()
        hashed.append(20 * MIB / (time.perf_counter() - began))
    return Ideal(statistics.median(ciphered), statistics.median(hashed))

"""The private network: everything on the wire, from the first byte, goes through XSalsa20 with the swarm's key.

Each side begins, without waiting for the other, with a random 24-byte nonce in the clear; then it sends its bytes XORed
with the key stream of (key, nonce). There is no authentication here (Noise follows inside); whoever lacks the key sees
noise, and what he sends becomes noise.

Spec: libp2p "Private Networks" (PSK v1); the `swarm.key` file is Kubo's.

The key stream comes from libsodium, whose XSalsa20 is vectorised: 0.38 ns a byte here, where pycryptodomex takes
2.9 (docs/decisions/0011). PyNaCl brings the library but does not wrap this function, so it is called through ctypes;
where the symbol is missing, pycryptodomex with HSalsa20 in Python gives the same bytes more slowly.
"""

from __future__ import annotations

import base64
import binascii
import ctypes
import hashlib
import importlib.util
import struct
from collections.abc import Callable
from functools import cache
from typing import Protocol

from Cryptodome.Cipher import Salsa20

from ipfsreg.errors import MalformedData

PSK_BYTES = 32
NONCE_BYTES = 24
BLOCK_BYTES = 64

MAX_SWARM_KEY_BYTES = 1024
SWARM_KEY_HEADER = b"/key/swarm/psk/1.0.0/"


def parse_swarm_key(data: bytes) -> bytes:
    """Read a `swarm.key` file: the 32-byte key.

    Raises:
        MalformedData: another format, or not 32 bytes. Its text never shows the key.
    """
    if len(data) > MAX_SWARM_KEY_BYTES:
        raise MalformedData(f"a swarm.key has about 95 bytes, not {len(data)}")
    header, _, rest = data.partition(b"\n")
    encoding, _, body = rest.partition(b"\n")
    if header.rstrip(b"\r") != SWARM_KEY_HEADER:
        raise MalformedData(f"a swarm.key begins with the line {SWARM_KEY_HEADER.decode()}")
    encoding = encoding.rstrip(b"\r")
    try:
        if encoding == b"/base16/":
            key = binascii.unhexlify(body.strip())
        elif encoding == b"/base64/":
            key = base64.b64decode(body.strip(), validate=True)
        elif encoding == b"/bin/":
            key = body[:PSK_BYTES]
        else:
            raise MalformedData("the second line of a swarm.key is /base16/, /base64/ or /bin/")
    except binascii.Error:
        raise MalformedData(f"the key is not {encoding.decode().strip('/')}") from None
    if len(key) != PSK_BYTES:
        raise MalformedData(f"the key has {len(key)} bytes instead of {PSK_BYTES}")
    return key


def format_swarm_key(psk: bytes) -> bytes:
    """The `swarm.key` file of *psk*, as Kubo writes it."""
    assert len(psk) == PSK_BYTES
    return SWARM_KEY_HEADER + b"\n/base16/\n" + psk.hex().encode() + b"\n"


def fingerprint(psk: bytes) -> str:
    """What Kubo prints as "Swarm key fingerprint": tells keys apart without giving them away."""
    stream = Salsa20.new(key=psk, nonce=b"finprint").encrypt(bytes(BLOCK_BYTES))
    return hashlib.shake_128(stream).hexdigest(16)


class Keystream(Protocol):
    """One direction of a connection."""

    def xor(self, buffer: memoryview) -> None:
        """Encrypt or decrypt the next len(*buffer*) bytes in place. *buffer* must be writable."""


def open_keystream(psk: bytes, nonce: bytes) -> Keystream:
    """The key stream of (*psk*, *nonce*), from its start."""
    assert len(psk) == PSK_BYTES
    assert len(nonce) == NONCE_BYTES
    sodium = _sodium()
    return SodiumKeystream(sodium, psk, nonce) if sodium else PortableKeystream(psk, nonce)


SodiumXor = Callable[[int, int, int, bytes, int, bytes], int]


@cache
def _sodium() -> SodiumXor | None:
    """libsodium's crypto_stream_xsalsa20_xor_ic, or None."""
    spec = importlib.util.find_spec("nacl._sodium")
    if spec is None or spec.origin is None:
        return None
    try:
        # PyDLL keeps the GIL: a call takes 0.1 ms at most, and giving the GIL up could cost a switch interval (5 ms)
        # to get it back from a busy thread.
        library = ctypes.PyDLL(spec.origin)
        function = library.crypto_stream_xsalsa20_xor_ic
        if library.sodium_init() < 0:
            return None
    except (OSError, AttributeError):
        return None
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_void_p,
        ctypes.c_ulonglong,
        ctypes.c_char_p,
        ctypes.c_uint64,
        ctypes.c_char_p,
    ]
    function.restype = ctypes.c_int
    return function


class SodiumKeystream:
    """XSalsa20 by libsodium, which counts in blocks of 64 bytes; this keeps the position inside a block."""

    __slots__ = ("_nonce", "_position", "_psk", "_scratch", "_xor")

    def __init__(self, xor: SodiumXor, psk: bytes, nonce: bytes) -> None:
        self._xor = xor
        self._psk = psk
        self._nonce = nonce
        self._position = 0
        self._scratch = bytearray(BLOCK_BYTES)

    def xor(self, buffer: memoryview) -> None:
        """See Keystream."""
        size = len(buffer)
        block, skew = divmod(self._position, BLOCK_BYTES)
        self._position += size
        head = 0
        if skew:
            # Finish the block begun before on a copy of it.
            head = min(size, BLOCK_BYTES - skew)
            scratch = self._scratch
            scratch[skew : skew + head] = buffer[:head]
            self._apply(scratch, 0, BLOCK_BYTES, block)
            buffer[:head] = scratch[skew : skew + head]
            block += 1
        if head < size:
            self._apply(buffer, head, size - head, block)

    def _apply(self, buffer: bytearray | memoryview, offset: int, size: int, block: int) -> None:
        pinned = ctypes.c_char.from_buffer(buffer, offset)
        address = ctypes.addressof(pinned)
        self._xor(address, address, size, self._nonce, block, self._psk)


class PortableKeystream:
    """XSalsa20 from Salsa20: HSalsa20 makes the subkey out of the nonce's first 16 bytes."""

    __slots__ = ("_cipher",)

    def __init__(self, psk: bytes, nonce: bytes) -> None:
        self._cipher = Salsa20.new(key=hsalsa20(psk, nonce[:16]), nonce=nonce[16:])

    def xor(self, buffer: memoryview) -> None:
        """See Keystream."""
        self._cipher.encrypt(buffer, output=buffer)


def hsalsa20(key: bytes, nonce: bytes) -> bytes:
    """The subkey of *key* (32 bytes) and *nonce* (16 bytes). Spec: Bernstein, "Extending the Salsa20 nonce"."""
    k = struct.unpack("<8I", key)
    n = struct.unpack("<4I", nonce)
    c = struct.unpack("<4I", b"expand 32-byte k")
    x = [c[0], *k[:4], c[1], *n, c[2], *k[4:], c[3]]
    for _ in range(10):
        for rows in (_COLUMNS, _ROWS):
            for a, b, d, e in rows:
                x[b] ^= _rotate(x[a] + x[e], 7)
                x[d] ^= _rotate(x[b] + x[a], 9)
                x[e] ^= _rotate(x[d] + x[b], 13)
                x[a] ^= _rotate(x[e] + x[d], 18)
    return struct.pack("<8I", x[0], x[5], x[10], x[15], *x[6:10])


_COLUMNS = ((0, 4, 8, 12), (5, 9, 13, 1), (10, 14, 2, 6), (15, 3, 7, 11))
_ROWS = ((0, 1, 2, 3), (5, 6, 7, 4), (10, 11, 8, 9), (15, 12, 13, 14))


def _rotate(value: int, bits: int) -> int:
    value &= 0xFFFFFFFF
    return (value << bits | value >> (32 - bits)) & 0xFFFFFFFF

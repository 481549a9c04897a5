"""The private network's cipher and its key file."""

from __future__ import annotations

import random

import pytest

from ipfsreg.errors import MalformedData
from ipfsreg.p2p import pnet
from ipfsreg.p2p.pnet import (
    Keystream,
    PortableKeystream,
    SodiumKeystream,
    fingerprint,
    format_swarm_key,
    hsalsa20,
    open_keystream,
    parse_swarm_key,
)

# NaCl's own test vectors (tests/core1 and tests/stream in the NaCl distribution).
NACL_SHARED = bytes.fromhex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742")
NACL_KEY = bytes.fromhex("1b27556473e985d462cd51197a9a46c76009549eac6474f206c4ee0844f68389")
NACL_NONCE = bytes.fromhex("69696ee955b62b73cd62bda875fc73d68219e0036b7a0b37")
NACL_STREAM = bytes.fromhex("eea6a7251c1e72916d11c2cb214d3c252539121d8e234e652d651fa4c8cff880")


def both() -> list[Keystream]:
    sodium = pnet._sodium()
    assert sodium is not None, "PyNaCl's library has no XSalsa20: private networks will be slow"
    return [SodiumKeystream(sodium, NACL_KEY, NACL_NONCE), PortableKeystream(NACL_KEY, NACL_NONCE)]


def test_the_subkey_is_nacls() -> None:
    assert hsalsa20(NACL_SHARED, bytes(16)) == NACL_KEY


def test_the_key_stream_is_nacls() -> None:
    for stream in [*both(), open_keystream(NACL_KEY, NACL_NONCE)]:
        buffer = bytearray(32)
        stream.xor(memoryview(buffer))
        assert buffer == NACL_STREAM


def test_the_stream_does_not_depend_on_how_it_is_cut() -> None:
    whole = bytearray(5000)
    open_keystream(NACL_KEY, NACL_NONCE).xor(memoryview(whole))
    rng = random.Random(3)
    for stream in [stream for _ in range(20) for stream in both()]:
        out = b""
        while len(out) < len(whole):
            size = min(rng.choice([1, 2, 63, 64, 65, 127, 128, 1000]), len(whole) - len(out))
            piece = bytearray(size)
            stream.xor(memoryview(piece))
            out += piece
        assert out == whole


def test_a_piece_inside_a_larger_buffer_leaves_its_neighbours_alone() -> None:
    for stream in both():
        stream.xor(memoryview(bytearray(7)))
        buffer = bytearray(200)
        stream.xor(memoryview(buffer)[50:150])
        assert buffer[:50] == bytes(50)
        assert buffer[150:] == bytes(50)
        assert buffer[50:150] != bytes(100)


@pytest.mark.parametrize(
    "text",
    [
        b"/key/swarm/psk/1.0.0/\n/base16/\n" + NACL_KEY.hex().encode(),
        b"/key/swarm/psk/1.0.0/\n/base16/\n" + NACL_KEY.hex().upper().encode() + b"\n",
        b"/key/swarm/psk/1.0.0/\r\n/base16/\r\n" + NACL_KEY.hex().encode() + b"\r\n",
        b"/key/swarm/psk/1.0.0/\n/base64/\nGydVZHPphdRizVEZeppGx2AJVJ6sZHTyBsTuCET2g4k=\n",
        b"/key/swarm/psk/1.0.0/\n/bin/\n" + NACL_KEY,
        format_swarm_key(NACL_KEY),
    ],
)
def test_every_form_of_the_key_file_is_read(text: bytes) -> None:
    assert parse_swarm_key(text) == NACL_KEY


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"/key/swarm/psk/1.0.0/",
        b"/key/swarm/psk/2.0.0/\n/base16/\n" + NACL_KEY.hex().encode(),
        b"/key/swarm/psk/1.0.0/\n/base17/\n" + NACL_KEY.hex().encode(),
        b"/key/swarm/psk/1.0.0/\n/base16/\n" + NACL_KEY.hex().encode()[:-2],
        b"/key/swarm/psk/1.0.0/\n/base16/\n" + b"zz" * 32,
        b"/key/swarm/psk/1.0.0/\n/base64/\n!!!!",
        b"/key/swarm/psk/1.0.0/\n/bin/\nshort",
        b"x" * 5000,
    ],
)
def test_anything_else_is_refused_without_showing_the_key(text: bytes) -> None:
    with pytest.raises(MalformedData) as caught:
        parse_swarm_key(text)
    assert NACL_KEY.hex()[:16] not in str(caught.value)


def test_a_fingerprint_tells_keys_apart() -> None:
    assert fingerprint(NACL_KEY) != fingerprint(NACL_SHARED)
    assert len(fingerprint(NACL_KEY)) == 32

"""Throw damaged bytes at every decoder a peer can reach, and see that each refuses or understands them.

    python bench/fuzz_wire.py --inputs 1000000          # some seconds a million
    python bench/fuzz_wire.py --seed 7 --decoder yamux

Inputs are valid bytes with bits flipped, pieces cut out, doubled, swapped or replaced by interesting numbers, fed in
random cuts. Anything raised but the errors a decoder promises ends the run and prints the input.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable

from ipfsreg.errors import MalformedData, PeerMisbehaved, ProtocolUnsupported
from ipfsreg.p2p import yamux
from ipfsreg.p2p.identity import Identity, peer_id_of, verify
from ipfsreg.p2p.multistream import Dialer, Responder, encode_line
from ipfsreg.p2p.noise import Handshake, _read_payload
from ipfsreg.p2p.pnet import format_swarm_key, parse_swarm_key

Decoder = Callable[[list[bytes]], None]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
IDENTITY = Identity.generate()


def feed_yamux(pieces: list[bytes]) -> None:
    session = yamux.Session(dialer=False)
    session.start(session.open())
    for piece in pieces:
        for event in session.receive(memoryview(piece)):
            if isinstance(event, yamux.Received):
                session.consume(event.stream, len(event.payload), now=0.0, rtt_s=0.0)
            elif isinstance(event, yamux.Opened):
                session.acknowledge(event.stream)
    assert len(session.out) <= 12 * (2 + sum(map(len, pieces)))
    for stream in session.streams.values():
        assert 0 <= stream.receive_window <= stream.window
        assert stream.unread == 0


def feed_responder(pieces: list[bytes]) -> None:
    responder = Responder()
    for piece in pieces:
        if responder.protocol is None:
            responder.receive(piece, {"/a", "/echo/1.0.0"}.__contains__)


def feed_dialer(pieces: list[bytes]) -> None:
    dialer = Dialer(["/a", "/echo/1.0.0"])
    for piece in pieces:
        if dialer.protocol is None:
            dialer.receive(piece)


def feed_payload(pieces: list[bytes]) -> None:
    try:
        public_key, signature, _ = _read_payload(b"".join(pieces))
        peer_id_of(public_key)
    except ValueError:  # as the handshake does: text that is not UTF-8
        return
    verify(public_key, b"data", signature)


def feed_key(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    verify(data, b"data", b"\x00" * 64)
    Identity.from_protobuf(data)


def feed_swarm_key(pieces: list[bytes]) -> None:
    assert len(parse_swarm_key(b"".join(pieces))) == 32


def frame(kind: int, flags: int, number: int, length: int, payload: bytes = b"") -> bytes:
    return yamux.HEADER.pack(0, kind, flags, number, length) + payload


HEADER = encode_line("/multistream/1.0.0")
SEEDS: dict[str, tuple[Decoder, list[bytes]]] = {
    "yamux": (
        feed_yamux,
        [
            frame(1, 1, 1, 0) + frame(0, 0, 1, 5, b"hello") + frame(1, 4, 1, 0) + frame(2, 1, 0, 7),
            frame(0, 1, 3, 20, bytes(20)) + frame(1, 8, 3, 0) + frame(0, 0, 3, 4, b"late") + frame(3, 0, 0, 0),
            frame(1, 2, 2, 1000) + frame(0, 0, 2, 3, b"abc") + frame(1, 0, 2, 1 << 20) + frame(0, 4, 2, 0),
        ],
    ),
    "responder": (
        feed_responder,
        [HEADER + encode_line("/x") + encode_line("/a") + b"rest", HEADER + encode_line("ls")],
    ),
    "dialer": (feed_dialer, [HEADER + encode_line("na") + encode_line("/echo/1.0.0"), HEADER + encode_line("/a")]),
    "payload": (feed_payload, [Handshake(IDENTITY, dialer=True, muxers=["/yamux/1.0.0"])._payload()]),
    "key": (feed_key, [IDENTITY.to_protobuf(), IDENTITY.public_key, b"\x08\x00\x12\x20" + bytes(32)]),
    "swarm.key": (feed_swarm_key, [format_swarm_key(bytes(32)), b"/key/swarm/psk/1.0.0/\n/bin/\n" + bytes(32)]),
}


def damaged(rng: random.Random, seeds: list[bytes]) -> bytes:
    data = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(1, 5)):
        at = rng.randrange(len(data)) if data else 0
        match rng.randrange(7):
            case 0 if data:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at : at + rng.randrange(1, 16)]
            case 2:
                data[at:at] = data[at : at + rng.randrange(1, 32)]
            case 3:
                size = rng.choice([1, 2, 4])
                data[at : at + size] = (rng.choice(INTERESTING) & (1 << 8 * size) - 1).to_bytes(size, "big")
            case 4:
                data += rng.choice(seeds)
            case 5:
                data[at:at] = rng.randbytes(rng.randrange(1, 16))
            case _:
                del data[at:]
    return bytes(data)


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    if len(data) < 2 or rng.random() < 0.3:
        return [data]
    at = sorted(rng.randrange(len(data)) for _ in range(rng.randrange(1, 4)))
    return [data[start:end] for start, end in zip([0, *at], [*at, len(data)], strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all, shared by the decoders")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--decoder", choices=SEEDS)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    chosen = [options.decoder] if options.decoder else list(SEEDS)
    for name in chosen:
        decode, seeds = SEEDS[name]
        count, refused, began = options.inputs // len(chosen), 0, time.perf_counter()
        for _ in range(count):
            pieces = cut(rng, damaged(rng, seeds))
            try:
                decode(pieces)
            except (MalformedData, PeerMisbehaved, ProtocolUnsupported):
                refused += 1
            except BaseException:
                print(f"{name}: {pieces!r}")
                raise
        print(f"{name:10} {count} inputs, {refused} refused, {time.perf_counter() - began:.1f} s")


if __name__ == "__main__":
    main()

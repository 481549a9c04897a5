"""Peer IDs: the multihash of a peer's public key.

Spec: libp2p "Peer Ids and Keys". An Ed25519 key is short enough to be carried whole in an identity multihash.
"""

from __future__ import annotations

from dataclasses import dataclass

import base58

from ipfsreg.errors import MalformedData

MAX_PEER_ID_BYTES = 64
"""No multihash used for peer IDs is longer: sha2-256 gives 34 bytes, an inlined Ed25519 key 38."""

MAX_PEER_ID_CHARACTERS = 88
"""Of 64 bytes in base58. Text is measured before it is decoded: base58 takes quadratic time."""


@dataclass(frozen=True, slots=True, order=True)
class PeerId:
    """A peer, named by the hash of its public key."""

    raw: bytes
    """The binary multihash, as it travels on the wire."""

    def __hash__(self) -> int:
        # Peers are keys of many tables, and bytes remember their hash where a tuple of fields does not.
        return hash(self.raw)

    @classmethod
    def parse(cls, text: str) -> PeerId:
        """Read the base58 form (`12D3KooW…`, `Qm…`).

        Raises:
            MalformedData: not base58, or of a length no peer ID has.
        """
        if len(text) > MAX_PEER_ID_CHARACTERS:
            raise MalformedData(f"{len(text)} characters are not a peer ID")
        try:
            return cls.decode(base58.b58decode(text))
        except ValueError as error:
            raise MalformedData(f"{text!r} is not a peer ID: {error}") from None
        except MalformedData:
            raise MalformedData(f"{text!r} is not a peer ID") from None

    @classmethod
    def decode(cls, raw: bytes) -> PeerId:
        """Read the binary form. Raises MalformedData."""
        if not 2 < len(raw) <= MAX_PEER_ID_BYTES or len(raw) != raw[1] + 2:
            raise MalformedData(f"{raw[:MAX_PEER_ID_BYTES].hex()} is not a peer ID")
        return cls(raw)

    def __str__(self) -> str:
        return base58.b58encode(self.raw).decode()

    def __repr__(self) -> str:
        return f"PeerId({self})"

    @property
    def short(self) -> str:
        """The last eight characters: enough to tell peers apart in a log line."""
        return str(self)[-8:]

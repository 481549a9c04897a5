"""Who is trusted with names, as the configuration says it and as the replica needs it."""

from __future__ import annotations

import logging

from ipfsreg.config import Config
from ipfsreg.crdt.replica import ReplicaSettings, trusting
from ipfsreg.crdt.writers import Rule, Writers
from ipfsreg.errors import ConfigError, MalformedData
from ipfsreg.ipld.cid import Cid
from ipfsreg.peer_id import PeerId
from ipfsreg.registry.catalog import BLOB_MARKS, repository_of

logger = logging.getLogger(__name__)


def replica_settings_of(config: Config, ourselves: PeerId) -> ReplicaSettings:
    """Whose names count at the node *ourselves*, and whose checkpoints. Raises ConfigError."""
    trusted = _trusted_peers(config, ourselves)
    return ReplicaSettings(
        trusted_peers=trusted,
        marks=BLOB_MARKS,
        checkpoint_peers=_checkpoint_peers(config),
        checkpoint_required=config.crdt.checkpoint_required,
        writers=writers_among(config, trusted),
    )


def _trusted_peers(config: Config, ourselves: PeerId) -> frozenset[PeerId] | None:
    trusted = config.crdt.trusted_peers
    if trusted is None:
        if config.is_private:
            return None
        logger.warning("on the public network nobody's writes are taken until crdt.trusted_peers names who is trusted")
        return frozenset({ourselves})
    try:
        return trusting(trusted)
    except MalformedData as error:
        raise ConfigError("crdt.trusted_peers", list(trusted), f'peer IDs, or "*" for everybody: {error}') from None


def _checkpoint_peers(config: Config) -> frozenset[PeerId] | None:
    peers = config.crdt.checkpoint_peers
    if peers is None:
        return None
    return frozenset(_peer("crdt.checkpoint_peers", peer) for peer in peers)


def writers_of(config: Config, ourselves: PeerId, seed: bytes | None) -> Writers:
    """The rules on writers in the epoch that began with the head *seed*. Raises ConfigError."""
    return writers_among(config, _trusted_peers(config, ourselves), seed)


def writers_among(config: Config, trusted: frozenset[PeerId] | None, seed: bytes | None = None) -> Writers:
    """The same, where it is known already who is *trusted* (None: everybody)."""
    rules = tuple(
        Rule(
            rule.repositories,
            frozenset(_peer("crdt.writers.peers", peer) for peer in rule.peers),
            tuple(
                (_peer("crdt.writers.former.peer", one.peer), _heads("crdt.writers.former.heads", one.heads))
                for one in rule.former
            ),
        )
        for rule in config.crdt.writers
    )
    unsigned = _heads("crdt.unsigned_heads", config.crdt.unsigned_heads)
    if seed is not None and (rules or config.crdt.require_signed):
        unsigned |= {seed}  # What an epoch begins with is signed by nobody: every replica makes it for itself.
    return Writers(
        rules,
        require_signed=config.crdt.require_signed,
        signers=trusted,
        unsigned_heads=unsigned,
        repository_of=repository_of,
    )


def _peer(key: str, text: str) -> PeerId:
    try:
        return PeerId.parse(text)
    except MalformedData as error:
        raise ConfigError(key, text, f"a peer ID, as 12D3KooW…: {error}") from None


def _heads(key: str, texts: tuple[str, ...]) -> frozenset[bytes]:
    heads = set()
    for text in texts:
        try:
            cid = Cid.parse(text)
        except MalformedData as error:
            raise ConfigError(key, text, f"the CID of a head, as `ipfsreg status --json` shows them: {error}") from None
        heads.add(cid.multihash)
    return frozenset(heads)

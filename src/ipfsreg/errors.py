"""Every failure ipfsreg names, as one tree.

No status codes here: `http/errors.py` alone turns these into OCI answers, and the nearest ancestor wins there.
Foreign exceptions are renamed into one of these in the adapter that meets them.
"""

from __future__ import annotations


class IpfsregError(Exception):
    """The root of the tree. Its text is a sentence an operator can act on."""


# ------------------------------------------------------------------ starting


class ConfigError(IpfsregError):
    """A configuration key, its value, and what would be right."""

    def __init__(self, key: str, value: object, right: str) -> None:
        super().__init__(f"{key} = {value!r}: {right}")
        self.key = key
        self.value = value
        self.right = right


class AlreadyRunning(IpfsregError):
    """Another process holds the datastore or the port."""


# -------------------------------------------------------------------- blocks


class MalformedData(IpfsregError):
    """Bytes from outside that are not what their format says."""


class BlockCorrupt(MalformedData):
    """Bytes that do not hash to the CID they came under."""


class StoreError(IpfsregError):
    """The local store could not do it."""


class BlockNotFound(StoreError):
    """The block is not in this store (local) or with no peer in time (network)."""


class StoreFull(StoreError):
    """No room left; nothing of the refused write remains."""


class StoreDamaged(StoreError):
    """What lies on disk is not what its hash says."""


# --------------------------------------------------------------------- peers


class NetworkError(IpfsregError):
    """Something between us and a peer."""


class PeerUnreachable(NetworkError):
    """No address of the peer answered in time."""


class ProtocolUnsupported(NetworkError):
    """The peer speaks none of the protocols offered."""


class ConnectionLost(NetworkError):
    """The connection under a stream is gone."""


class StreamReset(NetworkError):
    """The peer, or we, reset this stream."""


class LimitReached(NetworkError):
    """One of our own limits (connections, streams, memory) forbids it now."""


class PeerMisbehaved(NetworkError):
    """A peer broke a protocol. Costs it its stream or connection; never reaches an HTTP client."""


class SwarmKeyMismatch(PeerMisbehaved):
    """The peer does not hold our swarm's pre-shared key, or one of us has none."""


class WrongPeer(PeerMisbehaved):
    """Somebody else answered than the peer that was dialled."""


# ------------------------------------------------------------------ registry


class RegistryError(IpfsregError):
    """A request that cannot be met as asked."""


class NameInvalid(RegistryError):
    """Not a repository name (OCI distribution-spec, "Pulling manifests")."""


class NameUnknown(RegistryError):
    """No repository of that name."""


class TagInvalid(RegistryError):
    """Not a tag."""


class DigestInvalid(RegistryError):
    """Not a digest, or of an algorithm we do not know."""


class DigestMismatch(DigestInvalid):
    """Content whose digest is not the one it was given under."""


class BlobUnknown(RegistryError):
    """The repository has no such blob, and no peer in reach gave it in time."""


class ManifestUnknown(RegistryError):
    """The repository has no such manifest or tag."""


class ManifestInvalid(RegistryError):
    """A manifest that cannot be accepted."""


class ManifestTooLarge(ManifestInvalid):
    """A manifest above the size limit."""


class ManifestBlobUnknown(RegistryError):
    """A manifest that names a blob or manifest the repository does not have."""


class UploadUnknown(RegistryError):
    """No such upload session here."""


class UploadInvalid(RegistryError):
    """A request that does not fit the state of its upload."""


class RangeInvalid(RegistryError):
    """A range that cannot be served, or a chunk out of order."""


class SizeInvalid(RegistryError):
    """A length that does not match what was sent."""


class ContentUnavailable(RegistryError):
    """The name is known here, but no peer in reach has the bytes now."""


class Unauthorized(RegistryError):
    """Nobody knows who asks, or what they brought proves too little."""

    def __init__(self, text: str, *, error: str = "", challenge: str = "") -> None:
        """*error*: what RFC 6750, 3.1 calls it; *challenge*: the WWW-Authenticate header, once it is known."""
        super().__init__(text)
        self.error = error
        self.challenge = challenge


class Denied(RegistryError):
    """Known, but not allowed."""


class QuotaExceeded(Denied):
    """The repositories of a quota would hold more than they may."""


class TooManyRequests(RegistryError):
    """A client asked for more than it may in this time."""

    def __init__(self, text: str, retry_after_s: float) -> None:
        super().__init__(text)
        self.retry_after_s = retry_after_s


class Unsupported(RegistryError):
    """An operation this registry does not offer."""


class NotReady(RegistryError):
    """Try again shortly: the node is starting, draining or catching up."""

"""The certificate of the HTTP front: read, checked, and read again when its files change.

Connections keep the certificate they began with; new ones get the new one. A certificate that cannot be used is refused
with the reason, at the start by an error, later by a line in the log, and the one before stays in use.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from ipfsreg.errors import ConfigError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 1024 * 1024
EXPIRES_SOON = timedelta(days=14)

_SLOW_RSA_BITS = 2048
"""Signing with a longer key takes milliseconds (4,096 bits: 3), in which no other connection would go on."""

CERTIFICATE_KEY, PRIVATE_KEY = "http.tls_certificate", "http.tls_key"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A certificate with its key, ready for handshakes."""

    context: ssl.SSLContext
    subject: str
    not_after: datetime
    slow: bool
    """Whether a handshake takes so long that it belongs into a thread."""


class Tls:
    """What TLS listeners use now. `reload` is safe while handshakes go on."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises ConfigError."""
        self.certificate_path = certificate
        self.key_path = key
        self.credentials = load_credentials(certificate, key)
        _tell(self.credentials)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Whose change asks for `reload`."""
        return self.certificate_path, self.key_path

    def reload(self) -> None:
        """Read the files again. Raises ConfigError: what was read before stays in use."""
        self.credentials = load_credentials(self.certificate_path, self.key_path)
        _tell(self.credentials)


def load_credentials(certificate: Path, key: Path) -> Credentials:
    """Read a PEM chain (the server's certificate first) and its private key.

    Raises:
        ConfigError: missing, unreadable, malformed or expired, or the key belongs to another certificate.
    """
    chain = _read(CERTIFICATE_KEY, certificate)
    try:
        first = x509.load_pem_x509_certificates(chain)[0]
    except ValueError as error:
        right = f"a PEM file with the certificate first and then its chain: {error}"
        raise ConfigError(CERTIFICATE_KEY, str(certificate), right) from None
    secret = _read(PRIVATE_KEY, key)
    try:
        private = load_pem_private_key(secret, password=None)
    except TypeError:
        raise ConfigError(
            PRIVATE_KEY, str(key), "the key must not be encrypted: nobody is there to type its password"
        ) from None
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError(PRIVATE_KEY, str(key), "must be a PEM file with a private key") from None
    public = private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if first.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo) != public:
        raise ConfigError(PRIVATE_KEY, str(key), f"is not the key of the certificate in {certificate}")
    not_after = first.not_valid_after_utc
    if not_after <= datetime.now(UTC):
        raise ConfigError(CERTIFICATE_KEY, str(certificate), f"expired on {not_after:%Y-%m-%d %H:%M} UTC")
    slow = isinstance(private, rsa.RSAPrivateKey) and private.key_size > _SLOW_RSA_BITS
    return Credentials(_context(certificate, key), first.subject.rfc4514_string(), not_after, slow)


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # Only the client could ask for it, as often as it likes; TLS 1.3 has none.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(CERTIFICATE_KEY, str(certificate), f"OpenSSL does not take it: {error}") from None
    return context


def _read(name: str, path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(name, str(path), f"cannot be read: {error.strerror}") from None
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(name, str(path), f"is larger than {MAX_FILE_BYTES} bytes")
    return data


def _tell(credentials: Credentials) -> None:
    text = "TLS certificate of %s, valid until %s"
    until = f"{credentials.not_after:%Y-%m-%d %H:%M} UTC"
    soon = credentials.not_after - datetime.now(UTC) < EXPIRES_SOON
    (logger.warning if soon else logger.info)(text, credentials.subject or "nobody", until)
